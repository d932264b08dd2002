"""Beatrix: deviations of the Gram features of several powers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import folds
from jaxpoison._check import UsageError
from jaxpoison._types import Array, Block, HostArray, Scores
from jaxpoison.detect._detector import Key, class_rows, empty_scores, host_rng
from jaxpoison.detect.density import upper_tail
from jaxpoison.detect.neighbours import gathered
from jaxpoison.linalg import principal
from jaxpoison.stream import Stream, compiled

_CHANNELS = 64  # 64 * 65 / 2 pairs of them
_SAMPLE_ROWS = 1 << 16  # rows of all classes together that the bounds come from
_LARGEST = 100.0  # in root mean squares: (100^2)^8 = 1e32 still fits in float32
_FLOOR = 0.05  # of the mean MAD of the class: features that hardly any row has
_CLIP = 10.0  # of one Gram feature's deviation


class GramInfo(NamedTuple):
    """What the Gram features were made of.

    Attributes:
        orders: Powers p that were used.
        pairs: Pairs of channels.
        is_sampled: Whether the channels are a draw of all.
    """

    orders: tuple[int, ...]
    pairs: int
    is_sampled: bool


class _Front(NamedTuple):
    """From a row to its feature map [positions, channels]."""

    centre: HostArray  # [d]
    basis: HostArray  # [d, k], or [d, 0] to leave the row as it is
    scale: HostArray  # []
    used: HostArray  # [k] channels looked at
    upper: HostArray  # [pairs] places of the upper triangle in a flat k x k matrix
    channels: HostArray  # [channels] zeros: its shape is what counts
    orders: HostArray  # [largest order] zeros


@dataclass(frozen=True)
class GramPowers:
    """How far the Gram features of a row leave the bounds of its class.

    ``G_p = (F^p F^p^T)^(1/p)`` for p = 1 .. 8, with F [channels, positions] the feature map, powers
    and roots entry by entry (the root keeps the sign), upper triangle. The power of F comes first;
    without it (as in one public version) all orders carry the same matrix. For each entry g, with
    its median m and median absolute deviation s in the class,
    ``clip((|g - m| - t s) / (t s), 0, 10)``; the score is the mean over entries and orders.

    Differences from the paper: bounds come from the class's own rows, there being no clean set;
    the overshoot is measured in widths of the bound, not in its value, which may be 0; classes are
    compared by the tail of their scores, not by a kernel distance.

    Attributes:
        channels: Channels of a row, last axis of ``x.reshape(positions, channels)``; None for
            plain feature vectors. There a map has one position, ``(f_i^p f_j^p)^(1/p)`` is
            ``f_i f_j`` for odd p and its magnitude for even p, so orders 1 and 2 say all. Plain
            rows are centred, and beyond 64 features seen in their 64 leading pooled coordinates.
        num_orders: Largest p.
        width: t.
        num_sampled: Rows of a class that give the bounds.
        min_rows: Smaller classes are skipped.

    **Cost**: two passes and n * 16 * channels^2 * positions FLOP; the Gram features of one tile are
    held at a time, and their bounds, c * 2080 * 8 * 2 floats. Of more than 64 channels a draw of 64
    is used, by the key.

    **Assumes / fails on**: less than half of a class is planted, and planted rows correlate
    channels that honest ones do not. A shift of plain features that stays inside the class's own
    spread leaves no mark.

    Reference: Ma et al., 2022, arXiv:2209.11715.
    """

    channels: int | None = None
    num_orders: int = 8
    width: float = 3.0
    num_sampled: int = 1024
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the class statistic is the upper tail of its scores (``upper_tail``).

        Raises:
            UsageError: The features of a row are no multiple of ``channels``.
        """
        values, statistic, null = empty_scores(stream)
        rng = host_rng(key)
        front, is_sampled = self._front(stream, rng)
        judged = np.flatnonzero(stream.counts >= max(self.min_rows, 2))
        if judged.size:
            middle, reach = self._bounds(stream, front, rng, judged)
            values = stream.map(_deviation, front, middle, reach)
            values[~np.isin(stream.labels, judged)] = 0.0
        for c in judged:
            statistic[c] = upper_tail(values[class_rows(stream)[c]])
        info = GramInfo(tuple(range(1, len(front.orders) + 1)), len(front.upper), is_sampled)
        return Scores(values, statistic, null, None, info)

    def _front(self, stream: Stream, rng: np.random.Generator) -> tuple[_Front, bool]:
        """The map of a row, and whether its channels are a draw."""
        counts, mean = folds.class_means(stream)
        d = mean.shape[1]
        channels, orders = self.channels or d, self.num_orders
        if d % channels:
            raise UsageError(
                f"channels is {channels}, rows have {d} features; give a divisor of {d}, or None "
                "for plain feature vectors"
            )
        centre, basis, used = np.zeros(d), np.zeros((d, 0)), np.arange(channels)
        if self.channels is None:
            centre, orders = counts @ mean / max(counts.sum(), 1), min(orders, 2)
            if d > _CHANNELS:
                basis = principal(folds.pooled_within(stream), _CHANNELS)[1].T
                channels, used = _CHANNELS, np.arange(_CHANNELS)
        elif channels > _CHANNELS:
            used = np.sort(rng.permutation(channels)[:_CHANNELS])
        square = float(stream.fold(folds.SquaredNorm(centre.astype(np.float32))))
        scale = np.sqrt(max(square / max(counts.sum() * d, 1), 1e-30))
        first, second = np.triu_indices(len(used))
        front = _Front(
            centre.astype(np.float32),
            basis.astype(np.float32),
            np.array(scale, np.float32),
            used.astype(np.int32),
            (first * len(used) + second).astype(np.int32),
            np.zeros(channels, np.float32),
            np.zeros(orders, np.float32),
        )
        return front, len(used) < channels

    def _bounds(
        self, stream: Stream, front: _Front, rng: np.random.Generator, judged: HostArray
    ) -> tuple[HostArray, HostArray]:
        """Median and t times MAD of every Gram feature in every class, [c, features] each."""
        most = max(min(self.num_sampled, _SAMPLE_ROWS // len(judged)), 64)
        order = [rng.permutation(class_rows(stream)[c])[:most] for c in judged]
        order = [np.sort(rows) for rows in order]
        x = gathered(stream, np.concatenate(order))
        most = 1 << int(np.ceil(np.log2(max(len(rows) for rows in order))))
        features = len(front.upper) * len(front.orders)
        middle = np.zeros((stream.num_classes, features), np.float32)
        reach = np.ones((stream.num_classes, features), np.float32)
        start = 0
        for c, rows in zip(judged, order, strict=True):
            part = np.zeros((most, x.shape[1]), np.float32)
            part[: len(rows)] = x[start : start + len(rows)]
            start += len(rows)
            gram = np.asarray(_compiled_powers(part, front))[: len(rows)].T.copy()
            middle[c] = np.median(gram, axis=1)
            mad = np.median(np.abs(gram - middle[c][:, None]), axis=1)
            reach[c] = self.width * np.maximum(mad, max(_FLOOR * mad.mean(), 1e-6))
        return middle, reach


def _powers(x: Array, front: _Front) -> Array:
    """Gram features of rows [r, d]: [r, orders * pairs]."""
    x = x.astype(jnp.float32) - front.centre
    if front.basis.shape[1]:
        x = jnp.matmul(x, front.basis, precision=jax.lax.Precision.HIGHEST)
    x = jnp.clip(x / front.scale, -_LARGEST, _LARGEST)
    x = x.reshape(len(x), -1, len(front.channels))[..., front.used]
    power, out = x, []
    for order in range(1, len(front.orders) + 1):
        gram = jnp.einsum("rpi,rpj->rij", power, power, precision=jax.lax.Precision.HIGHEST)
        gram = gram.reshape(len(x), -1)[:, front.upper]
        out.append(jnp.sign(gram) * jnp.abs(gram) ** (1.0 / order))
        power = power * x
    return jnp.concatenate(out, axis=1)


_compiled_powers = compiled(_powers)


def _deviation(block: Block, front: _Front, middle: Array, reach: Array) -> Array:
    def of_tile(inputs: tuple[Array, Array]) -> Array:
        x, label = inputs
        gap = jnp.abs(_powers(x.reshape(len(x), -1), front) - middle[label])
        return jnp.clip(gap / reach[label] - 1.0, 0.0, _CLIP).mean(axis=1)

    out: Array = jax.lax.map(of_tile, (block.x, block.label))
    return out
