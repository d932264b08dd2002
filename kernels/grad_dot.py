"""Dot products of the gradients of two sets of rows, and TracIn, from taps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from ._tap_layers import Tap, tap_inputs
from ._tap_norms import HIGHEST
from .gradient_norms import by_chunks, check_rows, gradient_norms
from .last_layer import Scored, scored
from .taps import LossFn, TapPlan, Taps, plan_taps

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float


def taps_dot(rows: Taps, others: Taps) -> Array:
    """``g_n . g'_m`` of all pairs of rows, by the taps of one plan.

    Pure and not jitted, for use on taps inside a jitted function. A layer with T = 1 needs no
    gradient: ``(A A'^T) o (D D'^T)``. A sequence or a convolution takes the cheaper of the same
    form summed over pairs of positions and the product of the formed gradients.

    Args:
        rows: Taps of n rows.
        others: Taps of m rows by the same plan.

    Returns:
        [n, m] float32.

    **Cost**: 2 n m (i + o) flop a layer for T = 1; else 2 n m T^2 (i + o), or 2 (n + m) T i o +
    2 n m i o with (n + m) i o numbers held.
    """
    total = jnp.zeros((len(rows.losses), len(others.losses)), jnp.float32)
    for tap, other in zip(rows.layers, others.layers, strict=True):
        total += _layer_dot(tap, other)
        if tap.layer.bias is not None:
            sums = (jnp.sum(t.cotangents, axis=1, dtype=jnp.float32) for t in (tap, other))
            total += _product(*sums)
    for gradient, other_gradient in zip(rows.rest, others.rest, strict=True):
        total += _product(
            gradient.reshape(len(gradient), -1), other_gradient.reshape(len(other_gradient), -1)
        )
    return total


def grad_dot(
    loss_fn: LossFn,
    params: Any,
    batch: Any,
    others: Any,
    mask: Float[Array, " n"] | None = None,
    other_mask: Float[Array, " m"] | None = None,
    *,
    chunk: int | None = None,
    trainable: Any = None,
) -> Scored:
    """``g_n . g'_m`` between the gradients of two sets of rows, without forming them for T = 1.

    Args:
        loss_fn: See ``gradient_norms``.
        params: Pytree of floating arrays.
        batch: Of n rows.
        others: Of m rows of the same shapes.
        mask: [n] positive for a row, 0 for padding, whose products are 0.
        other_mask: The same of the others, [m].
        chunk: Rows of batch taken at a time; the taps of the others are held throughout.
        trainable: Which leaves count; see ``plan_taps``.

    Returns:
        Products [n, m] and a status of each: the change of the loss of row m, per unit of learning
        rate, for want of one gradient step on row n; positive where row n was helpful.

    Raises:
        ValueError: See ``gradient_norms``; rows of the others of another shape.

    **Cost**: the taps of both sets and ``taps_dot``.

    Reference: Charpiat et al. 2019 (arXiv 2102.05262).
    """
    return tracin(
        loss_fn,
        [params],
        batch,
        others,
        mask,
        other_mask,
        learning_rates=[1.0],
        chunk=chunk,
        trainable=trainable,
    )


def tracin(
    loss_fn: LossFn,
    checkpoints: Sequence[Any],
    batch: Any,
    others: Any,
    mask: Float[Array, " n"] | None = None,
    other_mask: Float[Array, " m"] | None = None,
    *,
    learning_rates: Sequence[float],
    chunk: int | None = None,
    trainable: Any = None,
) -> Scored:
    """``sum_k eta_k g_n(k) . g'_m(k)`` over checkpoints (TracInCP).

    Args:
        loss_fn: See ``gradient_norms``.
        checkpoints: Parameters during training, alike in structure.
        batch: Of n training rows.
        others: Of m rows whose losses are to be explained.
        mask: [n] positive for a row, 0 for padding.
        other_mask: [m].
        learning_rates: Weight eta of each checkpoint: the sum of the learning rates of the steps it
            stands for, each divided by the rows of a batch if the loss was a mean.
        chunk: Rows of batch taken at a time.
        trainable: See ``plan_taps``.

    Returns:
        Scores [n, m]: the predicted change of the loss of row m when row n is removed from
        training, positive where row n was helpful; and a status of each.

    Raises:
        ValueError: See ``grad_dot``; no checkpoint, or not one finite weight for each.

    **Cost**: ``grad_dot`` for each checkpoint.
    **Assumes / fails on**: plain gradient descent; momentum and Adam make other steps.

    Reference: Pruthi, Liu, Kale, Sundararajan 2020 (arXiv 2002.08484).
    """
    _check_checkpoints(checkpoints, learning_rates)
    check_rows(batch, mask, chunk)
    check_rows(others, other_mask, None)
    plan = plan_taps(loss_fn, checkpoints[0], batch, trainable=trainable)
    total: Array | None = None
    for params, rate in zip(checkpoints, learning_rates, strict=True):
        dots = _dots(plan, params, batch, others, mask, other_mask, chunk)
        total = rate * dots if total is None else total + rate * dots
    return scored(jnp.asarray(total))


def tracin_self(
    loss_fn: LossFn,
    checkpoints: Sequence[Any],
    batch: Any,
    mask: Float[Array, " b"] | None = None,
    *,
    learning_rates: Sequence[float],
    chunk: int | None = None,
    trainable: Any = None,
) -> Scored:
    """``sum_k eta_k |g_b(k)|^2``: how much each row lowered its own loss.

    Args:
        loss_fn: See ``gradient_norms``.
        checkpoints: Parameters during training.
        batch: Of b rows.
        mask: [b] positive for a row, 0 for padding, whose score is 0.
        learning_rates: Weight of each checkpoint, see ``tracin``.
        chunk: Rows taken at a time.
        trainable: See ``plan_taps``.

    Returns:
        Scores [b] in units of the loss, not negative for weights that are not, and a status.

    Raises:
        ValueError: See ``tracin``.

    **Cost**: ``gradient_norms`` for each checkpoint.

    Reference: Pruthi, Liu, Kale, Sundararajan 2020 (arXiv 2002.08484).
    """
    _check_checkpoints(checkpoints, learning_rates)
    scores: Array | None = None
    is_finite: Any = True
    for params, rate in zip(checkpoints, learning_rates, strict=True):
        norms = gradient_norms(loss_fn, params, batch, mask, chunk=chunk, trainable=trainable)
        is_finite = is_finite & norms.is_finite
        part = rate * norms.norms**2
        scores = part if scores is None else scores + part
    traced = scored(jnp.asarray(scores))
    both = traced.is_finite & is_finite
    return Scored(jnp.where(both, traced.scores, 0.0), both)


@partial(jax.jit, static_argnums=(0, 6))
def _dots(
    plan: TapPlan, params: Any, batch: Any, others: Any, mask: Any, other_mask: Any, chunk: Any
) -> Array:
    fixed = plan(params, others, other_mask)

    def of_rows(rows: Any, mask: Any) -> Array:
        return taps_dot(plan(params, rows, mask), fixed)

    dots: Array = by_chunks(of_rows, batch, mask, chunk)
    return dots


def _layer_dot(tap: Tap, other: Tap) -> Array:
    layer, n, m = tap.layer, len(tap.cotangents), len(other.cotangents)
    t, i, o = layer.num_positions, layer.num_inputs, layer.num_outputs
    if layer.kind == "embedding":
        return _embedding_dot(tap, other)
    a, b = tap_inputs(tap), tap_inputs(other)
    d, e = tap.cotangents, other.cotangents
    if t == 1:
        return _product(a[:, 0], b[:, 0]) * _product(d[:, 0], e[:, 0])
    by_pairs, by_forming = n * m * t * t * (i + o), (n + m) * t * i * o + n * m * i * o
    if by_pairs < by_forming:
        inner = _product(a.reshape(n * t, i), b.reshape(m * t, i))
        inner *= _product(d.reshape(n * t, o), e.reshape(m * t, o))
        return inner.reshape(n, t, m, t).sum(axis=(1, 3))
    formed = (
        jnp.einsum("bti,bto->bio", *pair, precision=HIGHEST, preferred_element_type=jnp.float32)
        for pair in ((a, d), (b, e))
    )
    return _product(*(g.reshape(len(g), i * o) for g in formed))


def _embedding_dot(tap: Tap, other: Tap) -> Array:
    n, t, o = tap.cotangents.shape
    m, s, _ = other.cotangents.shape
    ids, others = tap.inputs.reshape(-1, 1), other.inputs.reshape(1, -1)
    inner = _product(tap.cotangents.reshape(n * t, o), other.cotangents.reshape(m * s, o))
    inner = jnp.where((ids == others) & (ids >= 0), inner, 0.0)
    return inner.reshape(n, t, m, s).sum(axis=(1, 3))


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y.T, precision=HIGHEST, preferred_element_type=jnp.float32)


def _check_checkpoints(checkpoints: Sequence[Any], rates: Sequence[float]) -> None:
    if not len(checkpoints) or len(checkpoints) != len(rates):
        raise ValueError(
            f"learning_rates must hold one weight for each checkpoint, got {len(rates)} for "
            f"{len(checkpoints)}"
        )
    if not all(rate == rate and abs(rate) != float("inf") for rate in rates):
        raise ValueError(f"learning_rates must be finite, got {list(rates)}")
