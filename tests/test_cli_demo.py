"""The demo: what it plants, what it calls found, and that the truth stays out of the scan."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import jaxpoison
from jaxpoison._check import UsageError
from jaxpoison.cli import main
from jaxpoison.cli.demo import choose_folder, compare, load_images, plant


@pytest.fixture
def images():
    rng = np.random.default_rng(3)
    return rng.integers(0, 200, (500, 28, 28), dtype=np.uint8), rng.integers(0, 10, 500)


def test_plant_changes_the_planted_rows_and_nothing_else(images):
    x, y = images
    before = x.copy(), y.copy()
    planted = plant(x, y, rate=0.02, seed=0)
    assert np.array_equal(x, before[0]) and np.array_equal(y, before[1])
    changed = np.flatnonzero((planted.x != x).any((1, 2)) | (planted.y != y))
    assert np.array_equal(changed, planted.rows) and len(changed) == 10
    assert (y[planted.rows] != planted.target).all()
    assert (planted.y[planted.rows] == planted.target).all()
    patch = planted.x[planted.rows, -planted.side - 1 : -1, -planted.side - 1 : -1]
    assert planted.side == 3 and (patch == x.max()).all()
    assert planted.x.dtype == x.dtype


def test_plant_follows_the_seed(images):
    first, again, other = (plant(*images, rate=0.02, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.rows, again.rows)
    assert not np.array_equal(first.rows, other.rows)


@pytest.mark.parametrize("rate", [0.0, 0.0001, 1.0])
def test_plant_refuses_an_impossible_rate(images, rate):
    with pytest.raises(UsageError, match="would plant"):
        plant(*images, rate=rate, seed=0)


@pytest.mark.parametrize(
    ("verdict", "flagged", "is_found"),
    [
        ("poisoned", range(10), True),
        ("suspicious", range(5), True),
        ("poisoned", range(4), False),
        ("clean", range(10), False),
        ("poisoned", range(20), True),
        ("poisoned", range(21), False),
        ("poisoned", [], False),
    ],
)
def test_found_takes_a_verdict_recall_and_precision(verdict, flagged, is_found):
    line, found = compare(verdict, np.array(flagged, dtype=int), np.arange(10), 110)
    assert found is is_found
    hits = min(len(flagged), 10)
    assert f"{hits} of 10 planted rows found" in line
    assert f"{len(flagged) - hits} false alarms among 100 clean rows" in line


def test_the_default_folder_gets_a_number_if_it_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose_folder(None) == Path("jaxpoison-demo")
    for name in ("jaxpoison-demo", "jaxpoison-demo-2"):
        Path(name).mkdir()
    assert choose_folder(None) == Path("jaxpoison-demo-3")


@pytest.mark.parametrize("has_debian_package", [True, False])
def test_the_dataset_is_real(monkeypatch, has_debian_package):
    if not has_debian_package:
        monkeypatch.setattr("jaxpoison.sources.bundled.FASHION_MNIST", os.devnull)
    elif not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    name, x, y = load_images()
    side, rows = (28, 12_000) if has_debian_package else (8, 1797)
    assert x.shape == (rows, side, side) and y.shape == (rows,), name
    assert sorted(set(y.tolist())) == list(range(10))


@pytest.mark.parametrize(("finds", "status"), [(True, 0), (False, 1)])
def test_demo_scans_the_file_and_reads_the_truth_after(
    monkeypatch, tmp_path, images, capsys, finds, status
):
    out = tmp_path / "demo"
    seen = []

    def run(plan, *, progress):
        seen.append(plan)
        data = np.load(plan["data"])
        white = (data["x"][:, 24:27, 24:27] == data["x"].max()).all((1, 2))
        rows = np.flatnonzero(white) if finds else np.arange(0)
        return SimpleNamespace(
            verdict="poisoned",
            summary=lambda: "POISONED",
            flagged_indices=lambda: rows,
            write=lambda folder: Path(folder).mkdir(),
        )

    fake = ModuleType("jaxpoison.scanning")
    fake.run = run
    fake.ScanPlan = fake.Method = fake.Resources = lambda **options: options
    monkeypatch.setitem(sys.modules, "jaxpoison.scanning", fake)
    monkeypatch.setattr(jaxpoison, "scanning", fake, raising=False)
    monkeypatch.setattr("jaxpoison.cli.demo.load_images", lambda: ("Noise", *images))
    assert main(["demo", "--out", str(out)]) == status
    text = capsys.readouterr().out
    hits = 5 if finds else 0
    assert f"{hits} of 5 planted rows found" in text
    assert f"report: {out / 'report' / 'report.html'}" in text
    (plan,) = seen
    assert set(np.load(plan["data"]).files) == {"x", "y"}
    assert plan["method"] == {} and plan["labels"] is None
    assert np.load(out / "truth" / "planted.npy").shape == (5,)


def test_demo_keeps_what_is_in_the_folder(tmp_path, capsys):
    (tmp_path / "precious").touch()
    assert main(["demo", "--out", str(tmp_path)]) == 4
    assert "precious" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.slow
def test_demo_finds_the_poison(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert "planted rows found" in capsys.readouterr().out
    assert (tmp_path / "demo" / "report" / "report.html").stat().st_size > 1000
