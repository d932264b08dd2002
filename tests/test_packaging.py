"""What ships is what is on disk, and what it asks for is what was tested."""

from __future__ import annotations

import fnmatch
import itertools
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jaxpoison

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
FORWARDING = {"cuda12", "cuda13", "tpu"}
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def shipped_folders() -> list[Path]:
    """Every folder below the package, the linked one too."""
    found = []
    for folder, folders, _ in os.walk(ROOT / "jaxpoison", followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        found.append(Path(folder))
    return found


def test_listed_packages_are_those_on_disk():
    on_disk = {
        ".".join(f.relative_to(ROOT).parts) for f in shipped_folders() if list(f.glob("*.py"))
    }
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(on_disk)
    for folder in shipped_folders():
        assert (folder / "__init__.py").is_file(), f"{folder} has no __init__.py"


def test_every_data_file_is_shipped():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    for folder in shipped_folders():
        globs = patterns.get(".".join(folder.relative_to(ROOT).parts), [])
        for path in folder.iterdir():
            if path.is_file() and path.suffix not in {".py", ".pyc"}:
                assert any(fnmatch.fnmatch(path.name, g) for g in globs), f"{path} would not ship"
    assert (ROOT / "jaxpoison" / "py.typed").is_file()


def test_kernels_is_a_relative_link():
    assert (ROOT / "jaxpoison" / "kernels").is_symlink()
    assert os.readlink(ROOT / "jaxpoison" / "kernels") == os.path.join("..", "kernels")


def test_kernels_refuses_to_be_a_top_level_package():
    done = subprocess.run(
        [sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError") and "jaxpoison.kernels" in last


def test_version_is_the_same_everywhere():
    assert jaxpoison.__version__ == PROJECT["project"]["version"]
    assert f"[{jaxpoison.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_constraints_hold_pins_and_no_address():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text
    for pin in PINS:
        assert pin.url is None
        assert [spec.operator for spec in pin.specifier] == ["=="], pin


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_constraints_cover_every_dependency(python):
    lists = [PROJECT["project"]["dependencies"], *(EXTRAS[e] for e in EXTRAS.keys() - FORWARDING)]
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "os_name": "posix",
        "platform_python_implementation": "CPython",
    }
    for wanted in map(Requirement, itertools.chain(*lists)):
        if wanted.name == "jaxpoison":
            continue
        versions = [
            next(iter(pin.specifier)).version
            for pin in PINS
            if canonicalize_name(pin.name) == canonicalize_name(wanted.name)
            and (pin.marker is None or pin.marker.evaluate(environment))
        ]
        assert len(versions) == 1, f"{wanted} on {python}: {versions}"
        assert wanted.specifier.contains(versions[0]), f"{wanted}: tested with {versions[0]}"


def test_requirements_are_floors_only():
    for line in itertools.chain(PROJECT["project"]["dependencies"], *EXTRAS.values()):
        operators = {spec.operator for spec in Requirement(line).specifier}
        assert operators <= {">="}, f"{line}: a ceiling ages badly"


def test_accelerator_extras_only_forward_to_jax():
    for extra in FORWARDING:
        assert EXTRAS[extra] == [f"jax[{extra}]"]


def test_no_lock_file():
    locks = {"Pipfile.lock", "pdm.lock", "poetry.lock", "pylock.toml", "uv.lock"}
    assert not locks & {path.name for path in ROOT.iterdir()}


@pytest.mark.parametrize(
    "module", ["jaxpoison", "jaxpoison.cli", "jaxpoison.report", "jaxpoison.sources"]
)
def test_host_rooms_load_no_jax(module):
    code = f"import sys, {module}; print(*{{'jax', 'jaxlib', 'flax', 'optax'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_public_names_are_listed_and_unknown_ones_refused():
    assert set(jaxpoison.__all__) <= set(dir(jaxpoison))
    with pytest.raises(AttributeError, match="no attribute 'scann'"):
        _ = jaxpoison.scann


def test_the_package_runs_without_jaxtyping():
    """Shapes in signatures are for readers and type checkers; a bare machine lacks the package."""
    code = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "jaxtyping":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import jaxpoison.detect, jaxpoison.kernels, jaxpoison.scanning, jaxpoison.training
import jaxpoison.models.networks, jaxpoison.models.optimise
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
