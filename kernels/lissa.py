"""Damped inverses by stochastic steps: for operators known only through samples."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from ._positive import require_positive
from .conjugate_gradients import Operator, Solution, SolveStatus

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float

_MARGIN = 1.1  # a power iteration approaches the largest eigenvalue from below


@partial(jax.jit, static_argnames=("operator", "size", "num_steps"))
def largest_eigenvalue(
    operator: Operator, operands: Any, *, size: int, num_steps: int = 20, key: Array
) -> Float[Array, ""]:
    """The largest absolute eigenvalue of a symmetric operator, by power iteration.

    Args:
        operator: ``fn(operands, v[q, p]) -> [q, p]``; static.
        operands: Pytree of arrays for the operator.
        size: p.
        num_steps: Products; after k of them the error is at most about log(p) / (2 k).
        key: Of the random start.

    Returns:
        [] estimate from below, ``|H v|`` of the last unit vector.

    **Cost**: num_steps products with one vector.

    Reference: Kuczynski and Wozniakowski, 1992.
    """
    start = jax.random.normal(key, (1, size))

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        v, _value = carry
        moved = operator(operands, v)
        norm = jnp.sqrt(jnp.sum(moved * moved))
        return (moved / jnp.where(norm > 0, norm, 1.0), norm), None

    first = start / jnp.sqrt(jnp.sum(start * start))
    (_, value), _ = jax.lax.scan(step, (first, jnp.zeros(())), None, length=num_steps)
    return value


def lissa(
    operator: Operator,
    samples: Any,
    b: Float[Array, "q p"],
    *,
    damping: Float[Array, ""] | float,
    num_steps: int = 1000,
    num_averaged: int = 500,
    tolerance: Float[Array, ""] | float = 1e-2,
    key: Array,
) -> Solution:
    """Solves ``(H + damping I) x = b`` where H is the mean of T operators, one of them a step.

    ``x <- x + s (b - (H_t + damping I) x)`` with t drawn anew each step and
    ``s = 1 / (1.1 max_t lambda_max(H_t) + damping)`` from a power iteration on each H_t. The mean
    of the last iterates is returned: single ones keep the noise of the draws.

    ``damping`` is the lambda of ``H + lambda I`` here as everywhere in this package. Other
    libraries add theirs outside their scale: influence-release, jax-influence, pyDVL and dattri
    iterate ``x <- b + (1 - d) x - H_t x / scale``, whose fixed point over scale solves
    ``(H + d scale I) x = b``. To reproduce them, give ``damping = d * scale``: "0.01 at scale 50"
    is lambda 0.5.

    Args:
        operator: ``fn(sample, v[q, p]) -> H_t v``, each positive semi-definite; static.
        samples: Pytree of arrays [T, ...], the operands of the T operators.
        b: [q, p] right-hand sides.
        damping: lambda > 0, in the units of H.
        num_steps: Steps; about ``log(1 / error) / (s damping)`` are needed.
        num_averaged: Last iterates averaged, at most num_steps.
        tolerance: Of the relative residual, for the status only.
        key: Of the draws and of the power iteration.

    Returns:
        Solutions. The residual is that of the mean of all T operators.

    Raises:
        ValueError: if b is not [q, p] or damping is a number that is not positive.

    **Cost**: num_steps + 21 T products of one H_t with [q, p] (the power iteration with [1, p]).
    **Assumes / fails on**: where H is one deterministic operator, conjugate gradients need fewer
    products for the same error, always. A small damping needs many steps; see ``residual``.

    Reference: Agarwal, Bullins and Hazan, 2017, arXiv:1602.03943.
    """
    require_positive(damping=damping, tolerance=tolerance, num_steps=num_steps)
    if b.ndim != 2:
        raise ValueError(f"b must be [q, p], one right-hand side a row, got {b.shape}")
    num_averaged = min(max(num_averaged, 1), num_steps)
    out: Solution = _jitted(operator, samples, b, damping, tolerance, key, num_steps, num_averaged)
    return out


@partial(jax.jit, static_argnames=("operator", "num_steps", "num_averaged"))
def _jitted(
    operator: Operator,
    samples: Any,
    b: Array,
    damping: Any,
    tolerance: Any,
    key: Array,
    num_steps: int,
    num_averaged: int,
) -> Solution:
    is_finite = jnp.isfinite(b).all(axis=1)
    b = jnp.where(is_finite[:, None], b.astype(jnp.float32), 0.0)
    count = jax.tree.leaves(samples)[0].shape[0]
    power_key, draw_key = jax.random.split(key)

    def top(sample: Any) -> Array:
        out: Array = largest_eigenvalue(operator, sample, size=b.shape[1], key=power_key)
        return out

    step_size = 1.0 / (_MARGIN * jnp.max(jax.lax.map(top, samples)) + damping)

    def step(carry: tuple[Array, Array], inputs: tuple[Array, Array]) -> tuple[Any, None]:
        x, mean = carry
        which, share = inputs
        sample = jax.tree.map(lambda a: a[which], samples)
        x = x + step_size * (b - operator(sample, x) - damping * x)
        return (x, mean + share * x), None

    draws = jax.random.randint(draw_key, (num_steps,), 0, count)
    share = jnp.where(jnp.arange(num_steps) < num_steps - num_averaged, 0.0, 1.0 / num_averaged)
    zero = jnp.zeros_like(b)
    (_, x), _ = jax.lax.scan(step, (zero, zero), (draws, share))
    is_good = is_finite & jnp.isfinite(x).all(axis=1)
    x = jnp.where(is_good[:, None], x, 0.0)
    total, _ = jax.lax.scan(lambda t, s: (t + operator(s, x), None), zero, samples)
    left = b - total / count - damping * x
    norm = jnp.sqrt(jnp.sum(b * b, axis=1))
    residual = jnp.sqrt(jnp.sum(left * left, axis=1)) / jnp.where(norm > 0, norm, 1.0)
    is_good &= jnp.isfinite(residual)
    status = jnp.where(residual <= tolerance, SolveStatus.SOLVED, SolveStatus.STEP_LIMIT)
    status = jnp.where(is_good, status, SolveStatus.NOT_FINITE).astype(jnp.int32)
    steps = jnp.full(len(b), num_steps, jnp.int32)
    x = jnp.where(is_good[:, None], x, 0.0)
    return Solution(x, jnp.where(is_good, residual, 1.0), steps, status)
