"""Conjugate gradients for many right-hand sides of one positive operator."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from ._positive import require_positive

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float

Operator: TypeAlias = Callable[[Any, Array], Array]
"""``fn(operands, v[q, p]) -> [q, p]``, linear in each row; static, so a module-level function."""

_REPLACE_AFTER = 50  # steps; by then the recursion's residual has drifted from the true one


class SolveStatus(IntEnum):
    """How the solve of one right-hand side ended."""

    SOLVED = 0
    STEP_LIMIT = 1
    NOT_POSITIVE = 2  # a direction of no or negative curvature was met
    NOT_FINITE = 3  # the right-hand side or a product held NaN or infinity


class Solution(NamedTuple):
    """Solutions of one operator for q right-hand sides; finite whatever came in.

    Attributes:
        x: [q, p]; what was reached when the status is not SOLVED, 0 where it is NOT_FINITE.
        residual: [q] true relative residual ``|b - A x| / |b|`` (0 for b = 0, 1 for x = 0).
        steps: [q] int32 products with the operator until the row stopped.
        status: [q] int32, a SolveStatus.
    """

    x: Array
    residual: Array
    steps: Array
    status: Array


class _State(NamedTuple):
    x: Array
    residual: Array
    direction: Array
    rho: Array  # [q] <r, M r>
    steps: Array  # [q]
    status: Array  # [q] STEP_LIMIT while it still runs
    is_near: Array  # [q] the recursion's residual is small enough
    step: Array  # []


def conjugate_gradients(
    operator: Operator,
    operands: Any,
    b: Float[Array, "q p"],
    *,
    damping: Float[Array, ""] | float,
    tolerance: Float[Array, ""] | float = 1e-4,
    max_steps: int | Array = 200,
    preconditioner: Operator | None = None,
) -> Solution:
    """Solves ``(H + damping I) x_j = b_j`` for every row, each by its own conjugate gradients.

    The rows share each product with H, so that it is one matrix product; a row that is done is
    masked and no longer moves. Every 50 steps, and whenever the recursion believes to be done, the
    residual is replaced by the true one, so a row counts as solved by its true residual only.

    Args:
        operator: ``fn(operands, v[q, p]) -> H v``; static.
        operands: Pytree of arrays for the operator.
        b: [q, p] right-hand sides.
        damping: lambda > 0, in the units of H.
        tolerance: Of the relative residual; 1e-3 suffices to rank, float32 reaches about 1e-6.
        max_steps: Most products a row may take.
        preconditioner: ``fn(operands, r[q, p])``, close to the inverse, symmetric positive; static.

    Returns:
        Solutions with residual, steps and status of each row.

    Raises:
        ValueError: if b is not [q, p], or damping or tolerance is a number that is not positive.

    **Cost**: steps + steps / 50 + 2 products of H with [q, p]; four blocks [q, p] held.
    **Assumes / fails on**: H symmetric. A row that meets curvature ``<d, (H + lambda I) d> <= 0``
    stops there with status NOT_POSITIVE; use the Gauss-Newton matrix or more damping.

    Reference: Hestenes and Stiefel, 1952; van der Vorst and Ye, 2000 (residual replacement).
    """
    require_positive(damping=damping, tolerance=tolerance)
    out: Solution = _jitted(operator, operands, b, damping, tolerance, max_steps, preconditioner)
    return out


@partial(jax.jit, static_argnames=("operator", "preconditioner"))
def _jitted(
    operator: Operator,
    operands: Any,
    b: Array,
    damping: Any,
    tolerance: Any,
    max_steps: Any,
    preconditioner: Operator | None,
) -> Solution:
    inner = None if preconditioner is None else partial(preconditioner, operands)
    return solve(partial(operator, operands), b, damping, tolerance, max_steps, inner)


def solve(
    apply_fn: Callable[[Array], Array],
    b: Array,
    damping: Any,
    tolerance: Any,
    max_steps: Any,
    preconditioner: Callable[[Array], Array] | None = None,
) -> Solution:
    """As ``conjugate_gradients`` for a function of vectors alone; to be used inside a jit."""
    if b.ndim != 2:
        raise ValueError(f"b must be [q, p], one right-hand side a row, got {b.shape}")
    b = b.astype(jnp.float32)
    is_finite = jnp.isfinite(b).all(axis=1)
    b = jnp.where(is_finite[:, None], b, 0.0)
    norm = jnp.sqrt(_dot(b, b))
    target = tolerance * norm
    precondition = preconditioner or (lambda r: r)

    def product(v: Array) -> Array:
        out: Array = apply_fn(v) + damping * v
        return out

    def is_running(state: _State) -> Array:
        out: Array = (state.status == SolveStatus.STEP_LIMIT) & (state.step < max_steps)
        return out

    def step(state: _State) -> _State:
        return _step(state, product, precondition, is_running(state) & ~state.is_near, target)

    def stretch(state: _State) -> _State:
        """Steps until all rows believe to be done or 50 were taken, then the true residual."""
        first = state.step
        state = jax.lax.while_loop(
            lambda s: jnp.any(is_running(s) & ~s.is_near) & (s.step < first + _REPLACE_AFTER),
            step,
            state,
        )
        return _replaced(state, b, product, precondition, is_running(state), target)

    z = precondition(b)
    done = jnp.where(is_finite, SolveStatus.SOLVED, SolveStatus.NOT_FINITE)
    state = _State(
        jnp.zeros_like(b), b, z, _dot(b, z), jnp.zeros(len(b), jnp.int32),
        jnp.where(norm > 0, SolveStatus.STEP_LIMIT, done).astype(jnp.int32),
        jnp.zeros(len(b), bool), jnp.zeros((), jnp.int32),
    )  # fmt: skip
    state = jax.lax.while_loop(lambda s: jnp.any(is_running(s)), stretch, state)
    left = jnp.sqrt(_dot(state.residual, state.residual))
    relative = jnp.where(is_finite, left / jnp.where(norm > 0, norm, 1.0), 1.0)
    return Solution(state.x, relative, state.steps, state.status)


def _step(
    state: _State,
    product: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    is_active: Array,
    target: Array,
) -> _State:
    """One step of the active rows."""
    moved = product(state.direction)
    curvature = _dot(state.direction, moved)
    # <r, d> rather than <r, M r>: an exact line search even after the residual was replaced
    slope = _dot(state.residual, state.direction)
    is_finite = jnp.isfinite(curvature) & jnp.isfinite(slope)
    moves = is_active & is_finite & (curvature > 0)
    alpha = jnp.where(moves, slope / jnp.where(moves, curvature, 1.0), 0.0)[:, None]
    x = jnp.where(moves[:, None], state.x + alpha * state.direction, state.x)
    residual = jnp.where(moves[:, None], state.residual - alpha * moved, state.residual)
    z = precondition(residual)
    rho = _dot(residual, z)
    beta = (rho / jnp.where(state.rho > 0, state.rho, 1.0))[:, None]
    direction = jnp.where(moves[:, None], z + beta * state.direction, state.direction)
    status = jnp.where(is_active & ~(curvature > 0), SolveStatus.NOT_POSITIVE, state.status)
    status = jnp.where(is_active & ~is_finite, SolveStatus.NOT_FINITE, status)
    return _State(
        jnp.where((status == SolveStatus.NOT_FINITE)[:, None], 0.0, x), residual, direction,
        jnp.where(moves, rho, state.rho), state.steps + is_active, status,
        state.is_near | (moves & (jnp.sqrt(_dot(residual, residual)) <= target)), state.step + 1,
    )  # fmt: skip


def _replaced(
    state: _State,
    b: Array,
    product: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    is_running: Array,
    target: Array,
) -> _State:
    """The true residual in place of the recursion's, which says what rows are solved."""
    residual = b - product(state.x)
    is_good = jnp.isfinite(residual).all(axis=1)
    residual = jnp.where(is_good[:, None], residual, b)
    is_solved = is_good & (jnp.sqrt(_dot(residual, residual)) <= target)
    z = precondition(residual)
    status = jnp.where(is_running & is_solved, SolveStatus.SOLVED, state.status)
    status = jnp.where(is_good, status, SolveStatus.NOT_FINITE)
    # a row whose recursion was wrong starts anew from its true residual
    direction = jnp.where(state.is_near[:, None], z, state.direction)
    x = jnp.where(is_good[:, None], state.x, 0.0)
    return state._replace(
        x=x, residual=residual, direction=direction, rho=_dot(residual, z), status=status,
        is_near=jnp.zeros_like(is_good),
    )  # fmt: skip


def _dot(a: Array, b: Array) -> Array:
    """Row by row; float32 sums of products, no matrix unit involved."""
    return jnp.sum(a * b, axis=1)
