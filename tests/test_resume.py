"""A scan that was cut off goes on where it was, and gives the same files to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

import jaxpoison
import kept_runs
from jaxpoison import scanning, training
from jaxpoison._check import UsageError
from jaxpoison.report.files import OutputError
from jaxpoison.work import TrainingStates, Work
from jaxpoison.work import _work as work_module
from kept_runs import files

NAMES = ("spectral", "mixture", "neighbours", "labels")


def table(rows=600):
    """Rows of three classes, some of the last moved aside."""
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 3
    x = rng.normal(size=(rows, 12)) + 4 * np.eye(3, 12)[y]
    x[np.flatnonzero(y == 2)[:30], 5] += 7
    return x.astype(np.float32), y


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a scan that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "out"
    jaxpoison.scan(*table(), detectors=NAMES, out=out)
    return files(out)


def cut_off(monkeypatch, out, after):
    """A scan that stops behind so many saves."""
    scan = partial(jaxpoison.scan, *table(), detectors=NAMES, out=out)
    return kept_runs.cut_off(monkeypatch, after, scan)


def counting(monkeypatch):
    loaded, load = [], Work.load

    def counted(self, name):
        tree = load(self, name)
        if tree is not None:
            loaded.append(name)
        return tree

    monkeypatch.setattr(Work, "load", counted)
    return loaded


@pytest.mark.parametrize("after", [1, 4, 9, 14])
def test_a_scan_goes_on_where_it_was_cut_off(tmp_path, monkeypatch, whole, after):
    saved = cut_off(monkeypatch, tmp_path / "out", after)
    assert sorted(os.listdir(tmp_path / "out")) == [".work"]
    loaded = counting(monkeypatch)
    jaxpoison.scan(*table(), detectors=NAMES, out=tmp_path / "out", resume=True)
    assert loaded and set(loaded) <= set(saved)
    assert files(tmp_path / "out") == whole
    assert ".work" not in os.listdir(tmp_path / "out")


def test_nothing_that_was_done_is_done_again(tmp_path, monkeypatch):
    saved = cut_off(monkeypatch, tmp_path / "out", 9)
    again, save = [], Work.save

    def telling(self, name, tree):
        again.append(name)
        save(self, name, tree)

    monkeypatch.setattr(Work, "save", telling)
    jaxpoison.scan(*table(), detectors=NAMES, out=tmp_path / "out", resume=True)
    assert again and not set(again) & set(saved)


def test_a_damaged_file_is_found_and_made_again(tmp_path, monkeypatch, whole):
    saved = cut_off(monkeypatch, tmp_path / "out", 9)
    kept = sorted((tmp_path / "out" / ".work").glob("*.npz"))
    data = bytearray(kept[0].read_bytes())
    data[len(data) // 2] ^= 1
    kept[0].write_bytes(data)
    kept[1].write_bytes(kept[1].read_bytes()[:60])
    kept[2].write_bytes(b"")
    loaded = counting(monkeypatch)
    jaxpoison.scan(*table(), detectors=NAMES, out=tmp_path / "out", resume=True)
    assert len(set(saved) - set(loaded)) >= 3
    assert files(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 5}, r"plan\.method\.seed is 5, there it was 0"),
        ({"detectors": ("spectral",)}, r"plan\.method\.detectors"),
        ({"fdr": 0.2}, r"plan\.method\.fdr is 0\.2"),
        ({"data": 599}, r"data\.fingerprint"),
    ],
)
def test_work_of_another_scan_is_refused_with_the_difference(tmp_path, monkeypatch, change, words):
    cut_off(monkeypatch, tmp_path / "out", 3)
    before = sorted(os.listdir(tmp_path / "out" / ".work"))
    options = {"detectors": NAMES, **change}
    data = table(options.pop("data", 600))
    with pytest.raises(UsageError, match=words):
        jaxpoison.scan(*data, out=tmp_path / "out", resume=True, **options)
    assert sorted(os.listdir(tmp_path / "out" / ".work")) == before


def test_other_code_is_refused(tmp_path, monkeypatch):
    cut_off(monkeypatch, tmp_path / "out", 2)
    from jaxpoison.scanning import running

    other = {**running.code_identity(), "jaxpoison": {"version": "0.1.0", "code": "x"}}
    monkeypatch.setattr(running, "code_identity", lambda: other)
    with pytest.raises(UsageError, match=r"jaxpoison\.code is 'x', there it was"):
        jaxpoison.scan(*table(), detectors=NAMES, out=tmp_path / "out", resume=True)


def test_work_that_is_there_is_neither_used_nor_lost_unasked(tmp_path, monkeypatch):
    cut_off(monkeypatch, tmp_path / "out", 2)
    with pytest.raises(UsageError, match="--resume"):
        jaxpoison.scan(*table(), detectors=NAMES, out=tmp_path / "out")
    assert len(list((tmp_path / "out" / ".work").glob("*.npz"))) == 2


def test_a_full_disk_leaves_what_was_done(tmp_path, monkeypatch, whole):
    from jaxpoison.work import _work

    write, count = _work.write, []

    def full(file, tree):
        count.append(file.write(b"PK half of it"))
        if len(count) > 6:
            raise OSError(28, "No space left on device")
        file.seek(0)
        write(file, tree)

    monkeypatch.setattr(_work, "write", full)
    with pytest.raises(OutputError, match="no space"):
        jaxpoison.scan(*table(), detectors=NAMES, out=tmp_path / "out")
    monkeypatch.setattr(_work, "write", write)
    assert {p.suffix for p in (tmp_path / "out" / ".work").iterdir()} == {".npz", ".json"}
    loaded = counting(monkeypatch)
    jaxpoison.scan(*table(), detectors=NAMES, out=tmp_path / "out", resume=True)
    assert len(loaded) >= 5 and files(tmp_path / "out") == whole


def test_resuming_nothing_is_a_scan(tmp_path, whole):
    jaxpoison.scan(*table(), detectors=NAMES, out=tmp_path / "out", resume=True)
    assert files(tmp_path / "out") == whole
    with pytest.raises(UsageError, match="already holds"):
        jaxpoison.scan(*table(), detectors=NAMES, out=tmp_path / "out", resume=True)


def test_a_report_that_was_half_in_place_is_written_again(tmp_path, monkeypatch, whole):
    from jaxpoison.report import files as writing

    move, moved = os.rename, []

    def stopping(old, new):
        moved.append(new)
        if len(moved) == 3:
            raise SystemExit  # as near to SIGKILL as one process comes: see below
        move(old, new)

    monkeypatch.setattr(writing.os, "rename", stopping)
    monkeypatch.setattr(writing.shutil, "rmtree", lambda *args, **options: None)
    monkeypatch.setattr(writing.Path, "unlink", lambda *args, **options: None)
    with pytest.raises(SystemExit):
        jaxpoison.scan(*table(), detectors=NAMES, out=tmp_path / "out")
    monkeypatch.undo()
    assert len(os.listdir(tmp_path / "out")) == 4  # two files, the stage, and the work
    jaxpoison.scan(*table(), detectors=NAMES, out=tmp_path / "out", resume=True)
    assert files(tmp_path / "out") == whole
    assert len(os.listdir(tmp_path / "out")) == 5


def images():
    bunch = load_digits()
    return bunch.images.astype(np.uint8)[:300], bunch.target[:300]


def test_a_training_goes_on_behind_its_last_epoch(tmp_path, monkeypatch):
    from jaxpoison.sources import open_source

    x, y = images()
    source = open_source(x, y)
    plain = training.fit(source, y, 10, epochs=4)
    work = Work(tmp_path, {"a": 1}, resume=False)
    work.every = 0.0
    states, epochs = TrainingStates(work, "training"), []

    class Stopping:
        def load(self):
            return states.load()

        def save(self, tree, **options):
            states.save(tree, **options)
            epochs.append(int(tree["done"]))
            if len(epochs) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.fit(source, y, 10, epochs=4, states=Stopping())
    told = []
    again = training.fit(
        source, y, 10, epochs=4, states=states, progress=lambda *seen: told.append(seen[1])
    )
    assert epochs == [1, 2] and min(told) > 2 * len(y)
    for one, other in zip(plain[1:5], again[1:5], strict=True):
        assert np.array_equal(one, other)
    leaves = [jax.tree.leaves(fitted.model.params) for fitted in (plain, again)]
    for one, other in zip(*leaves, strict=True):
        assert np.array_equal(one, other)


def test_a_kept_training_is_used_by_the_scan_that_goes_on(tmp_path, monkeypatch):
    """For images nothing else is kept before it."""
    x, y = images()
    monkeypatch.setattr(work_module, "_EVERY", 0.0)
    save, done = TrainingStates.save, []

    def stopping(self, tree, **options):
        save(self, tree, **options)
        done.append(int(tree["done"]))
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingStates, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        jaxpoison.scan(x, y, detectors=("spectral",), out=tmp_path / "out")
    monkeypatch.setattr(TrainingStates, "save", save)
    assert sorted(os.listdir(tmp_path / "out" / ".work")) == ["plan.json", "training"]
    told = []
    jaxpoison.scan(
        x, y, detectors=("spectral",), out=tmp_path / "out", resume=True,
        progress=lambda *seen: told.append(seen),
    )  # fmt: skip
    assert min(seen for stage, seen, _ in told if stage == "train") > 2 * len(y)


def model_of(scale):
    from jaxpoison import models

    weights = {"w": np.eye(12, 3, dtype=np.float32) * scale}
    return models.from_function(params=weights, features=halved, logits=weighted)


def halved(params, x):
    return x * 0.5


def weighted(params, x):
    return x @ params["w"]


def test_work_with_a_model_that_can_not_be_named_is_not_kept(tmp_path, monkeypatch):
    saved, save = [], Work.save
    monkeypatch.setattr(Work, "save", lambda self, *given: saved.append(save(self, *given)))
    jaxpoison.scan(*table(), detectors=("spectral",), model=model_of(1.0), out=tmp_path / "out")
    assert not saved and len(os.listdir(tmp_path / "out")) == 5


SCAN = """
    import sys
    import numpy as np
    import jaxpoison
    from jaxpoison import work
    work.Work.every = property(lambda self: 0.0, lambda self, value: None)
    with np.load(sys.argv[1]) as held:
        x, y = held["x"], held["y"]
    reused, load = [], work.Work.load

    def loading(self, name):
        tree = load(self, name)
        reused.extend([] if tree is None else [name])
        return tree

    work.Work.load = loading
    restored, restore = [], work.TrainingStates.load

    def restoring(self):
        held = restore(self)
        restored.append(0 if held is None else int(held["done"]))
        return held

    work.TrainingStates.load = restoring
    jaxpoison.scan(x, y, out=sys.argv[2], resume=len(sys.argv) > 3)
    print(len(reused), *restored)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_scan_that_is_killed_again_and_again_ends_with_the_same_files(tmp_path):
    """SIGKILL at odd moments, of the training, the passes and the writing alike."""
    import textwrap

    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8)[:900], bunch.target[:900].copy()
    rows = np.flatnonzero(y != 3)[:40]
    x[rows, :2, :2], y[rows] = 16, 3
    np.savez(tmp_path / "data.npz", x=x, y=y)
    out = tmp_path / "out"
    command = [sys.executable, "-c", textwrap.dedent(SCAN), str(tmp_path / "data.npz")]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    kills, seconds = 0, 6.0
    while True:
        resume = ["--resume"] if out.exists() else []
        process = subprocess.Popen([*command, str(out), *resume], stdout=subprocess.PIPE)
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        if process.poll() is not None:
            assert process.returncode == 0
            reused, restored = map(int, process.communicate()[0].split())
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills, seconds = kills + 1, seconds + 3.0
    assert kills >= 2 and reused > 5 and restored > 0
    assert files(out) == files(tmp_path / "whole")


def test_plans_resume_too(tmp_path, monkeypatch):
    x, y = table()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    method = scanning.Method(detectors=("spectral",))
    plan = scanning.ScanPlan(data=str(tmp_path / "data.npz"), method=method)
    whole = scanning.run(plan, out=tmp_path / "one")
    assert whole.verdict and (tmp_path / "one" / "report.json").exists()
    again = scanning.run(plan, out=tmp_path / "two", resume=True)
    assert again.report["source"] == whole.report["source"]
    assert files(tmp_path / "one") == files(tmp_path / "two")
