"""What each row is worth to the trusted ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray, Scores
from jaxpoison.detect._detector import Key, empty_scores
from jaxpoison.detect.influence import features_of
from jaxpoison.kernels import knn_shapley_of_ranks, rank_keys
from jaxpoison.linalg import ranked
from jaxpoison.stream import Stream

_BLOCK_KEYS = 1 << 21  # distances held at a time


class ShapleyInfo(NamedTuple):
    """What the values come from.

    Attributes:
        num_queries: Trusted rows.
        num_neighbours: k.
        accuracy: Mean share of a trusted row's k nearest other rows that have its label, which is
            what all values add up to.
    """

    num_queries: int
    num_neighbours: int
    accuracy: float


@dataclass(frozen=True)
class KNNShapley:
    """Minus the exact Shapley value of a row for the k-NN accuracy on the trusted rows.

    ``v(S) = mean_q sum_(j <= min(k, |S|)) [y_(j) = y_q] / k`` over the nearest rows of S to each
    trusted row q; the value of a row is what it adds to v, on average over the orders in which rows
    can be added to S. No trusted row is its own neighbour: for its own query it is as if it was
    not there, and its value is the mean over the other queries.

    Attributes:
        num_neighbours: k.
        min_rows: Smaller classes are skipped; their rows are still neighbours.

    **Cost**: 2 n t d FLOP and t sorts of n integers, for t trusted rows.

    **Assumes / fails on**: trusted rows lie where the poison does harm. Rows under a trigger have
    no trusted neighbours, so they are worth nothing, not less. Rows at equal distance count in
    the order of their number.

    Reference: Jia et al., 2019, arXiv:1908.08619.
    """

    num_neighbours: int = 10
    min_rows: int = 1

    def score(self, stream: Stream, *, key: Key, trusted: HostArray) -> Scores:
        """Scores [n]; the statistic is the sum of a class's scores above 0."""
        trusted = np.asarray(trusted)
        if trusted.shape != (len(stream),) or trusted.dtype != np.bool_ or not trusted.any():
            raise UsageError(
                f"trusted: shape {trusted.shape} and type {trusted.dtype}, "
                f"{int(np.count_nonzero(trusted))} rows; give one bool for each of the "
                f"{len(stream)} rows, some of them true"
            )
        if self.num_neighbours < 1:
            raise UsageError(f"num_neighbours: {self.num_neighbours}; give at least 1")
        queries = np.flatnonzero(trusted)
        worth, accuracy = _values(features_of(stream), stream.labels, queries, self.num_neighbours)
        values, statistic, null = empty_scores(stream)
        for c in np.flatnonzero(stream.counts >= max(self.min_rows, 1)):
            mine = stream.labels == c
            values[mine] = -worth[mine]
            statistic[c] = np.maximum(-worth[mine], 0.0).sum()
        info = ShapleyInfo(len(queries), self.num_neighbours, accuracy)
        return Scores(values, statistic, null, None, info)


def _values(x: HostArray, labels: HostArray, queries: HostArray, k: int) -> tuple[HostArray, float]:
    """Shapley values [n] float64 and the utility of all rows."""
    n, t = len(x), len(queries)
    total, accuracy = np.zeros(n), 0.0
    mask = np.ones(n, np.float32)
    block = min(max(_BLOCK_KEYS // n, 1), t)
    for first in range(0, t, block):
        rows = queries[first : first + block]
        padded = np.resize(rows, block)  # one shape, one compilation
        keys = np.array(rank_keys(x, mask, x[padded]))
        match = labels == labels[padded][:, None]
        place = np.arange(block)
        # the farthest row, with another label: it then changes no other row's value, and has none
        keys[place, padded], match[place, padded] = np.inf, False
        order, bits = ranked(keys, match)
        found = np.asarray(knn_shapley_of_ranks(bits, num_neighbours=k), np.float64)
        for i in range(len(rows)):
            total[order[i]] += found[i]
        accuracy += float(found[: len(rows)].sum()) / t
    seen = np.full(n, float(t))
    seen[queries] = max(t - 1, 1)
    return total / seen, accuracy
