"""The report out of everything a scan found."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from jaxpoison import calibrate
from jaxpoison._types import DETECTOR_NAMES, Exclusion, HostArray
from jaxpoison.calibrate.gates import rule_of
from jaxpoison.calibrate.groups import Finding, Group, decisive, is_confirmed
from jaxpoison.detect.label_views import Opinion
from jaxpoison.layout import ClassRows
from jaxpoison.report import ClassPicture, Example, Pictures, Report
from jaxpoison.scanning.evidence import Evidence, seen_in
from jaxpoison.scanning.plan import ScanPlan
from jaxpoison.scanning.spaces import Space
from jaxpoison.sources import Source
from jaxpoison.sources.inspect import Inspection

_DIRTY_LABEL = ("backdoor", "label_flip", "subpopulation")
_POINTS = 3000  # of a class's projection
_FEWEST_OTHERS = 3  # rows that are not flagged, to tell their spread
_EXAMPLES = 100
_NEIGHBOURS = 12  # unflagged rows shown beside the flagged ones of a class
_VALUES = 24  # of a feature row
_SUSPECTED = 12  # classes shown in full

_NOTE = (
    "p-values are relative to the lower half of each class of this very data; "
    "uncalibrated against trusted data"
)
_UNUSUAL = "unusual"  # kind of a row that only its q-value flags


class Outcome(NamedTuple):
    """Everything a scan found, before it is written down."""

    plan: ScanPlan
    source: Source
    labels: HostArray
    classes: HostArray
    dense: HostArray
    kept: HostArray
    trusted: HostArray | None
    inspection: Inspection
    spaces: list[Space]
    evidence: list[Evidence]
    reasons: dict[str, str]  # why a detector asked for did not run
    groups: list[Group]
    checks: list[Exclusion]
    opinion: Opinion | None
    verdict: calibrate.Verdict
    fused: calibrate.Fused
    timing: dict[str, float]


def assemble(out: Outcome) -> Report:
    """Arrays, the JSON document and the pictures."""
    kind = np.full(len(out.dense), "", dtype="U16")
    for found in out.verdict.findings:
        kind[found.rows] = found.kind
    kind[out.verdict.flagged & (kind == "")] = _UNUSUAL
    pictures = _pictures(out, kind)
    return Report(
        report=_document(out),
        index=out.kept.astype(np.int64),
        label=out.labels.astype(np.int64),
        scores=_columns(out),
        suspicion=out.fused.suspicion,
        p=out.fused.p,
        q=out.fused.q,
        flagged=out.verdict.flagged,
        suspected_kind=kind,
        suggested_label=_suggested(out),
        pictures=pictures,
    )


def _suggested(out: Outcome) -> HostArray:
    """The class that label evidence takes a flagged row of a dirty-label finding for, else -1."""
    suggested = np.full(len(out.dense), -1, np.int64)
    if out.opinion is not None:
        for found in out.verdict.findings:
            if found.kind in _DIRTY_LABEL:
                rows = found.rows[out.opinion.margins[found.rows] > 0]
                suggested[rows] = out.classes[out.opinion.taken_for[rows]]
        suggested[~out.verdict.flagged] = -1
    return suggested


def _columns(out: Outcome) -> dict[str, HostArray]:
    """One column a detector: its strongest tail over the spaces, as -log10 p.

    Those that stand apart keep their unit, comparable across classes: the mean over the spaces.
    """
    columns: dict[str, HostArray] = {}
    for name in out.plan.names:
        mine = [e for e in out.evidence if e.detector == name]
        if not mine:
            continue
        if name in calibrate.APART:
            columns[name] = np.stack([e.scores.values for e in mine]).mean(axis=0)
        else:
            columns[name] = (-np.min([e.log10_p for e in mine], axis=0)).astype(np.float32)
    return columns


def _class_name(out: Outcome, dense: int) -> str:
    names, label = out.source.schema.class_names, int(out.classes[dense])
    return names[label] if names and label < len(names) else str(label)


def _rows_of_evidence(out: Outcome, target: int) -> tuple[dict[str, Any], ...]:
    """Every detector's statistic for a class against the threshold of its gate."""
    rows = []
    for each in out.evidence:
        value, rule = float(each.gate.statistic[target]), rule_of(each.detector)
        if rule.is_ranking_only or not np.isfinite(value):
            continue
        threshold = float(each.gate.threshold[target])
        is_across = not np.isfinite(threshold) or bool(
            each.gate.across[target] and not each.gate.absolute[target]
        )
        null = "nothing found" if rule.is_enough else "parametric bootstrap"
        if is_across:
            value, threshold, null = float(each.gate.z[target]), rule.across, "across classes"
        rows.append(
            {
                "detector": each.detector,
                "space": each.space,
                "statistic": "robust z across classes" if is_across else "class statistic",
                "value": round(value, 4),
                "threshold": round(threshold, 4),
                "null": null,
                "fired": bool(each.gate.open[target]),
            }
        )
    for group, check in zip(out.groups, out.checks, strict=True):
        if group.target == target:
            rows.append(_row_of_check(group, check, len(out.classes)))
    return tuple(rows)


def _row_of_check(group: Group, check: Exclusion, num_classes: int) -> dict[str, Any]:
    """What decided about a group."""
    statistic, value, threshold = decisive(group, check)
    return {
        "detector": "exclusion",
        "space": f"{group.detector} in {group.space}",
        "statistic": statistic,
        "value": round(value, 4),
        "threshold": round(threshold, 4),
        "null": f"{1 - check.agreement:.0%} taken for other classes without their own labels' "
        f"help, {1 - check.expected:.0%} of the rest of the class",
        "fired": is_confirmed(group, check, num_classes),
    }


def _attack(out: Outcome, found: Finding) -> dict[str, Any]:
    source = None if found.source is None else int(out.classes[found.source])
    return {
        "kind": found.kind,
        "target_class": int(out.classes[found.target]),
        "target_name": _class_name(out, found.target),
        "source_class": source,
        "n": len(found.rows),
        "confidence": round(found.confidence, 4),
        "evidence": [e for e in _rows_of_evidence(out, found.target) if e["fired"]],
    }


def _skipped(out: Outcome) -> list[dict[str, Any]]:
    counts = np.bincount(out.dense, minlength=len(out.classes))
    skipped = []
    for c, rows in enumerate(counts):
        needs = sorted({e.detector for e in out.evidence if rows < e.min_rows})
        if needs:
            reason = f"too few rows for {', '.join(needs)}"
            skipped.append({"label": int(out.classes[c]), "rows": int(rows), "reason": reason})
    return skipped


def _detectors(out: Outcome) -> dict[str, Any]:
    chosen = out.plan.names
    table = {}
    for name in dict.fromkeys([*DETECTOR_NAMES, *chosen]):
        mine = [e for e in out.evidence if e.detector == name]
        behind = {i for f in out.verdict.findings for i in f.groups}
        hits = sum(out.groups[i].detector == name for i in behind)
        table[name] = {
            "seconds": round(sum(e.seconds for e in mine), 4),
            "ran": bool(mine),
            "reason": _reason(name, mine, chosen, out.reasons),
            "weight": round(hits / max(len(behind), 1), 4),
        }
    return table


def _reason(
    name: str, mine: list[Evidence], chosen: tuple[str, ...], reasons: dict[str, str]
) -> str:
    if name not in chosen:
        return "not asked for"
    if not mine:
        return reasons[name]
    return "looked at " + ", ".join(e.space for e in mine)


def _note(out: Outcome) -> str:
    if out.trusted is None:
        return _NOTE
    return f"p-values are conformal against {out.trusted.sum()} trusted rows"


def _document(out: Outcome) -> dict[str, Any]:
    import jaxpoison

    verdict, schema = out.verdict, out.source.schema
    return {
        "schema": "jaxpoison.report/1",
        "version": jaxpoison.__version__,
        "verdict": verdict.verdict,
        "calibrated": out.trusted is not None,
        "note": _note(out),
        "source": {
            "name": out.source.name,
            "fingerprint": out.inspection.fingerprint,
            "kind": schema.kind,
            "shape": [int(side) for side in schema.shape],
            "dtype": schema.dtype,
        },
        "n_samples": len(out.dense),
        "n_classes": len(out.classes),
        "n_flagged": int(verdict.flagged.sum()),
        "n_dropped": int(out.inspection.num_rows - len(out.dense)),
        "p_poisoned": round(verdict.p_poisoned, 6),
        "estimated_rate": round(verdict.estimated_rate, 8),
        "suspected_attacks": [_attack(out, f) for f in verdict.findings],
        "skipped_classes": _skipped(out),
        "detectors": _detectors(out),
        "threshold": {
            "method": "union of verified gates, mean local false discovery rate"
            + ("" if out.trusted is None else "; and conformal q-values"),
            "value": out.plan.method.fdr,
            "expected_fdr": round(verdict.expected_fdr, 6),
        },
        "timing": {name: round(value, 4) for name, value in out.timing.items()},
        "peak_mb": round(peak_megabytes(), 1),
        "seed": out.plan.method.seed,
        "plan": out.plan.as_dict(),
    }


def peak_megabytes() -> float:
    """Largest resident size of this process so far, in MB."""
    try:  # getrusage would count what the parent process held before it started this one
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _pictures(out: Outcome, kind: HostArray) -> Pictures:
    found = {f.target: f for f in out.verdict.findings}
    order = [f.target for f in out.verdict.findings]
    order += [c for c in range(len(out.classes)) if c not in found]
    of_class = ClassRows(out.dense, len(out.classes))
    shown = {
        c: _picture(out, c, of_class[c], c in found or i < _SUSPECTED) for i, c in enumerate(order)
    }
    return Pictures(
        suspected=tuple(shown[c] for c in order if c in found),
        others=tuple(shown[c] for c in order if c not in found),
        examples=_examples(out, kind, list(found)),
        class_names=tuple(_class_name(out, c) for c in range(len(out.classes))),
    )


def _picture(out: Outcome, target: int, rows: HostArray, is_full: bool) -> ClassPicture:
    flagged = out.verdict.flagged[rows]
    each = _best_evidence(out, target)
    points, some = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    if is_full and each is not None:
        some = np.arange(0, len(rows), -(-len(rows) // _POINTS))
        points = _projection(out, each, rows[some], target)
    return ClassPicture(
        label=int(out.classes[target]),
        name=_class_name(out, target),
        num_rows=len(rows),
        num_flagged=int(flagged.sum()),
        evidence=_rows_of_evidence(out, target),
        points=points,
        point_flagged=flagged[some],
        hist_name="-" if each is None else f"{each.detector} in {each.space}",
        hist_values=np.zeros(len(rows)) if each is None else _shown(each.scores.values[rows]),
        hist_flagged=flagged,
    )


def _shown(values: HostArray) -> HostArray:
    """Scores on a scale a histogram can show: odds of thousands are pressed together."""
    values = values.astype(np.float64)
    out: HostArray = np.sign(values) * np.log1p(np.abs(values))
    return out


def _best_evidence(out: Outcome, target: int) -> Evidence | None:
    """The evidence behind the finding, else what comes nearest to its threshold."""
    for found in out.verdict.findings:
        if found.target == target:
            groups = sorted((out.groups[i] for i in found.groups), key=lambda g: -_apart(g))
            for group in groups:
                for each in out.evidence:
                    if (each.detector, each.space) == (group.detector, group.space):
                        return each
    seen = [e for e in out.evidence if np.isfinite(e.gate.statistic[target])]
    return max(seen, key=lambda e: _nearness(e, target), default=None)


def _nearness(each: Evidence, target: int) -> float:
    """Statistic over threshold; 0 where there is no threshold, or none above 0."""
    threshold = float(each.gate.threshold[target])
    return float(each.gate.statistic[target]) / threshold if threshold > 0 else 0.0


def _apart(group: Group) -> float:
    return float(np.nan_to_num(group.separation))


def _projection(out: Outcome, each: Evidence, rows: HostArray, target: int) -> HostArray:
    """Two coordinates: along the flagged shift if there is one, and across it."""
    y = seen_in(out.spaces, each)
    z = y[rows].astype(np.float64)
    z = (z - z.mean(axis=0)) / np.maximum(z.std(axis=0), 1e-9)
    flagged = out.verdict.flagged[rows]
    if 3 <= flagged.sum() <= len(rows) - _FEWEST_OTHERS:
        spread = np.cov(z[~flagged].T) + 0.05 * np.eye(z.shape[1])
        along = np.linalg.solve(spread, z[flagged].mean(axis=0) - z[~flagged].mean(axis=0))
        along /= max(float(np.linalg.norm(along)), 1e-12)
        rest = z - np.outer(z @ along, along)
        across = np.linalg.svd(rest, full_matrices=False)[2][0]
        return np.stack([z @ along, rest @ across], axis=1).astype(np.float32)
    padded = np.pad(z, ((0, 0), (0, max(0, 2 - z.shape[1]))))
    return padded[:, :2].astype(np.float32)


def _examples(out: Outcome, kind: HostArray, targets: list[int]) -> tuple[Example, ...]:
    """The most suspicious rows, and some quiet neighbours of each suspected class."""
    order = np.argsort(-out.fused.suspicion, kind="stable")
    quiet = []
    for target in targets[:3]:
        mine = np.flatnonzero((out.dense == target) & ~out.verdict.flagged)
        middle = mine[np.argsort(out.fused.suspicion[mine], kind="stable")][: len(mine) // 2]
        quiet += middle[:: max(1, len(middle) // _NEIGHBOURS)][:_NEIGHBOURS].tolist()
    room = _EXAMPLES - len(quiet)
    chosen = list(dict.fromkeys([*_balanced(order, out, targets, room), *quiet]))
    x = out.spaces[0].stream.take(np.array(chosen))
    is_image = out.source.schema.kind == "images"
    return tuple(
        Example(
            index=int(out.kept[row]),
            label=int(out.labels[row]),
            suspicion=float(out.fused.suspicion[row]),
            p=float(out.fused.p[row]),
            q=float(out.fused.q[row]),
            flagged=bool(out.verdict.flagged[row]),
            kind=str(kind[row]),
            image=_visible(x[i], out) if is_image else None,
            values=None if is_image else x[i][:_VALUES].astype(np.float64),
        )
        for i, row in enumerate(chosen)
    )


def _balanced(order: HostArray, out: Outcome, targets: list[int], room: int) -> list[int]:
    """The top of the ranking, no suspected class crowding out another."""
    if len(targets) < 2:
        return [int(row) for row in order[:room]]
    share = max(room // len(targets), 1)
    of = out.dense[order]
    picked = [row for t in targets[:room] for row in order[of == t][:share]]
    rest = [row for row in order[:room] if row not in set(picked)]
    return [int(row) for row in [*picked, *rest][:room]]


def _visible(image: HostArray, out: Outcome) -> HostArray:
    """Images that use a small part of the range (such as 0..16) are stretched to be seen."""
    top = int(image.max(initial=0))
    shape = out.source.schema.shape
    return (
        image
        if top > 64 or len(shape) == 3
        else (image.astype(np.uint16) * 15).clip(0, 255).astype(np.uint8)
    )
