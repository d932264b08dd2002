"""EK-FAC: influence with a Kronecker-factored eigenbasis, from rotated taps.

The Fisher matrix of a layer is taken as diagonal in the basis ``Q_a (x) Q_d`` of the eigenvectors
of the second moments of its inputs A and output gradients D, with the true second moments
``Lambda`` on that diagonal. Only taps are rotated, never a gradient, and nothing is rotated back:
in the eigenbasis the row's gradient is ``(A Q_a)^T (D Q_d)``. Steps: ``ekfac_moments`` over all
rows, eigenvectors on the host, ``ekfac_eigenvalues`` over all rows, then scores. The driver of the
fit is ``jaxpoison.linalg.ekfac.fit_ekfac``.

**Scores are the predicted change of a loss when the row is removed from training, in units of the
loss: positive where the loss rises without it, so where the row was helpful.** They are
``g_q^T (Lambda + lambda)^-1 g / n`` with n rows trained on; libraries that report the raw
``g_q^T (Lambda + lambda)^-1 g`` have n times as much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from ._ekfac_layers import (
    LayerBasis,
    LowRank,
    augmented_gram,
    gram,
    layer_scores,
    query_side,
    squared_sum,
    weighted_squares,
    width,
)
from ._ekfac_sums import EKFACSums as EKFACSums
from ._ekfac_sums import is_row_of, summed
from ._masked import HIGHEST
from .gradient_norms import by_chunks, check_rows
from .last_layer import Scored, scored
from .taps import LossFn, TapPlan, Taps, plan_taps

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float, Int


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["basis", "weights", "rest", "num_rows"],
    meta_fields=[],
)
@dataclass(frozen=True, eq=False)
class EKFACInverse:
    """The damped inverse in its eigenbasis, as the scores need it.

    Attributes:
        basis: Eigenvectors of each layer.
        weights: ``1 / (Lambda + lambda)`` of each layer, [i', o] or a ``LowRank`` form of it
            (T = 1 only); zero for what is left out.
        rest: The same of each leaf that no tap reaches, [*leaf]; None leaves it out.
        num_rows: n of the training set, by which the scores are divided.
    """

    basis: tuple[LayerBasis, ...]
    weights: tuple[Array | LowRank, ...]
    rest: tuple[Array | None, ...]
    num_rows: Array | float


def ekfac_moments(
    loss_fn: LossFn,
    params: Any,
    batch: Any,
    mask: Float[Array, " b"] | None = None,
    *,
    chunk: int | None = None,
    trainable: Any = None,
) -> EKFACSums:
    """``sum a a^T`` and ``sum d d^T`` over rows and positions, for each layer.

    The bias is an appended input of one; a convolution's inputs are patches. Their divisors do
    not matter: only eigenvectors are taken from them.

    Args:
        loss_fn: ``loss_fn(params, *batch)`` where batch is a tuple, else
            ``loss_fn(params, batch)``; [b] losses or their sum. See ``plan_taps``.
        params: Pytree of floating arrays.
        batch: Pytree whose leaves begin with the axis of b rows.
        mask: [b] positive for a row, 0 for padding, which adds exactly zero.
        chunk: Rows whose taps are held at a time; changes only speed and memory.
        trainable: Which leaves count; see ``plan_taps``.

    Returns:
        Sums in float32; rows with a tap that is not finite are left out and counted.

    Raises:
        ValueError: See ``plan_taps``; a chunk below 1 or a mask that is not [b].

    **Cost**: the taps (4 T P flop a row) and 2 T (i'^2 + o^2) flop a row and layer;
    b T i' numbers of patches a chunk for a convolution.
    **Assumes / fails on**: float32 at the highest precision inside a batch. All positions of a
    row count alike, also those whose output gradient is zero.

    Reference: George et al., 2018, arXiv:1806.03884; Grosse et al., 2023, arXiv:2308.03296.
    """
    plan = plan_taps(loss_fn, params, batch, trainable=trainable)
    check_rows(batch, mask, chunk)
    out: EKFACSums = _moments(plan, params, batch, mask, chunk)
    return out


def ekfac_eigenvalues(
    loss_fn: LossFn,
    params: Any,
    batch: Any,
    mask: Float[Array, " b"] | None = None,
    *,
    basis: tuple[LayerBasis, ...],
    chunk: int | None = None,
    trainable: Any = None,
) -> EKFACSums:
    """``sum_b (sum_t a~_bt d~_bt^T)^2`` with ``a~ = Q_a^T a`` and ``d~ = Q_d^T d``, each layer.

    For T = 1 that is ``(A~^2)^T (D~^2)``: no gradient of a row is formed.

    Args:
        loss_fn: See ``ekfac_moments``.
        params: Pytree of floating arrays.
        batch: Of b rows.
        mask: [b] positive for a row, 0 for padding, which adds exactly zero.
        basis: Eigenvectors of each layer, in the order of ``TapPlan.layers``.
        chunk: Rows whose taps are held at a time.
        trainable: See ``plan_taps``.

    Returns:
        Sums in float32; divided by their number of rows they are Lambda.

    Raises:
        ValueError: See ``ekfac_moments``; a basis that does not fit the layers.

    **Cost**: the taps, then a row and layer T = 1: 2 (i'^2 + o^2) + 2 i' o flop; T > 1:
    2 T i' o + 2 i'^2 min(T, o) + 2 o^2 min(T, i'), with one gradient [i', o] held (CPU; many on
    an accelerator). A gradient rotated on both sides would take 2 i' o (i' + o).

    Reference: George et al., 2018, arXiv:1806.03884.
    """
    plan = plan_taps(loss_fn, params, batch, trainable=trainable)
    check_rows(batch, mask, chunk)
    _check_basis(plan, basis)
    out: EKFACSums = _eigenvalues(plan, params, batch, mask, basis, chunk)
    return out


def ekfac_self_influence(
    loss_fn: LossFn,
    params: Any,
    batch: Any,
    mask: Float[Array, " b"] | None = None,
    *,
    inverse: EKFACInverse,
    chunk: int | None = None,
    trainable: Any = None,
) -> Scored:
    """``sum_ij (sum_t a~_i d~_j)^2 / (Lambda_ij + lambda) / n`` of each row, over all layers.

    Args:
        loss_fn: See ``ekfac_moments``.
        params: Pytree of floating arrays.
        batch: Of b rows.
        mask: [b] positive for a row, 0 for padding, whose score is 0.
        inverse: From ``jaxpoison.linalg.ekfac.invert_ekfac``.
        chunk: Rows whose taps are held at a time.
        trainable: See ``plan_taps``; as in the fit.

    Returns:
        [b] predicted rise of the row's own loss when it is removed, in units of the loss, never
        negative (with full weights), and a status of each.

    Raises:
        ValueError: See ``ekfac_eigenvalues``.

    **Cost**: as ``ekfac_eigenvalues``.
    **Assumes / fails on**: the layers' gradients are taken as uncorrelated between layers.

    Reference: Grosse et al., 2023, arXiv:2308.03296.
    """
    plan = plan_taps(loss_fn, params, batch, trainable=trainable)
    check_rows(batch, mask, chunk)
    _check_inverse(plan, inverse)
    out: Scored = _self_influence(plan, params, batch, mask, inverse, chunk)
    return out


def ekfac_influence(
    loss_fn: LossFn,
    params: Any,
    batch: Any,
    queries: Any,
    mask: Float[Array, " n"] | None = None,
    query_mask: Float[Array, " q"] | None = None,
    *,
    inverse: EKFACInverse,
    chunk: int | None = None,
    trainable: Any = None,
) -> Scored:
    """``g_q^T (Lambda + lambda)^-1 g_b / n`` of all pairs of queries and rows.

    With T = 1 nothing of a pair is formed: ``a~_b^T (W o a~_q d~_q^T) d~_b``, or with a low-rank
    form of W ``sum_r ((A~_q o w_r) A~^T) o ((D~_q o v_r) D~^T)``. With T > 1 the gradients of the
    queries are held in the eigenbasis, times W.

    Args:
        loss_fn: See ``ekfac_moments``; the queries' losses are asked about.
        params: Pytree of floating arrays.
        batch: Of n training rows.
        queries: Of q rows of the same shapes.
        mask: [n] positive for a row, 0 for padding, whose scores are 0.
        query_mask: The same of the queries, [q].
        inverse: From ``jaxpoison.linalg.ekfac.invert_ekfac``.
        chunk: Rows of batch whose taps are held at a time.
        trainable: See ``plan_taps``; as in the fit.

    Returns:
        [q, n] predicted change of the query's loss when the row is removed from training,
        positive where the row was helpful, and a status of each.

    Raises:
        ValueError: See ``ekfac_eigenvalues``; queries of another shape.

    **Cost**: a pair and layer 2 i' o flop, or 2 r (i' + o) with rank r; the rotations of
    ``ekfac_eigenvalues`` for each row; q i' o numbers for each layer with T > 1.

    Reference: Grosse et al., 2023, arXiv:2308.03296.
    """
    plan = plan_taps(loss_fn, params, batch, trainable=trainable)
    check_rows(batch, mask, chunk)
    check_rows(queries, query_mask, None)
    _check_inverse(plan, inverse)
    out: Scored = _influence(plan, params, batch, queries, mask, query_mask, inverse, chunk)
    return out


@partial(jax.jit, static_argnames="logits_fn")
def sample_labels(
    params: Any,
    inputs: Any,
    key: Array,
    *,
    logits_fn: Callable[[Any, Any], Array],
    first_row: Int[Array, ""] | int = 0,
) -> Int[Array, "b ..."]:
    """Labels drawn from the model's own probabilities, for the Fisher matrix proper.

    Row b takes ``fold_in(key, first_row + b)``, so neither batch size nor padding changes a label.

    Args:
        params: Of the model.
        inputs: Pytree whose leaves begin with the axis of b rows.
        key: Typed key.
        logits_fn: ``logits_fn(params, inputs) -> [b, ..., c]``; static.
        first_row: Number of the first of these rows among all.

    Returns:
        [b, ...] int32 classes.

    **Cost**: one forward pass.
    """
    logits = logits_fn(params, inputs)
    rows = jnp.arange(len(logits)) + first_row
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    labels: Array = jax.vmap(jax.random.categorical)(keys, logits.astype(jnp.float32))
    return labels


@partial(jax.jit, static_argnums=(0, 4))
def _moments(plan: TapPlan, params: Any, batch: Any, mask: Any, chunk: int | None) -> EKFACSums:
    def of_rows(taps: Taps, is_row: Array) -> tuple[Any, Any]:
        layers = []
        for tap in taps.layers:
            inputs = None if tap.layer.kind == "embedding" else augmented_gram(tap, is_row)
            layers.append((inputs, gram(tap.cotangents.astype(jnp.float32))))
        return tuple(layers), ()

    return summed(plan, params, batch, mask, chunk, of_rows)


@partial(jax.jit, static_argnums=(0, 5))
def _eigenvalues(
    plan: TapPlan, params: Any, batch: Any, mask: Any, basis: Any, chunk: int | None
) -> EKFACSums:
    def of_rows(taps: Taps, is_row: Array) -> tuple[Any, Any]:
        layers = tuple(squared_sum(t, is_row, b) for t, b in zip(taps.layers, basis, strict=True))
        rest = tuple(jnp.sum(jnp.square(g.astype(jnp.float32)), axis=0) for g in taps.rest)
        return layers, rest

    return summed(plan, params, batch, mask, chunk, of_rows)


@partial(jax.jit, static_argnums=(0, 5))
def _self_influence(
    plan: TapPlan, params: Any, batch: Any, mask: Any, inverse: EKFACInverse, chunk: int | None
) -> Scored:
    def of_rows(rows: Any, mask: Any) -> Array:
        taps = plan(params, rows, mask)
        is_row = is_row_of(taps, mask)
        total = jnp.zeros(is_row.shape, jnp.float32)
        for tap, basis, weights in zip(taps.layers, inverse.basis, inverse.weights, strict=True):
            total += weighted_squares(tap, is_row, basis, weights)
        for gradient, weight in zip(taps.rest, inverse.rest, strict=True):
            if weight is not None:
                flat = gradient.reshape(len(gradient), -1).astype(jnp.float32)
                total += jnp.sum(flat * flat * weight.reshape(-1), axis=1)
        return total

    return scored(by_chunks(of_rows, batch, mask, chunk) / inverse.num_rows)


@partial(jax.jit, static_argnums=(0, 7))
def _influence(
    plan: TapPlan, params: Any, batch: Any, queries: Any, mask: Any, query_mask: Any,
    inverse: EKFACInverse, chunk: int | None,
) -> Scored:  # fmt: skip
    asked = plan(params, queries, query_mask)
    is_query = is_row_of(asked, query_mask)
    parts = tuple(zip(inverse.basis, inverse.weights, strict=True))
    kept = [query_side(t, is_query, *p) for t, p in zip(asked.layers, parts, strict=True)]

    def of_rows(rows: Any, mask: Any) -> Array:
        taps = plan(params, rows, mask)
        is_row = is_row_of(taps, mask)
        total = jnp.zeros((len(is_row), len(is_query)), jnp.float32)
        for tap, part, query in zip(taps.layers, parts, kept, strict=True):
            total += layer_scores(tap, is_row, *part, query)
        for gradient, query, weight in zip(taps.rest, asked.rest, inverse.rest, strict=True):
            if weight is not None:
                flat = gradient.reshape(len(gradient), -1).astype(jnp.float32)
                other = (query * weight).reshape(len(query), -1).astype(jnp.float32)
                total += jnp.matmul(flat, other.T, precision=HIGHEST)
        return total

    return scored(by_chunks(of_rows, batch, mask, chunk).T / inverse.num_rows)


def _check_basis(plan: TapPlan, basis: tuple[LayerBasis, ...]) -> None:
    if len(basis) != len(plan.layers):
        raise ValueError(f"the loss has {len(plan.layers)} layers, the basis has {len(basis)}")
    for layer, (inputs, cotangents) in zip(plan.layers, basis, strict=True):
        i, o = width(layer), layer.num_outputs
        expected = (None if layer.kind == "embedding" else (i, i), (o, o))
        seen = (None if inputs is None else jnp.shape(inputs), jnp.shape(cotangents))
        if seen != expected:
            raise ValueError(
                f"basis of {layer.name} must have shapes {expected}, got {seen}: fit it on the "
                "same loss, parameters and trainable leaves"
            )


def _check_inverse(plan: TapPlan, inverse: EKFACInverse) -> None:
    _check_basis(plan, inverse.basis)
    if len(inverse.weights) != len(plan.layers) or len(inverse.rest) != len(plan.rest):
        raise ValueError(
            f"the loss has {len(plan.layers)} layers and {len(plan.rest)} other leaves, the "
            f"inverse has {len(inverse.weights)} and {len(inverse.rest)}"
        )
    for layer, weights in zip(plan.layers, inverse.weights, strict=True):
        if isinstance(weights, LowRank) and layer.num_positions > 1:
            raise ValueError(
                f"weights of {layer.name} are of low rank, but it has T = {layer.num_positions}"
            )
