"""The same scan on one process, on several that run together, and on a Ray cluster."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from jaxpoison import folds
from jaxpoison._check import DataError, UsageError
from jaxpoison.sources import open_source
from jaxpoison.stream import open_engine
from jaxpoison.stream._opening import _meeting
from kept_runs import files

TESTS = Path(__file__).parent
KNOWN = folds.out_of_fold_agrees
NEEDS_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")

PROGRAM = """
    import os, sys, json
    import numpy as np
    import jaxpoison
    from jaxpoison import scanning
    from jaxpoison.layout import Layout

    # many shards out of little data, and a number of them that 4 does not divide
    Layout.of = classmethod(lambda cls, n, b, c: cls(256, 16, 16 + c))
    data, out, engine, mode = sys.argv[1:5]

    from jaxpoison.sources.base import ColumnSource
    rows, read = [], ColumnSource.read

    def counted(self, start, stop):
        rows.append(stop - start)
        return read(self, start, stop)

    if mode == "count":
        ColumnSource.read = counted
    if mode == "kill":
        from jaxpoison.stream import _ray

        whole = _ray.run_shards

        def dying(shared, part, mark=out + ".mark"):
            import os, signal
            if part[0] > 0 and not os.path.exists(mark):
                open(mark, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(shared, part)

        _ray.run_shards = dying
    if mode == "stop":
        from jaxpoison.work import Work

        save, saved = Work.save, []

        def stopping(self, name, tree):
            save(self, name, tree)
            saved.append(name)
            if len(saved) == 5:
                os._exit(9)

        Work.save = stopping
    method = scanning.Method(detectors=("spectral", "mixture", "neighbours"))
    if mode == "images":  # trains a network, and reads its layers and gradients
        method = scanning.Method(
            detectors=("spectral", "early_loss", "gradient_norm", "self_influence"), epochs=2
        )
    if mode == "seed":
        method = scanning.Method(detectors=("spectral",), seed=3)
    plan = scanning.ScanPlan(data=data, method=method)
    report = scanning.run(plan, out=out, engine=engine, resume=mode in ("resume", "seed"))
    print(json.dumps({"verdict": report.verdict, "rows": sum(rows)}))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of 2,700 rows of which some are moved aside."""
    rng = np.random.default_rng(0)
    y = np.arange(2700) % 6
    x = rng.normal(size=(2700, 12)) * rng.uniform(1, 3, 12) + 5 * np.eye(6, 12)[y]
    x[np.flatnonzero(y == 2)[:60], 7] += 12
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, x=x.astype(np.float32), y=y)
    return path


def start(arguments, folder):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
    }
    environment.pop("XLA_FLAGS", None)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
    )  # fmt: skip


def ended(processes, seconds=400):
    """What they print on their last line, by process; all must end, and end well."""
    said = []
    for process in processes:
        out, err = process.communicate(timeout=seconds)
        assert process.returncode == 0, err[-3000:]
        said.append(json.loads(out.strip().splitlines()[-1]))
    return said


def together(count, data, out, mode="plain"):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engines = [f"spmd:127.0.0.1:{port},{count},{i}" for i in range(count)]
    return [start([data, out, engine, mode], out.parent) for engine in engines]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The files of one process, and the rows that it read."""
    out = tmp_path_factory.mktemp("alone") / "out"
    (said,) = ended([start([data, out, "local", "count"], out.parent)])
    assert len(os.listdir(out)) == 5
    return files(out), said["rows"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_run_together_write_the_files_of_one(count, data, alone, tmp_path):
    said = ended(together(count, data, tmp_path / "out", "count"))
    assert files(tmp_path / "out") == alone[0]
    assert {each["verdict"] for each in said} == {alone[0][1]["verdict"]}
    # each reads its share of every pass; narrow coordinates that all of them hold are extra
    assert max(each["rows"] for each in said) < 0.75 * alone[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_that_died_together_go_on_together(data, alone, tmp_path):
    out = tmp_path / "out"
    processes = together(2, data, out, "stop")
    assert processes[0].wait(timeout=300) == 9
    processes[1].kill()
    for process in processes:
        process.communicate()
    kept = sorted(os.listdir(out / ".work"))
    assert len(kept) == 6  # and the plan
    refused = together(2, data, out, "seed")
    for process in refused:
        _, err = process.communicate(timeout=300)
        assert process.returncode != 0 and "UsageError" in err
    assert sorted(os.listdir(out / ".work")) == kept
    ended(together(2, data, out, "resume"))
    assert files(out) == alone[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_network_is_trained_and_seen_alike_on_every_engine(tmp_path):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    data = tmp_path / "images.npz"
    np.savez(data, x=bunch.images.astype(np.uint8)[:700], y=bunch.target[:700])
    ended([start([data, tmp_path / "one", "local", "images"], tmp_path)])
    ended(together(2, data, tmp_path / "two", "images"))
    assert files(tmp_path / "two") == files(tmp_path / "one")
    if find_spec("ray") is not None:
        ended([start([data, tmp_path / "ray", "ray", "images"], tmp_path)])
        assert files(tmp_path / "ray") == files(tmp_path / "one")


@NEEDS_RAY
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_of_a_cluster_that_is_killed_changes_nothing(data, alone, tmp_path):
    out = tmp_path / "out"
    ended([start([data, out, "ray", "kill"], tmp_path)])
    assert (tmp_path / "out.mark").exists(), "no worker was killed"
    assert files(out) == alone[0]


@NEEDS_RAY
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_members_trained_on_a_cluster_vote_as_they_do_here(tmp_path):
    program = """
        import sys
        import numpy as np
        from sklearn.datasets import load_digits
        from jaxpoison import certifying
        from jaxpoison.certifying import voting

        voting.MEMBERS = 2
        bunch = load_digits()
        x, y = bunch.images[:400].astype(np.uint8), bunch.target[:400]
        np.savez("data.npz", x=x, y=y)
        for learner in ("mlp", "ridge"):
            plan = certifying.CertifyPlan(
                data="data.npz", test="split:0.2", k=6, learner=learner, scheme="roe"
            )
            here = certifying.run(plan)
            there = certifying.run(plan, engine=sys.argv[1])
            for name, column in here.columns.items():
                assert np.array_equal(column, there.columns[name]), (learner, name)
        print("equal")
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": str(TESTS.parent)}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), "ray"],
        env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=800,
    )  # fmt: skip
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]


def written(folder):
    """The same rows in files of several formats."""
    import pyarrow as pa
    import pyarrow.feather as feather
    import pyarrow.parquet as pq

    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    y = np.arange(50) % 2
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(x.ravel(), 4), "label": y})
    np.save(folder / "x.npy", x)
    np.savez(folder / "x.npz", x=x, y=y)
    np.savez_compressed(folder / "small.npz", x=x, y=y)
    pq.write_table(table, folder / "x.parquet")
    feather.write_feather(table, folder / "x.feather")
    return x, ["x.npy", "x.npz", "small.npz", "x.parquet", "x.feather"]


def test_sources_can_be_sent_to_another_process_even_when_they_are_open(tmp_path, monkeypatch):
    x, names = written(tmp_path)
    for name in names:
        monkeypatch.chdir(tmp_path)
        source = open_source(name, role="features")
        source.read(10, 20)
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "elsewhere")
        sent = pickle.loads(pickle.dumps(source))
        assert np.array_equal(sent.read(0, 50)["x"], x), name
        assert np.array_equal(source.read(0, 50)["x"], x), name


def test_engines_that_are_unknown_are_named():
    with pytest.raises(UsageError, match="'cluster'; give one of local, spmd, ray"):
        with open_engine("cluster"):
            pass


@pytest.mark.parametrize("name", ["spmd:host:1", "spmd:host:1,two,0", "spmd:,"])
def test_a_meeting_that_is_half_told_is_refused(name):
    with pytest.raises(UsageError, match=r"give spmd, or spmd:HOST:PORT,PROCESSES,PROCESS"):
        _meeting(name)
    assert _meeting("spmd") == (None, None, None)
    assert _meeting("spmd:host:1,4,2") == ("host:1", 4, 2)


def test_ray_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'jaxpoison\[ray\]'"):
        with open_engine("ray"):
            pass


def test_rows_that_can_not_be_sent_are_told():
    from jaxpoison.stream._ray import RayEngine

    class Cluster:
        def cluster_resources(self):
            return {"CPU": 2.0}

        def put(self, value):
            raise TypeError("cannot pickle '_thread.lock' object\nand more")

    with pytest.raises(DataError, match=r"\(cannot pickle '_thread.lock' object\); give rows"):
        RayEngine(Cluster()).put(object())


def test_rows_that_only_this_process_can_read_are_sent_themselves():
    from jaxpoison.stream import Rows
    from jaxpoison.stream._ray import RayEngine

    class Cluster:
        def cluster_resources(self):
            return {"CPU": 2.0}

        def put(self, value):
            return pickle.loads(pickle.dumps(value))

    x = np.random.default_rng(0).normal(size=(700, 3)).astype(np.float32)
    source = open_source(x, role="features")
    source.column.lock = threading.Lock()
    rows = Rows.of(source, (np.arange(700) % 2).astype(np.int32), 2)
    with pytest.raises(TypeError):
        pickle.dumps(rows)
    sent = RayEngine(Cluster()).feed(rows, 0)._held
    assert np.array_equal(sent.source.read(0, 700)["x"], x) and sent.layout == rows.layout


def test_tasks_come_in_order_and_few_are_ahead():
    from jaxpoison.stream._ray import RayEngine

    started = []

    class Remote:
        def __init__(self, fn):
            self.fn = fn

        def remote(self, shared, item):
            started.append(item)
            return lambda: self.fn(shared, item)

    class Cluster:
        exceptions = type("exceptions", (), {"RayTaskError": KeyError})

        def cluster_resources(self):
            return {"CPU": 2.0}

        def remote(self, **options):
            assert options["max_retries"] > 0
            return Remote

        def get(self, reference):
            return reference()

    engine = RayEngine(Cluster())
    values = engine.tasks(lambda shared, item: shared + item, 10, range(9))
    assert next(values) == 10 and len(started) == 4
    assert list(values) == list(range(11, 19))
