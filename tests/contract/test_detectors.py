"""One table of every detector, and the contracts that all of them keep."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import scipy.stats

import engine_data as data
from jaxpoison import detect
from jaxpoison._types import DETECTOR_NAMES
from jaxpoison.layout import Layout
from jaxpoison.scanning import evidence

KEY = jax.random.key(0)


class Row(NamedTuple):
    """A detector and what may be asked of it.

    Attributes:
        detector: The value.
        num_draws: Columns of its null.
        is_exact: Scores follow from a solved problem; else from an iteration with several optima,
            of which a class without structure may land in another after any rounding.
        is_smooth: So do they after a change larger than rounding (a discrete choice, such as
            the rung of a ladder, may fall otherwise in a class without structure).
        is_scale_free: Scores have no unit; else they go with the square of the features' unit.
        is_rotation_free: They do not depend on the axes of the features.
        may_be_majority: Its candidates may be most of a class.
    """

    detector: Any
    num_draws: int
    is_exact: bool
    is_smooth: bool
    is_scale_free: bool
    is_rotation_free: bool = True
    may_be_majority: bool = False


TABLE = {
    "spectral": Row(detect.SpectralSignatures(shares_bases=True), 0, True, True, False),
    "activation": Row(detect.ActivationClustering(), 0, False, False, True),
    "spectre": Row(detect.Spectre(), 16, True, False, True),
    "mahalanobis": Row(detect.RobustMahalanobis(), 16, True, True, True),
    "mixture-contrast": Row(detect.SharedMixture(basis="contrast"), 16, False, False, True),
    "mixture-principal": Row(detect.SharedMixture(basis="principal"), 16, False, False, True),
    "whitening": Row(detect.ContrastWhitening(), 16, False, False, True, may_be_majority=True),
    "clusters": Row(detect.DensityClusters(), 0, False, False, True),
    "split": Row(detect.VarianceDecomposition(), 0, False, False, True),
    "gram": Row(detect.GramPowers(), 0, True, True, True, is_rotation_free=False),
}
# what is planted here is one shifted group; what looks for something else keeps its contracts there
ELSEWHERE = {
    "AUM": "test_dynamics.py",
    "EL2N": "test_dynamics.py",
    "EarlyLoss": "test_dynamics.py",
    "LossDrop": "test_dynamics.py",
    "LowLossIsolation": "test_dynamics.py",
    "KNNDisagreement": "test_local_detectors.py",
    "LocalDensity": "test_local_detectors.py",
    "NearDuplicates": "test_local_detectors.py",
    "RobustPCA": "test_local_detectors.py",
    "LabelViews": "test_label_views.py",
    "Strip": "test_strip.py",
    "GradientDirection": "test_gradient_detectors.py",
    "GradientNorm": "test_gradient_detectors.py",
    "SelfInfluence": "test_gradient_detectors.py",
    "TargetInfluence": "test_target_influence.py",
    "KNNShapley": "test_shapley_detector.py",
    "ExclusionCheck": "test_exclusion.py",
}
every = pytest.mark.parametrize("name", TABLE)
X, LABELS, PLANTED = data.planted()
IN_TARGET = LABELS == data.TARGET


def run(name, x, labels=LABELS, key=KEY, num_classes=5):
    stream = data.stream_of(x, labels, num_classes=num_classes)
    return TABLE[name].detector.score(stream, key=key)


_FIRST: dict[str, Any] = {}


def first(name):
    """The scores of the planted table, computed once for all tests."""
    if name not in _FIRST:
        _FIRST[name] = run(name, X)
    return _FIRST[name]


def agree(is_everywhere, one, two, rank=0.999):
    """Whether two score vectors rank alike in every class, or just in the one with structure."""
    for c in range(5) if is_everywhere else [data.TARGET]:
        mine = c == LABELS
        assert scipy.stats.spearmanr(one[mine], two[mine])[0] > rank


def test_every_detector_keeps_its_contracts_somewhere():
    here = {type(row.detector).__name__ for row in TABLE.values()}
    assert not here & set(ELSEWHERE)
    assert here | set(ELSEWHERE) == {n for n in dir(detect) if n[0].isupper()}
    for name, file in ELSEWHERE.items():
        assert name in (Path(__file__).parents[1] / file).read_text(), f"{name} is not in {file}"


def test_a_scan_runs_every_detector_and_no_other():
    assert tuple(evidence.TABLE) == DETECTOR_NAMES
    made = {type(d).__name__ for entry in evidence.TABLE.values() for _, d in entry.detectors}
    assert made == {n for n in dir(detect) if n[0].isupper()} - {"ExclusionCheck"}
    scanned = [d for entry in evidence.TABLE.values() for _, d in entry.detectors]
    assert all(row.detector in scanned for row in TABLE.values())


@every
def test_shapes_and_values(name):
    scores, row = first(name), TABLE[name]
    assert scores.values.shape == (1500,) and scores.values.dtype == np.float32
    assert scores.statistic.shape == (5,) and scores.statistic.dtype == np.float64
    assert scores.null.shape == (5, row.num_draws) and np.isfinite(scores.null).all()
    assert np.isfinite(scores.values).all() and np.isfinite(scores.statistic).all()
    if scores.candidates is not None:
        assert scores.candidates.shape == (1500,) and scores.candidates.dtype == np.bool_
        share = np.bincount(LABELS[scores.candidates], minlength=5) / np.bincount(LABELS)
        assert (share <= 0.5).all() or row.may_be_majority  # the smaller part of each class
    assert isinstance(scores.info, tuple) and scores.info._fields


@every
def test_higher_is_more_suspicious(name):
    scores = first(name)
    assert data.auroc(scores.values[IN_TARGET], PLANTED[IN_TARGET]) > 0.95
    assert scores.statistic.argmax() == data.TARGET
    if scores.candidates is not None:
        assert (scores.candidates[IN_TARGET] == PLANTED[IN_TARGET]).mean() > 0.99
    if TABLE[name].num_draws:
        assert scores.statistic[data.TARGET] > scores.null[data.TARGET].max()


@every
def test_same_key_same_bits(name):
    again = run(name, X)
    assert np.array_equal(first(name).values, again.values)
    assert np.array_equal(first(name).statistic, again.statistic)
    assert np.array_equal(first(name).null, again.null)


@every
def test_another_key_leaves_the_ranking(name):
    # the null that spectre compares its rungs with is drawn: near ties fall otherwise
    rank = 0.9 if name == "spectre" else 0.999
    other = run(name, X, key=jax.random.key(7)).values
    agree(TABLE[name].is_smooth, first(name).values, other, rank)
    assert data.auroc(other[IN_TARGET], PLANTED[IN_TARGET]) > 0.95


@every
def test_scores_follow_their_rows(name):
    order = np.random.default_rng(1).permutation(1500)
    turned = run(name, X[order], LABELS[order])
    back = np.empty(1500)
    back[order] = turned.values
    agree(TABLE[name].is_exact, first(name).values, back)
    if TABLE[name].is_exact:
        # another order rounds sums differently (1e-6), which iterations may make larger
        scale = np.abs(first(name).values).max()
        np.testing.assert_allclose(back, first(name).values, rtol=1e-3, atol=1e-4 * scale)


@every
@pytest.mark.parametrize(("rows", "tile"), [(256, 8), (512, 32)])
def test_layout_of_blocks_leaves_the_scores(monkeypatch, name, rows, tile):
    tiles = -(-rows // tile) + 5
    monkeypatch.setattr(Layout, "of", classmethod(lambda cls, n, b, c: cls(rows, tile, tiles)))
    other = run(name, X).values
    agree(TABLE[name].is_exact, first(name).values, other)
    if TABLE[name].is_exact:  # partial sums of other rows: rounding of 1e-6, made larger by fits
        scale = np.abs(first(name).values).max()
        np.testing.assert_allclose(other, first(name).values, rtol=1e-3, atol=1e-4 * scale)


@every
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_of_input(name, dtype):
    values = run(name, X.astype(dtype)).values
    assert values.dtype == np.float32
    if dtype is np.float64:  # the same numbers: read as float32
        assert np.array_equal(values, first(name).values)
    else:  # 11 bits move each row by 1e-3 of its size
        agree(TABLE[name].is_smooth, first(name).values, values, rank=0.99)


@every
def test_shift_and_scale_leave_the_ranking(name):
    moved = run(name, (X * 64 + 300).astype(np.float32)).values  # 64: exact in float32
    agree(TABLE[name].is_exact, first(name).values, moved)
    if TABLE[name].is_exact:
        unit = 1.0 if TABLE[name].is_scale_free else 64.0**2
        top = first(name).values > np.quantile(first(name).values, 0.9)
        np.testing.assert_allclose(moved[top] / unit, first(name).values[top], rtol=5e-3)


@pytest.mark.parametrize("name", [n for n, row in TABLE.items() if row.is_rotation_free])
def test_rotation_leaves_the_ranking(name):
    turned = (X.astype(np.float64) @ data.rotation(24)).astype(np.float32)
    # the axes of a class have no sign; the lower median of a flipped axis is the upper one, and
    # the trimmed fit of a class without structure ends with a few other rows
    rank = 0.99 if name == "mahalanobis" else 0.999
    agree(TABLE[name].is_smooth, first(name).values, run(name, turned).values, rank)


@every
def test_names_of_classes_do_not_matter(name):
    """Classes in another order: a class is judged by its rows, not by its number."""
    number = np.array([3, 0, 4, 1, 2])
    scores = run(name, X, number[LABELS])
    assert scores.statistic.argmax() == number[data.TARGET]
    agree(TABLE[name].is_exact, first(name).values, scores.values)


@every
def test_small_classes_are_skipped(name):
    """Class 3 has too few rows and class 1 just one; neither scores, neither breaks the others."""
    need = TABLE[name].detector.min_rows
    keep = np.ones(1500, np.bool_)
    keep[np.flatnonzero(LABELS == 3)[need - 1 :]] = False
    keep[np.flatnonzero(LABELS == 1)[1:]] = False
    scores = run(name, X[keep], LABELS[keep])
    small = np.isin(LABELS[keep], [1, 3])
    assert not scores.values[small].any()
    assert np.isnan(scores.statistic[[1, 3]]).all() and np.isnan(scores.null[[1, 3]]).all()
    assert np.isfinite(scores.statistic[[0, 2, 4]]).all() and np.isfinite(scores.values).all()
    if scores.candidates is not None:
        assert not scores.candidates[small].any()
    target = LABELS[keep] == data.TARGET
    assert data.auroc(scores.values[target], PLANTED[keep][target]) > 0.95


@every
def test_all_classes_too_small(name):
    x, labels = X[:20], np.arange(20) % 5
    scores = run(name, x, labels)
    assert not scores.values.any() and np.isnan(scores.statistic).all()


@every
def test_rows_all_equal(name):
    """No class has any spread: nothing stands out, and nothing divides by zero."""
    scores = run(name, np.full((1500, 24), 3.5, np.float32))
    assert np.isfinite(scores.values).all()
    assert np.isfinite(scores.statistic).all()
    for c in range(5):
        assert np.ptp(scores.values[c == LABELS]) <= 1e-3


@every
def test_one_feature(name):
    scores = run(name, X[:, :1])
    assert np.isfinite(scores.values).all() and np.isfinite(scores.statistic).all()


@every
def test_constant_and_repeated_features(name):
    wide = np.concatenate([X, np.full((1500, 3), 9.0, np.float32), X[:, :4]], axis=1)
    scores = run(name, wide)
    assert np.isfinite(scores.values).all()
    assert data.auroc(scores.values[IN_TARGET], PLANTED[IN_TARGET]) > 0.95


@every
def test_second_run_compiles_nothing(name):
    run(name, X)
    before = data.num_compiled()
    x, labels, _ = data.planted(seed=5)
    run(name, x, labels, key=jax.random.key(3))
    assert data.num_compiled() == before


@pytest.mark.parametrize("name", [n for n in TABLE if n != "spectral"])
def test_any_min_rows(name):
    """A class far below the smallest padded size is scored when the caller wants it."""
    keep = np.ones(1500, np.bool_)
    keep[np.flatnonzero(LABELS == 3)[9:]] = False
    keep[np.flatnonzero(LABELS == 1)[1:]] = False
    detector = dataclasses.replace(TABLE[name].detector, min_rows=2)
    scores = detector.score(data.stream_of(X[keep], LABELS[keep]), key=KEY)
    assert np.isfinite(scores.values).all()
    assert np.isfinite(scores.statistic[3]) and np.isnan(scores.statistic[1])
    assert scores.values[LABELS[keep] == 3].any()
