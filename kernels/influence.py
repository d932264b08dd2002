"""Influence of training rows on a target, for any twice differentiable loss.

The trained parameters minimise ``sum_i l_i / n + damping |theta|^2 / 2``. Removing row i moves them
by ``H^-1 g_i / n`` to first order, and a target f by ``grad f^T H^-1 g_i / n``. **That is the
score: the predicted change of the target when the row is removed, in the target's units. For a
loss, positive means that it rises without the row: the row was helpful.**
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._masked import HIGHEST
from ._positive import require_positive
from .conjugate_gradients import Solution, SolveStatus, solve
from .hessian import (
    RowFn,
    WeightedLoss,
    called,
    checked_rows,
    flat_params,
    ggn_operator,
    hessian_operator,
    without_padding,
)
from .krylov import inverse_change

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float


class Influence(NamedTuple):
    """Influence of rows on targets, and how it was found; never NaN.

    Attributes:
        scores: [q, n] predicted change of the target when the row is removed; 0 for padding, for
            rows without a finite gradient, and for targets whose solve met NaN.
        is_finite: [n] bool, False for a row (not padding) whose gradient is not finite.
        solution: Solves of the targets: x [q, p], residual, steps, status.
    """

    scores: Array
    is_finite: Array
    solution: Solution


def influence(
    params: Any,
    batch: Any,
    mask: Float[Array, " n"],
    queries: Any,
    *,
    row_loss_fn: RowFn,
    damping: Float[Array, ""] | float,
    target_fn: RowFn | None = None,
    logits_fn: RowFn | None = None,
    tolerance: Float[Array, ""] | float = 1e-3,
    max_steps: int | Array = 100,
    chunk: int = 16,
) -> Influence:
    """Predicted change of each query's target when each row of the batch is removed.

    One conjugate-gradient solve a query, all at once, then one product of the Jacobian of the row
    losses with each solution: no gradient of a training row is formed.

    Args:
        params: Pytree of floating arrays, p numbers in all.
        batch: Pytree of arrays [n, ...], the training rows that make the Hessian.
        mask: [n] 1 for a row, 0 for padding.
        queries: Pytree of arrays [q, ...] for the target.
        row_loss_fn: ``fn(params, batch) -> [n]`` training loss of each row, ``fn(params, *batch)``
            for a tuple such as inputs and labels; static.
        damping: lambda of ``H + lambda I``.
        target_fn: ``fn(params, queries) -> [q]`` what is asked about, such as the probability of
            the class that was predicted; None for the loss itself. Static.
        logits_fn: ``fn(params, inputs) -> [n, c]``, where inputs are the batch, or the first of
            a tuple: solve with the Gauss-Newton matrix of
            cross-entropy, which is never negative, in place of the Hessian. Static.
        tolerance: Of the relative residual.
        max_steps: Products a query may take.
        chunk: Queries differentiated at a time; changes only memory and speed.

    Returns:
        Scores, which rows had finite gradients, and the solves.

    Raises:
        ValueError: if a function returns other shapes, params are no floats, the batch does not
            match the mask, or damping is a number that is not positive.

    **Cost**: per query and step about two gradients of the batch; q p floats and the activations
    of the whole batch are held.
    **Assumes / fails on**: trained to a minimum. A Hessian that damping does not make positive
    gives status NOT_POSITIVE: give logits_fn, or more damping.

    Reference: Koh and Liang, 2017, arXiv:1703.04730; Bae et al., 2022, arXiv:2209.05364.
    """
    require_positive(damping=damping, tolerance=tolerance)
    out: Influence = _influence(
        params, batch, mask, queries, damping, tolerance, max_steps,
        row_loss_fn, target_fn or row_loss_fn, logits_fn, chunk,
    )  # fmt: skip
    return out


@partial(jax.jit, static_argnames=("row_loss_fn", "target_fn", "logits_fn", "chunk"))
def _influence(
    params: Any, batch: Any, mask: Array, queries: Any, damping: Any, tolerance: Any,
    max_steps: Any, row_loss_fn: RowFn, target_fn: RowFn, logits_fn: RowFn | None, chunk: int,
) -> Influence:  # fmt: skip
    is_row = mask > 0
    weight = is_row / jnp.maximum(jnp.sum(is_row), 1).astype(jnp.float32)
    if logits_fn is None:
        operator = hessian_operator(WeightedLoss(row_loss_fn), params, (batch, weight), chunk)
    else:
        inputs = batch[0] if isinstance(batch, tuple) else batch
        operator = ggn_operator(logits_fn, params, inputs, weight, chunk)
    targets = _row_gradients(params, queries, target_fn, chunk)
    found = solve(operator, targets, damping, tolerance, max_steps)
    products = gradient_products(params, batch, mask, found.x, row_loss_fn=row_loss_fn, chunk=chunk)
    scores = products * weight
    is_finite = jnp.isfinite(scores)
    failed = (found.status == SolveStatus.NOT_FINITE)[:, None]
    return Influence(
        jnp.where(is_finite & ~failed, scores, 0.0), is_finite.all(axis=0) | ~is_row, found
    )


def _row_gradients(params: Any, rows: Any, fn: RowFn, chunk: int) -> Array:
    """[q, p] float32 gradients of the value of each row, one row at a time."""
    flat, unravel = flat_params(params)

    def of_row(row: Any) -> Array:
        one = jax.tree.map(lambda leaf: leaf[None], row)

        def value(vector: Array) -> Array:
            return checked_rows(called(fn, unravel(vector), one), 1, "target_fn")[0]

        out: Array = jax.grad(value)(flat).astype(jnp.float32)
        return out

    out: Array = jax.lax.map(of_row, rows, batch_size=chunk)
    return out


@partial(jax.jit, static_argnames=("row_loss_fn", "chunk"))
def gradient_products(
    params: Any,
    batch: Any,
    mask: Float[Array, " n"],
    vectors: Float[Array, "q p"],
    *,
    row_loss_fn: RowFn,
    chunk: int = 16,
) -> Float[Array, "q n"]:
    """``g_i . v_j`` for every row i and vector j, without any gradient of a row.

    The product of the Jacobian of the vector of row losses with v_j is one forward derivative.

    Args:
        params: Pytree of floating arrays, p numbers in all.
        batch: Pytree of arrays [n, ...].
        mask: [n] 1 for a row, 0 for padding, which gets 0.
        vectors: [q, p] in the order of ``jax.flatten_util.ravel_pytree(params)``.
        row_loss_fn: ``fn(params, batch) -> [n]``; static.
        chunk: Vectors worked on at a time; changes only memory and speed.

    Returns:
        [q, n] float32.

    Raises:
        ValueError: if the losses are not [n], or params or batch do not fit.

    **Cost**: one forward pass to linearise, then about one forward pass a vector.
    """
    flat, unravel = flat_params(params)
    rows = without_padding(batch, mask)

    def losses(vector: Array) -> Array:
        return checked_rows(called(row_loss_fn, unravel(vector), rows), len(mask), "row_loss_fn")

    _, push = jax.linearize(losses, flat)
    products = jax.lax.map(push, vectors.astype(flat.dtype), batch_size=chunk)
    return jnp.where(mask > 0, products.astype(jnp.float32), 0.0)


def low_rank_influence(
    query_products: Float[Array, "m q"],
    row_products: Float[Array, "m n"],
    inner_products: Float[Array, "q n"],
    values: Float[Array, " m"],
    *,
    num_rows: int | Array,
    damping: Float[Array, ""] | float,
) -> Float[Array, "q n"]:
    """Influence of all rows on all queries from m eigenvectors of the Hessian.

    ``sum_j (g_q.v_j)(g_i.v_j) (1/(L_j + lambda) - 1/lambda) / n + g_q.g_i / (lambda n)``: the
    complement of the m vectors is kept (``low_rank_inverse``).

    Args:
        query_products: [m, q] ``g_q . v_j`` from ``gradient_products``.
        row_products: [m, n] ``g_i . v_j``.
        inner_products: [q, n] ``g_q . g_i`` of whole gradients.
        values: [m] Ritz values; those that are not positive count as dropped.
        num_rows: n of the training set.
        damping: lambda > 0.

    Returns:
        [q, n] predicted change of the query's loss when the row is removed.

    Raises:
        ValueError: if damping is a number that is not positive.

    **Cost**: 2 m q n FLOP.

    Reference: Schioppa et al., 2022, arXiv:2112.03052 (without the complement).
    """
    require_positive(damping=damping)
    out: Array = _low_rank(query_products, row_products, inner_products, values, num_rows, damping)
    return out


@jax.jit
def _low_rank(a: Array, b: Array, inner: Array, values: Array, count: Any, damping: Any) -> Array:
    change = inverse_change(values, damping)
    kept = jnp.matmul((a * change[:, None]).T, b, precision=HIGHEST)
    scores = (kept + inner / damping) / count
    return jnp.where(jnp.isfinite(scores), scores, 0.0)


def low_rank_self_influence(
    row_products: Float[Array, "m n"],
    squared_norms: Float[Array, " n"],
    values: Float[Array, " m"],
    *,
    num_rows: int | Array,
    damping: Float[Array, ""] | float,
) -> Float[Array, " n"]:
    """Self-influence of every row from m eigenvectors and the norm of its gradient.

    ``(sum_j (g.v_j)^2 / (L_j + lambda) + (|g|^2 - sum_j (g.v_j)^2) / lambda) / n``.

    Args:
        row_products: [m, n] ``g_i . v_j`` from ``gradient_products``.
        squared_norms: [n] ``|g_i|^2`` of whole gradients.
        values: [m] Ritz values; those that are not positive count as dropped.
        num_rows: n of the training set.
        damping: lambda > 0.

    Returns:
        [n] not negative: predicted rise of the row's own loss when it is removed.

    Raises:
        ValueError: if damping is a number that is not positive.

    **Cost**: 3 m n FLOP beside the m forward derivatives of ``gradient_products``.
    """
    require_positive(damping=damping)
    out: Array = _low_rank_self(row_products, squared_norms, values, num_rows, damping)
    return out


@jax.jit
def _low_rank_self(b: Array, norms: Array, values: Array, count: Any, damping: Any) -> Array:
    squares = b * b * (values > 0)[:, None]
    inside = jnp.sum(squares / (jnp.maximum(values, 0.0) + damping)[:, None], axis=0)
    outside = jnp.maximum(norms - jnp.sum(squares, axis=0), 0.0) / damping
    scores = (inside + outside) / count
    return jnp.where(jnp.isfinite(scores), scores, 0.0)
