"""Whether rows are set apart by one shift that all of them have, or each by one of its own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.linalg import fisher, in_span, one_thread, ridge_of

FEWEST = 8
"""Rows, and others, that the question needs."""

_QUIET = 2 / 3  # of the directions, those with the smallest variances
_RIDGE = 1e-3  # of the mean variance
_NUM_FOLDS = 10
_NO_VARIANCE = 1e-9  # of the largest: rounding
_NO_SHIFT = 1e-300
_CLEAR = 3.0  # standard errors of a shift that chance gives
_SIDES_RIDGE, _SIDES_FOLDS, _MOST_ROUNDS = 0.1, 5, 6
_MOST_LEFT = 0.2  # of either, left out as false or missed


class CommonShift(NamedTuple):
    """How much of what sets some rows apart they have in common.

    Attributes:
        share: 0..1, squared shift of the mean as a share of itself and the rows' extra variance.
        spread: Deviation of the rows along the direction that tells them best, in distances
            between the two means along it; inf where in the middle they lie no nearer to theirs.
    """

    share: float
    spread: float


@one_thread()
def common_shift(x: HostArray, others: HostArray) -> CommonShift:
    """What rows of a class have in common that its other rows lack.

    A trigger changes all of its rows alike. Rows that were moved one by one towards a victim differ
    from their class as much, and from each other. First rows that lie on the other side of the
    boundary are left out, up to six times, so that a few missed or false ones (a fifth) do not
    count.

    ``share``: in the two thirds of the directions in which one half of the others varies least (all
    in which it does not vary), whitened by it (ridge of a thousandth of the mean variance), against
    the other half, and once more with the halves exchanged::

        m = |mean(x) - mean(o)|^2 - tr V(x) / r - tr V(o) / s       (what chance gives is taken off)
        e = tr V(x) - tr V(o)
        share = m / (m + max(e, 0)), and 0 where m is within three standard errors of 0

    ``spread``: along ``((V(x) + V(o)) / 2 + ridge)^-1 (mean(x) - mean(o))``, fitted to nine tenths
    of both (Fisher, 1936); of the tenth that is left out, the deviation over the mean, where the
    means of the nine tenths are 0 and 1. Sides are taken by the same with a ridge of a tenth, and
    fifths.

    Args:
        x: [r, d] rows of the group.
        others: [s, d] of the same class.

    Raises:
        ValueError: Fewer than ``FEWEST`` rows of either.

    **Cost**: 2 n^2 d where n = r + s < d; then with p = min(n, d) up to 160 n p^2 + 40 p^3 FLOP, a
    third of it where no row changes sides, in float64; 0.2 s at n = 1,200, d = 784 on one thread.
    Five [p, p].

    **Assumes / fails on**: the others are mostly honest and of one class. Rows of other classes
    under this label differ from each other whatever they share. A victim that is blended into all
    rows alike is a trigger by this measure.
    """
    if min(len(x), len(others)) < FEWEST:
        raise ValueError(f"{len(x)} rows and {len(others)} others; at least {FEWEST} of both")
    centre = others.mean(axis=0, dtype=np.float64)  # about it, differences keep their digits
    rows, num_features = in_span(np.concatenate([x, others]) - centre), x.shape[1]
    x, others = _sides(rows[: len(x)], rows[len(x) :], num_features)
    return CommonShift(_share(x, others, num_features), _spread(x, others, num_features))


def _sides(x: HostArray, others: HostArray, num_features: int) -> tuple[HostArray, HostArray]:
    """The rows of both that lie on their own side of the boundary between them.

    All of them where many do not: what is left would be apart by the choice alone.
    """
    kept = np.ones(len(x), np.bool_), np.ones(len(others), np.bool_)
    for _ in range(_MOST_ROUNDS):
        own, usual = _places(x, others, kept, _SIDES_RIDGE, _SIDES_FOLDS, num_features)
        anew = own > 0.5, ~(usual > 0.5)
        if any(side.mean() < 1 - _MOST_LEFT or side.sum() < FEWEST for side in anew):
            return x, others
        is_same = all((new == old).all() for new, old in zip(anew, kept, strict=True))
        kept = anew
        if is_same:
            break
    return x[kept[0]], others[kept[1]]


def _share(x: HostArray, others: HostArray, num_features: int) -> float:
    common = extra = noise = 0.0
    halves = others[::2], others[1::2]
    for seen, held in (halves, halves[::-1]):
        white = _quiet(np.cov(seen.T).reshape(2 * seen.shape[1:]), num_features)
        a, b = x @ white, held @ white
        own, usual = a.var(axis=0, ddof=1), b.var(axis=0, ddof=1)
        chance = own / len(a) + usual / len(b)
        common += float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() - chance.sum())
        extra += float(own.sum() - usual.sum())
        noise += float(np.sqrt(2.0 * (chance**2).sum()))
    return common / (common + max(extra, 0.0)) if common > _CLEAR * noise else 0.0


def _quiet(cov: HostArray, num_features: int) -> HostArray:
    """The directions [p, k] of least variance, each divided by its deviation."""
    values, vectors = np.linalg.eigh(cov)
    # variances beyond the p given ones are 0
    last = int(_QUIET * num_features) - 1 - (num_features - len(values))
    limit = max(values[max(last, 0)], _NO_VARIANCE * values[-1])
    is_quiet = values <= limit
    ridge = ridge_of(cov, _RIDGE, num_features)
    out: HostArray = vectors[:, is_quiet] / np.sqrt(values[is_quiet] + ridge)
    return out


def _spread(x: HostArray, others: HostArray, num_features: int) -> float:
    kept = np.ones(len(x), np.bool_), np.ones(len(others), np.bool_)
    own, _ = _places(x, others, kept, _RIDGE, _NUM_FOLDS, num_features)
    middle = own.mean()
    return float(own.std(ddof=1) / middle) if middle > 0 else float("inf")


def _places(
    x: HostArray,
    others: HostArray,
    kept: tuple[HostArray, HostArray],
    share: float,
    folds: int,
    num_features: int,
) -> tuple[HostArray, HostArray]:
    """Where all rows of both lie along the direction that the kept ones of other folds give.

    The means of the kept others and the kept rows are 0 and 1.
    """
    both = x, others
    folds = min(folds, *(int(keep.sum()) for keep in kept))
    wholes = [_moments(rows[keep]) for rows, keep in zip(both, kept, strict=True)]
    out = np.empty(len(x)), np.empty(len(others))
    for fold in range(folds):
        within, means = np.zeros(2 * x.shape[1:]), []
        for rows, keep, whole in zip(both, kept, wholes, strict=True):
            part = _moments(rows[fold::folds][keep[fold::folds]])
            n = max(whole[0] - part[0], 1.0)
            means.append((whole[1] - part[1]) / n)
            within += ((whole[2] - part[2]) / n - np.outer(means[-1], means[-1])) / 2
        shift = means[0] - means[1]
        along = fisher(within, shift, share, num_features)
        unit = max(float(shift @ along), _NO_SHIFT)
        for rows, places in zip(both, out, strict=True):
            places[fold::folds] = (rows[fold::folds] - means[1]) @ along / unit
    return out


def _moments(rows: HostArray) -> tuple[float, HostArray, HostArray]:
    """Number, sum [p] and products [p, p] of rows."""
    return float(len(rows)), rows.sum(axis=0), rows.T @ rows
