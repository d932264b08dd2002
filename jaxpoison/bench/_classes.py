"""Kernels of the rows of a class, and of class-pure tiles."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from jaxpoison import kernels
from jaxpoison.bench._case import STEPS, Builder, Size, Work, drawn, normal, one_class
from jaxpoison.kernels._workloads import by_class

_INITS, _CLUSTERS, _NEIGHBOURS = 8, 2, 10
_SCREEN, _KEEP, _EM_STEPS = 6, 12, 50
_SWEEPS = 32  # reads of the values by a quantile
_MOST_DIRECTIONS = 20
_MOST_REFERENCES = 2048  # of each class
_EIGH = 10  # times k^3, as the kernels' docstrings count it


def _masked_quantile(size: Size) -> Work:
    x, mask = one_class(size)
    call = partial(kernels.masked_quantile, q=0.5)
    return Work(call, (x, mask), len(x), 1.0 * _SWEEPS * x.size)


def _kmeans(size: Size) -> Work:
    x, mask = one_class(size)
    m, k = x.shape
    draws = 1 - np.random.default_rng(0).random((_INITS, _CLUSTERS + k), np.float32)

    def call(x: Any, mask: Any, draws: Any) -> Any:
        return kernels.kmeans(
            x, mask, num_clusters=_CLUSTERS, num_inits=_INITS, num_steps=STEPS, draws=draws
        )

    drawing = 2 * m * k + _CLUSTERS * (3 * m * k + 2 * _SWEEPS * m)
    last = 3 * m * k * _CLUSTERS
    flops = _INITS * (STEPS * 4 * m * k * _CLUSTERS + drawing + last)
    return Work(call, (x, mask, draws), m, flops, STEPS * x.nbytes, (STEPS,))


def _silhouette(size: Size) -> Work:
    x, mask = one_class(size)
    m, k = x.shape
    call = partial(kernels.silhouette, num_clusters=_CLUSTERS)
    labels = np.arange(m, dtype=np.int32) % _CLUSTERS
    return Work(call, (x, labels, mask), m, 2.0 * m**2 * (k + 2 * _CLUSTERS))


def _trimmed_gaussian(size: Size) -> Work:
    x, mask = one_class(size)
    m, k = x.shape
    call = partial(kernels.trimmed_gaussian, keep=0.75, num_steps=STEPS)
    median = 2 * 2 * _SWEEPS * m * k
    flops = STEPS * (4 * m * k**2 + _EIGH * k**3 + 2 * _SWEEPS * m) + median
    return Work(call, (x, mask), m, flops, STEPS * x.nbytes, (STEPS,))


def _quantum_entropy_scores(size: Size) -> Work:
    x, mask = one_class(size)
    m, k = x.shape
    args = (x, mask, x.mean(axis=0), np.eye(k, dtype=np.float32))
    return Work(kernels.quantum_entropy_scores, args, m, 6 * m * k**2 + _EIGH * k**3)


def _shared_covariance_mixture(size: Size) -> Work:
    x, mask = one_class(size)
    m, k = x.shape
    starts = 4 * 2 * 2 * k
    call = partial(
        kernels.shared_covariance_mixture, num_screen=_SCREEN, num_keep=_KEEP, num_steps=_EM_STEPS
    )
    runs = starts * _SCREEN + min(_KEEP, starts) * _EM_STEPS
    flops = 4 * m * k * runs + 2 * m * k * 2 * k + 6 * m * k**2 + 2 * _EIGH * k**3
    return Work(call, (x, mask), m, flops, (_SCREEN + _EM_STEPS) * x.nbytes)


def _tiles(size: Size) -> tuple[Any, Any, Any]:
    """Class-pure tiles [tiles, t, d], the class of each, and the mask [tiles, t]."""
    x, mask = by_class(drawn(size.table))
    extra = -x.shape[1] % size.tile
    x, mask = np.pad(x, ((0, 0), (0, extra), (0, 0))), np.pad(mask, ((0, 0), (0, extra)))
    each = x.shape[1] // size.tile
    label = np.repeat(np.arange(len(x), dtype=np.int32), each)
    return x.reshape(-1, size.tile, x.shape[2]), label, mask.reshape(-1, size.tile)


def _tile_nearest_neighbours(size: Size) -> Work:
    x, label, _ = _tiles(size)
    ids = np.arange(x.shape[0] * x.shape[1], dtype=np.int32)
    reference, mask = by_class(drawn(size.table))
    reference, mask = reference[:, :_MOST_REFERENCES], mask[:, :_MOST_REFERENCES]
    reference_ids = -1 - np.arange(mask.size, dtype=np.int32).reshape(mask.shape)
    args = (x, label, ids.reshape(x.shape[:2]), reference, mask, reference_ids)
    call = partial(kernels.tile_nearest_neighbours, num_neighbours=_NEIGHBOURS)
    return Work(call, args, len(ids), 2.0 * x.size * reference.shape[1])


def _tile_sums(size: Size) -> Work:
    x, label, mask = _tiles(size)
    call = partial(kernels.tile_sums, num_classes=size.table.classes)
    return Work(call, (x, label, mask), mask.size, 2.0 * x.size)


def _tile_grams(size: Size) -> Work:
    x, label, mask = _tiles(size)
    call = partial(kernels.tile_grams, num_classes=size.table.classes)
    return Work(call, (x, label, mask), mask.size, 2.0 * x.size * x.shape[2])


def _basis(size: Size, d: int) -> tuple[Any, Any]:
    k = min(_MOST_DIRECTIONS, d)
    return normal(0, size.table.classes, k, d), normal(1, size.table.classes, k)


def _tile_project(size: Size) -> Work:
    x, label, mask = _tiles(size)
    basis, centre = _basis(size, x.shape[2])
    args = (x, label, basis, centre)
    return Work(kernels.tile_project, args, mask.size, 2.0 * x.size * basis.shape[1])


def _tile_sketch(size: Size) -> Work:
    x, label, mask = _tiles(size)
    basis, centre = _basis(size, x.shape[2])
    call = partial(kernels.tile_sketch, num_classes=size.table.classes)
    args = (x, label, mask, basis, centre)
    return Work(call, args, mask.size, 4.0 * x.size * basis.shape[1])


CASES: dict[str, Builder] = {
    "masked_quantile": _masked_quantile,
    "kmeans": _kmeans,
    "silhouette": _silhouette,
    "trimmed_gaussian": _trimmed_gaussian,
    "quantum_entropy_scores": _quantum_entropy_scores,
    "shared_covariance_mixture": _shared_covariance_mixture,
    "tile_sums": _tile_sums,
    "tile_grams": _tile_grams,
    "tile_project": _tile_project,
    "tile_sketch": _tile_sketch,
    "tile_nearest_neighbours": _tile_nearest_neighbours,
}
"""Of the rows of a class, and of tiles."""
