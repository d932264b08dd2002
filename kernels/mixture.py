"""Two Gaussian components with one shared covariance, from many starts at once."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._masked import rows_product

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float

_EXACT = jax.lax.Precision.HIGHEST
_CUTS = (0.7, 1.5, 3.0, 5.0)  # where a tail start cuts, in standard deviations of the class
_SCREENED = 1 << 16  # rows of a class that starts are screened on, at the least, where it has more


class Mixture(NamedTuple):
    """The best of all starts; the second component is the smaller one.

    Attributes:
        log_ratio: [m] log posterior odds of the second component (0 for padding).
        gain: total log likelihood above the one-component fit, nats.
        separation: Mahalanobis distance of the two means under the shared covariance.
        weight: share of the second component, at most 1/2.
    """

    log_ratio: Float[Array, " m"]
    gain: Float[Array, ""]
    separation: Float[Array, ""]
    weight: Float[Array, ""]


def whiten(
    x: Float[Array, "m k"], mask: Float[Array, " m"], *, floor: float = 1e-7
) -> Float[Array, "m k"]:
    """Rows moved to mean 0 and covariance I: ``T^(-1/2) (x - mean)``, 0 for padding.

    Args:
        x: Rows of one class.
        mask: 1 for a row, 0 for padding.
        floor: Directions with less than this share of the largest variance stay that small
            instead of being blown up to noise.

    Returns:
        Whitened rows [m, k].
    """
    n = jnp.maximum(mask.sum(), 1.0)
    x = jnp.where(mask[:, None] > 0, x, 0.0)
    x = (x - x.sum(axis=0) / n) * mask[:, None]
    scale = jnp.sqrt((x * x).sum(axis=0) / n)
    x = x / jnp.where(scale > 0, scale, 1.0)
    values, vectors = jnp.linalg.eigh(rows_product(x, x) / n)
    root = jax.lax.rsqrt(jnp.maximum(values, floor * values[-1] + 1e-30))
    return jnp.matmul(x, (vectors * root) @ vectors.T, precision=_EXACT)


def _directions(y: Array, mask: Array) -> Array:
    """Axes and the eigenvectors of ``E |y|^2 y y^T``: where fourth moments differ, groups hide."""
    n = jnp.maximum(mask.sum(), 1.0)
    fourth = rows_product(y * (y * y).sum(axis=1, keepdims=True), y) / n
    return jnp.concatenate([jnp.eye(y.shape[1]), jnp.linalg.eigh(fourth)[1].T])


class _Parts(NamedTuple):
    """What one EM step makes of the responsibilities [s, m]."""

    product: Array  # [s, m] logits less their offsets, so that adding these costs no pass
    offset: Array  # [s], as are all that follow but the two of [s, k]
    w: Array
    first: Array  # [s, k]
    delta: Array  # [s, k]
    length: Array
    left: Array

    @property
    def logits(self) -> Array:
        """Log odds of the second component, [s, m]."""
        return self.product + self.offset[:, None]


def _parts(y: Array, n: Array, shares: Array) -> _Parts:
    """Parameters of all starts and the log odds they give each row.

    The total covariance is I whatever the responsibilities, so the shared one is
    ``S = I - w (1 - w) delta delta^T``: rank one, inverted and its determinant taken in closed
    form. A step is two thin matrix products.
    """
    w = jnp.clip(shares.sum(axis=1) / n, 1.0 / n, 1.0 - 1.0 / n)
    second = jnp.matmul(shares, y, precision=_EXACT) / (n * w)[:, None]
    delta = second / (1.0 - w)[:, None]  # the means weigh out to 0
    first = second - delta
    length = (delta * delta).sum(axis=1)
    left = jnp.maximum(1.0 - w * (1.0 - w) * length, 1e-5)  # variance left along delta
    middle = 0.5 * ((first + second) * delta).sum(axis=1)
    offset = jnp.log(w / (1.0 - w)) - middle / left
    return _Parts(_product(y, delta, left), offset, w, first, delta, length, left)


def _product(y: Array, delta: Array, left: Array) -> Array:
    """Scaled before the product: afterwards it would be one more pass over [s, m]."""
    return jnp.matmul(delta / left[:, None], y.T, precision=_EXACT)


def _em(y: Array, mask: Array, n: Array, logits: Array, count: int) -> _Parts:
    """EM steps from log odds [s, m]; the last one is in the loop too, and so compiled once."""

    def step(_: Array, parts: _Parts) -> _Parts:
        return _parts(y, n, jax.nn.sigmoid(parts.logits) * mask)

    each, thin = jnp.zeros(len(logits)), jnp.zeros((len(logits), y.shape[1]))
    start = _Parts(logits, each, each, thin, thin, each, each)
    last: _Parts = jax.lax.fori_loop(0, count, step, start)
    return last


def _gain(parts: _Parts, mask: Array, n: Array, min_rows: float) -> Array:
    """Log likelihood [s] above the one-component fit; -inf where a component is too small."""
    w = parts.w
    inverse = w * (1.0 - w) / parts.left
    along = (parts.first * parts.delta).sum(axis=1)
    squares = (parts.first * parts.first).sum(axis=1)
    quadratic = inverse * parts.length + squares + inverse * along**2
    gain = -0.5 * n * (jnp.log(parts.left) + quadratic) + n * jnp.log(1.0 - w)
    gain = gain + (jax.nn.softplus(parts.logits) * mask).sum(axis=1)
    smaller = jnp.minimum(w, 1.0 - w) * n
    return jnp.where((smaller >= min_rows) & jnp.isfinite(gain), gain, -jnp.inf)


@partial(jax.jit, static_argnames=("num_screen", "num_keep", "num_steps", "min_rows"))
def shared_covariance_mixture(
    x: Float[Array, "m k"],
    mask: Float[Array, " m"],
    *,
    num_screen: int = 6,
    num_keep: int = 12,
    num_steps: int = 50,
    min_rows: float = 5.0,
) -> Mixture:
    """Fits ``(1-w) N(a, S) + w N(b, S)`` to the rows of one class by EM from tail starts.

    log ratio of row i: ``delta^T S^-1 (y_i - (a + b)/2) + log(w / (1 - w))``, delta = b - a.

    Args:
        x: Rows of one class, in any affine coordinates (the fit does not depend on them).
        mask: 1 for a row, 0 for padding.
        num_screen: EM steps given to every start.
        num_keep: Starts that go on.
        num_steps: EM steps of those.
        min_rows: A component must weigh at least so many rows.

    Returns:
        The fit with the largest likelihood.

    **Cost**: ``4 * 2k`` starts on each of 2 sides; two products of [s, m] and [m, k] a step. From
    131,072 rows on starts are screened on every 2nd, 3rd ... row, 65,536 at the least: all of them
    would hold gigabytes.

    **Assumes / fails on**: planted rows are shifted along some direction by more than they spread.
    Nothing is assumed of their number; at w = 1/2 the sides cannot be told apart by size. Clusters
    of honest data fit as well: a large gain alone is no proof of poison.

    Reference: McLachlan and Peel, Finite Mixture Models (2000), homoscedastic components; starts
    along fourth-moment directions after Cardoso (1989, FOBI).
    """
    y = whiten(x, mask)
    n = jnp.maximum(mask.sum(), 2.0)
    every = max(len(y) // _SCREENED, 1)
    some, their_mask = y[::every], mask[::every]
    along = jnp.matmul(_directions(y, mask), some.T, precision=_EXACT)
    along = jnp.concatenate([along, -along])
    cuts = jnp.asarray(_CUTS)[:, None, None]
    starts = jnp.where(along > cuts, jnp.inf, -jnp.inf).reshape(-1, len(some))  # shares of 1 and 0
    count = jnp.maximum(their_mask.sum(), 2.0)
    screened = _em(some, their_mask, count, starts, num_screen)
    best = jax.lax.top_k(_gain(screened, their_mask, count, min_rows), num_keep)[1]
    kept = jax.tree.map(lambda a: a[best], screened)
    if every > 1:
        kept = kept._replace(product=_product(y, kept.delta, kept.left))
    fits = _em(y, mask, n, kept.logits, num_steps)
    gain = _gain(fits, mask, n, min_rows)
    logits, w, separation = fits.logits, fits.w, jnp.sqrt(fits.length / fits.left)
    top = jnp.argmax(gain)
    flip = jnp.where(w[top] > 0.5, -1.0, 1.0)
    found = jnp.isfinite(gain[top])
    zero = jnp.float32(0.0)
    return Mixture(
        log_ratio=jnp.where(found, flip * logits[top], -1.0) * mask,
        gain=jnp.where(found, jnp.maximum(gain[top], 0.0), zero),
        separation=jnp.where(found, separation[top], zero),
        weight=jnp.where(found, jnp.minimum(w[top], 1.0 - w[top]), zero),
    )
