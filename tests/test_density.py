"""Local density against the formula, and density clusters on planted groups."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.stats
from sklearn.datasets import load_digits
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

import engine_data as data
from jaxpoison.detect.density import DensityClusters, LocalDensity, upper_tail

KEY = jax.random.key(0)


def simplified_lof(x, k):
    """log SLOF and log k-distance over its median, of the rows of one class, in float64."""
    distance, rows = NearestNeighbors(n_neighbors=k).fit(x.astype(np.float64)).kneighbors()
    reach = distance[:, -1]
    return np.log(reach / reach[rows].mean(axis=1)), np.log(reach / np.median(reach))


def patched_digits(rows, seed=0, target=2):
    """Digits of other classes with a bright corner under one label."""
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32).reshape(-1, 8, 8), y.copy()
    some = np.random.default_rng(seed).permutation(np.flatnonzero(y != target))[:rows]
    x[some, -2:, -2:] = 1.0
    y[some] = target
    planted = np.zeros(len(y), np.bool_)
    planted[some] = True
    return x.reshape(len(x), -1), y, planted


def test_the_score_is_the_formula():
    x, labels, _ = data.planted(n=600)
    values = LocalDensity(num_neighbours=9).score(data.stream_of(x, labels), key=KEY).values
    for c in range(5):
        slof, reach = simplified_lof(x[labels == c], 9)
        np.testing.assert_allclose(values[labels == c], slof + reach, atol=1e-5)


def test_it_ranks_as_the_local_outlier_factor_does():
    """The full factor smooths the neighbours' distances and leaves the k-distance out."""
    x = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    values = LocalDensity().score(data.stream_of(x, np.zeros(500, int)), key=KEY).values
    factor = -LocalOutlierFactor(16).fit(x).negative_outlier_factor_
    assert scipy.stats.spearmanr(values, factor)[0] > 0.9


def test_few_reference_rows_make_a_group_thin():
    """24 rows on one spot are each other's neighbours, unless few of them are looked at."""
    x, labels, planted = data.planted()
    mine = labels == data.TARGET
    whole = LocalDensity().score(data.stream_of(x, labels), key=KEY)
    few = LocalDensity(num_reference=64).score(data.stream_of(x, labels), key=KEY)
    assert whole.info.num_draws == 1 and few.info.num_draws == 3
    assert data.auroc(few.values[mine], planted[mine]) > 0.99
    assert data.auroc(few.values[mine], planted[mine]) > data.auroc(
        whole.values[mine], planted[mine]
    )


@pytest.mark.parametrize("rows", [9, 18])
def test_few_patched_digits_are_thin(rows):
    x, y, planted = patched_digits(rows)
    scores = LocalDensity().score(data.stream_of(x, y), key=KEY)
    assert data.auroc(scores.values, planted) > 0.98
    assert data.auroc(scores.values[y == 2], planted[y == 2]) > 0.98


def test_copies_of_rows_are_finite_and_dense():
    x, labels, _ = data.planted(n=500)
    rows = np.flatnonzero(labels == 1)
    x[rows[:30]] = x[rows[0]]
    scores = LocalDensity().score(data.stream_of(x, labels), key=KEY)
    assert np.isfinite(scores.values).all() and np.isfinite(scores.statistic).all()
    assert scores.values[rows[:30]].max() < np.median(scores.values[rows[30:]])


def test_upper_tail():
    rng = np.random.default_rng(0)
    even = rng.normal(size=20_000)
    assert abs(upper_tail(even)) < 0.1
    assert upper_tail(np.append(even, np.full(400, 12.0))) > 1.3
    assert upper_tail(-np.append(even, np.full(400, 12.0))) < -1.3
    np.testing.assert_allclose(upper_tail(5 * even - 3), upper_tail(even), rtol=1e-9)
    assert upper_tail(np.zeros(50)) == 0.0


def test_patched_digits_are_a_cluster():
    x, y, planted = patched_digits(90)
    scores = DensityClusters().score(data.stream_of(x, y), key=KEY)
    assert scores.candidates[planted].all()
    mine = y == 2
    assert (scores.candidates[mine] == planted[mine]).mean() > 0.9
    clean = DensityClusters().score(data.stream_of(*load_digits(return_X_y=True)), key=KEY)
    assert scores.statistic[2] > clean.statistic[2]


def test_a_class_beyond_what_is_fitted_is_scored_whole():
    """Rows that HDBSCAN never saw join the cluster of their nearest clustered row."""
    x, labels, planted = data.planted(n=2500, share=0.15)
    scores = DensityClusters(num_fitted=200).score(data.stream_of(x, labels), key=KEY)
    mine = labels == data.TARGET
    assert (scores.candidates[mine] == planted[mine]).mean() > 0.97
    assert scores.statistic.argmax() == data.TARGET
    assert data.auroc(scores.values[mine], planted[mine]) > 0.97


def test_candidates_are_at_most_half_of_their_class():
    """Four clusters of a quarter each: the main one and one more must be left."""
    rng = np.random.default_rng(0)
    kind = np.arange(400) % 4
    x = 20 * rng.normal(size=(4, 5))[kind] + rng.normal(size=(400, 5))
    scores = DensityClusters().score(
        data.stream_of(x.astype(np.float32), np.zeros(400, int)), key=KEY
    )
    assert scores.info.clusters[0] == 4
    assert 0 < scores.candidates.mean() <= 0.5
    np.testing.assert_allclose(scores.info.minority[0], scores.candidates.mean())


def test_one_gaussian_class_has_no_candidates():
    x = np.random.default_rng(0).normal(size=(600, 12)).astype(np.float32)
    scores = DensityClusters().score(data.stream_of(x, np.zeros(600, int)), key=KEY)
    assert not scores.candidates.any() and scores.statistic[0] == 0.0
    # without clusters the distance is that to the class itself
    norm = np.linalg.norm(x - x.mean(axis=0), axis=1)
    assert np.isfinite(scores.values).all() and np.ptp(scores.values) > 0.5
    assert norm[scores.values > 0.5].mean() > norm.mean()
