"""Certified prediction with closed-form learners: how much is certified, and how fast.

    python benchmarks/certify.py quality --data mnist.npz --k 1200 2000 3000
    python benchmarks/certify.py spread  --data mnist.npz --k 1200 --spread 16
    python benchmarks/certify.py changes --data mnist.npz --k 1200
    python benchmarks/certify.py select  --data mnist.npz

``data`` is an npz with x_train, y_train, x_test and y_test, or a folder of MNIST's four files, such
as Debian's dataset-fashion-mnist installs. Rows are spread by the sum of their pixels, as in the
reference code of Deep Partition Aggregation.

``select`` is how the learner's settings were chosen: models of 50 rows of the first five sixths of
the training set, judged on rows of the last sixth. The test set takes no part in it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from common import cpu_seconds, emit, goal, machine, measured, peak_mb, table

_RADII = {
    250: (20, 40, 60, 80, 100, 120),
    1200: (100, 200, 300, 400, 500, 550),
    2000: (200, 400, 600, 800),
}
_LATER_RADII = (200, 400, 600, 800, 1000)
_OF_FLOORS = "mnist.npz"
_FLOORS = {
    1200: {"clean": 96.5, "median": 540, "@400": 83, "@500": 68},
    2000: {"clean": 95.5, "median": 750},
    3000: {"median": 880},
}
_SELECTED = (  # what was compared; the first line is what the library has as its default
    {},
    {"gamma": 0.1, "regularisation": 0.001},
    {"gamma": 0.3, "regularisation": 0.001},
    {"gamma": 0.3},
    {"gamma": 0.3, "regularisation": 0.01},
    {"gamma": 1.0, "regularisation": 0.001},
    {"gamma": 1.0, "regularisation": 0.01},
    {"gamma": 2.0},
    {"orientations": 4},
    {"orientations": 6},
    {"offset": 0.01},
    {"offset": 0.06},
    {"horizontal": 0.3},
    {"horizontal": 0.7},
    {"vertical": 0.5},
    {"vertical": 0.0, "horizontal": 0.0},
    {"height": 0.15},
    {"height": 0.185},
    {"width": 0.125},
    {"width": 0.16},
)


def load(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if Path(path).is_dir():
        return (*_images(path, "train"), *_images(path, "t10k"))
    with np.load(path) as file:
        x, y, x_test, y_test = (file[n] for n in ("x_train", "y_train", "x_test", "y_test"))
    return x, y.astype(np.int64), x_test, y_test.astype(np.int64)


def _images(folder: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    from jaxpoison.sources import open_source

    kinds = ("images-idx3", "labels-idx1")
    source = open_source(*(str(Path(folder, f"{name}-{kind}-ubyte.gz")) for kind in kinds))
    rows = source.read(0, len(source))
    return rows["x"], rows["y"].astype(np.int64)


def learner_of(settings: dict[str, Any], name: str = "kernel_ridge") -> Any:
    """A learner with some settings changed, those of its features among them."""
    from dataclasses import fields

    from jaxpoison.certify import learners
    from jaxpoison.certify.features import Chain, Deskew, Scattering

    def own(kind: Any) -> dict[str, Any]:
        return {f.name: settings[f.name] for f in fields(kind) if f.name in settings}

    kinds = {
        "kernel_ridge": learners.KernelRidge, "ridge": learners.Ridge,
        "class_mean": learners.ClassMean, "neighbours": learners.Neighbours,
    }  # fmt: skip
    features = Chain((Deskew(**own(Deskew)), Scattering(**own(Scattering))))
    return kinds[name](features=features, **own(kinds[name]))


def summary(certificates: Any, labels: np.ndarray, k: int) -> dict[str, Any]:
    radii = _RADII.get(k, _LATER_RADII)
    found = certificates.certified_accuracy(labels, [0, *radii])
    out = {"clean": 100 * float((certificates.prediction == labels).mean())}
    out["median"] = certificates.median(labels)
    out.update({f"@{r}": round(100 * float(a), 2) for r, a in zip(radii, found[1:], strict=True)})
    return out


def run(
    data: tuple[np.ndarray, ...], k: int, spread: int, learner: Any, warm: bool
) -> dict[str, Any]:
    """One ensemble from pixels to certificates, each step timed."""
    from jaxpoison.certify import certify
    from jaxpoison.certify.ensemble import fit_partitions
    from jaxpoison.certify.keys import PixelSum
    from jaxpoison.certify.partitions import partition, rungs

    x, y, x_test, y_test = data
    parts, *parting = measured(lambda: partition(x, y, k=k, spread=spread, key=PixelSum()))
    if warm:  # compiles every rung; the programs are the same whatever the number of subsets
        few = parts.only(np.unique(rungs(parts.sizes), return_index=True)[1])
        list(learner.fit_scores(few, x, y, x_test[:1], num_classes=10))
    features, *featuring = measured(lambda: learner.features(x))
    ensemble, *fitting = measured(
        lambda: fit_partitions(parts, learner, num_classes=10, features=features)
    )
    votes, *voting = measured(lambda: ensemble.votes(x_test))
    certificates, *certifying = measured(lambda: certify(votes))
    base = float((votes.labels == y_test).mean())
    steps = {
        "partition": parting, "features": featuring, "fit": fitting, "votes": voting,
        "certify": certifying,
    }  # fmt: skip
    return {
        "k": k, "spread": spread, "learner": learner.to_json(), "tests": len(x_test),
        "base": 100 * base, **summary(certificates, y_test, k),
        "wall": {name: round(t[0], 3) for name, t in steps.items()},
        "cpu": {name: round(t[1], 3) for name, t in steps.items()},
        "total cpu": round(sum(t[1] for t in steps.values()), 2),
        "total wall": round(sum(t[0] for t in steps.values()), 2),
        "peak MB": round(peak_mb()),
    }  # fmt: skip


def goals_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    floors = _FLOORS.get(found["k"], {}) if found["spread"] == 1 else {}
    out = [goal(f"k={found['k']} {n}", found[n], bar, at_least=True) for n, bar in floors.items()]
    if found["spread"] == 1 and found["k"] == 1200:
        out.append(goal("fit, wall s", found["wall"]["fit"], 3, at_least=False))
        both = found["total wall"]
        out.append(goal("features, fit and votes, wall s", both, 75, at_least=False))
    return out


def changes(data: tuple[np.ndarray, ...], k: int, learner: Any, count: int) -> dict[str, Any]:
    """Rows that come and go one at a time, and whether the bits are those of a fit of all."""
    from jaxpoison.certify.ensemble import fit_partitions
    from jaxpoison.certify.partitions import partition

    x, y, _, _ = data
    features = learner.features(x)

    def fitted(n: int) -> Any:
        parts = partition(x[:n], y[:n], k=k)
        return fit_partitions(parts, learner, num_classes=10, features=features[:n])

    n = len(x)
    ensemble = fitted(n - count)
    first = slice(n - count, n - count + 1)
    ensemble = ensemble.insert(x[first], y[first])  # compiles, copies the rows once
    times: dict[str, list[tuple[float, ...]]] = {"insert": [], "delete": []}
    for i in range(n - count + 1, n):
        row = slice(i, i + 1)
        ensemble, *took = measured(lambda e=ensemble, r=row: e.insert(x[r], y[r]))
        times["insert"].append(tuple(took))
    equal = same_models(ensemble, fitted(n))
    for i in range(n - count, n):
        ensemble, *took = measured(lambda e=ensemble, i=i: e.delete([i]))
        times["delete"].append(tuple(took))
    equal = equal and same_models(ensemble, fitted(n - count))
    figures = {
        f"{name}, {kind} ms": round(1e3 * float(np.median([t[j] for t in took])), 2)
        for name, took in times.items()
        for j, kind in enumerate(("wall", "CPU"))
    }
    return {"k": k, "changes": count, "bit-equal": equal, **figures}


def same_models(one: Any, other: Any) -> bool:
    """Whether all models of two ensembles have the same bits."""
    pairs = zip(one._models, other._models, strict=True)
    return all(
        (a is None) == (b is None)
        and (a is None or all(np.array_equal(p, q) for p, q in zip(a, b, strict=True)))
        for a, b in pairs
    )


def select(data: tuple[np.ndarray, ...], members: int, judged: int) -> list[dict[str, Any]]:
    """Each setting on the training set alone: accuracy of single models, radii of a vote."""
    from jaxpoison.certify.keys import PixelSum
    from jaxpoison.certify.partitions import partition

    x, y, _, _ = data
    part = len(x) * 5 // 6
    parts = partition(x[:part], y[:part], k=1000, key=PixelSum()).only(range(members))
    held, truth = x[part : part + judged], y[part : part + judged]
    rows = []
    for settings in _SELECTED:
        start, right, votes = cpu_seconds(), 0.0, np.zeros((len(held), 10))
        fitted = learner_of(settings).fit_scores(parts, x, y, held, num_classes=10)
        for ids, scores in fitted:
            labels = np.argmax(scores[ids < members], axis=2)
            right += float((labels == truth).mean(axis=1).sum()) / members
            for c in range(10):
                votes[:, c] += (labels == c).sum(axis=0)
        own = votes[np.arange(len(held)), truth]
        votes[np.arange(len(held)), truth] = -1
        share = (own - votes.max(axis=1)) / members
        row = {"settings": json.dumps(settings), "base": round(100 * right, 2)}
        row["clean"] = round(100 * float((share > 0).mean()), 2)
        # a radius of r takes a lead of 2 r votes: what the share of 1200 members would be
        row.update({f"@{r}": round(100 * float((share * 600 >= r).mean()), 2) for r in (400, 500)})
        row["CPU s"] = round(cpu_seconds() - start, 1)
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("quality", "spread", "changes", "select"))
    parser.add_argument("--data", required=True)
    parser.add_argument("--k", type=int, nargs="+", default=[1200])
    parser.add_argument("--spread", type=int, default=16)
    parser.add_argument("--tests", type=int, default=10_000)
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--learner", default="kernel_ridge")
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--out")
    args = parser.parse_args()
    x, y, x_test, y_test = load(args.data)
    data = (x, y, x_test[: args.tests], y_test[: args.tests])
    learner = learner_of(args.settings, args.learner)
    rows: list[dict[str, Any]] = []
    goals: list[dict[str, Any]] = []
    if args.part == "select":
        rows = select(data, args.members, min(args.tests, len(x) // 6))
    for k in args.k if args.part != "select" else []:
        if args.part == "changes":
            rows.append(changes(data, k, learner, args.changes))
            for kind in ("insert", "delete"):
                took = rows[-1][f"{kind}, wall ms"]
                goals.append(goal(f"{kind}, wall ms", took, 10, at_least=False))
        else:
            rows.append(run(data, k, 1, learner, warm=True))
            goals += goals_of(rows[-1]) if Path(args.data).name == _OF_FLOORS else []
        if args.part == "spread":
            rows.append(run(data, k, args.spread, learner, warm=True))
            ratio = rows[-1]["total cpu"] / rows[-2]["total cpu"]
            goals.append(goal("spread, CPU beside spread 1", ratio, 2, at_least=False))
    for row in rows:
        emit({"benchmark": "certify", "part": args.part, **row, "machine": machine()}, args.out)
    print(table([{k: v for k, v in row.items() if not isinstance(v, dict)} for row in rows]))
    if goals:
        print(table(goals))


if __name__ == "__main__":
    main()
