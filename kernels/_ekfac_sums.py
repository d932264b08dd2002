"""Sums over the finite rows of a batch, in chunks."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .taps import TapPlan, Taps


class EKFACSums(NamedTuple):
    """Sums over the rows of a batch; add those of all batches leaf by leaf.

    Attributes:
        layers: One entry a layer. Of ``ekfac_moments``: (sum of ``a a^T`` [i', i'] or None for an
            embedding, sum of ``d d^T`` [o, o]) over rows and positions. Of ``ekfac_eigenvalues``:
            sum of the squared rotated gradients [i', o]. i' counts the bias.
        rest: Sum of the squared gradients of each leaf that no tap reaches, [*leaf]; empty for
            ``ekfac_moments``.
        num_rows: Rows that were summed, float32.
        num_not_finite: Rows left out because a tap was not a finite number, float32.
    """

    layers: tuple[Any, ...]
    rest: tuple[Array, ...]
    num_rows: Array
    num_not_finite: Array


def is_row_of(taps: Taps, mask: Any) -> Array:
    """[b] bool, all of them without a mask."""
    ones = jnp.ones(len(taps.losses), jnp.bool_)
    return ones if mask is None else jnp.asarray(mask) > 0


def summed(
    plan: TapPlan, params: Any, batch: Any, mask: Any, chunk: int | None, of_rows: Any
) -> EKFACSums:
    """Sums of ``of_rows(taps, is_row)`` over all rows whose taps are finite."""
    num_rows = len(jax.tree.leaves(batch)[0])
    mask = jnp.ones(num_rows) if mask is None else jnp.asarray(mask)

    def of_chunk(rows: Any, mask: Array) -> EKFACSums:
        taps = plan(params, rows, mask)
        is_finite = _finite_rows(taps)
        is_row = (mask > 0) & is_finite
        # the arrays of a tap begin with the axis of rows; zero inputs of an embedding are row 0
        # of it, which matters to no sum since their cotangents are zero too
        taps = jax.tree.map(
            lambda x: jnp.where(is_row.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype)),
            taps,
        )
        layers, rest = of_rows(taps, is_row)
        lost = jnp.sum((mask > 0) & ~is_finite, dtype=jnp.float32)
        return EKFACSums(layers, rest, jnp.sum(is_row, dtype=jnp.float32), lost)

    if chunk is None or chunk >= num_rows:
        return of_chunk(batch, mask)
    num_chunks = -(-num_rows // chunk)
    index = jnp.arange(num_chunks * chunk)
    mask = jnp.where(index < num_rows, mask[index % num_rows], 0).reshape(num_chunks, chunk)
    # the last chunk is filled with rows again: real content is sure to be computable
    index = (index % num_rows).reshape(num_chunks, chunk)

    def add(total: Any, part: tuple[Array, Array]) -> tuple[Any, None]:
        rows = jax.tree.map(lambda x: jnp.asarray(x)[part[0]], batch)
        return jax.tree.map(jnp.add, total, of_chunk(rows, part[1])), None

    first = jax.tree.map(lambda x: jnp.asarray(x)[index[0]], batch)
    shapes = jax.eval_shape(of_chunk, first, mask[0])
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total: EKFACSums = jax.lax.scan(add, zero, (index, mask))[0]
    return total


def _finite_rows(taps: Taps) -> Array:
    """[b] whether all inputs, output gradients and remaining gradients of a row are finite."""
    finite = jnp.isfinite(taps.losses)
    for x in jax.tree.leaves((taps.layers, taps.rest)):
        if jnp.issubdtype(x.dtype, jnp.floating):
            finite &= jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    return finite
