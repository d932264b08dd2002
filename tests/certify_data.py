"""Learners and reference code that tests of certified prediction share: plain numpy, float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PerSubset:
    """A learner from ``scores_fn(x, y, x_test, num_classes) -> [v, c]``, one call a subset."""

    scores_fn: Any
    name: str = "per subset"

    def digest(self):
        return self.name

    def to_json(self):
        return {"name": self.name}

    def fit_scores(self, partitions, x, y, x_test, *, num_classes):
        for subset in range(partitions.design.num_subsets):
            rows = partitions.subset(subset)
            scores = np.zeros((1, len(x_test), num_classes), np.float32)
            if len(rows):
                scores[0] = self.scores_fn(x[rows], y[rows], x_test, num_classes)
            yield np.array([subset]), scores


def flat(x):
    return np.asarray(x, np.float64).reshape(len(x), -1)


def ridge_scores(x, y, x_test, num_classes, damping=1.0):
    a, b = flat(x), flat(x_test)
    a, b = (np.hstack([v, np.ones((len(v), 1))]) for v in (a, b))
    onehot = np.eye(num_classes)[y]
    return b @ np.linalg.solve(a.T @ a + damping * np.eye(a.shape[1]), a.T @ onehot)


def nearest_scores(x, y, x_test, num_classes):
    """One at the class of the nearest row; equally near rows go by order of contents."""
    distance = ((flat(x_test)[:, None] - flat(x)[None]) ** 2).sum(axis=2)
    return np.eye(num_classes)[y[distance.argmin(axis=1)]]


RIDGE = PerSubset(ridge_scores, "ridge")
NEAREST = PerSubset(nearest_scores, "nearest")


def reference_subsets(x, y, cells, shifts, num_subsets):
    """Subsets as lists of (values last to first, label), by definition and without numpy."""
    subsets = [[] for _ in range(num_subsets)]
    for row, label, cell in zip(flat_list(x), list(map(int, y)), cells, strict=True):
        for shift in shifts:
            subsets[(cell + shift) % num_subsets].append((tuple(reversed(row)), label))
    return [sorted(s) for s in subsets]


def flat_list(x):
    return [list(map(lambda v: v.item(), np.ravel(row))) for row in x]


def contents(partitions):
    """What ``reference_subsets`` gives, from partitions, in the order they hold."""
    x, y = partitions.x, partitions.y
    rows = flat_list(x)
    return [
        [(tuple(reversed(rows[i])), int(y[i])) for i in partitions.subset(s)]
        for s in range(partitions.design.num_subsets)
    ]
