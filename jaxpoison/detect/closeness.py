"""Whether rows are copies of each other."""

from __future__ import annotations

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.linalg import one_thread

FEWEST = 5
"""Rows, and others, that the question needs."""


@one_thread()
def closeness(x: HostArray, others: HostArray) -> float:
    """Median distance of a row to the nearest of the group, of the same among other rows.

    Args:
        x: [r, d] rows of the group.
        others: [s, d] as many honest ones of the same classes: with more of them they would lie
            closer.

    Returns:
        About 1 for a group as various as the others, near 0 for copies; NaN with fewer than
        ``FEWEST`` rows of either, or where half of the others are equal themselves.

    **Cost**: 2 (r^2 + s^2) d FLOP in float64.

    **Assumes / fails on**: every row that was copied is there more than once. Rows of one dense
    part of a class are close as well, though not as copies are.
    """
    if min(len(x), len(others)) < FEWEST:
        return float("nan")
    usual = _nearest(others)
    return _nearest(x) / usual if usual > 0 else float("nan")


def _nearest(rows: HostArray) -> float:
    rows = rows.astype(np.float64)
    rows = rows - rows.mean(axis=0)  # distances keep their digits
    squares = (rows**2).sum(axis=1)
    apart = np.maximum(squares[:, None] + squares - 2.0 * rows @ rows.T, 0.0)
    np.fill_diagonal(apart, np.inf)
    return float(np.median(np.sqrt(apart.min(axis=1))))
