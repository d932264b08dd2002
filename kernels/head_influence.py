"""Leave-one-out in a softmax head: exact up to one Newton step, for all rows at once.

The head minimises ``sum_i l_i / n + damping |W|^2 / 2`` (``softmax_head``). **Scores are the
predicted change of a loss when the row is removed, in nats: positive where the loss rises without
it, so where the row was helpful.** n and the damping are kept when a row goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ._masked import HIGHEST, written_transpose
from ._positive import require_positive
from .conjugate_gradients import Solution
from .softmax_head import head_rows, one_hot, solve_head

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float, Int

_CACHED_FLOATS = 1 << 18  # 1 MB
_LEVERAGE_FLOATS = 1 << 24  # of the solves that are held at a time


@jax.jit
def head_influence(
    features: Float[Array, "n d"],
    mask: Float[Array, " n"],
    weights: Float[Array, "c d"],
    residuals: Float[Array, "n c"],
    solutions: Float[Array, "q m"],
) -> Float[Array, "q n"]:
    """Predicted change of each target when each row is removed: ``<S_q x_i, r_i> / n``.

    With the plain residuals ``p - y`` this is the classical influence; with the corrected ones of
    ``head_self_influence`` it is one exact Newton step on the objective without the row.

    Args:
        features: [n, d] of the training rows.
        mask: [n] 1 for a row, 0 for padding, which gets score 0.
        weights: [c, d] of the head, for its shape.
        residuals: [n, c].
        solutions: [q, c d] from ``solve_head``.

    Returns:
        [q, n] in the units of the target (nats for a loss). Positive: the target rises without
        the row.

    **Cost**: 2 n d c q FLOP.

    Reference: Koh and Liang, 2017, arXiv:1703.04730.
    """
    x, weight = head_rows(features, mask)
    r = jnp.where((mask > 0)[:, None], residuals, 0.0) * weight[:, None]
    c, d = weights.shape

    def of_target(solution: Array) -> Array:
        u = jnp.matmul(solution.reshape(c, d), x.T, precision=HIGHEST)
        return jnp.sum(u * r.T, axis=0)

    # few at a time, so that what lies between product and sum stays in the cache
    batch = max(_CACHED_FLOATS // max(r.size, 1), 1)
    scores = jax.lax.map(of_target, solutions, batch_size=batch)
    return jnp.where(jnp.isfinite(scores), scores, 0.0)


class HeadLossInfluence(NamedTuple):
    """Predicted changes of query losses and how the solves behind them ended.

    Attributes:
        scores: [q, n] nats, 0 for padding and where the solve failed.
        solution: Of the q (c - 1) solves, class by class within a query.
    """

    scores: Array
    solution: Solution


def head_loss_influence(
    features: Float[Array, "n d"],
    mask: Float[Array, " n"],
    weights: Float[Array, "c d"],
    residuals: Float[Array, "n c"],
    queries: Float[Array, "q d"],
    query_labels: Int[Array, " q"],
    *,
    damping: Float[Array, ""] | float,
    tolerance: Float[Array, ""] | float = 1e-3,
    max_steps: int | Array = 200,
) -> HeadLossInfluence:
    """Change of each query's loss without each row, the loss evaluated rather than linearised.

    ``loss(z_q + U_q^T H^-1 U_i r_i / n) - loss(z_q)``: the influence on the query's logits (on
    their c - 1 differences, which is all that the loss sees), then the loss there. Where one row
    moves a query's logits by about one, the linear form of ``head_influence`` is off by a tenth.

    Args:
        features: [n, d] of the training rows.
        mask: [n] 1 for a row, 0 for padding, which gets score 0.
        weights: [c, d] of the head.
        residuals: [n, c]; the corrected ones of ``head_self_influence`` for leave-one-out.
        queries: [q, d] finite features.
        query_labels: [q] classes whose cross-entropy is asked about.
        damping: lambda of the objective.
        tolerance: Of the relative residuals.
        max_steps: Products a solve may take.

    Returns:
        Scores and the solves' residuals, steps and status.

    Raises:
        ValueError: if damping is a number that is not positive.

    **Cost**: q (c - 1) solves where ``head_influence`` needs q, and 2 n d c^2 q FLOP; q c n floats.
    """
    require_positive(damping=damping, tolerance=tolerance)
    out: HeadLossInfluence = _loss_influence(
        features, mask, weights, residuals, queries, query_labels, damping, tolerance, max_steps
    )
    return out


@jax.jit
def _loss_influence(
    features: Array, mask: Array, weights: Array, residuals: Array, queries: Array,
    query_labels: Array, damping: Any, tolerance: Any, max_steps: Any,
) -> HeadLossInfluence:  # fmt: skip
    c, d = weights.shape
    queries = queries.astype(jnp.float32)
    differences = jnp.eye(c)[:-1] - jnp.eye(c)[-1]
    targets = jnp.einsum("kc,qd->qkcd", differences, queries).reshape(-1, c, d)
    found = solve_head(
        features, mask, weights, targets, damping=damping, tolerance=tolerance, max_steps=max_steps
    )
    moved = head_influence(features, mask, weights, residuals, found.x)
    moved = jnp.pad(moved.reshape(len(queries), c - 1, -1), ((0, 0), (0, 1), (0, 0)))
    logits = jnp.matmul(queries, weights.T, precision=HIGHEST)[:, :, None]
    scores = _loss_change(logits, one_hot(query_labels, c)[:, :, None], moved, axis=1)
    return HeadLossInfluence(jnp.where(jnp.isfinite(scores), scores, 0.0), found)


class HeadSelfInfluence(NamedTuple):
    """What the head would say of each row had it never seen it; 0 for padding.

    Attributes:
        plain: [n] ``g_i^T H^-1 g_i / n``, nats; never negative.
        corrected: [n] loss of the row after a Newton step without it, less its loss now, nats.
        leverage: [n] ``tr(S_i M_i)``, the share of its own fit that a row has, 0 to c - 1.
        residuals: [n, c] ``p - y``.
        corrected_residuals: [n, c] ``(I - S_i M_i)^-1 (p - y)``, for ``head_influence``.
    """

    plain: Array
    corrected: Array
    leverage: Array
    residuals: Array
    corrected_residuals: Array


def head_self_influence(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    mask: Float[Array, " n"],
    weights: Float[Array, "c d"],
    *,
    damping: Float[Array, ""] | float,
) -> HeadSelfInfluence:
    """Self-influence and leave-one-out residuals of every row, with the leverage correction.

    The Hessian without row i is ``H - U S U^T / n`` with ``U = I_c (x) x_i`` and
    ``S = diag(p) - p p^T``, so a Newton step without the row moves the weights by
    ``H^-1 U (I - S M)^-1 (p - y) / n`` with ``M = U^T H^-1 U / n``, a c x c matrix. Plain influence
    has the identity for the bracket, and is too small for rows that determine their own fit.
    M is ``Z^T Z`` with ``Z = L^-1 U`` and L the Cholesky factor of H, so it is never negative.

    Args:
        features: [n, d].
        labels: [n] classes 0..c-1.
        mask: [n] 1 for a row, 0 for padding.
        weights: [c, d] of the head at its minimum (``fit_softmax_head``).
        damping: lambda of the objective.

    Returns:
        Self-influence, leverage and residuals. Where the Hessian has no Cholesky factor (NaN in
        the features) all are zero.

    Raises:
        ValueError: if damping is a number that is not positive.

    **Cost**: (n c d + c^2 d^2) c d FLOP and c^3 d^3; (c d)^2 floats. For c d up to some
    thousands; above, reduce the features first.
    **Assumes / fails on**: the head is at its minimum; one Newton step is all that is taken.

    Reference: Pregibon, 1981 (logistic regression); Rad and Maleki, 2020, arXiv:1801.10243.
    """
    require_positive(damping=damping)
    out: HeadSelfInfluence = _self_influence(features, labels, mask, weights, damping)
    return out


@jax.jit
def _self_influence(
    features: Array, labels: Array, mask: Array, weights: Array, damping: Any
) -> HeadSelfInfluence:
    c, d = weights.shape
    x, weight = head_rows(features, mask)
    logits = jnp.matmul(x, weights.T, precision=HIGHEST)
    p = jax.nn.softmax(logits, axis=1)
    target = one_hot(labels, c)
    lower = jnp.linalg.cholesky(_dense_hessian(x, p, weight, damping))
    inverse = jax.scipy.linalg.solve_triangular(lower, jnp.eye(c * d), lower=True)
    # classes first, so that no product runs over the rows of its left side: see rows_product
    blocks = inverse.reshape(c * d, c, d).swapaxes(0, 1).reshape(c * c * d, d)

    def of_row(inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        row, own_weight, z, own_p, y = inputs
        half = jnp.matmul(blocks, row, precision=HIGHEST).reshape(c, c * d)  # (L^-1 U)^T
        m = own_weight * jnp.matmul(half, half.T, precision=HIGHEST)
        r = own_p - y
        spread = jnp.diag(own_p) - jnp.outer(own_p, own_p)
        product = jnp.matmul(spread, m, precision=HIGHEST)
        corrected = jnp.linalg.solve(jnp.eye(c) - product, r)
        is_good = jnp.isfinite(corrected).all()
        corrected = jnp.where(is_good, corrected, r)  # leverage 1 to the last bit
        change = _loss_change(z, y, jnp.matmul(m, corrected, precision=HIGHEST), axis=0)
        plain = jnp.dot(r, jnp.matmul(m, r, precision=HIGHEST))
        return plain, change, jnp.trace(product), corrected

    batch = max(_LEVERAGE_FLOATS // (c * d * c), 1)
    plain, change, leverage, corrected = jax.lax.map(
        of_row, (x, weight, logits, p, target), batch_size=min(batch, len(x))
    )
    is_row = (weight > 0) & jnp.isfinite(plain) & jnp.isfinite(change)
    plain, change, leverage = (jnp.where(is_row, a, 0.0) for a in (plain, change, leverage))
    r = jnp.where(is_row[:, None], p - target, 0.0)
    corrected = jnp.where(is_row[:, None], corrected, 0.0)
    return HeadSelfInfluence(plain, change, leverage, r, corrected)


def _dense_hessian(x: Array, p: Array, weight: Array, damping: Any) -> Array:
    """[c d, c d] of the objective, one pair of classes at a time."""
    c, d = p.shape[1], x.shape[1]
    across = written_transpose(x)
    first, second = np.triu_indices(c)
    place = np.zeros((c, c), np.int32)  # of the block of a pair, in either order
    place[first, second] = place[second, first] = np.arange(len(first))

    def block(pair: tuple[Array, Array]) -> Array:
        a, b = pair
        entry = p[:, a] * ((a == b) - p[:, b])
        product: Array = jnp.matmul(across * (weight * entry), x, precision=HIGHEST)
        return product

    blocks = jax.lax.map(block, (jnp.asarray(first), jnp.asarray(second)))[place]
    hessian = blocks.transpose(0, 2, 1, 3).reshape(c * d, c * d)
    out: Array = (hessian + hessian.T) / 2 + damping * jnp.eye(c * d)
    return out


def _loss_change(logits: Array, target: Array, moved: Array, axis: int) -> Array:
    """``log sum_k p_k exp(m_k - m_y)``: cross-entropy at ``logits + moved`` less that at logits.

    Never the difference of two losses, which for a confident row is nothing but rounding.
    """
    moved = moved - jnp.sum(target * moved, axis=axis, keepdims=True)
    log_p = jax.nn.log_softmax(logits, axis=axis)
    near = jnp.log1p(jnp.sum(jnp.exp(log_p) * jnp.expm1(jnp.clip(moved, -1.0, 1.0)), axis=axis))
    far = jax.nn.logsumexp(log_p + moved, axis=axis)
    return jnp.where(jnp.max(jnp.abs(moved), axis=axis) <= 1.0, near, far)
