"""One case: plant, scan, compare with the truth; the outcome is one plain record."""

from __future__ import annotations

import contextlib
import time
from typing import Any, NamedTuple

import numpy as np

import jaxpoison
from jaxpoison._check import JaxpoisonError
from jaxpoison._types import HostArray
from jaxpoison.attacks import Poisoned
from jaxpoison.evaluate import metrics, planting, retrain, sets
from jaxpoison.evaluate.sets import Split
from jaxpoison.evaluate.suites import SUITE_VERSION, TABLE, Case, SetSpec
from jaxpoison.report import Report

FUSED = "fused"
METRICS = ("auroc", "average_precision", "tpr")


class Task(NamedTuple):
    """One line of the records to come.

    Attributes:
        spec: The set.
        case: What is planted.
        seed: Of everything random.
        rows: Training rows at the most, or None for the spec's.
        retrain: Whether networks are retrained.
    """

    spec: SetSpec
    case: Case
    seed: int
    rows: int | None
    retrain: bool

    def header(self) -> dict[str, Any]:
        """What names the record."""
        parts = [self.case.definition, self.spec.data, self.spec.prepare or "as is"]
        if self.spec.labels is not None:
            parts.append(self.spec.labels)
        return {
            "suite_version": SUITE_VERSION,
            "set": self.spec.name,
            "case": self.case.name,
            "attack": self.case.attack,
            "rate": self.case.rate,
            "seed": self.seed,
            "rows": self.rows or self.spec.rows,
            "definition": "-".join(parts),
        }


def run(task: Task, *, isolated: bool = False) -> dict[str, Any]:
    """Plants, scans, retrains.

    Args:
        task: The case.
        isolated: Whether this process does nothing else, so that its peak memory means something.

    Returns:
        The record: ``status`` is "done", or "refused" with a ``reason`` where the attack or the
        scan says why it can not be (too few rows, for example).
    """
    record = {**task.header(), "version": jaxpoison.__version__, "status": "done"}
    started = time.perf_counter()
    try:
        split = sets.load(task.spec, seed=task.seed, rows=task.rows)
        poisoned, split = planting.plant(task.case, split, seed=task.seed)
        planted = time.perf_counter()
        if isolated:
            _forget_peak()
        x, y = (split.x, split.y) if poisoned is None else (poisoned.x, poisoned.y)
        if task.spec.prepare == TABLE:
            x = x.reshape(len(x), -1).astype(np.float32)
        report = jaxpoison.scan(x, y, seed=task.seed)
    except JaxpoisonError as error:
        return {**record, "status": "refused", "reason": str(error)}
    scanned = time.perf_counter()
    record |= compare(report, poisoned, split)
    record["retrain"] = None
    if task.retrain:
        flagged = np.zeros(len(y), np.bool_)
        flagged[report.flagged_indices()] = True
        record["retrain"] = retrain.closed_loop(poisoned, split, flagged, seed=task.seed)
    record["seconds"] = {
        "plant": round(planted - started, 3),
        "scan": round(scanned - planted, 3),
        "retrain": round(time.perf_counter() - scanned, 3) if task.retrain else None,
    }
    record["peak_mb"] = report.report["peak_mb"] if isolated else None
    return record


def compare(report: Report, poisoned: Poisoned | None, split: Split) -> dict[str, Any]:
    """A report against the truth.

    Cover rows carry the trigger under their honest label. They are not poison by label and not
    plain rows either: rankings leave them out, flags count them as clean.

    Args:
        report: Of the scan.
        poisoned: The truth, None where nothing was planted.
        split: The honest rows.

    Returns:
        Part of the record.
    """
    n = len(split.y) if poisoned is None else len(poisoned.y)
    truth = np.zeros(n, np.bool_) if poisoned is None else poisoned.mask
    cover = np.zeros(n, np.bool_) if poisoned is None else poisoned.cover
    flagged = np.zeros(n, np.bool_)
    flagged[report.flagged_indices()] = True
    out: dict[str, Any] = {
        "kind": None if poisoned is None else poisoned.kind,
        "target": None if poisoned is None else poisoned.target,
        "params": {} if poisoned is None else poisoned.params,
        "num_rows": n,
        "num_poisoned": int(truth.sum()),
        "num_cover": int(cover.sum()),
        "num_added": max(0, n - len(split.y)),  # targeted attacks hold their victims out
        "scores": _rankings(report, truth, cover),
        "flags": {
            "flagged": int(flagged.sum()),
            "tpr": float(flagged[truth].mean()) if truth.any() else None,
            "fpr": float(flagged[~truth].mean()) if not truth.all() else None,
            "cover": float(flagged[cover].mean()) if cover.any() else None,
        },
        "verdict": report.verdict,
        "p_poisoned": float(report.report["p_poisoned"]),
        **_naming(report, poisoned),
    }
    if split.noise is not None and poisoned is None:
        out["flags"]["noise"] = float(flagged[split.noise].mean())
    return out


def _rankings(report: Report, truth: HostArray, cover: HostArray) -> dict[str, Any]:
    """Every detector's ranking and the fused one; nothing where there is nothing to rank."""
    truth, judged = truth[report.index], ~cover[report.index]
    if not truth[judged].any() or truth[judged].all():
        return {}
    out = {}
    for name, scores in {**report.scores, FUSED: report.suspicion}.items():
        mine, positive = np.asarray(scores)[judged], truth[judged]
        values = (
            metrics.auroc(mine, positive),
            metrics.average_precision(mine, positive),
            metrics.true_positive_rate(mine, positive),
        )
        out[name] = {k: round(float(v), 6) for k, v in zip(METRICS, values, strict=True)}
    return out


def _naming(report: Report, poisoned: Poisoned | None) -> dict[str, Any]:
    """Whether the most confident finding names the kind and the target."""
    attacks = report.report["suspected_attacks"]
    top = attacks[0] if attacks else None
    named = {
        "kind_found": None if top is None else top["kind"],
        "target_found": None if top is None else top["target_class"],
    }
    if poisoned is None:
        return {**named, "kind_right": None, "target_right": None}
    right = top is not None and top["kind"] == poisoned.kind
    hit = None
    if poisoned.target is not None:
        hit = top is not None and top["target_class"] == poisoned.target
    return {**named, "kind_right": right, "target_right": hit}


def _forget_peak() -> None:
    """Lets the peak of this process start again from what it holds now (Linux only)."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
