"""Are some rows of one class, or rows of many classes that share a shift?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison import folds
from jaxpoison._types import HostArray
from jaxpoison.detect._coordinates import between_directions
from jaxpoison.detect._detector import even_subset
from jaxpoison.linalg import one_thread
from jaxpoison.stream import Stream

_MOST_DIRECTIONS = 64
_MOST_ROWS = 500
_FEWEST_REST = 4  # rows of the own class that tell its spread
_PRIOR_ROWS = 10  # of the pooled spread, beside those
_SCALES = np.geomspace(0.25, 8.0, 13)  # of the spread of a group


class ClassMixture(NamedTuple):
    """What tells the classes of a stream apart.

    Attributes:
        axes: [r, d] directions, in units of the pooled deviation.
        counts: [c] rows.
        means: [c, r] of the classes along the directions.
    """

    axes: HostArray
    counts: HostArray
    means: HostArray

    @classmethod
    def of(cls, stream: Stream) -> ClassMixture:
        """From class means and pooled covariance, both once a stream."""
        counts, mean = folds.class_means(stream)
        rank = min(stream.num_classes - 1, mean.shape[1], _MOST_DIRECTIONS)
        axes = between_directions(counts, mean, folds.pooled_within(stream), rank)
        with one_thread():
            return cls(axes, counts, mean @ axes.T)

    @one_thread()
    def gain(self, x: HostArray, rest: HostArray, own: int) -> tuple[float, float]:
        """Log likelihood that rows gain as rows of other classes, over rows of their own class.

        With ``y`` a row less the mean of all rows given, along the axes, w the variances of the
        own class and s a free scale: ``log sum_c p_c N(y; m_c, s w) - log N(y; 0, s' w)``. The
        common shift is out of both, so only scatter speaks: that of rows of many classes follows
        the class means, that of one class does not, however far from home it lies.

        Args:
            x: [n, d] rows of a group.
            rest: [m, d] other rows of its class.
            own: That class.

        Returns:
            Mean gain of a row in nats, and its standard error; NaN where less than two other
            classes have rows, or too few rows are given.

        **Cost**: 13 n c r FLOP of exponents' arguments, n at most 500.
        """
        other = np.flatnonzero(self.counts > 0)
        other = other[other != own]
        if len(other) < 2 or len(x) < 2 or len(rest) < _FEWEST_REST:
            return float("nan"), float("nan")
        x = even_subset(x, _MOST_ROWS)
        share = self.counts[other] / self.counts[other].sum()
        means = self.means[other] - share @ self.means[other]
        y = (x - x.mean(axis=0, dtype=np.float64)) @ self.axes.T * np.sqrt(len(x) / (len(x) - 1))
        spread = ((rest - rest.mean(axis=0, dtype=np.float64)) @ self.axes.T).var(axis=0)
        spread = (spread * len(rest) + _PRIOR_ROWS) / (len(rest) - 1 + _PRIOR_ROWS)
        mixed = max((_of_classes(y, s * spread, means, share) for s in _SCALES), key=np.mean)
        alone = max((_of_one(y, s * spread) for s in _SCALES), key=np.mean)
        gain = mixed - alone
        return float(gain.mean()), float(gain.std(ddof=1) / np.sqrt(len(gain)))


def _of_one(y: HostArray, variance: HostArray) -> HostArray:
    out: HostArray = -0.5 * (y**2 / variance).sum(axis=1) - 0.5 * np.log(variance).sum()
    return out


def _of_classes(y: HostArray, variance: HostArray, means: HostArray, share: HostArray) -> HostArray:
    from scipy.special import logsumexp

    beyond = (y / variance) @ means.T - 0.5 * (means**2 / variance).sum(axis=1) + np.log(share)
    out: HostArray = _of_one(y, variance) + logsumexp(beyond, axis=1)
    return out
