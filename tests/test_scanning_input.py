"""Every kind of bad input, rows that are left out, and plans."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

import jaxpoison
from jaxpoison import scan
from jaxpoison._check import DataError, NothingToScan, UsageError
from jaxpoison.report import Report
from jaxpoison.scanning import Method, Resources, ScanPlan, forecast, run
from jaxpoison.stream import Stream
from scan_data import UNTRAINED, X, Y, broken, check_consistent, quick, small


@pytest.fixture(scope="module")
def rows_report():
    return quick(*small())


BAD = [  # x, y, options, error, words of the message
    (X, Y[:-1], {}, DataError, ["599", "600", "one label for each row"]),
    (X, Y.astype(float), {}, DataError, ["float64", "astype(np.int64)"]),
    (X, Y + 0.5, {}, DataError, ["class numbers"]),
    (X, np.where(np.arange(600) == 9, -1, Y), {}, DataError, ["row 9", "-1"]),
    (X, np.zeros(600, int), {}, DataError, ["one class", "[0]", "two"]),
    (X.astype(object), Y, {}, DataError, ["Python objects"]),
    (X, Y.astype(object), {}, DataError, ["row 0", "int"]),
    (X[:, 0], Y, {}, DataError, ["(600,)", "reshape"]),
    (X[:, :, None], Y, {}, DataError, ["(600, 8, 1)"]),
    (X, None, {}, DataError, ["no labels"]),
    (X[:0], Y[:0], {}, NothingToScan, ["no rows"]),
    (X[:6], np.arange(6) % 2, {}, NothingToScan, ["largest class has 3", "8"]),
    (broken(np.nan), Y, {}, DataError, ["row 17", "nan", "position 2", "drop_nonfinite"]),
    (broken(-np.inf), Y, {}, DataError, ["row 17", "inf"]),
    (broken(1e30), Y, {}, DataError, ["feature 2", "beyond float32", "divide"]),
    (X, Y, {"features": X[:-1]}, DataError, ["599", "600", "features"]),
    (X, Y, {"features": broken(np.nan)}, DataError, ["features", "row 17"]),
    (X, Y, {"features": np.zeros((600, 2, 2, 2, 2))}, DataError, ["features"]),
    (X, Y, {"detectors": ("magic",)}, UsageError, ["magic", "spectral"]),
    (X, Y, {"detectors": ()}, UsageError, ["empty"]),
    (X, Y, {"detectors": ("user:",)}, UsageError, ["'user:'", "user:NAME"]),
    (X, Y, {"detectors": ("user:nowhere",)}, UsageError, ["nowhere", "jaxpoison.detectors"]),
    (X, Y, {"trusted": [*range(30), 600]}, DataError, ["entry 30", "row 600", "0 to 599"]),
    (X, Y, {"trusted": [*range(30), -1]}, DataError, ["entry 30", "row -1"]),
    (X, Y, {"trusted": [*range(30), 4]}, DataError, ["row 4", "twice"]),
    (X, Y, {"trusted": np.arange(30.0)}, UsageError, ["float64", "integers"]),
    (X, Y, {"trusted": [[1], [2, 3]]}, UsageError, ["trusted", "integers"]),
    (X, Y, {"trusted": np.zeros((600, 1), bool)}, UsageError, ["(600, 1)"]),
    (X, Y, {"trusted": np.ones(599, bool)}, DataError, ["599", "600", "one bool for each row"]),
    (X, Y, {"trusted": []}, DataError, ["0 rows", "at least 20"]),
    (X, Y, {"trusted": range(19)}, DataError, ["19 rows", "at least 20"]),
    (X, Y, {"trusted": "no/such.npy"}, DataError, ["no/such.npy", "check the file"]),
    (X, Y, {"trusted": "rows.json"}, UsageError, ["rows.json", ".npy, .txt, .csv"]),
    (X, Y, {"fdr": 0.0}, UsageError, ["fdr", "0.05"]),
    (X, Y, {"fdr": float("nan")}, UsageError, ["fdr"]),
    (X, Y, {"fdr": "a"}, UsageError, ["fdr", "'a'"]),
    (X, Y, {"fdr": None}, UsageError, ["fdr"]),
    (X, Y, {"seed": 1.5}, UsageError, ["seed", "1.5"]),
    (X, Y, {"seed": None}, UsageError, ["seed"]),
    (X, Y, {"detectors": "spectral"}, UsageError, ["'spectral'", "a list"]),
    (X, Y, {"detectors": 5}, UsageError, ["detectors", "5"]),
    (X, Y, {"seed": -1}, UsageError, ["seed", "-1"]),
    (X, Y, {"budget_mb": 0}, UsageError, ["budget_mb"]),
    ("no/such/file.npz", None, {}, DataError, ["no/such/file.npz"]),
    ("sklearn:iris2", None, {}, UsageError, ["iris2"]),
    (None, Y, {}, UsageError, ["None"]),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input(case):
    x, y, options, kind, words = BAD[case]
    with pytest.raises(kind) as caught:
        scan(x, y, **options)
    for word in words:
        assert word in str(caught.value)


def test_rows_with_nan_can_be_left_out(rows_report):
    x = broken(np.nan, row=17)
    x[[3, 599], 0] = np.inf
    report = quick(x, Y, features=X, drop_nonfinite=True)
    gone = [3, 17, 599]
    assert np.array_equal(report.index, np.setdiff1d(np.arange(600), gone))
    assert np.array_equal(report.label, np.delete(Y, gone))
    assert report.report["n_dropped"] == 3 and report.report["n_samples"] == 597
    assert not set(gone) & (set(report.clean_indices()) | set(report.flagged_indices()))
    assert all(e.index not in gone for e in report.pictures.examples)
    check_consistent(report)


def test_nan_in_features_leaves_the_row_out():
    report = quick(X, Y, features=broken(np.nan, row=40), drop_nonfinite=True)
    assert 40 not in report.index and len(report.index) == 599


def test_rare_honest_values_of_a_plain_table_raise_no_alarm():
    """Pixels at the rim, each in a unit of its own, that a few digits of one class have."""
    x, y = load_digits(return_X_y=True)
    report = scan(x.astype(np.float32), y, features=x.astype(np.float32))
    assert report.verdict == "clean" and not report.flagged.any()


def test_small_classes_are_reported():
    y = Y.copy()
    y[:5], y[5:6] = 9, 11
    report = quick(X, y, detectors=None)
    skipped = {entry["label"]: entry for entry in report.report["skipped_classes"]}
    assert set(skipped) == {9, 11}
    assert skipped[9]["rows"] == 5 and skipped[11]["rows"] == 1
    assert all(name in skipped[9]["reason"] for name in UNTRAINED)
    assert not report.flagged[:6].any()
    check_consistent(report)


def test_a_plan_of_files_is_the_scan_of_their_arrays(rows_report, tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    plan = ScanPlan(
        data=str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"),
        features=str(tmp_path / "x.npy"), method=Method(detectors=("mixture",)),
    )  # fmt: skip
    report = run(plan)
    assert isinstance(report, Report)
    assert np.array_equal(report.suspicion, rows_report.suspicion)
    assert report.report["source"]["fingerprint"] == rows_report.report["source"]["fingerprint"]
    assert json.loads(json.dumps(report.report["plan"])) == json.loads(json.dumps(plan.as_dict()))


@pytest.mark.parametrize("name", ["sklearn:digits", "sklearn:wine"])
def test_forecast_reads_no_more_than_headers(monkeypatch, name):
    def never(self, *args):
        raise AssertionError("a pass over the data")

    monkeypatch.setattr(Stream, "fold", never)
    monkeypatch.setattr(Stream, "map", never)
    known = forecast(ScanPlan(data=name))
    assert known["rows"] == {"sklearn:digits": 1797, "sklearn:wine": 178}[name]
    assert known["passes"] >= 1 and known["device_bytes"] > 0 and known["seconds"] > 0
    json.dumps(known)
    tight = ScanPlan(data=name, resources=Resources(budget_mb=1))
    assert forecast(tight)["device_bytes"] <= known["device_bytes"]


def test_plans_are_values():
    plan = ScanPlan(data="sklearn:digits")
    assert plan == ScanPlan(data="sklearn:digits") and hash(plan)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.data = "other"
    assert jaxpoison.scan is scan
