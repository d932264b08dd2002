"""Activation clustering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison._types import HostArray, Scores
from jaxpoison.detect._coordinates import by_class, coordinates
from jaxpoison.detect._detector import Key, empty_scores, fill_rows, host_rng
from jaxpoison.kernels import kmeans, silhouette
from jaxpoison.stream import Stream

_NUM_CLUSTERS, _NUM_INITS = 2, 8
_SILHOUETTE_ROWS = 1024  # exact silhouettes are quadratic: larger classes use an even subset


class ActivationInfo(NamedTuple):
    """The two clusters of each class.

    Attributes:
        share: [c] rows of the smaller cluster, as a share of the class.
        silhouette: [c] mean silhouette of the two clusters.
    """

    share: HostArray
    silhouette: HostArray


@dataclass(frozen=True)
class ActivationClustering:
    """Two clusters in each class's leading directions; the smaller one is suspicious.

    ``score_i = |y_i - large| - |y_i - small|``, distances to the two centres in units of their
    distance. Every class is projected by its own PCA, and all classes are clustered at once.

    Attributes:
        rank: Directions kept (the paper: 10).
        min_rows: Smaller classes are skipped.

    **Cost**: the coordinates (shared), 8 k-means runs of 40 steps on [m, rank] a class, and at
    most 1024^2 distances a class for the silhouette.

    **Assumes / fails on**: poison is less than half of its class and forms the main split of it.
    Honest classes with two modes; blends; low rates. The size alone says nothing: every class has
    a smaller cluster.

    Reference: Chen et al., 2018, arXiv:1811.03728.
    """

    rank: int = 10
    min_rows: int = 16

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the statistic is the mean silhouette, candidates the smaller clusters."""
        values, statistic, null = empty_scores(stream)
        candidates = np.zeros(len(stream), np.bool_)
        share = np.full(stream.num_classes, np.nan)
        y = coordinates(stream, "principal", self.rank)
        for group in by_class(stream, y, self.min_rows):
            draws = np.stack([self._draws(key, c, y.shape[1]) for c in group.classes])
            members = (group.x, group.mask, draws)
            margin, small, width, weight = stream.spread(_cluster, members, in_turn=True)
            fill_rows(values, group.rows, group.mask, margin)
            fill_rows(candidates, group.rows, group.mask, small)
            statistic[group.classes] = width
            share[group.classes] = weight
        return Scores(values, statistic, null, candidates, ActivationInfo(share, statistic.copy()))

    def _draws(self, key: Key, label: int, rank: int) -> HostArray:
        """Random numbers of k-means: the same for a class whatever group it is in."""
        rng = host_rng(jax.random.fold_in(key, int(label)))
        out: HostArray = 1.0 - rng.random((_NUM_INITS, _NUM_CLUSTERS + rank), np.float32)
        return out


def _cluster(member: Any) -> tuple[Any, ...]:
    x, mask, draws = member
    found = kmeans(x, mask, num_clusters=_NUM_CLUSTERS, num_inits=_NUM_INITS, draws=draws)
    small = jnp.where(found.sizes[1] <= found.sizes[0], 1, 0)
    centres = jnp.where(small == 1, found.centres, found.centres[::-1])
    distance = jnp.sqrt(((x[:, None, :] - centres[None]) ** 2).sum(axis=-1))
    apart = jnp.sqrt(((centres[0] - centres[1]) ** 2).sum())
    margin = (distance[:, 0] - distance[:, 1]) / jnp.maximum(apart, 1e-12) * mask
    step = -(-x.shape[0] // _SILHOUETTE_ROWS)
    some = (x[::step], found.labels[::step], mask[::step])
    width = silhouette(*some, num_clusters=2).sum() / jnp.maximum(some[2].sum(), 1.0)
    weight = found.sizes[small] / jnp.maximum(mask.sum(), 1.0)
    return margin, (found.labels == small) & (mask > 0), width, weight
