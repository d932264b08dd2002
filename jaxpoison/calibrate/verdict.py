"""From gated groups and their verification to findings and a verdict."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison._types import Exclusion, HostArray, Refined
from jaxpoison.calibrate.groups import Finding, Group, confidence, is_confirmed, is_lone

_NULL_ROWS = 20  # disputed rows elsewhere, to say what displacement is usual
_NULL_SHARE = 0.02  # of them that may lie beyond the limit
_EXCESS = 3.0  # times the expected number, from which on rows beyond it join a finding
_SURE_SUPPORT = 0.5  # of the groups: rows that so many of them hold stay flagged in any case
_RANKED_ODDS = 2.0  # nats given to the rows of a confirmed group that has only a cut-off
_REDRAW_SEPARATION = 3.0  # from which on a redrawn boundary is trusted,
_REDRAW_OVERLAP = 0.6  # if it still holds this share of the rows
_GROW_SEPARATION = 2.5  # of a finding's rows from the rest of their class, by all detectors
_LEAST_ODDS = -20.0  # of a row beside a finding: below it, all are alike
_SOURCE_SHARE = 0.8  # of a group taken for one class, from which on that class is its source
_UNLIKE_SPREAD = 1.2  # of the suspicious mode, from which on its rows are of other classes
_COHERENT = 0.75  # spread of one part of a class, of that of the class
_DUPLICATES_SHARE = 0.5  # of a finding's rows that are copies of each other


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


def redraw(found: Finding, new: Refined, fdr: float) -> Finding:
    """A finding with its boundary drawn anew, where the new one is clear and of the same rows.

    Args:
        found: Confirmed.
        new: Its class along the shift its rows share.
        fdr: As in ``find``.

    Returns:
        The finding, changed or as it was.
    """
    rows, separation, overlap = new.rows, new.separation, new.overlap
    sure = found.rows[found.support >= _SURE_SUPPORT]
    at = np.searchsorted(rows, sure)
    log_odds = new.log_odds.copy()
    log_odds[at] = np.maximum(log_odds[at], found.log_odds[found.support >= _SURE_SUPPORT])
    inside = np.flatnonzero(log_odds > 0)
    if separation < _REDRAW_SEPARATION or overlap < _REDRAW_OVERLAP or not len(inside):
        return found
    keep = inside[_within_fdr(log_odds[inside], fdr)]
    near = np.delete(np.arange(len(rows)), keep)
    return found._replace(
        rows=rows[keep],
        log_odds=log_odds[keep],
        support=np.isin(rows[keep], sure).astype(np.float64),
        near=rows[near],
        near_odds=np.minimum(log_odds[near], 0.0),
    )


def extend(found: Finding, rows: HostArray, ratios: HostArray, null: HostArray) -> Finding:
    """A confirmed finding with the disputed rows of its class that are displaced by themselves.

    Where a trigger hardly shows (a white patch on white), what is left of a poisoned row is an
    ordinary row of another class. Its displacement is held against that of disputed rows in the
    classes without a finding, honest label errors as far as is known; the excess over what they
    would give is the odds.

    Args:
        found: Confirmed.
        rows: Disputed rows of its class.
        ratios: [len(rows)] displacement of each.
        null: [k] displacement of disputed rows elsewhere.

    Returns:
        The finding with more rows, or as it was where there is no null or no excess.
    """
    if len(null) < _NULL_ROWS or not len(rows):
        return found
    limit = max(float(np.quantile(null, 1.0 - _NULL_SHARE)), 1.0)
    above = (ratios > limit) & ~np.isin(rows, found.rows, assume_unique=True)
    expected = max(_NULL_SHARE * len(rows), 0.5)
    excess = above.sum() - expected
    if excess < _EXCESS * expected:
        return found
    new = rows[above]
    all_rows = np.concatenate([found.rows, new])
    odds = np.full(len(new), float(np.log(excess / expected)))
    order = np.argsort(all_rows)
    kept = ~np.isin(found.near, new, assume_unique=True)
    return found._replace(
        rows=all_rows[order],
        log_odds=np.concatenate([found.log_odds, odds])[order],
        support=np.concatenate([found.support, np.zeros(len(new))])[order],
        near=found.near[kept],
        near_odds=found.near_odds[kept],
    )


def grow(
    found: Finding, rows: HostArray, log_odds: HostArray, separation: float, fdr: float
) -> Finding:
    """A confirmed finding with the rows of its class that are like its own.

    Args:
        found: Confirmed.
        rows: [m] ascending rows of its class, its own among them.
        log_odds: [m] of being like its own, from ``detect.likeness``.
        separation: Of its own rows from the others along what tells them apart.
        fdr: As in ``find``.

    Returns:
        The finding with the likely rows flagged and the odds of the others known, or as it was
        where the two are not told apart. Odds a row had before count half.
    """
    if separation < _GROW_SEPARATION:
        return found
    own = np.searchsorted(rows, found.rows)
    odds = log_odds.copy()
    odds[own] = np.maximum(odds[own], found.log_odds)
    likely = np.zeros(len(rows), np.bool_)
    likely[_within_fdr(odds, fdr)] = True
    likely &= odds > 0
    likely[own] = True
    support = np.zeros(len(rows))
    support[own] = found.support
    before = np.isin(found.near, rows)
    at = np.searchsorted(rows, found.near[before])
    beside = np.minimum(log_odds, 0.0)
    beside[at] = 0.5 * (beside[at] + np.maximum(found.near_odds[before], _LEAST_ODDS))
    return found._replace(
        rows=rows[likely],
        log_odds=odds[likely],
        support=support[likely],
        near=np.concatenate([rows[~likely], found.near[~before]]),
        near_odds=np.concatenate([beside[~likely], found.near_odds[~before]]),
    )


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
    good = with_odds or good
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
    keep = _within_fdr(log_odds, fdr)
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


def surround(found: Finding, rows: HostArray, log_odds: HostArray) -> Finding:
    """A finding with odds for further rows of its class, which stay unflagged.

    Args:
        found: Confirmed.
        rows: [m] rows of its class.
        log_odds: [m] of belonging to it.
    """
    known = np.concatenate([found.rows, found.near])
    new = ~np.isin(rows, known)
    return found._replace(
        near=np.concatenate([found.near, rows[new]]),
        near_odds=np.concatenate([found.near_odds, np.minimum(log_odds[new], 0.0)]),
    )


def _within_fdr(log_odds: HostArray, fdr: float) -> HostArray:
    """Positions of the longest prefix, surest first, whose mean local false discovery rate fits."""
    order = np.argsort(-log_odds, kind="stable")
    local = 1.0 / (1.0 + np.exp(np.clip(log_odds[order], -50, 50)))
    mean = np.cumsum(local) / np.arange(1, len(order) + 1)
    count = int(np.searchsorted(mean, fdr, side="right"))
    keep: HostArray = np.sort(order[: max(count, 1)])
    return keep
