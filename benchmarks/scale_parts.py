"""What each process of ``scale.py`` measures."""

from __future__ import annotations

import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from common import cpu_seconds, machine, measured, peak_mb
from scale_data import Shape, planted

_WARM_ROWS = 1 << 17  # have blocks of the same shape as all rows: what they compile is used again


def _paths(folder: Path, shape: Shape) -> tuple[Path, Path]:
    return folder / f"x-{shape.name}.npy", folder / f"y-{shape.name}.npy"


def spectral(shape: Shape, folder: Path) -> dict:
    """Blocks laid out on the devices, then ``SpectralSignatures``, compiled beforehand."""
    import jax

    from jaxpoison import folds
    from jaxpoison.detect import SpectralSignatures
    from jaxpoison.layout import Layout
    from jaxpoison.sources import open_source
    from jaxpoison.sources.views import DropRows
    from jaxpoison.stream import Stream

    source = open_source(*_paths(folder, shape))
    labels = source.labels().astype(np.int32)
    key, detector = jax.random.key(0), SpectralSignatures()
    if Layout.of(_WARM_ROWS, 4 * shape.features, shape.classes) == Layout.of(
        shape.rows, 4 * shape.features, shape.classes
    ):
        few = DropRows(source, np.arange(_WARM_ROWS, shape.rows))
        detector.score(Stream(few, labels[:_WARM_ROWS], shape.classes), key=key)
    held = shape.rows * shape.features * 4 <= 12 << 30
    stream = Stream(source, labels, shape.classes, budget_bytes=(16 << 30) if held else 0)
    _, load, _ = measured(lambda: folds.class_means(stream))
    scores, wall, cpu = measured(lambda: detector.score(stream, key=key))
    passes = scores.info.passes - 1  # the means came with the load
    data = shape.rows * shape.features * 4
    flop = shape.rows * shape.features * (4 * 8 * (passes - 1) + 2)
    blocks = stream.resident_bytes / 1e6 if held else 0.0
    return {
        "shape": list(shape),
        "load": load,
        "wall": wall,
        "cpu": cpu,
        "passes": passes,
        "converged": scores.info.converged,
        "rows_s": shape.rows / wall,
        "gb_s": passes * data / wall / 1e9,
        "gflop_s": flop / wall / 1e9,
        "peak_mb": peak_mb(),
        "beyond_blocks_mb": peak_mb() - blocks,
        "machine": machine(),
    }


def _scan(shape: Shape, folder: Path) -> tuple[dict, object]:
    from jaxpoison import scanning
    from jaxpoison.scanning import ScanPlan

    plan = ScanPlan(data=str(folder / f"x-{shape.name}.arrow"))
    report, wall, cpu = measured(lambda: scanning.run(plan))
    truth, ran = planted(shape)[1], report.report["detectors"].items()
    return {
        "shape": list(shape),
        "wall": wall,
        "cpu": cpu,
        "rows_s": shape.rows / wall,
        "peak_mb": peak_mb(),
        "verdict": report.verdict,
        "found": float(report.flagged[truth].mean()),
        "false_alarms": float(report.flagged[~truth].mean()),
        "detectors": {name: each["seconds"] for name, each in ran if each["ran"]},
        "machine": machine(),
    }, report


def scan(shape: Shape, folder: Path) -> dict:
    """The default scan of a table of features, compiling included."""
    return _scan(shape, folder)[0]


@contextmanager
def _waiting(waits: list[tuple[float, float]]):
    """Notes how long each pass waits for its reader, and takes in all.

    The executor and the generator are replaced here, so that the engine itself measures nothing.
    """
    from concurrent.futures import ThreadPoolExecutor

    from jaxpoison.stream import _rows as rows
    from jaxpoison.stream._engines import LocalFeed

    waited, consumer = [0.0], threading.main_thread()

    class Awaited:
        """Not a method set on the future itself: that cycle would keep its rows in memory.

        Only what the thread of the passes waits for counts: the reader waits for its sorter too.
        """

        def __init__(self, future):
            self._future = future

        def result(self):
            started = time.perf_counter()
            value = self._future.result()
            if threading.current_thread() is consumer:
                waited[0] += time.perf_counter() - started
            return value

    class Timed(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            return Awaited(super().submit(*args, **kwargs))

    groups = LocalFeed._groups

    def passed(self, first):
        before, started = waited[0], time.perf_counter()
        yield from groups(self, first)
        waits.append((waited[0] - before, time.perf_counter() - started))

    kept = rows.ThreadPoolExecutor
    rows.ThreadPoolExecutor, LocalFeed._groups = Timed, passed
    try:
        yield
    finally:
        rows.ThreadPoolExecutor, LocalFeed._groups = kept, groups


def overlap(shape: Shape, folder: Path) -> dict:
    """As ``scan``, and the share of the time of its passes in which a block was there."""
    waits: list[tuple[float, float]] = []
    with _waiting(waits):
        record, _ = _scan(shape, folder)
    waited, total = (float(sum(each)) for each in zip(*waits, strict=True))
    return {
        **record,
        "passes": len(waits),
        "in_passes": total,
        "waited": waited,
        "busy": 1.0 - waited / total,
        "by_pass": [[round(w, 3), round(t, 3)] for w, t in waits],
    }


def _folds(shape: Shape) -> dict:
    from jaxpoison import folds

    f32, d, c, p = np.float32, shape.features, shape.classes, 1024
    waves = folds.RandomFeatures(np.zeros(d, f32), np.zeros((d, p), f32), np.zeros(p, f32))
    return {
        "class sums": folds.ClassSums(c),
        "sketch of 8 directions a class": folds.ClassSketch(
            np.zeros((c, 8, d), f32), np.zeros((c, 8), f32), c
        ),
        "sketch of 56 directions a class": folds.ClassSketch(
            np.zeros((c, 56, d), f32), np.zeros((c, 56), f32), c
        ),
        "pooled covariance": folds.PooledGram(np.zeros((c, d), f32)),
        "ridge equations, 1024 waves, 5 folds": folds.RidgeEquations(waves, c, 5),
    }


def devices(shape: Shape, folder: Path) -> dict:
    """Passes compiled for a mesh of so many devices, and never run: what each would move."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxpoison import stream
    from jaxpoison._types import Block
    from jaxpoison.layout import Layout
    from jaxpoison.stream._steps import pass_step
    from jaxpoison.stream._stream import update_of

    mesh = stream.make_mesh()
    layout = Layout.of(shape.rows, 4 * shape.features, shape.classes)
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    lead, tiled = (mesh.size, layout.tiles), (mesh.size, layout.tiles, layout.tile)
    blocks = Block(
        *(
            jax.ShapeDtypeStruct(size, kind, sharding=sharded)
            for size, kind in (
                ((*tiled, shape.features), np.float32), (lead, np.int32), (tiled, np.float32),
                (tiled, np.int32),
            )
        )
    )  # fmt: skip
    rows = []
    for name, fold in _folds(shape).items():
        placed = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), fold
        )
        lowered = pass_step.lower((placed,), None, blocks, fn=update_of, mesh=mesh)
        compiled = lowered.compile()
        cost = compiled.cost_analysis()
        cost = cost[0] if isinstance(cost, list) else cost
        memory = compiled.memory_analysis()
        text = compiled.as_text()
        # the compiler counts the body of a loop once, and says how often it runs
        trips = [int(n) for n in re.findall(r'known_trip_count":\{"n":"(\d+)"', text)]
        found = re.findall(r"= \S+ (all-\w+|reduce-scatter|collective-\w+)\(", text)
        rows.append(
            {
                "pass": name,
                "gflop": cost.get("flops", 0.0) * max([1, *trips]) / 1e9,
                "operand_mb": memory.argument_size_in_bytes / 1e6,
                "partial_mb": memory.output_size_in_bytes / 1e6,
                "scratch_mb": memory.temp_size_in_bytes / 1e6,
                "collectives": len(found),
            }
        )
    return {
        "part": "devices",
        "shape": list(shape),
        "devices": mesh.size,
        "shard_rows": layout.rows,
        "shards": -(-shape.rows // layout.rows),
        "passes": rows,
        "cpu": cpu_seconds(),
    }
