"""Leading directions of one covariance, alone or against another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.linalg.threads import one_thread

_DENSE = 128  # up to here a full decomposition beats a Krylov space
_OVERSAMPLE = 8
_KRYLOV_BLOCKS = 5


@one_thread()
def principal(cov: HostArray, rank: int) -> tuple[HostArray, HostArray]:
    """The leading eigenvectors of a covariance.

    Args:
        cov: [d, d] symmetric, float64.
        rank: k, at most d.

    Returns:
        Values [k], largest first, and directions [k, d] of unit length.

    **Cost**: d^3 for small d, else about ten products of the matrix with k + 8 vectors.

    Reference: Musco and Musco, 2015, arXiv:1504.05477 (block Krylov).
    """
    return _leading(lambda v: cov @ v, cov, rank, len(cov))


@one_thread()
def contrast(cov: HostArray, background: HostArray, rank: int) -> tuple[HostArray, HostArray]:
    """Directions along which one covariance exceeds another most.

    Maximises ``v^T cov v / v^T background v``: the generalised eigenvectors, scaled so that
    ``v^T background v = 1``. With the background made of the *other* classes, a trigger shows as
    variance where the others have none, however large or small its own variance is.

    Args:
        cov: [d, d] symmetric.
        background: [d, d] symmetric, positive definite (add a ridge first).
        rank: k, at most d.

    Returns:
        Ratios [k], largest first, and directions [k, d].

    Raises:
        numpy.linalg.LinAlgError: The background is not positive definite.

    **Cost**: one Cholesky factor, then as ``principal`` with two triangular solves a product.
    """
    from scipy.linalg import cholesky, solve_triangular

    lower = cholesky(background, lower=True, check_finite=False)

    def apply(v: HostArray) -> HostArray:
        inner = cov @ solve_triangular(lower, v, lower=True, trans="T", check_finite=False)
        out: HostArray = solve_triangular(lower, inner, lower=True, check_finite=False)
        return out

    dense = None
    if len(cov) <= _DENSE:
        half = solve_triangular(lower, cov, lower=True, check_finite=False)
        dense = solve_triangular(lower, half.T, lower=True, check_finite=False)
    values, vectors = _leading(apply, dense, rank, len(cov))
    back = solve_triangular(lower, vectors.T, lower=True, trans="T", check_finite=False)
    return values, np.ascontiguousarray(back.T)


def _leading(
    apply: Callable[[HostArray], HostArray], dense: HostArray | None, rank: int, size: int
) -> tuple[HostArray, HostArray]:
    """Leading eigenpairs: dense where small, else by block Krylov from a fixed start."""
    rank = min(rank, size)
    if dense is not None and size <= _DENSE:
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
        return values[::-1][:rank], _oriented(vectors[:, ::-1][:, :rank].T)
    block = min(rank + _OVERSAMPLE, size)
    start = np.random.default_rng(0).normal(size=(size, block))  # fixed: equal bits in every run
    blocks = [np.linalg.qr(start)[0]]
    while len(blocks) * block < min(_KRYLOV_BLOCKS * block, size - block):
        new = apply(blocks[-1])
        for old in blocks:
            new -= old @ (old.T @ new)
        blocks.append(np.linalg.qr(new)[0])
    basis = np.linalg.qr(np.concatenate(blocks, axis=1))[0]
    small = basis.T @ apply(basis)
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    return values[::-1][:rank], _oriented((basis @ vectors[:, ::-1][:, :rank]).T)


def _oriented(rows: HostArray) -> HostArray:
    """Eigenvectors have no sign: the largest entry is made positive."""
    top = np.abs(rows).argmax(axis=1)
    sign = np.sign(rows[np.arange(len(rows)), top])
    out: HostArray = np.ascontiguousarray(rows * np.where(sign == 0, 1.0, sign)[:, None])
    return out


@one_thread()
def fisher(within: HostArray, shift: HostArray, share: float, num_features: int) -> HostArray:
    """The direction that tells two groups best, ``(within + ridge)^-1 shift``.

    Args:
        within: [p, p] covariance within the groups, float64.
        shift: [p] of their means.
        share: As for ``ridge_of``.
        num_features: As for ``ridge_of``.

    Returns:
        [p].

    **Cost**: 2 p^3 / 3.

    Reference: Fisher, 1936.
    """
    within = within.copy()
    within.flat[:: len(within) + 1] += ridge_of(within, share, num_features)
    out: HostArray = np.linalg.solve(within, shift)
    return out


def ridge_of(cov: HostArray, share: float, num_features: int) -> float:
    """A share of the mean variance of d features, 1 where nothing varies.

    Args:
        cov: [p, p], of the features or of coordinates that hold all of their variance.
        share: Of the mean variance.
        num_features: d.
    """
    return float(share * np.trace(cov) / num_features) or 1.0
