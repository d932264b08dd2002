"""Training as pure functions of a state: Adam under a cosine, every batch of one shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from ._model import CrossEntropy, Model, cross_entropy
from .networks import Architecture, NetworkFn, draw_weights

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Bool, Float, Int

_ADAM = optax.scale_by_adam()


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "constants", "moments", "count", "learning_rate", "num_steps"],
    meta_fields=["architecture"],
)
@dataclass(frozen=True)
class TrainState:
    """Everything a step changes or needs. The schedule is an operand: another one compiles nothing.

    Attributes:
        params: What is trained.
        constants: What the network keeps but does not train.
        moments: Adam's.
        count: [] int32 steps done.
        learning_rate: [] float32 at the start.
        num_steps: [] float32 steps until it has fallen to zero.
        architecture: Static.
    """

    params: Any
    constants: Any
    moments: Any
    count: Array
    learning_rate: Array
    num_steps: Array
    architecture: Architecture


class Seen(NamedTuple):
    """What the network said of the rows of a batch before the step that used them; 0 for padding.

    Of device arrays in a step, of host arrays [r, epochs] in the record of a training.

    Attributes:
        losses: [b] cross-entropy, nats.
        margins: [b] logit of the own class less the largest other one (0 with a single class).
        errors: [b] ``|softmax(z) - onehot(y)|_2``, 0 to sqrt(2).
        correct: [b] bool.
    """

    losses: Any
    margins: Any
    errors: Any
    correct: Any


def init(
    architecture: Architecture,
    noise: Float[Array, " p"],
    mean: Float[Array, " k"],
    inverse_scale: Float[Array, " k"],
    learning_rate: Float[Array, ""],
    num_steps: Float[Array, ""],
) -> TrainState:
    """A new network, its optimiser and its schedule.

    Args:
        architecture: Static.
        noise: [p] standard normal numbers, ``networks.num_weights`` of them.
        mean: [channels or columns] of the data, from ``networks.scaling``.
        inverse_scale: The same, 0 for a constant column.
        learning_rate: [] at the first step.
        num_steps: [] of the whole training.

    Returns:
        The state before the first step.
    """
    network = architecture.build()
    network.mean[...] = mean
    network.inverse_scale[...] = inverse_scale
    parts: Any = nnx.split(network, nnx.Param, ...)
    _, gains, constants = parts
    params = draw_weights(gains, noise)
    return TrainState(
        params, constants, _ADAM.init(params), jnp.zeros((), jnp.int32),
        jnp.asarray(learning_rate, jnp.float32), jnp.asarray(num_steps, jnp.float32), architecture,
    )  # fmt: skip


def step(
    state: TrainState, x: Array, y: Int[Array, " b"], mask: Bool[Array, " b"]
) -> tuple[TrainState, Seen]:
    """One step on the mean cross-entropy of the rows that count.

    Args:
        state: Before the step.
        x: [b, ...] uint8 images or float32 rows; padding may hold anything.
        y: [b] int32 classes 0..c-1; padding may hold anything.
        mask: [b] True for a row, False for padding.

    Returns:
        The state after the step, and what was seen before it.
    """
    # Zeroed, not just weighted by zero: zero times infinity is no number.
    x = jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype))
    y = jnp.where(mask, y, 0)
    logits_fn = NetworkFn(state.architecture, "logits")

    def objective(params: Any) -> tuple[Array, tuple[Array, Array]]:
        logits = logits_fn((params, state.constants), x)
        losses = jnp.where(mask, cross_entropy(logits, y), 0.0)
        return jnp.sum(losses) / jnp.maximum(jnp.sum(mask), 1), (losses, logits)

    grads, (losses, logits) = jax.grad(objective, has_aux=True)(state.params)
    updates, moments = _ADAM.update(grads, state.moments)
    progress = jnp.minimum(state.count / state.num_steps, 1.0)
    rate = state.learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    after = replace(state, params=params, moments=moments, count=state.count + 1)
    return after, _seen(logits, losses, y, mask)


def _seen(logits: Array, losses: Array, y: Array, mask: Array) -> Seen:
    logits = logits.astype(jnp.float32)
    own = jax.nn.one_hot(y, logits.shape[-1], dtype=jnp.bool_)
    margins = jnp.zeros_like(losses)
    if logits.shape[-1] > 1:
        best_other = jnp.max(jnp.where(own, -jnp.inf, logits), axis=-1)
        margins = jnp.sum(jnp.where(own, logits, 0.0), axis=-1) - best_other
    errors = jnp.sqrt(jnp.sum((jax.nn.softmax(logits, axis=-1) - own) ** 2, axis=-1))
    correct = mask & (jnp.argmax(logits, axis=-1) == y)
    return Seen(losses, jnp.where(mask, margins, 0.0), jnp.where(mask, errors, 0.0), correct)


def to_model(state: TrainState, name: str = "trained") -> Model:
    """The network as it stands, as a model."""
    fns = {m: NetworkFn(state.architecture, m) for m in ("features", "logits", "early_features")}
    loss = CrossEntropy(fns["logits"])
    return Model((state.params, state.constants), loss=loss, name=name, **fns)
