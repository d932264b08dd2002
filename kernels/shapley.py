"""Shapley values of training rows for the accuracy of a k-nearest-neighbour classifier."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from ._masked import HIGHEST

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float, Int


@partial(jax.jit, static_argnames=("num_neighbours", "block"))
def knn_shapley(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    mask: Float[Array, " n"],
    queries: Float[Array, "t d"],
    query_labels: Int[Array, " t"],
    query_mask: Float[Array, " t"],
    *,
    num_neighbours: int,
    block: int = 64,
) -> Float[Array, " n"]:
    """Exact Shapley value of each row for the k-NN accuracy on the queries.

    The utility of a set S of rows is ``v(S) = mean_q sum_{j <= min(k, |S|)} [y_(j) = y_q] / k``
    over the nearest of S, ``v({}) = 0``. The values add up to v of all rows (efficiency). Sign as
    for every score: **positive, helpful; it is the accuracy that is lost on average when the row
    is taken out of a set.** All on the device, for accelerators; on a CPU sorting on the host is
    many times faster (``jaxpoison.linalg.knn_shapley``).

    Args:
        features: [n, d] of the training rows.
        labels: [n].
        mask: [n] 1 for a row, 0 for padding, which gets value 0.
        queries: [t, d] of rows whose labels are trusted.
        query_labels: [t].
        query_mask: [t] 1 for a row, 0 for padding.
        num_neighbours: k.
        block: Queries whose distances are held at a time; changes only the speed.

    Returns:
        [n] float32, each in [-1, 1]; 0 without queries.

    Raises:
        ValueError: if shapes do not fit or num_neighbours or block is below 1.

    **Cost**: 2 n t d FLOP and two sorts of n keys a query; about 5 block n floats held.
    **Assumes / fails on**: rows at equal distance count in the order of their number. Distances
    differ from exact ones by about 1e-6 of the largest squared norm about the mean.

    Reference: Jia et al., 2019, arXiv:1908.08619.
    """
    if num_neighbours < 1 or block < 1:
        raise ValueError(
            f"num_neighbours and block must be at least 1, got {num_neighbours} and {block}"
        )
    if labels.shape != mask.shape or query_labels.shape != query_mask.shape:
        raise ValueError(
            f"labels and mask must match, got {labels.shape}, {mask.shape}, "
            f"{query_labels.shape} and {query_mask.shape}"
        )
    order = jnp.arange(len(features), dtype=jnp.int32)

    def add(total: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        rows, own, weight = inputs
        distance = rank_keys(features, mask, rows)
        match = (own[:, None] == labels) & (mask > 0)
        where = jnp.broadcast_to(order, distance.shape)
        _, index, match = jax.lax.sort((distance, where, match.astype(jnp.int32)), num_keys=2)
        values = knn_shapley_of_ranks(match, num_neighbours=num_neighbours)
        # back in the order of the rows by a second sort: a scatter is slow on accelerators
        _, values = jax.lax.sort((index, values), num_keys=1)
        return total + jnp.matmul(weight, values, precision=HIGHEST), None

    count = len(queries)
    block = min(block, max(count, 1))
    extra = -count % block
    is_query = (query_mask > 0).astype(jnp.float32)
    rows = jnp.where(is_query[:, None] > 0, queries, 0).astype(jnp.float32)
    blocks = (
        jnp.pad(rows, ((0, extra), (0, 0))).reshape(-1, block, queries.shape[1]),
        jnp.pad(query_labels, (0, extra)).reshape(-1, block),
        jnp.pad(is_query, (0, extra)).reshape(-1, block),
    )
    total, _ = jax.lax.scan(add, jnp.zeros(len(features)), blocks)
    return total / jnp.maximum(is_query.sum(), 1.0)


@jax.jit
def rank_keys(
    features: Float[Array, "n d"], mask: Float[Array, " n"], queries: Float[Array, "t d"]
) -> Float[Array, "t n"]:
    """``|x|^2 - 2 q.x`` of centred rows: in each row of the result, ordered as the distances are.

    Args:
        features: [n, d].
        mask: [n]; padding and rows that are not finite are infinitely far.
        queries: [t, d].

    Returns:
        [t, n] float32, no NaN.

    **Cost**: 2 n t d FLOP, precision HIGHEST.
    """
    is_row = (mask > 0) & jnp.isfinite(features).all(axis=1)
    x = jnp.where(is_row[:, None], features, 0).astype(jnp.float32)
    centre = jnp.sum(x, axis=0) / jnp.maximum(is_row.sum(), 1)
    x = jnp.where(is_row[:, None], x - centre, 0.0)
    squares = jnp.where(is_row, jnp.sum(x * x, axis=1), jnp.inf)
    product = jnp.matmul(queries.astype(jnp.float32) - centre, x.T, precision=HIGHEST)
    key = squares - 2 * product
    return jnp.where(jnp.isnan(key), jnp.inf, key)


@partial(jax.jit, static_argnames=("num_neighbours",))
def knn_shapley_of_ranks(match: Int[Array, "t n"], *, num_neighbours: int) -> Float[Array, "t n"]:
    """Shapley values in the order of nearness, from which of the rows have the query's label.

    ``s_n = m_n / max(k, n)`` and ``s_j - s_(j+1) = (m_j - m_(j+1)) / max(k, j)``, so s is one
    reversed cumulative sum. Padding sorted last with m = 0 changes nothing.

    Args:
        match: [t, n] 1 where the j-th nearest row has the label of the query, else 0.
        num_neighbours: k.

    Returns:
        [t, n] float32; a row adds up to the share of matches among the first k (over k).

    **Cost**: a few reads of the array.
    """
    m = match.astype(jnp.float32)
    following = jnp.pad(m[:, 1:], ((0, 0), (0, 1)))
    rank = jnp.arange(1, match.shape[1] + 1)
    steps = (m - following) / jnp.maximum(num_neighbours, rank)
    return jnp.cumsum(steps[:, ::-1], axis=1)[:, ::-1]
