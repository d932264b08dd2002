"""Contrast whitening: minorities, majorities and clean labels found; honest classes left alone."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
import scipy.stats

import engine_data as data
from jaxpoison import folds
from jaxpoison._check import UsageError
from jaxpoison.detect import contrast_whitening
from jaxpoison.detect.contrast_whitening import ContrastWhitening
from jaxpoison.layout import Layout

KEY = jax.random.key(0)
X, LABELS, PLANTED = data.planted()
IN_TARGET = LABELS == data.TARGET
LIMIT = 6.5  # of the statistic; what the tests hold apart, not a threshold of the library


def run(x, labels=LABELS, num_classes=5, detector=None, key=KEY, **options):
    detector = detector or ContrastWhitening()
    return detector.score(data.stream_of(x, labels, num_classes=num_classes, **options), key=key)


_FIRST = {}


def first():
    if not _FIRST:
        _FIRST["scores"] = run(X)
    return _FIRST["scores"]


def honest(seed=0, n=2000, d=30, c=5):
    """Classes of unlike covariances and skewed rows, but one kind each."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % c)
    mixing = rng.normal(size=(c, d, d)) / np.sqrt(d) * np.geomspace(3, 0.3, d)
    x = np.einsum("nij,nj->ni", mixing[labels], rng.exponential(size=(n, d)))
    return x + 2.0 * rng.normal(size=(c, d))[labels], labels, rng


def trigger(d, rng, size):
    """A shift along a few features: a direction that no class prefers."""
    out = np.zeros(d)
    out[rng.permutation(d)[:6]] = rng.choice([-1.0, 1.0], 6)
    return size * out


def reference(x, labels, c, ridge):
    """Unit whitened rows of class c along their leading direction, in float64."""
    rest = x - np.stack([x[labels == k].mean(axis=0) for k in np.unique(labels)])[labels]
    pool = rest[labels != c]
    pooled = pool.T @ pool / len(pool)
    floor = ridge * np.trace(rest.T @ rest / len(x)) / x.shape[1]
    values, axes = np.linalg.eigh(pooled + floor * np.eye(len(pooled)))
    u = rest[labels == c] @ (axes / np.sqrt(values))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    spectrum, vectors = np.linalg.eigh(np.cov(u.T, bias=True))
    return u @ vectors[:, -1], spectrum[-1] / spectrum[-2]


@pytest.mark.parametrize("c", [0, data.TARGET])
def test_projection_and_gap_follow_the_definition(c):
    stream = data.stream_of(X, LABELS, num_classes=5)
    detector = ContrastWhitening()
    detector.score(stream, key=KEY)
    view = contrast_whitening._view(stream, detector)
    want, gap = reference(X.astype(np.float64), LABELS, c, detector.ridge)
    got = view.rows[c == LABELS, 0]
    np.testing.assert_allclose(np.abs(got), np.abs(want), atol=5e-3)
    np.testing.assert_allclose(view.gap[c], gap, rtol=1e-3)


def test_shapes():
    scores = first()
    assert scores.values.shape == (1500,) and scores.values.dtype == np.float32
    assert scores.statistic.shape == (5,) and scores.statistic.dtype == np.float64
    assert scores.null.shape == (5, 16) and np.isfinite(scores.null).all()
    assert scores.candidates.dtype == np.bool_
    np.testing.assert_array_equal(scores.candidates, scores.values > 0)


def test_the_planted_group():
    scores = first()
    assert data.auroc(scores.values[IN_TARGET], PLANTED[IN_TARGET]) > 0.99
    assert (scores.candidates[IN_TARGET] == PLANTED[IN_TARGET]).mean() > 0.99
    others = np.delete(scores.statistic, data.TARGET)
    assert scores.statistic[data.TARGET] > LIMIT > others.max()
    assert scores.statistic[data.TARGET] > scores.null[data.TARGET].max()


@pytest.mark.parametrize("scaling", ["none", "unit"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.67])
@pytest.mark.parametrize("seed", [0, 1])
def test_clean_labels_at_any_share_of_the_class(scaling, share, seed):
    """Rows of the class itself carry the trigger; at half of it size says nothing."""
    x, labels, rng = honest(seed)
    mine = np.flatnonzero(labels == 3)
    poisoned = np.zeros(len(x), np.bool_)
    poisoned[rng.permutation(mine)[: round(share * len(mine))]] = True
    x[poisoned] += trigger(30, rng, 6.0)
    scores = run(x.astype(np.float32), labels, detector=ContrastWhitening(scaling=scaling))
    assert data.auroc(scores.values[mine], poisoned[mine]) > 0.99
    assert scores.statistic[3] > LIMIT and scores.statistic.argmax() == 3
    assert abs(scores.info.share[3] - share) < 0.03
    assert 0.6 < scores.info.spread_ratio[3] < 1.6  # rows of one class and a shift


@pytest.mark.parametrize("seed", [0, 1])
def test_a_majority_from_other_classes(seed):
    """Two thirds of a tail class are rows of other classes with a trigger."""
    x, labels, rng = honest(seed)
    keep = np.ones(len(x), np.bool_)
    keep[np.flatnonzero(labels == 1)[100:]] = False
    x, labels = x[keep], labels[keep]
    poisoned = np.zeros(len(x), np.bool_)
    poisoned[rng.permutation(np.flatnonzero(labels != 1))[:200]] = True
    x[poisoned] += trigger(30, rng, 6.0)
    labels[poisoned] = 1
    scores = run(x.astype(np.float32), labels)
    mine = labels == 1
    assert data.auroc(scores.values[mine], poisoned[mine]) > 0.98
    assert scores.candidates[mine].mean() > 0.5
    assert scores.statistic[1] > LIMIT and scores.statistic.argmax() == 1


@pytest.mark.parametrize("share", [0.33, 0.5, 0.67])
@pytest.mark.parametrize("seed", [0, 1])
def test_clean_labels_whose_rows_are_more_alike_than_the_honest_ones(seed, share):
    """Perturbed rows and copies have lost what made them various: the honest ones are no poison."""
    x, labels, rng = honest(seed)
    mine = np.flatnonzero(labels == 3)
    poisoned = np.zeros(len(x), np.bool_)
    poisoned[rng.permutation(mine)[: round(share * len(mine))]] = True
    centre = x[mine].mean(axis=0)
    x[poisoned] = centre + 0.3 * (x[poisoned] - centre) + trigger(30, rng, 20.0)
    scores = run(x.astype(np.float32), labels)
    assert data.auroc(scores.values[mine], poisoned[mine]) > 0.99
    assert (scores.candidates[mine] == poisoned[mine]).mean() > 0.99
    assert scores.info.spread_ratio[3] < 1 / contrast_whitening._UNLIKE


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_honest_classes_have_no_valley(seed):
    x, labels, _ = honest(seed)
    scores = run(x.astype(np.float32), labels)
    assert scores.statistic.max() < LIMIT
    gap = scores.info.gap
    assert (gap >= 1).all()


def test_null_of_small_classes_is_wider():
    """Few rows have a valley by chance: what is resampled has the size of the class."""
    x, labels, _ = honest(5, n=4000)
    keep = np.ones(len(x), np.bool_)
    keep[np.flatnonzero(labels == 1)[45:]] = False
    null = run(x[keep].astype(np.float32), labels[keep]).null
    assert null[1].mean() > 2 * null[[0, 2, 3, 4]].mean()


def test_null_leaves_poisoned_classes_out():
    """Poison in two classes of five: neither hides the other."""
    x, labels, rng = honest(2)
    for c in (0, 4):
        x[rng.permutation(np.flatnonzero(labels == c))[:150]] += trigger(30, rng, 6.0)
    scores = run(x.astype(np.float32), labels)
    for c in (0, 4):
        assert scores.statistic[c] > LIMIT > scores.null[c].max()


@pytest.mark.parametrize("change", ["order", "shift", "rotation", "layout", "names"])
def test_what_must_not_matter(monkeypatch, change):
    x, labels, back, number = X, LABELS, slice(None), np.arange(5)
    if change == "order":
        order = np.random.default_rng(1).permutation(1500)
        x, labels, back = X[order], LABELS[order], np.argsort(order)
    if change == "shift":
        x = (X * 64 + 300).astype(np.float32)
    if change == "rotation":
        x = (X.astype(np.float64) @ data.rotation(24)).astype(np.float32)
    if change == "layout":
        monkeypatch.setattr(Layout, "of", classmethod(lambda cls, n, b, c: cls(256, 8, 37)))
    if change == "names":
        number = np.array([3, 0, 4, 1, 2])
        labels = number[LABELS]
    again, target = run(x, labels), number[data.TARGET]
    assert again.statistic.argmax() == target
    np.testing.assert_allclose(
        again.info.separation[target], first().info.separation[data.TARGET], rtol=1e-2
    )
    values = again.values[back][IN_TARGET]
    assert scipy.stats.spearmanr(values, first().values[IN_TARGET])[0] > 0.999
    np.testing.assert_array_equal(again.candidates[back][IN_TARGET], first().candidates[IN_TARGET])


def test_same_key_same_bits_and_another_null_for_another():
    again, other = run(X), run(X, key=jax.random.key(9))
    for a, b in zip(first()[:4], again[:4], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first().values, other.values)
    assert not np.array_equal(first().null, other.null)


def test_small_and_empty_classes_are_skipped():
    keep = data.with_small_classes(LABELS)
    scores = run(X[keep], LABELS[keep])
    small = np.isin(LABELS[keep], [1, 3])
    assert not scores.values[small].any() and not scores.candidates[small].any()
    assert np.isnan(scores.statistic[[0, 1, 3]]).all() and np.isnan(scores.null[[0, 1, 3]]).all()
    assert np.isfinite(scores.statistic[[2, 4]]).all() and np.isfinite(scores.null[[2, 4]]).all()
    target = LABELS[keep] == data.TARGET
    assert data.auroc(scores.values[target], PLANTED[keep][target]) > 0.99
    tiny = run(X[:20], np.arange(20) % 5)
    assert not tiny.values.any() and np.isnan(tiny.statistic).all()
    few = run(X[:200], LABELS[:200], detector=ContrastWhitening(min_rows=2))
    assert np.isfinite(few.values).all() and np.isfinite(few.statistic).all()


@pytest.mark.parametrize("x", data.odd_features(X))
def test_odd_features(x):
    scores = run(x)
    assert np.isfinite(scores.values).all() and np.isfinite(scores.statistic).all()
    assert np.isfinite(scores.null).all()
    if x.shape[1] > 24:
        assert data.auroc(scores.values[IN_TARGET], PLANTED[IN_TARGET]) > 0.99


def test_one_class_alone_and_two():
    alone = run(X[IN_TARGET], np.zeros(IN_TARGET.sum(), int), 1)
    assert np.isfinite(alone.values).all() and np.isfinite(alone.null).all()
    two = IN_TARGET | (LABELS == 0)
    scores = run(X[two], (LABELS[two] == data.TARGET).astype(int), 2)
    assert data.auroc(scores.values[IN_TARGET[two]], PLANTED[IN_TARGET]) > 0.99


def test_moments_that_do_not_fit_are_taken_of_fewer_directions(monkeypatch):
    monkeypatch.setattr(folds, "GRAM_FLOATS", 5 * 22**2)
    scores = run(X)
    assert data.auroc(scores.values[IN_TARGET], PLANTED[IN_TARGET]) > 0.95
    assert scores.statistic.argmax() == data.TARGET


def test_many_classes_share_one_whitening():
    x, labels, planted = data.planted(n=3000, num_classes=30)
    scores = run(x, labels, 30)
    target = labels == data.TARGET
    assert data.auroc(scores.values[target], planted[target]) > 0.95
    assert scores.statistic.argmax() == data.TARGET


def test_second_run_compiles_nothing():
    run(X)
    before = data.num_compiled()
    x, labels, _ = data.planted(seed=5)
    run(x, labels, key=jax.random.key(3))
    assert data.num_compiled() == before


@pytest.mark.parametrize("change", [{"scaling": "log"}, {"ridge": 0.0}, {"ridge": float("nan")}])
def test_bad_settings(change):
    with pytest.raises(UsageError, match=r"scaling is .* and ridge"):
        run(X, detector=replace(ContrastWhitening(), **change))
