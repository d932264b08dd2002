"""Whether rows under a wrong label differ from rows of the classes they are taken for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.detect._detector import even_subset
from jaxpoison.detect.label_views import Opinion
from jaxpoison.layout import ClassRows
from jaxpoison.linalg import in_span, one_thread

_LEAST_ROWS = 5
_MOST_ROWS = 300  # of a group
_REFERENCES = 2  # for each of them, of the class it is taken for
_NUM_FOLDS = 5
_RIDGE = 0.01  # of the mean variance


class Settled:
    """The rows of every class whose labels nothing doubts: what others are held against."""

    def __init__(self, opinion: Opinion, labels: HostArray, known: HostArray) -> None:
        """Finds them in the sample that label evidence saw.

        Args:
            opinion: From ``LabelViews``.
            labels: [n] dense.
            known: [n] bool, rows that are none.
        """
        space, c = opinion.space, int(labels.max()) + 1
        settled = ~opinion.doubted[space.rows] & ~known[space.rows]
        self._rows, self._taken_for = space.rows, opinion.taken_for[space.rows]
        self._of_class = ClassRows(np.where(settled, labels[space.rows], c), c + 1)
        self._phi = space.phi
        self._centres: dict[int, HostArray] = {}

    def peers(self, rows: HostArray) -> tuple[HostArray, HostArray]:
        """Rows that are in the sample, and as many of the classes they are taken for.

        Args:
            rows: Row numbers, of one label.

        Returns:
            Row numbers, ascending, of both.
        """
        some, others = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for _, mine, theirs in self._pairs(rows, max(len(rows), 1)):
            some.append(mine)
            others.append(even_subset(theirs, len(mine)))
        in_sample = np.concatenate(some), np.concatenate(others)
        return np.sort(self._rows[in_sample[0]]), np.sort(self._rows[in_sample[1]])

    def distinctness(self, rows: HostArray) -> float:
        """How well rows are told from settled rows of the classes they are taken for.

        A label that was only changed leaves a plain row of another class; a trigger leaves its
        traces. In the features of label evidence, each row less the mean of the class it is taken
        for, and as often rows of these classes less their means, are told apart by
        ``u = ((V(a) + V(b)) / 2 + ridge)^-1 (mean(a) - mean(b))`` (Fisher, 1936), every fifth by
        the others.

        Args:
            rows: Row numbers, of one label.

        Returns:
            Area under the receiver operating characteristic: about 0.5 for rows that are what they
            are taken for, 1 for rows that all show something else; NaN where there are too few.

        **Cost**: 5 m^3 + 2 m^2 p FLOP in float64 at m = 900 rows at the most, and once n p.

        **Assumes / fails on**: most rows are taken for the class they came from. Rows that were
        chosen for being odd, or of one part of a class, are distinct without any trigger.
        """
        group, others = [], []
        for c, mine, theirs in self._pairs(rows, _MOST_ROWS):
            if c not in self._centres:
                self._centres[c] = self._phi[theirs].mean(axis=0, dtype=np.float64)
            group.append(self._phi[mine] - self._centres[c])
            some = even_subset(theirs, _REFERENCES * len(mine))
            others.append(self._phi[some] - self._centres[c])
        if sum(map(len, group)) < _LEAST_ROWS:
            return float("nan")
        return _told_apart(np.concatenate(group), np.concatenate(others))

    def _pairs(self, rows: HostArray, most: int) -> Iterator[tuple[int, HostArray, HostArray]]:
        """Class by class: places in the sample of rows taken for it, and of its settled rows."""
        mine = np.flatnonzero(np.isin(self._rows, rows, assume_unique=True))
        mine = even_subset(mine, most)
        for c in np.unique(self._taken_for[mine]).tolist():
            theirs = self._of_class[c]
            if len(theirs) >= _LEAST_ROWS:
                yield c, mine[self._taken_for[mine] == c], theirs


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
