"""Every training set an attacker can reach in a tiny universe, each one fitted for real.

A certificate is a statement about data, so it is held against data: hash, order, statistics and
shapes are all inside what is tried, and a leak in any of them shows as a changed prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from certify_data import NEAREST, RIDGE, PerSubset, ridge_scores
from jaxpoison.certify import General, LabelFlip, certify, votes_of
from jaxpoison.certify.keys import ContentHash, PixelSum, SortedPosition
from jaxpoison.certify.partitions import partition

INPUTS = np.array([[0, 0], [0, 3], [1, 1], [2, 5], [3, 1], [4, 4], [5, 1], [6, 6]], np.uint8)
"""The universe: with three labels, 24 different rows."""
CLASSES = 3
NATURAL = np.array([0, 0, 0, 1, 0, 0, 2, 0])
"""Its honest labels, up to a permutation: one class is common, so that models agree often."""

DEFENCES: dict[str, dict[str, Any]] = {
    "content hash": {"key": ContentHash()},
    "content and label hash": {"key": ContentHash(with_labels=True)},
    "pixel sum": {"key": PixelSum()},
    "finite aggregation": {"key": ContentHash(), "spread": 2},
    "sorted position": {"key": SortedPosition(), "threat": LabelFlip()},
}


@dataclass
class Defence:
    """From a training set (sorted tuple of (input, label) numbers) to what is claimed of it.

    ``rng`` gives every training set an order of its own: a set has none. What a subset's model
    says is kept by the subset's contents, in order.
    """

    k: int
    learner: Any = NEAREST
    key: Any = None
    spread: int = 1
    threat: Any = None
    rule: str = "plurality"

    def __post_init__(self):
        self.key = self.key or ContentHash()
        self.threat = self.threat or General()
        self.rng = np.random.default_rng(0)
        self.fitted = {}
        self.predicted = {}

    def partition(self, x, y):
        return partition(x, y, k=min(self.k, len(x)), spread=self.spread, key=self.key)

    def prepare(self, x, x_test):
        return x, x_test

    def rows_seen(self, rows, partitions):
        return rows

    def padding(self, partitions, subset):
        return 0

    def votes(self, training):
        order = self.rng.permutation(len(training))
        at = np.array(training)[order]
        x, y = INPUTS[at[:, 0]], at[:, 1]
        p = self.partition(x, y)
        x_train, x_test = self.prepare(x, INPUTS)
        labels = np.zeros((p.design.num_subsets, len(INPUTS)), np.int64)
        for subset in range(p.design.num_subsets):
            rows = self.rows_seen(p.subset(subset), p)
            if len(rows):
                zeros = self.padding(p, subset)
                seen = np.pad(x_train[rows], ((0, zeros), (0, 0))), np.pad(y[rows], (0, zeros))
                labels[subset] = self.fit(*seen, x_test)
        return votes_of(
            labels=labels, subsets=np.arange(len(labels)), design=p.design, num_classes=CLASSES
        )

    def fit(self, x, y, x_test):
        name = (x.tobytes(), y.tobytes(), x_test.tobytes())
        if name not in self.fitted:
            scores = self.learner.scores_fn(x, y, x_test, CLASSES)
            self.fitted[name] = np.argmax(np.round(scores, 9), axis=1)
        return self.fitted[name]

    def certificates(self, training):
        return certify(self.votes(training), self.rule, self.threat)

    def prediction(self, training):
        if training not in self.predicted:
            self.predicted[training] = self.certificates(training).prediction
        return self.predicted[training]


def changes(training, kind):
    """Training sets one change away."""
    universe = [(i, c) for i in range(len(INPUTS)) for c in range(CLASSES)]
    if kind == "insert":
        return {tuple(sorted((*training, row))) for row in universe}
    without = {tuple(training[:i] + training[i + 1 :]) for i in range(len(training))}
    if kind == "delete":
        return {t for t in without if t}
    found = set()
    for i, row in enumerate(training):
        rest = training[:i] + training[i + 1 :]
        same = [r for r in universe if r != row and (kind == "modify" or r[0] == row[0])]
        found |= {tuple(sorted((*rest, r))) for r in same}
    return found


def reachable(training, costs, budget):
    """Training sets by the least number of touched cells they are said to cost: all of them."""
    least = {training: 0}
    levels = [[training]] + [[] for _ in range(budget)]
    for spent in range(budget + 1):
        for state in levels[spent]:
            if least[state] < spent:
                continue
            for kind, cost in costs.items():
                if spent + cost > budget:
                    continue
                for new in changes(state, kind):
                    if least.get(new, budget + 1) > spent + cost:
                        least[new] = spent + cost
                        levels[spent + cost].append(new)
    return least


def violations(defence, training, most=2):
    """(row, radius, training set) of predictions that change within their certified radius."""
    made = defence.certificates(training)
    budget = min(most, int(made.radius.max()))
    found = []
    tried = 0
    for other, cost in reachable(training, made.costs, budget).items():
        if len(other) < defence.k:  # partition refuses more partitions than rows
            continue
        tried += 1
        changed = (defence.prediction(other) != made.prediction) & (made.radius >= cost)
        found += [(int(v), int(made.radius[v]), other) for v in np.flatnonzero(changed)]
    return found, tried, int((made.radius >= 1).sum())


def training_sets(count, rows, seed, distinct=False):
    """Mostly honest sets: every input's own label, and now and then another."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        at = rng.permutation(8)[:rows] if distinct else rng.integers(0, 8, rows)
        noise = rng.random(rows) < 0.15
        names = rng.permutation(CLASSES)  # ties go by class number, so every class gets its turn
        labels = np.where(noise, rng.integers(0, CLASSES, rows), names[NATURAL[at]])
        yield tuple(sorted(zip(at.tolist(), labels.tolist(), strict=True)))


# Wrong forms that concern data, each as a small change of a right one.


HEAVY = PerSubset(partial(ridge_scores, damping=100.0), "heavily damped ridge")


class _Cells(ContentHash):
    """Claims what a content hash may claim."""


class IndexModulo(_Cells):
    def cells(self, x, y, num_cells, column=None):
        return np.arange(len(x)) % num_cells


class ContiguousSlices(_Cells):
    def cells(self, x, y, num_cells, column=None):
        return np.arange(len(x)) * num_cells // len(x)


class SortedAsGeneral(_Cells):
    """Position in sorted order, claimed to be safe against insertion."""

    def cells(self, x, y, num_cells, column=None):
        position = np.empty(len(x), np.int64)
        position[np.lexsort(x.T)] = np.arange(len(x))
        return position % num_cells


class LabelHashedUnsaid(ContentHash):
    """Hashes the label and counts a flip as one touched cell."""

    covers = "inputs"

    def cells(self, x, y, num_cells, column=None):
        return ContentHash(self.salt, with_labels=True).cells(x, y, num_cells)


class SizeInHash(_Cells):
    """A hash that knows how many rows there are."""

    def cells(self, x, y, num_cells, column=None):
        return ContentHash(b"%d" % len(x)).cells(x, y, num_cells)


class SaltPerProcess(_Cells):
    """A hash that is another one each time, as Python's of text is."""

    def cells(self, x, y, num_cells, column=None):
        salt = np.random.default_rng().bytes(8)
        return ContentHash(salt).cells(x, y, num_cells)


class Standardised(Defence):
    """Ridge on inputs standardised with the mean and deviation of the whole data set."""

    def prepare(self, x, x_test):
        mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-9
        return (x - mean) / deviation, (x_test - mean) / deviation


class CapacityFromData(Defence):
    """Subsets cut to a capacity that all rows together decide."""

    def rows_seen(self, rows, partitions):
        return rows[: len(partitions.cell) // self.k]


class CapacityFromLargest(Defence):
    """Subsets padded to the largest one, and the padding not masked."""

    def padding(self, partitions, subset):
        return int(partitions.sizes.max() - partitions.sizes[subset])


class ArrivalOrder(Defence):
    """Rows of a subset in the order they came, for a learner that goes by order."""

    def partition(self, x, y):
        p = super().partition(x, y)
        rows = np.concatenate([np.sort(p.subset(i)) for i in range(p.design.num_subsets)])
        return replace(p, rows=rows)


MUTANTS = {
    "row number modulo k": lambda: Defence(5, key=IndexModulo()),
    "contiguous slices": lambda: Defence(5, key=ContiguousSlices()),
    "sorted position against insertion": lambda: Defence(5, key=SortedAsGeneral()),
    "label in the hash, flips counted as one": lambda: Defence(5, key=LabelHashedUnsaid()),
    "size in the hash": lambda: Defence(5, key=SizeInHash()),
    "salt of the process": lambda: Defence(5, key=SaltPerProcess()),
    "standardised over the data set": lambda: Standardised(5, RIDGE),
    "capacity from the number of rows": lambda: CapacityFromData(5),
    "capacity from the largest subset": lambda: CapacityFromLargest(3, HEAVY),
    "rows in order of arrival": lambda: ArrivalOrder(5),
}
