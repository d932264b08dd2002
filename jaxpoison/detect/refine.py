"""The boundary of a verified group, drawn anew along the shift that its rows share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison import folds
from jaxpoison._types import HostArray
from jaxpoison.detect._coordinates import with_ridge
from jaxpoison.detect.exclusion import Fit, inputs_of, matched_residuals
from jaxpoison.stream import Stream

_STEPS = 3
_WIDTHS = (0.7, 4.0)  # of the shifted rows, in deviations of the others: a patch that hides what
# was there shifts bright and dark rows unalike
_MAX_ROWS = 4000  # of the group that the shift is estimated from


class Refined(NamedTuple):
    """A group along its common shift.

    Attributes:
        rows: All row numbers of the class.
        log_odds: [len(rows)] of carrying the shift.
        separation: Of shifted and unshifted rows, in the larger of their deviations.
        overlap: Share of the given rows that are still in the group.
    """

    rows: HostArray
    log_odds: HostArray
    separation: float
    overlap: float


def refine(stream: Stream, fit: Fit, rows: HostArray) -> Refined | None:
    """Estimates the shift of a group against matched rows of other classes, and scores by it.

    Rows that carry a trigger are rows of other classes plus a shift. Matching each to its nearest
    row of another class (less the current shift) leaves residuals whose mean is the shift d, free
    of what the rows show. ``w = (T + ridge)^-1 d`` with T the total covariance of the data is the
    best linear score for it; rows of the group are scored with their own residual left out of d.
    The unshifted rows of the class give one normal (from their lower half), the group the other.

    Args:
        stream: The one that ``fit`` saw.
        fit: Sampled rows to match with.
        rows: Rows of one class, verified.

    Returns:
        The refined group, or None where the class covariances are too large to hold.

    **Cost**: one factorisation of d x d; a pass over the rows for each of three steps.

    **Assumes / fails on**: the trigger is nearly the same shift in every row. For warps the
    separation stays small, and the caller keeps the group as it was.
    """
    from scipy.linalg import cho_factor, cho_solve

    target = int(stream.labels[rows[0]])
    d = fit.x.shape[1]
    if not folds.holds_grams(stream.num_classes, d):
        return None
    moments = folds.class_moments(stream)
    if moments.within is None:
        return None
    share = moments.counts / moments.counts.sum()
    centred = moments.mean - share @ moments.mean
    total = moments.within + np.einsum("c,ci,cj->ij", share, centred, centred)
    factor = cho_factor(with_ridge(total, total), lower=True)
    others = fit.x[fit.x_labels != target]
    mine = np.flatnonzero(stream.labels == target)
    group, odds, separation = np.sort(rows), np.zeros(len(mine)), 0.0
    for _ in range(_STEPS):
        some = group[:: -(-len(group) // _MAX_ROWS)]
        x = inputs_of(stream, some)
        residuals = matched_residuals(x, others).astype(np.float64)
        shift = residuals.mean(axis=0)
        weights = cho_solve(factor, shift)
        scores = _along(stream, weights)[mine]
        inside = np.isin(mine, some, assume_unique=True)
        own = np.einsum("rd,rd->r", x, cho_solve(factor, residuals.T).T)
        n = max(len(some), 2)
        scores[inside] = (n * scores[inside] - own) / (n - 1)  # own residual left out
        was = np.isin(mine, group, assume_unique=True)
        odds, separation = _odds(scores, was)
        odds += _opinion_odds(fit.agrees[mine], was)
        if (odds > 0).sum() < 2:
            return None
        group = mine[odds > 0]
    overlap = len(np.intersect1d(group, rows)) / len(rows)
    return Refined(mine, odds, separation, overlap)


def _along(stream: Stream, weights: HostArray) -> HostArray:
    """``w^T x`` for every row, by one pass."""
    c = stream.num_classes
    basis = np.repeat(weights[None, None], c, axis=0)
    out: HostArray = folds.project(stream, basis, np.zeros((c, len(weights))))[:, 0]
    return out.astype(np.float64)


def _opinion_odds(agrees: HostArray, in_group: HostArray) -> HostArray:
    """Log likelihood ratio of whether the out-of-fold classifier gives a row its own label.

    It saw neither the row nor, being smooth, the shift: independent of the score given the side.
    """
    inside = (agrees[in_group].sum() + 1.0) / (in_group.sum() + 2.0)
    outside = (agrees[~in_group].sum() + 1.0) / ((~in_group).sum() + 2.0)
    out: HostArray = np.where(
        agrees, np.log(inside / outside), np.log((1.0 - inside) / (1.0 - outside))
    )
    return out


def _odds(scores: HostArray, in_group: HostArray) -> tuple[HostArray, float]:
    """Log odds of two normals, the lower one from the lower half of the other rows."""
    rest, shifted = scores[~in_group], scores[in_group]
    low, centre = np.quantile(rest, [0.158655, 0.5])
    below = max(centre - low, 1e-12)
    above = float(np.median(shifted))
    width = 1.4826 * float(np.median(np.abs(shifted - above)))
    width = float(np.clip(width, *(np.array(_WIDTHS) * below)))
    share = np.clip(in_group.mean(), 1e-6, 1 - 1e-6)
    z0, z1 = (scores - centre) / below, (scores - above) / width
    odds = 0.5 * (z0**2 - z1**2) + np.log(below / width) + np.log(share / (1 - share))
    # beyond either centre the nearer population is certain: normals of unequal width cross twice
    odds = np.where(scores >= above, np.maximum(odds, 0.5 * z0**2 - 1.0), odds)
    odds = np.where(scores <= centre, -np.abs(odds) - 1.0, odds)
    return odds, (above - centre) / max(below, width)
