"""The command line: exit statuses, error lines, what reaches the scan, what stays unloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import jaxpoison
from jaxpoison._check import DataError, JaxpoisonError, NothingToScan, UsageError
from jaxpoison._types import DEFAULT_DETECTORS, DETECTOR_NAMES, DETECTORS
from jaxpoison.cli import main

HEAVY = {"jax", "flax", "optax", "numpy", "scipy", "sklearn", "pyarrow", "rich", "jinja2"}
FORECAST = {"rows": 60_000, "passes": 4, "device_bytes": 2**26, "seconds": 75.0}


@dataclass
class FakeReport:
    verdict: str

    def summary(self) -> str:
        return f"{self.verdict.upper()}: naïve"

    def write(self, out: str) -> None:
        Path(out).mkdir()


@dataclass
class FakeScanning:
    """Stands in for jaxpoison.scanning; keeps what it was called with."""

    result: Any = field(default_factory=lambda: FakeReport("clean"))
    plans: list[Any] = field(default_factory=list)
    ways: list[Any] = field(default_factory=list)

    def run(self, plan, *, progress=None, out=None, resume=False, engine="local"):
        self.plans.append(plan)
        self.ways.append((resume, engine))
        progress("score", 1, 2)
        if isinstance(self.result, BaseException):
            raise self.result
        self.result.write(out)
        return self.result

    def as_module(self) -> ModuleType:
        module = ModuleType("jaxpoison.scanning")
        module.run = self.run
        module.forecast = lambda plan: self.plans.append(plan) or FORECAST
        for name in ("ScanPlan", "Method", "Resources"):
            setattr(module, name, lambda **options: options)
        return module


@pytest.fixture
def scanning(monkeypatch):
    fake = FakeScanning()
    module = fake.as_module()
    monkeypatch.setitem(sys.modules, "jaxpoison.scanning", module)
    monkeypatch.setattr(jaxpoison, "scanning", module, raising=False)
    return fake


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "report")


def error_line(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_how_a_scan_runs_is_passed_on(scanning, out):
    assert main(["scan", "x.npz", "--out", out, "--resume", "--engine", "ray://head:1"]) == 0
    assert scanning.ways == [(True, "ray://head:1")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--coordinator", "a:1"], "--coordinator needs --processes and --process beside it"),
        (["--processes", "2", "--process", "0"], "--processes needs --coordinator beside it"),
        (["--coordinator", "a:1", "--processes", "2", "--process", "0"], "needs --engine spmd"),
        (
            ["--engine", "spmd", "--coordinator", "a:1", "--processes", "2", "--process", "2"],
            "--process: 2; give 0 to 1",
        ),
        (["--processes", "0"], "whole number, at least 1"),
    ],
)
def test_processes_that_could_not_meet_are_told_so(scanning, out, capsys, options, words):
    assert main(["scan", "x.npz", "--out", out, *options]) == 4
    assert words in capsys.readouterr().err and not scanning.plans


def test_processes_that_can_meet(monkeypatch, scanning, out, capsys):
    options = ["--engine", "spmd", "--coordinator", "a:1", "--processes", "2", "--process", "1"]
    monkeypatch.setattr("jaxpoison.stream.is_first_process", lambda: False)
    assert main(["scan", "x.npz", "--out", out, *options]) == 0
    assert scanning.ways == [(False, "spmd:a:1,2,1")] and capsys.readouterr().out == ""


def test_a_scan_that_is_cut_off_says_how_to_go_on(scanning, out, capsys):
    (Path(out) / ".work").mkdir(parents=True)
    scanning.result = KeyboardInterrupt()
    assert main(["scan", "x.npz", "--out", out]) == 4  # someone else's, until asked for
    assert "--resume" in capsys.readouterr().err
    assert main(["scan", "x.npz", "--out", out, "--resume"]) == 130


@pytest.mark.parametrize(("verdict", "status"), [("clean", 0), ("suspicious", 1), ("poisoned", 1)])
def test_the_verdict_is_the_exit_status(scanning, out, capsys, verdict, status):
    scanning.result = FakeReport(verdict)
    assert main(["scan", "x.npz", "--out", out]) == status
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"{verdict.upper()}: naïve",
        f"report: {out}{os.sep}report.html",
    ]
    assert printed.err == ""
    assert Path(out).is_dir()


@pytest.mark.parametrize("verdict", ["clean", "suspicious", "poisoned"])
def test_exit_zero(scanning, out, verdict):
    scanning.result = FakeReport(verdict)
    assert main(["scan", "x.npz", "--out", out, "--exit-zero"]) == 0


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (DataError("x.npz: no array 'x'"), 2, "x.npz: no array 'x'"),
        (JaxpoisonError("no"), 2, "no"),
        (NothingToScan("x.npz holds 0 rows"), 3, "x.npz holds 0 rows"),
        (UsageError("features: 3 rows"), 4, "features: 3 rows"),
        (FileNotFoundError(2, "No such file", "x.npz"), 2, "x.npz: No such file"),
        (MemoryError(), 2, "out of memory"),
        (ZeroDivisionError("oops"), 2, "unexpected ZeroDivisionError: oops"),
        (DataError("class \x1b[31mred\nline 2\u202e"), 2, "class ⟨U+001B⟩[31mred line 2⟨U+202E⟩"),
    ],
)
@pytest.mark.parametrize("exit_zero", [[], ["--exit-zero"]])
def test_errors_are_one_line(scanning, out, capsys, error, status, message, exit_zero):
    scanning.result = error
    assert main(["scan", "x.npz", "--out", out, *exit_zero]) == status
    line = error_line(capsys)
    assert line.startswith("jaxpoison: error: ") and message in line


def test_debug_adds_the_traceback(scanning, out, capsys):
    scanning.result = ZeroDivisionError("oops")
    assert main(["scan", "x.npz", "--out", out, "--debug"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed and "in run" in printed


def test_interrupt_is_one_line(scanning, out, capsys):
    scanning.result = KeyboardInterrupt()
    assert main(["scan", "x.npz", "--out", out]) == 130
    assert error_line(capsys) == "jaxpoison: interrupted"
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "COMMAND"),
        (["scna"], "'scna'"),
        (["scan"], "DATA"),
        (["scan", "x.npz"], "--out is missing"),
        (["scan", "x.npz", "--out", ""], "empty"),
        (["scan", "x.npz", "--out", "o", "--nope"], "--nope"),
        (["scan", "x.npz", "--out", "o", "--pla"], "--pla"),
        (["scan", "x.npz", "--out", "o", "--detectors", "spectrl"], "did you mean 'spectral'"),
        (["scan", "x.npz", "--out", "o", "--detectors", "zzz"], "known: spectral, activation"),
        (["scan", "x.npz", "--out", "o", "--detectors", "zzz"], ", shapley, all, user:NAME"),
        (["scan", "x.npz", "--out", "o", "--detectors", "aum,user:"], "unknown detector 'user:'"),
        (["scan", "x.npz", "--out", "o", "--detectors", " , "], "no name"),
        (["scan", "x.npz", "--out", "o", "--trusted"], "--trusted"),
        (["scan", "x.npz", "--out", "o", "--fdr", "0"], "between 0 and 1"),
        (["scan", "x.npz", "--out", "o", "--fdr", "1"], "got '1'"),
        (["scan", "x.npz", "--out", "o", "--fdr", "nan"], "got 'nan'"),
        (["scan", "x.npz", "--out", "o", "--fdr", "5%"], "argument --fdr"),
        (["scan", "x.npz", "--out", "o", "--seed", "-1"], "at least 0"),
        (["scan", "x.npz", "--out", "o", "--seed", "4294967296"], "at most 4294967295"),
        (["scan", "x.npz", "--out", "o", "--seed", "1.5"], "got '1.5'"),
        (["scan", "x.npz", "--out", "o", "--budget-mb", "1"], "at least 64"),
        (["demo", "--seed", "x"], "argument --seed"),
        (["scan", "x.npz", "--out", "o", "--\x1b[31m"], "⟨U+001B⟩"),
    ],
)
def test_wrong_usage(scanning, capsys, monkeypatch, tmp_path, arguments, fragment):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 4
    line = error_line(capsys)
    assert line.startswith("jaxpoison: error: ") and fragment in line
    assert not scanning.plans
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_before_the_scan(scanning, tmp_path, capsys):
    (tmp_path / "precious").touch()
    assert main(["scan", "x.npz", "--out", str(tmp_path)]) == 4
    assert "precious" in error_line(capsys)
    assert not scanning.plans


def test_options_reach_the_plan(scanning, out):
    options = ["--labels", "y.npy", "--features", "f.npy", "--trusted", "rows.txt"]
    options += ["--target", "t.npz", "--detectors", "mixture, spectral,user:mine"]
    options += ["--seed", "7", "--fdr", "0.1", "--budget-mb", "512", "--drop-nonfinite"]
    assert main(["scan", "x.npy", "--out", out, *options]) == 0
    assert scanning.plans == [
        {
            "data": "x.npy",
            "labels": "y.npy",
            "features": "f.npy",
            "trusted": "rows.txt",
            "target": "t.npz",
            "method": {
                "detectors": ("mixture", "spectral", "user:mine"),
                "seed": 7,
                "fdr": 0.1,
                "drop_nonfinite": True,
            },
            "resources": {"budget_mb": 512},
        }
    ]


def test_what_was_not_given_keeps_the_default_of_the_scan(scanning, out):
    assert main(["scan", "x.npz", "--out", out]) == 0
    (plan,) = scanning.plans
    assert plan["method"] == {} and plan["resources"] == {}
    assert plan["labels"] is None and plan["features"] is None and plan["trusted"] is None
    assert plan["target"] is None


def test_all_detectors_reach_the_plan(scanning, out):
    assert main(["scan", "x.npz", "--out", out, "--detectors", "all"]) == 0
    assert scanning.plans[0]["method"] == {"detectors": ("all",)}


def test_plan_prints_the_forecast_and_runs_nothing(scanning, capsys):
    scanning.result = AssertionError("ran")
    assert main(["scan", "x.npz", "--plan"]) == 0
    values = [line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()]
    assert values == ["60,000", "4", "64.0 MiB", "1 min 15 s"]


def test_quiet_prints_nothing(scanning, out, capsys):
    scanning.result = FakeReport("poisoned")
    assert main(["scan", "x.npz", "--out", out, "--quiet"]) == 1
    assert capsys.readouterr() == ("", "")


def test_help_names_every_detector_and_exit_status(capsys):
    assert main(["scan", "--help"]) == 0
    text = capsys.readouterr().out
    lines = [line.strip() for line in text.splitlines()]
    for name in DETECTOR_NAMES:  # one line each, marked where it runs by default
        mark = "* " if name in DEFAULT_DETECTORS else ""
        (line,) = [one for one in lines if one.endswith(DETECTORS[name])]
        assert line.startswith(f"{mark}{name} ")
    assert max(map(len, text.splitlines())) <= 100
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(status in text for status in ("  0  ", "  1  ", "  2  ", "  3  ", "  4  ", "130"))


@pytest.mark.parametrize("arguments", [["--help"], ["scan", "--help"], ["--version"], ["scan"]])
def test_nothing_heavy_is_loaded_to_say_so(arguments):
    code = (
        "import sys; from jaxpoison.cli import main; main(sys.argv[1:]); "
        f"sys.stderr.write('loaded ' + ' '.join(sorted({HEAVY!r} & set(sys.modules))))"
    )
    done = run_python("-c", code, *arguments)
    assert done.stderr.endswith("loaded ")


def test_version_and_module_entry():
    done = run_python("-m", "jaxpoison", "--version")
    assert done.stdout == f"jaxpoison {jaxpoison.__version__}\n"
    assert run_python("-m", "jaxpoison", "scan").returncode == 4


VERDICT_TO_CLOSED_PIPE = """
import sys, types
fake = types.ModuleType("jaxpoison.scanning")
report = types.SimpleNamespace(verdict="poisoned", summary=lambda: "POIS\\u2713N")
fake.run = lambda plan, **ways: report
fake.ScanPlan = fake.Method = fake.Resources = lambda **options: options
sys.modules["jaxpoison.scanning"] = fake
from jaxpoison.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["-c", VERDICT_TO_CLOSED_PIPE, "scan", "x.npz", "--out", "no-such-folder"], 1),
        (["-m", "jaxpoison", "--help"], 0),
    ],
)
def test_a_reader_that_went_away_changes_nothing(arguments, status):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run_python(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (status, "")


def test_a_narrow_encoding_does_not_fail():
    code = ["-c", VERDICT_TO_CLOSED_PIPE, "scan", "x.npz", "--out", "no-such-folder"]
    done = run_python(*code, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("POIS\\u2713N\n")


def run_python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(__file__).resolve().parent.parent,
        stderr=subprocess.PIPE,
        text=True,
        **({"stdout": subprocess.PIPE} | options),
    )
