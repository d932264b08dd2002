"""Whether rows are copies of each other."""

from __future__ import annotations

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.detect._detector import evenly
from jaxpoison.linalg import one_thread

FEWEST = 5
"""Rows, and others, that the question needs."""

_ASKED = 300  # rows of either whose nearest one is looked for


@one_thread()
def closeness(x: HostArray, others: HostArray) -> float:
    """Median distance of a row to the nearest of the group, of the same among other rows.

    Of either side at most 300 rows are asked, against all of it: of a part of the copies few would
    find another one.

    Args:
        x: [r, d] rows of the group.
        others: [r, d] as many honest ones of the same classes: of fewer each lies farther from the
            next.

    Returns:
        About 1 for a group as various as the others, near 0 for copies; NaN with fewer than
        ``FEWEST`` rows, or where half of the others are equal themselves.

    **Cost**: 1,200 r d FLOP in float64, copies of both.

    **Assumes / fails on**: every row that was copied is there more than once. Rows of one dense
    part of a class are close as well, though not as copies are.
    """
    if min(len(x), len(others)) < FEWEST:
        return float("nan")
    usual = _nearest(others)
    return _nearest(x) / usual if usual > 0 else float("nan")


def _nearest(rows: HostArray) -> float:
    rows = rows.astype(np.float64)
    rows -= rows.mean(axis=0)  # distances keep their digits
    squares = (rows**2).sum(axis=1)
    asked = evenly(np.arange(len(rows)), _ASKED)
    apart = squares[asked][:, None] + squares - 2.0 * rows[asked] @ rows.T
    apart[np.arange(len(asked)), asked] = np.inf
    return float(np.median(np.sqrt(np.maximum(apart.min(axis=1), 0.0))))
