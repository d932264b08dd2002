"""Taps: the inputs and output gradients of every layer, from one backward of the summed loss.

Per-row gradient norms, influence and clipped gradients of a layer ``y = A W`` need no weight
gradient of any row: the row's is ``A_b^T D_b`` with its inputs A_b and the gradient D_b of its loss
in the layer's outputs. All rows' D come from one backward in zero shifts added to the outputs.
Which leaves are reached so, and which by ``vmap(grad)``, a plan says before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from ._tap_layers import ConvGeometry as ConvGeometry
from ._tap_layers import Layer as Layer
from ._tap_layers import Step, moved
from ._tap_layers import Tap as Tap
from ._tap_layers import leaf_to_matrix as leaf_to_matrix
from ._tap_layers import matrix_to_leaf as matrix_to_leaf
from ._tap_layers import tap_inputs as tap_inputs
from ._tap_walker import Use
from ._tapped_loss import Found, Signature, mark_loss, walk_loss

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float

LossFn: TypeAlias = Callable[..., Array]
"""``loss_fn(params, *batch) -> [b]`` for a batch that is a tuple, else of ``(params, batch)``."""


@dataclass(frozen=True, eq=False)
class TapPlan:
    """How the gradients of each leaf are reached; static, made once for a loss and its shapes.

    Equal to itself only; ``plan_taps`` gives the same object for the same loss and shapes, so a
    compiled function that has it as a static argument is found again.

    Attributes:
        layers: What is tapped.
        names: Path of each leaf of the parameters.
        rest: Numbers of the leaves whose gradients of each row are formed.
        coverage: How each leaf is reached: {path: "dense", "conv", "embedding", "bias" of such a
            layer, "vmap(grad)", "unused" by the loss, or "frozen"}.
        leaf_shapes: Of all leaves.
    """

    layers: tuple[Layer, ...]
    names: tuple[str, ...]
    rest: tuple[int, ...]
    coverage: dict[str, str]
    leaf_shapes: tuple[tuple[int, ...], ...]
    _signature: Signature
    _found: Found

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Of each column of per-layer values: the layers, then the leaves of ``rest``."""
        return (*(layer.name for layer in self.layers), *(self.names[n] for n in self.rest))

    def __call__(self, params: Any, batch: Any, mask: Array | None = None) -> Taps:
        """Taps of a batch; pure and not jitted, for use inside a jitted function.

        Args:
            params: Pytree like the one the plan was made for.
            batch: Pytree whose leaves begin with the axis of rows.
            mask: [b] positive for a row, 0 for padding; None takes all rows.

        Returns:
            Losses, taps and remaining gradients; zero for masked rows.

        Raises:
            ValueError: if params or batch differ in structure or shapes from the plan's.
        """
        leaves, rows = self._signature.leaves_of(params, batch)
        found = self._found
        shifts = tuple(jnp.zeros(*use.output) for use in found.uses)
        rest = tuple(leaves[n] for n in self.rest)

        def of_row(row: list[Array]) -> Any:
            def loss(free: Any) -> Any:
                shifts, rest = free
                used = list(leaves)
                for n, leaf in zip(self.rest, rest, strict=True):
                    used[n] = leaf
                value, inputs = found.run(shifts, (*used, *(x[None] for x in row)))
                return value.reshape(()), (value.reshape(()), inputs)

            gradients, (value, inputs) = jax.grad(loss, has_aux=True)((shifts, rest))
            cotangents = tuple(map(_laid_out, gradients[0], inputs, found.uses))
            return value, inputs, cotangents, gradients[1]

        losses, inputs, cotangents, gradients = jax.vmap(of_row)(rows)
        return self._gathered(losses, inputs, cotangents, gradients, mask)

    def _gathered(
        self, losses: Array, inputs: Any, cotangents: Any, gradients: Any, mask: Array | None
    ) -> Taps:
        def kept(x: Array, empty: int = 0) -> Array:
            if mask is None:
                return x
            rows = (jnp.asarray(mask) > 0).reshape(-1, *[1] * (x.ndim - 1))
            return jnp.where(rows, x, jnp.asarray(empty, x.dtype))

        taps = []
        for layer, members in zip(self.layers, self._found.members, strict=True):
            a = [kept(inputs[k], -1 if layer.kind == "embedding" else 0) for k in members]
            d = [kept(cotangents[k]) for k in members]
            # uses of one leaf, one after the other: the product of the two sums over the uses
            taps.append(Tap(_joined(a), _joined(d), layer))
        return Taps(kept(losses), tuple(taps), tuple(map(kept, gradients)), self)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["losses", "layers", "rest"],
    meta_fields=["plan"],
)
@dataclass(frozen=True)
class Taps:
    """What one backward of the summed loss gives.

    Attributes:
        losses: [b] of each row.
        layers: One tap a layer, in the order of ``plan.layers``.
        rest: [b, *leaf] gradients of each row in the leaves of ``plan.rest``.
        plan: What they were made by; static.
    """

    losses: Array
    layers: tuple[Tap, ...]
    rest: tuple[Array, ...]
    plan: TapPlan


def plan_taps(loss_fn: LossFn, params: Any, batch: Any, *, trainable: Any = None) -> TapPlan:
    """Finds the layers of a loss in its trace: every product of inputs with one parameter leaf.

    Found are ``dot_general`` and ``conv_general_dilated`` with one operand that is a leaf, only
    reshaped, transposed or cast, the rows looked up in a leaf, and the bias added to such a
    product; also inside jit, remat and closed calls. A leaf used twice in one layout is one layer
    with the uses' positions joined. All other leaves are reached by ``vmap(grad)``: norm scales,
    grouped convolutions, products over a batch axis, tied weights in two layouts, leaves that a
    scan, a branch or a custom derivative rule takes in (only the rule knows their gradient).

    Args:
        loss_fn: ``loss_fn(params, *batch)`` where batch is a tuple, else
            ``loss_fn(params, batch)``; gives [b] losses, or one loss for the whole batch. It must
            be hashable.
        params: Pytree of floating arrays (or their shapes).
        batch: Pytree whose leaves begin with the axis of rows; only the shapes count.
        trainable: None for all leaves, or a prefix of params with a bool for each part; the rest is
            frozen, has no gradient, and may be of any type.

    Returns:
        The plan, the same object for the same loss, shapes and trainable leaves.

    Raises:
        ValueError: A leaf that is no floating array, rows that differ in number, a loss that is
            neither [b] nor a scalar, a loss that holds traced arrays, nothing to train.

    **Cost**: two traces of the loss the first time, nothing then.
    **Assumes / fails on**: the loss of a row must depend on that row only (no batch statistics); it
    is traced on a batch of one row, so a mean over the batch counts like a sum, and the loss must
    not squeeze the axis of rows away.
    """
    return _planned(walk_loss, loss_fn, params, batch, trainable)


def plan_explicit_taps(
    loss_fn: LossFn, params: Any, batch: Any, *, trainable: Any = None
) -> TapPlan:
    """The same, for a loss that marks its layers itself.

    ``loss_fn(params, *batch, tap)`` passes each product through ``y = tap(y, x, weight, bias)``,
    where ``y[..., o] = x[..., i] @ weight[i, o] (+ bias[o])`` and the weight and bias are leaves of
    params, used for nothing else. ``tap`` adds the zero shift that is differentiated in. For a
    convolution give the patches as x and a weight leaf of shape [*kernel, channels, o].

    Args:
        loss_fn: The loss.
        params: See ``plan_taps``.
        batch: See ``plan_taps``.
        trainable: See ``plan_taps``.

    Returns:
        The plan; leaves not marked are reached by ``vmap(grad)``.

    Raises:
        ValueError: As ``plan_taps``; a mark whose weight is no leaf, or whose shapes do not fit.

    **Cost**: three traces of the loss the first time, nothing then.
    **Assumes / fails on**: a marked leaf that is used elsewhere too gets a wrong gradient.
    """
    return _planned(mark_loss, loss_fn, params, batch, trainable)


def collect_taps(
    loss_fn: LossFn,
    params: Any,
    batch: Any,
    mask: Float[Array, " b"] | None = None,
    *,
    trainable: Any = None,
) -> Taps:
    """Inputs A and output gradients D of every layer, for all rows of a batch.

    Args:
        loss_fn: See ``plan_taps``.
        params: See ``plan_taps``.
        batch: Of b rows.
        mask: [b] positive for a row, 0 for padding, whose content is ignored.
        trainable: See ``plan_taps``.

    Returns:
        Losses, one tap a layer, gradients of the rows in all other leaves.

    Raises:
        ValueError: See ``plan_taps``.

    **Cost**: a forward and a backward in the activations: 4 b T P flop, two thirds of a training
    step; all inputs and output gradients are held, b T (i + o) numbers a layer, and b times the
    size of each leaf of ``plan.rest``.
    **Assumes / fails on**: taps have the dtype the model computes in. Rematerialised calls that
    hold a layer are laid open: their inputs are wanted, so there is nothing to compute again.
    """
    plan = plan_taps(loss_fn, params, batch, trainable=trainable)
    taps: Taps = _collected(plan, params, batch, mask)
    return taps


def _laid_out(cotangent: Array, inputs: Array, use: Use) -> Array:
    """[T, o]; a looked-up row that does not exist has none, whatever was filled in for it."""
    d: Array = moved(cotangent, use.output_steps)
    return jnp.where(inputs[:, None] >= 0, d, 0) if use.kind == "embedding" else d


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


@partial(jax.jit, static_argnums=0)
def _collected(plan: TapPlan, params: Any, batch: Any, mask: Array | None) -> Taps:
    return plan(params, batch, mask)


def _planned(find: Any, loss_fn: LossFn, params: Any, batch: Any, trainable: Any) -> TapPlan:
    signature, names, num_rows = Signature.of(params, batch, trainable)
    try:
        hash(loss_fn)
    except TypeError:
        raise ValueError(
            f"loss_fn is a {type(loss_fn).__name__} that is not hashable, so no compiled function "
            "could be found again; pass a function or a frozen dataclass"
        ) from None
    return _cached_plan(find, loss_fn, signature, names, _Rows(num_rows))


class _Rows(int):
    """Number of rows that the first caller has: a plan does not depend on it."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rows)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=64)
def _cached_plan(
    find: Any, loss_fn: LossFn, signature: Signature, names: tuple[str, ...], num_rows: _Rows
) -> TapPlan:
    found: Found = find(loss_fn, signature, int(num_rows))
    layers = tuple(
        _layer(names, signature.leaf_shapes, [found.uses[k] for k in members], bias)
        for members, bias in zip(found.members, found.biases, strict=True)
    )
    how = {n: "frozen" for n in range(len(names))}
    how |= dict.fromkeys(signature.trained, "unused") | dict.fromkeys(found.rest, "vmap(grad)")
    for layer in layers:
        how[layer.weight] = layer.kind
        if layer.bias is not None:
            how[layer.bias] = "bias"
    coverage = {name: how[n] for n, name in enumerate(names)}
    return TapPlan(layers, names, found.rest, coverage, signature.leaf_shapes, signature, found)


def _layer(
    names: Sequence[str], shapes: Sequence[tuple[int, ...]], uses: list[Use], bias: int | None
) -> Layer:
    use = uses[0]
    steps: tuple[Step, ...] = use.to_matrix
    return Layer(
        use.kind,
        names[use.leaf],
        use.leaf,
        bias,
        sum(each.sizes[0] for each in uses),
        *use.sizes[1:],
        steps,
        shapes[use.leaf],
        None if bias is None else shapes[bias],
        use.conv,
    )
