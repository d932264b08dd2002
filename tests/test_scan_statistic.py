"""The SCAn statistic against a slow version that follows the model sample by sample."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
import scipy.stats

import engine_data as data
from jaxpoison.detect.variance_decomposition import VarianceDecomposition, decompose
from jaxpoison.layout import Layout

KEY = jax.random.key(0)
X, LABELS, PLANTED = data.planted()
IN_TARGET = LABELS == data.TARGET


def run(x, labels=LABELS, num_classes=5, detector=None, **options):
    detector = detector or VarianceDecomposition()
    return detector.score(data.stream_of(x, labels, num_classes=num_classes, **options), key=KEY)


def small(seed=0, sizes=(7, 4, 9, 5, 12, 3), k=3):
    """A few classes as the model says: rows, labels."""
    rng = np.random.default_rng(seed)
    means = 2.0 * rng.normal(size=(len(sizes), k)) @ rng.normal(size=(k, k))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return means[labels] + rng.normal(size=(len(labels), k)) @ rng.normal(size=(k, k)), labels


def slow_em(x, labels, steps):
    """EM over all rows of a class at once: one Gaussian vector [n_c k] of known covariance."""
    x, k = x - x.mean(axis=0), x.shape[1]
    classes = np.unique(labels)
    means = np.stack([x[labels == c].mean(axis=0) for c in classes])
    outer = means.T @ means / len(classes)
    rest = x - means[labels]
    both = rest.T @ rest / len(x)
    for _ in range(steps):
        new_outer, new_both = np.zeros((k, k)), np.zeros((k, k))
        for c in classes:
            mine = x[labels == c]
            n = len(mine)
            covariance = np.kron(np.ones((n, n)), outer) + np.kron(np.eye(n), both)
            gain = np.kron(np.ones((1, n)), outer) @ np.linalg.inv(covariance)
            mean = gain @ mine.reshape(-1)
            variance = outer - gain @ np.kron(np.ones((n, 1)), outer)
            new_outer += (np.outer(mean, mean) + variance) / len(classes)
            for row in mine:
                new_both += (np.outer(row - mean, row - mean) + variance) / len(x)
        outer, both = new_outer, new_both
    return outer, both


def log_likelihood(x, labels, outer, both):
    x, total = x - x.mean(axis=0), 0.0
    for c in np.unique(labels):
        mine = x[labels == c]
        n = len(mine)
        covariance = np.kron(np.ones((n, n)), outer) + np.kron(np.eye(n), both)
        total += scipy.stats.multivariate_normal(None, covariance).logpdf(mine.reshape(-1))
    return total


def from_moments(x, labels, max_steps, tolerance=0.0):
    counts = np.bincount(labels).astype(float)
    mean = np.stack([x[labels == c].mean(axis=0) for c in range(len(counts))])
    rest = x - mean[labels]
    centred = mean - counts @ mean / counts.sum()
    return decompose(counts, centred, rest.T @ rest / len(x), max_steps, tolerance)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("steps", [1, 2, 17])
def test_em_from_moments_is_em_over_rows(seed, steps):
    x, labels = small(seed)
    fit, (outer, both) = from_moments(x, labels, steps), slow_em(x, labels, steps)
    assert fit.num_steps == steps and not fit.converged
    # the floor of 1e-6 of a variance is the fast version's only
    np.testing.assert_allclose(fit.between, outer, rtol=1e-4, atol=1e-4 * np.abs(outer).max())
    np.testing.assert_allclose(fit.within, both, rtol=1e-4, atol=1e-4 * np.abs(both).max())


def test_em_climbs_the_likelihood_and_stops_at_its_top():
    x, labels = small()
    heights = [
        log_likelihood(x, labels, fit.between, fit.within)
        for fit in (from_moments(x, labels, steps) for steps in (1, 2, 4, 8, 30))
    ]
    assert (np.diff(heights) > -1e-4).all() and heights[-1] > heights[0]
    fit = from_moments(x, labels, 5000, tolerance=1e-9)
    assert fit.converged and fit.num_steps < 5000
    assert log_likelihood(x, labels, fit.between, fit.within) >= heights[-1]


def best_split(x, precision):
    """The largest J over every way to cut the rows in two."""
    best = (-1.0, None)
    for sides in itertools.product([False, True], repeat=len(x) - 1):
        side = np.array([False, *sides])
        if not side.any():
            continue
        centre = np.where(side[:, None], x[side].mean(axis=0), x[~side].mean(axis=0))
        whole, rest = x - x.mean(axis=0), x - centre
        j = np.einsum("ni,ij,nj->", whole, precision, whole)
        j -= np.einsum("ni,ij,nj->", rest, precision, rest)
        best = max(best, (j, side), key=lambda pair: pair[0])
    return best


def test_split_is_the_best_of_all():
    x, labels = small(3, sizes=(11, 10, 11, 9))
    x[labels == 0] += 6.0 * (np.arange((labels == 0).sum()) < 4)[:, None] * np.array([1, -1, 0.5])
    scores = run(x.astype(np.float32), labels, 4, VarianceDecomposition(min_rows=2))
    both = from_moments(x, labels, 200, 1e-6).within
    for c in range(4):
        mine = labels == c
        j, side = best_split(x[mine], np.linalg.inv(both))
        np.testing.assert_allclose(scores.statistic[c], j / mine.sum(), rtol=1e-3)
        if c == 0:
            smaller = side if 2 * side.sum() <= len(side) else ~side
            np.testing.assert_array_equal(scores.candidates[mine], smaller)


def test_values_are_distances_to_the_plane_in_shared_deviations():
    scores = run(X)
    mine = X[IN_TARGET].astype(np.float64)
    side = scores.candidates[IN_TARGET]
    counts = np.bincount(LABELS)
    both = from_moments(X.astype(np.float64), LABELS, 200, 1e-6).within
    one, two = mine[side].mean(axis=0), mine[~side].mean(axis=0)
    precision = np.linalg.inv(both)
    length = np.sqrt((one - two) @ precision @ (one - two))
    want = (mine - (one + two) / 2) @ precision @ (one - two) / length
    np.testing.assert_allclose(scores.values[IN_TARGET], want, rtol=2e-3, atol=2e-3)
    j = side.sum() * (~side).sum() / counts[data.TARGET] * length**2
    np.testing.assert_allclose(scores.statistic[data.TARGET], j / counts[data.TARGET], rtol=1e-3)


def test_shapes_and_the_planted_group():
    scores = run(X)
    assert scores.values.shape == (1500,) and scores.values.dtype == np.float32
    assert scores.null.shape == (5, 0) and scores.statistic.dtype == np.float64
    assert scores.statistic.argmax() == data.TARGET
    assert data.auroc(scores.values[IN_TARGET], PLANTED[IN_TARGET]) > 0.99
    assert (scores.candidates[IN_TARGET] == PLANTED[IN_TARGET]).mean() > 0.99
    assert scores.info.converged and scores.info.rank == 24


def test_many_features_are_seen_along_leading_directions():
    x, labels, planted = data.planted(d=150, shift=14.0)
    scores = run(x, labels)
    assert scores.info.rank == 64
    target = labels == data.TARGET
    assert data.auroc(scores.values[target], planted[target]) > 0.99


@pytest.mark.parametrize("change", ["order", "shift", "rotation", "layout", "devices"])
def test_what_must_not_matter(monkeypatch, change):
    first, back, x, labels, options = run(X), slice(None), X, LABELS, {}
    if change == "order":
        order = np.random.default_rng(1).permutation(1500)
        x, labels, back = X[order], LABELS[order], np.argsort(order)
    if change == "shift":
        x = (X * 64 + 300).astype(np.float32)
    if change == "rotation":
        x = (X.astype(np.float64) @ data.rotation(24)).astype(np.float32)
    if change == "layout":
        monkeypatch.setattr(Layout, "of", classmethod(lambda cls, n, b, c: cls(256, 8, 37)))
    if change == "devices":
        options = {"num_devices": len(jax.devices())}
    again = run(x, labels, **options)
    np.testing.assert_allclose(again.statistic, first.statistic, rtol=5e-3)
    mine = scipy.stats.spearmanr(again.values[back][IN_TARGET], first.values[IN_TARGET])[0]
    assert mine > 0.999
    if change == "order":
        turned = again.candidates[back]
        np.testing.assert_array_equal(turned[IN_TARGET], first.candidates[IN_TARGET])


def test_small_classes_are_skipped():
    keep = data.with_small_classes(LABELS)
    scores = run(X[keep], LABELS[keep])
    small_ones = np.isin(LABELS[keep], [1, 3])
    assert not scores.values[small_ones].any() and not scores.candidates[small_ones].any()
    assert np.isnan(scores.statistic[[0, 1, 3]]).all()
    assert np.isfinite(scores.statistic[[2, 4]]).all()
    target = LABELS[keep] == data.TARGET
    assert data.auroc(scores.values[target], PLANTED[keep][target]) > 0.95


@pytest.mark.parametrize("x", data.odd_features(X))
def test_odd_features(x):
    scores = run(x)
    assert np.isfinite(scores.values).all() and np.isfinite(scores.statistic).all()
    if x.shape[1] > 24:
        assert data.auroc(scores.values[IN_TARGET], PLANTED[IN_TARGET]) > 0.99


def test_one_class_alone():
    scores = run(X[IN_TARGET], np.zeros(IN_TARGET.sum(), int), 1)
    assert np.isfinite(scores.statistic).all()
    assert data.auroc(scores.values, PLANTED[IN_TARGET]) > 0.9


def test_second_run_compiles_nothing():
    run(X)
    before = data.num_compiled()
    x, labels, _ = data.planted(seed=5)
    run(x, labels)
    assert data.num_compiled() == before
