"""Exact nearest neighbours by blocks of rows, without a long sort."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ._masked import HIGHEST, clean_rows, masked_mean

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float, Int

_Pair: TypeAlias = tuple[Array, Array]
_REFERENCE_ROWS = 1 << 16  # distances to so many rows are held at a time for each query


class Neighbours(NamedTuple):
    """The nearest reference rows of each query, nearest first.

    Attributes:
        distance2: [q, k] squared Euclidean distance; infinite where there are fewer than k.
        position: [q, k] int32 in the reference; -1 where there are fewer than k.
    """

    distance2: Array
    position: Array


class _Bank(NamedTuple):
    """Reference rows ready to be searched; padded to whole strips."""

    x: Array  # [m, d] centred, zeros for padding
    squares: Array  # [m] squared norms, infinite for padding
    ids: Array  # [m]


@partial(jax.jit, static_argnames=("num_neighbours", "block"))
def nearest_neighbours(
    queries: Float[Array, "q d"],
    query_ids: Int[Array, " q"],
    reference: Float[Array, "m d"],
    mask: Float[Array, " m"],
    reference_ids: Int[Array, " m"],
    *,
    num_neighbours: int,
    block: int = 128,
) -> Neighbours:
    """The k reference rows of least ``|q - r|^2`` of each query, other than the query itself.

    Distances come from one matrix product of centred rows. To select from m of them, they are cut
    into strips: the k nearest rows lie in the k strips of smallest minimum, for these minima are
    themselves k rows, none farther than any row of another strip. So a long sort becomes two
    short ones. The distances of the chosen rows are then computed again from the differences.

    Args:
        queries: [q, d].
        query_ids: [q] number of each query; a reference row of the same number is left out.
        reference: [m, d].
        mask: [m] positive for a row, 0 for padding.
        reference_ids: [m] number of each reference row.
        num_neighbours: k.
        block: queries whose distances are held at a time; changes only the speed.

    Returns:
        Squared distances and positions, [q, k] each.

    Raises:
        ValueError: if a shape is wrong or a knob is below 1.

    **Cost**: 2 q m d flop; block * min(m, 65536) floats of memory beside the rows.
    **Assumes / fails on**: rows whose squared distances differ by less than about 1e-6 of the
    largest squared norm about the mean may be taken for each other. Among equals the first wins.
    """
    _check(queries, query_ids, reference, mask, reference_ids, num_neighbours, block)
    bank = _prepared(reference, mask, reference_ids, num_neighbours, _REFERENCE_ROWS)
    centre = _centre(reference, mask)

    def of_block(inputs: tuple[Array, Array]) -> Neighbours:
        rows, ids = inputs
        return _search(rows.astype(jnp.float32) - centre, ids, bank, num_neighbours)

    num_queries = len(queries)
    block = min(block, max(num_queries, 1))
    extra = -num_queries % block
    rows = jnp.pad(queries, ((0, extra), (0, 0))).reshape(-1, block, queries.shape[1])
    ids = jnp.pad(query_ids, (0, extra)).reshape(-1, block)
    found = jax.lax.map(of_block, (rows, ids))
    return Neighbours(*(a.reshape(-1, num_neighbours)[:num_queries] for a in found))


@partial(jax.jit, static_argnames=("num_neighbours",))
def tile_nearest_neighbours(
    x: Float[Array, "tiles t d"],
    label: Int[Array, " tiles"],
    ids: Int[Array, "tiles t"],
    reference: Float[Array, "c m d"],
    mask: Float[Array, "c m"],
    reference_ids: Int[Array, "c m"],
    *,
    num_neighbours: int,
) -> Neighbours:
    """The nearest rows of each row among the reference rows of its own class.

    As ``nearest_neighbours``, one search a tile.

    Args:
        x: Class-pure tiles.
        label: Class of each tile.
        ids: Number of each row; a reference row of the same number is left out.
        reference: [c, m, d] reference rows of each class.
        mask: [c, m] positive for a row, 0 for padding.
        reference_ids: [c, m] number of each reference row.
        num_neighbours: k.

    Returns:
        Squared distances and positions in the class's reference, [tiles, t, k] each; padding rows
        hold rubbish.

    **Cost**: 2 n m d flop; t * m floats beside the rows.
    """
    _check(x[0], ids[0], reference[0], mask[0], reference_ids[0], num_neighbours, x.shape[1])
    centre = jax.vmap(_centre)(reference, mask)
    banks = jax.vmap(lambda r, w, i: _prepared(r, w, i, num_neighbours, None))(
        reference, mask, reference_ids
    )

    def of_tile(inputs: tuple[Array, Array, Array]) -> Neighbours:
        rows, which, row_ids = inputs
        bank = jax.tree.map(lambda a: a[which], banks)
        return _search(rows.astype(jnp.float32) - centre[which], row_ids, bank, num_neighbours)

    found: Neighbours = jax.lax.map(of_tile, (x, label, ids))
    return found


def _check(
    queries: Array,
    query_ids: Array,
    reference: Array,
    mask: Array,
    reference_ids: Array,
    num_neighbours: int,
    block: int,
) -> None:
    if num_neighbours < 1 or block < 1:
        raise ValueError(
            f"num_neighbours and block must be at least 1, got {num_neighbours} and {block}"
        )
    if queries.ndim != 2 or reference.ndim != 2 or queries.shape[1] != reference.shape[1]:
        raise ValueError(
            f"queries must be [q, d] and reference [m, d], got {queries.shape} and "
            f"{reference.shape}"
        )
    if query_ids.shape != queries.shape[:1] or reference_ids.shape != reference.shape[:1]:
        raise ValueError(
            f"query_ids must be [q] and reference_ids [m], got {query_ids.shape} and "
            f"{reference_ids.shape} for {queries.shape} and {reference.shape}"
        )
    if mask.shape != reference.shape[:1]:
        raise ValueError(f"mask must be [m], got {mask.shape} for {reference.shape}")


def _centre(reference: Array, mask: Array) -> Array:
    return masked_mean(*clean_rows(reference, mask))


def _prepared(
    reference: Array, mask: Array, ids: Array, num_neighbours: int, part: int | None
) -> _Bank:
    """Rows centred and padded to whole strips; with ``part``, cut into parts of so many rows."""
    x, weight = clean_rows(reference, mask)
    x = (x - masked_mean(x, weight)) * weight[:, None]
    squares = jnp.where(weight > 0, jnp.sum(x * x, axis=1), jnp.inf)
    rows = len(x) if part is None else min(part, len(x))
    step = 2 * _width(rows, num_neighbours)  # twice: the padded rows may ask for wider strips
    rows = max(-(-rows // step) * step, num_neighbours)
    parts = max(-(-len(x) // rows), 1)
    extra = parts * rows - len(x)
    bank = _Bank(
        jnp.pad(x, ((0, extra), (0, 0))),
        jnp.pad(squares, (0, extra), constant_values=jnp.inf),
        jnp.pad(ids, (0, extra), constant_values=-1),
    )
    return _Bank(*(a.reshape(parts, rows, *a.shape[1:]) for a in bank))


def _width(rows: int, num_neighbours: int) -> int:
    """Rows of a strip: about as many strips to look through as rows in the strips chosen."""
    if rows < 4 * num_neighbours:
        return 1
    return 1 << round(float(np.log2(rows / num_neighbours)) / 2)


def _search(queries: Array, query_ids: Array, bank: _Bank, k: int) -> Neighbours:
    """Part by part, the k nearest so far merged with those of the next part."""
    parts, rows = bank.squares.shape

    def merge(best: tuple[Array, Array], inputs: tuple[_Bank, Array]) -> tuple[_Pair, None]:
        part, first = inputs
        value, index = _of_part(queries, query_ids, part, k)
        value = jnp.concatenate([best[0], value], axis=1)
        index = jnp.concatenate([best[1], index + first], axis=1)
        value, place = _smallest(value, k)
        return (value, jnp.take_along_axis(index, place, axis=1)), None

    if parts == 1:
        value, index = _of_part(queries, query_ids, jax.tree.map(lambda a: a[0], bank), k)
    else:
        none = (jnp.full((len(queries), k), jnp.inf), jnp.zeros((len(queries), k), jnp.int32))
        first = jnp.arange(parts, dtype=jnp.int32) * rows
        (value, index), _ = jax.lax.scan(merge, none, (bank, first))
    # |q|^2 + |r|^2 - 2 q.r has the rounding of the norms; the difference has that of the distance
    chosen = bank.x.reshape(parts * rows, -1)[index]
    exact = jnp.sum((chosen - queries[:, None, :]) ** 2, axis=2)
    exact = jnp.where(jnp.isfinite(value), exact, jnp.inf)
    exact, place = _smallest(exact, k)
    index = jnp.take_along_axis(index, place, axis=1)
    return Neighbours(exact, jnp.where(jnp.isfinite(exact), index, -1).astype(jnp.int32))


def _of_part(queries: Array, query_ids: Array, part: _Bank, k: int) -> _Pair:
    """The k smallest of ``|r|^2 - 2 q.r`` and their positions, [b, k] each."""
    product = jnp.matmul(queries, part.x.T, precision=HIGHEST)
    distance = part.squares - 2 * product
    distance = jnp.where(query_ids[:, None] == part.ids, jnp.inf, distance)
    rows = distance.shape[1]
    width = _width(rows, k)
    if width == 1:
        return _smallest(distance, k)
    # a strip is every (rows / width)-th row: neighbours in the input seldom share one, and the
    # minima are taken over whole vectors
    strips = distance.reshape(len(queries), width, rows // width)
    _, chosen = _smallest(strips.min(axis=1), k)
    left = jnp.take_along_axis(strips, chosen[:, None, :], axis=2).reshape(len(queries), width * k)
    value, place = _smallest(left, k)
    strip = jnp.take_along_axis(chosen, place % k, axis=1)
    return value, place // k * (rows // width) + strip


def _smallest(values: Array, k: int) -> _Pair:
    top, place = jax.lax.top_k(-values, k)
    return -top, place
