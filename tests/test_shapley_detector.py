"""What rows are worth to trusted ones: the definition, planted flips, and its place in a scan."""

from __future__ import annotations

import itertools
from math import comb

import jax
import numpy as np
import pytest

import engine_data as data
from jaxpoison import scan
from jaxpoison._check import UsageError
from jaxpoison.detect import KNNShapley, shapley
from jaxpoison.scanning import Method, ScanPlan
from scan_data import X, Y, check_consistent, digits, flat, quick

KEY = jax.random.key(0)


def utility(x, y, rows, query, k):
    """k-NN accuracy of a set of rows on one row that is not in it."""
    rows = sorted(rows, key=lambda i: (((x[i] - x[query]) ** 2).sum(), i))[:k]
    return sum(y[i] == y[query] for i in rows) / k


def brute(x, y, queries, k):
    """Shapley values by their definition, each query left out of its own game."""
    n = len(y)
    total, games = np.zeros(n), np.zeros(n)
    for query in queries:
        others = [i for i in range(n) if i != query]
        for i in others:
            rest = [j for j in others if j != i]
            for size in range(len(rest) + 1):
                for some in itertools.combinations(rest, size):
                    gain = utility(x, y, [*some, i], query, k) - utility(x, y, some, query, k)
                    total[i] += gain / (len(others) * comb(len(rest), size))
            games[i] += 1
    return total / np.maximum(games, 1)


@pytest.mark.parametrize("k", [1, 3])
def test_the_definition(k):
    rng = np.random.default_rng(k)
    x, y = rng.normal(size=(8, 3)).astype(np.float32), np.array([0, 1, 0, 1, 1, 0, 1, 0])
    trusted = np.zeros(8, np.bool_)
    trusted[[1, 4, 6]] = True
    scores = KNNShapley(num_neighbours=k).score(data.stream_of(x, y), key=KEY, trusted=trusted)
    np.testing.assert_allclose(-scores.values, brute(x, y, [1, 4, 6], k), atol=1e-6)
    everything = set(range(8))
    exact = np.mean([utility(x, y, everything - {q}, q, k) for q in (1, 4, 6)])
    assert scores.info.accuracy == pytest.approx(exact, abs=1e-6)
    assert scores.info.num_queries == 3 and scores.candidates is None


def flipped(seed=0, rate=0.05):
    """Digits of which some have a wrong label, and 200 honest rows that are trusted."""
    x, y = digits()
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(y))[: round(rate * len(y))]
    y[rows] = (y[rows] + rng.integers(1, 10, len(rows))) % 10
    planted = np.isin(np.arange(len(y)), rows)
    trusted = np.zeros(len(y), np.bool_)
    trusted[rng.permutation(np.flatnonzero(~planted))[:200]] = True
    return flat(x), y, planted, trusted


def test_wrong_labels_are_worth_least():
    x, y, planted, trusted = flipped()
    scores = KNNShapley().score(data.stream_of(x, y), key=KEY, trusted=trusted)
    asked = ~trusted
    assert data.auroc(scores.values[asked], planted[asked]) > 0.98
    assert np.isfinite(scores.values).all() and scores.values.dtype == np.float32
    assert (scores.statistic > 0).all() and scores.null.shape == (10, 0)
    # a trusted row is no witness for itself: its place among the others is that of honest rows
    assert data.auroc(scores.values[~planted], trusted[~planted]) == pytest.approx(0.5, abs=0.08)


def test_a_trusted_row_with_a_wrong_label_shows():
    x, y, planted, trusted = flipped()
    wrong = np.flatnonzero(planted)[:5]
    trusted[wrong] = True
    scores = KNNShapley().score(data.stream_of(x, y), key=KEY, trusted=trusted)
    honest = scores.values[~planted]
    assert (scores.values[wrong] > np.quantile(honest, 0.9)).mean() >= 0.8


def test_scores_follow_their_rows(monkeypatch):
    x, y, _, trusted = flipped()
    x, y, trusted = x[:500], y[:500], trusted[:500]
    x += np.random.default_rng(0).normal(size=x.shape).astype(np.float32)  # no equal distances
    one = KNNShapley().score(data.stream_of(x, y), key=KEY, trusted=trusted)
    order = np.random.default_rng(1).permutation(500)
    stream = data.stream_of(x[order], y[order])
    two = KNNShapley().score(stream, key=KEY, trusted=trusted[order])
    np.testing.assert_allclose(two.values, one.values[order], atol=1e-6)
    monkeypatch.setattr(shapley, "_BLOCK_KEYS", 500 * 7)  # of queries: 7, which leaves a rest
    three = KNNShapley().score(data.stream_of(x, y), key=KEY, trusted=trusted)
    np.testing.assert_allclose(three.values, one.values, atol=1e-7)
    moved = KNNShapley().score(data.stream_of(4 * x + 8, y), key=KEY, trusted=trusted)
    np.testing.assert_allclose(moved.values, one.values, atol=1e-4)


def test_degenerate_rows():
    y = np.arange(40) % 2
    trusted = y == 0
    equal = KNNShapley().score(
        data.stream_of(np.ones((40, 3), np.float32), y, num_classes=3), key=KEY, trusted=trusted
    )
    assert np.isfinite(equal.values).all() and np.isnan(equal.statistic[2])
    few = KNNShapley(num_neighbours=99, min_rows=30)
    scores = few.score(data.stream_of(X, Y), key=KEY, trusted=np.arange(len(Y)) == 5)
    assert np.isfinite(scores.values).all() and scores.values[5] == 0


@pytest.mark.parametrize(
    ("trusted", "words"),
    [
        (np.zeros(600, np.bool_), "0 rows"),
        (np.ones(5, np.bool_), r"shape \(5,\)"),
        (np.ones(600, np.int64), "int64"),
    ],
)
def test_bad_masks(trusted, words):
    with pytest.raises(UsageError, match=words):
        KNNShapley().score(data.stream_of(X, Y), key=KEY, trusted=trusted)
    with pytest.raises(UsageError, match="num_neighbours: 0"):
        stream = data.stream_of(X, Y)
        KNNShapley(num_neighbours=0).score(stream, key=KEY, trusted=np.ones(600, np.bool_))


def test_a_scan_with_trusted_rows():
    x, y, planted, trusted = flipped()
    report = quick(x, y, trusted=trusted, detectors=["neighbours", "shapley"])
    assert list(report.scores) == ["neighbours", "shapley"]
    assert data.auroc(report.scores["shapley"][~trusted], planted[~trusted]) > 0.98
    check_consistent(report)
    # p-values are only as good as their promise if no score has seen which rows are trusted
    without = quick(x, y, trusted=trusted, detectors=["neighbours"])
    assert np.array_equal(report.suspicion, without.suspicion)
    assert np.array_equal(report.p, without.p)
    assert np.array_equal(report.flagged, without.flagged)


def test_when_it_runs():
    assert "shapley" not in ScanPlan("x.npz").names
    assert "shapley" in ScanPlan("x.npz", trusted="rows.txt").names
    named = ScanPlan("x.npz", trusted="rows.txt", method=Method(("mixture",)))
    assert named.names == ("mixture",)
    with pytest.raises(UsageError, match="'shapley' needs --trusted"):
        scan(X, Y, detectors=["shapley"])
