"""Gradients of single rows in the leaves that a network trains, block by block through a stream."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import Array, Block, HostArray
from jaxpoison.detect._detector import Key
from jaxpoison.kernels import (
    Tap,
    TapPlan,
    Taps,
    layer_squared_norms,
    plan_taps,
    random_project,
    rows_product,
    tap_inputs,
)
from jaxpoison.layout import Layout
from jaxpoison.models import Model
from jaxpoison.models.networks import NetworkFn
from jaxpoison.stream import Stream

_HELD_FLOATS = 1 << 26  # of a block's layers, inputs as patches, which only some forms hold


class Gradients(NamedTuple):
    """What is kept of the gradient of each row's loss.

    Attributes:
        norms: [n] float32 in units of the loss per unit of the parameters, 0 where not finite.
        sketch: [n, k] float32 random projection, 0 where not finite; k is 0 where none was asked.
        is_finite: [n] bool, whether loss and gradient are finite numbers.
    """

    norms: HostArray
    sketch: HostArray
    is_finite: HostArray


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["seed"],
    meta_fields=["num_inputs", "num_outputs"],
)
@dataclass(frozen=True)
class Projection:
    """Random signs ``R_i (x) R_o`` for each layer; k = num_inputs * num_outputs, 0 for none.

    Attributes:
        seed: Data of the key.
        num_inputs: Columns of R_i.
        num_outputs: Columns of R_o.
    """

    seed: Array
    num_inputs: int
    num_outputs: int


def gradients(
    stream: Stream, model: Model, key: Key, *, num_inputs: int = 0, num_outputs: int = 0
) -> Gradients:
    """Norms of the rows' gradients in all trained leaves, and random projections of them.

    Layers are projected by Kronecker products of signs, other leaves by signs, and the parts are
    added: their signs are independent, so inner products of whole gradients are kept.

    Args:
        stream: Raw inputs as the model takes them, without a stage.
        model: Its loss is differentiated.
        key: Of the signs.
        num_inputs: k_i, 0 for no projection.
        num_outputs: k_o.

    Raises:
        UsageError: The stream has a stage, or the loss or the parameters have no gradients of
            single rows.

    **Cost**: one pass: a forward and a backward in the activations, products for the norms, and
    2 T (i k_i + o k_o) FLOP a layer for the projection.
    """
    if stream.stage is not None:
        raise UsageError("gradients need raw inputs; give the stream without its stage")
    try:
        plan = _plan(model, stream)
    except ValueError as error:
        raise UsageError(f"{model.name} has no gradients of single rows: {error}") from error
    # as many as a power of two, so that few numbers of rows compile anew
    labels = np.zeros(1 << int(np.ceil(np.log2(max(len(stream), 256)))), np.int32)
    labels[: len(stream)] = stream.labels
    asked = Projection(jax.random.key_data(key), num_inputs, num_outputs)
    blocks = _in_blocks(stream, _rows_of_block(plan, len(stream)))
    found = blocks.map(_of_block, model, labels, asked)
    is_finite = found[:, 1] > 0
    return Gradients(found[:, 0], found[:, 2:], is_finite)


def gradient_norms_of(stream: Stream, model: Model, key: Key) -> tuple[HostArray, HostArray]:
    """Norms [n] and whether they are finite [n], kept for this stream and model.

    **Cost**: one pass without projections, or nothing after ``keep_norms``.
    """

    def make() -> tuple[Model, HostArray, HostArray]:
        found = gradients(stream, model, key)
        return model, found.norms, found.is_finite  # the model is held, so that its id stays its

    _, norms, is_finite = stream.memo(("gradient norms", id(model)), make)
    return norms, is_finite


def keep_norms(stream: Stream, model: Model, found: Gradients) -> None:
    """Norms that another pass gave in passing, for ``gradient_norms_of``."""
    kept = (model, found.norms, found.is_finite)
    stream.memo(("gradient norms", id(model)), lambda: kept)


def trained_leaves(model: Model) -> Any:
    """Which leaves of a model's parameters a training moves: what ``plan_taps`` calls trainable.

    Of this project's networks the weights, of Linen variables the collection "params", of NNX
    states the ``Param`` variables, of anything else every leaf of floating numbers.
    """
    params = model.params
    if isinstance(model.logits, NetworkFn):
        return (True, False)
    nnx = sys.modules.get("flax.nnx")  # where no one imported it, there is no such variable
    if nnx is not None:

        def is_variable(leaf: Any) -> bool:
            return isinstance(leaf, nnx.Variable)

        leaves = jax.tree.leaves(params, is_leaf=is_variable)
        if any(map(is_variable, leaves)):
            return jax.tree.map(
                lambda leaf: isinstance(leaf, nnx.Param), params, is_leaf=is_variable
            )
    collections = isinstance(params, Mapping) and "params" in params

    def is_trained(path: Any, leaf: Any) -> bool:
        of_params = not collections or path[0].key == "params"
        return of_params and bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))

    return jax.tree_util.tree_map_with_path(is_trained, params)


def _plan(model: Model, stream: Stream) -> TapPlan:
    batch = np.zeros((1, *stream.row_shape), stream.dtype), np.zeros(1, np.int32)
    return plan_taps(model.loss, model.params, batch, trainable=trained_leaves(model))


def _rows_of_block(plan: TapPlan, num_rows: int) -> int:
    """Rows whose taps are held at a time, a power of two."""
    held = sum(a.num_positions * (a.num_inputs + a.num_outputs) for a in plan.layers)
    held += sum(int(np.prod(plan.leaf_shapes[n])) for n in plan.rest)
    most = int(np.log2(max(_HELD_FLOATS // max(held, 1), 1)))
    return 1 << int(np.clip(most, 3, np.ceil(np.log2(max(num_rows, 8)))))


def _in_blocks(stream: Stream, rows: int) -> Stream:
    """The same rows in small blocks of any classes.

    Convolutions that are differentiated inside a loop take six times as long on a CPU (jaxlib
    0.10.2), so a block is worked on at once, and must be small enough for that.
    """
    labels = np.zeros(len(stream), np.int32)
    return stream.of(
        stream.source, labels=labels, num_classes=1, budget_bytes=0, identity=stream.identity,
        layout=Layout(rows, rows, 1),
    )  # fmt: skip


def _of_block(block: Block, model: Model, labels: Array, asked: Projection) -> Array:
    """[1, b, 2 + k]: norm, 1 where finite, projection."""
    x, y, mask = block.x[0], labels[block.ids[0]], block.mask[0]
    plan = plan_taps(model.loss, model.params, (x, y), trainable=trained_leaves(model))
    taps = plan(model.params, (x, y), mask)
    squares = jnp.sum(layer_squared_norms(taps), axis=1)
    is_finite = jnp.isfinite(taps.losses) & jnp.isfinite(squares)
    parts = [jnp.sqrt(squares)[:, None], jnp.ones((len(x), 1)), _sketch(taps, asked)]
    return jnp.where(is_finite[:, None], jnp.concatenate(parts, axis=1), 0.0)[None]


def _sketch(taps: Taps, asked: Projection) -> Array:
    """[b, k] sum of the projections of all layers, biases and other leaves."""
    num_rows, size = len(taps.losses), asked.num_inputs * asked.num_outputs
    total = jnp.zeros((num_rows, size), jnp.float32)
    if not size:
        return total
    keys = iter(jax.random.split(jax.random.wrap_key_data(asked.seed), 3 * len(taps.layers) + 1))
    for tap in taps.layers:
        a = _projected_inputs(tap, asked.num_inputs, next(keys))
        d = _flat_project(tap.cotangents, asked.num_outputs, next(keys))
        total += rows_product(a, d).reshape(num_rows, size)
        of_bias = next(keys)
        if tap.layer.bias is not None:
            bias = jnp.sum(tap.cotangents, axis=1, dtype=jnp.float32)
            total += random_project(bias, num_features=size, key=of_bias)
    if taps.rest:
        flat = [g.reshape(num_rows, -1).astype(jnp.float32) for g in taps.rest]
        total += random_project(jnp.concatenate(flat, axis=1), num_features=size, key=next(keys))
    return total


def _projected_inputs(tap: Tap, num_features: int, key: Array) -> Array:
    """``A R`` [b, T, k]; of a convolution by a convolution with R, which needs no patches."""
    layer = tap.layer
    if layer.conv is None:
        return _flat_project(tap_inputs(tap), num_features, key)
    x = layer.conv.padded(tap.inputs.astype(jnp.float32))
    signs = random_project(jnp.eye(layer.num_inputs), num_features=num_features, key=key)
    kernel = signs.reshape(*layer.conv.kernel, x.shape[-1], num_features)
    last = "DHW"[-len(layer.conv.kernel) :]
    out = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]),
        kernel,
        window_strides=layer.conv.strides,
        padding="VALID",
        rhs_dilation=layer.conv.kernel_dilation,
        dimension_numbers=(f"N{last}C", f"{last}IO", f"N{last}C"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return out.reshape(len(x), layer.num_positions, num_features)


def _flat_project(rows: Array, num_features: int, key: Array) -> Array:
    """The last axis of [b, T, i] projected."""
    flat = random_project(rows.reshape(-1, rows.shape[-1]), num_features=num_features, key=key)
    return flat.reshape(*rows.shape[:2], num_features)
