"""Lanczos and Arnoldi bases, and the damped inverse that a few vectors of one give."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._masked import HIGHEST
from ._positive import require_positive
from .conjugate_gradients import Operator

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float

_BREAKDOWN = 1e-5  # of the norm before: below it float32 leaves no direction, only rounding


class Krylov(NamedTuple):
    """An orthonormal basis V of a Krylov space and the operator inside it.

    Attributes:
        basis: [k, p] V, rows are directions; zeros once the space is exhausted.
        projected: [k, k] ``V H V^T``: tridiagonal from Lanczos, Hessenberg from Arnoldi.
        remainder: [] ``|H V^T - V^T (V H V^T)|``, the norm of what leaves the space.
        is_finite: [] bool; False where a product held NaN or infinity, and all else is zero.
    """

    basis: Array
    projected: Array
    remainder: Array
    is_finite: Array


@partial(jax.jit, static_argnames=("operator", "num_vectors"))
def arnoldi(
    operator: Operator,
    operands: Any,
    start: Float[Array, " p"],
    *,
    num_vectors: int,
    key: Array,
) -> Krylov:
    """An orthonormal basis of ``span(v, H v, H^2 v, ...)`` and ``V H V^T``, all entries kept.

    Each new vector is orthogonalised against all before it, twice. Where nothing is left of it
    (a start of few eigenvectors, repeated eigenvalues) a random direction is taken on with, so
    that the basis still grows.

    Args:
        operator: ``fn(operands, v[q, p]) -> H v``; static.
        operands: Pytree of arrays for the operator.
        start: [p], not zero: a random vector, or the right-hand side that matters most.
        num_vectors: k, at most p.
        key: Of the directions taken where the space is exhausted.

    Returns:
        The basis and the projected operator; a host takes its eigenvalues in float64
        (``jaxpoison.linalg.ritz_pairs``).

    Raises:
        ValueError: if num_vectors is not in 1..p or start is not [p].

    **Cost**: k products with one vector, 8 k^2 p FLOP, k p floats held (float32, HIGHEST).
    **Assumes / fails on**: H deterministic. Ritz values inside the spectrum converge last.

    Reference: Arnoldi, 1951; Giraud et al., 2005 (twice is enough).
    """
    if start.ndim != 1 or not 1 <= num_vectors <= len(start):
        raise ValueError(
            f"num_vectors must be in 1..p for a start [p], got {num_vectors} for {start.shape}"
        )
    k, p = num_vectors, len(start)

    def step(carry: tuple[Array, Array], j: Array) -> tuple[tuple[Array, Array], Any]:
        basis, v = carry
        basis = basis.at[j].set(v)
        moved = operator(operands, v[None])[0]
        rest, coefficients = _orthogonal(basis, moved)
        norm, scale = _norm(rest), _norm(moved)
        is_exhausted = ~(norm > _BREAKDOWN * scale)

        def fresh() -> Array:
            # p vectors span everything: then nothing is left of the random one either
            drawn = jax.random.normal(jax.random.fold_in(key, j), (p,))
            left, _ = _orthogonal(basis, drawn / _norm(drawn))
            return jnp.where(_norm(left) > _BREAKDOWN, left, 0.0)

        following = jax.lax.cond(is_exhausted, fresh, lambda: rest)
        size = _norm(following)
        following = following / jnp.where(size > 0, size, 1.0)
        beta = jnp.where(is_exhausted, 0.0, norm)
        return (basis, following), (coefficients, beta)

    first = start / jnp.where(_norm(start) > 0, _norm(start), 1.0)
    (basis, _), (columns, beta) = jax.lax.scan(
        step, (jnp.zeros((k, p)), first.astype(jnp.float32)), jnp.arange(k)
    )
    # step j gives <v_i, H v_j> for i <= j, and beta_j for i = j + 1
    projected = columns.T + jnp.diag(beta[:-1], -1)
    is_finite = jnp.isfinite(projected).all() & jnp.isfinite(basis).all()
    return Krylov(
        jnp.where(is_finite, basis, 0.0),
        jnp.where(is_finite, projected, 0.0),
        jnp.where(is_finite, beta[-1], 0.0),
        is_finite,
    )


@partial(jax.jit, static_argnames=("operator", "num_vectors"))
def lanczos(
    operator: Operator,
    operands: Any,
    start: Float[Array, " p"],
    *,
    num_vectors: int,
    key: Array,
) -> Krylov:
    """As ``arnoldi`` for a symmetric operator: the projected operator is tridiagonal.

    The same full orthogonalisation; what symmetry says is zero is set to zero, and both triangles
    get the norm of the new vector, which is known to full relative precision.

    Args:
        operator: ``fn(operands, v[q, p]) -> H v``, symmetric; static.
        operands: Pytree of arrays for the operator.
        start: [p], not zero.
        num_vectors: k, at most p.
        key: Of the directions taken where the space is exhausted.

    Returns:
        The basis and the tridiagonal matrix.

    Raises:
        ValueError: if num_vectors is not in 1..p or start is not [p].

    **Cost**: as ``arnoldi``.

    Reference: Lanczos, 1950; Paige, 1976 (why the orthogonality is lost without the repeats).
    """
    found = arnoldi(operator, operands, start, num_vectors=num_vectors, key=key)
    beta = jnp.diag(found.projected, -1)
    tridiagonal = jnp.diag(jnp.diag(found.projected)) + jnp.diag(beta, 1) + jnp.diag(beta, -1)
    out: Krylov = found._replace(projected=tridiagonal)
    return out


def low_rank_inverse(
    values: Float[Array, " m"],
    vectors: Float[Array, "m p"],
    b: Float[Array, "q p"],
    *,
    damping: Float[Array, ""] | float,
) -> Float[Array, "q p"]:
    """``(V^T L V + lambda I)^-1 b = V^T (L + lambda)^-1 V b + (b - V^T V b) / lambda``.

    The second term is what makes a few vectors useful: most of a gradient lies where the Hessian
    is flat, and there the damped inverse is 1 / lambda. Without it the scores of 50 vectors hardly
    correlate with the exact ones.

    Args:
        values: [m] eigenvalues or Ritz values L; those that are not positive count as dropped.
        vectors: [m, p] orthonormal rows V; a row of zeros counts as none.
        b: [q, p].
        damping: lambda > 0.

    Returns:
        [q, p]; a row that holds NaN or infinity becomes zeros.

    Raises:
        ValueError: if damping is a number that is not positive.

    **Cost**: 4 m p q FLOP (float32, HIGHEST).
    **Assumes / fails on**: H is small beside lambda outside the span, or flat there.

    Reference: Schioppa et al., 2022, arXiv:2112.03052, which has the first term only.
    """
    require_positive(damping=damping)
    out: Array = _low_rank_inverse(values, vectors, b, damping)
    return out


@jax.jit
def _low_rank_inverse(values: Array, vectors: Array, b: Array, damping: Any) -> Array:
    values = jnp.where(jnp.isfinite(values), values, 0.0)
    change = inverse_change(values, damping)
    inner = jnp.matmul(b, vectors.T, precision=HIGHEST) * change
    out = b / damping + jnp.matmul(inner, vectors, precision=HIGHEST)
    return jnp.where(jnp.isfinite(out).all(axis=1, keepdims=True), out, 0.0)


def inverse_change(values: Float[Array, " m"], damping: Any) -> Float[Array, " m"]:
    """``1 / (L + lambda) - 1 / lambda = -L / (lambda (L + lambda))``, 0 for dropped values.

    Args:
        values: [m] L.
        damping: lambda.

    Returns:
        [m], the second form, which does not cancel for small L.
    """
    kept = jnp.maximum(values, 0.0)
    out: Array = -kept / (damping * (kept + damping))
    return out


def _orthogonal(basis: Array, v: Array) -> tuple[Array, Array]:
    """What the basis leaves of a vector, and the coefficients taken away; done twice."""
    first = jnp.matmul(basis, v, precision=HIGHEST)
    v = v - jnp.matmul(first, basis, precision=HIGHEST)
    second = jnp.matmul(basis, v, precision=HIGHEST)
    return v - jnp.matmul(second, basis, precision=HIGHEST), first + second


def _norm(v: Array) -> Array:
    return jnp.sqrt(jnp.sum(v * v))
