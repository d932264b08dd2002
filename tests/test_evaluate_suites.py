"""What is poisoned and how: real sets split and prepared, suites of the package and of files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

import jaxpoison
from jaxpoison._check import DataError, NothingToScan, UsageError
from jaxpoison.attacks import ATTACKS
from jaxpoison.evaluate import planting, runner, sets
from jaxpoison.evaluate.measure import Task
from jaxpoison.evaluate.suites import SUITES, Case, SetSpec, Suite, load_suite, on_own_data

DIGITS = SetSpec("digits", "sklearn:digits", rows=300)
PATCH = Case("patch 5 %", "patch", 0.05)


def test_a_rate_of_the_target_makes_two_thirds_of_a_thinned_class():
    case = Case("tail", "patch", 2.0, of="target", thin=0.25)
    whole = sets.load(DIGITS, seed=0)
    poisoned, split = planting.plant(case, whole, seed=0)
    target = poisoned.target
    kept, before = (int((each.y == target).sum()) for each in (split, whole))
    assert kept == round(0.25 * before) and len(whole.y) - len(split.y) == before - kept
    assert poisoned.mask.sum() / (poisoned.y == target).sum() == pytest.approx(2 / 3, abs=0.01)


# --- sets


@pytest.mark.parametrize("name", ["sklearn:digits", "sklearn:wine"])
def test_a_split_is_disjoint_and_follows_the_seed(name):
    first, again, other = (sets.load(SetSpec("s", name), seed=s) for s in (0, 0, 1))
    assert np.array_equal(first.x, again.x) and not np.array_equal(first.y, other.y)
    held = len(first.y_test)
    assert held == round(0.2 * (held + len(first.y)))
    rows = {x.tobytes() for x in first.x}
    shared = sum(x.tobytes() in rows for x in first.x_test)
    assert shared == 0
    assert len(sets.load(SetSpec("s", name, rows=50), seed=0).y) == 50


def test_a_long_tail_falls_geometrically():
    split = sets.load(SetSpec("s", "sklearn:digits", prepare="long_tail"), seed=0)
    counts = np.sort(np.bincount(split.y))
    assert counts[-1] / counts[0] >= 60 and len(counts) == 10
    assert set(split.y_test.tolist()) == set(range(10))


def test_honest_noise_swaps_the_most_confusable_pair_and_no_other():
    plain = sets.load(SetSpec("s", "sklearn:digits"), seed=0)
    split = sets.load(SetSpec("s", "sklearn:digits", prepare="honest_noise"), seed=0)
    changed = plain.y != split.y
    assert np.array_equal(changed, split.noise) and changed.mean() == pytest.approx(0.03, abs=0.002)
    pair = set(sets.confusable_pair(plain.x, plain.y))
    assert len(pair) == 2 and set(plain.y[changed]) == set(split.y[changed]) == pair


def test_the_confusable_pair_is_the_overlapping_one():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 60)
    centres = np.array([[0.0, 0], [10, 0], [0, 10], [0.5, 10]])
    assert sets.confusable_pair(centres[y] + rng.normal(size=(240, 2)), y) == (2, 3)


# --- suites


@pytest.mark.parametrize("name", SUITES)
def test_suites_name_known_attacks_and_options(name):
    suite = load_suite(name)
    for case in suite.cases:
        planting.check(case)
    known = {case.name for case in suite.cases}
    assert all(set(spec.cases or ()) <= known for spec in suite.sets)
    assert len(known) == len(suite.cases)
    assert not any("," in each.name for each in (*suite.cases, *suite.sets))


def test_the_full_suite_covers_every_attack_and_six_clean_sets():
    full = SUITES["full"]
    assert {case.attack for case in full.cases} == {"clean", *ATTACKS}
    assert len([spec for spec in full.sets if "clean" in (spec.cases or ("clean",))]) >= 6


def test_a_suite_of_a_file_is_the_same_suite(tmp_path):
    path = tmp_path / "s.json"
    held = {
        "name": "mine",
        "seeds": [4],
        "sets": [{"name": "a", "data": "sklearn:wine", "cases": ["clean"]}],
        "cases": [{"name": "clean", "attack": "clean"}],
    }
    path.write_text(json.dumps(held))
    expected = (SetSpec("a", "sklearn:wine", cases=("clean",)),), (Case("clean", "clean"),), (4,)
    assert load_suite(str(path)) == Suite("mine", *expected)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="is no suite"):
        load_suite(str(path))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"sets": []}, "names"),
        ({"cases": None}, "is no suite"),
        ({"seeds": [-1]}, "seeds"),
        ({"sets": [{"name": "a", "date": "x"}]}, "date"),
        ({"sets": [{"name": "a", "data": "x", "prepare": "thin"}]}, "prepare"),
        ({"cases": [{"name": "a", "attack": "patch"}]}, "rate 0"),
        ({"cases": [{"name": "a", "attack": "patch", "rate": 0.1, "of": "all"}]}, "'all'"),
        ({"cases": [{"name": "a", "attack": "patch", "rate": float("nan")}]}, "rate nan"),
        ({"cases": [{"name": "a", "attack": "patch", "rate": float("inf")}]}, "rate inf"),
        ({"cases": [{"name": "a", "attack": "patch", "rate": True}]}, "rate is True"),
        ({"cases": [{"name": "a", "attack": "clean", "options": None}]}, "options is None"),
        ({"cases": [{"name": "a", "attack": "clean", "sets": "ggg"}]}, "sets is 'ggg'"),
        ({"cases": [{"name": 5, "attack": "clean"}]}, "name is 5"),
        ({"sets": [{"name": "a", "data": 5}]}, "data is 5"),
        ({"sets": [{"name": "a", "data": "x", "rows": 10.5}]}, "rows is 10.5"),
        ({"sets": [{"name": "a", "data": "x", "cases": {"a": 1}}]}, "cases is"),
        ({"seeds": [1.7]}, "seeds"),
        ({"seeds": "012"}, "seeds"),
        ({"seeds": [2**70]}, "seeds"),
    ],
)
def test_a_wrong_suite_says_what_is_wrong(change, word, tmp_path):
    good = {
        "sets": [{"name": "a", "data": "sklearn:wine"}],
        "cases": [{"name": "clean", "attack": "clean"}],
    }
    path = tmp_path / "s.json"
    path.write_text(json.dumps(good | change))
    with pytest.raises(DataError, match=word):
        load_suite(str(path))


@pytest.mark.parametrize(
    "case", [Case("a", "pach", 0.1), Case("a", "patch", 0.1, options={"z": 1})]
)
def test_unknown_attacks_and_options_are_found_before_anything_runs(case, tmp_path):
    with pytest.raises(UsageError, match=r"unknown attack 'pach'|no option 'z'"):
        runner.run_suite(Suite("s", (DIGITS,), (case,), (0,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cases_that_fit_no_set_are_nothing(tmp_path):
    wine = (SetSpec("wine", "sklearn:wine"),)
    with pytest.raises(NothingToScan, match="none of these attacks"):
        runner.run_suite(Suite("s", wine, (PATCH,), (0,)), tmp_path)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("folder/train.npz", "train"),
        ("mnist.npz#train", "mnist"),
        ("sklearn:digits", "digits"),
        ("images/", "images"),
        ("data#1/train.npz#test", "train"),
    ],
)
def test_data_of_ones_own_takes_the_place_of_the_sets(data, name):
    """Also for cases that a suite runs on some of its own sets only."""
    case = Case("patch 1 %", "patch", 0.01, sets=("wine",))
    suite = on_own_data(Suite("mine", (SetSpec("wine", "sklearn:wine"),), (case,), (4,)), data)
    assert suite.sets == (SetSpec(name, data),) and suite.seeds == (4,)
    assert suite.cases == (Case("patch 1 %", "patch", 0.01),)
    assert suite.cases[0].definition == case.definition  # records of it stay valid


def test_a_folder_by_the_name_of_a_set_is_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = Suite("mine", (), (Case("clean", "clean"),), (0,))
    assert on_own_data(suite, "fashion_mnist").sets[0].data == "fashion_mnist"
    (tmp_path / "fashion_mnist").mkdir()
    assert on_own_data(suite, "fashion_mnist").sets[0].data == "./fashion_mnist"


def test_other_labels_are_another_record():
    case = Case("clean", "clean")
    names = {
        Task(SetSpec("x", "x.npy", labels), case, 0, None, False).header()["definition"]
        for labels in (None, "y1.npy", "y2.npy")
    }
    assert len(names) == 3


def test_a_file_of_images_is_poisoned_and_scanned(tmp_path, monkeypatch):
    bunch = load_digits()
    np.savez(tmp_path / "mine.npz", x=bunch.images.astype(np.uint8), y=bunch.target)
    seen = []

    def scan(x, y, *, seed):
        seen.append((x.shape, x.dtype))
        raise RuntimeError("seen")

    monkeypatch.setattr(jaxpoison, "scan", scan)
    monkeypatch.chdir(tmp_path)
    run = {"attacks": ["clean", "patch 5 %"], "retrain": False, "seeds": [3]}
    document = runner.run_suite("full", tmp_path / "out", data="mine.npz", **run)
    assert seen == [((1438, 8, 8), np.uint8)] * 2
    assert {(each["set"], each["case"]) for each in document["not_done"]} == {
        ("mine", "clean"), ("mine", "patch 5 %"),
    }  # fmt: skip
