"""The spaces a dataset is looked at in: its inputs, and layers of a network trained on it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import folds
from jaxpoison._check import DataError
from jaxpoison._types import Array, Block, Dynamics, HostArray
from jaxpoison.detect._coordinates import between_directions, coordinates
from jaxpoison.detect._patches import MAX_SIDE, averaged_down
from jaxpoison.models import Model
from jaxpoison.sources import Source, open_source
from jaxpoison.stream import Stage, Stream

if TYPE_CHECKING:
    from jaxpoison.training import Fitted

MAX_FEATURES = 1024
"""Wider rows are projected to this many random directions: second moments are dense."""

_UNLIKE_UNITS = 10.0  # spread of the features' deviations beyond which each gets its own unit
JOINT_RANK = 8  # contrast directions that each space gives to the joint one
_WIDE = 64  # features from which on distances between rows stop telling anything
_MOST_DIRECTIONS = 128  # that tell classes apart, for verification to see wide rows along
_MOST_CHANNELS = 8  # of an image that is looked at without a projection
_HELD_SHARE = 4  # layers are held in memory up to this part of the budget, then on disk

ProgressFn = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Shows no progress."""


class Space(NamedTuple):
    """One way to look at all rows.

    Attributes:
        name: "input", "features", "layer1" or "layer2".
        stream: Rows [n, d] of it.
        is_learned: Whether a network made it.
        own_units: Whether each feature of the inputs was given a unit of its own.
        dynamics: What that network said of the rows, for detectors that read it; else None.
    """

    name: str
    stream: Stream
    is_learned: bool
    dynamics: Dynamics | None = None
    own_units: bool = False


def _image_rows(params: Any, x: Array) -> Array:
    """Images [tiles, t, H, W, ...] as rows [tiles, t, d], averaged down and projected."""
    (projection,) = params
    x = x.astype(jnp.float32) / 255.0
    x = averaged_down(x[..., None] if x.ndim == 4 else x, MAX_SIDE)
    return _projected(x.reshape(*x.shape[:2], -1), projection)


def _plain_rows(params: Any, x: Array) -> Array:
    """Rows [tiles, t, d] in units of their own, projected."""
    scale, projection = params
    if isinstance(x, np.ndarray):  # on the host: one new array, not one more of the same values
        return _projected(np.multiply(x, scale, dtype=np.float32), projection)
    return _projected(x.astype(jnp.float32) * scale, projection)


def _projected(x: Array, projection: Array | None) -> Array:
    if projection is None:
        return x
    return jnp.matmul(x, projection, precision=jax.lax.Precision.HIGHEST)


def _projection(d: int, seed: int) -> HostArray | None:
    """Random directions [d, 1024] of nearly unit gain, or None where none are needed."""
    if d <= MAX_FEATURES:
        return None
    drawn = np.random.default_rng([seed, 7]).normal(size=(d, MAX_FEATURES))
    out: HostArray = (drawn / np.sqrt(MAX_FEATURES)).astype(np.float32)
    return out


def input_space(stream: Stream, source: Source, seed: int, name: str = "input") -> Space:
    """The inputs themselves as rows, brought to a common unit.

    Args:
        stream: Raw rows or images.
        source: For the schema.
        seed: Of the random projection.
        name: Of the space.
    """
    shape = source.schema.shape
    if source.schema.kind == "images":
        steps = [-(-side // MAX_SIDE) for side in shape[:2]]
        d = int(np.prod([-(-side // step) for side, step in zip(shape[:2], steps, strict=True)]))
        d *= shape[2] if len(shape) == 3 else 1
        return Space(name, stream.through(Stage(_image_rows, (_projection(d, seed),))), False)
    scale, projection = _units(stream), _projection(shape[0], seed)
    seen = stream.through(Stage(_plain_rows, (scale, projection)))
    counts, mean = folds.class_means(stream)
    folds.tell_means(seen, counts, mean * scale, matrix=projection)
    return Space(name, seen, False, own_units=bool((scale != scale[0]).any()))


def _units(stream: Stream) -> HostArray:
    """One factor for all features, or one each where their deviations are of unlike size."""
    counts, mean = folds.class_means(stream)
    squares = stream.fold(folds.FeatureSquares(mean.astype(np.float32)))
    deviation = np.sqrt(squares / max(counts.sum(), 1))
    if not np.isfinite(deviation).all():
        raise DataError(
            f"feature {int(np.argmin(np.isfinite(deviation)))} has values whose squares are beyond "
            "float32; divide the features by their size (values up to 1e15 are fine)"
        )
    varying = deviation > 1e-6 * max(float(deviation.max()), 1e-30)
    if not varying.any():
        return np.ones(len(deviation), np.float32)
    low, high = np.quantile(deviation[varying], [0.1, 0.9])
    if high <= _UNLIKE_UNITS * low:
        return np.full(len(deviation), 1.0 / deviation[varying].mean(), np.float32)
    return np.where(varying, 1.0 / np.where(varying, deviation, 1.0), 0.0).astype(np.float32)


def _layers(block: Block, model: Model) -> Array:
    """Logits, the last feature layer and the one before it, side by side."""

    def tile(x: Array) -> Array:
        parts = [model.logits(model.params, x), model.features(model.params, x)]
        if model.early_features is not None:
            parts.append(model.early_features(model.params, x))
        return jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=-1)

    # one tile at a time: a whole shard of feature maps would be a gigabyte
    layers: Array = jax.lax.map(tile, block.x).astype(jnp.float32)
    return layers


def layer_spaces(
    stream: Stream, model: Model, fitted: Fitted | None = None, folder: Path | None = None
) -> list[Space]:
    """The last two feature layers of a model, run once over all rows and held.

    Args:
        stream: Raw inputs.
        model: Any model; without early features it gives one space.
        fitted: Its training, where this scan trained it.
        folder: For layers that do not fit in memory; None makes a temporary one.
    """
    row = jnp.zeros((1, *stream.row_shape), stream.dtype)
    outputs = jax.eval_shape(model.logits, model.params, row).shape[1]
    wide = outputs + jax.eval_shape(model.features, model.params, row).shape[1]
    held = stream.map(_layers, model)
    dynamics = Dynamics(held[:, :outputs].copy())
    if fitted is not None:
        dynamics = Dynamics(
            dynamics.logits, fitted.rows, fitted.losses, fitted.margins, fitted.errors
        )
    parts = {"layer2": held[:, outputs:wide], "layer1": held[:, wide:]}
    spaces = []
    for name, part in parts.items():
        if part.shape[1] == 0:
            continue
        rows = np.ascontiguousarray(part)
        is_small = rows.nbytes <= stream.budget_bytes // _HELD_SHARE
        if is_small or not stream.runs.sees_files:
            source = open_source(rows, role="features")
        else:
            source = _in_file(rows, name, folder)
        spaces.append(Space(name, stream.of(source), True, dynamics))
    return spaces


def last_space(spaces: list[Space]) -> Space:
    """The last layer of a network where there is one, else the inputs."""
    return next((space for space in spaces if space.is_learned), spaces[0])


def joint_space(spaces: list[Space]) -> Space | None:
    """The leading contrast directions of every space side by side, or None for one space.

    What separates a little in each of several layers separates well in all of them together.
    """
    if len(spaces) < 2:
        return None
    parts = [coordinates(s.stream, "contrast", JOINT_RANK) for s in spaces]
    inner = spaces[0].stream
    source = open_source(np.concatenate(parts, axis=1), role="features")
    return Space("joint", inner.of(source), True)


def witness_stream(space: Space, source: Source) -> Stream:
    """The rows as verification should see them.

    Images and narrow tables as they are. In wide rows all distances are alike, so they are seen
    along the directions that tell the classes apart: whitened by the pooled within-class
    covariance and projected on the leading c - 1 directions of the class means (Fisher, 1936), at
    most 128.
    """
    stream = space.stream
    stage = stream.stage
    if source.schema.kind != "rows" or source.schema.shape[0] < _WIDE or stage is None:
        return stream
    counts, mean = folds.class_means(stream)
    within = folds.pooled_within(stream)
    rank = min(stream.num_classes - 1, _MOST_DIRECTIONS)
    directions = between_directions(counts, mean, within, rank)
    scale, projection = stage.params
    apart = directions.T if projection is None else projection @ directions.T
    seen = stream.behind(Stage(stage.fn, (scale, apart.astype(np.float32))))
    folds.tell_means(seen, counts, mean, within, directions.T)
    return seen


def plain_inputs(space: Space, source: Source) -> Stream:
    """The inputs as rows, images without the random projection: it spreads small triggers.

    Tables, and images of many channels, keep it: they may have any number of columns.
    """
    stage, channels = space.stream.stage, source.schema.shape[2:]
    if source.schema.kind != "images" or stage is None or max(channels, default=1) > _MOST_CHANNELS:
        return space.stream
    return space.stream.behind(Stage(stage.fn, (None,)))


def _in_file(rows: HostArray, name: str, folder: Path | None) -> Source:
    """Rows as a source that reads them back from a file; a temporary one goes with it."""
    place = folder or Path(tempfile.mkdtemp(prefix="jaxpoison-"))
    path = place / f"{name}.npy"
    np.save(path, rows)
    source = open_source(path, role="features")
    if folder is None:
        weakref.finalize(source, shutil.rmtree, place, ignore_errors=True)
    return source
