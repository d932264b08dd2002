"""k-means by matrix products: several starts at once, the best of them returned."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._masked import HIGHEST, clean_rows, masked_mean, smallest_reaching

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float, Int, Key


class KMeans(NamedTuple):
    """The best of the starts.

    Attributes:
        centres: [q, k] float32, in the coordinates of the rows.
        labels: [m] int32 nearest centre of each row, -1 for padding.
        inertia: scalar, sum over rows of the squared distance to the nearest centre.
        sizes: [q] int32 rows of each cluster; 0 for a cluster that stayed empty.
    """

    centres: Float[Array, "q k"]
    labels: Int[Array, " m"]
    inertia: Float[Array, ""]
    sizes: Int[Array, " q"]


def _squared_distances(x: Float[Array, "m k"], centres: Float[Array, "q k"]) -> Array:
    """[q, m] by differences: no cancellation, and XLA fuses it without a [q, m, k] array."""
    return jnp.sum((centres[:, None, :] - x[None]) ** 2, axis=-1)


def _draw_centres(
    x: Float[Array, "m k"],
    weight: Float[Array, " m"],
    direction: Float[Array, " k"],
    draws: Float[Array, " q"],
) -> Float[Array, "q k"]:
    """k-means++: each next centre is a row drawn with probability ~ squared distance to the others.

    The draw inverts the cumulative weight along a random direction of feature space rather than
    along the row numbers. That leaves the probabilities as they are, and makes the outcome a
    function of the set of rows: neither their order nor the amount of padding changes it.
    `draws` are uniform in (0, 1].
    """
    place = jnp.einsum("k,mk->m", direction, x, precision=HIGHEST)

    def pick(nearest: Array, draw: Array) -> tuple[Array, Array]:
        mass = weight * jnp.where(jnp.isinf(nearest), 1.0, nearest)
        chosen = smallest_reaching(place, mass, draw * mass.sum())
        centre = x[jnp.argmax((place == chosen) & (mass > 0))]
        return jnp.minimum(nearest, jnp.sum((x - centre) ** 2, axis=-1)), centre

    _, centres = jax.lax.scan(pick, jnp.full(x.shape[:1], jnp.inf), draws)
    return centres


def _lloyd(
    x: Float[Array, "m k"],
    weight: Float[Array, " m"],
    centres: Float[Array, "q k"],
    num_steps: int,
) -> Float[Array, "q k"]:
    numbers = jnp.arange(centres.shape[0])[:, None]

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, _, count = state
        # |x|^2 is the same for every centre: the nearest one maximises x.c - |c|^2 / 2.
        affinity = jnp.einsum("qk,mk->qm", old, x, precision=HIGHEST)
        affinity -= 0.5 * jnp.sum(old**2, axis=1, keepdims=True)
        member = jnp.where(numbers == jnp.argmax(affinity, axis=0), weight, 0.0)
        sizes = member.sum(axis=1, keepdims=True)
        sums = jnp.einsum("qm,mk->qk", member, x, precision=HIGHEST)
        new = jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1.0), old)
        return new, jnp.any(new != old), count + 1

    def is_moving(state: tuple[Array, Array, Array]) -> Array:
        return state[1] & (state[2] < num_steps)

    start = (centres, jnp.asarray(True), jnp.asarray(0, jnp.int32))
    return jax.lax.while_loop(is_moving, step, start)[0]


@partial(jax.jit, static_argnames=("num_clusters", "num_inits", "num_steps"))
def kmeans(
    x: Float[Array, "m k"],
    mask: Float[Array, " m"],
    *,
    num_clusters: int = 2,
    num_inits: int = 8,
    num_steps: int = 40,
    key: Key[Array, ""] | None = None,
    draws: Float[Array, "s q_and_k"] | None = None,
) -> KMeans:
    """Cluster one class: min over centres c_1..c_q of sum_i min_j |x_i - c_j|^2, by Lloyd's steps.

    Starts are drawn by k-means++, run together, and the one of smallest inertia is returned. A
    cluster that loses all its rows keeps its centre. The result depends on the set of rows and on
    the key, not on the order of the rows or on the padding (up to rounding).

    Args:
        x: [m, k] rows of one class.
        mask: [m] positive for a row, 0 for padding.
        num_clusters: q.
        num_inits: starts.
        num_steps: Lloyd steps at most; a start that no longer moves stops earlier.
        key: typed PRNG key of the starts.
        draws: [num_inits, q + k] uniform in (0, 1], in place of the key. Under vmap XLA:CPU takes
            longer to compile the drawing than all the rest.

    Returns:
        Centres, labels, inertia (squared units of x) and sizes. An empty class has centres 0,
        labels -1 and inertia 0.

    Raises:
        ValueError: if a shape is wrong, a knob is below 1 (num_steps: below 0), or not exactly
            one of key and draws is given.

    **Cost**: 4 m k q flop a step and start; reads the rows twice a step. Memory m q num_inits.
    **Assumes / fails on**: finite rows; clusters of comparable spread. Like every k-means it
    returns num_clusters clusters where there is one; `silhouette` tells.

    Reference: Arthur and Vassilvitskii, k-means++ (SODA 2007); Chen et al., activation clustering,
    arXiv:1811.03728 (2018).
    """
    for name, value, least in (
        ("num_clusters", num_clusters, 1),
        ("num_inits", num_inits, 1),
        ("num_steps", num_steps, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    x, weight = clean_rows(x, mask)
    wanted = (num_inits, num_clusters + x.shape[1])
    if (key is None) == (draws is None) or (draws is not None and draws.shape != wanted):
        got = None if draws is None else draws.shape
        raise ValueError(f"give either a key or draws of shape {wanted}, got draws {got}")
    drawn = draws if key is None else 1.0 - jax.random.uniform(key, wanted, jnp.float32)
    shift = masked_mean(x, weight)
    x = (x - shift) * weight[:, None]

    def run(drawn: Array) -> tuple[Array, Array, Array]:
        centres = _draw_centres(x, weight, drawn[num_clusters:] - 0.5, drawn[:num_clusters])
        centres = _lloyd(x, weight, centres, num_steps)
        distances = _squared_distances(x, centres)
        labels = jnp.argmin(distances, axis=0).astype(jnp.int32)
        return centres, labels, jnp.sum(weight * distances.min(axis=0))

    centres, labels, inertia = jax.vmap(run)(jnp.asarray(drawn))
    best = jnp.argmin(inertia)
    label = jnp.where(weight > 0, labels[best], -1)
    sizes = jnp.sum(label[None] == jnp.arange(num_clusters)[:, None], axis=1, dtype=jnp.int32)
    return KMeans(centres[best] + shift, label, inertia[best], sizes)
