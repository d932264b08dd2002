"""Products of vectors with the Hessian or the Gauss-Newton matrix of a loss, never the matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from ._masked import HIGHEST

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float

_HELD_FLOATS = 1 << 24  # logits of the vectors worked on at a time, 64 MB

LossFn: TypeAlias = Callable[..., Array]
"""``fn(params, batch) -> []``, ``fn(params, *batch)`` for a tuple; static, so a module-level
function or a hashable object."""
RowFn: TypeAlias = Callable[..., Array]
"""The same with a value for each row, [b], or [b, c] where it gives logits."""


@dataclass(frozen=True)
class WeightedLoss:
    """``sum_i w_i l_i`` as a loss of the batch ``(rows, w)``; equal for equal row losses.

    With w = 1/n for the n rows and 0 for padding it is the mean loss. Micro-batches that keep the
    n of all rows add up to the same loss, and so do their Hessians.

    Attributes:
        row_loss_fn: ``fn(params, rows) -> [b]`` (``fn(params, *rows)`` for a tuple), the loss of
            each row.
    """

    row_loss_fn: RowFn

    def __call__(self, params: Any, rows: Any, weight: Float[Array, " b"]) -> Float[Array, ""]:
        """The weighted sum; rows of weight 0 are not looked at."""
        rows = without_padding(rows, weight)
        losses = checked_rows(called(self.row_loss_fn, params, rows), len(weight), "row_loss_fn")
        return jnp.sum(weight * losses.astype(jnp.float32))


def called(fn: Callable[..., Array], params: Any, batch: Any) -> Array:
    """``fn(params, *batch)`` for a tuple such as inputs and labels, else ``fn(params, batch)``.

    Args:
        fn: The function.
        params: Its parameters.
        batch: Pytree of arrays.

    Returns:
        Its value.
    """
    return fn(params, *batch) if isinstance(batch, tuple) else fn(params, batch)


def without_padding(rows: Any, weight: Float[Array, " b"]) -> Any:
    """Every leaf with zeros where the weight is 0, so that no content of padding is read.

    Args:
        rows: Pytree of arrays [b, ...].
        weight: [b].

    Returns:
        Like ``rows``.

    Raises:
        ValueError: if a leaf has another number of rows.
    """

    def clean(leaf: Array) -> Array:
        if leaf.ndim < 1 or len(leaf) != len(weight):
            raise ValueError(
                f"every array of the batch must have {len(weight)} rows like the weights, "
                f"got {leaf.shape}"
            )
        is_row = (weight > 0).reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(is_row, leaf, jnp.zeros((), leaf.dtype))

    return jax.tree.map(clean, rows)


def checked_rows(values: Array, num_rows: int, name: str) -> Array:
    """The values if there is one for each row.

    Args:
        values: What a function of rows returned.
        num_rows: b.
        name: Of the function, for the message.

    Returns:
        The same values.

    Raises:
        ValueError: if they are not [b].
    """
    if values.shape != (num_rows,):
        raise ValueError(f"{name} must return one value a row, [{num_rows}], got {values.shape}")
    return values


def flat_params(params: Any) -> tuple[Float[Array, " p"], Callable[[Array], Any]]:
    """The parameters as one vector and the way back.

    Args:
        params: Pytree of floating arrays of one type.

    Returns:
        [p] and the function from [p] to the pytree.

    Raises:
        ValueError: if there is no leaf, or a leaf is no floating array.
    """
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise ValueError("params holds no array")
    for leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"params must be floating arrays, got a leaf of {leaf.dtype}")
    return ravel_pytree(params)


def hessian_operator(loss_fn: LossFn, params: Any, batch: Any, chunk: int) -> Any:
    """``v[q, p] -> H v`` of flat vectors, the forward pass and its linearisation kept.

    To be used inside a jit. See ``hessian_vector_products``.

    Args:
        loss_fn: ``fn(params, batch) -> []``.
        params: Pytree of floats.
        batch: Pytree of arrays.
        chunk: Vectors worked on at a time.

    Returns:
        The function.
    """
    flat, unravel = flat_params(params)

    def loss(vector: Array) -> Array:
        value = called(loss_fn, unravel(vector), batch)
        if jnp.shape(value) != ():
            raise ValueError(f"loss_fn must return a scalar, got shape {jnp.shape(value)}")
        return value

    _, product = jax.linearize(jax.grad(loss), flat)
    return lambda v: jax.lax.map(product, v.astype(flat.dtype), batch_size=chunk)


def ggn_operator(
    logits_fn: RowFn, params: Any, batch: Any, weight: Float[Array, " b"], chunk: int
) -> Any:
    """``v[q, p] -> G v`` of flat vectors; to be used inside a jit. See ``ggn_vector_products``.

    Args:
        logits_fn: ``fn(params, batch) -> [b, c]``.
        params: Pytree of floats.
        batch: Pytree of arrays [b, ...].
        weight: [b], 0 for padding.
        chunk: Vectors worked on at a time.

    Returns:
        The function.
    """
    flat, unravel = flat_params(params)
    rows = without_padding(batch, weight)
    logits, push = jax.linearize(lambda vector: called(logits_fn, unravel(vector), rows), flat)
    if logits.ndim != 2 or len(logits) != len(weight):
        raise ValueError(f"logits_fn must return [{len(weight)}, c], got {logits.shape}")
    pull = jax.linear_transpose(push, flat)
    p = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

    def product(vector: Array) -> Array:
        u = push(vector).astype(jnp.float32)
        inner = weight[:, None] * p * (u - jnp.sum(p * u, axis=-1, keepdims=True))
        out: Array = pull(inner.astype(logits.dtype))[0]
        return out

    return lambda v: jax.lax.map(product, v.astype(flat.dtype), batch_size=chunk)


@partial(jax.jit, static_argnames=("loss_fn", "chunk"))
def hessian_vector_products(
    params: Any, batch: Any, vectors: Any, *, loss_fn: LossFn, chunk: int = 16
) -> Any:
    """``H v_j`` with ``H = d^2 loss / d params^2``, for q vectors at once.

    The gradient is linearised once; each vector then costs one application of that linear map,
    no forward pass. ``WeightedLoss`` makes a mean loss, with padding, of a loss of rows.

    Args:
        params: Pytree of floating arrays, p numbers in all.
        batch: Pytree of arrays, handed to the loss.
        vectors: [q, p], or a pytree like params with a leading axis q.
        loss_fn: ``fn(params, batch) -> []`` (``fn(params, *batch)`` for a tuple), twice
            differentiable; static.
        chunk: Vectors worked on at a time; changes only memory and speed.

    Returns:
        Like ``vectors``.

    Raises:
        ValueError: if the loss is no scalar, params are no floats, or vectors do not fit them.

    **Cost**: about one gradient to linearise, then about two gradients a vector; the activations
    of the whole batch, and chunk times those of the tangent, are held.
    **Assumes / fails on**: piecewise linear networks have no curvature inside the layers; at a kink
    one side is taken. In the precision of params and of the loss's own products.

    Reference: Pearlmutter, 1994.
    """
    flat, back = _flat_vectors(params, vectors)
    return back(hessian_operator(loss_fn, params, batch, chunk)(flat))


@partial(jax.jit, static_argnames=("logits_fn", "chunk"))
def ggn_vector_products(
    params: Any,
    batch: Any,
    weight: Float[Array, " b"],
    vectors: Any,
    *,
    logits_fn: RowFn,
    chunk: int = 16,
) -> Any:
    """``G v`` with the Gauss-Newton matrix of softmax cross-entropy, ``G = sum_i w_i J^T S J``.

    J is the Jacobian of the logits of row i and ``S = diag(p) - p p^T``: one product with J
    forward, the closed form between, one with J^T backward. G is never negative, and does not
    depend on the labels.

    Args:
        params: Pytree of floating arrays, p numbers in all.
        batch: Pytree of arrays [b, ...], handed to the function.
        weight: [b] weight of each row: 1/n for the mean over n rows, 0 for padding.
        vectors: [q, p], or a pytree like params with a leading axis q.
        logits_fn: ``fn(params, batch) -> [b, c]``; static.
        chunk: Vectors worked on at a time; changes only memory and speed.

    Returns:
        Like ``vectors``.

    Raises:
        ValueError: if the logits are not [b, c], params are no floats, or shapes do not fit.

    **Cost**: one forward pass, then about two forward passes a vector.
    **Assumes / fails on**: the loss is cross-entropy of a softmax. Equals the Hessian where the
    logits are linear in the parameters, and at a perfect fit.

    Reference: Schraudolph, 2002.
    """
    flat, back = _flat_vectors(params, vectors)
    return back(ggn_operator(logits_fn, params, batch, weight, chunk)(flat))


def softmax_hessian_products(
    features: Float[Array, "n d"],
    probabilities: Float[Array, "n c"],
    weight: Float[Array, " n"],
    vectors: Float[Array, "q c d"],
) -> Float[Array, "q c d"]:
    """``H V`` of softmax regression in closed form.

    With ``U = A V^T``: ``H V = (w o p o (U - <U, p>))^T A`` for logits ``A W^T``. Classes come
    before features, so that both products run along the rows of A without a transposed copy.

    Args:
        features: [n, d] A, a column of ones among them where the head has a bias.
        probabilities: [n, c] softmax of the logits.
        weight: [n] 1/n for a row, 0 for padding (whose features must be finite).
        vectors: [q, c, d].

    Returns:
        [q, c, d].

    **Cost**: 4 n d c q FLOP in float32 (precision HIGHEST); 2 n c q floats held, 128 MB at most.

    Reference: Boehning, 1992.
    """
    q, c, d = vectors.shape
    n = len(features)
    p = probabilities.T

    def between(u: Array) -> Array:
        return (weight * p) * (u - jnp.sum(p * u, axis=0))

    def block(v: Array) -> Array:
        u = jnp.matmul(v.reshape(-1, d), features.T, precision=HIGHEST).reshape(-1, c, n)
        # one vector after the other: its logits stay in the cache, those of all are read thrice
        inner = jax.lax.map(between, u)
        return jnp.matmul(inner.reshape(-1, n), features, precision=HIGHEST).reshape(-1, c, d)

    step = max(_HELD_FLOATS // max(n * c, 1), 1)
    if q <= step:
        return block(vectors)
    blocks = jnp.pad(vectors, ((0, -q % step), (0, 0), (0, 0))).reshape(-1, step, c, d)
    out: Array = jax.lax.map(block, blocks).reshape(-1, c, d)[:q]
    return out


def _flat_vectors(params: Any, vectors: Any) -> tuple[Array, Callable[[Array], Any]]:
    """Vectors as [q, p], and the way back to the form they came in."""
    flat, unravel = flat_params(params)
    if isinstance(vectors, jax.Array) and vectors.ndim == 2 and vectors.shape[1] == flat.size:
        return vectors, lambda out: out
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(vectors)]
    wanted = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    form: Any = jax.tree.structure(params)
    same = form == jax.tree.structure(vectors)
    if not same or [shape[1:] for shape in shapes] != wanted or len({s[:1] for s in shapes}) != 1:
        raise ValueError(
            f"vectors must be [q, {flat.size}] or shaped like params with a leading axis, "
            f"got shapes {shapes} for {wanted}"
        )
    return jax.vmap(lambda tree: ravel_pytree(tree)[0])(vectors), jax.vmap(unravel)
