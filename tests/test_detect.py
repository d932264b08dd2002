"""Detectors against what their papers say, written down plainly in float64."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans

import engine_data as data
import reference
from jaxpoison import detect
from jaxpoison.detect import spectral
from jaxpoison.detect._coordinates import by_class, coordinates
from jaxpoison.detect._detector import even_subset

KEY = jax.random.key(0)


def score(detector, x, labels, **options):
    stream = data.stream_of(x, labels, **options)
    return stream, detector.score(stream, key=KEY)


@pytest.mark.parametrize(
    ("d", "method", "offset"),
    [(64, "gram", 0.0), (64, "gram", 1e3), (400, "range_finder", 100.0)],
)
def test_spectral_signatures(d, method, offset):
    x, labels, _ = data.planted(d=d, offset=offset)
    _, scores = score(detect.SpectralSignatures(), x, labels)
    want = reference.spectral_scores(x.astype(np.float64), labels)
    assert scores.info.method == method and (scores.info.residual < 1e-3).all()
    top = np.argsort(want)[::-1][: round(0.015 * len(x))]
    np.testing.assert_allclose(scores.values[top], want[top], rtol=1e-3)
    assert set(np.argsort(scores.values)[::-1][: len(top)]) == set(top)
    np.testing.assert_allclose(scores.values, want, atol=1e-3 * want.max())
    for c in range(5):
        mine = x[labels == c].astype(np.float64)
        values = np.linalg.eigvalsh(np.cov(mine.T))[::-1]
        np.testing.assert_allclose(scores.statistic[c], values[0] / values[1], rtol=1e-2)


def test_both_routes_of_spectral_signatures_agree(monkeypatch):
    x, labels, _ = data.planted(d=64)
    _, gram = score(detect.SpectralSignatures(), x, labels)
    monkeypatch.setattr(spectral, "_GRAM_FEATURES", 0)
    _, finder = score(detect.SpectralSignatures(), x, labels)
    assert (gram.info.method, finder.info.method) == ("gram", "range_finder")
    np.testing.assert_allclose(finder.values, gram.values, atol=1e-3 * gram.values.max())


def test_range_finder_says_when_it_did_not_converge():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 300)).astype(np.float32)  # a flat spectrum: no direction leads
    hasty = detect.SpectralSignatures(max_passes=1)
    _, scores = score(hasty, x, np.arange(900) % 3)
    assert not scores.info.converged and (scores.info.residual > hasty.tolerance).all()
    assert np.isfinite(scores.values).all()


def test_spectral_projections_are_centred():
    """Four of five public ports project rows that still hold the mean of their class."""
    x, labels, planted = data.planted(shift=6.0)
    x = x + np.float32(50) * data.rotation(24)[0].astype(np.float32)
    _, scores = score(detect.SpectralSignatures(), x, labels)
    mine = labels == data.TARGET
    centred = x[mine] - x[mine].mean(axis=0)
    top = np.linalg.svd(centred, full_matrices=False)[2][0]
    assert data.auroc(scores.values[mine], planted[mine]) > 0.95
    # what a port without centring would say of the same rows: little but the mean
    uncentred = (x[mine] @ top) ** 2
    assert np.corrcoef(scores.values[mine], uncentred)[0, 1] < 0.9
    for c in range(5):  # a centred projection has mean square equal to its variance
        rows = x[labels == c].astype(np.float64)
        largest = np.linalg.eigvalsh(np.cov(rows.T, ddof=0))[-1]
        np.testing.assert_allclose(scores.values[labels == c].mean(), largest, rtol=1e-3)


def test_activation_clustering_finds_sklearns_clusters():
    x, labels, planted = data.planted()
    _, scores = score(detect.ActivationClustering(), x, labels)
    mine = labels == data.TARGET
    y = reference.principal_coordinates(x[mine].astype(np.float64), 10)
    found = KMeans(2, n_init=10, random_state=0).fit(y)
    small = found.labels_ == np.bincount(found.labels_).argmin()
    assert np.array_equal(scores.candidates[mine], small)
    assert np.array_equal(small, planted[mine])
    large, little = y[~small].mean(axis=0), y[small].mean(axis=0)
    margin = np.linalg.norm(y - large, axis=1) - np.linalg.norm(y - little, axis=1)
    margin /= np.linalg.norm(large - little)
    np.testing.assert_allclose(scores.values[mine], margin, atol=1e-3)
    np.testing.assert_allclose(scores.info.share[data.TARGET], small.mean(), rtol=1e-5)
    width = reference.silhouette(y, small).mean()
    np.testing.assert_allclose(scores.statistic[data.TARGET], width, rtol=1e-3)


def test_spectre_at_its_chosen_rung():
    """Whitening from a float64 trimmed fit, weights from scipy's matrix exponential."""
    x, labels, planted = data.planted(d=12)  # fewer features than directions: all are kept
    detector = detect.Spectre()
    _, scores = score(detector, x, labels)
    mine = labels == data.TARGET
    keep = scores.info.keep[data.TARGET]
    assert np.float32(keep) in np.float32(detector.ladder)
    y = reference.principal_coordinates(x[mine].astype(np.float64), 12)
    mean, cov, _ = reference.trimmed_gaussian(y, keep)
    values, vectors = np.linalg.eigh(cov)
    whitening = (vectors / np.sqrt(values)) @ vectors.T
    want, norm, weighted = reference.quantum_entropy(y, mean, whitening, detector.alpha)
    np.testing.assert_allclose(scores.values[mine], want, rtol=2e-3, atol=2e-3 * want.max())
    np.testing.assert_allclose(scores.info.norm[data.TARGET], norm, rtol=2e-3)
    # the null is subtracted: of N(0, I) classes, whose weighted second moment is near 1
    assert 0 < scores.statistic[data.TARGET] < np.log(weighted)
    assert data.auroc(scores.values[mine], planted[mine]) > 0.99


def test_robust_mahalanobis():
    x, labels, _ = data.planted(d=12)
    detector = detect.RobustMahalanobis()
    _, scores = score(detector, x, labels)
    for c in range(5):
        y = reference.principal_coordinates(x[labels == c].astype(np.float64), 12)
        *_, want = reference.trimmed_gaussian(y, detector.keep)
        # another sign of an axis may take a neighbouring row as median: a few rows differ
        assert np.corrcoef(scores.values[labels == c], want)[0, 1] > 0.99
    assert scores.statistic.argmax() == data.TARGET


@pytest.mark.parametrize("basis", ["contrast", "principal"])
def test_shared_mixture(basis):
    """All directions are kept, so the fit in either basis is that of the rows themselves."""
    x, labels, planted = data.planted(d=12)
    _, scores = score(detect.SharedMixture(basis=basis), x, labels)
    mine = labels == data.TARGET
    ratio, gain, separation, weight = reference.shared_mixture(
        x[mine].astype(np.float64), planted[mine] * 0.98 + 0.01
    )
    assert np.corrcoef(scores.values[mine], ratio)[0, 1] > 0.999
    np.testing.assert_allclose(scores.statistic[data.TARGET], separation, rtol=5e-3)
    np.testing.assert_allclose(scores.info.gain[data.TARGET], gain, rtol=5e-3)
    np.testing.assert_allclose(scores.info.weight[data.TARGET], weight, rtol=5e-3)
    assert np.array_equal(scores.candidates[mine], planted[mine])


def test_contrast_sees_a_trigger_of_little_variance():
    """A faint shift along a direction the other classes never vary in, under large honest ones."""
    rng = np.random.default_rng(0)
    n, d = 1500, 60
    labels = np.arange(n) % 5
    spread = np.where(np.arange(d) < 40, 6.0, 0.3)
    x = rng.normal(size=(n, d)) * spread
    planted = (labels == 2) & (np.arange(n) < 300)
    x[planted, 50] += 4.0
    x = x.astype(np.float32)
    _, contrast = score(detect.SharedMixture(basis="contrast"), x, labels)
    _, principal = score(detect.SharedMixture(basis="principal"), x, labels)
    mine = labels == 2
    assert data.auroc(contrast.values[mine], planted[mine]) > 0.99
    assert data.auroc(principal.values[mine], planted[mine]) < 0.9
    assert contrast.statistic.argmax() == 2


@pytest.mark.parametrize("basis", ["contrast", "principal"])
def test_sketched_coordinates_span_those_of_the_moments(monkeypatch, basis):
    """Where c d^2 is too large to hold, passes of thin products find the same directions."""
    from jaxpoison import folds

    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 30  # many classes: none is taken out of the background
    low = rng.normal(size=(2000, 4)) * [9, 7, 5, 4]
    x = (low @ data.rotation(40)[:4] + 0.5 * rng.normal(size=(2000, 40))).astype(np.float32)
    held = coordinates(data.stream_of(x, labels), basis, 4)
    monkeypatch.setattr(folds, "GRAM_FLOATS", 0)
    sketched = coordinates(data.stream_of(x, labels), basis, 4)
    if basis == "contrast":
        assert sketched.shape == held.shape  # its leading directions are noise here, all alike
        return
    for c in (0, 13):
        one, two = held[labels == c], sketched[labels == c]
        np.testing.assert_allclose(one @ one.T, two @ two.T, atol=2e-3 * (one**2).sum())


def test_too_many_directions():
    with pytest.raises(ValueError, match="rank is 21; at most 20"):
        coordinates(data.stream_of(*data.planted()[:2]), "principal", 21)


@pytest.mark.parametrize("sizes", [[1], [3, 3], [64, 65, 16], [1000, 5, 250, 249, 1], [40] * 7])
def test_classes_side_by_side(sizes):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    values = np.random.default_rng(1).normal(size=(len(labels), 2)).astype(np.float32)
    stream = data.stream_of(values, labels)
    for min_rows in (0, 1, 4, 50):
        groups = list(by_class(stream, values, min_rows))
        seen = np.concatenate([g.classes for g in groups]) if groups else np.zeros(0)
        assert sorted(seen) == [c for c, n in enumerate(sizes) if n >= max(min_rows, 1)]
        for group in groups:
            assert group.x.shape[:2] == group.rows.shape == group.mask.shape
            for c, rows, x, mask in zip(*group, strict=True):
                keep = mask > 0
                assert np.array_equal(rows[keep], np.flatnonzero(labels == c))
                assert np.array_equal(x[keep], values[labels == c]) and not x[~keep].any()


@pytest.mark.parametrize("basis", ["contrast", "principal"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_classes_of_equal_rows_have_no_directions(basis, value):
    labels = np.repeat([0, 1, 2], [50, 50, 1])
    x = (value + labels[:, None] * np.linspace(-1, 1, 5)).astype(np.float32)
    found = coordinates(data.stream_of(x, labels), basis, 4)
    assert np.isfinite(found).all()
    for c in range(3):
        assert np.ptp(found[labels == c], axis=0).max() < 1e-6


def test_even_subset():
    rows = np.arange(10)
    assert even_subset(rows, 4).tolist() == [0, 3, 6, 9]
    assert even_subset(rows, 5).tolist() == [0, 2, 4, 6, 8]
    for most in (10, 99):
        assert even_subset(rows, most).tolist() == rows.tolist()
    assert even_subset(rows[:0], 3).tolist() == []
