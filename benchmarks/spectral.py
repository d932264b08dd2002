"""Spectral scores: ours against scikit-learn's randomized SVD and against full SVDs.

    python benchmarks/spectral.py                       # 200,000 x 512, 10 classes
    python benchmarks/spectral.py --rows 20000 --repeats 5

All contenders get the same rows in memory in input order, so each also pays for putting the rows of
a class together. They run interleaved, and equal results are shown before any time is.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np
from common import emit, goal, interleaved, machine, table
from sklearn.utils.extmath import randomized_svd

from jaxpoison.detect import SpectralSignatures
from jaxpoison.kernels import _workloads
from jaxpoison.sources import open_source
from jaxpoison.stream import Stream

_TOP = 0.015  # of the rows: 1.5 times a poison rate of 1 %, as the paper removes


def ours(x: np.ndarray, labels: np.ndarray, num_classes: int):
    """Whole ``score`` on a new stream: layout, sorting into tiles, every pass."""
    source = open_source(x)
    dense = labels.astype(np.int32)

    def run():
        stream = Stream(source, dense, num_classes)
        return SpectralSignatures().score(stream, key=jax.random.key(0))

    return run


def by_class(leading_fn):
    """Squared projections on the direction that ``leading_fn`` finds for the centred rows."""

    def make(x: np.ndarray, labels: np.ndarray, num_classes: int):
        def run():
            values = np.empty(len(x), x.dtype)
            for c in range(num_classes):
                rows = np.flatnonzero(labels == c)
                centred = x[rows]
                centred -= centred.mean(axis=0, dtype=np.float64).astype(x.dtype)
                values[rows] = (centred @ leading_fn(centred)) ** 2
            return values

        return run

    return make


def _randomized(centred: np.ndarray) -> np.ndarray:
    return randomized_svd(centred, n_components=1, n_iter="auto", random_state=0)[2][0]


def _full(centred: np.ndarray) -> np.ndarray:
    return np.linalg.svd(centred, full_matrices=False)[2][0]


def oracle(x: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The same scores by an eigendecomposition of each class's covariance, all in float64."""
    values = np.empty(len(x))
    for c in range(num_classes):
        rows = np.flatnonzero(labels == c)
        centred = x[rows].astype(np.float64)
        centred -= centred.mean(axis=0)
        vector = np.linalg.eigh(centred.T @ centred)[1][:, -1]
        values[rows] = (centred @ vector) ** 2
    return values


def compared(values: np.ndarray, exact: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Error relative to the oracle, worst class and all rows, and the overlap of the top rows."""
    values = values.astype(np.float64)
    classes = [labels == c for c in np.unique(labels)]
    worst = max(np.linalg.norm((values - exact)[c]) / np.linalg.norm(exact[c]) for c in classes)
    count = max(1, round(_TOP * len(exact)))
    tops = [np.argpartition(-each, count)[:count] for each in (values, exact)]
    top = np.intersect1d(*tops)
    return {
        "error": float(np.linalg.norm(values - exact) / np.linalg.norm(exact)),
        "worst class": float(worst),
        "top 1.5 % shared": len(top) / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rank", type=int, default=16, help="of the data's signal")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-full", action="store_true", help="leave out the slow full SVDs")
    parser.add_argument("--out", metavar="FILE", help="append the record to this file")
    args = parser.parse_args()

    name = f"{args.rows}-{args.features}-{args.classes}"
    drawn = _workloads.draw(
        _workloads.Workload(name, args.rows, args.features, args.classes, args.rank, seed=21)
    )
    given = drawn.x, drawn.label, args.classes
    contenders = {"jaxpoison": ours(*given), "randomized_svd": by_class(_randomized)(*given)}
    if not args.no_full:
        contenders["full SVD"] = by_class(_full)(*given)
    exact = oracle(*given)
    timings, results = interleaved(contenders, args.repeats, once=("full SVD",))

    info = results["jaxpoison"].info
    results["jaxpoison"] = results["jaxpoison"].values
    errors = {name: compared(values, exact, drawn.label) for name, values in results.items()}
    print(f"Spectral scores of {args.rows:,} x {args.features}, {args.classes} classes\n")
    print(table([{"contender": name, **each} for name, each in errors.items()]), end="\n\n")
    print(table([timing.row() for timing in timings.values()]), end="\n\n")
    base = timings["jaxpoison"].median_cpu
    worse = errors["jaxpoison"]["error"] / max(errors["randomized_svd"]["error"], 1e-30)
    ratio = timings["randomized_svd"].median_cpu / base
    goals = [
        goal("CPU, randomized_svd / ours", ratio, 2, at_least=True),
        goal("error, ours / randomized_svd", worse, 1, at_least=False),
    ]
    if not args.no_full:
        ratio = timings["full SVD"].median_cpu / base
        goals.append(goal("CPU, full SVD / ours", ratio, 20, at_least=True))
    print(table(goals), end="\n\n")
    emit(
        {
            "benchmark": "spectral",
            "shape": [args.rows, args.features, args.classes],
            "method": info.method,
            "passes": info.passes,
            "errors": errors,
            "timings": {name: timing.as_dict() for name, timing in timings.items()},
            "goals": goals,
            "machine": machine(),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
