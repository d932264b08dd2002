"""Low-dimensional coordinates of each class, shared by the detectors of one stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from jaxpoison import folds
from jaxpoison._types import HostArray
from jaxpoison.linalg import contrast, orthonormal_rows, principal, rayleigh_ritz
from jaxpoison.stream import Stream

Basis = Literal["principal", "contrast", "given"]

_RIDGE = 1e-2  # of the mean variance: what the other classes never vary in must stay finite
_POOL_CLASSES = 24  # beyond this a class is too small a share of the pool to be taken out of it
_PASSES = 5
_POWERS = 1024  # rows up to which a class is padded to a power of two: compiling costs more there
_SIZES = 4  # the largest class of a group over the smallest
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

    **Cost**: two passes while per-class second moments are held, else seven; c eigenproblems.
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
        return folds.project(stream, _sketched(stream, basis, _RANK), mean)

    value: HostArray = stream.memo(("coordinates", basis), make)
    return value[:, :rank]


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
    between = np.einsum("c,ci,cj->ij", share, centred, centred)
    return contrast(between, with_ridge(within, within), rank)[1]


def _sketched(stream: Stream, basis: Basis, rank: int) -> HostArray:
    """Bases by block iteration over the rows, where per-class moments would not fit."""
    counts, mean = folds.class_means(stream)
    d = mean.shape[1]
    rank = min(rank, d)
    start = np.random.default_rng(0).normal(size=(1, min(rank + 8, d), d))
    vectors = orthonormal_rows(np.repeat(start, stream.num_classes, axis=0))
    root: HostArray | None = None
    if basis == "contrast":
        within = folds.pooled_within(stream)
        values, axes = np.linalg.eigh(with_ridge(within, within))
        root = (axes / np.sqrt(values)) @ axes.T
    for _ in range(_PASSES):
        vectors = orthonormal_rows(_applied(stream, vectors, root, mean, counts))
    product = _applied(stream, vectors, root, mean, counts)
    vectors = rayleigh_ritz(vectors, product)[1][:, :rank]
    return vectors if root is None else vectors @ root


def _applied(
    stream: Stream, vectors: HostArray, root: HostArray | None, mean: HostArray, counts: HostArray
) -> HostArray:
    """``V (R Sigma_c R)`` for every class, R the root of the inverse background (or I)."""
    if root is None:
        return folds.sketch(stream, vectors, mean, counts)
    return folds.sketch(stream, vectors @ root, mean, counts) @ root


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
    order = stream.memo("order", lambda: np.argsort(stream.labels, kind="stable"))
    first = np.concatenate([[0], np.cumsum(stream.counts)])
    left = np.flatnonzero(stream.counts >= max(min_rows, 1))
    left = left[np.argsort(-stream.counts[left], kind="stable")]
    while left.size:
        largest = stream.counts[left[0]]
        m = _padded(largest)
        least = min(-(-m // _SIZES), largest)  # the largest class is in, however small it is
        classes = np.sort(left[stream.counts[left] >= least])
        left = left[stream.counts[left] < least]
        rows = np.zeros((len(classes), m), np.int64)
        mask = np.zeros((len(classes), m), np.float32)
        for i, c in enumerate(classes):
            n = stream.counts[c]
            rows[i, :n] = order[first[c] : first[c] + n]
            mask[i, :n] = 1.0
        yield ClassGroup(classes, rows, values[rows] * mask[..., None], mask)


def _padded(n: int) -> int:
    power = 1 << max(6, int(np.ceil(np.log2(max(n, 1)))))
    return power * 3 // 4 if n <= power * 3 // 4 and power > _POWERS else power
