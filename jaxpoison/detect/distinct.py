"""Whether rows under a wrong label differ from rows of the classes they are taken for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.detect._detector import even_subset
from jaxpoison.detect.label_views import Opinion
from jaxpoison.linalg import in_span, one_thread

_LEAST_ROWS = 5
_MOST_ROWS = 300  # of a group
_REFERENCES = 2  # for each of them, of the class it is taken for
_NUM_FOLDS = 5
_RIDGE = 0.01  # of the mean variance


def distinctness(
    opinion: Opinion, phi: HostArray, labels: HostArray, rows: HostArray, known: HostArray
) -> float:
    """How well rows are told from settled rows of the classes they are taken for.

    A label that was only changed leaves a plain row of another class; a trigger leaves its traces.
    Each row less the mean of the class it is taken for, and as often rows of these classes less
    their means, are told apart by ``u = ((V(a) + V(b)) / 2 + ridge)^-1 (mean(a) - mean(b))``
    (Fisher, 1936), every fifth by the others.

    Args:
        opinion: From ``LabelViews``.
        phi: [r, p] the features of ``opinion.space``.
        labels: [n] dense.
        rows: Row numbers, of one label.
        known: [n] bool, rows that are no reference.

    Returns:
        Area under the receiver operating characteristic: about 0.5 for rows that are what they are
        taken for, 1 for rows that all show something else; NaN where there are too few.

    **Cost**: 5 m^3 + 2 m^2 p FLOP in float64 at m = 900 rows at the most.

    **Assumes / fails on**: most rows are taken for the class they came from. Rows that were chosen
    for being odd, or of one part of a class, are distinct without any trigger.
    """
    space = opinion.space
    mine = even_subset(np.flatnonzero(np.isin(space.rows, rows, assume_unique=True)), _MOST_ROWS)
    group, others = [], []
    for taken, theirs in _by_class(opinion, labels, mine, known):
        centre = phi[theirs].mean(axis=0, dtype=np.float64)
        group.append(phi[taken] - centre)
        others.append(phi[even_subset(theirs, _REFERENCES * len(taken))] - centre)
    if sum(map(len, group)) < _LEAST_ROWS:
        return float("nan")
    return _told_apart(np.concatenate(group), np.concatenate(others))


def peers(
    opinion: Opinion, labels: HostArray, rows: HostArray, known: HostArray
) -> tuple[HostArray, HostArray]:
    """Rows of the sample that label evidence saw, and as many of the classes they are taken for.

    Args:
        opinion: As for ``distinctness``.
        labels: [n] dense.
        rows: Row numbers, of one label.
        known: [n] bool, rows that are no reference.

    Returns:
        [m] row numbers, and about as many settled ones.
    """
    mine = np.flatnonzero(np.isin(opinion.space.rows, rows, assume_unique=True))
    pairs = [
        (taken, even_subset(theirs, len(taken)))
        for taken, theirs in _by_class(opinion, labels, mine, known)
    ]
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    group, others = (opinion.space.rows[np.concatenate(each)] for each in zip(*pairs, strict=True))
    return np.sort(group), np.sort(others)


def _by_class(
    opinion: Opinion, labels: HostArray, mine: HostArray, known: HostArray
) -> Iterator[tuple[HostArray, HostArray]]:
    """Places in the sample: rows by the class they are taken for, and its settled rows."""
    space = opinion.space
    taken_for, labels = opinion.taken_for[space.rows], labels[space.rows]
    settled = ~opinion.doubted[space.rows] & ~known[space.rows]
    for c in np.unique(taken_for[mine]):
        theirs = np.flatnonzero(settled & (labels == c))
        if len(theirs) >= _LEAST_ROWS:
            yield mine[taken_for[mine] == c], theirs


@one_thread()
def _told_apart(a: HostArray, b: HostArray) -> float:
    """Area under the curve of rows a [r, p] against b [s, p], each judged by the other folds."""
    both = in_span(np.concatenate([a, b]).astype(np.float64))
    share = _RIDGE / a.shape[1]
    a, b = both[: len(a)], both[len(a) :]
    own, usual = np.empty(len(a)), np.empty(len(b))
    for fold in range(_NUM_FOLDS):
        left_a, left_b = (np.arange(len(rows)) % _NUM_FOLDS == fold for rows in (a, b))
        seen_a, seen_b = a[~left_a], b[~left_b]
        within = (_covariance(seen_a) + _covariance(seen_b)) / 2
        ridge = share * float(np.trace(within)) or 1.0  # 1 where all rows are the same
        shift = seen_a.mean(axis=0) - seen_b.mean(axis=0)
        along = np.linalg.solve(within + ridge * np.eye(len(within)), shift)
        # each fold has a scale of its own
        unit = max(float((seen_b @ along).std()), 1e-12)
        own[left_a], usual[left_b] = a[left_a] @ along / unit, b[left_b] @ along / unit
    order = np.sort(usual)
    below = np.searchsorted(order, own, "left") + np.searchsorted(order, own, "right")
    return float(below.mean() / (2 * len(order)))


def _covariance(rows: HostArray) -> HostArray:
    centred = rows - rows.mean(axis=0)
    out: HostArray = centred.T @ centred / len(rows)
    return out
