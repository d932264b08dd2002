"""Partitions: the reference's on MNIST reproduced as sets and in order, and what they cost.

    python benchmarks/certify_partitions.py --data DATA

DATA holds mnist.npz and, where they are there, mnist_dpa1200_partitions.npz and
mnist_ssdpa1200_partitions.npz: the partitions that the reference ships (alevine0/DPA, sum of pixels
modulo 1200; index in sorted order modulo 1200), as indices into x_train. Without those two files
the digests below stand for them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import emit, goal, interleaved, machine, measured, table

from jaxpoison.certify.keys import ContentHash, PixelSum, SortedPosition
from jaxpoison.certify.partitions import Partitions, partition

_K = 1200

# ``Partitions.digest``: blake2b of rows and offsets as little-endian int64. The first two are
# ``Partitions(Design(1200), cell, rows, offsets).digest()`` of the shipped arrays themselves. Of
# the others nothing is shipped: they are our own, kept so that no release moves a row.
DIGESTS = {
    "DPA, pixel sum": "da15dfe6514effa7e8151f102d93f0a1",
    "SS-DPA, sorted position": "30973c139078c8a93e23aab8ec4c46b4",
    "FA d=16, pixel sum": "653f90aa7c6cca755f061576c1b4e20d",
    "content hash": "82888ff78ab773d4bf4864725ebb2748",
    "FA d=16, content hash": "df6f7b16f875de4a265a74f5f5514ccf",
}
_SHIPPED = {
    "DPA, pixel sum": "mnist_dpa1200_partitions.npz",
    "SS-DPA, sorted position": "mnist_ssdpa1200_partitions.npz",
}


def contenders(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    return {
        "DPA, pixel sum": lambda: partition(x, y, k=_K, key=PixelSum()),
        "SS-DPA, sorted position": lambda: partition(x, y, k=_K, key=SortedPosition()),
        "FA d=16, pixel sum": lambda: partition(x, y, k=_K, spread=16, key=PixelSum()),
        "content hash": lambda: partition(x, y, k=_K, key=ContentHash()),
        "FA d=16, content hash": lambda: partition(x, y, k=_K, spread=16, key=ContentHash()),
    }


def compared(ours: Partitions, path: Path) -> dict[str, int]:
    """How many of the shipped subsets are ours as sets, and in order too."""
    with np.load(path) as shipped:
        rows, offsets = shipped["rows"], shipped["offsets"]
    pairs = [(ours.subset(i), rows[offsets[i] : offsets[i + 1]]) for i in range(len(offsets) - 1)]
    return {
        "subsets": len(pairs),
        "equal as sets": sum(np.array_equal(np.sort(a), np.sort(b)) for a, b in pairs),
        "equal in order": sum(np.array_equal(a, b) for a, b in pairs),
    }


def changes(p: Partitions, x: np.ndarray, y: np.ndarray) -> list[dict[str, Any]]:
    """Seconds of one insertion and of one deletion, after the insertion that copies the rows."""
    first, wall, _ = measured(lambda: p.insert(x[:1] ^ 1, y[:1])[0])
    rows = [{"change": "first insertion", "wall s": wall}]
    second, wall, _ = measured(lambda: first.insert(x[:1] ^ 2, y[:1])[0])
    rows.append({"change": "insertion", "wall s": wall})
    third, wall, _ = measured(lambda: second.delete([len(x) + 1])[0])
    rows.append({"change": "deletion", "wall s": wall})
    if third.digest() != first.digest():
        sys.exit("a deletion does not undo an insertion")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds mnist.npz")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", metavar="FILE", help="append the record to this file")
    args = parser.parse_args()
    with np.load(args.data / "mnist.npz") as mnist:
        x, y = mnist["x_train"], mnist["y_train"]

    runs = contenders(x, y)
    timings, results = interleaved(runs, args.repeats)
    print(f"Partitions of {len(x):,} x {x[0].size} bytes, k={_K}\n")
    print(table([timing.row() for timing in timings.values()]), end="\n\n")

    found = {name: p.digest() for name, p in results.items()}
    same = {name: found[name] == DIGESTS[name] for name in found}
    rows = [
        {
            "partition": name, "digest": found[name], "as recorded": "yes" if same[name] else "NO",
            "empty": p.num_empty, "sizes": f"{p.sizes.min()}..{p.sizes.max()}",
        }
        for name, p in results.items()
    ]  # fmt: skip
    print(table(rows), end="\n\n")

    known = {
        name: compared(results[name], args.data / file)
        for name, file in _SHIPPED.items()
        if (args.data / file).exists()
    }
    if known:
        print(table([{"reference": name, **each} for name, each in known.items()]), end="\n\n")
    named = {1: "content hash", 16: "FA d=16, content hash"}
    changed = {d: changes(results[name], x, y) for d, name in named.items()}
    print(table([{"spread": d, **row} for d, part in changed.items() for row in part]), end="\n\n")

    slowest = max(timing.median_cpu for timing in timings.values())
    unequal = sum(not ok for ok in same.values())
    unequal += sum(each["subsets"] - each["equal in order"] for each in known.values())
    goals = [
        goal("CPU s of the slowest partition", slowest, 2, at_least=False),
        goal("digests and subsets unlike the reference's", unequal, 0, at_least=False),
    ]
    print(table(goals), end="\n\n")
    emit(
        {
            "benchmark": "certify_partitions",
            "digests": found,
            "reference": known,
            "changes": changed,
            "timings": {name: timing.as_dict() for name, timing in timings.items()},
            "goals": goals,
            "machine": machine(),
        },
        args.out,
    )
    if unequal:
        sys.exit(f"{unequal} digests or subsets are not those of the reference")


if __name__ == "__main__":
    main()
