"""Groups of rows that are nearer to each other than honest rows are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxpoison._types import HostArray, Scores
from jaxpoison.detect._detector import Key, class_rows, empty_scores
from jaxpoison.detect.neighbours import NUM_NEIGHBOURS, nearest_rows
from jaxpoison.stream import Stream

_FLOOR = 1e-3  # of the typical distance: exact copies have distance 0
_LEAST_SPREAD = 0.1  # of log distance: classes whose distances are all alike
_JOINED_ROWS = 1 << 18  # whose neighbours are looked at together: few of them are joined


class DuplicatesInfo(NamedTuple):
    """The groups that were found.

    Attributes:
        sizes: [g] rows of each group of candidates, largest first.
        group: [n] number of each row's group in ``sizes``, -1 for none.
        reach: [c] distance up to which two rows count as copies.
        least_rows: [c] rows a group needed; more than the detector's own number where the class
            has a tie structure.
        is_tied: [c] whether half of the class has an exact copy: no distance of such a class means
            anything, and it is left alone.
    """

    sizes: HostArray
    group: HostArray
    reach: HostArray
    least_rows: HostArray
    is_tied: HostArray


@dataclass(frozen=True)
class NearDuplicates:
    """How much nearer a row's nearest row is than is usual, and how many such rows hang together.

    With ``d_i`` the distance to the nearest other row of any class, and q50, q75 the quartiles of
    d in the class, ``z_i = log(q50 / d_i) / log(q75 / q50)``: the upper half gives the scale, as
    copies only change the lower one. Two rows are joined where their distance has ``z`` of at
    least ``reach`` in both classes; groups are connected components over the k nearest rows.
    The score is ``max(z_i, 0) + log2(rows of the group)``.

    Tables of few distinct rows are full of honest copies. Two rules keep them quiet. A class
    half of whose rows have an exact copy has no distance to compare with, and is left alone. And
    where a class has many groups (more than ``many_groups`` and more than ``many_share`` of its
    rows) they are its own tie structure: only a group of four times their upper decile is a
    candidate.

    Attributes:
        reach: Spreads below the usual distance at which rows are joined.
        least_rows: A group of candidates has at least so many. Clean data sets have a few pairs
            and triples (12,000 rows of Fashion-MNIST: one triple).
        num_neighbours: k of the graph.
        many_groups: Groups beyond which a class may have a tie structure.
        many_share: Groups as a share of the class's rows beyond which it has.
        min_rows: Smaller classes are skipped.

    **Cost**: the neighbour search, shared; n k edges.

    **Assumes / fails on**: copies are less than half of their class. Copies jittered to within
    half of the usual distance are honest by this measure; so are pairs.

    Reference: for a neighbour-distance null of near duplicates, Lee et al., 2021,
    arXiv:2107.06499 asks the same question of text.
    """

    reach: float = 5.0
    least_rows: int = 5
    num_neighbours: int = NUM_NEIGHBOURS
    many_groups: int = 20
    many_share: float = 0.02
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the class statistic is ``log2(1 + candidates of the class)``."""
        values, statistic, null = empty_scores(stream)
        n, c = len(stream), stream.num_classes
        judged = stream.counts >= max(self.min_rows, 2)
        usual, spread, tied = np.zeros(c), np.ones(c), np.zeros(c, np.bool_)
        group = np.full(n, -1)
        if not judged.any():
            nothing = DuplicatesInfo(np.zeros(0, int), group, usual, usual.astype(int), tied)
            return Scores(values, statistic, null, np.zeros(n, np.bool_), nothing)
        found = nearest_rows(stream, min(self.num_neighbours, n - 1))
        nearest = found.distance[:, 0]
        of_class = class_rows(stream)
        for label in np.flatnonzero(judged):
            usual[label], spread[label] = _scale(nearest[of_class[label]])
        reach = usual * np.exp(-self.reach * spread)
        component = _components(found.distance, found.rows, reach[stream.labels])
        sizes = np.bincount(component)
        least = np.full(c, self.least_rows)
        for label in np.flatnonzero(judged):
            mine = of_class[label]
            least[label] = self._least_rows(component[mine], sizes)
            tied[label] = usual[label] <= 0
            floor = _FLOOR * usual[label] if usual[label] > 0 else 1.0
            z = np.log(max(usual[label], floor) / np.maximum(nearest[mine], floor)) / spread[label]
            rows = np.maximum(z, 0.0) + np.log2(sizes[component[mine]])
            values[mine] = 0.0 if tied[label] else rows
        is_out = sizes[component] >= np.where(tied, n + 1, least)[stream.labels]
        is_out &= judged[stream.labels]
        members = np.bincount(stream.labels[is_out], minlength=c)
        statistic[judged] = np.log2(1.0 + members[judged])
        names, place = np.unique(component[is_out], return_inverse=True)
        order = np.argsort(-sizes[names], kind="stable")
        group[is_out] = np.argsort(order)[place]
        info = DuplicatesInfo(sizes[names][order], group, reach, least, tied)
        return Scores(values, statistic, null, is_out, info)

    def _least_rows(self, component: HostArray, sizes: HostArray) -> int:
        """Rows a group needs in a class with these components."""
        groups = np.unique(component)
        inside = sizes[groups]
        inside = inside[inside >= 2]
        if len(inside) <= max(self.many_groups, self.many_share * len(component)):
            return self.least_rows
        return max(self.least_rows, int(4 * np.quantile(inside, 0.9)))


def _scale(nearest: HostArray) -> tuple[float, float]:
    """The usual nearest distance of a class and the spread of its logarithm."""
    middle, upper = np.quantile(nearest[np.isfinite(nearest)], [0.5, 0.75])
    if middle <= 0:
        return 0.0, 1.0
    return float(middle), max(float(np.log(upper / middle)), _LEAST_SPREAD)


def _components(distance: HostArray, rows: HostArray, reach: HostArray) -> HostArray:
    """Connected component of each row, rows joined where their distance is within both reaches."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, edges = len(rows), []
    for first in range(0, n, _JOINED_ROWS):
        part = slice(first, first + _JOINED_ROWS)
        both = np.minimum(reach[part, None], reach[np.maximum(rows[part], 0)])
        joined = (rows[part] >= 0) & (distance[part] <= both) & (both > 0)
        start, place = np.nonzero(joined)
        edges.append((start + first, rows[part][start, place]))
    start, end = (np.concatenate(each) for each in zip(*edges, strict=True))
    graph = coo_array((np.ones(len(start), np.bool_), (start, end)), shape=(n, n))
    labels: HostArray = connected_components(graph, directed=False)[1]
    return labels
