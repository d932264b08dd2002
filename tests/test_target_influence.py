"""Influence on given predictions: against retraining, on planted triggers, and through a scan."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

import engine_data as data
from head_oracle import compared, left_out, minimum
from jaxpoison import scan
from jaxpoison._check import DataError, UsageError
from jaxpoison.detect import TargetInfluence, _head
from jaxpoison.detect._head import fit_head, mean_responsibility
from jaxpoison.detect.influence import Targets
from jaxpoison.scanning import Method, ScanPlan, evidence
from jaxpoison.scanning.spaces import Space
from jaxpoison.scanning.targets import read_targets
from jaxpoison.sources import open_source
from scan_data import TARGET, X, Y, check_consistent, digits, flat, patched, quick

KEY = jax.random.key(0)
ROWS = 300


@functools.cache
def retrained():
    """A head on digits, and what leaving single rows out does to the losses of five others."""
    x, y = digits()
    x, y = flat(x)[: ROWS + 5], y[: ROWS + 5]
    head = fit_head(x[:ROWS], y[:ROWS], 10)
    rows = head.rows.astype(np.float64)
    targets = head.of(x[ROWS:]).astype(np.float64)
    y, own = y[:ROWS], y[ROWS:]
    weights = minimum(rows, y, ROWS, head.weights.astype(np.float64), head.damping)
    removed = np.arange(0, ROWS, 15)
    changes, alone = left_out(removed, rows, y, weights, head.damping, targets, own)
    return head, x[ROWS:], own, removed, changes, alone


def test_scores_predict_leaving_a_row_out():
    head, asked, own, rows, exact, alone = retrained()
    found = mean_responsibility(head, head.of(asked), own)
    assert found.form == "leave-one-out" and found.residual < 1e-3
    pearson, slope = compared(found.scores[rows], exact.mean(axis=1))
    assert pearson >= 0.99 and abs(slope - 1) <= 0.1
    for k in range(2):
        one = mean_responsibility(head, head.of(asked[k : k + 1]), own[k : k + 1])
        assert compared(one.scores[rows], exact[:, k])[0] >= 0.97
    assert compared(head.own[rows], alone)[0] >= 0.99


@pytest.mark.parametrize(
    ("limit", "value", "form", "least"),
    [
        ("_MAX_SOLVES", 1, "leave-one-out", 0.95),  # one solve for the mean of all targets
        ("MAX_CORRECTED", 1, "influence", 0.95),
        ("MAX_SOLVED", 1, "gradients", 0.3),
    ],
)
def test_larger_problems_take_cheaper_forms(monkeypatch, limit, value, form, least):
    _, asked, own, rows, exact, _ = retrained()
    monkeypatch.setattr(_head, limit, value)
    if limit == "MAX_SOLVED":
        monkeypatch.setattr(_head, "MAX_CORRECTED", 0)
    x, y = digits()
    head = fit_head(flat(x)[:ROWS], y[:ROWS], 10)
    found = mean_responsibility(head, head.of(asked), own)
    assert found.form == form and np.isfinite(found.scores).all()
    assert compared(found.scores[rows], exact.mean(axis=1))[0] >= least


@functools.cache
def triggered():
    """Patched digits as rows, what was planted, and twenty triggered digits of other classes."""
    x, y, rows = patched()
    clean, labels = digits()
    asked = clean[labels != TARGET][:400:20].copy()
    asked[:, :2, :2] = 16
    return flat(x), y, np.isin(np.arange(len(y)), rows), flat(asked)


def score(x, y, asked, labels):
    stream = data.stream_of(x, y)
    targets = Targets(np.asarray(asked, np.float32), np.asarray(labels, np.int32))
    return TargetInfluence().score(stream, key=KEY, targets=targets)


def test_planted_rows_are_responsible_for_triggered_predictions():
    x, y, planted, asked = triggered()
    scores = score(x, y, asked, np.full(len(asked), TARGET))
    assert data.auroc(scores.values, planted) > 0.95
    assert planted[np.argsort(-scores.values)[:15]].mean() >= 0.8
    assert scores.values.dtype == np.float32 and scores.values.shape == y.shape
    assert np.nanargmax(scores.statistic) == TARGET and np.isfinite(scores.statistic).all()
    assert scores.null.shape == (10, 0) and scores.candidates is None
    assert scores.info.form == "leave-one-out" and scores.info.num_targets == 20
    # at the label of the target, removing rows of the target raises the loss; at another it falls
    other = score(x, y, asked, np.full(len(asked), 7))
    assert np.corrcoef(scores.values[planted], other.values[planted])[0, 1] < 0


def test_scores_follow_their_rows():
    x, y, _, asked = triggered()
    x, y = x[:400], y[:400]
    labels = np.full(len(asked), TARGET)
    order = np.random.default_rng(1).permutation(400)
    one, two = score(x, y, asked, labels), score(x[order], y[order], asked[::-1], labels)
    largest = np.abs(one.values).max()
    # the linear systems are solved to 1e-4 of their right-hand sides
    np.testing.assert_allclose(two.values, one.values[order], rtol=1e-3, atol=1e-3 * largest)
    again = score(x, y, asked, labels)
    assert np.array_equal(again.values, one.values)
    moved = score((x * 64 + 300).astype(np.float32), y, asked * 64 + 300, labels)
    np.testing.assert_allclose(moved.values, one.values, rtol=1e-2, atol=1e-3 * largest)


def test_degenerate_rows():
    y = np.arange(60) % 3
    equal = score(np.full((60, 4), 3.5), y, np.full((2, 4), 3.5), [0, 1])
    assert np.isfinite(equal.values).all() and np.isfinite(equal.statistic).all()
    stream = data.stream_of(np.eye(60, 4, dtype=np.float32), y, num_classes=5)
    targets = Targets(np.ones((1, 4), np.float32), np.zeros(1, np.int32))
    empty = TargetInfluence(min_rows=2).score(stream, key=KEY, targets=targets)
    assert np.isnan(empty.statistic[3:]).all() and np.isfinite(empty.values).all()


@pytest.mark.parametrize(
    ("features", "labels", "words"),
    [
        (np.ones((2, 5)), [0, 1], "5 features, the rows have 4"),
        (np.ones(4), [0], "shape"),
        (np.ones((0, 4)), [], "at least 1"),
        (np.ones((2, 4)), [0], "labels of shape"),
        (np.full((2, 4), np.nan), [0, 1], "row 0 are not finite"),
        (np.ones((2, 4)), [0, 3], "from 0 to 3"),
        (np.ones((2, 4)), [-1, 0], "from -1"),
        (np.ones((2, 4)), [0.0, 1.0], "float64"),
    ],
)
def test_bad_targets_of_a_detector(features, labels, words):
    stream = data.stream_of(np.eye(30, 4, dtype=np.float32), np.arange(30) % 3)
    with pytest.raises(UsageError, match=words):
        targets = Targets(np.asarray(features, np.float32), np.asarray(labels))
        TargetInfluence().score(stream, key=KEY, targets=targets)


def test_features_that_are_not_finite_are_named():
    x = X.copy()
    x[7, 1] = np.inf
    with pytest.raises(DataError, match="row 7"):
        fit_head(x, Y, 3)


def test_a_scan_with_targets(tmp_path):
    x, y, planted, asked = triggered()
    np.savez(tmp_path / "targets.npz", x=asked, y=np.full(len(asked), TARGET))
    report = quick(x, y, target=tmp_path / "targets.npz", detectors=["spectral"])
    assert list(report.scores) == ["spectral", "influence"]
    assert data.auroc(report.scores["influence"], planted) > 0.95
    assert report.report["detectors"]["influence"]["reason"] == "looked at features"
    assert report.report["plan"]["target"].endswith("targets.npz")
    check_consistent(report)
    # it explains predictions; whether there is poison is not its business
    without = quick(x, y, detectors=["spectral"])
    assert np.array_equal(report.suspicion, without.suspicion)
    assert report.report["suspected_attacks"] == without.report["suspected_attacks"]
    pair = quick(x, y, target=(asked, np.full(len(asked), TARGET)), detectors=["influence"])
    assert np.array_equal(pair.scores["influence"], report.scores["influence"])
    check_consistent(pair)  # with nothing that ranks, no row is suspicious
    assert not pair.suspicion.any() and pair.verdict == "clean"


@pytest.mark.slow
def test_a_scan_that_trains_a_network():
    x, y, rows = patched()
    clean, labels = digits()
    asked = clean[labels != TARGET][:400:20].copy()
    asked[:, :2, :2] = 16
    target = {"x": asked, "y": np.full(len(asked), TARGET)}
    report = scan(x, y, target=target, detectors=["influence"])
    assert report.report["detectors"]["influence"]["reason"] == "looked at layer2"
    assert data.auroc(report.scores["influence"], np.isin(np.arange(len(y)), rows)) > 0.95


def test_when_it_runs():
    given = {"data": "x.npz", "target": "t.npz"}
    assert "influence" not in Method().names and "influence" not in ScanPlan("x.npz").names
    assert "influence" in ScanPlan(**given).names
    assert ScanPlan(**given, method=Method(("spectral",))).names == ("spectral", "influence")
    assert ScanPlan(**given, method=Method(("influence",))).names == ("influence",)
    with pytest.raises(UsageError, match="'influence' needs --target"):
        ScanPlan("x.npz", method=Method(("influence",)))
    with pytest.raises(UsageError, match="'influence' needs --target"):
        quick(X, Y, detectors=["influence"])


def test_it_is_skipped_without_targets():
    stream = data.stream_of(X, Y)
    space = Space("input", stream, False)
    jobs, reasons = evidence.jobs_of([space], stream, None, ("influence", "shapley"), {})
    assert not jobs
    assert reasons == {
        "influence": "--target was not given", "shapley": "--trusted was not given",
    }  # fmt: skip


GOOD = {"x": X[:3], "y": Y[:3]}


def missing(name):
    return {k: v for k, v in GOOD.items() if k != name}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (missing("y"), ["no member 'y'", "it holds 'x'", "np.savez"]),
        (missing("x"), ["no member 'x'", "np.savez"]),
        ({**GOOD, "x": X[:3, :5]}, ["shape (5,)", "shape (8,)", "as the data"]),
        ({**GOOD, "x": np.zeros((3, 4, 4), np.uint8)}, ["images of shape (4, 4)", "rows"]),
        ({**GOOD, "y": np.array([0, 1, 9])}, ["row 2 is 9", "0, 1, 2"]),
        ({**GOOD, "y": np.array([0, 1, -2])}, ["row 2 is -2"]),
        ({**GOOD, "y": np.array([0.5, 1, 2])}, ["label of row 0 is 0.5"]),
        ({**GOOD, "y": Y[:2]}, ["2 labels for 3 rows"]),
        ({**GOOD, "x": np.full((3, 8), np.nan)}, ["row 0 of x", "NaN"]),
        ({"x": X[:0], "y": Y[:0]}, ["at least one"]),
    ],
)
def test_bad_files_of_targets(tmp_path, content, words):
    path = tmp_path / "targets.npz"
    np.savez(path, **content)
    with pytest.raises(DataError) as caught:
        quick(X, Y, target=str(path))
    assert all(word in str(caught.value) for word in [*words, "targets.npz"])
    if "y" in content and len(content) == 2 and len(content["x"]):
        with pytest.raises(DataError, match="target"):
            quick(X, Y, target=content)


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("targets.npy", b"x", UsageError, "ends in .npz"),
        ("targets.npz", b"no archive", DataError, "targets.npz"),
        ("targets.npz", b"", DataError, "targets.npz"),
        ("targets.npz", None, DataError, "no such file"),
    ],
)
def test_files_that_are_no_targets(tmp_path, name, content, kind, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=words):
        quick(X, Y, target=path)


@pytest.mark.parametrize("given", [3, (X[:2],), {"x": X[:2]}, (X, Y, Y)])
def test_objects_that_are_no_targets(given):
    with pytest.raises(UsageError, match="x and y"):
        quick(X, Y, target=given)


def test_labels_as_text():
    names = np.array(["cat", "dog", "eel"])[Y]
    numbers = quick(X, Y, target=(X[:4], Y[:4]), detectors=["influence"])
    texts = quick(X, names, target=(X[:4], names[:4]), detectors=["influence"])
    assert np.array_equal(texts.scores["influence"], numbers.scores["influence"])
    with pytest.raises(DataError, match="'cow' is unknown"):
        quick(X, names, target=(X[:1], ["cow"]))


def test_texts_are_numbered_as_the_data_numbers_them(tmp_path):
    """A few rows hold a few of the names: their own order would be another one."""
    data, path = open_source(X, np.array(["cat", "dog", "eel"])[Y]), tmp_path / "t.npz"
    np.savez(path, x=X[:2], y=np.array(["eel", "dog"]))
    names = data.schema.class_names
    for given in (path, (X[:2], ["eel", "dog"]), (X[:2], np.array(["eel", "dog"], object))):
        assert read_targets(given, data, np.arange(3), names).labels.tolist() == [2, 1]
        with pytest.raises(DataError, match="labels of the data are numbers"):
            read_targets(given, open_source(X, Y), np.arange(3))
    np.savez(path, x=X[:2], y=np.array(["eel", "cow"]))
    with pytest.raises(DataError, match="'cow' is unknown"):
        read_targets(path, data, np.arange(3), names)


def test_labels_need_not_be_dense():
    sparse = np.array([3, 10, 40])[Y]
    one = quick(X, sparse, target=(X[:4], sparse[:4]), detectors=["influence"])
    two = quick(X, Y, target=(X[:4], Y[:4]), detectors=["influence"])
    assert np.array_equal(one.scores["influence"], two.scores["influence"])
