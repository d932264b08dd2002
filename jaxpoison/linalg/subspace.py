"""Block subspace steps for many matrices at once, driven by passes over data."""

from __future__ import annotations

import numpy as np

from jaxpoison._types import HostArray


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


def rayleigh_ritz(basis: HostArray, product: HostArray) -> tuple[HostArray, HostArray]:
    """Best eigenpairs of each symmetric matrix A inside the span of a basis.

    Args:
        basis: [c, k, d] orthonormal rows V.
        product: [c, k, d] ``V A``.

    Returns:
        Ritz values [c, k], largest first, and Ritz vectors [c, k, d] as rows.
    """
    small = np.einsum("ckd,cjd->ckj", product, basis)
    values, vectors = np.linalg.eigh((small + np.swapaxes(small, 1, 2)) / 2)
    rotation = np.swapaxes(vectors[:, :, ::-1], 1, 2)
    return values[:, ::-1], np.einsum("ckj,cjd->ckd", rotation, basis)
