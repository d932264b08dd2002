"""`jaxpoison bench`: what is passed on, what is written where, exit statuses, error lines."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench_data import document, failed, record
from jaxpoison.bench import files, run
from jaxpoison.cli import main


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the run; keeps the arguments."""
    kept = []

    def run_bench(**options):
        kept.append(options)
        if options["progress"] is not None:
            options["progress"](1, 2, RESULT["kernels"][0])
        return RESULT

    monkeypatch.setattr(run, "run_bench", run_bench)
    return kept


RESULT = document(record("kmeans", 1.0), record("el2n", 2.0))


def test_what_is_given_reaches_the_run_and_the_table_standard_output(calls, capsys, tmp_path):
    argv = "bench --size medium --only kmeans,el2n,kmeans --seconds 2.5".split()
    out, page = tmp_path / "run.json", tmp_path / "page.md"
    assert main([*argv, "--out", str(out), "--markdown", str(page)]) == 0
    (given,) = calls
    assert given.pop("progress") is not None
    assert given == {
        "size": "medium", "only": ("kmeans", "el2n"), "seconds": 2.5, "baseline": None,
    }  # fmt: skip
    captured = capsys.readouterr()
    assert captured.out == page.read_text() and captured.out.startswith("# Kernels\n")
    line = "jaxpoison: 1 of 2: kmeans: 1.00 s x 9, compiled in 600 ms\n"
    assert captured.err == line
    assert files.load(out) == RESULT


def test_quiet_has_no_progress_but_the_table(calls, capsys):
    assert main(["bench", "--quiet"]) == 0
    assert calls[0]["progress"] is None and calls[0]["only"] is None
    captured = capsys.readouterr()
    assert captured.err == "" and "| `kmeans` |" in captured.out


@pytest.mark.parametrize(
    ("before", "status", "word"), [(0.5, 1, "SLOWER"), (1.0, 0, "same"), (4.0, 0, "faster")]
)
def test_a_regression_is_status_1(before, status, word, calls, capsys, tmp_path):
    files.write(document(record("kmeans", before)), tmp_path / "old.json")
    assert main(["bench", "--compare", str(tmp_path / "old.json"), "--quiet"]) == status
    assert f"| `kmeans` | {word} |" in capsys.readouterr().out
    assert calls[0]["baseline"]["kernels"][0]["kernel"] == "kmeans"


def test_a_failed_kernel_is_status_2_and_told(monkeypatch, capsys):
    monkeypatch.setattr(run, "run_bench", lambda **_: document(failed("kmeans")))
    assert main(["bench", "--quiet"]) == 2
    assert "jaxpoison: failed: kmeans: MemoryError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "status", "word"),
    [
        (["--size", "huge"], 4, "argument --size"),
        (["--size", "tiny"], 4, "argument --size"),
        (["--seconds", "0"], 4, "argument --seconds"),
        (["--seconds", "nan"], 4, "argument --seconds"),
        (["--seconds", "long"], 4, "argument --seconds"),
        (["--seconds", "1e9"], 4, "argument --seconds"),
        (["--only", ","], 4, "argument --only"),
        (["--only", "kmean"], 4, "did you mean 'kmeans'"),
        (["--only", "Tap"], 4, "Tap is not timed: an argument type"),
        (["--out", "."], 4, "--out '.' is a folder"),
        (["--out", ""], 4, "--out '' is a folder"),
        (["--markdown", "none/page.md"], 4, "there is no such folder"),
        (["--compare", "none.json"], 4, "no such file"),
        (["--compare", "bad.json"], 2, "is no JSON"),
        (["--compare", "medium.json"], 2, "the runs differ in size"),
        (["extra"], 4, "unrecognized arguments"),
    ],
)
def test_nonsense_is_one_line_before_anything_runs(
    argv, status, word, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    files.write(document(size="medium"), tmp_path / "medium.json")
    monkeypatch.setattr(run, "measure_ceilings", lambda *_: pytest.fail("measured"))
    assert main(["bench", *argv]) == status
    captured = capsys.readouterr()
    assert word in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.json", "medium.json"]


def test_help_loads_nothing_heavy():
    code = (
        "import sys, jaxpoison.cli; jaxpoison.cli.main(['bench', '--help']);"
        "print(sorted({'jax', 'numpy', 'jaxpoison.bench'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "--compare" in done.stdout


def test_a_run_from_the_command_line_to_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "measure_ceilings", lambda *_: document()["ceilings"])
    argv = ["bench", "--only", "softmax_errors", "--seconds", "0.01", "--out"]
    assert main([*argv, str(tmp_path / "run.json")]) == 0
    held = json.loads((tmp_path / "run.json").read_text())
    assert [each["kernel"] for each in held["kernels"]] == ["softmax_errors"]
    captured = capsys.readouterr()
    assert "| `softmax_errors` | 4,000 |" in captured.out
    assert captured.err.startswith("jaxpoison: 1 of 1: softmax_errors: ")
