"""From the scores of a member to its order of the classes, with one rule for ties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpoison._check import DataError

if TYPE_CHECKING:
    from jaxpoison.certify._types import Floats, Ints

_BLOCK = 1 << 18  # votes at a time
_PAIRWISE = 32  # classes up to which comparing all pairs beats sorting


def rank_classes(scores: Any) -> Ints:
    """Position of every class in the order of the scores; the lower class wins a tie.

    a before b iff ``(score_a, -a) > (score_b, -b)``: total and antisymmetric, so no pair of
    classes is ever preferred both ways or neither way.

    Args:
        scores: [..., c] higher is better.

    Returns:
        [..., c] uint8 (uint16 above 256 classes), 0 the best.

    Raises:
        DataError: A score is not a number.

    **Cost**: c (c - 1) / 2 comparisons a row up to 32 classes, a stable sort above.
    """
    values = np.asarray(scores)
    num_classes = values.shape[-1]
    flat = values.reshape(-1, num_classes)
    out = np.empty(flat.shape, np.min_scalar_type(num_classes - 1))
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK]
        if block.dtype.kind == "f" and np.isnan(block).any():
            raise DataError(
                "scores hold a value that is not a number: no order of the classes follows from"
                " it; look for a diverged member"
            )
        rank = _ranks_by_pairs if num_classes <= _PAIRWISE else _ranks_by_sorting
        out[start : start + _BLOCK] = rank(block, out.dtype)
    return out.reshape(values.shape)


def margins_of(scores: Any) -> Floats:
    """Best score minus second best, rounded down.

    Args:
        scores: [..., c] higher is better, c at least 2.

    Returns:
        [...] float32, never above the difference of the scores as given.
    """
    values = np.asarray(scores)
    flat = values.reshape(-1, values.shape[-1])
    out = np.empty(len(flat), np.float32)
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK].astype(np.float64)
        last = np.partition(block, -2, axis=1)[:, -2:]
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf: no margin can be claimed
            exact = last[:, 1] - last[:, 0]
            near = exact.astype(np.float32)
        down = near > exact
        near[down] = np.nextafter(near[down], np.float32(-np.inf))
        out[start : start + _BLOCK] = near
    return out.reshape(values.shape[:-1])


def _ranks_by_pairs(block: Any, dtype: Any) -> Ints:
    columns = np.ascontiguousarray(block.T)
    ranks = np.zeros(columns.shape, dtype)
    for b in range(1, len(columns)):
        for a in range(b):
            before = columns[a] >= columns[b]
            ranks[b] += before
            ranks[a] += ~before
    return ranks.T


def _ranks_by_sorting(block: Any, dtype: Any) -> Ints:
    last = block.shape[1] - 1
    # A stable ascending sort of the mirrored columns, read backwards: descending, ties to the left.
    order = last - np.argsort(block[:, ::-1], axis=1, kind="stable")[:, ::-1]
    ranks = np.empty(block.shape, dtype)
    np.put_along_axis(ranks, order, np.arange(last + 1, dtype=dtype)[None], axis=1)
    return ranks
