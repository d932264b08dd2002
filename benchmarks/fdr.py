"""Checks the false discovery rate that a user asks for: is it what the flags hold on average?

    python benchmarks/fdr.py --out fdr.jsonl
    python benchmarks/fdr.py --fdr 0.2 --mixes 20 --trusted 0.3

A mix is real data (a draw of Fashion-MNIST, digits, breast_cancer), an attack drawn from those that
need no network, at a rate drawn between half a per cent and ten, or no attack at all in one mix of
six. Each is scanned with the rows themselves as features, so that no network is trained. A flagged
row is a false discovery if nobody planted it; cover rows, which the attacker placed with their
honest label, count neither way. A mix without a flag has a share of 0: that is how the rate is
defined. Mixes are lines of the file given by ``--out``; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import emit, machine, table

import jaxpoison
from jaxpoison._check import UsageError
from jaxpoison.attacks import ATTACKS, poison
from jaxpoison.evaluate import interval
from jaxpoison.evaluate.sets import load
from jaxpoison.evaluate.suites import SetSpec

_SETS = {
    "fashion_mnist": (SetSpec("fashion_mnist", "fashion_mnist"), 2500),
    "digits": (SetSpec("digits", "sklearn:digits"), None),
    "breast_cancer": (SetSpec("breast_cancer", "sklearn:breast_cancer"), None),
}
_CLEAN = "clean"
_CLEAN_SHARE = 1 / 6
_RATES = (0.005, 0.1)
_TRIES = 20  # draws until an attack takes the rows it was given


def drawn(seed: int, set_names: list[str]) -> dict[str, Any]:
    """A mix: its facts, and the arrays x, y, planted and cover."""
    rng = np.random.default_rng([seed, 21])
    name = str(rng.choice(set_names))
    spec, rows = _SETS[name]
    split = load(spec, seed=seed, rows=rows)
    fitting = [a.name for a in ATTACKS.values() if not a.needs_model]
    fitting = [a for a in fitting if ATTACKS[a].needs in ("any", split.kind)]
    facts = {"set": name, "attack": _CLEAN, "rate": 0.0}
    none = np.zeros(len(split.y), np.bool_)
    arrays = {"x": split.x, "y": split.y, "planted": none, "cover": none}
    if rng.random() < _CLEAN_SHARE:
        return {**facts, **arrays}
    for _ in range(_TRIES):
        attack = str(rng.choice(fitting))
        rate = float(np.exp(rng.uniform(*np.log(_RATES))))
        try:
            found = poison(attack, split.x, split.y, rate=rate, seed=seed)
        except UsageError:  # more rows than the target class has, for one
            continue
        return {
            "set": name, "attack": attack, "rate": rate,
            "x": found.x, "y": found.y, "planted": found.mask, "cover": found.cover,
        }  # fmt: skip
    raise SystemExit(f"mix {seed}: no attack takes the rows of {name}")


def run(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Scans one mix and counts."""
    mix = drawn(seed, args.sets.split(","))
    x, y, planted = mix["x"], mix["y"], mix["planted"]
    honest = np.flatnonzero(~planted & ~mix["cover"])
    trusted = None
    if args.trusted:
        rng = np.random.default_rng([seed, 22])
        trusted = np.sort(rng.permutation(honest)[: round(args.trusted * len(y))])
    features = x.reshape(len(x), -1).astype(np.float32) if x.ndim > 2 else None
    started = time.perf_counter()
    report = jaxpoison.scan(x, y, features=features, trusted=trusted, fdr=args.fdr, seed=seed)
    flagged = report.flagged & ~mix["cover"]
    false = int((flagged & ~planted).sum())
    return {
        "benchmark": "fdr",
        "seed": seed,
        "fdr": args.fdr,
        "trusted": args.trusted,
        "sets": args.sets,
        "set": mix["set"],
        "attack": mix["attack"],
        "rate": round(mix["rate"], 4),
        "rows": len(y),
        "planted": int(planted.sum()),
        "flagged": int(flagged.sum()),
        "false": false,
        "false_share": false / max(int(flagged.sum()), 1),
        "found_share": float(flagged[planted].mean()) if planted.any() else None,
        "verdict": report.verdict,
        "seconds": round(time.perf_counter() - started, 2),
        "machine": machine(),
    }


def summary(records: list[dict[str, Any]], fdr: float) -> list[dict[str, Any]]:
    """Mean shares with their intervals, of all mixes and of those with a flag."""
    rows = []
    parts = {"all mixes": records, "mixes with a flag": [r for r in records if r["flagged"]]}
    parts |= {f"attack {_CLEAN}": [r for r in records if r["attack"] == _CLEAN]}
    parts |= {name: [r for r in records if r["set"] == name] for name in _SETS}
    for name, mine in parts.items():
        if not mine:
            continue
        share = _cell([r["false_share"] for r in mine])
        found = _cell([r["found_share"] for r in mine if r["found_share"] is not None])
        flagged, false = (sum(r[key] for r in mine) for key in ("flagged", "false"))
        rows.append({
            "of": name, "mixes": len(mine), "asked for": fdr, "mean false share": share,
            "flagged": flagged, "false": false, "planted found": found,
        })  # fmt: skip
    return rows


def _cell(values: list[float]) -> str:
    cell = interval(values, low=0.0, high=1.0)
    if cell is None:
        return ""
    ends = "" if cell.low is None else f" ({cell.low:.3f}..{cell.high:.3f})"
    return f"{cell.mean:.3f}{ends}"


def _held(path: str | None) -> list[dict[str, Any]]:
    if path is None or not Path(path).exists():
        return []
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("seed", "fdr", "trusted", "sets"))


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to below 1; got {text!r}")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--mixes", type=int, default=50)
    parser.add_argument("--fdr", type=_share, default=0.05, help="what the user asks for")
    parser.add_argument("--trusted", type=_share, default=0.0, help="share of rows known as honest")
    parser.add_argument("--sets", default=",".join(_SETS))
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", metavar="FILE", help="one line a mix; what is there is kept")
    args = parser.parse_args()
    unknown = sorted(set(args.sets.split(",")) - set(_SETS))
    if unknown or not args.fdr:
        parser.error(f"--sets: {unknown} unknown" if unknown else "--fdr: must be above 0")
    held = {_key(record): record for record in _held(args.out)}
    records = []
    for seed in range(args.first_seed, args.first_seed + args.mixes):
        key = (seed, args.fdr, args.trusted, args.sets)
        if key not in held:
            held[key] = run(seed, args)
            emit(held[key], args.out)
        records.append(held[key])
    print("\n" + table(summary(records, args.fdr)))


if __name__ == "__main__":
    main()
