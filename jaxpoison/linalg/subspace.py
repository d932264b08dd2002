"""Block subspace steps for many matrices at once, driven by passes over data."""

from __future__ import annotations

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.linalg.threads import one_thread

_LEAK = 1e-10  # of a new direction into the basis


@one_thread()
def orthonormal_rows(product: HostArray) -> HostArray:
    """Orthonormal rows that span the rows of each matrix.

    Args:
        product: [c, k, d], d >= k.

    Returns:
        [c, k, d] float64.

    **Cost**: c Householder factorisations of d x k.
    """
    q, _ = np.linalg.qr(np.swapaxes(np.asarray(product, np.float64), 1, 2))
    out: HostArray = np.ascontiguousarray(np.swapaxes(q, 1, 2))
    return out


@one_thread()
def in_span(rows: HostArray) -> HostArray:
    """Rows in coordinates of their own span, where they are fewer than their features.

    Args:
        rows: [n, d] float64.

    Returns:
        [n, min(n, d)]: the same inner products.

    **Cost**: a Householder factorisation of d x n and 2 n^2 d FLOP, nothing where n >= d.
    """
    if len(rows) >= rows.shape[1]:
        return rows
    upper = np.asarray(np.linalg.qr(rows.T, mode="r"))
    return upper.T


@one_thread()
def new_directions(basis: HostArray, block: HostArray) -> HostArray:
    """Orthonormal rows that extend each basis by what its block adds to it.

    Args:
        basis: [c, m, d] orthonormal rows.
        block: [c, k, d]; rows that the basis spans already, zeros included, become others.

    Returns:
        [c, min(k, d - m), d] float64, orthogonal to the basis.

    **Cost**: 8 m k d FLOP and c Householder factorisations of d x k; of d x (m + k) where a
    block adds less than its rows.
    """
    known, d = basis.shape[1:]
    turned = np.swapaxes(basis, 1, 2)
    rows = block[:, : d - known]
    for _ in range(2):  # the second time takes away what rounding left of the first
        norm = np.linalg.norm(rows, axis=2, keepdims=True)
        rows = rows / np.where(norm > 0, norm, 1.0)
        rows = rows - np.matmul(np.matmul(rows, turned), basis)
    new = orthonormal_rows(rows)
    # Householder's Q is orthonormal even where the columns depend on each other, but what it then
    # fills in is orthogonal to the basis only if the basis is among them
    short = np.abs(np.matmul(new, turned)).max(axis=(1, 2), initial=0.0) > _LEAK
    if short.any():
        both = np.concatenate([basis[short], rows[short]], axis=1)
        new[short] = orthonormal_rows(both)[:, known:]
    return new


@one_thread()
def rayleigh_ritz(
    basis: HostArray, product: HostArray, rank: int | None = None
) -> tuple[HostArray, HostArray, HostArray]:
    """Best eigenpairs of each symmetric matrix A inside the span of a basis.

    Args:
        basis: [c, m, d] orthonormal rows V.
        product: [c, m, d] ``V A``.
        rank: k, the number of leading pairs wanted; None for all m.

    Returns:
        Ritz values [c, k], largest first; Ritz vectors Y [c, k, d] as rows; products [c, k, d]
        ``Y A``, by rotation, without touching A.
    """
    small = np.matmul(product, np.swapaxes(basis, 1, 2))
    values, vectors = np.linalg.eigh((small + np.swapaxes(small, 1, 2)) / 2)
    rotation = np.swapaxes(vectors[:, :, ::-1], 1, 2)[:, :rank]
    return values[:, ::-1][:, :rank], np.matmul(rotation, basis), np.matmul(rotation, product)
