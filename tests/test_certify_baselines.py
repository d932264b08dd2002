"""Randomised certificates against enumeration of every draw, and their type."""

from __future__ import annotations

import itertools
from math import comb, exp, floor, log

import numpy as np
import pytest

from jaxpoison._check import DataError, UsageError
from jaxpoison.certify import Certificates
from jaxpoison.certify.baselines import (
    ProbabilisticCertificates,
    bagging_radius,
    certify_bagging,
    certify_group_privacy,
    certify_label_smoothing,
    clopper_pearson,
    privacy_radius,
    smoothing_radius,
)


def two_first(p):
    order = np.sort(p)[::-1]
    return order[:1], order[1:2]


def votes_of_bags(rows, draws, learner, classes):
    p = np.zeros(classes)
    for bag in itertools.product(rows, repeat=draws):
        p[learner(bag)] += 1 / len(rows) ** draws
    return p


def sets_within(rows, universe, changes):
    """Every training set reached by inserting, deleting or modifying."""
    found = {tuple(sorted(rows))}
    for _ in range(changes):
        new = set()
        for old in found:
            less = [old[:i] + old[i + 1 :] for i in range(len(old))]
            new.update(less if len(old) > 1 else [])
            new.update(tuple(sorted((*s, u))) for s in [old, *less] for u in universe)
        found |= new
    return found


@pytest.mark.parametrize(("draws", "changes"), [(1, 1), (1, 2), (2, 1), (3, 1)])
def test_bagging_holds_for_every_training_set_in_reach(draws, changes):
    rows, universe = tuple(range(6)), range(7)
    rng = np.random.default_rng(draws)
    checked = 0
    for trial in range(40):
        table = rng.random((8,) * draws)
        odd = rng.random() * 0.2  # of the bags of clean rows that vote for another class

        def learner(bag, table=table, odd=odd, trial=trial):
            if max(bag) > 5:
                return 1 + trial % 2  # the worst there is: all bags with a new row
            return int(table[bag] < odd)

        p = votes_of_bags(rows, draws, learner, 3)
        if bagging_radius(*two_first(p), 6, draws)[0] >= changes:
            checked += 1
            for new in sets_within(rows, universe, changes):
                after = votes_of_bags(new, draws, learner, 3)
                assert np.argmax(after) == np.argmax(p) == 0
    assert checked


@pytest.mark.parametrize("draws", [1, 2, 5])
def test_bagging_is_tight_for_a_learner_that_any_new_row_turns(draws):
    """Votes for 0 from clean rows alone, 1 else: r modified rows leave ((n - r) / n)^k."""
    n = 40
    radius = bagging_radius(np.ones(1), np.zeros(1), n, draws)[0]
    assert ((n - radius) / n) ** draws > 0.5 >= ((n - radius - 1) / n) ** draws


@pytest.mark.parametrize("draws", [1, 2, 30])
def test_bagging_looks_at_every_size_of_the_changed_set(draws):
    n = 50
    for difference in (0.1, 0.5, 0.9, 0.99):
        radius = -1
        for r in range(n + 1):
            sides = [
                (m / n) ** draws - 2 * (max(max(n, m) - r, 0) / n) ** draws + 1
                for m in range(n - r, n + r + 1)
            ]
            if max(sides) >= difference:
                break
            radius = r
        got = bagging_radius(np.array([difference]), np.zeros(1), n, draws)[0]
        assert got == radius


def smoothed(function, labels, q, classes):
    """Exact probability of class 1 of a function of the labels under flip noise."""
    total = 0.0
    for noisy in itertools.product(range(classes), repeat=len(labels)):
        weight = 1.0
        for a, b in zip(noisy, labels, strict=True):
            weight *= 1 - q if a == b else q / (classes - 1)
        total += weight * function[noisy]
    return total


@pytest.mark.parametrize(("classes", "n"), [(2, 5), (3, 4)])
@pytest.mark.parametrize("q", [0.1, 0.3])
def test_smoothing_holds_for_every_flip_of_random_functions(classes, n, q):
    rng = np.random.default_rng(n)
    clean, checked = (0,) * n, 0
    for _ in range(30):
        function = (rng.random((classes,) * n) < rng.random() ** 0.1).astype(float)
        p = smoothed(function, clean, q, classes)
        radius = smoothing_radius(np.array([p]), q, classes)[0]
        for flips in range(1, min(radius, n) + 1):
            for at in itertools.combinations(range(n), flips):
                new = tuple(1 if i in at else 0 for i in range(n))
                assert smoothed(function, new, q, classes) > 0.5
                checked += 1
    assert checked


@pytest.mark.parametrize(("classes", "q"), [(2, 0.1), (2, 0.4), (3, 0.3), (10, 0.5)])
def test_smoothing_is_exact_against_the_worst_function(classes, q):
    """Neyman-Pearson by sorting all outcomes by their ratio, for every r."""
    for r in range(1, 5):
        outcomes = []
        for noisy in itertools.product(range(classes), repeat=r):
            clean = np.prod([1 - q if a == 0 else q / (classes - 1) for a in noisy])
            attacked = np.prod([1 - q if a == 1 else q / (classes - 1) for a in noisy])
            outcomes.append((attacked / clean, clean, attacked))
        used, threshold = 0.0, 0.0
        for _, clean, attacked in sorted(outcomes):
            part = min(1.0, (0.5 - used) / attacked)
            used, threshold = used + part * attacked, threshold + part * clean
            if part < 1:
                break
        if threshold < 1 - 1e-6:
            assert smoothing_radius(np.array([threshold + 1e-6]), q, classes)[0] >= r
        assert smoothing_radius(np.array([threshold - 1e-6]), q, classes)[0] < r


@pytest.mark.parametrize("q", [0.05, 0.2, 0.4])
def test_smoothing_is_never_below_the_analytic_bound(q):
    p = np.array([0.51, 0.6, 0.8, 0.9, 0.99, 0.999, 0.999999])
    chernoff = [floor(log(4 * x * (1 - x)) / (2 * (1 - 2 * q) * log(q / (1 - q)))) for x in p]
    got = smoothing_radius(p, q, 2)
    assert (got >= chernoff).all() and (got > chernoff).any()
    np.testing.assert_array_equal(smoothing_radius(np.array([0.3, 0.5]), q, 2), [-1, -1])


@pytest.mark.parametrize("q", [0.2, 0.4])
def test_group_privacy_holds_for_randomised_response(q):
    """Every bit told wrongly with probability q: epsilon is ln((1 - q) / q)."""
    rng = np.random.default_rng(0)
    n, epsilon, checked = 6, log((1 - q) / q), 0
    noisy = np.array(list(itertools.product([0, 1], repeat=n)))
    for _ in range(200):
        table = np.where(rng.random(2**n) < 0.03, rng.integers(1, 3, 2**n), 0)

        def told(bits, table=table):
            weights = np.where(noisy == np.array(bits), 1 - q, q).prod(axis=1)
            return np.bincount(table, weights, 3)

        p = told((0,) * n)
        radius = privacy_radius(*two_first(p), epsilon, 0.0)[0]
        for bits in itertools.product([0, 1], repeat=n):
            if sum(bits) <= radius:
                assert np.argmax(told(bits)) == np.argmax(p)
                checked += sum(bits) > 0
    assert checked


def test_group_privacy_equals_its_formula():
    first, second = np.array([0.9, 0.6, 0.5]), np.array([0.05, 0.3, 0.5])
    got = privacy_radius(first, second, 0.1, 0.0)
    for p, s, radius in zip(first, second, got, strict=True):
        r = -1
        while max(exp(-(r + 1) * 0.1) * p - exp((r + 1) * 0.1) * s,
                  2 * exp(-(r + 1) * 0.1) * p - 1) > 1e-8:  # fmt: skip
            r += 1
        assert radius == r
    assert (privacy_radius(first, second, 0.1, 0.01) <= got).all()
    assert (privacy_radius(first, second, 0.1, 0.01) < got).any()


@pytest.mark.parametrize("total", [5, 40])
def test_clopper_pearson_misses_no_more_than_it_says(total):
    counts = np.arange(total + 1)
    low, high = clopper_pearson(counts, np.full(total + 1, total), 0.05)
    for p in np.linspace(0.001, 0.999, 97):
        weights = np.array([comb(total, x) * p**x * (1 - p) ** (total - x) for x in counts])
        assert weights[low > p].sum() <= 0.05 + 1e-12
        assert weights[high < p].sum() <= 0.05 + 1e-12
    assert low[0] == 0 and high[-1] == 1 and (low < high).all()


def test_they_carry_their_confidence_and_are_no_certificates():
    counts = np.array([[900, 60, 40], [500, 480, 20]])
    made = [
        certify_bagging(counts, num_rows=60_000, draws=30),
        certify_label_smoothing(counts, flip_probability=0.4),
        certify_group_privacy(counts, epsilon=0.1),
    ]
    for one in made:
        assert isinstance(one, ProbabilisticCertificates) and not isinstance(one, Certificates)
        assert one.confidence == 0.999 and not one.simultaneous
        assert one.radius[0] > 0 and one.radius[1] == -1
        np.testing.assert_array_equal(one.prediction, 0)
        np.testing.assert_array_equal(one.certified_accuracy([0, 0], [0, 1]), [0.5, 0.5])
    assert made[0].costs["modify"] == 1 and made[2].costs["modify"] == 2
    every = certify_bagging(counts, num_rows=60_000, draws=30, simultaneous=True)
    assert every.simultaneous and every.radius[0] <= made[0].radius[0]
    replaced = certify_group_privacy(counts, epsilon=0.1, replaces=True)
    assert replaced.costs == {"flip": 1, "modify": 1}


def test_what_they_refuse():
    counts = np.array([[9, 1]])
    with pytest.raises(UsageError, match="alpha is 0"):
        certify_bagging(counts, num_rows=9, draws=3, alpha=0)
    with pytest.raises(UsageError, match="draws 0"):
        certify_bagging(counts, num_rows=9, draws=0)
    with pytest.raises(UsageError, match="flip_probability is 0"):
        certify_label_smoothing(counts, flip_probability=0.5)
    with pytest.raises(UsageError, match="epsilon is 0"):
        certify_group_privacy(counts, epsilon=0)
    with pytest.raises(DataError, match="integers from 0"):
        certify_group_privacy(counts / 2, epsilon=1)
    with pytest.raises(DataError, match="at least one vote"):
        certify_bagging(counts * 0, num_rows=9, draws=3)
    with pytest.raises(UsageError, match="counts have shape"):
        certify_bagging(counts[0], num_rows=9, draws=3)
