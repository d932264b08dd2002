"""What a run keeps: trees that come back as they were, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from jaxpoison.work import TrainingStates, Work


def test_a_damaged_state_of_a_training_is_not_used(tmp_path):
    work = Work(tmp_path, {"a": 1}, resume=False)
    work.every = 0.0
    noise = np.random.default_rng(0).random(50_000)  # nothing that could be packed
    tree = {"done": np.array(3), "state": {"0000": noise}}
    TrainingStates(work, "training").save(tree)
    held = TrainingStates(work, "training").load()
    assert held is not None and np.array_equal(held["state"]["0000"], tree["state"]["0000"])
    (folder,) = work.folder_of("training").iterdir()
    for path in [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size > 10_000]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert TrainingStates(work, "training").load() is None
    other = Work(tmp_path / "other", {"a": 2}, resume=False)
    other.every = 0.0
    TrainingStates(work, "training").save(tree)
    os.makedirs(other.folder_of("training").parent)
    os.rename(work.folder_of("training"), other.folder_of("training"))
    assert TrainingStates(other, "training").load() is None


def test_two_runs_do_not_share_a_folder(tmp_path):
    first = Work(tmp_path, {"a": 1}, resume=False)
    first.save("x", (1,))
    program = (
        "import sys; from pathlib import Path; from jaxpoison.work import Work\n"
        "Work(Path(sys.argv[1]), {'a': 1}, resume=True).save('y', (2,))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
    )
    assert "another run works there" in done.stderr
    again = Work(tmp_path, {"a": 1}, resume=True)  # of this process, which has given the first up
    again.save("z", (3,))
    assert again.load("x") == (1,)


def test_trees_come_back_as_they_were(tmp_path):
    work = Work(tmp_path, {}, resume=False)
    tree = {
        "a": np.float64(0.1), "b": 0.1, "c": np.int64(3), "d": 2**70, "e": float("nan"),
        "f": (True, None, "x"), "g": [np.zeros((0, 3), np.float32)], "h": np.array("2020", "M8[D]"),
    }  # fmt: skip
    work.save("t", tree)
    held = work.load("t")
    assert {name: type(value) for name, value in held.items()} == {
        name: type(value) for name, value in tree.items()
    }
    assert repr(held) == repr(tree)
    for odd in (object(), np.array([object()]), np.zeros(2, "V3"), {1, 2}):
        with pytest.raises(TypeError, match="can not be kept"):
            work.save("odd", odd)
    assert sorted(p.suffix for p in (tmp_path / ".work").iterdir()) == [".json", ".npz"]


def test_records_of_other_packages_are_not_made(tmp_path):
    from jaxpoison.work._codec import _class_of

    for name in ("os:system", "jaxpoison.__main__:main", "jaxpoison.training:fit"):
        with pytest.raises(ValueError, match="no record"):
            _class_of(name)
    assert _class_of("jaxpoison._types:Scores") is not None
