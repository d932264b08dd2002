"""Regression: how many cells it takes to push the median of the members out of an interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison.certify.rules._cells import cell_sums, histogram, least_cells
from jaxpoison.certify.rules._counting import blocks
from jaxpoison.certify.threats import General, Threat
from jaxpoison.certify.votes import check_design, check_subsets, on_host

if TYPE_CHECKING:
    from jaxpoison.certify._types import Design, Floats, Ints

_ENTRIES = 1 << 20  # members times test rows of a block


@dataclass(frozen=True, eq=False)
class IntervalCertificates:
    """Regression values, and how many cells may be touched before they leave an interval.

    Attributes:
        prediction: [v] lower median of the members.
        low: [v] ends of the interval, both belong to it.
        high: [v].
        radius: [v] cells; -1 where the prediction is outside already.
        threat: What the attacker may do.
        costs: Cells touched by one change of each kind.
        design: Of the partition.
    """

    prediction: Floats
    low: Floats
    high: Floats
    radius: Ints
    threat: Threat
    costs: dict[str, int]
    design: Design


def certify_median(
    values: Any,
    *,
    subsets: Any,
    design: Design,
    within: float | None = None,
    low: Any = None,
    high: Any = None,
    threat: Threat | None = None,
) -> IntervalCertificates:
    """Radius within which the median of the members stays in an interval.

    The prediction is the lower median, place ``h = (m - 1) // 2`` of the sorted values. It stays
    at or below ``high`` while more than h values are, and at or above ``low`` while more than
    ``m - 1 - h`` are; r cells move at most the values they hold.

    Args:
        values: [m, v] predictions of the members.
        subsets: [m] id of the subset of each member.
        design: How rows spread over subsets.
        within: Half width of the interval around the prediction; or
        low: [v] or one number: the ends of the interval, such as the truth plus or minus a
            tolerance.
        high: As low.
        threat: ``General`` (default), ``LabelFlip`` or ``Keys``.

    Returns:
        Predictions, intervals and radii.

    Raises:
        UsageError: Neither or both kinds of interval, ids or threat that do not fit.
        DataError: A value is not a number.

    **Cost**: O(m v), and O(m v d) with spread.

    **Assumes / fails on**: exact for disjoint partitions; with spread sound, as a shared subset
        is counted for each cell.

    Reference: Hammoudeh & Lowd, Reducing certified regression to certified classification
        (2023), arXiv:2208.13904.
    """
    claim = General() if threat is None else threat
    check_design(design)
    costs, members = claim.costs(design), check_subsets(subsets, design)
    array = on_host(values)
    if array.ndim != 2 or len(array) != members or not array.shape[1]:
        raise UsageError(f"values have shape {array.shape}, but [{members}, rows] is meant")
    if array.dtype.kind not in "fiu" or np.isnan(array).any():
        raise DataError(f"values have type {array.dtype} or hold one that is not a number")
    array = array[np.argsort(on_host(subsets))]
    middle = (members - 1) // 2
    prediction: Floats = np.partition(array, middle, axis=0)[middle]
    ends = _interval(prediction, within, low, high)
    radius = np.empty(len(prediction), np.int64)
    for block in blocks(len(prediction), members, _ENTRIES):
        part = array[:, block]
        below = _until(part <= ends[1][block], middle, design)
        above = _until(part >= ends[0][block], members - 1 - middle, design)
        radius[block] = np.maximum(np.minimum(below, above) - 1, -1)
    return IntervalCertificates(prediction, *ends, radius, claim, costs, design)


def _interval(prediction: Floats, within: Any, low: Any, high: Any) -> tuple[Floats, Floats]:
    if (within is None) == (low is None) or (low is None) != (high is None):
        raise UsageError("give either within, or low and high")
    if within is not None:
        if not within >= 0:
            raise UsageError(f"within is {within}; half a width is 0 or more")
        return prediction - within, prediction + within
    ends = [np.broadcast_to(on_host(e), prediction.shape) for e in (low, high)]
    if not (ends[0] <= ends[1]).all():
        raise UsageError("low is above high, or not a number, on some row; swap them")
    return ends[0], ends[1]


def _until(hits: Any, keep: int, design: Design) -> Ints:
    """[rows] fewest cells that leave at most ``keep`` hits."""
    target: Ints = hits.sum(axis=0, dtype=np.int64) - keep
    if design.spread == 1:
        return np.maximum(target, 0)
    counts = histogram(cell_sums(hits, design), design.spread + 1)
    return least_cells(counts, target)
