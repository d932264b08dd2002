"""Norms of the gradients of single rows, and those gradients themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._tap_layers import matrix_to_leaf, tap_inputs
from ._tap_norms import HIGHEST, squared_norms
from .taps import LossFn, TapPlan, Taps, plan_taps

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float


class GradientNorms(NamedTuple):
    """Norms of the gradients of the rows' losses.

    Attributes:
        norms: [b] float32, of all trained leaves together; 0 where ``is_finite`` is False.
        losses: [b] of the rows, as the loss gave them, 0 for padding.
        is_finite: [b] bool; False where the loss or the norm is not a finite number. Such rows have
            no rank: decide on them by this flag.
        layers: [b, L] float32 norms of the single layers with their biases, then of the remaining
            leaves, in the order of ``TapPlan.layer_names``; None where not asked for.
    """

    norms: Array
    losses: Array
    is_finite: Array
    layers: Array | None = None


def gradient_norms(
    loss_fn: LossFn,
    params: Any,
    batch: Any,
    mask: Float[Array, " b"] | None = None,
    *,
    per_layer: bool = False,
    chunk: int | None = None,
    trainable: Any = None,
) -> GradientNorms:
    """``|d loss_b / d params|_2`` of each row (GraNd), without forming any row's gradient.

    Args:
        loss_fn: ``loss_fn(params, *batch)`` where batch is a tuple, else
            ``loss_fn(params, batch)``; [b] losses or their sum. See ``plan_taps``.
        params: Pytree of floating arrays.
        batch: Pytree whose leaves begin with the axis of b rows.
        mask: [b] positive for a row, 0 for padding, whose content is ignored and whose norm is 0.
        per_layer: Whether to give the norms of the layers too.
        chunk: Rows whose activations are held at a time; changes only speed and memory.
        trainable: Which leaves count; see ``plan_taps``.

    Returns:
        Norms in units of the loss per unit of the parameters, losses and a status for each row.

    Raises:
        ValueError: See ``plan_taps``; a chunk below 1 or a mask that is not [b].

    **Cost**: a forward and a backward in the activations (4 T P flop a row), then for each layer
    2 (i + o) flop for T = 1, else the least of 2 T^2 (i + o) and 2 T i o; convolutions and
    embeddings: see ``form_of``. Leaves reached by ``vmap(grad)`` cost their size for each row.
    **Assumes / fails on**: products are summed in float32 at the highest precision; a Gram form
    loses about 1e-7 T of the largest term. Taps in bfloat16 give about 3e-3 relative error.

    Reference: Goodfellow 2015 (arXiv 1510.01799); Paul, Ganguli, Dziugaite 2021
    (arXiv 2107.07075); Li, Tramer, Liang, Hashimoto 2022 (arXiv 2110.05679).
    """
    plan = plan_taps(loss_fn, params, batch, trainable=trainable)
    check_rows(batch, mask, chunk)
    result: GradientNorms = _norms(plan, params, batch, mask, per_layer, chunk)
    return result


def layer_squared_norms(taps: Taps) -> Array:
    """[b, L] squared norms of each layer with its bias, then of each remaining leaf.

    Pure and not jitted, for use on taps inside a jitted function; columns are in the order of
    ``TapPlan.layer_names``.
    """
    columns = []
    for tap in taps.layers:
        weight, bias = squared_norms(tap)
        columns.append(weight if bias is None else weight + bias)
    for gradient in taps.rest:
        flat = gradient.reshape(len(gradient), -1).astype(jnp.float32)
        columns.append(jnp.sum(flat * flat, axis=1))
    if not columns:  # the loss depends on no leaf
        return jnp.zeros((len(taps.losses), 0), jnp.float32)
    return jnp.stack(columns, axis=1)


def per_sample_gradients(
    loss_fn: LossFn,
    params: Any,
    batch: Any,
    mask: Float[Array, " b"] | None = None,
    *,
    map_fn: Callable[[Any], Any] | None = None,
    chunk: int | None = None,
    trainable: Any = None,
) -> Any:
    """``d loss_b / d params`` of each row, formed from the taps.

    Args:
        loss_fn: See ``gradient_norms``.
        params: Pytree of floating arrays.
        batch: Of b rows.
        mask: [b] positive for a row, 0 for padding, whose gradient is 0.
        map_fn: Pure function of the gradients of some rows, [rows, *leaf] leaves to arrays that
            begin with [rows]; hashable. With a chunk, no more than so many rows' gradients are ever
            held. None gives the gradients.
        chunk: Rows formed at a time.
        trainable: Which leaves; frozen ones give None.

    Returns:
        Pytree like params, each leaf [b, *leaf] in float32; or what map_fn gives for all rows.

    Raises:
        ValueError: See ``gradient_norms``.

    **Cost**: the taps and 2 T i o flop a row and layer; ``chunk`` times P numbers held, and b times
    the size of the result.
    **Assumes / fails on**: b P numbers, if map_fn is None, must fit in memory.
    """
    plan = plan_taps(loss_fn, params, batch, trainable=trainable)
    check_rows(batch, mask, chunk)
    return _gradients(plan, params, batch, mask, map_fn, chunk)


def gradients_of(taps: Taps, params: Any) -> Any:
    """Gradients of the rows from their taps.

    Args:
        taps: Of b rows.
        params: Pytree that gives the structure.

    Returns:
        Pytree like params of [b, *leaf] in float32, None where frozen.

    **Cost**: 2 T i o flop a row and layer, b P numbers.
    """
    num_rows, found = len(taps.losses), {}
    for tap in taps.layers:
        layer, d = tap.layer, tap.cotangents
        product = jnp.einsum(
            "bti,bto->bio",
            tap_inputs(tap),
            d,
            precision=HIGHEST,
            preferred_element_type=jnp.float32,
        )
        found[layer.weight] = matrix_to_leaf(layer, product)
        if layer.bias is not None and layer.bias_shape is not None:
            total = jnp.sum(d, axis=1, dtype=jnp.float32)
            found[layer.bias] = total.reshape(num_rows, *layer.bias_shape)
    for n, gradient in zip(taps.plan.rest, taps.rest, strict=True):
        found[n] = gradient.astype(jnp.float32)
    for n, (name, shape) in enumerate(zip(taps.plan.names, taps.plan.leaf_shapes, strict=True)):
        if taps.plan.coverage[name] == "unused":
            found[n] = jnp.zeros((num_rows, *shape), jnp.float32)
    leaves = [found.get(n) for n in range(len(taps.plan.names))]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def check_rows(batch: Any, mask: Any, chunk: int | None) -> None:
    """Complains of a mask or chunk that does not fit the batch."""
    num_rows = len(jax.tree.leaves(batch)[0])
    if mask is not None and jnp.shape(mask) != (num_rows,):
        raise ValueError(f"mask must be [{num_rows}] like the batch, got {jnp.shape(mask)}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 row, got {chunk}")


def by_chunks(fn: Callable[[Any, Any], Any], batch: Any, mask: Any, chunk: int | None) -> Any:
    """``fn(rows, mask)`` over the batch, ``chunk`` rows at a time; results are [b, ...]."""
    num_rows = len(jax.tree.leaves(batch)[0])
    if chunk is None or chunk >= num_rows:
        return fn(batch, mask)
    num_chunks = -(-num_rows // chunk)
    # The last chunk is filled with the first row again: real content is sure to be computable.
    index = jnp.arange(num_chunks * chunk) % num_rows
    whole = jax.tree.map(
        lambda x: jnp.asarray(x)[index].reshape(num_chunks, chunk, *x.shape[1:]), (batch, mask)
    )
    out = jax.lax.map(lambda part: fn(*part), whole)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], out)


@partial(jax.jit, static_argnums=(0, 4, 5))
def _norms(
    plan: TapPlan, params: Any, batch: Any, mask: Any, per_layer: bool, chunk: int | None
) -> GradientNorms:
    def of_rows(rows: Any, mask: Any) -> tuple[Array, Array]:
        taps = plan(params, rows, mask)
        return taps.losses, layer_squared_norms(taps)

    losses, squares = by_chunks(of_rows, batch, mask, chunk)
    norms = jnp.sqrt(jnp.sum(squares, axis=1))
    is_finite = jnp.isfinite(norms) & jnp.isfinite(losses)
    layers = jnp.where(is_finite[:, None], jnp.sqrt(squares), 0.0) if per_layer else None
    return GradientNorms(jnp.where(is_finite, norms, 0.0), losses, is_finite, layers)


@partial(jax.jit, static_argnums=(0, 4, 5))
def _gradients(
    plan: TapPlan, params: Any, batch: Any, mask: Any, map_fn: Any, chunk: int | None
) -> Any:
    def of_rows(rows: Any, mask: Any) -> Any:
        gradients = gradients_of(plan(params, rows, mask), params)
        return gradients if map_fn is None else map_fn(gradients)

    return by_chunks(of_rows, batch, mask, chunk)
