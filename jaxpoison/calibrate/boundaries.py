"""Where the boundary of a finding runs: redrawn, extended, grown, carried to other classes."""

from __future__ import annotations

import numpy as np

from jaxpoison._types import HostArray, Refined
from jaxpoison.calibrate.groups import MAX_SHARE, MIN_ROWS, Finding
from jaxpoison.layout import ClassRows

_NULL_ROWS = 20  # disputed rows elsewhere, to say what displacement is usual
_NULL_SHARE = 0.02  # of them that may lie beyond the limit
_EXCESS = 3.0  # times the expected number, from which on rows beyond it join a finding
_REDRAW_SEPARATION = 3.0  # from which on a redrawn boundary is trusted,
_REDRAW_OVERLAP = 0.6  # if it still holds this share of the rows
_GROW_SEPARATION = 2.5  # of a finding's rows from the rest of their class, by all detectors
_CARRY_SEPARATION = 2.5  # of rows of several classes from the rest of all classes
_DIRTY = ("backdoor", "subpopulation", "label_flip")
_LEAST_BACKED = 2  # classes whose findings have groups behind them
_LEAST_PAIRED = 3  # classes whose findings come from one class each
_CLEARLY_UNLIKE = -3.0  # odds below which a row that few groups hold leaves its finding
_SURE_SUPPORT = 0.5  # of the groups: rows that so many of them hold stay flagged in any case
_LEAST_ODDS = -20.0  # of a row beside a finding: below it, all are alike


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
    keep = inside[within_fdr(log_odds[inside], fdr)]
    near = np.delete(np.arange(len(rows)), keep)
    return found._replace(
        rows=rows[keep],
        log_odds=log_odds[keep],
        support=np.isin(rows[keep], sure).astype(np.float64),
        near=rows[near],
        near_odds=np.minimum(log_odds[near], 0.0),
    )


def extend(
    found: Finding, rows: HostArray, ratios: HostArray, null: HostArray, class_size: int
) -> Finding:
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
        class_size: Rows of its class, of which it may not become nearly all: where half of a class
            has a trigger, classifiers dispute the honest half.

    Returns:
        The finding with more rows, or as it was where there is no null or no excess.
    """
    if len(null) < _NULL_ROWS or not len(rows):
        return found
    limit = max(float(np.quantile(null, 1.0 - _NULL_SHARE)), 1.0)
    above = (ratios > limit) & ~np.isin(rows, found.rows, assume_unique=True)
    expected = max(_NULL_SHARE * len(rows), 0.5)
    excess = above.sum() - expected
    if excess < _EXCESS * expected or len(found.rows) + above.sum() > MAX_SHARE * class_size:
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
    likely = _likely(odds, fdr)
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


def carry(
    findings: list[Finding], labels: HostArray, log_odds: HostArray, separation: float, fdr: float
) -> list[Finding] | None:
    """Findings of every class, by what rows of several classes have in common.

    Args:
        findings: Of all kinds.
        labels: [n] dense.
        log_odds: [n] of being like the rows that ``carried_by`` names, from
            ``detect.shared_likeness``.
        separation: Of these rows from all others along what tells them apart.
        fdr: As in ``find``.

    Returns:
        Backdoors with the likely rows of their class, and without those that are clearly unlike
        and held by few groups; new ones in classes that had none. Findings of wrong labels and of
        clean-label poison gain the likely rows, duplicates stay as they are. None where the rows
        are not told apart, or nothing may be carried.
    """
    shared = carried_by(findings)
    if separation < _CARRY_SEPARATION or not shared:
        return None
    of = {each.target: each for each in findings}
    confidence = min(each.confidence for each in shared)
    of_class = ClassRows(labels, int(labels.max()) + 1)
    out = []
    for target in np.flatnonzero(np.bincount(labels)):
        rows, found = of_class[target], of.get(int(target))
        if found is None or found.kind != "duplicates":
            found = _carried(found, int(target), rows, log_odds[rows], confidence, fdr)
        if found is not None:
            out.append(found)
    return sorted(out, key=lambda f: (-f.confidence, f.target))


def carried_by(findings: list[Finding]) -> list[Finding]:
    """Findings that may be parts of one trigger, which goes from class to class.

    Labels alone may tell of a part, but not that there is a trigger: that takes two classes whose
    findings have groups behind them, or three labels that rows of one other class each carry.
    """
    dirty = [f for f in findings if f.confirmed and f.kind in _DIRTY]
    parts = [f for f in dirty if f.groups or f.source is not None]
    are_backed = sum(bool(f.groups) for f in parts) >= _LEAST_BACKED
    are_paired = sum(f.source is not None for f in parts) >= _LEAST_PAIRED
    return parts if are_backed or are_paired else []


def _carried(
    found: Finding | None,
    target: int,
    rows: HostArray,
    odds: HostArray,
    confidence: float,
    fdr: float,
) -> Finding | None:
    """A finding of a class with its rows [m] that are likely, or one that is new."""
    likely, support = _likely(odds, fdr), np.zeros(len(rows))
    if likely.sum() < MIN_ROWS:
        return found
    if found is None:
        nothing = np.zeros(0, np.int64)
        found = Finding(
            "backdoor", target, None, nothing, support[:0], support[:0], nothing, support[:0],
            confidence, True, (),
        )  # fmt: skip
    own = np.searchsorted(rows, found.rows)
    kind, stays = found.kind, np.ones(len(own), np.bool_)
    if kind in ("backdoor", "subpopulation") and found.groups:
        stays = (found.support >= _SURE_SUPPORT) | (odds[own] > _CLEARLY_UNLIKE)
    elif not len(own) or likely[own].mean() >= _SURE_SUPPORT:
        kind = "backdoor"
    support[own] = found.support
    odds[own] = np.where(stays, np.maximum(odds[own], found.log_odds), odds[own])
    likely[own] = stays
    return found._replace(
        kind=kind,
        rows=rows[likely],
        log_odds=odds[likely],
        support=support[likely],
        near=rows[~likely],
        near_odds=np.clip(odds[~likely], _LEAST_ODDS, 0.0),
        confirmed=found.confirmed or kind == "backdoor",
    )


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


def _likely(odds: HostArray, fdr: float) -> HostArray:
    """[m] bool, rows that are more likely than not, of which few are honest."""
    out: HostArray = np.zeros(len(odds), np.bool_)
    out[within_fdr(odds, fdr)] = True
    out &= odds > 0
    return out


def within_fdr(log_odds: HostArray, fdr: float) -> HostArray:
    """Positions of the longest prefix, surest first, whose mean local false discovery rate fits."""
    order = np.argsort(-log_odds, kind="stable")
    local = 1.0 / (1.0 + np.exp(np.clip(log_odds[order], -50, 50)))
    mean = np.cumsum(local) / np.arange(1, len(order) + 1)
    count = int(np.searchsorted(mean, fdr, side="right"))
    keep: HostArray = np.sort(order[: max(count, 1)])
    return keep
