"""Per-class statistics of class-pure tiles: batched matrix products, no scatter.

A tile holds rows of one class. What is computed per class is therefore one product per tile,
added up over the tiles of the class; the adding is a loop that touches one class at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from ._masked import rows_product

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float, Int

_EXACT = jax.lax.Precision.HIGHEST  # accelerators would otherwise multiply with 10-bit mantissas


def tile_sums(
    x: Float[Array, "tiles t d"],
    label: Int[Array, " tiles"],
    mask: Float[Array, "tiles t"],
    *,
    num_classes: int,
) -> tuple[Float[Array, " c"], Float[Array, "c d"]]:
    """Rows and sum of rows of each class: ``n_c`` and ``sum_{i in c} x_i``.

    Args:
        x: Class-pure tiles.
        label: Class of each tile.
        mask: 1 for a row, 0 for padding (whose content is ignored).
        num_classes: c.

    Returns:
        Counts [c] and sums [c, d], float32.

    **Cost**: one read of x.
    """

    def add(
        total: tuple[Array, Array], tile: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], None]:
        counts, sums = total
        rows, which, rows_mask = tile
        rows = jnp.where(rows_mask[:, None] > 0, rows, 0.0)
        new = jnp.matmul(rows_mask, rows, precision=_EXACT)
        return (counts.at[which].add(rows_mask.sum()), sums.at[which].add(new)), None

    # a loop, because one pass over the whole array would write the masked copy of it first
    zero = (jnp.zeros(num_classes, jnp.float32), jnp.zeros((num_classes, x.shape[-1]), jnp.float32))
    return jax.lax.scan(add, zero, (x, label, mask))[0]


def tile_grams(
    x: Float[Array, "tiles t d"],
    label: Int[Array, " tiles"],
    mask: Float[Array, "tiles t"],
    *,
    num_classes: int,
) -> Float[Array, "c d d"]:
    """Second moments of each class: ``sum_{i in c} x_i x_i^T``.

    Args:
        x: Class-pure tiles; shift by a pilot mean first, sums of squares cancel badly otherwise.
        label: Class of each tile.
        mask: 1 for a row, 0 for padding.
        num_classes: c.

    Returns:
        Grams [c, d, d], float32.

    **Cost**: 2 n d^2 FLOP, c d^2 floats held.
    """

    def add(total: Array, tile: tuple[Array, ...]) -> tuple[Array, None]:
        rows, which, rows_mask = tile
        rows = jnp.where(rows_mask[:, None] > 0, rows, 0.0)  # here: the tile is in the cache
        # no rows_product, which takes a fifth longer: a tile has too few rows to be split
        gram = jnp.matmul(rows.T, rows, precision=_EXACT)
        return total.at[which].add(gram), None

    d = x.shape[-1]
    zero = jnp.zeros((num_classes, d, d), jnp.float32)
    return jax.lax.scan(add, zero, (x, label, mask))[0]


def tile_project(
    x: Float[Array, "tiles t d"],
    label: Int[Array, " tiles"],
    basis: Float[Array, "c k d"],
    centre: Float[Array, "c k"],
) -> Float[Array, "tiles t k"]:
    """Coordinates of each row in its own class's basis: ``V_c x - o_c``.

    Args:
        x: Class-pure tiles.
        label: Class of each tile.
        basis: One k x d basis a class, rows are directions.
        centre: ``V_c mu_c``, what is subtracted (so no centred copy of x is made).

    Returns:
        Coordinates [tiles, t, k]; padding rows hold rubbish.

    **Cost**: 2 n d k FLOP, one read of x.
    """
    coordinates = jnp.einsum("btd,bkd->btk", x, basis[label], precision=_EXACT)
    return coordinates - centre[label][:, None, :]


def tile_sketch(
    x: Float[Array, "tiles t d"],
    label: Int[Array, " tiles"],
    mask: Float[Array, "tiles t"],
    basis: Float[Array, "c k d"],
    centre: Float[Array, "c k"],
    *,
    num_classes: int,
) -> tuple[Float[Array, "c k d"], Float[Array, "c k"]]:
    """One application of every class's covariance to its own basis.

    ``sum_{i in c} (V_c x_i - o_c) x_i^T`` and ``sum_{i in c} (V_c x_i - o_c)``; from the two the
    caller forms ``n_c V_c Sigma_c`` without ever centring the data.

    Args:
        x: Class-pure tiles.
        label: Class of each tile.
        mask: 1 for a row, 0 for padding.
        basis: [c, k, d] current basis, rows are directions.
        centre: [c, k] ``V_c mu_c``.
        num_classes: c.

    Returns:
        Products [c, k, d] and sums [c, k].

    **Cost**: 4 n d k FLOP, two reads of x, c k d floats held.
    """

    def add(
        total: tuple[Array, Array], tile: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], None]:
        product, sums = total
        rows, which, rows_mask = tile
        rows = jnp.where(rows_mask[:, None] > 0, rows, 0.0)  # here: the tile is in the cache
        # rows first in both products: XLA:CPU runs other orders up to twice as long
        scores = jnp.matmul(rows, basis[which].T, precision=_EXACT)
        scores = (scores - centre[which]) * rows_mask[:, None]
        new = rows_product(scores, rows)
        return (product.at[which].add(new), sums.at[which].add(scores.sum(axis=0))), None

    k, d = basis.shape[1:]
    zero = (jnp.zeros((num_classes, k, d), jnp.float32), jnp.zeros((num_classes, k), jnp.float32))
    return jax.lax.scan(add, zero, (x, label, mask))[0]
