"""Scans from end to end: small real data, odd labels, and every kind of bad input."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

import jaxpoison
from jaxpoison import scan
from jaxpoison._check import DataError, NothingToScan, UsageError
from jaxpoison._types import DEFAULT_DETECTORS, DETECTOR_NAMES, Scores
from jaxpoison.detect import registry
from jaxpoison.report import Report, load_schema
from jaxpoison.scanning import Method, Resources, ScanPlan, forecast, run
from jaxpoison.scanning.trusted import trusted_rows
from jaxpoison.stream import Stream

_SPEC = importlib.util.spec_from_file_location(
    "engine_data", Path(__file__).with_name("engine_data.py")
)
data = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(data)

TARGET = 3
QUICK = {"detectors": ("mixture",)}
OF_TRAINING = ("early_loss", "el2n", "aum", "loss_drop", "low_loss")
UNTRAINED = [name for name in DEFAULT_DETECTORS if name not in OF_TRAINING]


def digits():
    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target.astype(np.int64)


def patched(seed=0, rate=0.05):
    """Digits of other classes under one label, with a bright 2 x 2 corner; and which they are."""
    x, y = digits()
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(y != TARGET))[: round(rate * len(y))]
    x[rows, :2, :2] = 16
    y[rows] = TARGET
    return x, y, rows


def flat(x):
    return x.reshape(len(x), -1).astype(np.float32)


def small(n=600, d=8, num_classes=3):
    """Feature rows that scan in a second."""
    x, y, _ = data.planted(n=n, d=d, num_classes=num_classes)
    return x, y.astype(np.int64)


def quick(x, y, **options):
    """A scan without training, of one detector."""
    return scan(x, y, **{"features": x, **QUICK, **options})


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


def check_found(report, rows):
    assert report.verdict == "poisoned"
    (attack,) = report.report["suspected_attacks"]
    assert attack["target_class"] == TARGET and attack["kind"] == "backdoor"
    assert attack["n"] == report.flagged.sum() and attack["evidence"]
    assert report.flagged[rows].mean() >= 0.9
    assert np.isin(report.flagged_indices(), rows).mean() >= 0.9
    is_planted = np.isin(np.arange(len(report.label)), rows)
    assert data.auroc(report.suspicion, is_planted) > 0.99


def check_consistent(report):
    """What must hold of any report."""
    doc, n = report.report, len(report.index)
    jsonschema.validate(doc, load_schema())
    json.loads(json.dumps(doc, allow_nan=False))
    columns = [report.label, report.suspicion, report.p, report.q, report.flagged]
    columns += [report.suspected_kind, report.suggested_label, *report.scores.values()]
    assert all(len(column) == n for column in columns)
    assert all(np.isfinite(c).all() for c in (*report.scores.values(), report.suspicion))
    assert (report.suggested_label[~report.flagged] == -1).all()
    assert set(report.suggested_label) <= {-1, *report.label}
    assert ((report.p > 0) & (report.p <= 1)).all() and ((report.q > 0) & (report.q <= 1)).all()
    assert doc["n_samples"] == n and doc["n_flagged"] == report.flagged.sum()
    assert ((report.suspected_kind != "") == report.flagged).all()
    if not doc["calibrated"]:  # else rows are flagged by their q-values too
        assert doc["n_flagged"] == sum(a["n"] for a in doc["suspected_attacks"])
    assert {name for name, run in doc["detectors"].items() if run["ran"]} == set(report.scores)
    assert all(run["reason"] for run in doc["detectors"].values())
    assert set(report.clean_indices()) | set(report.flagged_indices()) == set(report.index)
    assert 0 <= doc["p_poisoned"] <= 1 and 0 <= doc["estimated_rate"] <= 1
    if report.flagged.any() and not doc["calibrated"]:  # flagged rows lead the ranking
        assert report.suspicion[report.flagged].min() > report.suspicion[~report.flagged].max()


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


# Bad input

X, Y = small()


def broken(value, row=17, column=2):
    x = X.copy()
    x[row, column] = value
    return x


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
    (X, Y, {"trusted": "no/such.npy"}, DataError, ["no/such.npy", "check the path"]),
    (X, Y, {"trusted": "rows.json"}, UsageError, ["rows.json", ".npy, .txt, .csv"]),
    (X, Y, {"fdr": 0.0}, UsageError, ["fdr", "0.05"]),
    (X, Y, {"fdr": float("nan")}, UsageError, ["fdr"]),
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


# Detectors by name


def test_all_detectors():
    x, y = small()
    report = quick(x, y, detectors=["all"])
    assert list(report.report["detectors"]) == list(DETECTOR_NAMES)
    silent = {name for name, run in report.report["detectors"].items() if not run["ran"]}
    assert silent == {*OF_TRAINING, "strip"}  # which need a network
    assert "only features" in report.report["detectors"]["strip"]["reason"]
    assert report.report["plan"]["method"]["detectors"] == ["all"]
    check_consistent(report)


@pytest.mark.slow
def test_all_detectors_with_a_network():
    report = scan(*digits(), detectors=["all"])
    assert set(report.scores) == set(DETECTOR_NAMES)
    assert report.verdict == "clean"
    check_consistent(report)


def test_which_detectors_a_method_names():
    assert Method().names == DEFAULT_DETECTORS
    assert Method(detectors=("mixture", "spectral", "mixture")).names == ("spectral", "mixture")
    named = Method(detectors=("user:b", "all", "user:a", "user:b", "strip")).names
    assert named == (*DETECTOR_NAMES, "user:b", "user:a")


@dataclasses.dataclass(frozen=True)
class Mine:
    """A detector of another package: how large the first feature is."""

    min_rows: int = 5
    fault: str = ""

    def score(self, stream, *, key):
        if self.fault == "raises":
            raise RuntimeError("no licence")
        values = stream.take(np.arange(len(stream)))[:, 0].astype(np.float64)
        if self.fault == "nan":
            values[3] = np.nan
        loud = np.full(stream.num_classes, 1e9)
        return Scores(values, loud, np.zeros((len(loud), 0)), values > 0, ())


@pytest.fixture
def offered(monkeypatch):
    """Offers a detector under the name "mine"."""
    given = {"mine": Mine()}
    monkeypatch.setattr(registry, "load", lambda name: given[name])
    return given


def test_a_detector_of_another_package_ranks_rows(offered):
    x, y = small()
    report = quick(x, y, detectors=["mixture", "user:mine"])
    assert list(report.scores) == ["mixture", "user:mine"]
    assert report.report["detectors"]["user:mine"]["ran"]
    assert report.report["detectors"]["user:mine"]["reason"] == "looked at input"
    order = np.argsort(x[y == 1, 0])
    assert (np.diff(report.scores["user:mine"][y == 1][order]) >= 0).all()
    alone = quick(x, y)  # its statistic opens no gate
    assert np.array_equal(report.flagged, alone.flagged)
    assert report.report["suspected_attacks"] == alone.report["suspected_attacks"]
    check_consistent(report)


@pytest.mark.parametrize(
    ("fault", "words"),
    [("raises", ["user:mine", "RuntimeError: no licence"]), ("nan", ["user:mine", "values[3]"])],
)
def test_a_failing_detector_of_another_package_is_named(offered, fault, words):
    offered["mine"] = Mine(fault=fault)
    with pytest.raises(UsageError) as caught:
        quick(*small(), detectors=["user:mine"])
    assert all(word in str(caught.value) for word in words)


# Trusted rows


@pytest.fixture(scope="module")
def trusting():
    """Patched digits of which 600 honest rows are known."""
    x, y, rows = patched()
    honest = np.setdiff1d(np.arange(len(y)), rows)
    known = np.sort(np.random.default_rng(1).permutation(honest)[:600])
    return scan(x, y, features=flat(x), trusted=known, **QUICK), rows, known


def test_trusted_rows_make_conformal_p_values(trusting):
    report, rows, known = trusting
    doc = report.report
    assert doc["calibrated"] and doc["note"] == "p-values are conformal against 600 trusted rows"
    assert doc["verdict"] == "poisoned" and report.flagged[rows].mean() >= 0.9
    assert not report.flagged[known].any() and (report.q[known] == 1).all()
    least = 1 / (1 + np.bincount(report.label[known]))
    assert (report.p >= least[report.label]).all()
    assert report.p[rows].max() < 0.1
    assert doc["plan"]["trusted"] == "<array>" and "conformal" in doc["threshold"]["method"]
    check_consistent(report)
    x, y, _ = patched()
    without = scan(x, y, features=flat(x), **QUICK)
    assert np.array_equal(without.suspicion, report.suspicion)
    assert not without.report["calibrated"]


def test_rows_unlike_trusted_ones_are_flagged():
    """Scattered outliers are no attack pattern, but unlike anything that is trusted."""
    x, y = small(n=2400, num_classes=2)
    rng = np.random.default_rng(0)
    odd = rng.permutation(2400)[:120]
    x[odd] += 12 * np.sign(rng.normal(size=(120, x.shape[1])))
    known = np.zeros(2400, np.bool_)
    known[rng.permutation(np.setdiff1d(np.arange(2400), odd))[:1200]] = True
    report = quick(x, y, trusted=known, detectors=["density"], fdr=0.1)
    assert report.verdict == "suspicious"
    assert report.flagged[odd].mean() > 0.8
    assert (~np.isin(report.flagged_indices(), odd)).mean() <= 0.15
    assert set(report.suspected_kind[report.flagged]) == {"unusual"}
    check_consistent(report)


@pytest.mark.parametrize("kind", ["txt", "csv", "npy", "mask"])
def test_trusted_rows_of_a_file(trusting, tmp_path, kind):
    report, _, known = trusting
    path = tmp_path / ("rows.npy" if kind == "mask" else f"rows.{kind}")
    if path.suffix == ".npy":
        mask = np.isin(np.arange(len(report.label)), known)
        np.save(path, mask if kind == "mask" else known.astype(np.int32))
    else:
        path.write_text("\r\n".join(map(str, known)) + "\n\n", encoding="utf-8-sig")
    mask = trusted_rows(str(path), len(report.label))
    assert np.array_equal(np.flatnonzero(mask), known)


def test_a_plan_names_the_file_of_trusted_rows(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    (tmp_path / "rows.txt").write_text("\n".join(map(str, range(0, 600, 2))))
    plan = ScanPlan(
        data=str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"),
        features=str(tmp_path / "x.npy"), trusted=str(tmp_path / "rows.txt"),
        method=Method(detectors=("mixture",)),
    )  # fmt: skip
    report = run(plan)
    assert report.report["note"] == "p-values are conformal against 300 trusted rows"
    assert report.report["plan"]["trusted"] == plan.trusted
    assert forecast(plan) == forecast(dataclasses.replace(plan, trusted=None))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1\n2.0\n", ["line 2", "'2.0'"]), ("row\n1\n", ["line 1", "'row'"]),
        ("1,2,3\n", ["line 1", "one row number a line"]), ("-1\n", ["'-1'"]),
        ("9" * 30, ["line 1"]), ("", ["0 rows", "at least 20"]),
    ],
)  # fmt: skip
def test_bad_files_of_trusted_rows(tmp_path, text, words):
    path = tmp_path / "rows.txt"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        trusted_rows(path, 600)
    assert all(word in str(caught.value) for word in [*words, "rows.txt"])


def test_a_broken_npy_of_trusted_rows(tmp_path):
    path = tmp_path / "rows.npy"
    for content in (b"", b"no array", b"\x93NUMPY\x01\x00"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="can not be read"):
            trusted_rows(path, 600)


def test_trusted_rows_are_numbered_as_in_the_input():
    x = broken(np.nan, row=0)
    known = np.arange(0, 600, 2)
    report = quick(x, Y, features=X, drop_nonfinite=True, trusted=known)
    assert report.index[0] == 1 and (report.q[np.isin(report.index, known)] == 1).all()
    assert not report.flagged[np.isin(report.index, known)].any()
    assert report.report["note"] == "p-values are conformal against 299 trusted rows"
    few = np.arange(20)
    with pytest.raises(DataError, match="19 rows"):
        quick(x, Y, features=X, drop_nonfinite=True, trusted=few)


# Plans


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
