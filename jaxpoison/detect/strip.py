"""STRIP: predictions that superimposed rows of other classes do not change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import Array, Block, HostArray, Scores
from jaxpoison.detect._detector import Key, host_rng
from jaxpoison.detect._two_groups import two_groups
from jaxpoison.models import Model
from jaxpoison.stream import Stream

_FLOOR = 1e-6  # nats; below it a softmax in float32 says no more


class StripInfo(NamedTuple):
    """What was superimposed.

    Attributes:
        num_overlays: Rows laid over each row.
        weight: [c] share of the smaller group of each class.
    """

    num_overlays: int
    weight: HostArray


@dataclass(frozen=True)
class Strip:
    """Entropy of a network's predictions on a row mixed with rows of other classes, turned around.

    ``score_i = -log mean_j H(softmax(f((x_i + o_j) / 2)))`` with o_j rows of other classes and
    ``H(p) = -sum_k p_k log p_k`` over the classes. A trigger that survives the mixing keeps the
    prediction where it was, so its entropy is low; honest rows become undecided. The sum over
    classes comes first and the mean over overlays second: the other way around measures how
    varied the predictions of all overlays are, class by class, and ranks differently.

    Attributes:
        num_overlays: Rows mixed into each row (the paper: 100).
        min_rows: Classes with fewer rows are skipped.

    **Cost**: ``num_overlays`` forward passes over the data in one read of it, and one more read.

    **Assumes / fails on**: the network learnt the trigger, and half of its contrast is enough.
    Blends, warps, source-specific triggers (their condition is mixed away), all-to-all, and
    networks that are sure of everything.

    Reference: Gao et al., 2019, arXiv:1902.06531.
    """

    num_overlays: int = 16
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key, model: Model) -> Scores:
        """Scores [n]; the statistic separates two groups of log entropy, see ``two_groups``.

        Args:
            stream: Raw inputs as the model takes them, without a stage.
            key: Of the overlays.
            model: Its logits are asked.

        Raises:
            UsageError: The stream has a stage, or ``num_overlays`` is below 1.
        """
        if stream.stage is not None:
            raise UsageError("Strip needs raw inputs; give the stream without its stage")
        if self.num_overlays < 1:
            raise UsageError(f"num_overlays is {self.num_overlays}; give 1 or more")
        null = np.zeros((stream.num_classes, 0))
        if np.count_nonzero(stream.counts) < 2:
            missing = np.full(stream.num_classes, np.nan)
            info = StripInfo(self.num_overlays, missing)
            values, nothing = np.zeros((2, len(stream)), np.float32)
            return Scores(values, missing.copy(), null, nothing.astype(np.bool_), info)
        rows = overlay_rows(stream, self.num_overlays, key)
        pool, place = np.unique(rows, return_inverse=True)
        place = place.reshape(rows.shape).astype(np.int32)
        # as many as there may be, so that another draw of rows compiles nothing
        overlays = np.zeros((rows.size, *stream.row_shape), stream.dtype)
        overlays[: len(pool)] = stream.take(pool)
        entropies = stream.map(_entropies, model, overlays, place)
        values = -np.log(entropies.astype(np.float64) + _FLOOR)
        groups = two_groups(stream, values, self.min_rows)
        info = StripInfo(self.num_overlays, groups.weight)
        return Scores(groups.values, groups.statistic, null, groups.candidates, info)


def overlay_rows(stream: Stream, num_overlays: int, key: Key) -> HostArray:
    """Rows of other classes for each class, [c, num_overlays].

    The rows of a class are ranked along a random direction and taken at random ranks, so that the
    choice follows from the set of rows, not from their order. Classes take turns, so that they
    overlay one another alike whatever their sizes.

    **Cost**: one pass.
    """
    rng = host_rng(key)
    direction = rng.standard_normal(int(np.prod(stream.row_shape)), np.float32)
    place = stream.map(_along, direction)
    ranks = rng.random((2, num_overlays))
    present = np.flatnonzero(stream.counts)
    of_class = {}
    for c in present:
        mine = np.flatnonzero(stream.labels == c)
        of_class[c] = mine[np.argsort(place[mine], kind="stable")]
    out = np.zeros((stream.num_classes, num_overlays), np.int64)
    for c in np.arange(stream.num_classes):
        others = present[present != c]
        for j in range(num_overlays):
            # ahead by a random step, lest few overlays always come from the first classes
            turn = int(ranks[0, 0] * len(others)) + j
            rows = of_class[others[turn % len(others)]]
            out[c, j] = rows[int(ranks[1, j] * len(rows))]
    return out


def _along(block: Block, direction: Array) -> Array:
    """Place [tiles, t] of each row along a direction of the flat inputs."""
    x = block.x.astype(jnp.float32).reshape(*block.x.shape[:2], -1)
    return jnp.matmul(x, direction, precision=jax.lax.Precision.HIGHEST)


def _entropies(block: Block, model: Model, overlays: Array, place: Array) -> Array:
    """Mean entropy [tiles, t] of each row over the overlays of its class."""

    def tile(args: tuple[Array, Array]) -> Array:
        x, label = args

        # one overlay at a time: all of them at once would hold num_overlays feature maps
        def add(total: Array, which: Array) -> tuple[Array, None]:
            logits = model.logits(model.params, _mixed(x, overlays[which]))
            return total + entropy(logits), None

        total, _ = jax.lax.scan(add, jnp.zeros(len(x), jnp.float32), place[label])
        return total / place.shape[1]

    out: Array = jax.lax.map(tile, (block.x, block.label))
    return out


def _mixed(x: Array, overlay: Any) -> Array:
    """The mean of each row and the overlay, in the type of the rows."""
    mean = (x.astype(jnp.float32) + overlay.astype(jnp.float32)) / 2
    if jnp.issubdtype(x.dtype, jnp.integer):
        mean = jnp.round(mean)
    return mean.astype(x.dtype)


def entropy(logits: Array) -> Array:
    """``-sum_k p_k log p_k`` over the last axis, in nats; traced."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
