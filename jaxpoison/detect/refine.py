"""The boundary of a verified group, drawn anew along the shift that its rows share."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxpoison import folds
from jaxpoison._types import HostArray, Refined
from jaxpoison.calibrate.null import SIGMA_SHARE
from jaxpoison.detect._coordinates import with_ridge
from jaxpoison.detect._detector import class_rows, even_subset
from jaxpoison.detect._inputs import inputs_of
from jaxpoison.detect.exclusion import Fit, matched_residuals
from jaxpoison.linalg import one_thread
from jaxpoison.stream import Stream

_STEPS = 4
_NARROW, _WIDE = 1.3, 4.0  # most spread of the shifted rows, in deviations of the others: first
# the sharp core, at last also what a patch shifts less because it was bright there already
_WIDE_ROWS = 40  # fewer do not tell a spread
_SURE = 8.0  # nats against, of a row that scores like the bulk
_MAX_ROWS = 400  # of the group that the shift is estimated from
_FEW = 8  # classes of an eighth of the rows at the most
_HELD_BYTES = 1 << 28  # and of so many bytes are read once and held, all of them are passed over


def refine(
    stream: Stream, fit: Fit, groups: list[HostArray], *, is_mixed: bool = False
) -> list[Refined | None]:
    """Estimates the shift of each group against matched rows of other classes, and scores by it.

    Rows that carry a trigger are rows of other classes plus a shift. Matching each to its nearest
    row of another class (less the current shift) leaves residuals whose mean is the shift d, free
    of what the rows show. ``w = (T + ridge)^-1 d`` with T the total covariance of the data is the
    best linear score for it; rows of the group are scored with their own residual left out of d.
    The unshifted rows of the class give one normal (from their lower half), the group the other.

    Args:
        stream: The one that ``fit`` saw.
        fit: Sampled rows to match with.
        groups: Rows of one class each, a class at most once; verified, or with ``is_mixed`` rows
            of which only some share a shift.
        is_mixed: Begin with the rows whose whitened residuals point the same way.

    Returns:
        The refined groups; None where nothing is left of one.

    **Cost**: the class means and the pooled covariance; a factorisation of d x d; one read where
    the groups' classes are few of many, else for each of four steps a read of the groups' rows and
    a pass over all rows, whatever the number of groups.

    **Assumes / fails on**: the trigger is nearly the same shift in every row. For warps the
    separation stays small, and the caller keeps the group as it was.
    """
    from scipy.linalg import cho_factor

    if not groups:
        return []
    total = _total_covariance(stream)
    with one_thread():
        factor = cho_factor(with_ridge(total, total), lower=True)
    shifts = [_Shift(stream, fit, np.sort(rows), factor) for rows in groups]
    held = _held(stream, shifts)
    if is_mixed:
        for shift, x in zip(shifts, _samples(stream, shifts, held), strict=True):
            shift.keep_coherent(x)
    for step in range(_STEPS):
        samples = _samples(stream, shifts, held)
        weights = [shift.estimate(x) for shift, x in zip(shifts, samples, strict=True)]
        for shift, scores in zip(shifts, _scores(stream, shifts, weights, held), strict=True):
            shift.divide(scores, is_last=step == _STEPS - 1)
    return [shift.result() for shift in shifts]


@one_thread()
def _total_covariance(stream: Stream) -> HostArray:
    """Covariance [d, d] of all rows, within and between classes."""
    counts, mean = folds.class_means(stream)
    share = counts / counts.sum()
    centred = mean - share @ mean
    out: HostArray = folds.pooled_within(stream) + (share[:, None] * centred).T @ centred
    return out


def _held(stream: Stream, shifts: list[_Shift]) -> list[HostArray] | None:
    """The inputs of each group's class, where those are few rows of many."""
    rows = sum(len(shift.mine) for shift in shifts)
    row_bytes = 4 * int(np.prod(stream.row_shape))
    if _FEW * rows > len(stream) or rows * row_bytes > _HELD_BYTES:
        return None
    return _read(stream, [shift.mine for shift in shifts])


def _read(stream: Stream, parts: list[HostArray]) -> list[HostArray]:
    """The inputs of some lists of rows, by one read."""
    edges = np.cumsum([len(rows) for rows in parts])[:-1]
    return np.split(inputs_of(stream, np.concatenate(parts)), edges)


def _samples(stream: Stream, shifts: list[_Shift], held: list[HostArray] | None) -> list[HostArray]:
    """The inputs of each group's sample."""
    if held is None:
        return _read(stream, [shift.sample for shift in shifts])
    return [
        x[np.searchsorted(shift.mine, shift.sample)] for shift, x in zip(shifts, held, strict=True)
    ]


def _scores(
    stream: Stream, shifts: list[_Shift], weights: list[HostArray], held: list[HostArray] | None
) -> list[HostArray]:
    """What each group's weights say of the rows of its class."""
    if held is not None:
        with one_thread():
            return [x @ w.astype(np.float32) for x, w in zip(held, weights, strict=True)]
    every = np.zeros((stream.num_classes, 1, len(weights[0])))
    every[[shift.target for shift in shifts], 0] = weights
    scores = folds.project(stream, every, np.zeros_like(every[:, 0]))[:, 0]
    return [scores[shift.mine] for shift in shifts]


class _Shift:
    """One group on its way: its rows, the shift they share, the odds along it."""

    def __init__(self, stream: Stream, fit: Fit, rows: HostArray, factor: Any) -> None:
        self.target = int(stream.labels[rows[0]])
        self._others = fit.x[fit.x_labels != self.target]
        self.mine = class_rows(stream)[self.target]
        self._agrees = fit.agrees[self.mine]
        self._factor = factor
        self._given = self.group = rows
        self._odds, self._separation = np.zeros(len(self.mine)), 0.0
        self._own: HostArray = np.zeros(0)
        self._shift: HostArray | None = None

    @property
    def sample(self) -> HostArray:
        """An even subset of the group."""
        return even_subset(self.group, _MAX_ROWS)

    def keep_coherent(self, x: HostArray) -> None:
        """Begins with the rows of the sample whose residuals point the same way."""
        residuals = matched_residuals(x, self._others, steps=2).astype(np.float64)
        self.group = self.sample[_coherent(residuals, self._factor[0])]

    def estimate(self, x: HostArray) -> HostArray:
        """Weights [d] from the sample's residuals."""
        from scipy.linalg import cho_solve

        steps = 1 if self._shift is not None else 3
        matched = matched_residuals(x, self._others, self._shift, steps)
        self._shift, residuals = matched.mean(axis=0), matched.astype(np.float64)
        with one_thread():
            solved = cho_solve(self._factor, residuals.T, check_finite=False)
        self._own = np.einsum("rd,dr->r", x, solved)
        out: HostArray = solved.mean(axis=1)
        return out

    def divide(self, scores: HostArray, *, is_last: bool) -> None:
        """Divides the class by its scores, each sampled row's own residual left out of them."""
        mine = scores.astype(np.float64)
        sampled = np.isin(self.mine, self.sample, assume_unique=True)
        n = max(len(self.sample), 2)
        mine[sampled] = (n * mine[sampled] - self._own) / (n - 1)
        was = np.isin(self.mine, self.group, assume_unique=True)
        is_wide = is_last and len(self.group) >= _WIDE_ROWS
        odds, self._separation = two_normals(mine, was, _WIDE if is_wide else _NARROW)
        if is_last:
            odds = np.where(odds > -_SURE, odds + _opinion_odds(self._agrees, was), odds)
        self._odds = odds
        if (odds > 0).sum() >= 2:
            self.group = self.mine[odds > 0]
        else:
            self._separation = 0.0

    def result(self) -> Refined | None:
        """The group as it is now."""
        if self._separation <= 0.0:
            return None
        overlap = len(np.intersect1d(self.group, self._given)) / len(self._given)
        return Refined(self.mine, self._odds, self._separation, overlap)


def _coherent(residuals: HostArray, lower: HostArray) -> HostArray:
    """Rows whose residuals, whitened and scaled to length 1, point the same way.

    They carry the leading eigenvector of the matrix of cosines; chance directions do not.
    """
    from scipy.linalg import solve_triangular

    with one_thread():
        white = solve_triangular(lower, residuals.T, lower=True, check_finite=False)
        white /= np.maximum(np.linalg.norm(white, axis=0), 1e-12)
        loading = np.linalg.eigh(white.T @ white)[1][:, -1]
    loading *= np.sign(loading[np.abs(loading).argmax()])
    out: HostArray = loading >= 0.5 * loading.max()
    return out


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


def two_normals(scores: HostArray, in_group: HostArray, widest: float) -> tuple[HostArray, float]:
    """Log odds of two normals, the lower one from the lower half of the rows outside the group.

    Args:
        scores: [m].
        in_group: [m] bool.
        widest: Most spread of the group, in deviations of the others.

    Returns:
        Odds [m], and the separation in the larger deviation.
    """
    rest, shifted = scores[~in_group], scores[in_group]
    low, centre = np.quantile(rest, [SIGMA_SHARE, 0.5]) if len(rest) else (-1.0, 0.0)
    below = max(centre - low, 1e-12)
    above = float(np.median(shifted))
    width = 1.4826 * float(np.median(np.abs(shifted - above)))
    width = float(np.clip(width, 0.7 * below, widest * below))
    share = np.clip(in_group.mean(), 1e-6, 1 - 1e-6)
    z0, z1 = (scores - centre) / below, (scores - above) / width
    odds = 0.5 * (z0**2 - z1**2) + np.log(below / width) + np.log(share / (1 - share))
    # beyond either centre the nearer population is certain: normals of unequal width cross twice
    odds = np.where(scores >= above, np.maximum(odds, 0.5 * z0**2 - 1.0), odds)
    odds = np.where(scores <= centre + below, np.minimum(odds, -_SURE), odds)
    return odds, (above - centre) / max(below, width)
