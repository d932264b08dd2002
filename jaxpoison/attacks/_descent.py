"""What the optimised attacks share: descent inside a ball, through a network, on padded rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import Array, HostArray
from jaxpoison.models import Model
from jaxpoison.stream import compiled

from ._checks import positive, share
from ._common import Task, as_type, value_range

Objective = Callable[[Model, Array, Array, Any], Array]
"""``fn(model, x[m, ...], weight[m], aux) -> scalar``; module-level, weight 0 for padding."""

_CHUNK = 256
_MOMENTUM = 0.9
_FIRST_STEP = 0.2  # of the ball's radius, falling to almost nothing


class Descended(NamedTuple):
    """Rows after the descent.

    Attributes:
        x: [m, ...] in the type of the data, inside the ball.
        before: Objective at the rows as they were.
        after: And at ``x``, rounding included.
    """

    x: HostArray
    before: float
    after: float


class _State(NamedTuple):
    """Of a descent: where it is, where it was best, and the largest gradient met."""

    delta: Array
    momentum: Array
    best: Array
    lowest: Array
    steepest: Array


def _step(
    model: Model,
    state: _State,
    base: Array,
    bounds: tuple[Array, Array],
    length: Array,
    weight: Array,
    aux: Any,
    *,
    objective: Objective,
) -> _State:
    """One signed step with momentum, projected."""
    value, grad = jax.value_and_grad(lambda d: objective(model, base + d, weight, aux))(state.delta)
    size = jnp.abs(grad).max()
    momentum = _MOMENTUM * state.momentum + grad / jnp.maximum(size, 1e-30)
    delta = jnp.clip(state.delta - length * jnp.sign(momentum), *bounds)
    best = jnp.where(value < state.lowest, state.delta, state.best)
    lowest = jnp.minimum(value, state.lowest)
    return _State(delta, momentum, best, lowest, jnp.maximum(size, state.steepest))


def _value(model: Model, x: Array, weight: Array, aux: Any, *, objective: Objective) -> Array:
    return objective(model, x, weight, aux)


def _layers(model: Model, x: Array) -> tuple[Array, Array]:
    return model.features(model.params, x), model.logits(model.params, x)


# A step and not the loop: on a CPU XLA runs convolutions inside a loop ten times slower.
_STEP = compiled(_step, static=("objective",))
_VALUE = compiled(_value, static=("objective",))
_LAYERS = compiled(_layers)


def descend(
    task: Task,
    model: Model,
    objective: Objective,
    rows: HostArray,
    aux: Callable[[int], Any],
    *,
    epsilon: float,
    steps: int,
) -> Descended:
    """Lowers an objective over rows of the data, inside a ball around each.

    Args:
        task: Of the attack.
        model: Operand of the objective.
        objective: What to lower.
        rows: [m] row numbers.
        aux: Padded number of rows -> what the objective needs besides, as arrays.
        epsilon: Radius, largest change of a value: as a share of the range in use (images) or in
            deviations of its column (rows).
        steps: Of the descent.

    Raises:
        UsageError: A ball that holds no other integer, or no steps.
        DataError: The model has no gradient at these rows.
    """
    positive(epsilon=epsilon)
    if task.x.ndim > 2:
        share(epsilon=epsilon)
    if steps < 1:
        raise UsageError(f"steps is {steps}; give at least 1")
    x = task.x[rows].astype(np.float32)
    low, high, radius = _ball(task, epsilon)
    # powers of two, so that another number of rows seldom compiles
    padded = 1 << max(len(rows) - 1, 0).bit_length()
    base = np.resize(x, (padded, *x.shape[1:]))
    bounds = np.maximum(low - base, -radius), np.minimum(high - base, radius)
    bounds = tuple(b.astype(np.float32) for b in bounds)
    weight = (np.arange(padded) < len(rows)).astype(np.float32)
    unit = np.broadcast_to(radius, x.shape[1:]).astype(np.float32)
    extra = aux(padded)
    zero = np.zeros_like(base)
    state = _State(zero, zero, zero, np.float32(np.inf), np.float32(0.0))
    for t in range(steps):
        length = _FIRST_STEP * (1.0 - t / steps) * unit
        state = _STEP(model, state, base, bounds, length, weight, extra, objective=objective)
    if not float(state.steepest) > 0:
        raise DataError(
            f"{model.name} has no gradient at these rows: it has learnt them so well that its loss "
            "is 0, or its features do not change with its inputs (as those of fit where images "
            "have more than 64 pixels a side); give other rows, another seed, or another model"
        )
    ends = [base, *(base + np.asarray(delta) for delta in (state.best, state.delta))]
    ends = [as_type(end, task.x.dtype, low, high) for end in ends]
    # after rounding, which can undo a tiny gain
    values = [
        float(_VALUE(model, end.astype(np.float32), weight, extra, objective=objective))
        for end in ends
    ]
    lowest = int(np.argmin(values))
    return Descended(ends[lowest][: len(rows)], values[0], values[lowest])


def _ball(task: Task, epsilon: float) -> tuple[Any, Any, Any]:
    """Lowest and highest value, and the radius, all in the units of the data."""
    if task.x.ndim == 2:
        return task.x.min(axis=0), task.x.max(axis=0), epsilon * task.x.std(axis=0)
    low, high = value_range(task.x)
    radius = epsilon * (high - low)
    if task.x.dtype.kind in "ui":
        radius = float(np.floor(radius + 1e-9))  # so that rounding stays inside
        if radius < 1:
            raise UsageError(
                f"epsilon is {epsilon}: less than one step of images up to {high:g}; give at least "
                f"{1 / (high - low):.3g}"
            )
    return low, high, radius


def check_model(task: Task, model: Model) -> HostArray:
    """Classes 0..c-1 as the model has them, [n]: the labels in use, ascending.

    Raises:
        UsageError: No model, or one of other classes.
    """
    if not isinstance(model, Model):
        raise UsageError(
            f"model is {type(model).__name__}; {task.name} needs a jaxpoison.models.Model, such as "
            "training.fit(source, labels, num_classes).model"
        )
    row = np.zeros((1, *task.x.shape[1:]), task.x.dtype)
    outputs = jax.eval_shape(model.logits, model.params, row).shape[-1]
    if outputs != task.classes.size:
        raise UsageError(
            f"model has {outputs} outputs, y has {task.classes.size} labels; give a model trained "
            "on np.unique(y, return_inverse=True)[1]"
        )
    return np.searchsorted(task.classes, task.y)


def layers_of(model: Model, x: HostArray) -> tuple[HostArray, HostArray]:
    """Features [m, d] and logits [m, c] of rows, in chunks of one shape."""
    parts = []
    for start in range(0, len(x), _CHUNK):
        chunk = x[start : start + _CHUNK].astype(np.float32)
        padded = np.zeros((_CHUNK, *chunk.shape[1:]), np.float32)
        padded[: len(chunk)] = chunk
        parts.append([np.asarray(part)[: len(chunk)] for part in _LAYERS(model, padded)])
    features, logits = (np.concatenate(part) for part in zip(*parts, strict=True))
    return features, logits


def mean_loss(model: Model, x: Array, weight: Array, classes: Array) -> Array:
    """Loss of the weighted rows under their classes."""
    return jnp.sum(weight * model.loss(model.params, x, classes)) / jnp.sum(weight)


def raised_loss(model: Model, x: Array, weight: Array, classes: Array) -> Array:
    """Minus the loss: lowering it makes rows hard to classify."""
    return -mean_loss(model, x, weight, classes)


def kernel_gradient(model: Model, x: Array, weight: Array, classes: Array) -> list[Array]:
    """Gradient of the mean loss by every array of two or more dimensions in the parameters.

    Biases and constants, such as the scaling of inputs, have one dimension.
    """
    leaves, tree = jax.tree.flatten(model.params)
    chosen = [
        i for i, a in enumerate(leaves) if a.ndim > 1 and jnp.issubdtype(a.dtype, jnp.floating)
    ]

    def loss(kernels: list[Array]) -> Array:
        put = dict(zip(chosen, kernels, strict=True))
        params = jax.tree.unflatten(tree, [put.get(i, a) for i, a in enumerate(leaves)])
        return jnp.sum(weight * model.loss(params, x, classes)) / jnp.sum(weight)

    gradient: list[Array] = jax.grad(loss)([leaves[i] for i in chosen])
    return gradient


def head_gradient(model: Model, x: Array, weight: Array, classes: Array) -> list[Array]:
    """Gradient of the mean cross-entropy by a linear last layer: ``(p - e_y) (f, 1)'``."""
    features, logits = _layers(model, x)
    error = jax.nn.softmax(logits) - jax.nn.one_hot(classes, logits.shape[-1])
    features = jnp.concatenate([features, jnp.ones_like(features[:, :1])], axis=1)
    product = jnp.einsum(
        "m,mc,md->cd", weight, error, features, precision=jax.lax.Precision.HIGHEST
    )
    return [product / jnp.sum(weight)]


GRADIENTS = {"all": kernel_gradient, "last": head_gradient}


def _unaligned(gradient: Any, model: Model, x: Array, weight: Array, aux: Any) -> Array:
    """One minus the cosine of the rows' gradient with the one wanted."""
    classes, wanted = aux
    mine = gradient(model, x, weight, classes)
    dot = sum(jnp.vdot(a, b) for a, b in zip(mine, wanted, strict=True))
    lengths = [jnp.sqrt(sum(jnp.vdot(a, a) for a in side)) for side in (mine, wanted)]
    cosine: Array = dot / jnp.maximum(lengths[0] * lengths[1], 1e-30)
    return 1.0 - cosine


# one object for each, or every call would compile
UNALIGNED: dict[str, Objective] = {name: partial(_unaligned, fn) for name, fn in GRADIENTS.items()}
GRADIENT_OF = {name: compiled(fn) for name, fn in GRADIENTS.items()}


def feature_gap(model: Model, x: Array, weight: Array, aux: Any) -> Array:
    """Mean squared distance of each row's features to its goal, plus ``beta`` times its move.

    Distances are in units of the goal's squared length, moves in units of the ball's radius.
    """
    goal, base, unit, beta = aux
    features = model.features(model.params, x)
    gap = jnp.sum((features - goal) ** 2, axis=1) / jnp.maximum(jnp.sum(goal**2, axis=1), 1e-30)
    move = ((x - base) / jnp.maximum(unit, 1e-30)).reshape(len(x), -1)
    return jnp.sum(weight * (gap + beta * jnp.mean(move**2, axis=1))) / jnp.sum(weight)


def centre_gap(model: Model, x: Array, weight: Array, goal: Array) -> Array:
    """Squared distance of the rows' mean features to the goal [d], in units of its length."""
    features = model.features(model.params, x)
    centre = jnp.sum(weight[:, None] * features, axis=0) / jnp.sum(weight)
    return jnp.sum((centre - goal) ** 2) / jnp.maximum(jnp.sum(goal**2), 1e-30)
