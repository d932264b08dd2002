"""Random projections of gradients, and scores from projected gradients.

Projections keep inner products up to a relative error of about ``1 / sqrt(k)``. The matrices are
never stored: each block of one is drawn anew from a counter, so results depend on the key alone.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._masked import HIGHEST, clean_rows, rows_product
from ._positive import require_positive

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float

_BLOCK = 1024  # rows of the matrix drawn at a time; part of what a key means
_WORD = 32


@partial(jax.jit, static_argnames=("num_features",))
def random_project(
    rows: Float[Array, "n p"], *, num_features: int, key: Array
) -> Float[Array, "n k"]:
    """``rows R / sqrt(k)`` with independent random signs R, from packed bits.

    32 signs come from one word of the counter-based generator and become floats by setting a sign
    bit; a block of R is drawn once for all rows.

    Args:
        rows: [n, p], such as gradients of rows or of a batch of them.
        num_features: k.
        key: Of R; the same key gives the same R whatever the number of rows.

    Returns:
        [n, k] float32. NaN or infinity in a row makes that row zeros.

    Raises:
        ValueError: if rows are not [n, p] or num_features is below 1.

    **Cost**: 2 n p k FLOP (float32, HIGHEST), p k / 32 random words, p k floats made and used in
    blocks of 1024 k: draw once for many rows.

    Reference: Achlioptas, 2003; Park et al., 2023, arXiv:2303.14186.
    """
    if rows.ndim != 2 or num_features < 1:
        raise ValueError(
            f"rows must be [n, p] and num_features at least 1, got {rows.shape} and {num_features}"
        )
    n, p = rows.shape
    is_finite = jnp.isfinite(rows).all(axis=1, keepdims=True)
    whole = p // _BLOCK

    def add(block: Array, total: Array) -> Array:
        part = jax.lax.dynamic_slice(rows, (0, block * _BLOCK), (n, _BLOCK))
        part = jnp.where(is_finite, part, 0).astype(jnp.float32)
        return total + jnp.matmul(part, _signs(key, block, num_features), precision=HIGHEST)

    total = jnp.zeros((n, num_features))
    if whole:
        total = jax.lax.fori_loop(0, whole, add, total)
    if p % _BLOCK:
        part = jnp.where(is_finite, rows[:, whole * _BLOCK :], 0).astype(jnp.float32)
        signs = _signs(key, whole, num_features)[: p % _BLOCK]
        total += jnp.matmul(part, signs, precision=HIGHEST)
    out: Array = total / jnp.sqrt(jnp.float32(num_features))
    return out


@partial(jax.jit, static_argnames=("num_inputs", "num_outputs"))
def kronecker_project(
    inputs: Float[Array, "b t i"],
    output_gradients: Float[Array, "b t o"],
    *,
    num_inputs: int,
    num_outputs: int,
    key: Array,
) -> Float[Array, "b k"]:
    """Projection of the gradient ``sum_t a_t d_t^T`` of a layer by ``R_i (x) R_o``, from its taps.

    ``sum_t (R_i^T a_t)(R_o^T d_t)^T``: the taps are projected, the gradient is never formed.

    Args:
        inputs: [b, t, i] inputs A of the layer.
        output_gradients: [b, t, o] gradients D of the loss at its outputs; zeros for padding.
        num_inputs: k_i.
        num_outputs: k_o.
        key: Of both random sign matrices.

    Returns:
        [b, k_i k_o] float32.

    Raises:
        ValueError: if shapes do not fit or a size is below 1.

    **Cost**: 2 t (i k_i + o k_o + k_i k_o) FLOP a row (float32, HIGHEST).

    Reference: Choe et al., 2024, arXiv:2405.13954.
    """
    _check_taps(inputs, output_gradients)
    if num_inputs < 1 or num_outputs < 1:
        raise ValueError(f"sizes must be at least 1, got {num_inputs} and {num_outputs}")
    left, right = jax.random.split(key)
    a = random_project(_flat(inputs), num_features=num_inputs, key=left)
    d = random_project(_flat(output_gradients), num_features=num_outputs, key=right)
    shape = inputs.shape[:2]
    out = rows_product(a.reshape(*shape, -1), d.reshape(*shape, -1))
    return out.reshape(len(inputs), num_inputs * num_outputs)


@partial(jax.jit, static_argnames=("num_features",))
def khatri_rao_project(
    inputs: Float[Array, "b t i"],
    output_gradients: Float[Array, "b t o"],
    *,
    num_features: int,
    key: Array,
) -> Float[Array, "b k"]:
    """Projection of the gradient ``sum_t a_t d_t^T`` of a layer by products of signs, from taps.

    Feature j is ``sum_t (r_j . a_t)(s_j . d_t) / sqrt(k)``: the gradient times the matrix of signs
    ``r_j s_j^T``, each j with its own, and never formed. ``kronecker_project`` has k_i + k_o sign
    vectors for its k_i k_o features and so loses more of the gradients: for TRAK on a small network
    these features did as well as independent signs, those of the Kronecker form did not.
    The features of several layers, each with a key of its own, may be added.

    Args:
        inputs: [b, t, i] inputs A of the layer.
        output_gradients: [b, t, o] gradients D of the loss at its outputs; zeros for padding.
        num_features: k.
        key: Of both random sign matrices.

    Returns:
        [b, k] float32.

    Raises:
        ValueError: if shapes do not fit or num_features is below 1.

    **Cost**: 2 t (i + o) k FLOP a row (float32, HIGHEST), (i + o) k signs.
    **Assumes / fails on**: the squared norm of ``a d^T`` is kept up to ``sqrt(8 / k)``, twice the
    error of independent signs.

    Reference: Sun, Guo, Tropp, Udell, 2018, arXiv:2105.00105.
    """
    _check_taps(inputs, output_gradients)
    left, right = jax.random.split(key)
    a = random_project(_flat(inputs), num_features=num_features, key=left)
    d = random_project(_flat(output_gradients), num_features=num_features, key=right)
    products = (a * d).reshape(*inputs.shape[:2], num_features)
    return jnp.sum(products, axis=1) * jnp.sqrt(jnp.float32(num_features))


@jax.jit
def feature_gram(
    features: Float[Array, "n k"], mask: Float[Array, " n"]
) -> tuple[Float[Array, "k k"], Float[Array, ""]]:
    """``sum_i phi_i phi_i^T`` and the number of rows; micro-batches add up.

    Args:
        features: [n, k] projected gradients.
        mask: [n] 1 for a row, 0 for padding.

    Returns:
        The Gram matrix and the count.

    **Cost**: 2 n k^2 FLOP (float32, HIGHEST).
    """
    rows, weight = clean_rows(features, mask)
    return rows_product(rows, rows), weight.sum()


class AfterKernel(NamedTuple):
    """Scores from projected gradients.

    Attributes:
        scores: [q, n] predicted change of the query's loss when the row is removed; 0 for padding
            and where the factor failed.
        is_positive: [] bool, False where the damped Gram matrix had no Cholesky factor.
    """

    scores: Array
    is_positive: Array


def after_kernel(
    gram: Float[Array, "k k"],
    count: Float[Array, ""] | float,
    queries: Float[Array, "q k"],
    features: Float[Array, "n k"],
    mask: Float[Array, " n"],
    *,
    damping: Float[Array, ""] | float,
) -> AfterKernel:
    """``phi_q^T (Phi^T Phi / n + lambda I)^-1 phi_i / n``: influence in the projected space.

    The mean outer product of the gradients stands for the Hessian (at a fit, the Fisher matrix).
    Solved by a Cholesky factor, never by an inverse, and lambda must be positive: the Gram matrix
    of fewer rows than features has no inverse at all.

    Args:
        gram: [k, k] ``Phi^T Phi`` over all training rows, from ``feature_gram``.
        count: n of all training rows.
        queries: [q, k] projected gradients of the query losses.
        features: [n, k] projected gradients of the rows to score.
        mask: [n] 1 for a row, 0 for padding.
        damping: lambda > 0, in the units of the Gram matrix over n.

    Returns:
        Scores, positive for a helpful row, and whether the factor exists.

    Raises:
        ValueError: if damping is a number that is not positive.

    **Cost**: k^3 / 3 + 2 k^2 q + 2 n k q FLOP.

    Reference: Park et al., 2023, arXiv:2303.14186.
    """
    require_positive(damping=damping)
    out: AfterKernel = _after_kernel(gram, count, queries, features, mask, damping)
    return out


@jax.jit
def _after_kernel(
    gram: Array, count: Any, queries: Array, features: Array, mask: Array, damping: Any
) -> AfterKernel:
    rows, _ = clean_rows(features, mask)
    lower = jnp.linalg.cholesky(gram / count + damping * jnp.eye(len(gram)))
    solved = jax.scipy.linalg.cho_solve((lower, True), queries.T.astype(jnp.float32))
    scores = jnp.matmul(solved.T, rows.T, precision=HIGHEST) / count
    scores = jnp.where(jnp.isfinite(scores) & (mask > 0), scores, 0.0)
    return AfterKernel(scores, jnp.isfinite(lower).all())


def _check_taps(inputs: Array, output_gradients: Array) -> None:
    if inputs.ndim != 3 or inputs.shape[:2] != output_gradients.shape[:2]:
        raise ValueError(
            f"inputs must be [b, t, i] and output_gradients [b, t, o], got {inputs.shape} and "
            f"{output_gradients.shape}"
        )


def _flat(taps: Array) -> Array:
    return taps.reshape(-1, taps.shape[-1])


def _signs(key: Array, block: Array | int, num_features: int) -> Array:
    """[1024, k] of +1 and -1; the bits of a word lie k / 32 columns apart."""
    words = -(-num_features // _WORD)
    bits = jax.random.bits(jax.random.fold_in(key, block), (_BLOCK, 1, words), jnp.uint32)
    shift = jnp.arange(_WORD, dtype=jnp.uint32)[:, None]
    one = jnp.uint32(0x3F800000)  # 1.0; its top bit is the sign
    signs = one | ((bits << shift) & jnp.uint32(1 << 31))
    floats = jax.lax.bitcast_convert_type(signs, jnp.float32)
    return floats.reshape(_BLOCK, _WORD * words)[:, :num_features]
