"""Mean and covariance of the inner part of a class, and every row's distance under them."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ._masked import HIGHEST, clean_rows, masked_covariance, masked_quantile

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float

_RIDGE = 1e-6
_MAD_TO_SIGMA = 1.4826  # a Gaussian's standard deviation over its median absolute deviation


class TrimmedGaussian(NamedTuple):
    """A Gaussian fitted to the rows that were kept.

    Attributes:
        mean: [k] float32 of the kept rows.
        cov: [k, k] float32 of the kept rows, times the consistency factor, plus the ridge.
        distance2: [m] float32 squared Mahalanobis distance of every row, kept or not; 0 for
            padding. About chi-square with k degrees of freedom for Gaussian rows.
        whitening: [k, k] float32 symmetric W = cov^(-1/2); distance2 = |W (x - mean)|^2.
    """

    mean: Float[Array, " k"]
    cov: Float[Array, "k k"]
    distance2: Float[Array, " m"]
    whitening: Float[Array, "k k"]


def consistency_factor(keep: Float[Array, ""], num_features: int) -> Float[Array, ""]:
    """Consistency factor c = keep / P(chi2_{k+2} <= q), where P(chi2_k <= q) = keep.

    The covariance of the `keep` fraction of a Gaussian nearest to its centre is the whole one
    divided by c. The quantile q is found by 40 halvings; c is right to about 5e-5 (float32).
    P is the series ``sum_{n >= 0} e^-x x^(a+n) / Gamma(a+n+1)``, a = k/2, x = q/2: all terms are
    positive, P of k + 2 is the same sum without its first term, and XLA compiles it in a fifth of
    the time of ``gammainc``, which chooses between two expansions.

    Args:
        keep: scalar in (0, 1].
        num_features: k.

    Returns:
        Scalar of at least 1.
    """
    half = 0.5 * num_features
    far = 0.5 * (num_features + 20.0 * (2.0 * num_features) ** 0.5 + 40.0)

    power = half + np.arange(int(far - half + 12.0 * far**0.5) + 20)  # to a Poisson's far tail
    log_gamma = np.array([math.lgamma(p + 1.0) for p in power], np.float32)
    power = power.astype(np.float32)

    def terms(x: Array) -> Array:
        return jnp.exp(power * jnp.log(x) - x - log_gamma)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        is_below = terms(middle).sum() < keep
        return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

    start = (jnp.zeros_like(keep), jnp.full_like(keep, far))
    low, high = jax.lax.fori_loop(0, 40, halve, start)
    factor = keep / terms(0.5 * (low + high))[1:].sum()
    # At keep = 1 the float32 quantile is where the distribution rounds to 1, not infinity.
    return jnp.where(keep < 1, jnp.maximum(factor, 1.0), 1.0)


def _fit(
    x: Float[Array, "m k"], weight: Float[Array, " m"], factor: Float[Array, ""]
) -> tuple[Array, Array, Array]:
    """Mean, corrected covariance with ridge, and its symmetric inverse square root."""
    num_features = x.shape[1]
    mean, cov = masked_covariance(x, weight)
    cov = factor * cov
    trace = jnp.trace(cov)
    # Without any spread there is no scale to take a ridge from: distances are then plain ones.
    ridge = jnp.where(trace > 0, _RIDGE * trace / num_features, 1.0)
    cov += ridge * jnp.eye(num_features, dtype=cov.dtype)
    values, vectors = jnp.linalg.eigh(cov)
    # Rounding may take a float32 eigenvalue below the ridge, even below 0.
    scaled = vectors / jnp.sqrt(jnp.maximum(values, ridge))
    return mean, cov, jnp.einsum("ij,lj->il", scaled, vectors, precision=HIGHEST)


def _distance2(
    x: Float[Array, "m k"], mean: Float[Array, " k"], whitening: Float[Array, "k k"]
) -> Float[Array, " m"]:
    return jnp.sum(jnp.einsum("mj,ij->mi", x - mean, whitening, precision=HIGHEST) ** 2, axis=1)


@partial(jax.jit, static_argnames=("num_steps",))
def trimmed_gaussian(
    x: Float[Array, "m k"],
    mask: Float[Array, " m"],
    *,
    keep: Float[Array, ""] | float,
    num_steps: int = 10,
) -> TrimmedGaussian:
    """Fit a Gaussian to the `keep` fraction of rows of smallest distance under the fit itself.

    Start: distance2_i = sum_j ((x_ij - median_j) / (1.4826 MAD_j))^2. Then concentration steps, as
    in FAST-MCD but from this one start: keep the rows of rank ceil(keep n) and less, refit mean
    and covariance, measure again, until the kept rows no longer change. The covariance is
    multiplied by c = keep / P(chi2_{k+2} <= q), P(chi2_k <= q) = keep, which makes it that of the
    whole class if the class is Gaussian, and gets a ridge of 1e-6 trace / k.

    Args:
        x: [m, k] rows of one class.
        mask: [m] positive for a row, 0 for padding.
        keep: fraction of the rows to fit, in (0, 1]; clipped to it. An operand, not a static
            knob: a ladder of fractions is one `jax.vmap`.
        num_steps: concentration steps at most.

    Returns:
        The fit and the distances. An empty class, or one of equal rows, has covariance 1 and
        distances 0 or rounding.

    Raises:
        ValueError: if a shape is wrong or num_steps is below 1.

    **Cost**: a step takes 4 m k^2 + 10 k^3 flop; up to num_steps + 1 of them.
    **Assumes / fails on**: fewer outliers than 1 - keep, and a class of one mode. With outliers
    the kept part is a larger share of the clean rows than `keep`, and c errs high: the shape of
    the covariance is right, its scale up to some ten per cent too large. Directions of variance
    below 1e-6 of the mean variance are left to the ridge (float32).

    Reference: Rousseeuw and Van Driessen, FAST-MCD (Technometrics 41, 1999); Croux and Haesbroeck,
    consistency factor (J. Multivariate Anal. 71, 1999).
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    x, weight = clean_rows(x, mask)
    keep = jnp.clip(jnp.asarray(keep, jnp.float32), 1e-6, 1.0)
    factor = consistency_factor(keep, x.shape[1])
    shift, mad = _median_and_mad(x, weight)
    x = (x - shift) * weight[:, None]
    size = x.shape[1]

    # One loop whose last round is the result: what stands before or after a loop as well as in it
    # is compiled twice.
    def step(state: _Steps) -> _Steps:
        distance2 = state.fit.distance2
        kept = weight * (distance2 <= masked_quantile(distance2, weight, keep))
        mean, cov, whitening = _fit(x, kept, factor)
        fit = TrimmedGaussian(mean, cov, _distance2(x, mean, whitening), whitening)
        return _Steps(fit, kept, jnp.any(kept != state.kept), state.number + 1)

    def is_moving(state: _Steps) -> Array:
        return state.is_moving & (state.number < num_steps)

    distance2 = jnp.sum((x / _robust_scale(x, weight, mad)) ** 2, axis=1)
    square = jnp.zeros((size, size), jnp.float32)
    first = TrimmedGaussian(jnp.zeros(size, jnp.float32), square, distance2, square)
    start = _Steps(first, -jnp.ones_like(weight), jnp.asarray(True), jnp.asarray(0, jnp.int32))
    fit = jax.lax.while_loop(is_moving, step, start).fit
    return fit._replace(mean=fit.mean + shift, distance2=fit.distance2 * weight)


class _Steps(NamedTuple):
    """State of the concentration steps: the fit, the rows [m] it is of, whether they changed."""

    fit: TrimmedGaussian
    kept: Array
    is_moving: Array
    number: Array


def _median_and_mad(x: Float[Array, "m k"], weight: Float[Array, " m"]) -> tuple[Array, Array]:
    """Median and median absolute deviation [k] of each column, by one compiled search."""

    def halve(values: Array, _: None) -> tuple[Array, Array]:
        middle = masked_quantile(values, weight, 0.5)
        return jnp.abs((values - middle) * weight[:, None]), middle

    _, (median, mad) = jax.lax.scan(halve, x, length=2)
    return median, mad


def _robust_scale(
    x: Float[Array, "m k"], weight: Float[Array, " m"], mad: Float[Array, " k"]
) -> Float[Array, " k"]:
    """MAD around 0 as a standard deviation; the plain one where over half the values are equal."""
    mad = _MAD_TO_SIGMA * mad
    plain = jnp.sqrt(jnp.sum(weight[:, None] * x**2, axis=0) / jnp.maximum(weight.sum(), 1.0))
    scale = jnp.where(mad > 0, mad, plain)
    return jnp.where(scale > 0, scale, 1.0)
