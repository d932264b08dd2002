"""How fast votes become certificates: every rule at the size of a large ensemble.

    python benchmarks/certify_rules.py --rows 10000 --k 1200 --spread 16

Votes are drawn: every test row has a class, a confusable other one and a difficulty, so that
margins are spread as those of real ensembles are. That radii are right is for the tests, which hold
them against every profile of votes and against plain Python; this is about time.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
from common import Timing, emit, goal, machine, measured, peak_mb, table

_CLASSES, _ACCURACY, _BLOCK = 10, 0.88, 64
_FLOORS = {"plurality": 0.1, "run_off": 0.5, "plurality, spread": 5.0, "run_off, spread": 20.0}


def drawn(members: int, rows: int, *, ranked: bool, seed: int = 0) -> tuple[Any, Any]:
    """Labels [m, v] and rankings [m, v, c] of made-up members, uint8."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, _CLASSES, rows)
    confused = (truth + rng.integers(1, _CLASSES, rows)) % _CLASSES
    right = rng.beta(4 * _ACCURACY, 4 * (1 - _ACCURACY), rows)
    labels = np.empty((members, rows), np.uint8)
    ranking = np.empty((members, rows, _CLASSES), np.uint8) if ranked else None
    at = np.arange(rows)
    for start in range(0, members, _BLOCK):
        part = slice(start, min(start + _BLOCK, members))
        size = part.stop - start, rows
        other = np.where(rng.random(size) < 0.5, confused, rng.integers(0, _CLASSES, size))
        labels[part] = np.where(rng.random(size) < right, truth, other)
        if ranking is not None:
            scores = rng.random((*size, _CLASSES), dtype=np.float32)
            scores[:, at, confused] += 0.5
            scores[:, at, truth] += 0.7
            np.put_along_axis(scores, labels[part, :, None].astype(np.intp), 2.0, axis=2)
            order = np.argsort(-scores, axis=2).astype(np.intp)
            places = np.arange(_CLASSES, dtype=np.uint8)[None, None]
            np.put_along_axis(ranking[part], order, places, axis=2)
    return labels, ranking


def votes_of(k: int, spread: int, rows: int, *, ranked: bool) -> Any:
    """Votes; those of many members repeat 500 test rows, which are as much work as new ones."""
    from jaxpoison.certify import Design, Votes
    from jaxpoison.certify.partitions import shifts_of

    few = rows if spread == 1 else min(rows, 500)
    labels, ranking = drawn(k * spread, few, ranked=ranked)
    times = -(-rows // few)
    labels = np.tile(labels, (1, times))[:, :rows]
    ranking = None if ranking is None else np.tile(ranking, (1, times, 1))[:, :rows]
    design = Design(k, spread, shifts_of(k, spread))
    return Votes(labels, np.arange(k * spread), _CLASSES, design, ranking)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--k", type=int, default=1200)
    parser.add_argument("--spread", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args()
    from jaxpoison.certify import certify

    timings, goals = [], []
    for name, bar in _FLOORS.items():
        rule = name.split(",")[0]
        spread = args.spread if "spread" in name else 1
        votes = votes_of(args.k, spread, args.rows, ranked=rule == "run_off")
        timing = Timing(name)
        for _ in range(args.repeats):
            _, wall, cpu = measured(partial(certify, votes, rule=rule))
            timing.wall.append(wall)
            timing.cpu.append(cpu)
        row = timing.row()
        timings.append(row)
        goals.append(goal(f"{name}, wall s", row["wall s"], bar, at_least=False))
        emit({"benchmark": "certify_rules", "rows": args.rows, "k": args.k, "spread": spread,
              **row, "peak MB": round(peak_mb()), "machine": machine()}, args.out)  # fmt: skip
        del votes
    print(table(timings))
    print(table(goals))


if __name__ == "__main__":
    main()
