"""Class means and nearest neighbours of one small subset, as scores of its classes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ._masked import clean_rows, rows_product

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float, Int

_LOWEST = float(np.finfo(np.float32).min)


class ClassMeans(NamedTuple):
    """The nearest class mean in dual form: scores ``sum_j a_j k(x_j, t) + bias``.

    Attributes:
        coefficients: [r, c] ``2 / n_c`` where a row has a class, 0 for padding.
        bias: [c] ``-|mu_c|^2``; the lowest finite float32 for a class without rows.
    """

    coefficients: Array
    bias: Array


@jax.jit
def class_means(
    x: Float[Array, "r f"], members: Float[Array, "r c"], mask: Float[Array, " r"]
) -> ClassMeans:
    """The nearest class mean as scores ``2 mu_c.t - |mu_c|^2``.

    That is ``|t|^2 - |t - mu_c|^2``, which orders the classes as the distances do. Under the
    kernel ``1 + a.b`` all scores are 2 higher.

    Args:
        x: [r, f].
        members: [r, c] 1 where a row has a class, else 0.
        mask: [r] positive for a row, 0 for padding.

    Returns:
        The classifier; a class without rows never wins while another one has rows.

    Raises:
        ValueError: if a shape is wrong.

    **Cost**: 2 r c f flop.
    """
    if members.ndim != 2 or members.shape[0] != x.shape[0]:
        raise ValueError(f"members must be [r, c], got {members.shape} for x {x.shape}")
    rows, weight = clean_rows(x, mask)
    own = jnp.where(weight[:, None] > 0, members, 0).astype(jnp.float32)
    counts = own.sum(axis=0)
    shares = own / jnp.maximum(counts, 1)
    means = rows_product(shares, rows)
    bias = jnp.where(counts > 0, -jnp.sum(means * means, axis=1), _LOWEST)
    return ClassMeans(2 * shares, bias)


@partial(jax.jit, static_argnames=("num_neighbours",))
def neighbour_counts(
    distance2: Float[Array, "n b"],
    members: Float[Array, "r c"],
    rows: Int[Array, " r"],
    mask: Float[Array, " r"],
    *,
    num_neighbours: int,
) -> Float[Array, "c b"]:
    """How many of the k nearest rows of a subset have each class.

    Among equal distances the row that comes first counts as nearer. With fewer than k rows, all
    count.

    Args:
        distance2: [n, b] squared distances of all training rows to a block of test rows.
        members: [r, c] 1 where a row has a class, else 0.
        rows: [r] of ``distance2``; any valid row for padding.
        mask: [r] positive for a row, 0 for padding.
        num_neighbours: k.

    Returns:
        [c, b] float32 counts.

    Raises:
        ValueError: if a shape is wrong or k below 1.

    **Cost**: k passes over r b numbers: a minimum k times is faster than a sort for small k.
    """
    if num_neighbours < 1:
        raise ValueError(f"num_neighbours must be at least 1, got {num_neighbours}")
    if members.ndim != 2 or rows.shape != members.shape[:1] or mask.shape != rows.shape:
        raise ValueError(
            f"members must be [r, c], rows and mask [r], got {members.shape}, {rows.shape} and "
            f"{mask.shape}"
        )
    own = jnp.take(distance2, rows, axis=0, mode="clip")
    left = jnp.where((mask > 0)[:, None], own, jnp.inf)
    position = jnp.arange(left.shape[0])[:, None]
    chosen = jnp.zeros(left.shape, jnp.float32)

    def choose(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        left, chosen = state
        is_next = (position == jnp.argmin(left, axis=0)) & jnp.isfinite(left)
        return jnp.where(is_next, jnp.inf, left), jnp.where(is_next, 1.0, chosen)

    steps = min(num_neighbours, left.shape[0])
    _, chosen = jax.lax.fori_loop(0, steps, choose, (left, chosen))
    return rows_product(members.astype(jnp.float32), chosen)
