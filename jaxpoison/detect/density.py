"""How thinly or apart the rows of a class lie: local density and density clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from jaxpoison._types import HostArray, Scores
from jaxpoison.detect._coordinates import coordinates
from jaxpoison.detect._detector import Key, class_rows, empty_scores, host_rng
from jaxpoison.detect.neighbours import NUM_NEIGHBOURS, NearestRows, class_nearest_rows
from jaxpoison.stream import Stream

_FLOOR = 1e-3  # of the class's median distance: copies of a row have distance 0
_TAIL = 0.02


def upper_tail(values: HostArray) -> float:
    """How much farther the upper tail of some scores reaches than the lower one.

    ``log((T - m) / (m - B))`` with m the median and T and B the means of the upper and the lower
    2 %. Robust to where most rows lie, and meant for a comparison across classes: honest scores
    are skewed too.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    few = max(round(_TAIL * len(ordered)), 1)
    middle = float(np.median(ordered))
    up, down = ordered[-few:].mean() - middle, middle - ordered[:few].mean()
    least = 1e-3 * max(up, down, 1e-12)
    return float(np.log(max(up, least) / max(down, least)))


class DensityInfo(NamedTuple):
    """What the local densities come from.

    Attributes:
        num_draws: Draws of reference rows that were averaged.
        reach: [c] median distance to the k-th neighbour.
    """

    num_draws: int
    reach: HostArray


@dataclass(frozen=True)
class LocalDensity:
    """How much thinner the class is around a row than around its neighbours.

    With ``r_i`` the distance to the k-th nearest other row of the class,
    ``log r_i - log mean_j r_j + log r_i - log median(r)``: the simplified local outlier factor
    (j over the k neighbours), which forgives a class of thick and thin parts, plus the k-distance,
    which does not. Neighbours are sought among at most ``num_reference`` rows of the class, in
    several fixed draws whose scores are averaged. That also makes a group of up to about
    ``k n_c / num_reference`` planted rows locally thin.

    Attributes:
        num_neighbours: k.
        num_reference: Rows of a class that are searched.
        num_draws: Draws of them.
        min_rows: Smaller classes are skipped.

    **Cost**: ``2 n num_reference d`` FLOP a draw. This is not cut from the search over all classes:
    a row of a foreign label has hardly any of its k nearest rows in its own class.

    **Assumes / fails on**: planted rows are few in what is searched. A large tight group is dense.
    In a class of more rows than ``num_reference`` another order of rows is another draw.

    Reference: Schubert, Zimek, Kriegel, 2014 (simplified LOF); Huang et al., 2025,
    arXiv:2502.01385 (against poisoned image-text pairs).
    """

    num_neighbours: int = NUM_NEIGHBOURS
    num_reference: int = 2048
    num_draws: int = 3
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the class statistic is the upper tail of its scores (``upper_tail``)."""
        values, statistic, null = empty_scores(stream)
        reach = np.full(stream.num_classes, np.nan)
        judged = np.flatnonzero(stream.counts >= max(self.min_rows, 2))
        if not judged.size:
            return Scores(values, statistic, null, None, DensityInfo(0, reach))
        least = max(self.min_rows, 2)
        of_class, total, count = class_rows(stream), np.zeros(len(stream)), 0
        reaches: list[list[float]] = [[] for _ in range(stream.num_classes)]
        for found in class_nearest_rows(
            stream, self.num_neighbours, self.num_reference, self.num_draws, least
        ):
            count += 1
            for c in judged:
                scores, median = _outlyingness(found, of_class[c])
                total[of_class[c]] += scores
                reaches[c].append(median)
        for c in judged:
            mean = total[of_class[c]] / count
            values[of_class[c]] = mean
            statistic[c], reach[c] = upper_tail(mean), np.mean(reaches[c])
        return Scores(values, statistic, null, None, DensityInfo(count, reach))


def _outlyingness(found: NearestRows, mine: HostArray) -> tuple[HostArray, float]:
    """Scores of the rows of one class from one draw, and the median k-distance."""
    there = found.rows[mine] >= 0
    k = max(int(there.sum(axis=1).min()), 1)  # a class, or a draw of it, may have fewer than k
    distance = found.distance[mine, k - 1]
    median = float(np.median(distance))
    distance = np.maximum(distance, _FLOOR * median) if median > 0 else np.maximum(distance, 1e-30)
    place = np.searchsorted(mine, np.maximum(found.rows[mine, :k], 0))
    around = distance[np.minimum(place, len(mine) - 1)].mean(axis=1)
    typical = max(median, float(distance.min()))
    return np.log(distance / around) + np.log(distance / typical), median


class ClustersInfo(NamedTuple):
    """The clusters of each class.

    Attributes:
        clusters: [c] number of them, 0 where all rows are noise.
        minority: [c] share of the class that is a candidate.
    """

    clusters: HostArray
    minority: HostArray


@dataclass(frozen=True)
class DensityClusters:
    """Distance of a row from the main density cluster of its class.

    Rows of a class, in its leading contrast coordinates, are clustered by HDBSCAN (scikit-learn's);
    at most ``num_fitted`` of them, the others join the cluster of their nearest clustered row. The
    score is ``log(g_i / median g)``: g is the distance to the fifth nearest row of the largest
    cluster, the median over that cluster itself. Candidates are the rows of the other clusters,
    the smallest first, up to half of the class.

    Attributes:
        rank: Coordinates.
        num_fitted: Rows of a class that are clustered.
        least_share: A cluster holds at least this share of the class, and ten rows.
        min_rows: Smaller classes are skipped.

    **Cost**: the coordinates (shared); HDBSCAN on ``num_fitted`` rows a class, on one thread.

    **Assumes / fails on**: a gap in density between planted and honest rows in a few coordinates.
    Fewer planted rows than a cluster needs are noise; they still score, but are no candidates.
    Honest classes of several kinds have clusters too.

    Reference: Campello, Moulavi, Sander, 2013 (HDBSCAN); Cui et al., 2022, arXiv:2206.08514
    (clusters of one label as poison).
    """

    rank: int = 6
    num_fitted: int = 1500
    least_share: float = 0.01
    min_rows: int = 60

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the class statistic is how far its farthest other cluster lies.

        It is the median score of that cluster's rows, 0 where there is one cluster or none.
        """
        values, statistic, null = empty_scores(stream)
        candidates = np.zeros(len(stream), np.bool_)
        clusters, minority = np.zeros(stream.num_classes, np.int64), np.full_like(statistic, np.nan)
        y = coordinates(stream, "contrast", self.rank)
        of_class = class_rows(stream)
        for c in np.flatnonzero(stream.counts >= max(self.min_rows, 2)):
            mine = of_class[c]
            draw = host_rng(jax.random.fold_in(key, int(c))).permutation(len(mine))
            fitted = np.sort(draw[: self.num_fitted])
            values[mine], cluster = self._of_class(y[mine].astype(np.float64), fitted)
            clusters[c] = cluster.max() + 1
            others = [values[mine[cluster == g]] for g in range(1, clusters[c])]
            statistic[c] = max([0.0, *(float(np.median(v)) for v in others if len(v))])
            candidates[mine] = _smaller_half(cluster)
            minority[c] = candidates[mine].mean()
        info = ClustersInfo(clusters, minority)
        return Scores(values, statistic, null, candidates, info)

    def _of_class(self, x: HostArray, fitted: HostArray) -> tuple[HostArray, HostArray]:
        """Score and cluster of each row; 0 is the main cluster, -1 where there is none."""
        from sklearn.cluster import HDBSCAN

        # reachability distances tie, and ties fall by position: sorted by norm, they depend neither
        # on the order of the rows nor on the signs of their axes
        fitted = fitted[np.argsort((x[fitted] ** 2).sum(axis=1), kind="stable")]
        least = max(round(self.least_share * len(fitted)), 10)
        found = np.full(len(fitted), -1)
        if len(fitted) > least and np.ptp(x[fitted], axis=0).max() > 0:
            model = HDBSCAN(min_cluster_size=least, min_samples=5, copy=True)
            found = model.fit(x[fitted]).labels_
        sizes = np.bincount(found[found >= 0])
        order = np.argsort(-sizes, kind="stable")
        renamed = np.append(np.argsort(order), -1)[found]  # -1 is the last entry: noise stays
        core = fitted[renamed == 0] if sizes.size else fitted
        gap, _ = _nearest(x, x[core], 5)
        typical = max(float(np.median(gap[core])), 1e-12)
        score = np.log(np.maximum(gap, _FLOOR * typical) / typical)
        if not sizes.size:
            return score, np.full(len(x), -1)
        clustered = fitted[renamed >= 0]
        _, place = _nearest(x, x[clustered], 1)
        cluster = renamed[renamed >= 0][place]
        cluster[clustered] = renamed[renamed >= 0]
        return score, cluster


def _smaller_half(cluster: HostArray) -> HostArray:
    """Rows of the other clusters, the smallest first, while they are at most half of all."""
    sizes = np.bincount(cluster[cluster >= 0])
    if len(sizes) < 2:
        return np.zeros(len(cluster), np.bool_)
    order = 1 + np.argsort(sizes[1:], kind="stable")
    few = order[np.cumsum(sizes[order]) <= len(cluster) / 2]
    out: HostArray = np.isin(cluster, few)
    return out


def _nearest(x: HostArray, reference: HostArray, k: int) -> tuple[HostArray, HostArray]:
    """Distance to the k-th nearest of some rows, and the position of the nearest."""
    from scipy.spatial import KDTree

    k = min(k, len(reference))
    distance, place = KDTree(reference).query(x, k=[1, k] if k > 1 else [1])
    return distance[:, -1], place[:, 0]
