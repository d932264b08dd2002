"""The certify command: files, table, exit statuses, one line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from jaxpoison._check import UsageError
from jaxpoison.cli import main
from jaxpoison.cli.certify import describe_forecast
from jaxpoison.report import load_certificate_schema

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--learner", "class-mean", "--features", "pixels"]
DIGITS = ["certify", "train.npz", "--test", "test.npz", "--k", "12", *QUICK]
NAMES = ["certificate.html", "certificate.json", "predictions.parquet"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with images to train on and to predict, and rows with a client each."""
    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8), bunch.target
    np.savez(tmp_path / "train.npz", x=x[:400], y=y[:400], client=np.arange(400) % 40)
    np.savez(tmp_path / "test.npz", x=x[400:460], y=y[400:460])
    np.save(tmp_path / "bare.npy", x[400:460])
    np.savez(tmp_path / "small.npz", x=x[:5, :7], y=y[:5])
    table = pa.table(
        {
            "embedding": list(x[:400].reshape(400, 64).astype(np.float32)),
            "label": y[:400], "client": [f"c{i % 40}" for i in range(400)], "one": ["a"] * 400,
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "train.parquet")
    np.savez(tmp_path / "rows.npz", x=x[400:460].reshape(60, 64).astype(np.float32), y=y[400:460])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_line(capsys):
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if not line.startswith("jaxpoison: vo")
    ]
    assert line.startswith("jaxpoison: error: ")
    return line


def document(folder):
    doc = json.loads((folder / "certificate.json").read_text())
    jsonschema.validate(doc, load_certificate_schema())
    return doc


def test_digits_from_end_to_end(folder, capsys):
    assert main([*DIGITS, "--out", "certified", "--verify"]) == 0
    printed = capsys.readouterr()
    assert sorted(os.listdir("certified")) == NAMES
    doc = document(folder / "certified")
    assert doc["k"] == doc["subsets"] == 12 and doc["spread"] == 1 and doc["scheme"] == "dpa"
    assert doc["threat"]["costs"] == {"insert": 1, "delete": 1, "flip": 1, "modify": 2}
    assert doc["accuracy"]["clean"] > 0.7 > 0.2 < doc["accuracy"]["base"]
    assert doc["verified"]["subsets"] and "votes of the ensemble" in doc["verified"]["checks"]
    assert doc["manifest"]["learner"]["name"] == "ClassMean"

    table = pq.read_table("certified/predictions.parquet").to_pydict()
    assert table["index"] == list(range(60))
    assert table["label"] == np.load("test.npz")["y"].tolist()
    radius = np.array(table["radius"])
    first, second = np.array(table["votes_first"]), np.array(table["votes_second"])
    lower = np.array(table["runner_up"]) < np.array(table["prediction"])
    assert (first + second <= 12).all() and radius.max() > 2
    # the lead over the class with most other votes bounds every radius, and reaches most
    assert (radius <= (first - second - lower) // 2).all()
    assert (radius == (first - second - lower) // 2).mean() > 0.9
    assert table["inserts"] == table["deletes"] == table["flips"] == radius.tolist()
    assert table["modifications"] == (radius // 2).tolist()

    right = np.array(table["prediction"]) == np.array(table["label"])
    assert doc["accuracy"]["clean"] == right.mean()
    curve = doc["curve"]
    for r, share, accuracy in zip(curve["radius"], curve["share"], curve["accuracy"], strict=True):
        assert share == (radius >= r).mean() and accuracy == ((radius >= r) & right).mean()
    assert curve["share"][-1] == 0 and doc["certified"] == (radius >= 1).sum()
    listed = [entry["radius"] for entry in doc["least_certain"]]
    assert listed == sorted(radius.tolist())[:24]

    lines = printed.out.splitlines()
    assert lines[0].startswith("60 rows of test.npz predicted by 12 models trained on 400 rows")
    assert f"median radius {doc['median']}" in printed.out
    assert lines[-1].startswith("report: ") and lines[-1].endswith("certificate.html")


@pytest.mark.parametrize(
    ("options", "rule", "subsets"),
    [
        (["--scheme", "roe"], "run_off", 12),
        (["--scheme", "fa", "--spread", "3"], "plurality", 36),
        (["--scheme", "fa+roe", "--spread", "3"], "run_off", 36),
    ],
)
def test_every_scheme(folder, capsys, options, rule, subsets):
    assert main([*DIGITS, *options, "--quiet", "--out", "certified"]) == 0
    assert capsys.readouterr() == ("", "")
    doc = document(folder / "certified")
    assert doc["rule"] == rule and doc["subsets"] == subsets and doc["median"] > 0


def test_flips_alone_and_labels_that_are_not_known(folder, capsys):
    command = ["certify", "train.npz", "--test", "bare.npy", "--k", "12", *QUICK]
    assert main([*command, "--threat", "flip", "--out", "certified"]) == 0
    doc = document(folder / "certified")
    assert doc["threat"] == {
        "name": "label flip", "unit": "touched cells", "costs": {"flip": 1},
    }  # fmt: skip
    assert doc["accuracy"] is None and doc["median"] is None and doc["curve"]["accuracy"] is None
    table = pq.read_table("certified/predictions.parquet")
    assert "label" not in table.column_names and "inserts" not in table.column_names
    assert table["flips"].to_pylist() == table["radius"].to_pylist()
    assert "inputs that were inserted" in (folder / "certified" / "certificate.html").read_text()


@pytest.mark.parametrize("data", ["train.npz", "train.parquet"])
def test_whole_clients(folder, data):
    test = "test.npz" if data == "train.npz" else "rows.npz"
    command = ["certify", data, "--test", test, "--key", "client", "--k", "8", *QUICK, "--quiet"]
    assert main([*command, "--out", "certified"]) == 0
    doc = document(folder / "certified")
    assert doc["covers"] == "key column" and doc["threat"]["costs"] == {"key": 1}
    table = pq.read_table("certified/predictions.parquet")
    assert table["keys"].to_pylist() == table["radius"].to_pylist()
    assert main([*command, "--threat", "general", "--out", "other"]) == 0
    assert document(folder / "other")["threat"]["costs"]["modify, same key"] == 1


def test_a_share_is_held_out_by_content(folder):
    command = ["certify", "sklearn:digits", "--test", "split:0.3", "--k", "12", *QUICK, "--quiet"]
    assert main([*command, "--out", "one"]) == 0
    doc = document(folder / "one")
    assert doc["train"]["rows"] + doc["test"]["rows"] == 1797
    assert 0.25 < doc["test"]["rows"] / 1797 < 0.35
    held = pq.read_table("one/predictions.parquet")["index"].to_pylist()
    # the same rows in another order are split alike
    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8)[::-1], bunch.target[::-1]
    np.savez("turned.npz", x=x, y=y)
    command[1] = "turned.npz"
    assert main([*command, "--out", "two"]) == 0
    turned = pq.read_table("two/predictions.parquet")["index"].to_pylist()
    assert sorted(1796 - i for i in turned) == held
    assert main([*command, "--seed", "1", "--out", "three"]) == 0
    assert pq.read_table("three/predictions.parquet")["index"].to_pylist() != turned


@pytest.mark.slow
def test_networks_are_trained_and_dropped(folder):
    command = ["certify", "train.npz", "--test", "test.npz", "--k", "3", "--learner", "mlp"]
    assert main([*command, "--quiet", "--out", "certified"]) == 0
    doc = document(folder / "certified")
    assert doc["manifest"]["learner"]["settings"]["strategy"] in ("vmap", "map", "steps")
    assert doc["accuracy"]["base"] > 0.5


def test_nothing_certified_is_status_3_and_still_written(folder, capsys):
    command = ["certify", "train.npz", "--test", "test.npz", "--k", "1", *QUICK]
    assert main([*command, "--quiet", "--out", "certified"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxpoison: nothing could be certified")
    assert document(folder / "certified")["certified"] == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["train.npz", "--out", "o"], 4, "--test is missing"),
        (["train.npz", "--test", "test.npz"], 4, "--out is missing"),
        (["train.npz", "--test", "test.npz", "--k", "401", "--out", "o"], 4, "k is 401"),
        (["train.npz", "--test", "test.npz", "--k", "0", "--out", "o"], 4, "at least 1"),
        (["train.npz", "--test", "test.npz", "--k", "x", "--out", "o"], 4, "whole number"),
        (["train.npz", "--test", "small.npz", "--out", "o"], 2, "the same shape"),
        (["train.npz", "--test", "rows.npz", "--out", "o"], 2, "the same shape"),
        (["train.npz", "--test", "no.npz", "--out", "o"], 2, "no.npz"),
        (["train.npz", "--test", "test.npz", "--learner", "svm", "--out", "o"], 4, "--learner"),
        (["train.npz", "--test", "test.npz", "--scheme", "x", "--out", "o"], 4, "--scheme"),
        (["train.npz", "--test", "test.npz", "--spread", "4", "--out", "o"], 4, "disjoint subsets"),
        (["train.npz", "--test", "test.npz", "--threat", "keys", "--out", "o"], 4, "--key"),
        (["train.npz", "--test", "test.npz", "--window", "3", "--out", "o"], 4, "--key"),
        (["train.npz", "--test", "test.npz", "--key", "who", "--out", "o"], 2, "no member 'who'"),
        (["train.npz", "--test", "test.npz", "--key", "x", "--out", "o"], 2, "one value a row"),
        (["train.parquet", "--test", "rows.npz", "--key", "who", "--out", "o"], 2, "no column"),
        (["train.parquet", "--test", "rows.npz", "--key", "one", "--out", "o"], 2, "only 'a'"),
        (["train.parquet", "--test", "rows.npz", "--out", "o"], 4, "--decimals"),
        (["sklearn:digits", "--test", "split:0.2", "--key", "who", "--out", "o"], 4, "no columns"),
        (["train.npz", "--test", "split:2", "--out", "o"], 4, "between 0 and 1"),
        (["train.npz", "--test", "split:0.000001", "--out", "o"], 3, "another share"),
        (["train.npz", "--test", "test.npz", "--classes", "5", "--out", "o"], 2, "label"),
        (["train.npz", "--test", "test.npz", "--salt", "s" * 65, "--out", "o"], 4, "at most 64"),
        (["train.npz", "--test", "test.npz", "--out", "."], 4, "already holds"),
        (["train.npz", "--test", "test.npz", "--out", "test.npz/o"], 4, "not a folder"),
        (["train.npz", "--test", "test.npz", "--out", ""], 4, "empty"),
        (["sklearn:wine", "--test", "split:0.3", "--decimals", "3", "--features", "hog",
          "--out", "o"], 4, "of images"),
        (["sklearn:wine", "--test", "split:0.3", "--decimals", "3", "--learner", "cnn",
          "--out", "o"], 4, "images"),
        (["train.npz", "--test", "test.npz", "--labels", "bare.npy", "--out", "o"], 2, "labels"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(folder, capsys, arguments, status, words):
    before = sorted(folder.iterdir())
    assert main(["certify", *arguments]) == status
    assert words in error_line(capsys)
    assert sorted(folder.iterdir()) == before


def test_a_folder_that_cannot_be_written(folder, capsys, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    assert main([*DIGITS, "--out", "certified"]) == 2
    assert "no permission" in error_line(capsys) and not Path("certified").exists()


def test_a_full_disk_leaves_no_half_report(folder, capsys, monkeypatch):
    def full(columns, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxpoison.report.certificate.save_parquet", full)
    assert main([*DIGITS, "--out", "certified"]) == 2
    assert "no space left" in error_line(capsys)
    assert os.listdir("certified") == [".work"]  # what was computed is not lost
    monkeypatch.undo()
    os.chdir(folder)
    assert main([*DIGITS, "--resume", "--quiet", "--out", "certified"]) == 0
    assert document(folder / "certified")["pieces_reused"] == 1
    assert sorted(os.listdir("certified")) == NAMES


def test_the_plan_of_a_run(folder, capsys):
    assert main([*DIGITS, "--plan", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "training rows         400" in printed and "12 (k = 12)" in printed
    assert "median radius" in printed and "choose k on rows you trust" in printed
    assert main([*DIGITS[:-3], "mlp", "--plan", "--quiet"]) == 0
    assert "no radii foretold: learner mlp" in capsys.readouterr().out
    assert "certified" not in os.listdir(folder)


def test_a_forecast_without_a_profile():
    found = {
        "rows": 9, "tests": 2, "k": 3, "subsets": 6, "smallest": 0, "largest": 4, "bytes": 2**20,
        "seconds": None, "profile": None, "left_out": "too\x1bfew",
    }  # fmt: skip
    text = describe_forecast(found)
    assert "6 (k = 3)" in text and "unknown" in text and "1.0 MiB" in text
    assert "⟨U+001B⟩" in text and "\x1b" not in text


def test_an_interrupt_says_how_to_go_on(folder, capsys, monkeypatch):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxpoison.certifying.execute.make_report", stopped)
    assert main([*DIGITS, "--out", "certified"]) == 130
    first, last = capsys.readouterr().err.splitlines()[-2:]
    assert "--resume" in first and last == "jaxpoison: interrupted"
    assert main([*DIGITS, "--out", "certified"]) == 4
    assert "--resume" in error_line(capsys)


def test_help_is_quick_and_names_all(capsys):
    code = (
        "import sys; from jaxpoison.cli import main; main(['certify', '--help']);"
        "print(*{'jax', 'numpy', 'scipy', 'pyarrow', 'jinja2', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *text, loaded = done.stdout.splitlines()
    assert loaded == ""
    for word in ("fa+roe", "--resume", "kernel-ridge", "split:", "keys"):
        assert any(word in line for line in text), word


def test_a_reader_that_went_away_changes_nothing(folder):
    command = [sys.executable, "-m", "jaxpoison", *DIGITS, "--out", "certified"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    ) as process:
        process.stdout.close()
        assert process.wait(240) == 0
    assert sorted(os.listdir("certified")) == NAMES


def test_usage_errors_of_the_library_are_usage_errors():
    from jaxpoison.certifying import CertifyPlan

    for wrong in ({"scheme": "x"}, {"learner": "x"}, {"threat": "x"}, {"k": 0}, {"seed": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            CertifyPlan("a", "b", **wrong)
