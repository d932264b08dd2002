"""Peak memory of scoring a file larger than the memory allowed for it.

    python benchmarks/memory.py                         # 1,000,000 x 512 float32, 2 GB on disk

The file is written block by block; a fresh process opens and scores it, so that its peak resident
size is that of the scoring alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from common import cpu_seconds, emit, goal, in_fresh_process, machine, measured, peak_mb, table

_BLOCK_ROWS = 10_000
_RANK = 8
_GOAL_MB = 1500


def write(folder: Path, rows: int, features: int, classes: int) -> None:
    """Classes of low rank plus noise, a tenth of class 0 moved; one block in memory at a time."""
    rng = np.random.default_rng(0)
    mean = 2 * rng.standard_normal((classes, features), np.float32)
    axes = rng.standard_normal((classes, _RANK, features), np.float32) / np.sqrt(features)
    axes *= (3 / np.arange(1, _RANK + 1, dtype=np.float32))[:, None]
    shift = rng.standard_normal(features, np.float32)
    shift *= 8 / np.linalg.norm(shift)
    labels = rng.integers(0, classes, rows)
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, features)}
    with open(folder / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, _BLOCK_ROWS):
            label = labels[start : start + _BLOCK_ROWS]
            block = mean[label] + 0.5 * rng.standard_normal((len(label), features), np.float32)
            for c in range(classes):
                mine = label == c
                block[mine] += rng.standard_normal((mine.sum(), _RANK), np.float32) @ axes[c]
            block[(label == 0) & (rng.random(len(label)) < 0.1)] += shift
            block.astype("<f4").tofile(file)
    np.save(folder / "y.npy", labels)


def score(folder: Path, budget_mb: int) -> None:
    """Runs in the fresh process: opens, scores, prints one record."""
    import jax

    from jaxpoison.detect import SpectralSignatures
    from jaxpoison.sources import open_source
    from jaxpoison.stream import Stream

    source = open_source(folder / "x.npy", folder / "y.npy")
    labels = source.labels().astype(np.int32)
    started = peak_mb()
    stream = Stream(source, labels, int(labels.max()) + 1, budget_bytes=budget_mb << 20)
    scores, wall, _ = measured(lambda: SpectralSignatures().score(stream, key=jax.random.key(0)))
    record = {
        "benchmark": "memory",
        "shape": [len(source), *source.schema.shape],
        "budget_mb": budget_mb,
        "data_mb": round(len(source) * source.schema.shape[0] * 4 / 1e6),
        "before_mb": round(started),
        "peak_mb": round(peak_mb()),
        "wall": round(wall, 2),
        "cpu": round(cpu_seconds(), 2),
        "method": scores.info.method,
        "passes": scores.info.passes,
        "converged": scores.info.converged,
        "most_evident_class": int(np.nanargmax(scores.statistic)),
        "machine": machine(),
    }
    print(json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--budget-mb", type=int, default=64, help="for rows held between passes")
    parser.add_argument("--folder", metavar="DIR", help="where the temporary folder is made")
    parser.add_argument("--out", metavar="FILE", help="append the record to this file")
    parser.add_argument("--score", metavar="DIR", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.score:
        score(Path(args.score), args.budget_mb)
        return
    folder = Path(tempfile.mkdtemp(prefix="jaxpoison-benchmark-", dir=args.folder))
    try:
        write(folder, args.rows, args.features, args.classes)
        budget = str(args.budget_mb)
        record = in_fresh_process("memory.py", "--score", str(folder), "--budget-mb", budget)
    finally:
        shutil.rmtree(folder)
    record["goals"] = [goal("peak resident MB", record["peak_mb"], _GOAL_MB, at_least=False)]
    shown = ("data_mb", "budget_mb", "before_mb", "peak_mb", "wall", "cpu", "passes", "converged")
    print(table([{name: record[name] for name in shown}]), end="\n\n")
    print(table(record["goals"]), end="\n\n")
    emit(record, args.out)


if __name__ == "__main__":
    main()
