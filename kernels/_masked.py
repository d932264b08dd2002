"""Moments and quantiles of the rows that a mask keeps.

A row counts where its mask is positive, and then counts once. Padding is replaced by zeros before
anything is computed, so that no content of it, not even NaN, can reach a result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float

# TF32 or bfloat16 passes, the default of some accelerators, lose a covariance's small eigenvalues.
HIGHEST = jax.lax.Precision.HIGHEST
_BITS = 32
_CACHED_FLOATS = 1 << 20  # 4 MB
_PART = 256  # rows


def clean_rows(
    x: Float[Array, "m k"], mask: Float[Array, " m"]
) -> tuple[Float[Array, "m k"], Float[Array, " m"]]:
    """Float32 rows with zeros for padding, and a weight of exactly 0 or 1 each.

    Args:
        x: [m, k] rows of one class.
        mask: [m] positive for a row, 0 for padding.

    Returns:
        The rows [m, k] and the weights [m], both float32.

    Raises:
        ValueError: if the shapes are not [m, k] and [m].
    """
    if x.ndim != 2 or mask.shape != x.shape[:1]:
        raise ValueError(
            f"x must be [m, k] and mask [m], got {x.shape} and {mask.shape}: "
            "map the kernel over classes with jax.vmap or jax.lax.map"
        )
    is_row = mask > 0
    rows = jnp.where(is_row[:, None], x, 0).astype(jnp.float32)
    return rows, is_row.astype(jnp.float32)


def rows_product(x: Float[Array, "*b m k"], y: Float[Array, "*b m l"]) -> Float[Array, "*b k l"]:
    """``x^T y``, the sum over rows of outer products, in float32 at the highest precision.

    On a CPU the transpose is written out: see ``written_transpose``.

    Args:
        x: [..., m, k] finite.
        y: [..., m, l] finite.

    Returns:
        [..., k, l].

    **Cost**: 2 m k l FLOP, and a copy of x on a CPU.
    """
    is_large = x.ndim == 2 and x.size > _CACHED_FLOATS
    if not is_large or jax.default_backend() != "cpu":
        out: Array = jnp.matmul(written_transpose(x), y, precision=HIGHEST)
        return out

    def parts(a: Array) -> Array:  # the transpose of some rows stays in the cache
        whole = jnp.pad(a, ((0, -len(a) % _PART), (0, 0)))
        return whole.reshape(-1, _PART, a.shape[1])

    def add(total: Array, rows: tuple[Array, Array]) -> tuple[Array, None]:
        return total + jnp.matmul(written_transpose(rows[0]), rows[1], precision=HIGHEST), None

    zero = jnp.zeros((x.shape[1], y.shape[1]), jnp.float32)
    total: Array = jax.lax.scan(add, zero, (parts(x), parts(y)))[0]
    return total


def written_transpose(x: Float[Array, "*b m k"]) -> Float[Array, "*b k m"]:
    """``x^T``, on a CPU as a copy of its own, for products whose bits no machine may change.

    XLA gives a product that runs over the rows of its left side to Eigen, which splits long sums
    by the number of threads: the last bits then follow the number of cores and of devices. All
    other products keep their order (jaxlib 0.10.2). An accelerator takes the transpose in.

    Args:
        x: [..., m, k].

    Returns:
        [..., k, m].
    """
    across = jnp.swapaxes(x, -1, -2)
    if jax.default_backend() == "cpu":
        across = jax.lax.optimization_barrier(across)  # type: ignore[no-untyped-call]
    return across


def masked_mean(x: Float[Array, "m k"], weight: Float[Array, " m"]) -> Float[Array, " k"]:
    """Mean of the rows of positive weight, in two passes: sum(w x) / sum(w).

    The second pass adds the mean of what is left after the first, which removes the rounding of a
    sum of large values. No row at all has mean 0.

    Args:
        x: [m, k] finite rows (see `clean_rows`).
        weight: [m] non-negative.

    Returns:
        [k].
    """
    total = jnp.maximum(weight.sum(), 1e-30)
    first = jnp.sum(weight[:, None] * x, axis=0) / total
    return first + jnp.sum(weight[:, None] * (x - first), axis=0) / total


def masked_covariance(
    x: Float[Array, "m k"], weight: Float[Array, " m"]
) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
    """Mean and covariance: sum(w (x - mean)(x - mean)^T) / sum(w), centred before the product.

    The divisor is the number of rows, not one less. No row at all has covariance 0.

    Args:
        x: [m, k] finite rows (see `clean_rows`).
        weight: [m] weights, 0 or 1 (their square root is not taken).

    Returns:
        The mean [k] and the covariance [k, k].

    **Cost**: 2 m k^2 flop, one centred copy of the rows.
    """
    mean = masked_mean(x, weight)
    centred = (x - mean) * weight[:, None]
    return mean, rows_product(centred, centred) / jnp.maximum(weight.sum(), 1e-30)


def _ordered_bits(values: Float[Array, "*s"]) -> Array:
    """Bit patterns as uint32 whose order is the order of the floats; both zeros are one."""
    values = jnp.where(values == 0, 0.0, values.astype(jnp.float32))
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    top = jnp.uint32(1 << 31)
    return jnp.where(bits >= top, ~bits, bits | top)


def _from_ordered_bits(keys: Array) -> Array:
    top = jnp.uint32(1 << 31)
    bits = jnp.where(keys >= top, keys ^ top, ~keys)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def smallest_reaching(
    values: Float[Array, " m *s"], weight: Float[Array, " m"], target: Float[Array, "*s"] | float
) -> Float[Array, "*s"]:
    """The smallest value v for which the weight of the rows with values <= v reaches `target`.

    Bisection over the 2^32 bit patterns of a float, not over the interval from the smallest to the
    largest value: 32 halvings end exactly on one of the values, whatever their range, where
    halving an interval that one outlier stretches would stop short. It replaces a sort.

    Args:
        values: [m, ...] float32 without NaN; each trailing column is searched by itself.
        weight: [m] non-negative.
        target: [...] or a scalar, at most the total weight.

    Returns:
        [...] elements of `values`; 0 where the total weight is 0.

    **Cost**: 32 reads of the values, nothing else.
    **Assumes / fails on**: counts are float32 sums, exact up to 2^24 rows of weight 1.
    """
    keys = _ordered_bits(values)
    row_weight = weight.reshape(weight.shape + (1,) * (values.ndim - 1))

    def halve(step: Array, low: Array) -> Array:
        bit = jnp.uint32(1) << (_BITS - 1 - step).astype(jnp.uint32)
        below = jnp.sum(jnp.where(keys <= (low | (bit - 1)), row_weight, 0.0), axis=0)
        return jnp.where(below >= target, low, low | bit)

    found = jax.lax.fori_loop(0, _BITS, halve, jnp.zeros(values.shape[1:], jnp.uint32))
    return jnp.where(weight.sum() > 0, _from_ordered_bits(found), 0.0)


def masked_quantile(
    values: Float[Array, " m *s"], weight: Float[Array, " m"], q: Float[Array, ""] | float
) -> Float[Array, "*s"]:
    """The value of rank ceil(q n) among the n rows of weight 1, as `inverted_cdf` in numpy.

    It is always one of the values: q = 0 gives the smallest, q = 0.5 the lower median, q = 1 the
    largest.

    Args:
        values: [m, ...] float32 without NaN; each trailing column has its own quantile.
        weight: [m] 0 or 1.
        q: scalar in [0, 1], may be traced.

    Returns:
        [...]; 0 where there is no row.

    **Cost**: 32 reads of the values, no sort.
    """
    count = weight.sum()
    rank = q * count
    # 0.7 * 10 may round to just above 7 in float32; the rank meant is 7.
    rank = jnp.ceil(rank - jnp.minimum(3e-7 * rank, 0.5))
    rank = jnp.clip(rank, 1.0, jnp.maximum(count, 1.0))
    return smallest_reaching(values, weight, rank)
