"""Trusted rows: conformal p-values, and the files that name them."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest

from jaxpoison import scan
from jaxpoison._check import DataError
from jaxpoison.scanning import Method, ScanPlan, forecast, run
from jaxpoison.scanning.trusted import trusted_rows
from scan_data import QUICK, X, Y, broken, check_consistent, flat, patched, quick, small


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
    saved = io.BytesIO()
    np.savez(saved, rows=np.arange(300))
    header = "{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000000,), }"
    huge = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    for content, words in (
        (b"", "npy signature"),
        (b"no array", "npy signature"),
        (b"\x93NUMPY\x01\x00", "truncated"),
        (saved.getvalue(), "npy signature"),
        (huge + bytes(64), "holds 64"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=words) as caught:
            trusted_rows(path, 600)
        assert "rows.npy" in str(caught.value) and "allow_pickle" not in str(caught.value)


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
