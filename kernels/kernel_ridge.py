"""Kernel ridge regression of many small subsets whose predictions share one Gram matrix."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
from jax import Array

from ._masked import HIGHEST, clean_rows

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float, Int

Kernel = Literal["rbf", "linear", "distance"]
_KERNELS = ("rbf", "linear", "distance")


@partial(jax.jit, static_argnames=("kernel",))
def gram_block(
    rows: Float[Array, "r f"],
    queries: Float[Array, "b f"],
    gamma: Float[Array, ""] | float,
    *,
    kernel: Kernel = "rbf",
) -> Float[Array, "r b"]:
    """A block of the Gram matrix of training rows with test rows.

    ``rbf``: ``exp(-gamma |a - b|^2)``; ``linear``: ``1 + a.b``, the 1
    being the bias; ``distance``: ``|a - b|^2``.

    At a fixed shape an entry is a function of its two rows alone, whatever their positions: every
    entry is the same sum in the same order. That is what lets one Gram matrix serve all subsets.

    Args:
        rows: [r, f].
        queries: [b, f].
        gamma: of ``rbf``; unused by the others.
        kernel: which.

    Returns:
        [r, b] float32.

    Raises:
        ValueError: if a shape is wrong or the kernel unknown.

    **Cost**: 2 r b f flop.
    **Assumes / fails on**: ``|a|^2 + |b|^2 - 2 a.b`` has the rounding of the norms, about 1e-7 of
    them: give features of similar, moderate norm.
    """
    if rows.ndim != 2 or queries.ndim != 2 or rows.shape[1] != queries.shape[1]:
        raise ValueError(
            f"rows must be [r, f] and queries [b, f], got {rows.shape} and {queries.shape}"
        )
    return _kernel_values(rows.astype(jnp.float32), queries.astype(jnp.float32), gamma, kernel)


@partial(jax.jit, static_argnames=("kernel",))
def kernel_ridge(
    x: Float[Array, "r f"],
    targets: Float[Array, "r c"],
    mask: Float[Array, " r"],
    gamma: Float[Array, ""] | float,
    regularisation: Float[Array, ""] | float,
    *,
    kernel: Kernel = "rbf",
) -> Float[Array, "r c"]:
    """Dual coefficients ``(K + lambda I)^-1 Y`` of the rows that the mask keeps.

    Padding is cut out by ``M K M + diag(lambda m + 1 - m)``: its coefficients are 0 and the others
    are those of the rows alone.

    Args:
        x: [r, f].
        targets: [r, c], such as ``onehot - 1/c``.
        mask: [r] positive for a row, 0 for padding.
        gamma: of the kernel.
        regularisation: lambda, positive.
        kernel: ``rbf`` or ``linear``.

    Returns:
        [r, c] float32, 0 for padding.

    Raises:
        ValueError: if a shape is wrong or the kernel no positive definite one.

    **Cost**: 2 r^2 f + r^3 / 3 + 2 r^2 c flop by Cholesky.
    **Assumes / fails on**: lambda above about 1e-6 of the largest eigenvalue of K; below, float32
    may find no Cholesky factor and every coefficient is NaN.

    Reference: Saunders, Gammerman and Vovk, Ridge regression learning algorithm in dual variables
    (1998).
    """
    if targets.ndim != 2 or targets.shape[0] != x.shape[0]:
        raise ValueError(f"targets must be [r, c], got {targets.shape} for x {x.shape}")
    if kernel not in ("rbf", "linear"):
        raise ValueError(f"kernel must be 'rbf' or 'linear', got {kernel!r}")
    rows, weight = clean_rows(x, mask)
    values = _kernel_values(rows, rows, gamma, kernel) * (weight[:, None] * weight)
    system = values + jnp.diag(regularisation * weight + (1 - weight))
    goal = jnp.where(weight[:, None] > 0, targets, 0).astype(jnp.float32)
    factor = jnp.linalg.cholesky(system, symmetrize_input=False)
    return jax.scipy.linalg.cho_solve((factor, True), goal)


@jax.jit
def gathered_scores(
    gram: Float[Array, "n b"], coefficients: Float[Array, "r c"], rows: Int[Array, " r"]
) -> Float[Array, "c b"]:
    """Scores ``sum_j a_j k(x_j, t)`` of one subset from the rows of a Gram matrix that it owns.

    Args:
        gram: [n, b] of all training rows with a block of test rows.
        coefficients: [r, c], 0 for padding.
        rows: [r] of ``gram``; any valid row for padding.

    Returns:
        [c, b] float32.

    Raises:
        ValueError: if a shape is wrong.

    **Cost**: r rows of b numbers read, 2 r b c flop.
    **Assumes / fails on**: finite entries in ``gram``: 0 times infinity of a padding row is NaN.
    """
    if gram.ndim != 2 or coefficients.ndim != 2 or rows.shape != coefficients.shape[:1]:
        raise ValueError(
            f"gram must be [n, b], coefficients [r, c] and rows [r], got {gram.shape}, "
            f"{coefficients.shape} and {rows.shape}"
        )
    own = jnp.take(gram, rows, axis=0, mode="clip")
    return jnp.matmul(coefficients.T, own, precision=HIGHEST)


def _kernel_values(a: Array, b: Array, gamma: Array | float, kernel: str) -> Array:
    if kernel not in _KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(_KERNELS)}, got {kernel!r}")
    product = jnp.matmul(a, b.T, precision=HIGHEST)
    if kernel == "linear":
        return 1 + product
    squares = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)
    distance2 = jnp.maximum(squares - 2 * product, 0)
    return distance2 if kernel == "distance" else jnp.exp(-gamma * distance2)
