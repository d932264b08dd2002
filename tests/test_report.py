"""The report's files: complete or absent, and what report.json must look like."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest

import report_sample as sample
from jaxpoison._check import JaxpoisonError, UsageError
from jaxpoison.report import FILE_NAMES, OutputError, check_out_dir, files, load_schema

make_report = sample.make_report


def test_files_hold_what_the_report_holds(tmp_path):
    report = make_report()
    out = report.write(tmp_path / "deep" / "run")
    assert sorted(os.listdir(out)) == sorted(FILE_NAMES)
    table = pq.read_table(out / "scores.parquet")
    assert table.column_names == [
        "index", "label", *sample.DETECTORS, "suspicion", "p", "q", "flagged", "suspected_kind",
        "suggested_label",
    ]  # fmt: skip
    assert all(column.null_count == 0 for column in table.columns)
    assert all(not field.nullable for field in table.schema)
    types = [str(field.type) for field in table.schema]
    assert types == [*["int64"] * 2, *["float"] * 2, *["double"] * 3, "bool", "string", "int64"]
    np.testing.assert_array_equal(table["index"].to_numpy(), report.index)
    np.testing.assert_array_equal(table["suspicion"].to_numpy(), report.suspicion)
    np.testing.assert_array_equal(table["mixture"].to_numpy(), report.scores["mixture"])
    np.testing.assert_array_equal(table["suggested_label"].to_numpy(), report.suggested_label)
    assert table["suspected_kind"].to_pylist() == report.suspected_kind.tolist()
    clean, flagged = (np.load(out / f"{k}_index.npy") for k in ("clean", "flagged"))
    assert clean.dtype == flagged.dtype == np.int64
    np.testing.assert_array_equal(np.sort(np.r_[clean, flagged]), report.index)
    np.testing.assert_array_equal(flagged, report.index[report.flagged])
    assert json.loads((out / "report.json").read_text()) == report.report


def test_equal_reports_give_equal_bytes(tmp_path):
    one, two = (make_report().write(tmp_path / k) for k in "ab")
    for name in FILE_NAMES:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_json_takes_numpy_scalars_and_refuses_nan():
    assert json.loads(files.to_json({"a": np.int64(3), "b": np.bool_(True)})) == {"a": 3, "b": True}
    with pytest.raises(ValueError):
        files.to_json({"a": float("nan")})
    assert files.to_json({"a": "\u202e\x1b"}).isascii()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"suspicion": np.full(300, np.nan)}, "suspicion"),
        ({"p": np.zeros(299)}, "p must have shape"),
        ({"scores": {"label": np.zeros(300)}}, "label"),
    ],
)
def test_columns_that_would_be_wrong_are_refused_before_writing(tmp_path, change, named):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(make_report(), **change).write(tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_out_dir_rules(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "report.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "else")
    for bad, words in (("file", "not a folder"), ("full", "choose another folder or remove it"),
                       ("file/below", "not a folder")):  # fmt: skip
        for call in (check_out_dir, make_report().write):
            with pytest.raises(UsageError, match=words) as caught:
                call(tmp_path / bad)
            assert str(tmp_path) in str(caught.value)
    with pytest.raises(UsageError):
        check_out_dir("")
    before = sorted(os.listdir(tmp_path))
    check_out_dir(tmp_path / "new" / "deep")
    check_out_dir(tmp_path / "link")
    assert sorted(os.listdir(tmp_path)) == before, "a check must change nothing"
    assert (tmp_path / "full" / "report.json").read_text() == "{}"


def test_a_folder_without_permission_is_refused_before_the_scan(tmp_path, monkeypatch):
    # The tests may run as root, who may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="no permission") as caught:
        check_out_dir(tmp_path / "run")
    assert str(tmp_path) in str(caught.value)


def test_an_empty_folder_is_filled_in_place(tmp_path):
    out = tmp_path / "mounted"
    out.mkdir()
    inode = out.stat().st_ino
    make_report().write(out)
    assert out.stat().st_ino == inode and sorted(os.listdir(out)) == sorted(FILE_NAMES)
    with pytest.raises(UsageError, match="an earlier report"):
        make_report().write(out)


def test_a_killed_run_with_the_same_process_id_does_not_block(tmp_path):
    (tmp_path / f".run.tmp-{os.getpid()}").mkdir()
    make_report().write(tmp_path / "run")
    assert sorted(os.listdir(tmp_path)) == [f".run.tmp-{os.getpid()}", "run"]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("failing", FILE_NAMES)
@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "no space left"), (errno.EACCES, "no permission"), (errno.EIO, "cannot be")],
)
def test_a_failing_disk_leaves_nothing(tmp_path, monkeypatch, failing, code, words, existing):
    def broken_open(path, mode):
        file = open(path, mode)
        if Path(path).name == failing:
            file.write(b"half")
            file.close()
            raise OSError(code, os.strerror(code), str(path))
        return file

    monkeypatch.setattr(files, "open", broken_open, raising=False)
    out = tmp_path / "deep" / "run"
    if existing:
        out.mkdir(parents=True)
    with pytest.raises(OutputError, match=words) as caught:
        make_report(n=30, num_examples=2).write(out)
    assert str(out) in str(caught.value) and isinstance(caught.value, JaxpoisonError)
    assert (os.listdir(out) if existing else os.listdir(tmp_path)) == []


@pytest.mark.parametrize("existing", [False, True])
def test_a_failing_move_or_an_interrupt_leaves_nothing(tmp_path, monkeypatch, existing):
    out = tmp_path / "run"
    if existing:
        out.mkdir()
    real, calls = os.rename, []

    def broken_rename(old, new):
        calls.append(new)
        if not existing or len(calls) == 3:
            raise KeyboardInterrupt
        real(old, new)

    monkeypatch.setattr(os, "rename", broken_rename)
    with pytest.raises(KeyboardInterrupt):
        make_report(n=30, num_examples=2).write(out)
    assert (os.listdir(out) if existing else os.listdir(tmp_path)) == []


def test_schema_accepts_real_documents():
    schema = load_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for report in (make_report(), make_report(verdict="clean", suspected=())):
        document = json.loads(files.to_json(report.report))
        jsonschema.validate(document, schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("verdict",), "fine"), (("p_poisoned",), 1.5), (("n_flagged",), -1), (("extra",), 1),
        (("schema",), "jaxpoison.report/2"), (("calibrated",), "no"), (("seed",), 0.5),
        (("source", "kind"), "video"), (("source", "extra"), 1), (("n_samples",), None),
        (("suspected_attacks", 0, "evidence", 0, "fired"), "yes"), (("timing", "total"), -1),
        (("suspected_attacks", 0, "target_class"), None), (("detectors", "mixture"), {}),
        (("skipped_classes", 0, "reason"), ""), (("threshold", "expected_fdr"), 2),
    ],
)  # fmt: skip
def test_schema_refuses_wrong_documents(path, value):
    document = json.loads(files.to_json(make_report().report))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, load_schema())


def test_schema_wants_every_key():
    document = json.loads(files.to_json(make_report().report))
    for key in document:
        short = {k: v for k, v in document.items() if k != key}
        with pytest.raises(jsonschema.ValidationError, match=key):
            jsonschema.validate(short, load_schema())


def test_summary_and_repr_tell_the_counts():
    report = make_report(names=("cat", "[red]x[/red]", "owl"))
    lines = report.summary().split("\n")
    assert lines[0].startswith("POISONED: ")
    assert lines[2].startswith("  backdoor in class 1 ([red]x[/red]): ")
    assert lines[-1] == "note: uncalibrated against trusted data"
    assert "n_samples=300" in repr(report) and len(repr(report)) < 200
    np.testing.assert_array_equal(report.clean_indices(), report.index[~report.flagged])


def test_importing_the_room_loads_nothing_heavy():
    code = (
        "import sys, jaxpoison.report; "
        "print([m for m in ('jax', 'numpy', 'pyarrow', 'jinja2', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(files.__file__).parents[2])  # fmt: skip
    assert done.stdout.strip() == "[]"
