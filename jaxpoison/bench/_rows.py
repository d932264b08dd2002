"""Kernels that search rows, learn from subsets of them, or project them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

from jaxpoison import kernels
from jaxpoison.bench._case import Builder, Size, Work, normal, table

_NEIGHBOURS = 10
_MOST_QUERIES = 2048  # of a Gram matrix that is returned whole
_MOST_COLUMNS = 256  # test rows whose distances to all training rows are held


def _nearest_neighbours(size: Size) -> Work:
    x, _, mask = table(size)
    ids = np.arange(len(x), dtype=np.int32)
    q = min(size.queries, len(x))
    call = partial(kernels.nearest_neighbours, num_neighbours=_NEIGHBOURS)
    return Work(call, (x[:q], ids[:q], x, mask, ids), q, 2.0 * q * x.size)


def _knn_shapley(size: Size) -> Work:
    x, labels, mask = table(size)
    t = size.shapley
    args = (x, labels, mask, x[:t], labels[:t], mask[:t])
    call = partial(kernels.knn_shapley, num_neighbours=_NEIGHBOURS)
    return Work(call, args, len(x), 2.0 * t * x.size)


def _knn_shapley_of_ranks(size: Size) -> Work:
    x, labels, _ = table(size)
    match = (labels == labels[: size.shapley, None]).astype(np.int32)
    call = partial(kernels.knn_shapley_of_ranks, num_neighbours=_NEIGHBOURS)
    return Work(call, (match,), len(x), 3.0 * match.size)


def _rank_keys(size: Size) -> Work:
    x, _, mask = table(size)
    return Work(
        kernels.rank_keys, (x, mask, x[: size.shapley]), len(x), 2.0 * size.shapley * x.size
    )


def _subset(size: Size) -> tuple[Any, Any, Any]:
    """Rows [r, f] of a subset, one-hot classes [r, c] and the mask."""
    x, labels, mask = table(size)
    members = np.eye(size.table.classes, dtype=np.float32)[labels]
    return x[: size.subset], members[: size.subset], mask[: size.subset]


def _gram_block(size: Size) -> Work:
    x, _, _ = table(size)
    queries = x[: min(size.queries, _MOST_QUERIES)]
    call = partial(kernels.gram_block, gamma=0.01, kernel="rbf")
    return Work(call, (x, queries), len(x), 2.0 * x.size * len(queries))


def _kernel_ridge(size: Size) -> Work:
    x, members, mask = _subset(size)
    (r, f), c = x.shape, members.shape[1]
    call = partial(kernels.kernel_ridge, gamma=0.01, regularisation=1.0, kernel="rbf")
    flops = 2 * r**2 * f + r**3 / 3 + 2 * r**2 * c
    return Work(call, (x, members, mask), r, flops)


def _own_block(size: Size) -> tuple[Any, Any, int]:
    """A block of distances [n, b], the rows [r] that a subset owns, and the bytes it reads."""
    n = size.table.rows
    block = normal(0, n, min(size.subset, _MOST_COLUMNS)) ** 2
    rows = np.random.default_rng(0).permutation(n)[: size.subset].astype(np.int32)
    return block, rows, len(rows) * block.shape[1] * 4


def _gathered_scores(size: Size) -> Work:
    gram, rows, read = _own_block(size)
    coefficients = normal(1, len(rows), size.table.classes)
    (r, c), b = coefficients.shape, gram.shape[1]
    traffic = read + coefficients.nbytes + rows.nbytes + 4 * c * b
    return Work(kernels.gathered_scores, (gram, coefficients, rows), r, 2.0 * r * b * c, traffic)


def _neighbour_counts(size: Size) -> Work:
    distance2, rows, read = _own_block(size)
    _, members, mask = _subset(size)
    (r, c), b = members.shape, distance2.shape[1]
    call = partial(kernels.neighbour_counts, num_neighbours=_NEIGHBOURS)
    traffic = read + members.nbytes + rows.nbytes + mask.nbytes + 4 * c * b
    return Work(call, (distance2, members, rows, mask), r, 2.0 * r * b * c, traffic)


def _class_means(size: Size) -> Work:
    x, members, mask = _subset(size)
    flops = 2.0 * x.size * members.shape[1]
    return Work(kernels.class_means, (x, members, mask), len(x), flops)


def _random_project(size: Size) -> Work:
    rows = normal(0, min(size.others, 128), size.flat)

    def call(rows: Any, key: Any) -> Any:
        return kernels.random_project(rows, num_features=size.features, key=key)

    return Work(call, (rows, jax.random.key(0)), len(rows), 2.0 * rows.size * size.features)


def _kronecker_project(size: Size) -> Work:
    i, o, _ = size.widths
    side = max(int(size.features**0.5), 1)
    inputs, gradients = normal(0, size.batch, 1, i), normal(1, size.batch, 1, o)

    def call(inputs: Any, gradients: Any, key: Any) -> Any:
        return kernels.kronecker_project(
            inputs, gradients, num_inputs=side, num_outputs=side, key=key
        )

    flops = 2.0 * size.batch * (i * side + o * side + side**2)
    return Work(call, (inputs, gradients, jax.random.key(0)), size.batch, flops)


def _khatri_rao_project(size: Size) -> Work:
    i, o, _ = size.widths
    inputs, gradients = normal(0, size.batch, 1, i), normal(1, size.batch, 1, o)

    def call(inputs: Any, gradients: Any, key: Any) -> Any:
        return kernels.khatri_rao_project(inputs, gradients, num_features=size.features, key=key)

    flops = 2.0 * size.batch * (i + o + 1) * size.features
    return Work(call, (inputs, gradients, jax.random.key(0)), size.batch, flops)


def _rows_product(size: Size) -> Work:
    x, _, _ = table(size)
    return Work(kernels.rows_product, (x, x), len(x), 2.0 * x.size * x.shape[1])


def _feature_gram(size: Size) -> Work:
    features = normal(0, size.table.rows, size.features)
    mask = np.ones(len(features), np.float32)
    flops = 2.0 * features.size * size.features
    return Work(kernels.feature_gram, (features, mask), len(features), flops)


def _after_kernel(size: Size) -> Work:
    n, k, q = size.table.rows, size.features, size.others
    features, mask = normal(0, n, k), np.ones(n, np.float32)
    gram = n * np.eye(k, dtype=np.float32)
    call = partial(kernels.after_kernel, damping=1e-2)
    args = (gram, np.float32(n), normal(1, q, k), features, mask)
    return Work(call, args, n, k**3 / 3 + 2 * k**2 * q + 2.0 * n * k * q)


CASES: dict[str, Builder] = {
    "nearest_neighbours": _nearest_neighbours,
    "knn_shapley": _knn_shapley,
    "knn_shapley_of_ranks": _knn_shapley_of_ranks,
    "rank_keys": _rank_keys,
    "gram_block": _gram_block,
    "kernel_ridge": _kernel_ridge,
    "gathered_scores": _gathered_scores,
    "class_means": _class_means,
    "neighbour_counts": _neighbour_counts,
    "random_project": _random_project,
    "kronecker_project": _kronecker_project,
    "khatri_rao_project": _khatri_rao_project,
    "rows_product": _rows_product,
    "feature_gram": _feature_gram,
    "after_kernel": _after_kernel,
}
"""Of rows that are searched, of subsets, and of projections."""
