"""The doctor: what it says of a whole installation, of a missing extra, and of a broken core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata, util
from pathlib import Path

import jsonschema
import pytest
from packaging.requirements import Requirement

from jaxpoison.cli import doctor, main
from jaxpoison.sources import table
from jaxpoison.stream._opening import ENGINES

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

TEXT = {"type": ["string", "null"]}
COUNT = {"type": ["integer", "null"], "minimum": 0}


def exactly(**properties):
    return {
        "type": "object", "properties": properties, "required": list(properties),
        "additionalProperties": False,
    }  # fmt: skip


SCHEMA = exactly(
    works={"type": "boolean"},
    jaxpoison={"type": "string"},
    python={"type": "string", "pattern": r"^3\."},
    packages={
        "type": "object",
        "required": list(doctor.CORE),
        "additionalProperties": exactly(version=TEXT, error=TEXT),
    },
    jax=exactly(
        backend=TEXT,
        devices={
            "type": "array",
            "items": exactly(
                id={"type": "integer"}, platform={"type": "string"}, kind={"type": "string"}
            ),
        },
        error=TEXT,
    ),
    machine=exactly(
        system={"type": "string"}, cpus=COUNT, memory_bytes=COUNT, temporary_folder=TEXT,
        temporary_free_bytes=COUNT,
    ),
    formats={
        "type": "array",
        "items": exactly(
            name={"type": "string"}, endings={"type": "array", "items": {"type": "string"}},
            usable={"type": "boolean"}, install=TEXT,
        ),
    },
    engines={
        "type": "array",
        "items": exactly(
            name={"type": "string"}, what={"type": "string"}, usable={"type": "boolean"},
            install=TEXT,
        ),
    },
)  # fmt: skip


def told(capsys, status=0):
    assert main(["doctor", "--json"]) == status
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    jsonschema.validate(found, SCHEMA)
    return found


def without(monkeypatch, *modules):
    """As if these modules were not installed."""
    find, version = util.find_spec, metadata.version

    def find_spec(name, *args):
        return None if name.partition(".")[0] in modules else find(name, *args)

    def find_version(name):
        if doctor.CORE.get(name, name) in modules:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(util, "find_spec", find_spec)
    monkeypatch.setattr(metadata, "version", find_version)


def test_a_whole_installation(capsys):
    found = told(capsys)
    assert found["works"] and found["jax"]["backend"] and found["jax"]["devices"]
    assert all(package["error"] is None for package in found["packages"].values())
    assert [each["name"] for each in found["formats"]] == [each.name for each in table.FORMATS]
    assert all((each["install"] is None) == each["usable"] for each in found["formats"])
    assert [each["name"] for each in found["engines"]] == ["local", "spmd", "ray"]
    assert found["engines"][0]["usable"] and found["machine"]["cpus"] >= 1


def test_the_page_names_everything_and_has_no_spaces_at_its_ends(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "All that every scan needs works."
    assert all(line == line.rstrip() for line in lines)
    text = "\n".join(lines)
    for name in (*doctor.CORE, "device 0", "CPUs", "memory", "temporary folder", "engine local"):
        assert name in text
    for each in table.FORMATS:
        assert each.name in text


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [(each.module, each.name, each.extra) for each in table.FORMATS if each.module],
)
def test_a_missing_extra_is_named_with_its_command(monkeypatch, capsys, module, name, extra):
    without(monkeypatch, module)
    found = told(capsys)  # the core works without it
    (line,) = [each for each in found["formats"] if each["name"] == name]
    assert not line["usable"] and line["install"] == f"pip install 'jaxpoison[{extra}]'"
    assert main(["doctor"]) == 0
    (shown,) = [text for text in capsys.readouterr().out.splitlines() if name in text]
    assert shown.endswith(f"no; pip install 'jaxpoison[{extra}]'")


def test_a_missing_core_package_is_status_2(monkeypatch, capsys):
    without(monkeypatch, "optax")
    found = told(capsys, status=2)
    assert found["packages"]["optax"] == {"version": None, "error": "is not installed"}
    assert not found["works"] and found["jax"]["error"] is None
    assert main(["doctor"]) == 2
    assert capsys.readouterr().out.splitlines()[-1].startswith("BROKEN: optax;")


def test_a_package_that_fails_at_import_is_status_2(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "flax", None)  # importing it raises
    found = told(capsys, status=2)
    assert found["packages"]["flax"]["version"]
    assert found["packages"]["flax"]["error"].startswith("cannot be imported: ModuleNotFound")


def test_without_jax_nothing_is_tried(monkeypatch, capsys):
    without(monkeypatch, "jax")
    found = told(capsys, status=2)
    assert found["jax"]["error"] == "jax is not installed" and found["jax"]["devices"] == []
    assert not any(each["usable"] for each in found["engines"])


def test_a_jax_that_cannot_start_is_one_clear_line():
    """In a process of its own: jax keeps what it has once found."""
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "jaxpoison", "doctor"],
        capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [text for text in done.stdout.splitlines() if text.startswith("backend")]
    assert "cannot start: " in line and "no_such_platform" in line
    assert "JAX_PLATFORMS=cpu" in done.stdout.splitlines()[-1]


def test_what_is_looked_for_is_what_the_package_asks_for():
    wanted = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert set(doctor.CORE) == wanted | {"jaxlib"}
    extras = PROJECT["optional-dependencies"]
    assert {each.extra for each in table.FORMATS if each.extra} <= set(extras)
    assert {each.extra for each in doctor.ENGINES if each.extra} <= set(extras)
    assert {each.name for each in doctor.ENGINES} <= set(ENGINES)
    assert all(bool(each.module) == bool(each.extra) for each in (*table.FORMATS, *doctor.ENGINES))


def test_nonsense_is_wrong_usage(capsys):
    assert main(["doctor", "--jso"]) == 4
    assert "--jso" in capsys.readouterr().err


def test_nothing_heavy_is_loaded_before_it_runs():
    code = (
        "import sys, jaxpoison.cli.doctor, jaxpoison.sources.table as _\n"
        "print(sorted({'jax', 'pyarrow', 'grain', 'h5py', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
