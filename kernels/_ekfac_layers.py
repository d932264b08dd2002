"""Sums over the rotated gradients of rows, layer by layer, from rotated taps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._masked import HIGHEST
from ._tap_layers import Layer, Tap, tap_inputs

_HELD = 1 << 24  # numbers of formed gradients that an accelerator holds at a time: 64 MB


class LayerBasis(NamedTuple):
    """Eigenvectors of the two second moments of a layer, as columns.

    Attributes:
        inputs: [i', i'] of the inputs with a one appended if the layer has a bias, or None for the
            identity (one-hot rows of an embedding: their second moment is diagonal, but for a
            bias).
        cotangents: [o, o].
    """

    inputs: Array | None
    cotangents: Array


@partial(jax.tree_util.register_dataclass, data_fields=["left", "right"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class LowRank:
    """A matrix ``sum_r left_r right_r^T``, with left [r, i'] and right [r, o]."""

    left: Array
    right: Array


def width(layer: Layer) -> int:
    """i': inputs, and one for the bias."""
    return layer.num_inputs + (layer.bias is not None)


def augmented(tap: Tap, is_row: Array) -> Array:
    """[b, T, i'] float32 inputs with a one appended for the bias; zero for padding."""
    a = tap_inputs(tap).astype(jnp.float32)
    if tap.layer.bias is None:
        return a
    one = jnp.broadcast_to(is_row[:, None, None].astype(jnp.float32), (*a.shape[:2], 1))
    return jnp.concatenate([a, one], axis=2)


def gram(x: Array) -> Array:
    """[d, d] of the last axis of x, summed over the others."""
    flat = x.reshape(-1, x.shape[-1])
    out: Array = jnp.matmul(flat.T, flat, precision=HIGHEST)
    return out


def augmented_gram(tap: Tap, is_row: Array) -> Array:
    """[i', i'] of ``augmented`` inputs, whose odd width would slow the product down."""
    a = tap_inputs(tap).astype(jnp.float32)
    if tap.layer.bias is None:
        return gram(a)
    sums = jnp.sum(a, axis=(0, 1))
    count = jnp.sum(is_row, dtype=jnp.float32) * tap.layer.num_positions
    top = jnp.concatenate([gram(a), sums[:, None]], axis=1)
    return jnp.concatenate([top, jnp.append(sums, count)[None]])


def rotated(tap: Tap, is_row: Array, basis: LayerBasis) -> tuple[Array, Array]:
    """``A Q_a`` [b, T, i'] and ``D Q_d`` [b, T, o], as far as rotating before the product pays.

    A product ``A^T D`` is rotated from the left for T i'^2 flop before and i'^2 o after it, so
    before it if T <= o; from the right before it if T <= i'. ``_products`` does what is left.
    """
    layer, q = tap.layer, basis.inputs
    d = tap.cotangents.astype(jnp.float32)
    if q is None or layer.num_positions > layer.num_outputs:
        a = augmented(tap, is_row)
    else:  # the one appended adds a row of Q; appended it would make the product's width odd
        a = tap_inputs(tap).astype(jnp.float32)
        a = jnp.matmul(a, q[: layer.num_inputs], precision=HIGHEST)
        if layer.bias is not None:
            a += is_row[:, None, None] * q[-1]
    if layer.num_positions <= width(layer):
        d = jnp.matmul(d, basis.cotangents, precision=HIGHEST)
    return a, d


def rotated_rows(tap: Tap, is_row: Array, basis: LayerBasis) -> tuple[Array, Array]:
    """``A Q_a`` [b, i'] and ``D Q_d`` [b, o] of a layer with T = 1."""
    a, d = rotated(tap, is_row, basis)
    return a[:, 0], d[:, 0]


def _products(layer: Layer, a: Array, d: Array, basis: LayerBasis) -> Array:
    """[r, i', o] gradients of some rows in the eigenbasis."""
    if len(a) == 1:  # a plain product: XLA's batched one is slower on a CPU
        g = jnp.matmul(a[0].T, d[0], precision=HIGHEST)[None]
    else:
        g = jnp.einsum("rti,rto->rio", a, d, precision=HIGHEST)
    if basis.inputs is not None and layer.num_positions > layer.num_outputs:
        g = jnp.einsum("ki,rko->rio", basis.inputs, g, precision=HIGHEST)
    if layer.num_positions > width(layer):
        g = jnp.matmul(g, basis.cotangents, precision=HIGHEST)
    return g


def over_gradients(
    tap: Tap,
    is_row: Array,
    basis: LayerBasis,
    step: Callable[[Any, Array], tuple[Any, Any]],
    carry: Any,
    *,
    group: int | None = None,
) -> tuple[Any, Any]:
    """Scans ``step(carry, gradients [r, i', o])`` over groups of rows; outputs [b, ...].

    The taps of a dense layer are rotated all at once; patches are formed, rotated and forgotten
    group by group. A CPU takes one row at a time, whose product stays in the cache.
    """
    layer, num_rows = tap.layer, len(is_row)
    size = width(layer) * (layer.num_outputs + layer.num_positions * (layer.conv is not None))
    on_cpu = jax.default_backend() == "cpu"
    group = group or (1 if on_cpu else max(_HELD // max(size, 1), 1))
    group = min(group, num_rows)
    whole = layer.conv is None
    operands: Any = rotated(tap, is_row, basis) if whole else (tap, is_row)

    def one(carry: Any, operands: Any) -> tuple[Any, Any]:
        a, d = operands if whole else rotated(operands[0], operands[1], basis)
        return step(carry, _products(layer, a, d, basis))

    missing = -num_rows % group
    num_groups = (num_rows + missing) // group

    def grouped(x: Array) -> Array:
        x = jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(num_groups, group, *x.shape[1:])

    carry, out = jax.lax.scan(one, carry, jax.tree.map(grouped, operands))
    return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], out)


def squared_sum(tap: Tap, is_row: Array, basis: LayerBasis) -> Array:
    """``sum_b (Q_a^T A_b^T D_b Q_d)^2`` [i', o]."""
    if tap.layer.num_positions == 1:
        a, d = rotated_rows(tap, is_row, basis)
        out: Array = jnp.matmul((a * a).T, d * d, precision=HIGHEST)
        return out

    def step(total: Array, g: Array) -> tuple[Array, tuple[()]]:
        return total + jnp.sum(g * g, axis=0), ()

    zero = jnp.zeros((width(tap.layer), tap.layer.num_outputs), jnp.float32)
    total: Array = over_gradients(tap, is_row, basis, step, zero)[0]
    return total


def weighted_squares(tap: Tap, is_row: Array, basis: LayerBasis, weights: Array | LowRank) -> Array:
    """``sum_ij W_ij (Q_a^T A_b^T D_b Q_d)_ij^2`` [b]."""
    if tap.layer.num_positions == 1:
        a, d = rotated_rows(tap, is_row, basis)
        if isinstance(weights, LowRank):
            left = jnp.matmul(a * a, weights.left.T, precision=HIGHEST)
            right = jnp.matmul(d * d, weights.right.T, precision=HIGHEST)
            return jnp.sum(left * right, axis=1)
        # over the outputs: their number is even where that of the inputs with a bias is odd
        return jnp.sum(jnp.matmul(d * d, weights.T, precision=HIGHEST) * (a * a), axis=1)

    full = _full(weights)

    def step(_: tuple[()], g: Array) -> tuple[tuple[()], Array]:
        return (), jnp.sum(g * g * full, axis=(1, 2))

    scores: Array = over_gradients(tap, is_row, basis, step, ())[1]
    return scores


def query_side(tap: Tap, is_row: Array, basis: LayerBasis, weights: Array | LowRank) -> Any:
    """What of the queries is kept: rotated taps for T = 1, else ``W o gradient`` [q, i' o]."""
    if tap.layer.num_positions == 1:
        return rotated_rows(tap, is_row, basis)

    full = _full(weights)

    def step(_: tuple[()], g: Array) -> tuple[tuple[()], Array]:
        return (), (g * full).reshape(len(g), -1)

    return over_gradients(tap, is_row, basis, step, ())[1]


def layer_scores(
    tap: Tap, is_row: Array, basis: LayerBasis, weights: Array | LowRank, queries: Any
) -> Array:
    """``sum_ij W_ij G_q,ij G_b,ij`` [b, q] with what ``query_side`` kept."""
    if tap.layer.num_positions > 1:
        # a product with too few rows at a time is bound by reading the queries
        rows = max(_HELD // max(queries.shape[1], 1), 1)
        rows = min(rows, 64) if jax.default_backend() == "cpu" else rows

        def step(_: tuple[()], g: Array) -> tuple[tuple[()], Array]:
            return (), jnp.matmul(g.reshape(len(g), -1), queries.T, precision=HIGHEST)

        scores: Array = over_gradients(tap, is_row, basis, step, (), group=rows)[1]
        return scores
    a, d = rotated_rows(tap, is_row, basis)
    if not isinstance(weights, LowRank):
        columns: Array = jax.lax.map(lambda query: _bilinear(a, d, weights, *query), queries)
        return columns.T

    def term(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        left = jnp.matmul(a * pair[0], queries[0].T, precision=HIGHEST)
        return total + left * jnp.matmul(d * pair[1], queries[1].T, precision=HIGHEST), None

    total: Array = jnp.zeros((len(a), len(queries[0])), jnp.float32)
    total, _ = jax.lax.scan(term, total, (weights.left, weights.right))
    return total


def _full(weights: Array | LowRank) -> Array:
    if isinstance(weights, LowRank):
        return jnp.matmul(weights.left.T, weights.right, precision=HIGHEST)
    return weights


def _bilinear(a: Array, d: Array, weights: Array, query_a: Array, query_d: Array) -> Array:
    """[b] for one query: ``a_b^T (W o query_a query_d^T) d_b``."""
    matrix = query_a[:, None] * weights * query_d
    return jnp.sum(jnp.matmul(a, matrix, precision=HIGHEST) * d, axis=1)
