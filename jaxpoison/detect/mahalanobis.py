"""Robust Mahalanobis distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison._types import Scores
from jaxpoison.detect._coordinates import ClassGroup, by_class, coordinates
from jaxpoison.detect._detector import Key, empty_scores, fill_rows, host_rng
from jaxpoison.kernels import masked_quantile, trimmed_gaussian
from jaxpoison.stream import Stream

_NULL_ROWS = 2048
_TAIL = 0.97  # a higher quantile is a few odd rows of any honest class


class MahalanobisInfo(NamedTuple):
    """What was kept.

    Attributes:
        keep: Share of each class that the mean and covariance come from.
        rank: Directions used.
    """

    keep: float
    rank: int


@dataclass(frozen=True)
class RobustMahalanobis:
    """Distance of a row to its class under a trimmed mean and covariance.

    ``score_i = (y_i - m)^T S^-1 (y_i - m)``, m and S from the most central rows of the class in
    its leading directions (concentration steps), S made consistent for Gaussian rows.

    Attributes:
        rank: Leading directions of the class covariance.
        keep: Share of the class trusted to be central.
        num_draws: Gaussian classes drawn for the null.
        min_rows: Smaller classes are skipped.

    **Cost**: the coordinates (shared), ten covariances of [m, rank] a class.

    **Assumes / fails on**: poison is less than 1 - keep of its class and far in a direction of
    visible variance.

    Reference: Rousseeuw and Van Driessen, 1999 (FAST-MCD); as a poison detector Lee et al., 2018,
    arXiv:1807.03888.
    """

    rank: int = 20
    keep: float = 0.75
    num_draws: int = 16
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the class statistic is the log of the 97 % quantile over the median."""
        values, statistic, null = empty_scores(stream, self.num_draws)
        y = coordinates(stream, "principal", self.rank)
        keep = np.float32(self.keep)
        for group in by_class(stream, y, self.min_rows):
            (distance, tail), (_, expected) = spread_with_null(
                stream, _distance, group, key, self.num_draws, keep
            )
            fill_rows(values, group.rows, group.mask, distance)
            statistic[group.classes], null[group.classes] = tail, expected
        return Scores(values, statistic, null, None, MahalanobisInfo(self.keep, y.shape[1]))


def spread_with_null(
    stream: Stream, fn: Any, group: ClassGroup, key: Key, draws: int, *shared: Any
) -> tuple[Any, Any]:
    """``fn`` of the classes of a group, and of classes drawn from the one-population model.

    Statistics that do not change under affine maps have the same null for every Gaussian class of
    a size, so draws of N(0, I) of the median size *are* the parametric bootstrap of the fit. Above
    2048 rows smaller draws stand in: their statistics are a little larger, the gate a little
    stricter, and the null costs less than the data.

    Returns:
        Results of the g classes and of the draws, each stacked.
    """
    g, (m, k) = len(group.classes), group.x.shape[1:]
    size = int(np.median(group.mask.sum(axis=1)))
    rows, size = min(m, _NULL_ROWS), min(size, _NULL_ROWS)
    drawn = host_rng(jax.random.fold_in(key, m)).standard_normal((draws, rows, k), np.float32)
    mask = np.repeat((np.arange(rows) < size)[None], draws, axis=0).astype(np.float32)
    null = (drawn * mask[..., None], mask)
    if rows < m:
        members = (group.x, group.mask)
        return stream.spread(fn, members, *shared), stream.spread(fn, null, *shared)
    joined = (np.concatenate([group.x, null[0]]), np.concatenate([group.mask, null[1]]))
    out = stream.spread(fn, joined, *shared)  # one call, one compilation
    return jax.tree.map(lambda a: a[:g], out), jax.tree.map(lambda a: a[g:], out)


def _distance(member: Any, keep: Any) -> tuple[Any, Any]:
    x, mask = member
    fit = trimmed_gaussian(x, mask, keep=keep)
    weight = (mask > 0).astype(jnp.float32)
    ranks = jnp.array([_TAIL, 0.5])
    far, middle = jax.vmap(lambda q: masked_quantile(fit.distance2, weight, q))(ranks)
    return fit.distance2 * mask, jnp.log(jnp.maximum(far, 1e-12) / jnp.maximum(middle, 1e-12))
