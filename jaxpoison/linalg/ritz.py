"""Eigenpairs of a large operator from a small projection of it."""

from __future__ import annotations

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.linalg.threads import one_thread


@one_thread()
def ritz_pairs(
    basis: HostArray, projected: HostArray, *, keep_negative: bool = False
) -> tuple[HostArray, HostArray]:
    """Ritz values and vectors of a symmetric operator, in float64.

    The symmetric part of the projection is decomposed, so the matrix of an Arnoldi run serves as
    well as the tridiagonal one of Lanczos.

    Args:
        basis: [k, p] orthonormal rows V.
        projected: [k, k] ``V H V^T``.
        keep_negative: Keep Ritz values below zero. Otherwise their values and vectors become
            zero, which ``kernels.low_rank_inverse`` takes as none: the shape stays.

    Returns:
        Values [k], largest first, and vectors [k, p] as rows.

    **Cost**: k^3 and 2 k^2 p FLOP.
    """
    small = np.asarray(projected, np.float64)
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    rows: HostArray = vectors.T @ np.asarray(basis, np.float64)
    if not keep_negative:
        is_kept = values > 0
        values, rows = np.where(is_kept, values, 0.0), rows * is_kept[:, None]
    return np.ascontiguousarray(values), rows
