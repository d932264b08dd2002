"""What the cells of a partition can move: sums over the subsets of a cell, and greedy covers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxpoison.certify._types import Design, Ints


def cell_sums(hits: np.ndarray[Any, np.dtype[Any]], design: Design, weight: int = 3) -> Ints:
    """Circular correlation of the subsets with the spread set.

    ``sums[h] = sum_s hits[(h + s) % cells]``: how many subsets of cell h are hit.

    Args:
        hits: [cells, p] booleans, subsets in the order of their ids.
        design: The shifts s.
        weight: Largest multiple of a sum that the caller will form; it decides the type.

    Returns:
        [cells, p] of the smallest unsigned type that holds ``weight * spread``.
    """
    cells = len(hits)
    ones = hits.view(np.uint8)
    dtype = np.min_scalar_type(weight * design.spread)
    sums: Ints = np.zeros(hits.shape, dtype)
    for shift in design.shifts:
        at = shift % cells
        sums[: cells - at] += ones[at:]
        sums[cells - at :] += ones[:at]
    return sums


def histogram(weights: Ints, width: int) -> Ints:
    """How often each weight occurs in each column.

    Args:
        weights: [cells, p] below ``width``.
        width: Bins.

    Returns:
        [p, width] int64.
    """
    columns = weights.shape[1]
    keys = weights.astype(np.intp)
    keys += np.arange(columns, dtype=np.intp) * width
    return np.bincount(keys.ravel(), minlength=columns * width).reshape(columns, width)


def least_cells(counts: Ints, target: Ints, lift: int = 0, scale: int = 1) -> Ints:
    """Fewest cells whose weights add up to a target: the heaviest first.

    Args:
        counts: [..., bins] cells of each weight; bin j weighs ``lift + scale * j``.
        target: [...] to reach.
        lift: Weight of bin 0.
        scale: Weight between bins.

    Returns:
        [...] int64; 0 where the target is not positive, one more than there are cells where all
        of them do not reach it.

    **Cost**: one vector step a bin.
    """
    left = np.maximum(target, 0)
    taken = np.zeros(left.shape, np.int64)
    for j in reversed(range(counts.shape[-1])):
        weight = lift + scale * j
        if weight == 0:
            break
        here = np.minimum(counts[..., j], -(-left // weight))
        taken += here
        left = np.maximum(left - here * weight, 0)
    cells = counts.sum(axis=-1)
    result: Ints = np.where(left > 0, cells + 1, taken)
    return result
