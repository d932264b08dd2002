"""What a ranking and a set of flags are worth against the truth, and how sure a mean is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray

CONFIDENCE = 0.95


class Cell(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: Of the values.
        low: Lower end of the interval, or None for a single value.
        high: Upper end.
        n: Number of values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def auroc(scores: HostArray, truth: HostArray) -> float:
    """Area under the receiver operating characteristic, ties counted half.

    ``P(score of a poisoned row > score of a clean one) + P(equal) / 2``, by mid-ranks.

    Args:
        scores: [n] float, higher is more suspicious.
        truth: [n] bool, the poisoned rows; some and not all.

    Returns:
        0..1; 0.5 is what chance gives.

    Raises:
        UsageError: Shapes that differ, scores that are not finite, or a truth of one kind only.

    **Cost**: one sort of n values.

    **Assumes / fails on**: ranks rows of all classes together.

    Reference: Hanley and McNeil, 1982; Mann and Whitney, 1947.
    """
    scores, truth = _checked(scores, truth)
    _, at, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[at]
    positives = int(truth.sum())
    negatives = len(truth) - positives
    above = ranks[truth].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def average_precision(scores: HostArray, truth: HostArray) -> float:
    """Mean precision over the thresholds, weighted by the recall each adds; no interpolation.

    ``sum_k (R_k - R_{k-1}) P_k``; rows that tie are let in together.

    Args:
        scores: [n] float, higher is more suspicious.
        truth: [n] bool, the poisoned rows; some and not all.

    Returns:
        0..1; about the share of poisoned rows is what chance gives.

    Raises:
        UsageError: As ``auroc``.

    **Cost**: one sort of n values.

    **Assumes / fails on**: depends on the share of poisoned rows: compare at equal rates only.

    Reference: Davis and Goadrich, 2006.
    """
    hits, alarms = _counts(scores, truth)
    recall = hits / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * hits / (hits + alarms)))


def true_positive_rate(scores: HostArray, truth: HostArray, false_positives: float = 0.01) -> float:
    """Share of the poisoned rows above the threshold that lets so many clean rows through.

    Poisoned rows that tie with the threshold are not counted: no threshold would separate them.

    Args:
        scores: [n] float, higher is more suspicious.
        truth: [n] bool, the poisoned rows; some and not all.
        false_positives: Share of the clean rows that may be let through, 0 included, 1 excluded.

    Returns:
        0..1.

    Raises:
        UsageError: As ``auroc``, or a share outside 0..1.

    **Cost**: one sort of n values.

    **Assumes / fails on**: below one clean row's share it is the rate at no false alarm at all.

    Reference: the partial view of the curve of Hanley and McNeil, 1982.
    """
    if not 0 <= false_positives < 1:
        raise UsageError(f"false_positives: {false_positives}; give a share from 0 to below 1")
    scores, truth = _checked(scores, truth)
    clean = np.sort(scores[~truth])[::-1]
    allowed = int(np.floor(false_positives * len(clean)))
    return float((scores[truth] > clean[allowed]).mean())


def interval(values: list[float], *, low: float = -np.inf, high: float = np.inf) -> Cell | None:
    """Mean of some values and its 95 % t-interval, cut to the range the quantity can have.

    ``mean +- t(n - 1, 0.975) s / sqrt(n)``

    Args:
        values: One a seed.
        low: Least value the quantity can have.
        high: Largest.

    Returns:
        The mean with its interval, or None where there is no value.

    **Cost**: none to speak of.

    **Assumes / fails on**: nearly normal means; with few seeds, and near the ends of a bounded
    quantity, the interval is rough. Equal values give an interval of no width, which says that
    these seeds agree and not that the next one must.

    Reference: Student, 1908.
    """
    if not values:
        return None
    x = np.asarray(values, np.float64)
    mean = float(x.mean())
    if len(x) == 1:
        return Cell(mean, None, None, 1)
    from scipy.stats import t

    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Cell(mean, max(low, mean - half), min(high, mean + half), len(x))


def _counts(scores: HostArray, truth: HostArray) -> tuple[HostArray, HostArray]:
    """Poisoned and clean rows at or above each distinct score, highest first."""
    scores, truth = _checked(scores, truth)
    order = np.argsort(-scores, kind="stable")
    ranked, is_hit = scores[order], truth[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits = np.cumsum(is_hit)[last].astype(np.float64)
    return hits, last + 1 - hits


def _checked(scores: HostArray, truth: HostArray) -> tuple[HostArray, HostArray]:
    scores, truth = np.asarray(scores, np.float64), np.asarray(truth)
    if scores.ndim != 1 or truth.shape != scores.shape or truth.dtype != np.bool_:
        raise UsageError(
            f"scores has shape {scores.shape}, truth {truth.shape} of type {truth.dtype}; "
            "give one number and one bool for each row"
        )
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise UsageError(f"scores: row {row} is {scores[row]}; leave such rows out")
    if not 0 < truth.sum() < len(truth):
        raise UsageError(
            f"truth: {int(truth.sum())} of {len(truth)} rows are poisoned; give some of each kind"
        )
    return scores, truth
