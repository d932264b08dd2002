"""The attack command: two files or none, the truth apart, one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxpoison.attacks import ATTACKS, poison, settings_of
from jaxpoison.cli import attack, main

HEAVY = {"jax", "flax", "optax", "numpy", "scipy", "sklearn", "pyarrow", "rich", "jinja2"}


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """A folder with a small dataset, which is also the working folder."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200, (120, 12, 12), dtype=np.uint8)
    y = np.arange(120) % 4 * 3
    np.savez(tmp_path / "clean.npz", x=x, y=y)
    monkeypatch.chdir(tmp_path)
    return x, y


def error_line(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxpoison: error: ")
    return line


def names(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


def test_the_defender_sees_x_and_y_only(clean, capsys):
    x, y = clean
    options = ["--rate", "0.1", "--target", "6", "--seed", "3", "--set", "size=4"]
    assert main(["attack", "patch", "clean.npz", "--out", "bad.npz", *options]) == 0
    assert names() == ["bad.npz", "bad.truth.npz", "clean.npz"]
    out = poison("patch", x, y, rate=0.1, target=6, seed=3, size=4)
    with np.load("bad.npz") as data:
        assert sorted(data) == ["x", "y"]
        assert np.array_equal(data["x"], out.x) and np.array_equal(data["y"], out.y)
    with np.load("bad.truth.npz", allow_pickle=False) as truth:
        assert sorted(truth) == ["cover", "mask", "origin", "params", "y_true"]
        for name in ("mask", "cover", "origin", "y_true"):
            assert np.array_equal(truth[name], getattr(out, name))
        facts = json.loads(str(truth["params"]))
    assert facts["params"] == out.params and facts["kind"] == "backdoor" and facts["target"] == 6
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "patch: 12 of 120 rows poisoned (10.00 %), target 6",
        "out: bad.npz",
        "truth: bad.truth.npz",
    ]
    assert printed.err == ""


def test_json_and_quiet(clean, capsys):
    command = ["attack", "patch_source_specific", "clean.npz", "--rate", "0.1", "--out", "b.npz"]
    assert main([*command, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["poisoned"] == summary["cover"] == 12 and summary["rows"] == 120
    assert summary["kind"] == "backdoor" and summary["truth"] == "b.truth.npz"
    assert summary["source"] != summary["target"]
    assert main([*command, "--force", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_an_attack_that_needs_a_network_gets_one(clean, capsys):
    command = ["attack", "feature_collision", "clean.npz", "--rate", "0.05", "--out", "b.npz"]
    assert main([*command, "--set", "steps=2", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["rows"] == 119 and len(summary["params"]["victims"]) == 1


@pytest.mark.parametrize("existing", ["b.npz", "b.truth.npz"])
def test_nothing_is_overwritten_unasked(clean, capsys, existing):
    Path(existing).write_bytes(b"precious")
    command = ["attack", "patch", "clean.npz", "--out", "b.npz", "--rate", "0.1"]
    assert main(command) == 4
    assert f"'{existing}' exists" in error_line(capsys)
    assert Path(existing).read_bytes() == b"precious" and len(names()) == 2
    assert main([*command, "--force"]) == 0
    assert names() == ["b.npz", "b.truth.npz", "clean.npz"]


def test_a_write_that_fails_leaves_nothing(clean, capsys, monkeypatch):
    calls = []
    save = np.savez

    def failing(file, **arrays):
        calls.append(sorted(arrays))
        if len(calls) == 2:
            raise OSError(28, "No space left on device", "b.npz")
        save(file, **arrays)

    monkeypatch.setattr(np, "savez", failing)
    assert main(["attack", "patch", "clean.npz", "--out", "b.npz", "--rate", "0.1"]) == 2
    assert "No space left" in error_line(capsys)
    assert len(calls) == 2 and names() == ["clean.npz"]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "NAME or DATA is missing"),
        (["patch"], "NAME or DATA is missing"),
        (["patch", "clean.npz"], "--out is missing"),
        (["patch", "clean.npz", "--out", "b.npy"], "ends with .npz"),
        (["patch", "clean.npz", "--out", "b.truth.npz"], "not .truth.npz"),
        (["patch", "clean.npz", "--out", "nowhere/b.npz"], "'nowhere' does not exist"),
        (["ptch", "clean.npz", "--out", "b.npz"], "did you mean 'patch'"),
        (["patch", "clean.npz", "--out", "b.npz", "--rate", "0"], "above 0"),
        (["patch", "clean.npz", "--out", "b.npz", "--rate", "x"], "got 'x'"),
        (["patch", "clean.npz", "--out", "b.npz", "--rate", "0.99"], "rate of at most 0.75"),
        (["patch", "clean.npz", "--out", "b.npz", "--target", "-1"], "class number"),
        (["patch", "clean.npz", "--out", "b.npz", "--target", "1"], "target is 1"),
        (["patch", "clean.npz", "--out", "b.npz", "--set", "size"], "KEY=VALUE"),
        (["patch", "clean.npz", "--out", "b.npz", "--set", "sise=4"], "no setting 'sise'"),
        (["patch", "clean.npz", "--out", "b.npz", "--set", "size=big"], "of a wrong type or value"),
        (["patch", "clean.npz", "--out", "b.npz", "--set", "size=40"], "size is 40"),
        (["tabular_trigger", "clean.npz", "--out", "b.npz"], "needs rows"),
        (["patch", "clean.npz", "--out", "b.npz", "--seed", "-1"], "at least 0"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(clean, capsys, arguments, fragment):
    rated = [] if "--rate" in arguments else ["--rate", "0.1"]
    assert main(["attack", *arguments, *rated]) == 4
    assert fragment in error_line(capsys)
    assert names() == ["clean.npz"]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["patch", "--set", "value=300"], "give 0 to 255"),
        (["patch", "--set", "value=-5"], "give 0 to 255"),
        (["patch", "--set", "value=1e39"], "give 0 to 255"),
        (["patch", "--set", "rate=0.1"], "give it as --rate"),
        (["patch", "--set", "seed=3"], "give it as --seed"),
        (["patch", "--set", "progress=1"], "no setting 'progress'"),
        (["blend", "--set", "alpha=true"], "alpha is True"),
        (["flood_duplicates", "--set", "added=False"], "give true or false"),
        (["flood_duplicates", "--set", "added=0"], "give true or false"),
        (["flood_duplicates", "--set", "seeds=true"], "seeds is True"),
        (["sig", "--set", "amplitude=0.001"], "in name only"),
        (["noise", "--set", "scale=0.001"], "12 of 12 rows"),
        (["patch", "--target", "dog"], "give a class number"),
    ],
)
def test_settings_that_would_do_something_else(clean, capsys, arguments, fragment):
    name, *rest = arguments
    assert main(["attack", name, "clean.npz", "--out", "b.npz", "--rate", "0.1", *rest]) == 4
    assert fragment in error_line(capsys) and names() == ["clean.npz"]


def test_names_that_are_numbers(clean, capsys):
    """As text 10 comes before 2: class 2 is called 10."""
    x, _ = clean
    np.savez("named.npz", x=x, y=(np.arange(120) % 12).astype(str))
    command = ["attack", "patch", "named.npz", "--out", "b.npz", "--rate", "0.1", "--target"]
    assert main([*command, "2"]) == 4
    assert "the name of class 4 and the number of another" in error_line(capsys)
    assert main([*command, "0"]) == 0  # both
    assert "target 0 (0)" in capsys.readouterr().out


def test_rows_that_stay_as_they_were_are_counted(clean, capsys):
    x, y = clean
    np.savez("half.npz", x=np.where(np.arange(120)[:, None, None] % 2, x, 0), y=y)
    assert main(["attack", "corrupt", "half.npz", "--out", "b.npz", "--rate", "1"]) == 0
    assert "60 of them as they were" in capsys.readouterr().out


def test_classes_with_names(clean, capsys):
    x, y = clean
    np.savez("named.npz", x=x, y=np.array(["ant", "bee", "cat", "dog"])[y // 3])
    command = ["attack", "patch", "named.npz", "--out", "b.npz", "--rate", "0.1", "--target"]
    assert main([*command, "cow"]) == 4
    assert "one of 'ant', 'bee', 'cat', 'dog'" in error_line(capsys)
    assert main([*command, "cat"]) == 0
    assert "target 2 (cat)" in capsys.readouterr().out
    with np.load("b.truth.npz") as truth:
        facts = json.loads(str(truth["params"]))
        assert facts["class_names"] == ["ant", "bee", "cat", "dog"] and facts["target"] == 2


def test_a_dataset_that_is_not_there(clean, capsys):
    assert main(["attack", "patch", "absent.npz", "--out", "b.npz"]) == 2
    assert "absent.npz" in error_line(capsys) and names() == ["clean.npz"]


def test_labels_apart(clean):
    x, y = clean
    np.save("x.npy", x)
    np.save("y.npy", y)
    command = ["attack", "flip_pair", "x.npy", "--labels", "y.npy", "--rate", "0.05"]
    assert main([*command, "--source", "3", "--target", "9", "--out", "b.npz"]) == 0
    with np.load("b.npz") as data:
        assert ((data["y"] != y) == (np.isin(y, 3) & (data["y"] == 9))).all()
        assert (data["y"] != y).sum() == 6


def test_the_list_names_every_attack_and_setting(capsys):
    assert main(["attack", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name} " in text for name in ATTACKS)
    assert "trains a network" in text and "alpha=0.2" in text
    assert main(["attack", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in listed] == list(ATTACKS)
    assert all(list(settings_of(e["name"])) == list(e["settings"]) for e in listed)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("size=4", ("size", 4)),
        ("position=top_left", ("position", "top_left")),
        ("position=[0, 3]", ("position", [0, 3])),
        ("added=false", ("added", False)),
        ("note=a=b", ("note", "a=b")),
    ],
)
def test_settings_are_json_or_text(text, pair):
    assert attack.setting(text) == pair


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from jaxpoison.cli import main; main(['attack', '--help']); "
        f"sys.stderr.write('loaded ' + ' '.join(sorted({HEAVY!r} & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.stderr.endswith("loaded ") and "--set KEY=VALUE" in done.stdout
