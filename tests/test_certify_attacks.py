"""Real attacks on real rows: what is certified stays, model by model trained anew."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxpoison import attacks, certify
from jaxpoison.certify.features import Pixels
from jaxpoison.certify.learners import Ridge

K, TESTS = 40, 300
SCHEMES = [("plurality", 1), ("run_off", 1), ("plurality", 3), ("run_off", 3)]


@cache
def digits():
    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8), bunch.target.astype(np.int64)
    return x[TESTS:], y[TESTS:], x[:TESTS], y[:TESTS]


def fitted(x, y, spread):
    learner = Ridge(features=Pixels())
    return certify.fit(x, y, k=K, spread=spread, learner=learner, num_classes=10)


@cache
def clean(rule, spread):
    x, y, x_test, _ = digits()
    ensemble = fitted(x, y, spread)
    return ensemble, certify.certify(ensemble.votes(x_test, ranking=True), rule=rule)


def touched(before, after):
    """Cells in which the partition of changed data differs: an upper bound of what was needed."""
    cells = set()
    for one, other in ((before, after), (after, before)):
        theirs = {(row.tobytes(), int(label)) for row, label in zip(other.x, other.y, strict=True)}
        rows = zip(one.x, one.y, one.cell, strict=True)
        cells |= {int(c) for row, label, c in rows if (row.tobytes(), int(label)) not in theirs}
    return len(cells)


def check(rule, spread, x, y):
    """Every row whose radius reaches the touched cells keeps its prediction; some do not reach."""
    ensemble, found = clean(rule, spread)
    x_test = digits()[2]
    attacked = fitted(x, y, spread)
    size = touched(ensemble.partitions, attacked.partitions)
    now = certify.certify(attacked.votes(x_test, ranking=True), rule=rule)
    stands = found.radius >= size
    assert 0 < size and 0 < stands.sum() < len(stands)
    np.testing.assert_array_equal(now.prediction[stands], found.prediction[stands])
    return int((now.prediction != found.prediction).sum())


@pytest.mark.parametrize(("rule", "spread"), SCHEMES)
@pytest.mark.parametrize(("name", "count"), [("flip_pair", 6), ("flip_targeted", 8), ("patch", 5)])
def test_published_attacks_turn_no_certified_row(rule, spread, name, count):
    x, y, _, _ = digits()
    made = attacks.poison(name, x, y, seed=0, rate=count / len(y), target=3)
    assert made.mask.sum() == count
    check(rule, spread, made.x, made.y)


@pytest.mark.parametrize(("rule", "spread"), SCHEMES)
def test_a_whole_cell_turned_at_a_time_turns_no_certified_row(rule, spread):
    """Every row of some cells gets the next class: as strong as few cells allow."""
    x, y, _, _ = digits()
    ensemble, _ = clean(rule, spread)
    cells = np.unique(ensemble.partitions.cell)[:: max(1, spread)][:6]
    labels = np.where(np.isin(ensemble.partitions.cell, cells), (y + 1) % 10, y)
    assert (labels != y).sum() > 3 * len(cells)
    check(rule, spread, x, labels)


@pytest.mark.parametrize(("rule", "spread"), SCHEMES[:2])
def test_beyond_the_radius_the_same_attack_does_turn_rows(rule, spread):
    x, y, x_test, _ = digits()
    ensemble, found = clean(rule, spread)
    cells = np.unique(ensemble.partitions.cell)[: K * 3 // 4]
    labels = np.where(np.isin(ensemble.partitions.cell, cells), (y + 1) % 10, y)
    attacked = fitted(x, labels, spread)
    now = certify.certify(attacked.votes(x_test, ranking=True), rule=rule)
    assert (now.prediction != found.prediction).mean() > 0.5
