"""scripts/demo and scripts/test: what a fresh, odd or broken machine gets to see."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"


def load(name: str) -> ModuleType:
    loader = SourceFileLoader(f"script_{name}", str(SCRIPTS / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@pytest.fixture
def setup(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return load("_setup.py")


@pytest.fixture
def checkout(tmp_path):
    """A folder with what the set-up reads, in a path with a space."""
    root = tmp_path / "a checkout"
    root.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    return root


def make_ready(setup, root: Path, extras: list[str]) -> None:
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").symlink_to(sys.executable)
    stamp = {
        "extras": extras,
        "fingerprint": setup.fingerprint(str(root)),
        "is_ready": True,
        "python": setup.python_identity(),
    }
    setup.write_stamp(str(root / ".venv"), stamp)


@pytest.mark.parametrize("name", ["_setup.py", "demo", "test"])
def test_an_old_python_can_parse_it(name):
    ast.parse((SCRIPTS / name).read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 10, 13)])
def test_old_python_gets_one_line(setup, monkeypatch, capsys, tmp_path, version):
    monkeypatch.setenv("PATH", str(tmp_path))
    fake = {"version_info": version, "stderr": sys.stderr, "stdout": sys.stdout, "exit": sys.exit}
    monkeypatch.setattr(setup, "sys", SimpleNamespace(**fake))
    with pytest.raises(SystemExit) as stop:
        setup.set_up("scripts/demo", [], ["scripts/demo"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"scripts/demo: error: Python 3.{version[1]} is too old: 3.11")


def test_old_python_goes_on_in_a_newer_one(setup, monkeypatch, tmp_path):
    broken = tmp_path / "python3.13"  # such as a version manager's entry for one not installed
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    (tmp_path / "python3.12").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup.newer_python() == str(tmp_path / "python3.12")

    called = []
    monkeypatch.setattr(setup.os, "execv", lambda *args: called.append(args) or sys.exit(0))
    fake = SimpleNamespace(version_info=(3, 9, 1), stdout=sys.stdout)
    monkeypatch.setattr(setup, "sys", fake)
    with pytest.raises(SystemExit):
        setup.require_python(["scripts/test", "--all"])
    path = str(tmp_path / "python3.12")
    assert called == [(path, [path, "scripts/test", "--all"])]


@pytest.mark.parametrize("missing", ["ensurepip", "venv"])
def test_missing_venv_package_names_what_to_install(setup, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    version = "{}.{}".format(*sys.version_info[:2])
    with pytest.raises(setup.SetupError, match=f"apt-get install python{version}-venv") as error:
        setup.require_venv()
    assert "\n" not in str(error.value)


def test_second_set_up_does_nothing(setup, monkeypatch, checkout):
    make_ready(setup, checkout, ["dev"])
    monkeypatch.setattr(setup, "prepare", lambda *args: pytest.fail("set up again"))
    for extras in ([], ["dev"]):
        assert setup.ensure(str(checkout), extras) == str(checkout / ".venv" / "bin" / "python")


@pytest.mark.parametrize("change", ["pyproject", "constraints", "extras", "python", "unfinished"])
def test_set_up_runs_again_when_something_changed(setup, monkeypatch, checkout, change):
    make_ready(setup, checkout, [])
    python = checkout / ".venv" / "bin" / "python"
    if change == "pyproject":
        (checkout / "pyproject.toml").write_text("[project]\n")
    elif change == "constraints":
        (checkout / "constraints.txt").write_text("jax==0.10.2\n")
    elif change == "python":
        python.unlink()
        python.symlink_to(checkout / "gone")
    elif change == "unfinished":
        Path(setup.stamp_path(str(checkout / ".venv"))).write_text("{")
    prepared = []
    monkeypatch.setattr(setup, "prepare", lambda *args: prepared.append(args))
    extras = ["dev"] if change == "extras" else []
    setup.ensure(str(checkout), extras)
    assert prepared == [(str(checkout), extras)]


def test_changed_pins_update_in_place_and_keep_the_extras(setup, monkeypatch, checkout):
    make_ready(setup, checkout, ["dev"])
    (checkout / "constraints.txt").write_text("jax==0.10.2\n")
    installed = []
    monkeypatch.setattr(setup, "install", lambda python, what, log, cwd: installed.append(what))
    monkeypatch.setattr(setup, "make_venv", lambda *args: pytest.fail("made anew"))
    setup.ensure(str(checkout), [])
    assert installed == [["-e", ".[dev]"]]
    assert setup.is_prepared(str(checkout), ["dev"])


def test_interrupted_environment_is_made_anew(setup, checkout):
    venv = checkout / ".venv"
    venv.mkdir()
    setup.write_stamp(str(venv), {"extras": [], "fingerprint": "", "is_ready": False, "python": ""})
    (venv / "half-written").touch()
    setup.make_venv(str(venv), setup.read_stamp(str(venv)), str(checkout / "log"))
    assert not (venv / "half-written").exists()
    assert setup.runs(str(venv / "bin" / "python"))
    assert setup.read_stamp(str(venv))["is_ready"] is False


def test_environment_of_someone_else_is_kept(setup, monkeypatch, checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "precious").touch()
    monkeypatch.setattr(setup, "run_logged", lambda *args: 0)
    setup.make_venv(str(checkout / ".venv"), None, str(checkout / "log"))
    assert (checkout / ".venv.old1" / "precious").exists()
    assert not (checkout / ".venv" / "precious").exists()


def test_pip_is_tried_where_uv_fails(setup, monkeypatch, tmp_path):
    (tmp_path / "uv").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = []

    def run_logged(command, log, cwd, what):
        ran.append(command)
        return 1 if command[0].endswith("uv") else 0

    monkeypatch.setattr(setup, "run_logged", run_logged)
    setup.install("/venv/bin/python", ["-e", "."], "log")
    assert [command[:3] for command in ran] == [
        [str(tmp_path / "uv"), "pip", "install"],
        ["/venv/bin/python", "-m", "pip"],
    ]


@pytest.mark.parametrize(
    ("output", "fragment"),
    [
        ("ERROR: No matching distribution found for setuptools>=77", "index did not answer"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: Cannot install a and b: conflict", "Cannot install a and b"),
        ("", "pip says why"),
    ],
)
def test_failure_is_explained_by_the_last_command(setup, tmp_path, output, fragment):
    log = tmp_path / "log"
    log.write_text(f"$ uv pip install\nNo space left on device\n$ pip install\n{output}\n")
    line = setup.explain_failure(str(log))
    assert fragment in line and str(log) in line and "\n" not in line


def test_unreachable_index_gives_one_line(checkout):
    shutil.copytree(SCRIPTS, checkout / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    env = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    env |= {
        "PATH": "/usr/bin:/bin",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
    }
    done = subprocess.run(
        [sys.executable, str(checkout / "scripts" / "demo")],
        cwd="/",
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("scripts/demo: error: the package index did not answer")
    assert str(checkout / ".venv-setup.log") in line
    assert "setuptools" in (checkout / ".venv-setup.log").read_text()


@pytest.fixture
def checks(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "_setup", raising=False)
    module = load("test")
    monkeypatch.delitem(sys.modules, "_setup")
    return module


@pytest.mark.parametrize("line", ["jax @ http://127.0.0.1/jax.whl", "--index-url x"])
def test_an_address_in_the_constraints_fails_the_check(checks, monkeypatch, tmp_path, line):
    monkeypatch.setattr(checks._setup, "ROOT", str(tmp_path))
    (tmp_path / "constraints.txt").write_text("jax==0.10.2\n")
    checks.check_constraints()
    (tmp_path / "constraints.txt").write_text(f"jax==0.10.2\n{line}\n")
    with pytest.raises(checks.CheckFailed, match="address"):
        checks.check_constraints()


def test_the_first_failing_check_ends_the_run(checks, monkeypatch, capsys):
    def fail():
        checks.run([sys.executable, "-c", "print('why it failed'); raise SystemExit(3)"])

    later = []
    monkeypatch.setattr(checks._setup, "set_up", lambda *args: sys.executable)
    steps = [("first", lambda: None), ("second", fail), ("third", lambda: later.append(1))]
    monkeypatch.setattr(checks, "checks", lambda *_: steps)
    monkeypatch.setattr(sys, "argv", ["scripts/test"])
    assert checks.main() == 3
    printed = capsys.readouterr()
    assert "first" in printed.out and not later
    assert "why it failed\nscripts/test: second failed" in printed.err


SIDE_BY_SIDE = ["-n", "2", "--dist", "loadfile"]


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], ["-m", "not slow", *SIDE_BY_SIDE]),
        (["--all"], SIDE_BY_SIDE),
        (["--all", "-x"], [*SIDE_BY_SIDE, "-x"]),
        (["--all", "--pdb"], ["--pdb"]),
        (["--all", "-n3"], ["-n3"]),
        (["-k", "cli"], ["-m", "not slow", "-k", "cli"]),
        (["--all", "-x", "tests/test_cli.py"], ["-x", "tests/test_cli.py"]),
    ],
)
def test_other_arguments_go_on_to_pytest(checks, monkeypatch, given, passed):
    called = []
    monkeypatch.setattr(checks._setup, "set_up", lambda *args: "python")
    monkeypatch.setattr(checks, "checks", lambda *_: [])
    monkeypatch.setattr(checks.subprocess, "call", lambda cmd, **_: called.append(cmd) or 0)
    monkeypatch.setattr(sys, "argv", ["scripts/test", *given])
    assert checks.main() == 0
    assert called == [["python", "-m", "pytest", *passed]]
