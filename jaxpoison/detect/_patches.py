"""Features of an input that no training made: responses to its own data's patches, or waves."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison._types import Array, HostArray
from jaxpoison.detect._detector import Key, host_rng
from jaxpoison.kernels._elementwise import cosine
from jaxpoison.linalg import one_thread
from jaxpoison.stream import Stage, Stream

MAX_SIDE = 32
"""Larger images are averaged down before anything looks at them."""

_SAMPLE_ROWS = 1000
_SAMPLE_PATCHES = 5000
_CONTRAST = 0.01  # added to a patch's variance: flat ones are not blown up to noise
_WHITENING = 0.1
_SOFT = 0.25  # responses below this count as none
_FEW_COLUMNS = 4  # tables with fewer are seen whole only


class Views(NamedTuple):
    """A stage, and which of its columns each view of the input consists of.

    Attributes:
        stage: Inputs to features [tiles, t, p].
        columns: [v, p] bool; the first view is the whole input.
    """

    stage: Stage
    columns: HostArray


def averaged_down(x: Array, max_side: int) -> Array:
    """Images [tiles, t, H, W, channels] with no side above ``max_side``: means of cells.

    The last row and column are repeated where a side is no multiple of the cell.
    """
    step = (-(-x.shape[2] // max_side), -(-x.shape[3] // max_side))
    if step == (1, 1):
        return x
    tiles, t, height, width, channels = x.shape
    pad = ((0, 0), (0, 0), (0, -height % step[0]), (0, -width % step[1]), (0, 0))
    x = jnp.pad(x, pad, mode="edge")
    x = x.reshape(
        tiles, t, x.shape[2] // step[0], step[0], x.shape[3] // step[1], step[1], channels
    )
    return x.mean(axis=(3, 5))


def _scaled(x: Array, scale: Array) -> Array:
    """Images as float32 [tiles, t, h, w, channels] of about unit range."""
    x = x.astype(jnp.float32) * scale
    return averaged_down(x[..., None] if x.ndim == 4 else x, MAX_SIDE)


def _patch_rows(params: Any, x: Array) -> Array:
    """Soft-thresholded responses to whitened patches, averaged over a grid of cells.

    One tile at a time: the feature maps of a whole shard would take gigabytes.
    """
    scale, filters, offset, rows, columns = params
    side = filters.shape[0]
    dims = ("NHWC", "HWIO", "NHWC")
    stride = (2, 2) if side > 3 else (1, 1)
    pad = [(side // 2, side // 2)] * 2
    exact = jax.lax.Precision.HIGHEST

    def respond(x: Array, weights: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x, weights, stride, pad, dimension_numbers=dims, precision=exact
        )

    def tile(x: Array) -> Array:
        ones = jnp.full((*filters.shape[:3], 1), 1.0 / np.prod(filters.shape[:3]), jnp.float32)
        mean = respond(x, ones)
        deviation = jnp.sqrt(jnp.maximum(respond(x * x, ones) - mean**2, 0.0) + _CONTRAST)
        z = respond(x, filters) - mean * filters.sum(axis=(0, 1, 2))
        z = z / deviation - offset
        sides = jnp.concatenate([jnp.maximum(z - _SOFT, 0), jnp.maximum(-z - _SOFT, 0)], axis=-1)
        pooled = jnp.einsum("gh,nhwk,qw->ngqk", rows, sides, columns, precision=exact)
        return pooled.reshape(len(x), -1)

    out: Array = jax.lax.map(tile, _scaled(x, scale))
    return out


def _wave_rows(params: Any, x: Array) -> Array:
    """``cos(x W + b)`` of standardised rows, a block of waves a view."""
    mean, scale, weights, phase = params
    x = (x.astype(jnp.float32) - mean) * scale
    angle = jnp.matmul(x, weights, precision=jax.lax.Precision.HIGHEST) + phase
    return cosine(angle)


def views_of(stream: Stream, num_features: int, grid: int, *, key: Key) -> Views:
    """The features of a stream's inputs and the partial views of them.

    Args:
        stream: Raw images (uint8) or rows.
        num_features: p, about.
        grid: Cells along each side of an image.
        key: Of the patches, waves and column groups.

    Returns:
        Images: whole, four halves and the middle. Rows: whole and six halves of the columns.

    Reference: Coates and Ng, 2011, The importance of encoding versus training with sparse coding
    and vector quantization (whitened patches as filters); Rahimi and Recht, 2007 (waves).
    """
    rng = host_rng(key)
    n = len(stream)
    sample = stream.take(np.sort(rng.permutation(n)[:_SAMPLE_ROWS]))
    if len(stream.row_shape) > 1:
        return _image_views(sample, num_features, grid, rng)
    return _row_views(sample.astype(np.float64), num_features, rng)


def _image_views(sample: HostArray, p: int, grid: int, rng: np.random.Generator) -> Views:
    scale = np.float32(1.0 / max(float(sample.max()), 1e-30))
    x = np.asarray(_scaled(sample[None], scale))[0]
    height, width, channels = x.shape[1:]
    side = 6 if min(height, width) >= 16 else min(3, height, width)
    count = max(p // (2 * grid * grid), 1)
    filters, offset = _filters(_patches(x, side, rng), count, rng)
    shaped = filters.reshape(side, side, channels, -1)
    step = 2 if side > 3 else 1
    lengths = [(s + 2 * (side // 2) - side) // step + 1 for s in (height, width)]
    pools = [_pool(length, grid) for length in lengths]
    cells = np.zeros((6, grid, grid), np.bool_)
    half = grid // 2
    cells[0], cells[1, :half], cells[2, half:] = True, True, True
    cells[3, :, :half], cells[4, :, half:], cells[5, 1:-1, 1:-1] = True, True, True
    columns = np.repeat(cells.reshape(6, -1), 2 * shaped.shape[-1], axis=1)
    stage = Stage(_patch_rows, (scale, shaped, offset, *pools))
    return Views(stage, columns)


def _pool(length: int, grid: int) -> HostArray:
    edges = np.linspace(0, length, grid + 1).round().astype(int)
    pool = np.zeros((grid, length), np.float32)
    for i in range(grid):
        stop = max(edges[i + 1], edges[i] + 1)
        pool[i, edges[i] : stop] = 1.0 / (stop - edges[i])
    return pool


def _patches(x: HostArray, side: int, rng: np.random.Generator) -> HostArray:
    """Random patches [m, side * side * channels], each centred and divided by its deviation."""
    count = _SAMPLE_PATCHES
    image = rng.integers(len(x), size=count)
    row = rng.integers(x.shape[1] - side + 1, size=count)
    column = rng.integers(x.shape[2] - side + 1, size=count)
    span = np.arange(side)
    picked = x[
        image[:, None, None],
        row[:, None, None] + span[:, None],
        column[:, None, None] + span[None],
    ]
    flat = picked.reshape(count, -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    out: HostArray = flat / np.sqrt(flat.var(axis=1, keepdims=True) + _CONTRAST)
    return out


@one_thread()
def _filters(patches: HostArray, count: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Filters [q, k] of unit length in the whitened space, and what the mean patch gives."""
    mean = patches.mean(axis=0)
    values, axes = np.linalg.eigh(np.atleast_2d(np.cov(patches.T)))
    white = (axes / np.sqrt(np.maximum(values, 0.0) + _WHITENING)) @ axes.T
    seen = (patches - mean) @ white
    length = np.linalg.norm(seen, axis=1)
    lively = np.flatnonzero(length >= np.quantile(length, 0.3))
    chosen = seen[lively[rng.permutation(len(lively))[:count]]]
    chosen /= np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
    filters = white @ chosen.T
    return filters.astype(np.float32), (mean @ filters).astype(np.float32)


def _row_views(sample: HostArray, p: int, rng: np.random.Generator) -> Views:
    mean, deviation = sample.mean(axis=0), sample.std(axis=0)
    varying = deviation > 1e-6 * max(float(deviation.max()), 1e-30)
    scale = np.where(varying, 1.0 / np.where(varying, deviation, 1.0), 0.0)
    d = len(mean)
    parts = [np.ones(d, np.bool_)]
    if d >= _FEW_COLUMNS:
        group = rng.permutation(np.arange(d) % 4)
        for pair in ((0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2)):
            parts.append(np.isin(group, pair))
    share = [p // 2] + [p // 8] * (len(parts) - 1)
    weights, blocks = [], []
    for i, (part, count) in enumerate(zip(parts, share, strict=True)):
        width = np.sqrt(max(int((part & varying).sum()), 1))
        weights.append(rng.normal(size=(d, count)) * part[:, None] / width)
        blocks.append(np.full(count, i))
    block = np.concatenate(blocks)
    phase = rng.uniform(0, 2 * np.pi, len(block))
    stage = Stage(
        _wave_rows,
        tuple(a.astype(np.float32) for a in (mean, scale, np.concatenate(weights, 1), phase)),
    )
    return Views(stage, block == np.arange(len(parts))[:, None])
