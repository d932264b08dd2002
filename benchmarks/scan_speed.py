"""Wall time and memory of whole scans, each in a fresh process.

    python benchmarks/scan_speed.py                     # both cases
    python benchmarks/scan_speed.py --cases rows --profile rows.prof

``images``: 12,000 Fashion-MNIST images, the training of the sacrificial network included.
``rows``: 100,000 x 512 float32 rows in memory, 10 Gaussian classes, a shifted group planted. A
network is trained on them too.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from common import (
    cpu_seconds,
    emit,
    goal,
    in_fresh_process,
    machine,
    measured,
    peak_mb,
    profiled,
    resident_mb,
    table,
)

_GOAL_SECONDS = 60
_GOAL_MB = 4000  # above the data


def _images(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from jaxpoison.cli.demo import load_images, plant

    _, x, y = load_images()
    planted = plant(x[:rows], y[:rows], rate=0.01, seed=0)
    truth = np.zeros(len(planted.x), np.bool_)
    truth[planted.rows] = True
    return planted.x, planted.y, truth


def _rows(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gaussian classes; 1 % of the rows, from all classes, are shifted and called class 0."""
    features, classes = 512, 10
    rng = np.random.default_rng(0)
    mean = 0.5 * rng.standard_normal((classes, features), np.float32)
    y = rng.integers(0, classes, rows)
    x = rng.standard_normal((rows, features), np.float32)
    for c in range(classes):
        x[y == c] += mean[c]
    truth = np.zeros(rows, np.bool_)
    truth[rng.choice(np.flatnonzero(y != 0), rows // 100, replace=False)] = True
    shift = rng.standard_normal(features, np.float32)
    x[truth] += 12 * shift / np.linalg.norm(shift)
    y[truth] = 0
    return x, y, truth


_MAKE = {"images": (_images, 12_000), "rows": (_rows, 100_000)}


def scan_case(case: str, rows: int | None, profile: str | None) -> None:
    """Runs in the fresh process: makes the data, scans, prints one record."""
    make, usual = _MAKE[case]
    x, y, truth = make(rows or usual)
    before = resident_mb()
    stages: dict[str, float] = {}

    def scan():
        import time

        import jaxpoison  # importing jax is a part of what the user waits for

        clock = time.perf_counter()

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal clock  # each call closes the time since the call before
            now = time.perf_counter()
            stages[stage] = stages.get(stage, 0.0) + now - clock
            clock = now

        return jaxpoison.scan(x, y, progress=progress)

    with profiled(profile):
        report, wall, _ = measured(scan)
    flagged = np.zeros(len(y), np.bool_)
    flagged[report.flagged_indices()] = True
    document = report.report
    record = {
        "benchmark": "scan_speed",
        "case": case,
        "shape": list(x.shape),
        "wall": round(wall, 2),
        "cpu": round(cpu_seconds(), 2),
        "data_mb": round(x.nbytes / 1e6),
        "peak_mb": round(peak_mb()),
        "above_data_mb": round(peak_mb() - before),
        "verdict": document["verdict"],
        "found": round(float(flagged[truth].mean()), 4),
        "false_alarms": round(float(flagged[~truth].mean()), 5),
        "timing": document["timing"],
        "stages": {name: round(seconds, 2) for name, seconds in stages.items()},
        "detectors": {name: each["seconds"] for name, each in document["detectors"].items()},
        "machine": machine(),
    }
    print(json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--cases", default="images,rows")
    parser.add_argument("--rows", type=int, help="another size")
    parser.add_argument("--profile", metavar="FILE", help="cProfile of the scan (slows it down)")
    parser.add_argument("--out", metavar="FILE", help="append the records to this file")
    parser.add_argument("--one", choices=sorted(_MAKE), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        scan_case(args.one, args.rows, args.profile)
        return
    for case in args.cases.split(","):
        if case not in _MAKE:
            parser.error(f"--cases: {case!r} is unknown; choose from {', '.join(_MAKE)}")
        more = [] if args.rows is None else ["--rows", str(args.rows)]
        more += [] if args.profile is None else ["--profile", args.profile]
        record = in_fresh_process("scan_speed.py", "--one", case, *more)
        goals = [goal(f"{case}: wall seconds", record["wall"], _GOAL_SECONDS, at_least=False)]
        if case == "rows":
            above = record["above_data_mb"]
            goals.append(goal("rows: MB above the data", above, _GOAL_MB, at_least=False))
        record["goals"] = goals
        shown = ("case", "wall", "cpu", "above_data_mb", "verdict", "found", "false_alarms")
        print(table([{name: record[name] for name in shown}]), end="\n\n")
        parts = {**record["stages"], **record["detectors"]}
        print(table([{"part": name, "seconds": value} for name, value in parts.items()]))
        print("\n" + table(goals), end="\n\n")
        emit(record, args.out)


if __name__ == "__main__":
    main()
