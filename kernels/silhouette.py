"""The exact silhouette of every row of a class, by blocks of rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from ._masked import HIGHEST, clean_rows, masked_mean

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float, Int


@partial(jax.jit, static_argnames=("num_clusters", "block"))
def silhouette(
    x: Float[Array, "m k"],
    labels: Int[Array, " m"],
    mask: Float[Array, " m"],
    *,
    num_clusters: int = 2,
    block: int = 512,
) -> Float[Array, " m"]:
    """s_i = (b_i - a_i) / max(a_i, b_i), with Euclidean distances to all rows of the class.

    a_i is the mean distance to the other rows of the own cluster, b_i the smallest mean distance
    to the rows of another cluster. A row alone in its cluster has 0, as in scikit-learn; so has
    every row where only one cluster has rows, and padding.

    Args:
        x: [m, k] rows of one class.
        labels: [m] cluster of each row, 0 to num_clusters - 1; any other label is padding.
        mask: [m] positive for a row, 0 for padding.
        num_clusters: q.
        block: rows whose distances to all the others are held at a time; changes only the speed.

    Returns:
        [m] float32 in [-1, 1].

    Raises:
        ValueError: if a shape is wrong or a knob is below 1.

    **Cost**: 2 m^2 (k + q) flop, block * m floats of memory.
    **Assumes / fails on**: distances below about 3e-4 of their cluster's radius are rounding.

    Reference: Rousseeuw, Silhouettes (J. Comput. Appl. Math. 20, 1987).
    """
    if num_clusters < 1 or block < 1:
        raise ValueError(
            f"num_clusters and block must be at least 1, got {num_clusters} and {block}"
        )
    if labels.shape != mask.shape:
        raise ValueError(f"labels must be [m] as mask is, got {labels.shape} and {mask.shape}")
    rows = x.shape[0]
    is_row = (mask > 0) & (labels >= 0) & (labels < num_clusters)
    x, weight = clean_rows(x, is_row.astype(jnp.float32))
    x = (x - masked_mean(x, weight)) * weight[:, None]
    member = jnp.where(jnp.arange(num_clusters)[:, None] == labels, weight, 0.0)  # [q, m]
    sizes = member.sum(axis=1)
    means = jnp.einsum("qm,mk->qk", member, x, precision=HIGHEST)
    means /= jnp.maximum(sizes, 1.0)[:, None]
    # Every distance is taken from the mean of the column's cluster, so that its rounding is
    # relative to the distance, not to how far apart the clusters are.
    own_mean = jnp.einsum("qm,qk->mk", member, means, precision=HIGHEST)
    offset = (x - own_mean) * weight[:, None]
    from_mean = jnp.sum(offset**2, axis=1)
    across = jnp.sum(own_mean * offset, axis=1)

    def of_block(inputs: tuple[Array, Array, Array]) -> Array:
        x_block, own, number = inputs
        to_mean = jnp.sum((x_block[:, None, :] - means) ** 2, axis=-1)  # [b, q]
        squared = jnp.einsum("bq,qm->bm", to_mean, member, precision=HIGHEST) + from_mean
        squared -= 2 * (jnp.einsum("bk,mk->bm", x_block, offset, precision=HIGHEST) - across)
        is_self = number[:, None] == jnp.arange(rows)
        distance = jnp.sqrt(jnp.where(is_self, 0.0, jnp.maximum(squared, 0.0)))
        sums = jnp.einsum("bm,qm->bq", distance, member, precision=HIGHEST)
        own_size = jnp.sum(own * sizes, axis=1)
        inside = jnp.sum(sums * own, axis=1) / jnp.maximum(own_size - 1, 1.0)
        is_other = (own == 0) & (sizes > 0)
        outside = jnp.min(jnp.where(is_other, sums / jnp.maximum(sizes, 1.0), jnp.inf), axis=1)
        larger = jnp.maximum(inside, outside)
        is_defined = (own_size > 1) & (larger > 0) & jnp.isfinite(larger)
        return jnp.where(is_defined, (outside - inside) / jnp.where(is_defined, larger, 1.0), 0.0)

    block = min(block, rows)
    extra = -rows % block
    blocks = (
        jnp.pad(x, ((0, extra), (0, 0))).reshape(-1, block, x.shape[1]),
        jnp.pad(member.T, ((0, extra), (0, 0))).reshape(-1, block, num_clusters),
        jnp.arange(rows + extra).reshape(-1, block),
    )
    scores: Array = jax.lax.map(of_block, blocks)
    return scores.reshape(-1)[:rows]
