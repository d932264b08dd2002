"""The contracts of all detectors, for those that see single rows, copies or wrong labels.

What they look for differs, so each has planted data of its own kind.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import scipy.stats

import engine_data as data
from jaxpoison.detect.density import DensityClusters, LocalDensity
from jaxpoison.detect.duplicates import NearDuplicates
from jaxpoison.detect.gram_powers import GramPowers
from jaxpoison.detect.neighbours import KNNDisagreement
from jaxpoison.detect.robust_pca import RobustPCA
from jaxpoison.layout import Layout

KEY = jax.random.key(0)
ROWS, CLASSES, FEATURES = 800, 4, 24


class Row(NamedTuple):
    """A detector, what it looks for, and which changes of the features it does not see."""

    detector: Any
    kind: str
    is_shift_free: bool = True
    is_rotation_free: bool = True


TABLE = {
    "knn": Row(KNNDisagreement(), "flips"),
    "density": Row(LocalDensity(), "isolated"),
    "density-drawn": Row(LocalDensity(num_reference=2048, num_draws=2), "isolated"),
    "clusters": Row(DensityClusters(), "group"),
    "duplicates": Row(NearDuplicates(), "copies"),
    "gram": Row(GramPowers(), "isolated", is_rotation_free=False),
    "gram-map": Row(GramPowers(channels=6), "isolated", False, False),
    "robust-pca": Row(RobustPCA(), "isolated", is_rotation_free=False),
}
every = pytest.mark.parametrize("name", TABLE)


@cache
def planted(kind, seed=0):
    """Rows [n, d], labels [n] and which rows of the target were planted."""
    shift = 8.0 if kind == "group" else 0.0
    share = 0.1 if kind == "group" else 0.06
    x, labels, mask = data.planted(seed, ROWS, FEATURES, CLASSES, shift, share)
    rng = np.random.default_rng(seed + 100)
    rows = np.flatnonzero(mask)
    if kind == "flips":  # rows of other classes, each in its own place, take the target's label
        others = rng.permutation(np.flatnonzero(labels != data.TARGET))[: len(rows)]
        labels, mask = labels.copy(), np.zeros(ROWS, np.bool_)
        labels[others], mask[others] = data.TARGET, True
    if kind == "copies":
        few = rng.permutation(np.flatnonzero((labels == data.TARGET) & ~mask))[:1]
        x[rows] = x[np.resize(few, len(rows))] + 0.02 * rng.normal(size=(len(rows), FEATURES))
    if kind == "isolated":
        for row in rows:
            x[row, rng.permutation(FEATURES)[:3]] += 9.0 * rng.choice([-1.0, 1.0], 3)
    return x.astype(np.float32), labels, mask


def run(name, x, labels, key=KEY, num_classes=CLASSES):
    stream = data.stream_of(x, labels, num_classes=num_classes)
    return TABLE[name].detector.score(stream, key=key)


@cache
def first(name):
    x, labels, _ = planted(TABLE[name].kind)
    return run(name, x, labels)


def in_target(name):
    _, labels, mask = planted(TABLE[name].kind)
    return labels == data.TARGET, mask


def agree(name, values, rank=0.999):
    """Whether two score vectors rank the rows of every class alike."""
    _, labels, _ = planted(TABLE[name].kind)
    for c in range(CLASSES):
        one, two = first(name).values[labels == c], values[labels == c]
        # a score of 0 is shared by most rows of some detectors, and ties rank as one
        assert scipy.stats.spearmanr(one, two)[0] > rank


@every
def test_shapes_and_values(name):
    scores = first(name)
    assert scores.values.shape == (ROWS,) and scores.values.dtype == np.float32
    assert scores.statistic.shape == (CLASSES,) and scores.statistic.dtype == np.float64
    assert scores.null.shape == (CLASSES, 0)
    assert np.isfinite(scores.values).all() and np.isfinite(scores.statistic).all()
    if scores.candidates is not None:
        _, labels, _ = planted(TABLE[name].kind)
        assert scores.candidates.shape == (ROWS,) and scores.candidates.dtype == np.bool_
        share = np.bincount(labels[scores.candidates], minlength=CLASSES) / np.bincount(labels)
        assert (share <= 0.5).all()
    assert isinstance(scores.info, tuple) and scores.info._fields


@every
def test_higher_is_more_suspicious(name):
    scores, (mine, mask) = first(name), in_target(name)
    assert data.auroc(scores.values[mine], mask[mine]) > 0.95
    assert scores.statistic.argmax() == data.TARGET
    if scores.candidates is not None:
        assert (scores.candidates[mine] == mask[mine]).mean() > 0.98


@every
def test_same_key_same_bits(name):
    x, labels, _ = planted(TABLE[name].kind)
    again = run(name, x, labels)
    assert np.array_equal(first(name).values, again.values)
    assert np.array_equal(first(name).statistic, again.statistic)


@every
def test_scores_follow_their_rows(name):
    x, labels, _ = planted(TABLE[name].kind)
    order = np.random.default_rng(1).permutation(ROWS)
    turned = run(name, x[order], labels[order])
    back = np.empty(ROWS)
    back[order] = turned.values
    agree(name, back)
    np.testing.assert_allclose(turned.statistic, first(name).statistic, rtol=1e-3, atol=1e-3)


@every
@pytest.mark.parametrize(("rows", "tile"), [(256, 8), (512, 32)])
def test_layout_of_blocks_leaves_the_scores(monkeypatch, name, rows, tile):
    x, labels, _ = planted(TABLE[name].kind)
    tiles = -(-rows // tile) + CLASSES
    monkeypatch.setattr(Layout, "of", classmethod(lambda cls, n, b, c: cls(rows, tile, tiles)))
    values = run(name, x, labels).values
    scale = np.abs(first(name).values).max()
    np.testing.assert_allclose(values, first(name).values, rtol=1e-3, atol=1e-4 * scale)


@every
def test_scale_and_shift_leave_the_ranking(name):
    x, labels, _ = planted(TABLE[name].kind)
    shift = 300.0 if TABLE[name].is_shift_free else 0.0
    moved = run(name, (x * 64 + shift).astype(np.float32), labels).values  # 64: exact in float32
    agree(name, moved)
    top = first(name).values > np.quantile(first(name).values, 0.9)
    np.testing.assert_allclose(moved[top], first(name).values[top], rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("name", [n for n in TABLE if TABLE[n].is_rotation_free])
def test_rotation_leaves_the_ranking(name):
    x, labels, _ = planted(TABLE[name].kind)
    turned = (x.astype(np.float64) @ data.rotation(FEATURES)).astype(np.float32)
    agree(name, run(name, turned, labels).values)


@every
def test_names_of_classes_do_not_matter(name):
    x, labels, _ = planted(TABLE[name].kind)
    number = np.array([3, 0, 1, 2])
    scores = run(name, x, number[labels])
    assert scores.statistic.argmax() == number[data.TARGET]
    agree(name, scores.values)


@every
def test_small_and_empty_classes_are_skipped(name):
    """Class 3 has too few rows, class 1 one and class 4 none; the others are as they were."""
    x, labels, mask = planted(TABLE[name].kind)
    keep = np.ones(ROWS, np.bool_)
    keep[np.flatnonzero(labels == 3)[TABLE[name].detector.min_rows - 1 :]] = False
    keep[np.flatnonzero(labels == 1)[1:]] = False
    scores = run(name, x[keep], labels[keep], num_classes=5)
    small = np.isin(labels[keep], [1, 3])
    assert not scores.values[small].any() and np.isfinite(scores.values).all()
    assert np.isnan(scores.statistic[[1, 3, 4]]).all()
    assert np.isfinite(scores.statistic[[0, 2]]).all()
    if scores.candidates is not None:
        assert not scores.candidates[small].any()
    target = labels[keep] == data.TARGET
    seen = mask[keep][target]
    if name == "knn":  # flips from the classes that are gone have nobody to contradict them
        seen = seen & (scores.values[target] > 0.5)
        assert seen.any()
    assert data.auroc(scores.values[target], seen) > 0.9


@every
@pytest.mark.parametrize("rows", [5, 20])
def test_all_classes_too_small(name, rows):
    x, _, _ = planted("group")
    scores = run(name, x[:rows], np.arange(rows) % CLASSES)
    assert not scores.values.any() and np.isnan(scores.statistic).all()


@every
def test_rows_all_equal(name):
    _, labels, _ = planted("group")
    scores = run(name, np.full((ROWS, FEATURES), 3.5, np.float32), labels)
    assert np.isfinite(scores.values).all() and np.isfinite(scores.statistic).all()
    if name != "knn":  # whose neighbours are then any rows
        for c in range(CLASSES):
            assert np.ptp(scores.values[labels == c]) <= 1e-3
    if scores.candidates is not None:
        assert not scores.candidates.any()


@pytest.mark.parametrize("name", [n for n in TABLE if n != "gram-map"])
def test_one_feature(name):
    x, labels, _ = planted(TABLE[name].kind)
    scores = run(name, x[:, :1], labels)
    assert np.isfinite(scores.values).all() and np.isfinite(scores.statistic).all()


@every
def test_constant_and_repeated_features(name):
    x, labels, _ = planted(TABLE[name].kind)
    wide = np.concatenate([x, np.full((ROWS, 2), 9.0, np.float32), x[:, :4]], axis=1)
    scores, (mine, mask) = run(name, wide, labels), in_target(name)
    assert np.isfinite(scores.values).all()
    assert data.auroc(scores.values[mine], mask[mine]) > 0.9


@every
def test_second_run_compiles_nothing(name):
    x, labels, _ = planted(TABLE[name].kind)
    run(name, x, labels)
    before = data.num_compiled()
    x, labels, _ = planted(TABLE[name].kind, seed=5)
    run(name, x, labels, key=jax.random.key(3))
    assert data.num_compiled() == before


@every
def test_any_min_rows(name):
    x, labels, _ = planted(TABLE[name].kind)
    keep = np.ones(ROWS, np.bool_)
    keep[np.flatnonzero(labels == 3)[9:]] = False
    keep[np.flatnonzero(labels == 1)[1:]] = False
    detector = dataclasses.replace(TABLE[name].detector, min_rows=2)
    scores = detector.score(data.stream_of(x[keep], labels[keep], num_classes=CLASSES), key=KEY)
    assert np.isfinite(scores.values).all()
    assert np.isfinite(scores.statistic[3]) and np.isnan(scores.statistic[1])
    assert scores.values[labels[keep] == 3].any()
