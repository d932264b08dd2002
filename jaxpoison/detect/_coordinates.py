"""Low-dimensional coordinates of each class, shared by the detectors of one stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import folds
from jaxpoison._types import Array, HostArray
from jaxpoison.detect._cells import covariance_products
from jaxpoison.detect._detector import class_rows
from jaxpoison.linalg import contrast, one_thread, principal, rayleigh_ritz
from jaxpoison.stream import Stage, Stream

Basis = Literal["principal", "contrast", "given"]

_RIDGE = 1e-2  # of the mean variance: what the other classes never vary in must stay finite
_POOL_CLASSES = 24  # beyond this a class is too small a share of the pool to be taken out of it
_PASSES = 5
_POWERS = 1024  # rows up to which a class is padded to a power of two: compiling costs more there
_SIZES = 4  # the largest class of a group over the smallest
_OVERSAMPLE = 8
_SKETCH_FLOATS = 1 << 25  # of both bases of all classes; beyond it rows are projected first,
_LEAST_THIN = 48  # on at least so many directions
_GROUP_FLOATS = 1 << 25  # of the rows of a group; classes beyond it are another group
_RANK = 20  # computed once for all detectors; each takes the leading columns it wants


class ClassGroup(NamedTuple):
    """Classes of about the same size, padded to one.

    Attributes:
        classes: [g] dense class numbers.
        rows: [g, m] int64 row numbers (0 for padding).
        x: [g, m, k] float32.
        mask: [g, m] float32.
    """

    classes: HostArray
    rows: HostArray
    x: HostArray
    mask: HostArray


def coordinates(stream: Stream, basis: Basis, rank: int) -> HostArray:
    """Each row in the leading directions of its class, [n, k] float32, once a stream.

    Args:
        stream: Feature rows [n, d].
        basis: "principal": leading eigenvectors of the class covariance. "contrast": leading
            directions of the class covariance against that of the other classes. "given": the
            rows are coordinates already.
        rank: k, at most 20; fewer where d is smaller.

    Returns:
        ``V_c (x - mu_c)``.

    Raises:
        ValueError: More than 20 directions are asked for.

    **Cost**: two passes while per-class second moments are held, else nine for both bases
    together; c eigenproblems. Beyond 2^25 values of all bases the rows are first projected on fewer
    random directions.
    """
    if basis == "given":
        rows: HostArray = stream.source.read(0, len(stream))["x"]
        return rows
    if rank > _RANK:
        raise ValueError(f"rank is {rank}; at most {_RANK} directions are kept")

    def make() -> HostArray:
        _, mean = folds.class_means(stream)
        if folds.holds_grams(stream.num_classes, mean.shape[1]):
            moments = folds.class_moments(stream)
            return folds.project(stream, _bases(stream, basis, _RANK, moments), moments.mean)
        return _sketched_coordinates(stream, mean.shape[1])[basis]

    value: HostArray = stream.memo(("coordinates", basis), make)
    return value[:, :rank]


def _sketched_coordinates(stream: Stream, d: int) -> dict[str, HostArray]:
    """Coordinates [n, k] in both bases by one pass, once a stream: reading is most of a pass."""

    def make() -> dict[str, HostArray]:
        inner = _thin(stream, d)
        _, mean = folds.class_means(inner)
        bases = sketched_bases(inner)
        both = folds.project(inner, np.concatenate(list(bases.values()), axis=1), mean)
        # views, since rows in both bases are the largest thing that a scan of a table holds
        return dict(zip(bases, np.split(both, len(bases), axis=1), strict=True))

    value: dict[str, HostArray] = stream.memo("sketched_coordinates", make)
    return value


def sketched_bases(stream: Stream) -> dict[str, HostArray]:
    """The 20 leading directions [c, k, d] of each class in both bases, once a stream."""
    value: dict[str, HostArray] = stream.memo("sketched", lambda: _sketched(stream, _RANK))
    return value


def _thin(stream: Stream, d: int) -> Stream:
    """The rows, or random directions of them where two bases a class could not be held."""
    most = max(_SKETCH_FLOATS // (stream.num_classes * 2 * (_RANK + _OVERSAMPLE)), _LEAST_THIN)
    return stream if d <= most else narrowed(stream, d, most)


def narrowed(stream: Stream, d: int, k: int) -> Stream:
    """The rows of a stream [n, d] along k random directions, once a stream."""

    def make() -> Stream:
        drawn = np.random.default_rng([k, d]).normal(size=(d, k)).astype(np.float32)
        stage = Stage(_thinned, (stream.stage, drawn / np.float32(np.sqrt(d))))
        return stream.behind(stage)

    value: Stream = stream.memo(("narrowed", k), make, lasts=False)
    return value


def _thinned(params: Any, x: Array) -> Array:
    stage, projection = params
    rows = x if stage is None else stage.fn(stage.params, x)
    return jnp.matmul(rows.astype(jnp.float32), projection, precision=jax.lax.Precision.HIGHEST)


def _bases(stream: Stream, basis: Basis, rank: int, moments: folds.Moments) -> HostArray:
    cov, within = covariances(moments)
    d = cov.shape[1]
    out = np.zeros((stream.num_classes, min(rank, d), d))
    for c in np.flatnonzero(stream.counts > 1):
        if basis == "principal":
            out[c] = principal(cov[c], rank)[1]
            continue
        others = without_class(moments, int(c))
        background = with_ridge(within if others is None else others, within)
        out[c] = contrast(cov[c], background, rank)[1]
    return out


def covariances(moments: folds.Moments) -> tuple[HostArray, HostArray]:
    """Covariance of each class [c, d, d] and the pooled one [d, d], where they are held."""
    if moments.cov is None or moments.within is None:
        raise ValueError("moments without covariances")
    return moments.cov, moments.within


def without_class(moments: folds.Moments, c: int) -> HostArray | None:
    """Pooled covariance [d, d] of the other classes; None where that of all must stand for it."""
    cov, within = covariances(moments)
    count, total = moments.counts[c], moments.counts.sum()
    if len(cov) > _POOL_CLASSES or not 0 < count < total:
        return None
    share = count / total
    out: HostArray = (within - share * cov[c]) / (1.0 - share)
    return out


def with_ridge(cov: HostArray, reference: HostArray, share: float = _RIDGE) -> HostArray:
    """A covariance made safely positive definite by a share of the reference's mean variance."""
    mean = max(float(np.trace(reference)) / len(reference), 1e-30)
    return (cov + cov.T) / 2 + share * mean * np.eye(len(cov))


@one_thread()
def between_directions(
    counts: HostArray, mean: HostArray, within: HostArray, rank: int
) -> HostArray:
    """Directions [k, d] that tell the class means apart, in units of the pooled deviation.

    Args:
        counts: [c] rows.
        mean: [c, d].
        within: [d, d] pooled within-class covariance.
        rank: k, at most d.

    Reference: Fisher, 1936.
    """
    share = counts / max(counts.sum(), 1)
    centred = mean - share @ mean
    if len(counts) > _POOL_CLASSES**2:
        between = (share[:, None] * centred).T @ centred
    else:
        between = np.einsum("c,ci,cj->ij", share, centred, centred)
    return contrast(between, with_ridge(within, within), rank)[1]


def _sketched(stream: Stream, rank: int) -> dict[str, HostArray]:
    """Both bases by block iteration over the rows, where per-class moments would not fit.

    They share their passes: what a pass costs is mostly the reading.
    """
    counts, mean = folds.class_means(stream)
    c, d = mean.shape
    rank = min(rank, d)
    size = min(rank + _OVERSAMPLE, d)
    start = np.random.default_rng(0).normal(size=(1, size, d))
    within = folds.pooled_alone(stream)
    values, axes = np.linalg.eigh(with_ridge(within, within))
    root = ((axes / np.sqrt(values)) @ axes.T).astype(np.float32)
    plain = white = np.repeat(_turned_qr(start.astype(np.float32)), c, axis=0)

    def applied(plain: HostArray, white: HostArray) -> tuple[HostArray, HostArray]:
        """``V Sigma_c`` and ``W R Sigma_c R`` for every class, R the root of the inverse pool."""
        both = np.concatenate([plain, white @ root], axis=1)
        product = covariance_products(stream, both, mean, counts)
        return product[:, :size], product[:, size:] @ root

    for _ in range(_PASSES):
        plain, white = (_turned_qr(each) for each in applied(plain, white))
    once = applied(plain, white)
    return {
        "principal": rayleigh_ritz(plain, once[0], rank)[1],
        "contrast": rayleigh_ritz(white, once[1], rank)[1] @ root,
    }


@one_thread()
def _turned_qr(rows: HostArray) -> HostArray:
    """Orthonormal rows that span the rows of each matrix, in float32 as their sums are."""
    out: HostArray = np.swapaxes(np.linalg.qr(np.swapaxes(rows, 1, 2))[0], 1, 2)
    return out


def by_class(stream: Stream, values: HostArray, min_rows: int) -> Iterator[ClassGroup]:
    """Rows of each class side by side, classes of a like size together.

    Args:
        stream: Gives the labels.
        values: [n, k].
        min_rows: Smaller classes are left out.

    Yields:
        Groups padded to a power of two rows, or above 1024 to 1.5 times one. A group reaches down
        to a quarter of its largest class: padding is cheaper than another compilation.
    """
    of_class = class_rows(stream)
    left = np.flatnonzero(stream.counts >= max(min_rows, 1))
    left = left[np.argsort(-stream.counts[left], kind="stable")]
    while left.size:
        largest = stream.counts[left[0]]
        m = _padded(largest)
        least = min(-(-m // _SIZES), largest)  # the largest class is in, however small it is
        alike = left[stream.counts[left] >= least]
        alike = alike[: max(_GROUP_FLOATS // (m * values.shape[1]), 1)]
        classes, left = np.sort(alike), left[len(alike) :]
        rows = np.zeros((len(classes), m), np.int64)
        mask = np.zeros((len(classes), m), np.float32)
        for i, c in enumerate(classes):
            n = stream.counts[c]
            rows[i, :n] = of_class[c]
            mask[i, :n] = 1.0
        yield ClassGroup(classes, rows, values[rows] * mask[..., None], mask)


def _padded(n: int) -> int:
    power = 1 << max(6, int(np.ceil(np.log2(max(n, 1)))))
    return power * 3 // 4 if n <= power * 3 // 4 and power > _POWERS else power
