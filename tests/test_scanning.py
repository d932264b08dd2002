"""Scans from end to end: small real data, odd labels, and what their reports hold."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest

import engine_data as data
from jaxpoison import scan
from jaxpoison._types import DEFAULT_DETECTORS
from jaxpoison.report import load_schema
from scan_data import (
    OF_TRAINING,
    QUICK,
    TARGET,
    UNTRAINED,
    check_consistent,
    check_found,
    digits,
    flat,
    patched,
    quick,
    small,
)


@pytest.fixture(scope="module")
def poisoned():
    """Images with a network trained on them: everything a scan does."""
    x, y, rows = patched()
    return scan(x, y), rows


@pytest.fixture(scope="module")
def featured():
    """The same images with features given: no training."""
    x, y, rows = patched()
    stages = []
    report = scan(x, y, features=flat(x), progress=lambda *said: stages.append(said))
    return report, rows, stages


@pytest.fixture(scope="module")
def rows_report():
    return quick(*small())


@pytest.mark.slow
def test_patched_digits_with_a_trained_network(poisoned):
    report, rows = poisoned
    check_found(report, rows)
    check_consistent(report)
    assert report.report["timing"]["train"] > 0
    assert set(report.scores) == set(DEFAULT_DETECTORS)
    spaces = report.report["detectors"]["mixture"]["reason"]
    assert all(name in spaces for name in ("input", "layer1", "layer2"))


@pytest.mark.slow
def test_clean_digits_are_clean():
    report = scan(*digits())
    assert report.verdict == "clean" and not report.flagged.any()
    assert report.report["suspected_attacks"] == [] and report.report["p_poisoned"] == 0
    check_consistent(report)


@pytest.mark.slow
def test_a_scan_of_images_repeats_itself(poisoned):
    x, y, _ = patched()
    again = scan(x, y)
    assert np.array_equal(poisoned[0].suspicion, again.suspicion)
    assert np.array_equal(poisoned[0].flagged, again.flagged)


def test_patched_digits(featured):
    report, rows, _ = featured
    check_found(report, rows)
    check_consistent(report)
    assert set(report.scores) == set(UNTRAINED)
    for name in OF_TRAINING:
        assert "no network was trained" in report.report["detectors"][name]["reason"]
    assert report.report["timing"]["train"] == 0  # the features were given
    assert report.report["plan"]["features"] == "<array>"
    assert "layer" not in json.dumps(report.report["detectors"])


def test_clean_digits():
    x, y = digits()
    report = scan(x, y, features=flat(x))
    assert report.verdict == "clean" and not report.flagged.any()
    check_consistent(report)


def test_pictures_show_the_suspected_class(featured):
    report, _, _ = featured
    (picture,) = report.pictures.suspected
    assert picture.label == TARGET and picture.num_flagged == report.flagged.sum()
    assert picture.points.shape == (picture.num_rows, 2) and np.isfinite(picture.points).all()
    assert len(report.pictures.others) == 9
    assert sum(p.num_rows for p in (picture, *report.pictures.others)) == len(report.index)
    images = [e for e in report.pictures.examples if e.flagged]
    assert images and all(e.image.shape == (8, 8) and e.image.dtype == np.uint8 for e in images)
    _, y, _ = patched()
    for example in report.pictures.examples:
        assert example.label == y[example.index]
        assert example.flagged == report.flagged[example.index]
    along = picture.points[:, 0]  # the flagged rows lie apart along the first axis
    assert data.auroc(along, picture.point_flagged) > 0.95


def test_progress(featured):
    _, _, said = featured
    assert {stage for stage, _, _ in said} >= {"read", "score", "verify"}
    assert all(0 <= done <= total and total > 0 for _, done, total in said)
    for name in ("read", "score", "verify"):
        done = [d / t for stage, d, t in said if stage == name]
        assert done == sorted(done) and done[-1] == 1.0


def test_files_of_a_real_report(featured, tmp_path):
    report, _, _ = featured
    out = report.write(tmp_path / "run")
    doc = json.loads((out / "report.json").read_text())
    jsonschema.validate(doc, load_schema())
    assert doc == json.loads(json.dumps(report.report))
    table = pq.read_table(out / "scores.parquet")
    np.testing.assert_array_equal(table["flagged"].to_numpy(), report.flagged)
    np.testing.assert_array_equal(np.load(out / "clean_index.npy"), report.clean_indices())
    assert "class 3" in (out / "report.html").read_text()
    assert "POISONED" in report.summary()


def test_same_seed_same_arrays(rows_report):
    again = quick(*small())
    assert np.array_equal(rows_report.suspicion, again.suspicion)
    assert np.array_equal(rows_report.scores["mixture"], again.scores["mixture"])
    check_consistent(again)


def test_memory_budget_changes_no_bit(rows_report):
    x, y = small()
    tight = quick(x, y, budget_mb=1)
    assert np.array_equal(rows_report.suspicion, tight.suspicion)


def test_one_detector():
    x, y = small()
    report = quick(x, y, detectors=["spectral"])
    assert list(report.scores) == ["spectral"]
    for name, entry in report.report["detectors"].items():
        assert entry["ran"] == (name == "spectral")
        assert (entry["reason"] == "not asked for") == (name != "spectral")
    check_consistent(report)


def test_a_detector_left_out_changes_no_other(featured):
    x, y, _ = patched()
    alone = scan(x, y, features=flat(x), detectors=("mahalanobis",))
    assert np.array_equal(alone.scores["mahalanobis"], featured[0].scores["mahalanobis"])


def test_sparse_labels_map_back(featured):
    x, y, rows = patched()
    number = np.array([70, 10**9, 3, 2**40, 8, 9, 10, 11, 12, 13])
    report = scan(x, number[y], features=flat(x))
    assert np.array_equal(report.label, number[y])
    assert report.report["suspected_attacks"][0]["target_class"] == number[TARGET]
    assert {p.label for p in report.pictures.others} == set(number.tolist()) - {2**40}
    assert report.flagged[rows].mean() >= 0.9 and report.report["n_classes"] == 10
    check_consistent(report)


def test_hostile_class_names(tmp_path):
    x, y, _ = patched()
    names = np.array([f"<script>alert({c})</script>" for c in range(10)])
    report = scan(x, names[y], features=flat(x), **QUICK)
    assert report.report["suspected_attacks"][0]["target_name"] == "<script>alert(3)</script>"
    out = report.write(tmp_path / "run")
    for text in ((out / "report.html").read_text(), report._repr_html_()):
        assert "<script>alert" not in text and "&lt;script&gt;alert(3)" in text
    assert json.loads((out / "report.json").read_text())["suspected_attacks"]


@pytest.mark.parametrize("others", [0, 1, 2, 3])
def test_a_class_that_is_nearly_all_flagged_has_a_picture(monkeypatch, others):
    """A flood of copies may leave one honest row in a class: it has no spread of its own."""
    from types import SimpleNamespace

    from jaxpoison.scanning import assemble

    rows = np.arange(40)
    flagged = np.ones(40, bool)
    flagged[:others] = False
    seen = np.random.default_rng(0).normal(size=(40, 5))
    monkeypatch.setattr(assemble, "seen_in", lambda spaces, each: seen)
    out = SimpleNamespace(spaces=[], verdict=SimpleNamespace(flagged=flagged))
    points = assemble._projection(out, None, rows, 0)
    assert points.shape == (40, 2) and np.isfinite(points).all()
