"""Streaming statistics shared by detectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import chunks
from jaxpoison._types import Array, Block, HostArray
from jaxpoison.kernels import rows_product, tile_grams, tile_project, tile_sketch, tile_sums
from jaxpoison.kernels._elementwise import cosine, largest
from jaxpoison.linalg import one_thread
from jaxpoison.stream import Additive, Stream

GRAM_FLOATS = 1 << 26
"""Per-class second moments are held while c * d^2 stays below this (256 MB of float32)."""

_GIVEN_FLOATS = 1 << 24  # of directions, to all tiles of a block at once

_LARGE_TILE = 64  # rows; for fewer all weights would be read again and again

_EPSILON = float(np.finfo(np.float32).eps)


class Moments(NamedTuple):
    """Mean and covariance of each class, float64 on the host.

    Attributes:
        counts: [c] rows.
        mean: [c, d].
        cov: [c, d, d] with divisor n_c, or None where c * d^2 is too large to hold.
        within: [d, d] pooled within-class covariance, divisor n; None without grams.
    """

    counts: HostArray
    mean: HostArray
    cov: HostArray | None
    within: HostArray | None


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["num_classes"])
@dataclass(frozen=True)
class ClassSums(Additive):
    """Rows and sum of rows of each class."""

    num_classes: int

    def update(self, block: Block) -> tuple[Array, Array]:
        """Counts [c] and sums [c, d] of a block."""
        return tile_sums(block.x, block.label, block.mask, num_classes=self.num_classes)


@partial(jax.tree_util.register_dataclass, data_fields=["shift"], meta_fields=["num_classes"])
@dataclass(frozen=True)
class ClassGrams(Additive):
    """Second moments of each class about its shift.

    The shift is the class mean of a first look at the data: squares of large means would
    otherwise cancel in float32.
    """

    shift: Array  # [c, d]
    num_classes: int

    def update(self, block: Block) -> tuple[Array, Array, Array]:
        """Counts [c], sums [c, d] and grams [c, d, d] of the shifted rows."""
        x = block.x - self.shift[block.label][:, None, :]
        counts, sums = tile_sums(x, block.label, block.mask, num_classes=self.num_classes)
        grams = tile_grams(x, block.label, block.mask, num_classes=self.num_classes)
        return counts, sums, grams


@partial(
    jax.tree_util.register_dataclass, data_fields=["basis", "centre"], meta_fields=["num_classes"]
)
@dataclass(frozen=True)
class ClassSketch(Additive):
    """One application of every class's covariance to its own basis."""

    basis: Array  # [c, k, d]
    centre: Array  # [c, k]
    num_classes: int

    def update(self, block: Block) -> tuple[Array, Array]:
        """Products [c, k, d] and sums [c, k] of a block."""
        return tile_sketch(
            block.x, block.label, block.mask, self.basis, self.centre, num_classes=self.num_classes
        )


def class_means(stream: Stream) -> tuple[HostArray, HostArray]:
    """Counts [c] and means [c, d] of the classes, once a stream."""

    def make() -> tuple[HostArray, HostArray]:
        counts, sums = stream.fold(ClassSums(stream.num_classes))
        return counts, sums / np.maximum(counts, 1)[:, None]

    value: tuple[HostArray, HostArray] = stream.memo("class_means", make)
    return value


@one_thread()
def tell_means(
    stream: Stream,
    counts: HostArray,
    mean: HostArray,
    within: HostArray | None = None,
    matrix: HostArray | None = None,
) -> None:
    """Tells a stream its class means, and its pooled covariance, where others follow from them.

    Args:
        stream: Rows ``x @ matrix``.
        counts: [c] rows.
        mean: [c, d] of x.
        within: [d, d] pooled within-class covariance of x, if that is known too.
        matrix: [d, k], or None for x itself.
    """
    if matrix is not None:
        mean = mean @ matrix
        within = None if within is None else matrix.T @ within @ matrix
    stream.memo("class_means", lambda: (counts, mean))
    if within is not None:
        stream.memo("pooled_within", lambda: within)


def holds_grams(num_classes: int, num_features: int) -> bool:
    """Whether per-class second moments are held, or sketched in several passes."""
    return num_classes * num_features**2 <= GRAM_FLOATS


def class_moments(stream: Stream) -> Moments:
    """Mean and covariance of each class, in two passes, once a stream.

    **Cost**: 2 n d^2 FLOP; c d^2 floats a shard on the device, c d^2 doubles on the host.
    """

    def make() -> Moments:
        counts, mean = class_means(stream)
        fold = ClassGrams(mean.astype(np.float32), stream.num_classes)
        _, rest, grams = stream.fold(fold)
        rest = rest / np.maximum(counts, 1)[:, None]  # what rounding left in the mean
        centre = fold.shift.astype(np.float64) + rest
        cov = grams / np.maximum(counts, 1)[:, None, None]
        cov -= rest[:, :, None] * rest[:, None, :]
        # below what float32 tells apart near the mean there is rounding alone, of either sign
        lost = np.diagonal(cov, axis1=1, axis2=2) <= (_EPSILON * centre) ** 2
        cov[lost[:, :, None] | lost[:, None, :]] = 0.0
        within = np.einsum("c,cij->ij", counts / max(counts.sum(), 1), cov)
        stream.memo("pooled_within", lambda: within)  # outlives the moments, and is asked again
        return Moments(counts, centre, cov, within)

    value: Moments = stream.memo("class_moments", make, lasts=False)
    return value


@partial(jax.tree_util.register_dataclass, data_fields=["mean"], meta_fields=[])
@dataclass(frozen=True)
class PooledGram(Additive):
    """Second moment of all rows about their class means."""

    mean: Array  # [c, d]

    def update(self, block: Block) -> Array:
        """Gram [d, d] of a block."""
        x = (block.x - self.mean[block.label][:, None, :]) * block.mask[..., None]
        x = x.reshape(-1, x.shape[-1])
        return rows_product(x, x)


def pooled_within(stream: Stream) -> HostArray:
    """Pooled within-class covariance [d, d], once a stream; those of the classes if they are held.

    They are then shared with the detectors that want them.
    """

    def make() -> HostArray:
        held = class_moments(stream).within if holds_grams(*class_means(stream)[1].shape) else None
        return pooled_alone(stream) if held is None else held

    value: HostArray = stream.memo("pooled_within", make)
    return value


def pooled_alone(stream: Stream) -> HostArray:
    """The same by one pass that makes no covariance of a class, once a stream."""

    def make() -> HostArray:
        counts, mean = class_means(stream)
        gram: HostArray = stream.fold(PooledGram(mean.astype(np.float32)))
        out: HostArray = gram / max(counts.sum(), 1.0)
        return out

    value: HostArray = stream.memo("pooled_alone", make)
    return value


def _project(block: Block, basis: Array, centre: Array) -> Array:
    def part(block: Block) -> Array:
        return tile_project(block.x, block.label, basis, centre)

    # every tile is given the directions of its class: of a thousand classes 400 MB a shard
    if block.mask.shape[0] * basis[0].size <= _GIVEN_FLOATS:
        return part(block)
    return chunks.map_parts(part, block)


def project(stream: Stream, basis: HostArray, mean: HostArray) -> HostArray:
    """Coordinates of every row in its class's basis: ``V_c (x - mu_c)`` [n, k].

    Args:
        stream: Rows [n, d].
        basis: [c, k, d], rows are directions.
        mean: [c, d] origin of each class.

    Returns:
        [n, k] float32, input order.
    """
    centre = np.einsum("ckd,cd->ck", basis, mean)
    return stream.map(_project, basis.astype(np.float32), centre.astype(np.float32))


def sketch(stream: Stream, basis: HostArray, mean: HostArray, counts: HostArray) -> HostArray:
    """``V_c Sigma_c`` [c, k, d] for every class, by one pass over the rows."""
    centre = np.einsum("ckd,cd->ck", basis, mean)
    fold = ClassSketch(basis.astype(np.float32), centre.astype(np.float32), stream.num_classes)
    product, sums = stream.fold(fold)
    product = product - sums[:, :, None] * mean[:, None, :]
    value: HostArray = product / np.maximum(counts, 1)[:, None, None]
    return value


@partial(jax.tree_util.register_dataclass, data_fields=["centre"], meta_fields=[])
@dataclass(frozen=True)
class SquaredNorm(Additive):
    """Sum of squared distances of all rows to a centre."""

    centre: Array  # [d]

    def update(self, block: Block) -> Array:
        """The sum over a block."""
        x = (block.x - self.centre) * block.mask[..., None]
        return (x * x).sum()


@partial(jax.tree_util.register_dataclass, data_fields=["mean"], meta_fields=[])
@dataclass(frozen=True)
class FeatureSquares(Additive):
    """Sum of squares of each feature about the class means."""

    mean: Array  # [c, d]

    def update(self, block: Block) -> Array:
        """The sums [d] over a block."""
        x = (block.x - self.mean[block.label][:, None, :]) * block.mask[..., None]
        return (x * x).sum(axis=(0, 1))


@partial(
    jax.tree_util.register_dataclass, data_fields=["centre", "weights", "phase"], meta_fields=[]
)
@dataclass(frozen=True)
class RandomFeatures:
    """Random Fourier features ``sqrt(2/p) cos((x - centre) W + b)`` and a constant 1.

    Reference: Rahimi and Recht, 2007, Random features for large-scale kernel machines.
    """

    centre: Array  # [d]
    weights: Array  # [d, p]
    phase: Array  # [p]

    def device(self, x: Array) -> Array:
        """[..., p + 1] for rows [..., d], traced."""
        angle = jnp.matmul(x - self.centre, self.weights, precision=jax.lax.Precision.HIGHEST)
        waves = cosine(angle + self.phase) * np.sqrt(2.0 / self.weights.shape[1])
        return jnp.concatenate([waves, jnp.ones_like(waves[..., :1])], axis=-1)

    def host(self, x: HostArray) -> HostArray:
        """The same in numpy, float64 out, for the few rows that the host judges."""
        waves = np.cos((x - self.centre) @ self.weights + self.phase, dtype=np.float64)
        waves *= np.sqrt(2.0 / self.weights.shape[1])
        out: HostArray = np.concatenate([waves, np.ones_like(waves[:, :1])], axis=1)
        return out


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["features"],
    meta_fields=["num_classes", "num_folds", "places"],
)
@dataclass(frozen=True)
class RidgeEquations(Additive):
    """Normal equations of one-hot regression on random features, one set a fold.

    A row belongs to fold ``place in its tile mod num_folds``: tiles are class-pure, so every class
    is split over the folds, small ones too. Only the first ``places`` rows of a tile teach, None
    for all: a share of every class.
    """

    features: RandomFeatures
    num_classes: int
    num_folds: int
    places: int | None = None

    def update(self, block: Block) -> tuple[Array, Array]:
        """Grams [folds, p, p] and targets [folds, p, c] of a block."""
        is_large = chunks.is_large(block)
        if self.places is not None:
            x, label, mask, ids = block
            x, mask, ids = (a[:, : self.places] for a in (x, mask, ids))
            block = Block(x, label, mask, ids)
        if is_large:
            return self._by_parts(block)
        phi = self.features.device(block.x) * block.mask[..., None]
        label = jax.nn.one_hot(block.label, self.num_classes)
        grams, targets = [], []
        for fold in range(self.num_folds):
            mine = phi[:, fold :: self.num_folds]
            targets.append(rows_product(mine.sum(axis=1), label))
            mine = mine.reshape(-1, mine.shape[-1])
            grams.append(rows_product(mine, mine))
        return jnp.stack(grams), jnp.stack(targets)

    def _by_parts(self, block: Block) -> tuple[Array, Array]:
        """The same; a tile's features are added to its class, not multiplied with all classes."""
        p = self.features.weights.shape[1] + 1

        def add(total: tuple[Array, Array], part: Block) -> tuple[Array, Array]:
            grams, targets = total
            phi = self.features.device(part.x) * part.mask[..., None]
            for fold in range(self.num_folds):
                mine = phi[:, fold :: self.num_folds]
                targets = targets.at[fold, part.label].add(mine.sum(axis=1))
                mine = mine.reshape(-1, p)
                gram = rows_product(mine, mine)
                grams = grams.at[fold].add(gram)
            return grams, targets

        zero = (jnp.zeros((self.num_folds, p, p)), jnp.zeros((self.num_folds, self.num_classes, p)))
        grams, targets = chunks.scan_parts(add, zero, block)
        return grams, targets.swapaxes(1, 2)


def out_of_fold_agrees(block: Block, features: RandomFeatures, weights: Array) -> Array:
    """Whether each row gets its own label from the weights [folds, p, c] of the other folds."""
    if chunks.is_large(block) or block.mask.shape[1] < _LARGE_TILE:
        return chunks.map_parts(partial(_part_agrees, features=features, weights=weights), block)

    def tile(args: tuple[Array, Array]) -> Array:
        x, label = args
        phi = features.device(x)
        agrees = jnp.zeros(len(x), jnp.bool_)
        for fold, solved in enumerate(weights):
            opinion = jnp.matmul(
                phi[fold :: len(weights)], solved, precision=jax.lax.Precision.HIGHEST
            )
            agrees = agrees.at[fold :: len(weights)].set(largest(opinion)[1] == label)
        return agrees

    return jax.lax.map(tile, (block.x, block.label))


def _part_agrees(part: Block, features: RandomFeatures, weights: Array) -> Array:
    """The same for all tiles of a part at once: weights of many classes are read once for them."""
    phi = features.device(part.x)
    agrees = jnp.zeros(part.mask.shape, jnp.bool_)
    for fold, solved in enumerate(weights):
        opinion = jnp.matmul(
            phi[:, fold :: len(weights)], solved, precision=jax.lax.Precision.HIGHEST
        )
        own = largest(opinion)[1] == part.label[:, None]
        agrees = agrees.at[:, fold :: len(weights)].set(own)
    return agrees
