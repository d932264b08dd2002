"""From gated groups and their verification to findings and a verdict."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison._types import Exclusion, HostArray
from jaxpoison.calibrate.boundaries import within_fdr
from jaxpoison.calibrate.groups import (
    MAX_SHARE,
    Finding,
    Group,
    confidence,
    is_confirmed,
    is_lone,
)

_RANKED_ODDS = 2.0  # nats given to the rows of a confirmed group that has only a cut-off
_SOURCE_SHARE = 0.8  # of a group taken for one class, from which on that class is its source
_UNLIKE_SPREAD = 1.2  # of the suspicious mode, from which on its rows are of other classes
_COHERENT = 0.75  # spread of one part of a class, of that of the class
_SAME_SIDE = 0.5  # of the rows of a group, or of what names the side, that are in both
_DUPLICATES_SHARE = 0.5  # of a finding's rows that are copies of each other
_IN_COMMON = 0.88  # share of what sets clean-label rows apart, from which on it is a trigger,
_EXACT = 0.037  # or spread of their places along it, up to which it is one
_COPIED = 0.22  # of the usual distance to the nearest row, up to which rows are copies,
_NOT_COPIED = 0.5  # and beyond which they are none
_INDISTINCT = 0.72  # area under the curve up to which rows are what they are taken for,
_DISTINCT = 0.8  # and from which on they have a trigger,
_DISTINCT_PART = 0.98  # where they are of one class, a part of which may be as distinct


class Verdict(NamedTuple):
    """The decision.

    Attributes:
        verdict: "clean", "suspicious" or "poisoned".
        p_poisoned: Confidence that at least one finding is real.
        estimated_rate: Expected share of poisoned rows.
        findings: Most confident first.
        flagged: [n] bool.
        log_odds: [n] of the flagged and near-flagged rows, -inf elsewhere.
        expected_fdr: Mean local false discovery rate of the flagged rows.
    """

    verdict: str
    p_poisoned: float
    estimated_rate: float
    findings: tuple[Finding, ...]
    flagged: HostArray
    log_odds: HostArray
    expected_fdr: float


def find(
    groups: list[Group], checks: list[Exclusion], *, num_classes: int, fdr: float
) -> list[Finding]:
    """Findings of all classes: the union of what verified gates flag, most confident first.

    Args:
        groups: Rows set apart behind open gates.
        checks: Their verification, one each.
        num_classes: c.
        fdr: Share of false alarms allowed among the flagged rows (mean local rate).

    Returns:
        One finding a class at the most.
    """
    findings = []
    for target in sorted({g.target for g in groups}):
        mine = [i for i, g in enumerate(groups) if g.target == target]
        found = _finding(target, mine, groups, checks, num_classes, fdr)
        if found is not None:
            findings.append(found)
    return sorted(findings, key=lambda f: (-f.confidence, f.target))


def decide(findings: list[Finding], num_rows: int) -> Verdict:
    """The verdict over all findings.

    "poisoned" when one is confirmed, "suspicious" when one is only too far off to be passed over,
    else "clean".
    """
    log_odds = np.full(num_rows, -np.inf)
    flagged = np.zeros(num_rows, np.bool_)
    for found in findings:
        log_odds[found.near] = found.near_odds
        log_odds[found.rows] = found.log_odds
        flagged[found.rows] = True
    local = 1.0 / (1.0 + np.exp(np.clip(log_odds[flagged], -50, 50)))
    p_clean = float(np.prod([1.0 - f.confidence for f in findings])) if findings else 1.0
    rate = sum(f.confidence * len(f.rows) for f in findings) / max(num_rows, 1)
    names = {True: "poisoned", False: "suspicious"}
    return Verdict(
        verdict=names[any(f.confirmed for f in findings)] if findings else "clean",
        p_poisoned=1.0 - p_clean,
        estimated_rate=float(rate),
        findings=tuple(findings),
        flagged=flagged,
        log_odds=log_odds,
        expected_fdr=float(local.mean()) if flagged.any() else 0.0,
    )


def sharp_odds(verdict: Verdict) -> HostArray:
    """The odds [n] of rows in groups with a boundary of their own; wrong labels have none."""
    odds = verdict.log_odds.copy()
    for found in verdict.findings:
        if found.kind == "label_flip":
            odds[found.rows] = -np.inf
    return odds


def _finding(
    target: int,
    mine: list[int],
    groups: list[Group],
    checks: list[Exclusion],
    num_classes: int,
    fdr: float,
) -> Finding | None:
    """The confirmed groups of a class made one finding, or its lone cluster."""
    good = [i for i in mine if is_confirmed(groups[i], checks[i], num_classes)]
    confirmed = bool(good)
    # a mixture draws its own boundary; cut-off ranks only fill in where no mixture is confirmed
    with_odds = [i for i in good if groups[i].log_odds is not None or groups[i].hint]
    good = _one_side(with_odds or good, groups, checks)
    good = good or [i for i in mine if is_lone(groups[i])]
    if not good:
        return None
    best = max(good, key=lambda i: np.nan_to_num(groups[i].separation))
    rows = np.unique(np.concatenate([groups[i].rows for i in good]))
    log_odds, support = np.full(len(rows), -np.inf), np.zeros(len(rows))
    for i in good:
        odds, at = groups[i].log_odds, np.searchsorted(rows, groups[i].rows)
        log_odds[at] = np.maximum(log_odds[at], _RANKED_ODDS if odds is None else odds)
        support[at] += 1.0 / len(good)
    cut = [groups[i].rows for i in good if groups[i].log_odds is None]
    keep = within_fdr(log_odds, fdr)
    if cut:  # a cut-off has no odds to be thinned out by
        keep = np.union1d(keep, np.flatnonzero(np.isin(rows, np.concatenate(cut))))
    check = checks[best]
    single = check.source_share >= _SOURCE_SHARE and num_classes > 2
    return Finding(
        kind=_kind([groups[i] for i in good], rows) if confirmed else "clean_label",
        target=target,
        source=check.source if confirmed and (single or num_classes == 2) else None,
        rows=rows[keep],
        log_odds=log_odds[keep],
        support=support[keep],
        near=np.zeros(0, np.int64),
        near_odds=np.zeros(0),
        confidence=confidence(groups[best], check) if confirmed else 0.5,
        confirmed=confirmed,
        groups=tuple(good),
    )


def _one_side(good: list[int], groups: list[Group], checks: list[Exclusion]) -> list[int]:
    """The confirmed groups of a class without those on the other side of the same cut.

    Where half of a class has a trigger either half is odd to some detector. What names its side is
    a mode, and without one the group that is farthest from home. Copies are what they are on
    either side.
    """
    sided = [i for i in good if groups[i].hint != "duplicates"]
    sizes = [len(groups[i].rows) / groups[i].share for i in sided if groups[i].share > 0]
    rows = np.unique(np.concatenate([groups[i].rows for i in sided])) if sided else np.zeros(0)
    if not sizes or len(rows) <= MAX_SHARE * sizes[0]:
        return good

    def lead(i: int) -> tuple[bool, float]:
        away = checks[i].home / max(checks[i].transplant, 1e-6)
        return groups[i].detector == "whitening", float(np.nan_to_num(away))

    kept = groups[max(sided, key=lead)].rows

    def is_alike(rows: HostArray) -> bool:
        both = len(np.intersect1d(rows, kept, assume_unique=True))
        return both >= _SAME_SIDE * min(len(rows), len(kept))

    return [i for i in good if i not in sided or is_alike(groups[i].rows)]


def _kind(groups: list[Group], rows: HostArray) -> str:
    """What the confirmed groups of a class amount to."""
    copies = [g.rows for g in groups if g.hint == "duplicates"]
    if copies and np.isin(rows, np.concatenate(copies)).mean() >= _DUPLICATES_SHARE:
        return "duplicates"
    dirty = [g for g in groups if g.hint != "duplicates"]
    if all(g.detector == "whitening" and not g.spread_ratio >= _UNLIKE_SPREAD for g in dirty):
        return "clean_label"
    return "backdoor"


def kind_of_part(spread: float, otherwise: str) -> str:
    """The kind of rows taken for one class, by how various they are.

    Args:
        spread: 1 for rows as various as that class, NaN where that is not known.
        otherwise: The kind where they are no coherent part.
    """
    return "subpopulation" if spread <= _COHERENT else otherwise


def kind_of_shift(share: float, spread: float) -> str:
    """The kind of clean-label rows, by what sets them apart from their class.

    Args:
        share: Of it, in common to all of them.
        spread: Of how far each of them is moved along it, in its length.
    """
    return "clean_label" if share >= _IN_COMMON or spread <= _EXACT else "targeted"


def kind_of_dirty(
    kind: str, source: int | None, closeness: float, distinctness: float, *, is_whole: bool = True
) -> str:
    """The kind of rows of other classes, by whether they differ from each other and from these.

    Args:
        kind: So far, "backdoor", "label_flip", "subpopulation" or "duplicates".
        source: Their class, None for several.
        closeness: Of each other, 1 where it is as usual in these classes, NaN where unknown.
        distinctness: Area under the curve that tells them from these, NaN where unknown.
        is_whole: Whether closeness is of all of the rows: what is copied a few times only lies
            apart in a part of them.
    """
    if closeness <= _COPIED:
        return "duplicates"
    if kind == "duplicates":
        if not (is_whole and closeness > _NOT_COPIED):
            return kind
        kind = "backdoor"
    if distinctness <= _INDISTINCT:
        return "label_flip"
    limit = _DISTINCT if source is None else _DISTINCT_PART
    return "backdoor" if kind == "label_flip" and distinctness >= limit else kind
