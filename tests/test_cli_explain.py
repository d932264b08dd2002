"""The explain command: files, table, exit statuses, one line for every mistake."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest

from jaxpoison.cli import main
from jaxpoison.report import load_explanation_schema
from scan_data import X, Y


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with rows, their labels and features of them."""
    np.savez(tmp_path / "train.npz", x=X, y=Y)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    monkeypatch.chdir(tmp_path)
    return tmp_path


WITH_FEATURES = ["explain", "train.npz", "--features", "x.npy"]


def error_line(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxpoison: error: ")
    return line


def test_the_table_and_the_files(folder, capsys):
    assert main([*WITH_FEATURES, "--row", "17", "--top", "3", "--out", "why"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    doc = json.loads((folder / "why" / "explanation.json").read_text())
    jsonschema.validate(doc, load_explanation_schema())
    assert lines[0].startswith("row 17 of train.npz: class") and "nats" in lines[0]
    assert lines[1].startswith("predicted: class")
    assert lines[2].startswith("removing the row itself: +")
    listed = [line.split() for line in lines if line.startswith("   ")]
    assert [int(words[0]) for words in listed] == [
        entry["index"] for entry in (*doc["helpful"], *doc["harmful"])
    ]
    assert [words[1][0] for words in listed] == ["+"] * 3 + ["\N{MINUS SIGN}"] * 3
    assert lines[-1].startswith("explanation: ") and lines[-1].endswith("explanation.html")
    assert "error" not in printed.err  # on a slow machine there may be lines of progress
    assert sorted(p.name for p in (folder / "why").iterdir()) == [
        "explanation.html", "explanation.json",
    ]  # fmt: skip
    assert doc["plan"]["data"] == "train.npz" and doc["plan"]["features"] == "x.npy"


def test_labels_apart_and_quiet(folder, capsys):
    options = ["--labels", "y.npy", "--features", "x.npy", "--row", "0", "--seed", "3", "--quiet"]
    assert main(["explain", "x.npy", *options, "--budget-mb", "512", "--out", "why"]) == 0
    assert capsys.readouterr() == ("", "")
    doc = json.loads((folder / "why" / "explanation.json").read_text())
    assert doc["seed"] == 3 and doc["plan"]["labels"] == "y.npy" and len(doc["helpful"]) == 8


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--out", "why"], 4, "--row is missing"),
        (["--row", "1"], 4, "--out is missing"),
        (["--row", "x", "--out", "why"], 4, "argument --row"),
        (["--row", "-1", "--out", "why"], 4, "--row"),
        (["--row", "1.5", "--out", "why"], 4, "whole number"),
        (["--row", "1", "--top", "0", "--out", "why"], 4, "at least 1"),
        (["--row", "1", "--top", "101", "--out", "why"], 4, "at most 100"),
        (["--row", "600", "--out", "why"], 2, "numbered from 0 to 599"),
        (["--row", "1", "--labels", "no.npy", "--out", "why"], 2, "no.npy"),
        (["--row", "1", "--out", ""], 4, "empty"),
        (["--row", "1", "--out", "."], 4, "already holds"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, arguments, status, words):
    before = sorted(folder.iterdir())
    assert main([*WITH_FEATURES, *arguments]) == status
    assert words in error_line(capsys)
    assert sorted(folder.iterdir()) == before


def test_a_scan_takes_targets(folder, capsys):
    np.savez("targets.npz", x=X[:3], y=Y[:3])
    command = ["scan", "train.npz", "--features", "x.npy", "--detectors", "influence", "--quiet"]
    assert main([*command, "--target", "targets.npz", "--out", "report"]) in (0, 1)
    doc = json.loads((folder / "report" / "report.json").read_text())
    assert doc["detectors"]["influence"]["ran"] and doc["plan"]["target"] == "targets.npz"
    assert main([*command, "--out", "other"]) == 4
    assert "needs --target" in error_line(capsys)
    assert main([*command, "--target", "x.npy", "--out", "other"]) == 4
    assert ".npz" in error_line(capsys)
    np.savez("targets.npz", x=X[:3])
    assert main([*command, "--target", "targets.npz", "--out", "other"]) == 2
    line = error_line(capsys)
    assert "targets.npz" in line and "no member 'y'" in line
