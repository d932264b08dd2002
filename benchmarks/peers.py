"""Packaged tools beside ours: the same rows, the same features, one run.

    pip install "jaxpoison[evaluate,peers]"
    export OMP_NUM_THREADS=1
    python benchmarks/peers.py --out peers.jsonl
    python benchmarks/peers.py --set digits --cases "patch 5 %,flip uniform 10 %" --seeds 0,1,2
    python benchmarks/peers.py --drawn 50000x512        # speed alone, on drawn features

Our sacrificial network is trained on the poisoned rows, as a scan does, and its last feature layer
[n, d] is what every tool gets; cleanlab also gets the class probabilities of networks trained
without the row's fold. peer_tools.py says which mode each tool runs in. A tool that is not
installed has a row that says so. Tools run interleaved; each is warmed up once. Ranks are judged
without cover rows; flags are judged on all rows, and are all that clean data have.

Speed is told against ART on the same features, without a network on either side, after what both
compute is seen to be the same. Both start from rows in memory in input order. CPU seconds decide,
and BLAS gets one thread: with two on two busy cores the waiting threads made ART's small SVDs two
hundred times as slow as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import emit, goal, interleaved, machine, table
from peer_tools import ART, CONTENDERS, OURS, Answer, Given, missing

from jaxpoison.evaluate import metrics, planting, sets
from jaxpoison.evaluate.retrain import train
from jaxpoison.evaluate.suites import SUITES
from jaxpoison.kernels import _workloads
from jaxpoison.sources import open_source
from jaxpoison.stream import Stream
from jaxpoison.training import fit

_FOLDS = 5
_CASES = "patch 1 %,patch 5 %,blend 2 %,warp 5 %,flip uniform 10 %,flood duplicates 5 %"
_COLUMNS = ("contender", "sees", "AUROC", "TPR at 1 % FPR", "flagged of the poisoned",
            "flagged of the others", "s", "CPU s", "first s")  # fmt: skip
_FASTER = 20  # times, the goal against the toolbox
_PACKAGES = {"ART": "adversarial-robustness-toolbox", "cleanlab": "cleanlab"}


def prepare(set_name: str, case_name: str, seed: int, rows: int | None) -> Given:
    """Poisoned rows, the features of the network that a scan trains, and out-of-fold classes."""
    suite = SUITES["full"]
    spec = next(each for each in suite.sets if each.name == set_name)
    case = next(each for each in suite.cases if each.name == case_name)
    poisoned, split = planting.plant(case, sets.load(spec, seed=seed, rows=rows), seed=seed)
    x, y = (split.x, split.y) if poisoned is None else (poisoned.x, poisoned.y)
    nothing = np.zeros(len(y), np.bool_)
    truth, cover = (nothing, nothing) if poisoned is None else (poisoned.mask, poisoned.cover)
    c, started = int(y.max()) + 1, time.perf_counter()
    model = fit(open_source(x), y, c, seed=seed).model
    features = _outputs(model, x, c, model.features)
    between = time.perf_counter()
    fold = np.random.default_rng([seed, 15]).permutation(len(y)) % _FOLDS
    probabilities = np.zeros((len(y), c))
    for k in range(_FOLDS):
        held = fold == k
        other = train(x, y, c, seed=seed, exclude=held).model
        logits = _outputs(other, x[held], c, other.logits).astype(np.float64)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities[held] = shifted / shifted.sum(axis=1, keepdims=True)
    seconds = {"features": between - started, "probabilities": time.perf_counter() - between}
    return Given(x, y, features, probabilities, truth, ~cover, seed, seconds)


def drawn(shape: str) -> Given:
    """Features as a network's last layer may give them, ten classes, a tenth of one planted."""
    rows, features = (int(part) for part in shape.split("x"))
    made = _workloads.draw(_workloads.Workload(shape, rows, features, 10, 16, seed=21))
    truth = made.is_planted
    return Given(made.x, made.label, made.x, np.zeros(0), truth, np.ones_like(truth), 0, {})


def _outputs(model: Any, x: np.ndarray, num_classes: int, layer: Any) -> np.ndarray:
    """A layer [n, d] of a network, one tile of rows at a time."""

    def block_fn(block: Any, params: Any) -> Any:
        return jax.lax.map(lambda tile: layer(params, tile).astype(jnp.float32), block.x)

    stream = Stream(open_source(x), np.zeros(len(x), np.int32), num_classes)
    return np.ascontiguousarray(stream.map(block_fn, model.params))


def run(given: Given, wanted: list[str]) -> list[dict[str, Any]]:
    """The tools whose names hold one of some words on one poisoned set; a row each."""
    tools = [each for each in CONTENDERS if any(word in each.name for word in wanted)]
    why = {each.name: missing(each, given) for each in tools}
    makers = {each.name: each.make(given) for each in tools if why[each.name] is None}
    timings, answers = interleaved(makers, 1)
    rows = []
    for each in tools:
        row: dict[str, Any] = dict.fromkeys(_COLUMNS)
        row |= {"contender": each.name, "sees": each.seen}
        if each.name in makers:
            row |= judged(answers[each.name], given)
            timing = timings[each.name]
            row |= {
                "s": round(timing.median_wall, 3),
                "CPU s": round(timing.median_cpu, 3),
                "first s": round(timing.first_wall, 3),
            }
        else:
            row["AUROC"] = why[each.name]
        rows.append(row)
    return rows


def judged(answer: Answer, given: Given) -> dict[str, float]:
    """A ranking and flags against the truth."""
    out = {}
    truth, flags = given.truth, answer.flags
    if truth.any():
        values = np.asarray(answer.scores, np.float64)[given.judged]
        out["AUROC"] = round(metrics.auroc(values, truth[given.judged]), 4)
        tpr = metrics.true_positive_rate(values, truth[given.judged])
        out["TPR at 1 % FPR"] = round(tpr, 4)
        if flags is not None:
            out["flagged of the poisoned"] = round(float(flags[truth].mean()), 4)
    if flags is not None:
        out["flagged of the others"] = round(float(flags[~truth].mean()), 4)
    return out


def speed(given: Given, repeats: int) -> list[dict[str, Any]]:
    """Our two detectors against the toolbox's, warm, interleaved, on the same features."""
    pairs = {f"{who} {name}": each.make(given) for who, tools in (("ours", OURS), ("ART", ART))
             for name, each in tools.items()}  # fmt: skip
    timings, answers = interleaved(pairs, repeats)
    rows = []
    for name in OURS:
        ours, art = timings[f"ours {name}"], timings[f"ART {name}"]
        compared = _AGREEMENT.get(name, lambda *_: "clusters as above")
        same = compared(answers[f"ours {name}"], answers[f"ART {name}"], given)
        wall, cpu = art.median_wall / ours.median_wall, art.median_cpu / ours.median_cpu
        rows.append({
            "detector": name,
            "same": same,
            "ours, wall s": round(ours.median_wall, 4),
            "ART, wall s": round(art.median_wall, 4),
            "wall ratio": round(wall, 2),
            "ours, CPU s": round(ours.median_cpu, 4),
            "ART, CPU s": round(art.median_cpu, 4),
            "CPU ratio": round(cpu, 2),
            f"{_FASTER}x": goal(f"{name}, ART / ours", cpu, _FASTER, at_least=True)["met"],
        })  # fmt: skip
    return rows


def _same_projections(ours: Answer, art: Answer, given: Given) -> str:
    """Our scores are the squares of ART's, once it sees centred rows."""
    square = art.scores**2
    error = np.linalg.norm(ours.scores - square) / max(np.linalg.norm(square), 1e-30)
    return f"scores differ by {error:.1e}"


def _same_clusters(ours: Answer, art: Answer, given: Given) -> str:
    """Which rows are in the smaller cluster, and whose k-means found the lower loss."""
    flags = [ours.scores > 0, art.scores > 0]
    losses = [0.0, 0.0]
    for c in np.unique(given.y):
        mine = given.y == c
        x = given.features[mine].astype(np.float64)
        x -= x.mean(axis=0)
        x = x @ np.linalg.eigh(x.T @ x)[1][:, -10:]
        for i, flag in enumerate(flags):
            for part in (x[flag[mine]], x[~flag[mine]]):
                losses[i] += ((part - part.mean(axis=0)) ** 2).sum() if len(part) else 0.0
    alike = (flags[0] == flags[1]).mean()
    return f"{alike:.1%} of rows alike, k-means loss ours / ART {losses[0] / losses[1]:.4f}"


_AGREEMENT = {"spectral": _same_projections, "activation": _same_clusters}


def keep(given: Given, folder: Path, name: str) -> None:
    """Saves what the tools got."""
    folder.mkdir(parents=True, exist_ok=True)
    name = name.replace(" ", "_").replace("%", "").replace("/", "-")
    for what in ("features", "probabilities", "y", "truth"):
        np.save(folder / f"{name}-{what}.npy", getattr(given, what))


def _versions() -> dict[str, str]:
    out = {}
    for name, package in _PACKAGES.items():
        try:
            out[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--set", default="fashion_mnist", help="of the full suite")
    parser.add_argument("--cases", default=_CASES, help="of the full suite")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rows", type=int, help="of the set, at most")
    parser.add_argument("--tools", default="", help="words of their names; without it all of them")
    parser.add_argument("--repeats", type=int, default=5, help="of the speed against ART")
    parser.add_argument("--drawn", metavar="ROWSxFEATURES", help="speed alone, on drawn features")
    parser.add_argument("--keep", metavar="DIR", help="save the features and probabilities there")
    parser.add_argument("--out", metavar="FILE", help="append a record a case to this file")
    args = parser.parse_args()
    cases, known = args.cases.split(","), [case.name for case in SUITES["full"].cases]
    unknown = sorted(set(cases) - set(known))
    if unknown or args.set not in [each.name for each in SUITES["full"].sets]:
        parser.error(f"--set or --cases: {unknown or args.set} unknown; cases: {', '.join(known)}")
    if "OMP_NUM_THREADS" not in os.environ:
        parser.error("set OMP_NUM_THREADS=1; waiting BLAS threads would be counted against a tool")
    warnings.simplefilter("ignore")  # of the peers; ours are errors in our own tests
    if args.drawn:
        told(drawn(args.drawn), {"set": args.drawn}, args)
        return
    for case in cases:
        for seed in map(int, args.seeds.split(",")):
            given = prepare(args.set, case, seed, args.rows)
            if args.keep:
                keep(given, Path(args.keep), f"{args.set}-{case}-{seed}")
            told(given, {"set": args.set, "case": case, "seed": seed}, args)


def told(given: Given, what: dict[str, Any], args: argparse.Namespace) -> None:
    """Runs and prints everything about one set."""
    digest = hashlib.sha256(given.features.tobytes() + given.y.tobytes()).hexdigest()[:12]
    n, poisoned, shape = len(given.y), int(given.truth.sum()), list(given.features.shape)
    print(f"\n{', '.join(map(str, what.values()))}: {n:,} rows, {poisoned:,} poisoned, "
          f"features {shape}, digest {digest}")  # fmt: skip
    took = [f"{name} took {seconds:.1f} s" for name, seconds in given.seconds.items()]
    print("; ".join(took) + "\n")
    rows = [] if args.drawn else run(given, args.tools.split(","))
    if rows:
        print(table(rows) + "\n")
    art = missing(ART["spectral"], given)
    pairs = [] if art else speed(given, args.repeats)
    print(table(pairs) + "\n" if pairs else f"speed against ART: {art}\n")
    emit(
        {
            "benchmark": "peers",
            **what,
            "rows": n,
            "poisoned": poisoned,
            "shape": shape,
            "digest": digest,
            "seconds": given.seconds,
            "tools": rows,
            "speed": pairs,
            "versions": _versions(),
            "machine": machine(),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
