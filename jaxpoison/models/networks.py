"""Small networks that a scan trains on the suspect data itself, in flax NNX.

No batch normalisation: what a row gives must not depend on the rows it is batched with, nor on
padding. Residual branches start at zero instead, which trains as well at this depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxpoison._types import HostArray

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float, UInt8

MAX_PIXELS = 64
"""Larger images are averaged down to at most this many pixels a side on the way in."""

_MAX_MAP = 8  # side of the last map before pooling
_MAX_POOL = 4  # and after
_MAX_DEVIATIONS = 10.0  # a value further out says no more, and must not blow up the training
_RELU_GAIN = 2.0**0.5  # keeps the size of activations through a ReLU (He)
_CHUNK_ROWS = 1024
_CONSTANT = 1e-6  # spread below this part of the size is rounding, not information


class Constant(nnx.Variable):  # type: ignore[type-arg]
    """What a network keeps but does not train."""


Network: TypeAlias = "ResidualCNN | MLP"


@dataclass(frozen=True)
class Architecture:
    """Everything about a network but its numbers: hashable, so it can be a static argument.

    Attributes:
        kind: "images" for a ``ResidualCNN``, "rows" for an ``MLP``.
        shape: Of one row: (H, W), (H, W, C) or (d,).
        num_classes: c.
    """

    kind: Literal["images", "rows"]
    shape: tuple[int, ...]
    num_classes: int

    def build(self) -> Network:
        """A network with the identity as its scaling, and whose weights are yet to be drawn."""
        if self.kind == "images":
            return ResidualCNN(self.shape, self.num_classes, rngs=nnx.Rngs(0))
        return MLP(self.shape[0], self.num_classes, rngs=nnx.Rngs(0))


@cache
def graphdef_of(architecture: Architecture) -> Any:
    """The static part of a network, the same object for equal architectures."""
    return nnx.graphdef(nnx.eval_shape(architecture.build))


@cache
def num_weights(architecture: Architecture) -> int:
    """How many random numbers ``draw_weights`` needs."""
    params = nnx.state(nnx.eval_shape(architecture.build), nnx.Param)
    return sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)


def draw_weights(params: Any, noise: Float[Array, " p"]) -> Any:
    """Initial weights: each kernel, which holds its gain so far, times ``noise / sqrt(fan_in)``.

    One vector for all layers, because a call of jax.random in each costs seconds of compilation.

    Args:
        params: Of a network from ``Architecture.build``.
        noise: [p] standard normal numbers, p at least ``num_weights``.

    Returns:
        Like ``params``.
    """
    used = 0

    def draw(leaf: Array) -> Array:
        nonlocal used
        if leaf.ndim < 2:
            return leaf  # a bias
        part = noise[used : used + leaf.size].reshape(leaf.shape)
        used += leaf.size
        drawn: Array = leaf * part / np.sqrt(np.prod(leaf.shape[:-1])).astype(np.float32)
        return drawn

    return jax.tree.map(draw, params)


@dataclass(frozen=True)
class NetworkFn:
    """A method of a network as ``fn(params, x)``; equal for equal architectures.

    Attributes:
        architecture: Of the network.
        method: "features", "early_features" or "logits".
    """

    architecture: Architecture
    method: str

    def __call__(self, params: Any, x: Array) -> Array:
        """The method's value; ``params`` is a tuple of the network's states."""
        network = nnx.merge(graphdef_of(self.architecture), *params)
        value: Array = getattr(network, self.method)(x)
        return value


class _ResidualBlock(nnx.Module):
    """``relu(x + conv(relu(conv(x))))``, the identity on maps that are not negative at first."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.first = _conv(channels, channels, 1, rngs)
        self.last = _conv(channels, channels, 1, rngs, gain=0.0)

    def __call__(self, x: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
        return nnx.relu(x + self.last(nnx.relu(self.first(x))))


class ResidualCNN(nnx.Module):
    """Convolutions with two residual blocks for uint8 images up to 64 pixels a side, or larger.

    Stride-2 stages bring the map to at most 8 x 8, an average to at most 4 x 4: with more than
    10 classes or so it is this layer, not the last, that still tells variants of a class apart.

    Args:
        shape: (H, W) or (H, W, C) of an image.
        num_classes: c.
        num_features: d.
        rngs: Not drawn from; see ``draw_weights``.
    """

    def __init__(
        self, shape: Sequence[int], num_classes: int, *, num_features: int = 96, rngs: nnx.Rngs
    ) -> None:
        colours = shape[2] if len(shape) == 3 else 1
        sides = shrunk_shape(shape)[:2]
        narrow, wide = (16, 32) if colours == 1 and max(sides) <= 32 else (24, 48)
        strides = [1] if max(sides) <= 2 * _MAX_MAP else [2]
        while -(-max(sides) // (2 * int(np.prod(strides)))) > _MAX_MAP:
            strides.append(2)
        self.mean = Constant(jnp.zeros(colours))
        self.inverse_scale = Constant(jnp.ones(colours))
        widths = [colours] + [narrow] * len(strides)
        self.stem = nnx.List(
            [_conv(widths[i], widths[i + 1], stride, rngs) for i, stride in enumerate(strides)]
        )
        self.narrow_block = _ResidualBlock(narrow, rngs=rngs)
        self.widen = _conv(narrow, wide, 2, rngs)
        self.wide_block = _ResidualBlock(wide, rngs=rngs)
        shrink = 2 * int(np.prod(strides))
        pooled = [min(-(-side // shrink), _MAX_POOL) for side in sides]
        self.dense = _dense(pooled[0] * pooled[1] * wide, num_features, rngs)
        self.head = _dense(num_features, num_classes, rngs, gain=1.0)

    def early_features(self, x: UInt8[Array, "b h w *k"]) -> Float[Array, "b d2"]:
        """The pooled map, flattened: 512 values of a 28 x 28 grey image."""
        x = shrink_images(x)
        x = x[..., None] if x.ndim == 3 else x
        x = (x.astype(jnp.float32) - self.mean[...]) * self.inverse_scale[...]
        for conv in self.stem:
            x = nnx.relu(conv(x))
        x = self.narrow_block(x)
        x = self.wide_block(nnx.relu(self.widen(x)))
        return _average_pool(x).reshape(x.shape[0], -1)

    def features(self, x: UInt8[Array, "b h w *k"]) -> Float[Array, "b d"]:
        """The layer before the logits."""
        return nnx.relu(self.dense(self.early_features(x)))

    def logits(self, x: UInt8[Array, "b h w *k"]) -> Float[Array, "b c"]:
        """Scores before the softmax."""
        return self.head(self.features(x))


class MLP(nnx.Module):
    """Two hidden layers on standardised float32 rows.

    Args:
        num_columns: Of a row.
        num_classes: c.
        widths: Of the two hidden layers; the second holds the features.
        rngs: Not drawn from; see ``draw_weights``.
    """

    def __init__(
        self,
        num_columns: int,
        num_classes: int,
        *,
        widths: tuple[int, int] = (128, 64),
        rngs: nnx.Rngs,
    ) -> None:
        self.mean = Constant(jnp.zeros(num_columns))
        self.inverse_scale = Constant(jnp.ones(num_columns))
        self.first = _dense(num_columns, widths[0], rngs)
        self.second = _dense(widths[0], widths[1], rngs)
        self.head = _dense(widths[1], num_classes, rngs, gain=1.0)

    def early_features(self, x: Float[Array, "b k"]) -> Float[Array, "b d2"]:
        """The first hidden layer."""
        x = (x.astype(jnp.float32) - self.mean[...]) * self.inverse_scale[...]
        return nnx.relu(self.first(jnp.clip(x, -_MAX_DEVIATIONS, _MAX_DEVIATIONS)))

    def features(self, x: Float[Array, "b k"]) -> Float[Array, "b d"]:
        """The layer before the logits."""
        return nnx.relu(self.second(self.early_features(x)))

    def logits(self, x: Float[Array, "b k"]) -> Float[Array, "b c"]:
        """Scores before the softmax."""
        return self.head(self.features(x))


def scaling(x: HostArray) -> tuple[HostArray, HostArray]:
    """Mean and inverse spread of each channel or column, on the host in float64.

    Args:
        x: [r, H, W], [r, H, W, C] uint8 or [r, d] float32, at least one row.

    Returns:
        (mean, inverse_scale), float32; the inverse is 0 where a column is constant, which hides it.
    """
    num_scales = 1 if x.ndim == 3 else x.shape[-1]
    cells = x.reshape(len(x), -1, num_scales)
    # By chunks: the float64 copies of all rows at once would be several times the data.
    chunks = [cells[i : i + _CHUNK_ROWS] for i in range(0, len(cells), _CHUNK_ROWS)]
    count = cells.shape[0] * cells.shape[1]
    mean = sum(chunk.sum((0, 1), dtype=np.float64) for chunk in chunks) / count
    spread = np.sqrt(sum(np.square(chunk - mean).sum((0, 1)) for chunk in chunks) / count)
    informs = spread > _CONSTANT * np.abs(mean) + np.finfo(np.float32).tiny
    inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=informs)
    return mean.astype(np.float32), inverse.astype(np.float32)


def _factors(shape: Sequence[int]) -> tuple[int, int]:
    return -(-shape[0] // MAX_PIXELS), -(-shape[1] // MAX_PIXELS)


def shrunk_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """(H, W, ...) of an image after ``shrink_images``."""
    down, across = _factors(shape)
    return (-(-shape[0] // down), -(-shape[1] // across), *shape[2:])


def shrink_images(x: UInt8[Array, "b h w *k"]) -> UInt8[Array, "b h2 w2 *k"]:
    """Averages whole squares of pixels until no side is longer than ``MAX_PIXELS``.

    Exact in integers, and it leaves what it returned alone, so images may be kept shrunk.

    Args:
        x: [b, H, W] or [b, H, W, C].

    Returns:
        [b, ceil(H / f), ceil(W / f), ...] rounded to uint8; x itself if it is small enough.
    """
    down, across = _factors(x.shape[1:])
    if down == across == 1:
        return x
    b, h, w, *rest = x.shape
    # Repeating the edge pixels completes the last squares.
    widths = ((0, 0), (0, -h % down), (0, -w % across), *[(0, 0)] * len(rest))
    x = jnp.pad(x, widths, mode="edge")
    x = x.reshape(b, x.shape[1] // down, down, x.shape[2] // across, across, *rest)
    total, area = jnp.sum(x, axis=(2, 4), dtype=jnp.int32), down * across
    return ((2 * total + area) // (2 * area)).astype(jnp.uint8)


def _average_pool(x: Float[Array, "b h w k"]) -> Float[Array, "b p q k"]:
    """Averages a map of any size down to at most 4 x 4; windows overlap where they must."""
    rows, columns = (_pool_weights(side) for side in x.shape[1:3])
    return jnp.einsum("ph,qw,bhwk->bpqk", rows, columns, x, precision=jax.lax.Precision.HIGHEST)


def _pool_weights(side: int) -> HostArray:
    size = min(side, _MAX_POOL)
    weights = np.zeros((size, side), np.float32)
    for i in range(size):
        window = slice(i * side // size, -(-(i + 1) * side // size))
        weights[i, window] = 1.0 / (window.stop - window.start)
    return weights


def _conv(
    num_in: int, num_out: int, stride: int, rngs: nnx.Rngs, *, gain: float = _RELU_GAIN
) -> nnx.Conv:
    init = nnx.initializers.constant(gain)
    return nnx.Conv(num_in, num_out, (3, 3), strides=stride, rngs=rngs, kernel_init=init)


def _dense(num_in: int, num_out: int, rngs: nnx.Rngs, *, gain: float = _RELU_GAIN) -> nnx.Linear:
    return nnx.Linear(num_in, num_out, rngs=rngs, kernel_init=nnx.initializers.constant(gain))
