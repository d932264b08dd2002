"""Whether rows under a wrong label differ from rows of the classes they are taken for."""

from __future__ import annotations

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.detect._detector import evenly
from jaxpoison.detect.label_views import Opinion
from jaxpoison.layout import ClassRows
from jaxpoison.linalg import fisher, in_span, one_thread

FEWEST = 8
"""Rows that the question needs."""

_LEAST_SETTLED = 5  # of a class
_MOST_ROWS = 300  # of a group
_REFERENCES = 2  # for each of them, of the class it is taken for
_NUM_FOLDS = 5
_RIDGE = 0.01  # of the mean variance


class Settled:
    """The rows of every class whose labels nothing doubts: what others are held against."""

    def __init__(self, opinion: Opinion, labels: HostArray, known: HostArray) -> None:
        """Finds them.

        Args:
            opinion: From ``LabelViews``.
            labels: [n] dense.
            known: [n] bool, rows that are none.
        """
        c, space = int(labels.max()) + 1, opinion.space
        class_of = np.where(opinion.doubted | known, c, labels)
        self._taken_for, self._of_class = opinion.taken_for, ClassRows(class_of, c + 1)
        self._sample, self._in_sample = space.rows, ClassRows(class_of[space.rows], c + 1)
        self._phi = space.phi
        self._centres: dict[int, HostArray] = {}

    def peers(self, rows: HostArray) -> HostArray:
        """As many rows of the classes that some are taken for, or all where these have fewer.

        Args:
            rows: Row numbers, of one label.

        Returns:
            Row numbers, ascending.
        """
        classes, counts = np.unique(self._taken_for[rows], return_counts=True)
        some = [evenly(self._of_class[c], count) for c, count in zip(classes, counts, strict=True)]
        return np.sort(np.concatenate([*some, np.zeros(0, np.int64)]))

    def distinctness(self, rows: HostArray) -> float:
        """How well rows are told from settled rows of the classes they are taken for.

        A label that was only changed leaves a plain row of another class; a trigger leaves its
        traces. In the features of label evidence, each row less the mean of the class it is taken
        for, and twice as many rows of these classes less their means, are told apart by
        ``u = ((V(a) + V(b)) / 2 + ridge)^-1 (mean(a) - mean(b))`` (Fisher, 1936), every fifth by
        the others.

        Args:
            rows: Row numbers, of one label; those in the sample of label evidence are looked at.

        Returns:
            Area under the receiver operating characteristic: about 0.5 for rows that are what they
            are taken for, 1 for rows that all show something else; NaN for fewer than ``FEWEST``.

        **Cost**: 12 m^3 + 2 m^2 p FLOP in float64 at m = 900 rows at the most, and once n p.

        **Assumes / fails on**: most rows are taken for the class they came from. Rows that were
        chosen for being odd, or of one part of a class, are distinct without any trigger.
        """
        mine = np.flatnonzero(np.isin(self._sample, rows, assume_unique=True))
        mine = evenly(mine, _MOST_ROWS)
        taken_for = self._taken_for[self._sample[mine]]
        group, others = [], []
        for c in np.unique(taken_for).tolist():
            taken, theirs = mine[taken_for == c], self._in_sample[c]
            if len(theirs) < _LEAST_SETTLED:
                continue
            if c not in self._centres:
                self._centres[c] = self._phi[theirs].mean(axis=0, dtype=np.float64)
            group.append(self._phi[taken] - self._centres[c])
            some = evenly(theirs, _REFERENCES * len(taken))
            others.append(self._phi[some] - self._centres[c])
        if sum(map(len, group)) < FEWEST:
            return float("nan")
        return _told_apart(np.concatenate(group), np.concatenate(others))


@one_thread()
def _told_apart(a: HostArray, b: HostArray) -> float:
    """Area under the curve of rows a [r, p] against b [s, p], each judged by the other folds."""
    both = in_span(np.concatenate([a, b]).astype(np.float64))
    num_features = a.shape[1]
    a, b = both[: len(a)], both[len(a) :]
    own, usual = np.empty(len(a)), np.empty(len(b))
    for fold in range(_NUM_FOLDS):
        left_a, left_b = (np.arange(len(rows)) % _NUM_FOLDS == fold for rows in (a, b))
        seen_a, seen_b = a[~left_a], b[~left_b]
        within = (_covariance(seen_a) + _covariance(seen_b)) / 2
        shift = seen_a.mean(axis=0) - seen_b.mean(axis=0)
        along = fisher(within, shift, _RIDGE, num_features)
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
