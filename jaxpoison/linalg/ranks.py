"""Ranks of many rows of distances on the host, and what follows from ranks alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.kernels.shapley import rank_keys

_BLOCK_KEYS = 1 << 21  # sort keys held at a time, 16 MB


def ranked(keys: HostArray, bit: HostArray | None = None) -> tuple[HostArray, HostArray]:
    """The order of each row of keys, ties by position, and one bit of each entry in that order.

    The bits of a float32, flipped so that they order as integers, the position and the bit make
    one 64-bit integer, and those are sorted: a plain vectorised sort, several times as fast as an
    argsort, stable because the position breaks ties, with no gather after it.

    Args:
        keys: [t, n] float32 without NaN, n below 2^31.
        bit: [t, n] bool, or None.

    Returns:
        Positions [t, n] int64 and bits [t, n] bool, smallest key first.

    **Cost**: t sorts of n 64-bit integers.
    """
    t, n = keys.shape
    order, bits = np.empty((t, n), np.int64), np.zeros((t, n), np.bool_)
    low = np.arange(n, dtype=np.int64) << 1
    for i in range(t):  # one row at a time: all that is done to it happens in the cache
        packed = _sorted(keys[i], low if bit is None else low | bit[i])
        order[i], bits[i] = _unpacked(packed)
    return order, bits


def _sorted(keys: HostArray, low: HostArray) -> HostArray:
    """[n] keys above and ``low`` below in one integer, sorted."""
    signed = (keys + np.float32(0)).view(np.int32)  # -0 becomes 0
    # negative floats order backwards: their other 31 bits are flipped
    packed = (signed ^ ((signed >> 31) & np.int32(0x7FFFFFFF))).astype(np.int64)
    packed <<= 32
    packed |= low
    packed.sort()
    return packed


def _unpacked(packed: HostArray) -> tuple[HostArray, HostArray]:
    return (packed & 0xFFFFFFFF) >> 1, (packed & 1).astype(np.bool_)


def knn_shapley(
    features: HostArray,
    labels: HostArray,
    queries: HostArray,
    query_labels: HostArray,
    *,
    num_neighbours: int,
    progress: Callable[[int], Any] | None = None,
) -> HostArray:
    """Exact k-NN Shapley values, distances on the device and sorting on the host.

    Means the same as ``kernels.knn_shapley``; XLA's sort on a CPU is many times slower than
    numpy's.

    Args:
        features: [n, d] of the training rows.
        labels: [n] integers.
        queries: [t, d] of rows whose labels are trusted.
        query_labels: [t] integers.
        num_neighbours: k, at least 1.
        progress: Called with the number of queries done after each block.

    Returns:
        [n] float64, the mean over the queries; zeros without any.

    Raises:
        ValueError: if num_neighbours is below 1 or lengths differ.

    **Cost**: 2 n t d FLOP, t sorts of n integers; about 30 MB and 8 n c bytes beside the
    inputs.
    **Assumes / fails on**: ties count in the order of the rows; rows that are not finite are the
    farthest.

    Reference: Jia et al., 2019, arXiv:1908.08619.
    """
    if num_neighbours < 1:
        raise ValueError(f"num_neighbours must be at least 1, got {num_neighbours}")
    if len(features) != len(labels) or len(queries) != len(query_labels):
        raise ValueError(
            f"rows and labels must match, got {len(features)}, {len(labels)}, {len(queries)} and "
            f"{len(query_labels)}"
        )
    n, t = len(features), len(queries)
    total = np.zeros(n)
    if not n or not t:
        return total
    # s_j = m_j (share_j + drop_j) - sum_(i >= j) m_i drop_i: the recursion summed by parts
    share = 1 / np.maximum(num_neighbours, np.arange(1, n + 1))
    drop = np.concatenate([[0.0], share[:-1] - share[1:]])
    share += drop
    classes, of_query = np.unique(query_labels, return_inverse=True)
    low = (np.arange(n, dtype=np.int64) << 1) | (labels == classes[:, None])
    block = min(max(_BLOCK_KEYS // n, 1), t)
    mask = np.ones(n, np.float32)
    for first in range(0, t, block):
        rows = np.asarray(queries[first : first + block], np.float32)
        count = len(rows)
        rows = np.pad(rows, ((0, block - count), (0, 0)))
        keys = np.asarray(rank_keys(features, mask, rows))
        for i in range(count):
            order, match = _unpacked(_sorted(keys[i], low[of_query[first + i]]))
            hits = np.flatnonzero(match)
            # the sum changes at matches only
            behind = np.cumsum(drop[hits[::-1]])[::-1]
            spans = np.diff(hits, prepend=-1, append=n - 1)
            values = np.repeat(np.append(-behind, 0.0), spans)
            values[hits] += share[hits]
            total[order] += values
        if progress is not None:
            progress(first + count)
    return total / t
