"""Every kernel against its float64 oracle, on the shared workloads and on odd tables."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_samples

import reference
from jaxpoison import kernels
from jaxpoison.kernels._masked import masked_covariance, masked_mean, masked_quantile
from jaxpoison.kernels._workloads import WORKLOADS, draw, small_workloads
from jaxpoison.kernels.trimmed import consistency_factor

KEY = jax.random.key(0)
SMALL = [pytest.param(w, id=w.name) for w in small_workloads()]
# The few shapes that random examples are padded to, so that they share compilations.
ROWS, FEATURES = 48, 5


def clustered(seed=0, sizes=(60, 30), features=4, gap=8.0):
    """Rows in well separated clusters, shuffled, and the cluster of each."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = gap * rng.standard_normal((len(sizes), features))
    x = centres[labels] + rng.standard_normal((len(labels), features))
    return x.astype(np.float32), labels.astype(np.int32)


def padded(x, rows, fill=0.0):
    out = np.full((rows, *x.shape[1:]), fill, x.dtype)
    out[: len(x)] = x
    return out


def ones(x):
    return np.ones(len(x), np.float32)


def classes_of(workload):
    """[(rows, float64 rows)] of each class."""
    drawn = draw(workload)
    return [drawn.x[drawn.label == c] for c in range(workload.classes)]


small_examples = settings(max_examples=12, deadline=None, derandomize=True)


@st.composite
def tables(draw_from):
    """Rows of odd shapes and scales: few rows, repeats, constant columns."""
    seed = draw_from(st.integers(0, 2**31))
    rows = draw_from(st.integers(1, ROWS))
    scale = draw_from(st.sampled_from([1e-3, 1.0, 1e3]))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, FEATURES)) * scale
    if draw_from(st.booleans()):
        x[:, 0] = scale
    if draw_from(st.booleans()):
        x = x[rng.integers(0, rows, rows)]
    return (x + draw_from(st.sampled_from([0.0, 100.0])) * scale).astype(np.float32)


# Masked statistics


@small_examples
@given(tables(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 0.9, 1.0]))
def test_quantile_is_an_order_statistic_to_the_bit(x, q):
    weight = jnp.asarray(padded(ones(x), ROWS))
    got = masked_quantile(jnp.asarray(padded(x, ROWS)), weight, q)
    np.testing.assert_array_equal(got, reference.order_statistic(x, q))


def test_quantile_survives_an_outlier_that_stretches_the_range():
    x = np.array([3e38, -3e38, 1.0, np.nextafter(np.float32(1), 2), -0.0, 0.0, 1e-30], np.float32)
    for rank in range(1, 8):
        got = masked_quantile(jnp.asarray(x), jnp.ones(7), rank / 7)
        assert got == np.sort(x)[rank - 1]


@pytest.mark.parametrize("workload", SMALL)
def test_moments(workload):
    for x in classes_of(workload):
        far = x + np.float32(1000)  # a naive sum of squares would lose the covariance here
        weight = jnp.ones(len(x))
        mean, cov = masked_covariance(jnp.asarray(far), weight)
        exact = far.astype(np.float64)
        np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-7)
        want = reference.covariance(exact)
        np.testing.assert_allclose(cov, want, atol=1e-5 * np.abs(want).max())
        np.testing.assert_array_equal(mean, masked_mean(jnp.asarray(far), weight))


# k-means


@pytest.mark.parametrize("workload", SMALL)
def test_kmeans_is_self_consistent_and_near_sklearn(workload):
    for x in classes_of(workload):
        got = kernels.kmeans(x, ones(x), key=KEY)
        exact = x.astype(np.float64)
        distances = reference.squared_distances(exact, np.asarray(got.centres, np.float64))
        want = reference.inertia(exact, np.asarray(got.centres, np.float64))
        np.testing.assert_allclose(got.inertia, want, rtol=1e-5, atol=1e-6)
        chosen = distances[np.arange(len(x)), got.labels]
        np.testing.assert_allclose(chosen, distances.min(1), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(got.sizes, np.bincount(got.labels, minlength=2))
        best = KMeans(2, n_init=20, random_state=0).fit(exact).inertia_
        # Rows without clear clusters have many optima near the best one.
        assert got.inertia <= 1.03 * best + 1e-6


@pytest.mark.parametrize("sizes", [(60, 30), (95, 5), (40, 30, 20)])
@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_kmeans_equals_sklearn_on_clustered_rows(sizes, shift):
    x, labels = clustered(seed=3, sizes=sizes)
    x += np.float32(shift)
    got = kernels.kmeans(x, ones(x), num_clusters=len(sizes), key=KEY)
    want = KMeans(len(sizes), n_init=10, random_state=0).fit(x.astype(np.float64))
    assert abs(float(got.inertia) / want.inertia_ - 1) < 5e-3
    assert sorted(np.asarray(got.sizes).tolist()) == sorted(np.bincount(labels).tolist())
    for c in range(len(sizes)):
        assert len(np.unique(np.asarray(got.labels)[labels == c])) == 1


def test_kmeans_keeps_the_centre_of_an_empty_cluster():
    x = np.full((6, 3), 2.5, np.float32)
    got = kernels.kmeans(x, ones(x), num_clusters=3, key=KEY)
    np.testing.assert_array_equal(got.sizes, [6, 0, 0])
    np.testing.assert_array_equal(got.centres, np.full((3, 3), 2.5))
    assert got.inertia == 0
    x[3:] = -7.5  # two places for three centres: the third one has to stay at one of them
    got = kernels.kmeans(x, ones(x), num_clusters=3, key=KEY)
    assert sorted(np.asarray(got.sizes).tolist()) == [0, 3, 3]
    assert reference.squared_distances(np.asarray(got.centres), x).min(1).max() == 0


def test_kmeans_without_steps_starts_at_rows_far_apart():
    x, _ = clustered(seed=5, sizes=(50, 50), gap=50.0)
    for seed in range(5):
        got = kernels.kmeans(x, ones(x), num_inits=1, num_steps=0, key=jax.random.key(seed))
        nearest = reference.squared_distances(np.asarray(got.centres), x).min(1)
        np.testing.assert_allclose(nearest, 0, atol=1e-6)
        assert sorted(np.asarray(got.sizes).tolist()) == [50, 50]


# Silhouette


@pytest.mark.parametrize("block", [7, 512])
@pytest.mark.parametrize("sizes", [(60, 30), (99, 1), (40, 30, 20)])
def test_silhouette_equals_sklearn(sizes, block):
    x, labels = clustered(seed=1, sizes=sizes, gap=1.0)
    got = kernels.silhouette(x, labels, ones(x), num_clusters=len(sizes), block=block)
    want = silhouette_samples(x.astype(np.float64), labels)
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_silhouette_of_tight_clusters_far_apart():
    x, labels = clustered(seed=2, gap=1000.0)
    got = kernels.silhouette(x, labels, ones(x))
    want = silhouette_samples(x.astype(np.float64), labels)
    # The scores differ from 1 by about 1e-3; the difference is what must be right.
    np.testing.assert_allclose(1 - np.asarray(got), 1 - want, rtol=1e-3)


@small_examples
@given(tables(), st.integers(0, 2**31))
def test_silhouette_on_odd_tables(x, seed):
    labels = np.random.default_rng(seed).integers(0, 3, len(x)).astype(np.int32)
    got = kernels.silhouette(
        padded(x, ROWS), padded(labels, ROWS), padded(ones(x), ROWS), num_clusters=3, block=20
    )
    want = reference.silhouette(x.astype(np.float64), labels)
    # Equal rows have distance 0, of which float32 sees up to 3e-4 of the cluster's radius.
    np.testing.assert_allclose(got[: len(x)], want, atol=1e-3)
    assert not np.any(got[len(x) :])


def test_silhouette_of_one_cluster_or_no_label_is_zero():
    x, labels = clustered()
    assert not np.any(kernels.silhouette(x, np.zeros_like(labels), ones(x)))
    one_out = np.where(np.arange(len(x)) == 4, -1, labels)
    got = kernels.silhouette(x, one_out, ones(x))
    assert got[4] == 0
    rest = np.arange(len(x)) != 4
    want = silhouette_samples(x[rest].astype(np.float64), labels[rest])
    np.testing.assert_allclose(got[rest], want, atol=2e-6)


# Trimmed Gaussian


@pytest.mark.parametrize("num_features", [1, 2, 10, 64, 100])
def test_consistency_factor(num_features):
    for keep in (0.5, 0.75, 0.9, 0.99, 1.0):
        got = consistency_factor(jnp.float32(keep), num_features)
        want = reference.consistency_factor(keep, num_features)
        # The float32 incomplete gamma function itself is off by a few 1e-6 at k = 100.
        np.testing.assert_allclose(got, want, rtol=5e-5)


@pytest.mark.parametrize("keep", [0.6, 0.9, 1.0])
@pytest.mark.parametrize("workload", [w for w in SMALL if w.values[0].name != "wide"])
def test_trimmed_gaussian(workload, keep):
    for x in classes_of(workload):
        got = kernels.trimmed_gaussian(x, ones(x), keep=keep)
        mean, cov, distance2 = reference.trimmed_gaussian(x.astype(np.float64), keep)
        np.testing.assert_allclose(got.mean, mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got.cov, cov, atol=3e-5 * np.abs(cov).max())
        if len(x) > 2 * x.shape[1]:  # fewer rows leave directions to the ridge, see below
            np.testing.assert_allclose(got.distance2, distance2, rtol=2e-3, atol=1e-3)
            unit = np.asarray(got.whitening, np.float64) @ cov @ np.asarray(got.whitening)
            np.testing.assert_allclose(unit, np.eye(len(cov)), atol=1e-3)
        np.testing.assert_allclose(got.whitening, got.whitening.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_trimmed_gaussian_starts_well_on_columns_that_are_mostly_equal(num_steps):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4)).astype(np.float32)
    x[:, 1] = np.where(rng.random(300) < 0.8, 0, 40 * x[:, 1])  # MAD is 0, as behind a ReLU
    got = kernels.trimmed_gaussian(x, ones(x), keep=0.8, num_steps=num_steps)
    _, cov, distance2 = reference.trimmed_gaussian(x.astype(np.float64), 0.8, num_steps)
    np.testing.assert_allclose(got.cov, cov, atol=1e-5 * np.abs(cov).max())
    np.testing.assert_allclose(got.distance2, distance2, rtol=1e-3)


def test_trimmed_gaussian_with_fewer_rows_than_features_stays_finite():
    x = draw(WORKLOADS[2]).x
    got = kernels.trimmed_gaussian(x, ones(x), keep=0.7)
    assert x.shape[0] < x.shape[1]
    assert all(np.isfinite(value).all() for value in got)
    # Rows that were left out leave the span of the kept ones, where variance is the ridge only.
    order = np.argsort(got.distance2)
    assert got.distance2[order[-1]] > 100 * got.distance2[order[20]]


@pytest.mark.parametrize("seed", range(3))
def test_trimmed_gaussian_recovers_the_covariance_under_a_fifth_of_outliers(seed):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((6, 6))
    clean = rng.standard_normal((1600, 6)) @ mixing
    outliers = 0.3 * rng.standard_normal((400, 6)) + 12 * np.linalg.norm(mixing, axis=0)
    x = np.vstack([clean, outliers]).astype(np.float32)
    got = kernels.trimmed_gaussian(x, ones(x), keep=0.75)
    want = mixing.T @ mixing
    cov = np.asarray(got.cov, np.float64)
    shape_error = np.linalg.norm(cov / np.trace(cov) - want / np.trace(want), 2)
    assert shape_error < 0.1 * np.linalg.norm(want / np.trace(want), 2)
    # 0.75 of all rows are 0.94 of the clean ones, so the factor for 0.75 errs high by their ratio.
    excess = reference.consistency_factor(0.75, 6) / reference.consistency_factor(0.9375, 6)
    assert 0.9 < np.trace(cov) / np.trace(want) / excess < 1.1
    naive = reference.covariance(x.astype(np.float64))
    assert np.trace(naive) > 5 * np.trace(want)
    assert got.distance2[1600:].min() > got.distance2[:1600].max()


def test_trimmed_gaussian_is_consistent_on_clean_rows():
    x = np.random.default_rng(0).standard_normal((4000, 5)).astype(np.float32)
    for keep in (0.5, 0.75, 0.95):
        got = kernels.trimmed_gaussian(x, ones(x), keep=keep)
        np.testing.assert_allclose(got.cov, np.eye(5), atol=0.12)
        quantile = scipy.stats.chi2.ppf(0.5, 5)
        assert abs(float(np.median(got.distance2)) / quantile - 1) < 0.08


def test_a_ladder_of_fractions_is_one_vmap():
    x = draw(WORKLOADS[0]).x
    ladder = np.array([0.5, 0.7, 0.9, 1.0], np.float32)
    many = jax.vmap(lambda keep: kernels.trimmed_gaussian(x, ones(x), keep=keep))(ladder)
    for i, keep in enumerate(ladder):
        one = kernels.trimmed_gaussian(x, ones(x), keep=keep)
        np.testing.assert_allclose(many.distance2[i], one.distance2, rtol=1e-3, atol=1e-4)


@small_examples
@given(tables())
def test_trimmed_gaussian_is_finite_on_odd_tables(x):
    got = kernels.trimmed_gaussian(padded(x, ROWS), padded(ones(x), ROWS), keep=0.8)
    assert all(np.isfinite(value).all() for value in got)
    assert (got.distance2 >= 0).all() and not np.any(got.distance2[len(x) :])


# Quantum entropy


def whitened_case(workload):
    for x in classes_of(workload):
        if len(x) > 2 * x.shape[1]:
            fit = kernels.trimmed_gaussian(x, ones(x), keep=0.7)
            yield x, fit.mean, fit.whitening


@pytest.mark.parametrize("alpha", [0.0, 1.0, 4.0, 16.0])
@pytest.mark.parametrize("workload", [w for w in SMALL if w.values[0].rows > 50])
def test_quantum_entropy_is_the_matrix_exponential(workload, alpha):
    for x, mean, whitening in whitened_case(workload):
        got = kernels.quantum_entropy_scores(x, ones(x), mean, whitening, alpha=alpha)
        exact = (np.asarray(a, np.float64) for a in (x, mean, whitening))
        scores, norm, trace = reference.quantum_entropy(*exact, alpha=alpha)
        np.testing.assert_allclose(got.scores, scores, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(got.norm, norm, rtol=1e-5)
        np.testing.assert_allclose(got.trace_weighted, trace, rtol=1e-4)
        np.testing.assert_allclose(np.mean(got.scores), got.trace_weighted, rtol=1e-4)


def test_quantum_entropy_is_not_the_elementwise_exponential():
    x = draw(WORKLOADS[0]).x
    fit = kernels.trimmed_gaussian(x, ones(x), keep=0.7)
    got = kernels.quantum_entropy_scores(x, ones(x), fit.mean, fit.whitening)
    y = (x - np.asarray(fit.mean)) @ np.asarray(fit.whitening).T
    moment = y.T @ y / len(x)
    wrong = np.exp(4 * (moment - np.eye(len(moment))) / (np.linalg.norm(moment, 2) - 1))
    wrong_scores = np.einsum("mi,ij,mj->m", y, wrong, y) / np.trace(wrong)
    assert np.abs(np.asarray(got.scores) - wrong_scores).max() > 0.1 * wrong_scores.max()


def test_quantum_entropy_without_excess_is_the_plain_norm():
    x = 0.5 * np.random.default_rng(0).uniform(-1, 1, (200, 4)).astype(np.float32)
    got = kernels.quantum_entropy_scores(x, ones(x), np.zeros(4, np.float32), np.eye(4))
    assert got.norm < 1
    np.testing.assert_allclose(got.scores, (x**2).sum(1) / 4, rtol=1e-5)


def test_quantum_entropy_does_not_overflow():
    x = draw(WORKLOADS[0]).x
    mean = x.mean(0)
    for scale, alpha in ((1e3, 4.0), (1e-3, 4.0), (1.0, 1e6)):
        got = kernels.quantum_entropy_scores(x, ones(x), mean, scale * np.eye(6), alpha=alpha)
        assert all(np.isfinite(value).all() for value in got)
        assert float(got.scores.max()) > 0
