"""`jaxpoison evaluate`: what is passed on, exit statuses, error lines, what stays unloaded."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import jaxpoison
from jaxpoison._check import DataError, NothingToScan
from jaxpoison.cli import evaluate as command
from jaxpoison.cli import main
from jaxpoison.evaluate import runner
from jaxpoison.evaluate.suites import Case, SetSpec

DOCUMENT = {"not_done": [], "clean": [{}], "poisoned": []}


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the run; keeps the arguments."""
    kept = []

    def run_suite(suite, out, **options):
        kept.append({"suite": suite, "out": out, **options})
        return DOCUMENT

    monkeypatch.setattr(jaxpoison.evaluate, "run_suite", run_suite, raising=False)
    return kept


def test_what_is_given_reaches_the_run(calls, capsys):
    argv = "evaluate --suite full --out o --sets a,b --attacks patch,clean --seeds 0-2,7 --rows 50"
    assert main([*argv.split(), "--no-retrain", "--isolate", "--docs", "d.md", "--quiet"]) == 0
    assert calls == [
        {
            "suite": "full", "out": "o", "set_names": ("a", "b"), "attacks": ("patch", "clean"),
            "seeds": (0, 1, 2, 7), "rows": 50, "retrain": False, "isolate": True,
            "render_only": False, "docs": "d.md", "progress": None, "data": None, "labels": None,
        }
    ]  # fmt: skip
    assert capsys.readouterr().out == ""


def test_data_of_ones_own_reaches_the_run(calls):
    assert main(["evaluate", "--out", "o", "--data", "x.npy", "--labels", "y.npy", "--quiet"]) == 0
    assert calls[0]["data"] == "x.npy" and calls[0]["labels"] == "y.npy"


def test_data_that_is_not_there_is_named_and_nothing_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--out", "o", "--data", "none.npz"]) == 2
    assert "none.npz: no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_measured_where_all_is_refused(calls, capsys, monkeypatch):
    refused = {"set": "a", "case": "b", "status": "refused", "reason": "few", "seeds": [0]}
    held = {"not_done": [refused], "clean": [], "poisoned": []}
    monkeypatch.setattr("jaxpoison.evaluate.run_suite", lambda *_, **__: held)
    assert main(["evaluate", "--out", "o"]) == 3
    assert "every case was refused" in capsys.readouterr().err
    held["poisoned"] = [{}]
    assert main(["evaluate", "--out", "o"]) == 0


def test_what_is_not_given_keeps_the_suites_own(calls, capsys):
    assert main(["evaluate", "--out", "o"]) == 0
    given = calls[0]
    assert given["suite"] == "quick" and given["retrain"] is True and given["isolate"] is False
    assert given["set_names"] is given["attacks"] is given["seeds"] is given["rows"] is None
    assert capsys.readouterr().out == "tables: o/evaluation.html\n"


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ([], "--out is missing"),
        (["--out", "o", "--seeds", "3-1"], "argument --seeds"),
        (["--out", "o", "--seeds", "0-5000000000"], "argument --seeds"),
        (["--out", "o", "--seeds", "-1"], "argument --seeds"),
        (["--out", "o", "--seeds", ""], "argument --seeds"),
        (["--out", "o", "--rows", "0"], "argument --rows"),
        (["--out", "o", "--rows", "many"], "argument --rows"),
        (["--out", "o", "--sets", ", ,"], "argument --sets"),
        (["--out", "o", "--suite", "ful"], "no such file; give quick, full"),
        (["--out", "o", "--sets", "digit"], "did you mean 'digits'"),
        (["--out", "o", "--attacks", "pach"], "known: clean, "),
        (["--out", ""], "out is empty"),
        (["--out", "o", "--labels", "y.npy"], "labels: y.npy is given without data"),
        (["--out", "o", "--data", "sklearn:digits", "--sets", "wine"], "known: digits"),
        (["--out", "o", "--data", "sklearn:digits", "--labels", "y.npy"], "holds its own"),
        (["extra", "--out", "o"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_one_line_and_status_4(argv, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *argv]) == 4
    captured = capsys.readouterr()
    assert word in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status"), [(DataError("bad"), 2), (NothingToScan("none"), 3), (OSError("disk"), 2)]
)
def test_errors_of_the_run_have_their_status(error, status, monkeypatch, capsys):
    def run_suite(*_, **__):
        raise error

    monkeypatch.setattr(jaxpoison.evaluate, "run_suite", run_suite, raising=False)
    assert main(["evaluate", "--out", "o"]) == status
    assert capsys.readouterr().err.startswith("jaxpoison: error: ")


def test_a_folder_of_other_things_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").touch()
    assert main(["evaluate", "--out", str(tmp_path)]) == 4
    assert "thesis.txt" in capsys.readouterr().err
    assert main(["evaluate", "--out", str(tmp_path / "thesis.txt")]) == 4


def test_rendering_without_records_is_nothing_and_writes_nothing(tmp_path):
    assert main(["evaluate", "--out", str(tmp_path / "o"), "--render", "--quiet"]) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_set_that_is_not_installed_is_named_before_anything_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jaxpoison.evaluate.sets.FASHION_MNIST", str(tmp_path / "none"))
    out = tmp_path / "o"
    argv = ["--suite", "full", "--sets", "fashion_mnist", "--attacks", "clean", "--out", str(out)]
    assert main(["evaluate", *argv]) == 4
    assert "dataset-fashion-mnist" in capsys.readouterr().err and not out.exists()


def test_failed_cases_are_listed_and_status_2(monkeypatch, tmp_path, capsys):
    def broken(x, y, *, seed):
        raise RuntimeError("no device")

    monkeypatch.setattr(jaxpoison, "scan", broken)
    argv = ["--sets", "breast_cancer", "--attacks", "clean", "--out", str(tmp_path), "--no-retrain"]
    assert main(["evaluate", *argv]) == 2
    err = capsys.readouterr().err
    assert "jaxpoison: 1 of 1: breast_cancer, clean, seed 0: failed" in err
    assert "jaxpoison: failed: breast_cancer, clean, seeds [0]: RuntimeError: no device" in err
    assert (tmp_path / "evaluation.html").is_file()


def test_an_interrupt_keeps_what_is_done(monkeypatch, tmp_path):
    def stop(task, *, isolated=False):
        if task.spec.name == "breast_cancer":
            raise KeyboardInterrupt
        return {**task.header(), "status": "refused", "reason": "x", "version": "0"}

    monkeypatch.setattr(runner.measure, "run", stop)
    argv = ["evaluate", "--attacks", "clean", "--out", str(tmp_path), "--quiet"]
    assert main(argv) == 130
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["set"] for line in lines] == ["digits"]


def test_a_line_as_each_case_ends(capsys):
    tell = command.Teller()
    task = runner.Task(SetSpec("s", "x"), Case("c", "patch", 0.1), 3, None, True)
    tell(0, 2, task, None)
    done = {
        "status": "done", "verdict": "poisoned", "scores": {"fused": {"auroc": 0.98765}},
        "flags": {"fpr": 0.0123}, "seconds": {"plant": 1.0, "scan": 2.0, "retrain": None},
    }  # fmt: skip
    tell(1, 2, task, done)
    line = "jaxpoison: 1 of 2: s, c, seed 3: poisoned, AUROC 0.988, 1.23% false alarms, 3 s, 0:00"
    assert capsys.readouterr().err == f"{line} left\n"


def test_help_and_the_room_load_nothing_heavy():
    code = (
        "import sys, jaxpoison.evaluate, jaxpoison.evaluate.suites, jaxpoison.cli;"
        "jaxpoison.cli.main(['evaluate', '--help']);"
        "print(sorted({'jax', 'numpy', 'sklearn', 'scipy', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "--isolate" in done.stdout


def test_a_run_from_the_command_line_to_its_tables(tmp_path, monkeypatch, capsys):
    import types

    def scan(x, y, *, seed):
        n = len(y)
        return types.SimpleNamespace(
            index=np.arange(n), scores={"spectral": np.arange(n)}, suspicion=np.arange(n),
            flagged_indices=lambda: np.zeros(0, np.int64), verdict="clean",
            report={"p_poisoned": 0.0, "suspected_attacks": [], "peak_mb": 1.0},
        )  # fmt: skip

    monkeypatch.setattr(jaxpoison, "scan", scan)
    argv = ["evaluate", "--out", str(tmp_path / "o"), "--docs", str(tmp_path / "e.md")]
    assert main([*argv, "--no-retrain", "--seeds", "0,1", "--rows", "200"]) == 0
    assert (tmp_path / "e.md").read_text().startswith("# Evaluation\n")
    document = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    assert [entry["verdicts"]["clean"] for entry in document["clean"]] == [2, 2]
    assert capsys.readouterr().err.count("jaxpoison: ") == 12
    assert main([*argv, "--no-retrain", "--seeds", "0,1", "--rows", "200"]) == 0
    assert capsys.readouterr().err == ""
