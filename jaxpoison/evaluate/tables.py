"""From records to one document: means over seeds, and what every table shows."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxpoison.evaluate.measure import FUSED, METRICS
from jaxpoison.evaluate.metrics import interval
from jaxpoison.evaluate.retrain import FILTERS
from jaxpoison.evaluate.suites import CLEAN, SUITE_VERSION, Suite

SCHEMA = "jaxpoison.evaluation/1"
VERDICTS = ("clean", "suspicious", "poisoned")

Record = dict[str, Any]


def summarise(records: list[Record], suite: Suite) -> dict[str, Any]:
    """The document of an evaluation, JSON-able; all tables and the page are made of it.

    Args:
        records: One a case and seed, of any status.
        suite: For the order of sets and cases, and their notes.

    Returns:
        ``poisoned`` and ``clean`` hold one entry a set and case; every mean in them is
        ``{"mean", "low", "high", "n"}`` over seeds, or None.
    """
    specs = {spec.name: spec for spec in suite.sets}
    done = [each for each in records if each["status"] == "done"]
    groups: dict[tuple[str, str], list[Record]] = {}
    for spec in suite.sets:
        for case in suite.cases:
            mine = [r for r in done if (r["set"], r["case"]) == (spec.name, case.name)]
            if mine:
                groups[spec.name, case.name] = sorted(mine, key=lambda r: int(r["seed"]))
    entries = [_entry(mine) for mine in groups.values()]
    return {
        "schema": SCHEMA,
        "suite": suite.name,
        "suite_version": SUITE_VERSION,
        "versions": sorted({r["version"] for r in done}),
        "seeds": sorted({r["seed"] for r in done}),
        "interval": "95 % t-interval of the mean over seeds, cut to the range of the quantity",
        "detectors": _detectors(done),
        "sets": [
            {"name": name, "data": spec.data, "prepare": spec.prepare, "note": spec.note}
            for name, spec in specs.items()
            if any(r["set"] == name for r in records)
        ],
        "poisoned": [each for each in entries if each["attack"] != CLEAN],
        "clean": [each for each in entries if each["attack"] == CLEAN],
        "not_done": _not_done(records),
    }


def _detectors(done: list[Record]) -> list[str]:
    """Names in the order the scans ran them, the fused score last."""
    names = dict.fromkeys(name for r in done for name in r["scores"] if name != FUSED)
    return [*names, FUSED] if names else []


def _entry(mine: list[Record]) -> dict[str, Any]:
    """One set and case over its seeds."""
    first = mine[0]
    names = dict.fromkeys(name for r in mine for name in r["scores"])
    return {
        "set": first["set"],
        "case": first["case"],
        "attack": first["attack"],
        "rate": first["rate"],
        "kind": first["kind"],
        "seeds": [r["seed"] for r in mine],
        "rows": _mean(mine, "num_rows"),
        "poisoned": _mean(mine, "num_poisoned"),
        "cover": _mean(mine, "num_cover"),
        "added": _mean(mine, "num_added"),
        "scores": {
            name: {metric: _share(mine, "scores", name, metric) for metric in METRICS}
            for name in names
        },
        "flags": {name: _share(mine, "flags", name) for name in ("tpr", "fpr", "cover", "noise")},
        "verdicts": {name: sum(r["verdict"] == name for r in mine) for name in VERDICTS},
        "kind_right": _right(mine, "kind_right"),
        "target_right": _right(mine, "target_right"),
        "retrain": {
            name: {
                "removed": _mean(mine, "retrain", name, "removed"),
                "accuracy": _share(mine, "retrain", name, "accuracy"),
                "success": _share(mine, "retrain", name, "success"),
            }
            for name in FILTERS
        },
        "seconds": {name: _median(mine, "seconds", name) for name in ("plant", "scan", "retrain")},
        "peak_mb": max(_values(mine, "peak_mb"), default=None),
    }


def _values(mine: list[Record], *path: str) -> list[float]:
    """One value a record that has it: the entry of nested dicts, None counting as none."""
    out = []
    for value in mine:
        at: Any = value
        for name in path:
            at = None if at is None else at.get(name)
        if at is not None:
            out.append(float(at))
    return out


def _share(mine: list[Record], *path: str) -> dict[str, Any] | None:
    """Mean of a quantity between 0 and 1."""
    cell = interval(_values(mine, *path), low=0.0, high=1.0)
    return None if cell is None else cell._asdict()


def _mean(mine: list[Record], *path: str) -> float | None:
    values = _values(mine, *path)
    return float(np.mean(values)) if values else None


def _median(mine: list[Record], *path: str) -> float | None:
    values = _values(mine, *path)
    return float(np.median(values)) if values else None


def _right(mine: list[Record], name: str) -> dict[str, int] | None:
    """How often a name was right, of the seeds in which there was one to give."""
    judged = [bool(r[name]) for r in mine if r[name] is not None]
    return {"right": sum(judged), "of": len(judged)} if judged else None


def _not_done(records: list[Record]) -> list[dict[str, Any]]:
    """Cases that were refused or failed, one entry a reason."""
    out: dict[tuple[str, ...], list[int]] = {}
    for r in records:
        if r["status"] != "done":
            key = (r["set"], r["case"], r["status"], r["reason"])
            out.setdefault(key, []).append(int(r["seed"]))
    names = ("set", "case", "status", "reason")
    return [{**dict(zip(names, key, strict=True)), "seeds": seeds} for key, seeds in out.items()]
