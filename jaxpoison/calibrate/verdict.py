"""From gated groups and their verification to findings and a verdict."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison._types import Exclusion, HostArray, Refined

# A group counts as dirty-label poison when its rows belong elsewhere:
MIN_ROWS = 5  # fewer rows prove nothing
MAX_AGREEMENT = 0.5  # own label without their own help, of what the rest of the class reaches
_MAX_LOG10_P = -3.0  # so low an agreement must not be chance
_MIN_DISPLACEMENT = 1.3  # farther from home than from the classes they came from,
_DISPLACEMENT_NOISE = 0.6  # over sqrt(rows): the medians of few rows scatter
_MAX_TRANSPLANT = 1.4  # and ordinary there, up to one common shift
# A cluster this far off is reported even when nothing confirms it (clean-label poison keeps its
# labels): only in many dimensions, where honest data has no such gaps.
_LONE_SEPARATION = 45.0
_LONE_Z = 6.0
_LONE_ROWS = 20
_LONE_FEATURES = 32
_SHIFT_SEPARATION = 5.0  # of disputed rows along a shift; honest ones reach about 4
_NULL_ROWS = 20  # disputed rows elsewhere, to say what displacement is usual
_NULL_SHARE = 0.02  # of them that may lie beyond the limit
_EXCESS = 3.0  # times the expected number, from which on rows beyond it join a finding
_SURE_SUPPORT = 0.5  # of the groups: rows that so many of them hold stay flagged in any case
_RANKED_ODDS = 2.0  # nats given to the rows of a confirmed group that has only a cut-off
_REDRAW_SEPARATION = 3.0  # from which on a redrawn boundary is trusted,
_REDRAW_OVERLAP = 0.6  # if it still holds this share of the rows
_SOURCE_SHARE = 0.8  # of a group taken for one class, from which on that class is its source


class Group(NamedTuple):
    """Rows of one class that a detector's open gate sets apart.

    Attributes:
        detector: Name.
        space: Where it looked.
        target: Dense class.
        rows: Row numbers.
        log_odds: [len(rows)] of belonging to the group, where the detector gives odds; else None.
        separation: Of the two populations, NaN where the detector has none.
        z: Of the class statistic across classes.
        num_features: d of the space.
    """

    detector: str
    space: str
    target: int
    rows: HostArray
    log_odds: HostArray | None
    separation: float
    z: float
    num_features: int


class Finding(NamedTuple):
    """One suspected attack.

    Attributes:
        kind: "backdoor" or "clean_label".
        target: Dense class that holds the rows.
        source: Dense class they come from, or None for several.
        rows: Row numbers, flagged.
        log_odds: [len(rows)].
        support: [len(rows)] share of the groups behind the finding that hold the row.
        near: Other rows of the class that have odds, below even.
        near_odds: [len(near)].
        confidence: 0..1.
        confirmed: Whether verification agrees.
        groups: Indices of the groups behind it.
    """

    kind: str
    target: int
    source: int | None
    rows: HostArray
    log_odds: HostArray
    support: HostArray
    near: HostArray
    near_odds: HostArray
    confidence: float
    confirmed: bool
    groups: tuple[int, ...]


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


def displacement_limit(num_rows: int) -> float:
    """Displacement that a group of so many rows must reach to be confirmed."""
    return float(_MIN_DISPLACEMENT + _DISPLACEMENT_NOISE / np.sqrt(max(num_rows, 1)))


def is_confirmed(group: Group, check: Exclusion) -> bool:
    """Whether rows of other classes explain a group better than its own class does.

    Honest odd corners of a class fail: a classifier that never saw them may well take them for
    another class, but they lie no nearer to it than to their own.
    """
    return (
        len(group.rows) >= MIN_ROWS
        and check.log10_p <= _MAX_LOG10_P
        and check.agreement <= MAX_AGREEMENT * check.expected
        and check.home >= displacement_limit(len(group.rows)) * check.transplant
        and check.transplant <= _MAX_TRANSPLANT
    )


def is_lone(group: Group) -> bool:
    """Whether a group is so far off that it is reported unconfirmed."""
    return bool(
        np.nan_to_num(group.separation) >= _LONE_SEPARATION
        and group.z >= _LONE_Z
        and len(group.rows) >= _LONE_ROWS
        and group.num_features >= _LONE_FEATURES
    )


def confidence(group: Group, check: Exclusion) -> float:
    """0..1, from how far beyond its thresholds a confirmed group lies."""
    displacement = check.home / max(check.transplant, 1e-6)
    score = (
        0.5 * min(_MAX_LOG10_P - check.log10_p, 8.0)
        + 4.0 * (MAX_AGREEMENT - check.agreement / max(check.expected, 1e-6))
        + 6.0 * (min(displacement, 2.0) - displacement_limit(len(group.rows)))
        + 0.5 * np.log(max(float(np.nan_to_num(group.separation)), 4.0) / 8.0)
    )
    return float(1.0 / (1.0 + np.exp(-score)))


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


def shifted_groups(labels: HostArray, found: list[Refined | None]) -> list[Group]:
    """Groups along a shift that disputed rows share, where it sets them clearly apart.

    Args:
        labels: [n] dense.
        found: What ``refine`` made of the disputed rows of each class.

    Returns:
        A group for each clear one.
    """
    out = []
    for each in found:
        if each is None or each.separation < _SHIFT_SEPARATION:
            continue
        inside = each.log_odds > 0
        if not MIN_ROWS <= inside.sum() < len(inside):
            continue
        out.append(
            Group(
                detector="exclusion",
                space="disputed labels",
                target=int(labels[each.rows[0]]),
                rows=each.rows[inside],
                log_odds=each.log_odds[inside],
                separation=each.separation,
                z=0.0,
                num_features=0,
            )
        )
    return out


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


def _finding(
    target: int,
    mine: list[int],
    groups: list[Group],
    checks: list[Exclusion],
    num_classes: int,
    fdr: float,
) -> Finding | None:
    """The confirmed groups of a class made one finding, or its lone cluster."""
    good = [i for i in mine if is_confirmed(groups[i], checks[i])]
    confirmed = bool(good)
    # a mixture draws its own boundary; cut-off ranks only fill in where no mixture is confirmed
    good = [i for i in good if groups[i].log_odds is not None] or good
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
    keep = _within_fdr(log_odds, fdr)
    check = checks[best]
    single = check.source_share >= _SOURCE_SHARE and num_classes > 2
    return Finding(
        kind="backdoor" if confirmed else "clean_label",
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


def _within_fdr(log_odds: HostArray, fdr: float) -> HostArray:
    """Positions of the longest prefix, surest first, whose mean local false discovery rate fits."""
    order = np.argsort(-log_odds, kind="stable")
    local = 1.0 / (1.0 + np.exp(np.clip(log_odds[order], -50, 50)))
    mean = np.cumsum(local) / np.arange(1, len(order) + 1)
    count = int(np.searchsorted(mean, fdr, side="right"))
    keep: HostArray = np.sort(order[: max(count, 1)])
    return keep
