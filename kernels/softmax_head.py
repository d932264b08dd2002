"""Influence in a softmax head on fixed features: exact Hessian, exact enough leave-one-out.

The head has logits ``z = W x`` with W [c, d] (a column of ones among the features is its bias)
and minimises ``sum_i l_i / n + damping |W|^2 / 2`` over n rows. Taking row i out of the sum, with
n and damping kept, moves W by ``H^-1 g_i / n`` to first order, where H is the Hessian of the
objective and ``g_i = (p_i - y_i) x_i^T``. **Scores are the predicted change of a loss when the row
is removed: positive where the loss rises without it, so where the row was helpful.**
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._masked import HIGHEST, clean_rows, rows_product
from ._positive import require_positive
from .conjugate_gradients import Solution, solve
from .hessian import softmax_hessian_products

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float, Int

_HALVINGS = 12  # of a Newton step


class SoftmaxFit(NamedTuple):
    """A head where its objective is least.

    Attributes:
        weights: [c, d] float32.
        gradient: [] norm of the objective's gradient there; influence assumes it is small.
        steps: [] int32 Newton steps taken.
    """

    weights: Array
    gradient: Array
    steps: Array


def fit_softmax_head(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    mask: Float[Array, " n"],
    *,
    num_classes: int,
    damping: Float[Array, ""] | float,
    tolerance: Float[Array, ""] | float = 1e-5,
    max_steps: int = 30,
) -> SoftmaxFit:
    """Softmax regression by Newton steps whose systems conjugate gradients solve.

    Args:
        features: [n, d], of about unit scale, with a column of ones for a bias.
        labels: [n] classes 0..c-1.
        mask: [n] 1 for a row, 0 for padding.
        num_classes: c.
        damping: lambda of ``sum_i l_i / n + lambda |W|^2 / 2``.
        tolerance: Norm of the gradient to stop at; float32 reaches about 1e-6.
        max_steps: Newton steps at most.

    Returns:
        The head. The objective is convex and never rises, so it is finite on finite features.

    Raises:
        ValueError: if shapes do not fit or damping is a number that is not positive.

    **Cost**: about ten steps of some tens of products, 4 n d c FLOP each.
    """
    require_positive(damping=damping, tolerance=tolerance)
    fit: SoftmaxFit = _fit(features, labels, mask, damping, tolerance, max_steps, num_classes)
    return fit


@partial(jax.jit, static_argnames=("num_classes",))
def _fit(
    features: Array, labels: Array, mask: Array, damping: Any, tolerance: Any, max_steps: Any,
    num_classes: int,
) -> SoftmaxFit:  # fmt: skip
    x, weight = head_rows(features, mask)
    target = one_hot(labels, num_classes)

    def logits_of(weights: Array) -> Array:
        logits: Array = jnp.matmul(x, weights.T, precision=HIGHEST)
        return logits

    def objective(logits: Array, weights: Array) -> Array:
        losses = jax.nn.logsumexp(logits, axis=1) - jnp.sum(target * logits, axis=1)
        out: Array = jnp.sum(weight * losses) + damping / 2 * jnp.sum(weights * weights)
        return out

    def slope(logits: Array, weights: Array) -> tuple[Array, Array]:
        p = jax.nn.softmax(logits, axis=1)
        gradient = rows_product(weight[:, None] * (p - target), x)
        return p, gradient + damping * weights

    def norm(gradient: Array) -> Array:
        return jnp.sqrt(jnp.sum(gradient * gradient))

    def step(carry: Any) -> tuple[Array, ...]:
        weights, logits, p, gradient, count, _ = carry
        exact = jnp.minimum(1e-2, norm(gradient))  # superlinear, and few products far from the end
        found = _solve(x, p, weight, gradient[None], damping, exact, 200).x.reshape(gradient.shape)
        change = logits_of(found)
        sizes = 0.5 ** jnp.arange(_HALVINGS)
        values = jax.lax.map(lambda t: objective(logits - t * change, weights - t * found), sizes)
        before = objective(logits, weights)
        # near the end the objective is flat to its last digit: a whole step is then no worse
        is_lower = values <= before * (1 + 1e-6)
        t = jnp.where(is_lower.any(), sizes[jnp.argmax(is_lower)], 0.0)
        weights = weights - t * found
        logits = logits_of(weights)
        p, gradient = slope(logits, weights)
        return weights, logits, p, gradient, count + 1, t > 0

    start = jnp.zeros((num_classes, x.shape[1]))
    logits = logits_of(start)
    carry: Any = (start, logits, *slope(logits, start), jnp.zeros((), jnp.int32), jnp.array(True))
    last: Any = jax.lax.while_loop(
        lambda c: (norm(c[3]) > tolerance) & (c[4] < max_steps) & c[5], step, carry
    )
    weights, _, _, gradient, count, _ = last
    return SoftmaxFit(weights, norm(gradient), count)


@jax.jit
def head_gradients(
    features: Float[Array, "n d"], labels: Int[Array, " n"], weights: Float[Array, "c d"]
) -> Float[Array, "n c d"]:
    """Gradient of each row's cross-entropy, ``(p - y) x^T``: what a query asks about its loss.

    For another target, such as the logit of a class, give ``solve_head`` its gradient instead.

    Args:
        features: [n, d].
        labels: [n] classes 0..c-1.
        weights: [c, d] of the head.

    Returns:
        [n, c, d].

    **Cost**: 2 n d c FLOP, n c d floats written.
    """
    x = features.astype(jnp.float32)
    p = jax.nn.softmax(jnp.matmul(x, weights.T, precision=HIGHEST), axis=1)
    return (p - one_hot(labels, len(weights)))[:, :, None] * x[:, None, :]


def solve_head(
    features: Float[Array, "n d"],
    mask: Float[Array, " n"],
    weights: Float[Array, "c d"],
    targets: Float[Array, "q c d"],
    *,
    damping: Float[Array, ""] | float,
    tolerance: Float[Array, ""] | float = 1e-3,
    max_steps: int | Array = 200,
) -> Solution:
    """``S_q = (H + damping I)^-1 t_q`` by block conjugate gradients on the exact Hessian.

    Args:
        features: [n, d] of the training rows.
        mask: [n] 1 for a row, 0 for padding.
        weights: [c, d] of the head.
        targets: [q, c, d] gradients of whatever is asked about, such as ``head_gradients``.
        damping: lambda, that of the objective.
        tolerance: Of the relative residual; 1e-3 suffices to rank.
        max_steps: Products a target may take.

    Returns:
        Solution with x [q, c d].

    Raises:
        ValueError: if shapes do not fit or damping is a number that is not positive.

    **Cost**: steps times 4 n d c q FLOP in float32.
    """
    require_positive(damping=damping, tolerance=tolerance)
    found: Solution = _solve_head(features, mask, weights, targets, damping, tolerance, max_steps)
    return found


@jax.jit
def _solve_head(
    features: Array, mask: Array, weights: Array, targets: Array, damping: Any, tolerance: Any,
    max_steps: Any,
) -> Solution:  # fmt: skip
    x, weight = head_rows(features, mask)
    p = jax.nn.softmax(jnp.matmul(x, weights.T, precision=HIGHEST), axis=1)
    return _solve(x, p, weight, targets, damping, tolerance, max_steps)


def _solve(
    x: Array, p: Array, weight: Array, targets: Array, damping: Any, tolerance: Any, max_steps: Any
) -> Solution:
    q, c, d = targets.shape

    def product(v: Array) -> Array:
        return softmax_hessian_products(x, p, weight, v.reshape(-1, c, d)).reshape(-1, c * d)

    return solve(product, targets.reshape(q, c * d), damping, tolerance, max_steps)


def head_rows(
    features: Float[Array, "n d"], mask: Float[Array, " n"]
) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    """Float32 rows without what padding holds, and 1/n for each of the n real ones.

    Args:
        features: [n, d].
        mask: [n].

    Returns:
        Rows and weights.
    """
    x, is_row = clean_rows(features, mask)
    return x, is_row / jnp.maximum(is_row.sum(), 1.0)


def one_hot(labels: Int[Array, " n"], num_classes: int) -> Float[Array, "n c"]:
    """Float32 indicator of each row's class.

    Args:
        labels: [n].
        num_classes: c.

    Returns:
        [n, c].
    """
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
