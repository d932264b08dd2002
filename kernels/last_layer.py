"""Gradients of a softmax head in closed form, from logits and features alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float, Int

_HIGHEST = jax.lax.Precision.HIGHEST


class Scored(NamedTuple):
    """Scores and whether they could be computed.

    Attributes:
        scores: float32; 0 where ``is_finite`` is False.
        is_finite: Same shape, bool; False for a score that was not a finite number. Such a score
            has no rank: decide on it by this flag.
    """

    scores: Array
    is_finite: Array


def scored(values: Array) -> Scored:
    """Values with a status in the place of numbers that are not finite."""
    is_finite = jnp.isfinite(values)
    return Scored(jnp.where(is_finite, values, 0.0), is_finite)


def softmax_errors(
    logits: Float[Array, "b c"], labels: Int[Array, " b"], mask: Float[Array, " b"] | None = None
) -> Float[Array, "b c"]:
    """``p - y``: the gradient of the cross-entropy in the logits.

    Args:
        logits: [b, c].
        labels: [b] classes 0..c-1; a label outside has no ``y``.
        mask: [b] positive for a row, 0 for padding, whose error is 0.

    Returns:
        [b, c] float32.

    **Cost**: one pass over the logits, 2 b c numbers.
    """
    errors = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    errors -= jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return errors if mask is None else jnp.where(jnp.asarray(mask)[:, None] > 0, errors, 0.0)


@jax.jit
def el2n(
    logits: Float[Array, "b c"], labels: Int[Array, " b"], mask: Float[Array, " b"] | None = None
) -> Scored:
    """``|softmax(z) - onehot(y)|_2`` of each row.

    Args:
        logits: [b, c].
        labels: [b] classes 0..c-1.
        mask: [b] positive for a row, 0 for padding.

    Returns:
        [b] between 0 and sqrt(2), and a status of each.

    **Cost**: one pass over the logits.

    Reference: Paul, Ganguli, Dziugaite 2021 (arXiv 2107.07075).
    """
    return scored(_norm(softmax_errors(logits, labels, mask)))


@jax.jit
def grand_last_layer(
    features: Float[Array, "b d"],
    logits: Float[Array, "b c"],
    labels: Int[Array, " b"],
    mask: Float[Array, " b"] | None = None,
) -> Scored:
    """``|p - y| sqrt(|h|^2 + 1)``: norm of the gradient in the head's weight and bias.

    Args:
        features: [b, d] inputs h of the head.
        logits: [b, c] its outputs.
        labels: [b] classes 0..c-1.
        mask: [b] positive for a row, 0 for padding.

    Returns:
        [b] in units of the loss per unit of the parameters, and a status of each.

    **Cost**: one pass over features and logits.

    Reference: Paul, Ganguli, Dziugaite 2021 (arXiv 2107.07075).
    """
    h = features.astype(jnp.float32)
    h = h if mask is None else jnp.where(jnp.asarray(mask)[:, None] > 0, h, 0.0)
    return scored(_norm(softmax_errors(logits, labels, mask)) * jnp.sqrt(jnp.sum(h * h, -1) + 1.0))


@jax.jit
def tracin_last_layer(
    features: Float[Array, "n d"],
    errors: Float[Array, "n c"],
    other_features: Float[Array, "m d"],
    other_errors: Float[Array, "m c"],
) -> Scored:
    """``(h . h' + 1) ((p - y) . (p' - y'))``: dot products of the head's gradients.

    Positive means that a step on row n lowers the loss of row m: without row n it would be higher.

    Args:
        features: [n, d] inputs of the head.
        errors: [n, c] from ``softmax_errors``, 0 for padding.
        other_features: [m, d].
        other_errors: [m, c].

    Returns:
        [n, m] per unit of learning rate, and a status of each.

    **Cost**: 2 n m (d + c) flop.

    Reference: Pruthi, Liu, Kale, Sundararajan 2020 (arXiv 2002.08484), with the bias, which their
    fast form leaves out.
    """
    inner = jnp.matmul(features, other_features.T, precision=_HIGHEST)
    product = jnp.matmul(errors, other_errors.T, precision=_HIGHEST)
    return scored((inner.astype(jnp.float32) + 1.0) * product.astype(jnp.float32))


def _norm(x: Array) -> Array:
    norm: Array = jnp.sqrt(jnp.sum(x * x, axis=-1))
    return norm
