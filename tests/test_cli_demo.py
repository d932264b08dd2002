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
from jaxpoison.cli.demo import (
    choose_folder,
    compare,
    explain_certificate,
    load_images,
    plant,
)


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

    def run(plan, *, progress, out, resume, engine):
        seen.append(plan)
        Path(out).mkdir()
        data = np.load(plan["data"])
        white = (data["x"][:, 24:27, 24:27] == data["x"].max()).all((1, 2))
        rows = np.flatnonzero(white) if finds else np.arange(0)
        return SimpleNamespace(
            verdict="poisoned",
            summary=lambda: "POISONED",
            flagged_indices=lambda: rows,
        )

    fake = ModuleType("jaxpoison.scanning")
    fake.run = run
    fake.ScanPlan = fake.Method = fake.Resources = lambda **options: options
    monkeypatch.setitem(sys.modules, "jaxpoison.scanning", fake)
    monkeypatch.setattr(jaxpoison, "scanning", fake, raising=False)
    monkeypatch.setattr("jaxpoison.cli.demo.load_images", lambda: ("Noise", *images))
    monkeypatch.setattr("jaxpoison.cli.demo.certify_digits", lambda out, *, quiet: out.name)
    assert main(["demo", "--out", str(out)]) == status
    text = capsys.readouterr().out
    hits = 5 if finds else 0
    assert f"{hits} of 5 planted rows found" in text
    assert f"report: {out / 'report' / 'report.html'}" in text
    assert text.splitlines()[-1] == "certified"
    (plan,) = seen
    assert set(np.load(plan["data"]).files) == {"x", "y"}
    assert plan["method"] == {} and plan["labels"] is None
    assert np.load(out / "truth" / "planted.npy").shape == (5,)


def test_demo_keeps_what_is_in_the_folder(tmp_path, capsys):
    (tmp_path / "precious").touch()
    assert main(["demo", "--out", str(tmp_path)]) == 4
    assert "precious" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_one_prediction_is_explained_from_its_votes():
    columns = {
        "index": [4, 5, 6, 7], "label": [1, 1, 2, 0], "prediction": [1, 1, 2, 2],
        "radius": [9, 3, 5, 8], "votes_first": [14, 9, 11, 13], "votes_second": [1, 8, 1, 2],
        "runner_up": [0, 2, 0, 0],
    }  # fmt: skip
    document = {"subsets": 20, "train": {"rows": 1000}, "test": {"rows": 4}}
    report = SimpleNamespace(
        document=document, columns={name: np.array(v) for name, v in columns.items()}
    )
    text = explain_certificate(report, "COMMAND")
    assert "COMMAND" in text and "20 models" in text and "1,000 images" in text
    # the right rows have radii 9, 3 and 5: row 6 is in the middle
    assert "Image 6 is a 2, say 11 of them; 0 comes next with 1." in text
    assert "lead of 10 by 2" in text and "So 5 of them" in text and "radius 5" in text
    assert "50 % are predicted rightly with a radius of 5 or more" in text


@pytest.mark.slow
def test_demo_finds_the_poison(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    text = capsys.readouterr().out
    assert "planted rows found" in text and "predicted rightly with a radius of" in text
    assert (tmp_path / "demo" / "certified" / "certificate.html").stat().st_size > 1000
    assert (tmp_path / "demo" / "report" / "report.html").stat().st_size > 1000
