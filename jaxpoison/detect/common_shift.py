"""Whether rows are set apart by one shift that all of them have, or each by one of its own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.linalg import in_span, one_thread

FEWEST = 8
"""Rows, and others, that the question needs."""

_QUIET = 2 / 3  # of the directions, those with the smallest variances
_RIDGE = 1e-3  # of the mean variance
_NUM_FOLDS = 10
_NO_VARIANCE = 1e-9  # of the largest: rounding
_NO_SHIFT = 1e-300


class CommonShift(NamedTuple):
    """How much of what sets some rows apart they have in common.

    Attributes:
        share: 0..1, squared shift of the mean as a share of itself and the rows' extra variance.
        spread: Deviation of the rows along the direction that tells them best, in distances
            between the two means along it; inf where the rows left out are not on their side.
    """

    share: float
    spread: float


@one_thread()
def common_shift(x: HostArray, others: HostArray) -> CommonShift:
    """What rows of a class have in common that its other rows lack.

    A trigger changes all of its rows alike. Rows that were moved one by one towards a victim differ
    from their class as much, and from each other.

    ``share``: in the two thirds of the directions in which one half of the others varies least (all
    in which it does not vary), whitened by it (ridge of a thousandth of the mean variance), against
    the other half, and once more with the halves exchanged::

        m = |mean(x) - mean(o)|^2 - tr V(x) / r - tr V(o) / s       (what chance gives is taken off)
        e = tr V(x) - tr V(o)
        share = max(m, 0) / (max(m, 0) + max(e, 0))

    ``spread``: along ``((V(x) + V(o)) / 2 + ridge)^-1 (mean(x) - mean(o))``, fitted to nine tenths
    of both (Fisher, 1936); of the tenth that is left out, the deviation over the mean, where the
    means of the nine tenths are 0 and 1.

    Args:
        x: [r, d] rows of the group.
        others: [s, d] of the same class.

    Raises:
        ValueError: Fewer than ``FEWEST`` rows of either.

    **Cost**: 2 n d p + 2 n p^2 + 10 p^3 FLOP in float64, n = r + s and p = min(n, d): 0.3 s at
    n = 1,200, d = 784.

    **Assumes / fails on**: the others are mostly honest and of one class. Rows of other classes
    under this label differ from each other whatever they share. A victim that is blended into all
    rows alike is a trigger by this measure.
    """
    if min(len(x), len(others)) < FEWEST:
        raise ValueError(f"{len(x)} rows and {len(others)} others; at least {FEWEST} of both")
    centre = others.mean(axis=0, dtype=np.float64)  # about it, differences keep their digits
    rows, num_features = in_span(np.concatenate([x, others]) - centre), x.shape[1]
    x, others = rows[: len(x)], rows[len(x) :]
    return CommonShift(_share(x, others, num_features), _spread(x, others, num_features))


def _share(x: HostArray, others: HostArray, num_features: int) -> float:
    common = extra = 0.0
    halves = others[::2], others[1::2]
    for seen, held in (halves, halves[::-1]):
        white = _quiet(np.cov(seen.T).reshape(2 * seen.shape[1:]), num_features)
        a, b = x @ white, held @ white
        own, usual = a.var(axis=0, ddof=1).sum(), b.var(axis=0, ddof=1).sum()
        chance = own / len(a) + usual / len(b)
        common += float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() - chance)
        extra += float(own - usual)
    common, extra = max(common, 0.0), max(extra, 0.0)
    return common / (common + extra) if common > 0 else 0.0


def _quiet(cov: HostArray, num_features: int) -> HostArray:
    """The directions [p, k] of least variance, each divided by its deviation."""
    values, vectors = np.linalg.eigh(cov)
    # variances beyond the p given ones are 0
    last = int(_QUIET * num_features) - 1 - (num_features - len(values))
    limit = max(values[max(last, 0)], _NO_VARIANCE * values[-1])
    is_quiet = values <= limit
    out: HostArray = vectors[:, is_quiet] / np.sqrt(values[is_quiet] + _ridge(cov, num_features))
    return out


def _ridge(cov: HostArray, num_features: int) -> float:
    return float(_RIDGE * np.trace(cov) / num_features) or 1.0  # 1 where all rows are the same


def _spread(x: HostArray, others: HostArray, num_features: int) -> float:
    folds, eye = min(_NUM_FOLDS, len(x), len(others)), np.eye(x.shape[1])
    parts = [_moments(rows, folds) for rows in (x, others)]
    wholes = [tuple(sum(each) for each in zip(*part, strict=True)) for part in parts]
    places = np.empty(len(x))
    for fold in range(folds):
        within, means = np.zeros_like(eye), []
        for part, whole in zip(parts, wholes, strict=True):
            n, total, squares = (w - p for w, p in zip(whole, part[fold], strict=True))
            means.append(total / n)
            within += (squares / n - np.outer(means[-1], means[-1])) / 2
        shift = means[0] - means[1]
        along = np.linalg.solve(within + _ridge(within, num_features) * eye, shift)
        places[fold::folds] = (x[fold::folds] - means[1]) @ along / max(shift @ along, _NO_SHIFT)
    middle = places.mean()
    return float(places.std(ddof=1) / middle) if middle > 0 else float("inf")


def _moments(rows: HostArray, folds: int) -> list[tuple[float, HostArray, HostArray]]:
    """Number, sum [p] and products [p, p] of the rows of each fold."""
    return [
        (float(len(some)), some.sum(axis=0), some.T @ some)
        for some in (rows[fold::folds] for fold in range(folds))
    ]
