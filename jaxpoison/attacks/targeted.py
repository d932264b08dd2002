"""Clean-label attacks on given rows: a few victims are to be taken for another class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray
from jaxpoison.detect._detector import Key
from jaxpoison.models import Model

from ._checks import num_rows, row_numbers
from ._common import Task, begin, value_range
from ._descent import (
    GRADIENT_OF,
    UNALIGNED,
    Descended,
    centre_gap,
    check_model,
    descend,
    feature_gap,
    layers_of,
)
from ._types import Poisoned


class _Aim(NamedTuple):
    """Who is attacked, with what, as whom.

    Attributes:
        victims: [v] row numbers, held out of the training set.
        target: Class they are to be taken for.
        source: Their class, None for several.
        classes: [n] classes as the model has them.
    """

    victims: HostArray
    target: int
    source: int | None
    classes: HostArray


def feature_collision(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    model: Model,
    victims: int | Sequence[int] = 1,
    epsilon: float = 0.25,
    steps: int = 100,
    beta: float = 0.05,
) -> Poisoned:
    """Moves rows of the target onto the victim in feature space, labels kept.

    Lowers ``|f(p) - f(t)|^2 / |f(t)|^2 + beta |p - b|^2`` for each poison p with base b inside a
    ball around b; the bases are the target's rows whose features are nearest to the victim's.

    Args:
        x: [n, ...] inputs.
        y: [n] labels.
        rate: Share of all rows.
        target: Class of the poisoned rows, None to draw one.
        source: Class of the victims, None to draw one.
        key: Of the draws.
        model: Trained on these labels; its outputs are the labels in use, ascending.
        victims: Row numbers of victims, or how many to draw. They are left out of what is returned.
        epsilon: Largest change of a value, as a share of the range in use (images) or in deviations
            of its column (rows).
        steps: Of the descent.
        beta: Weight of staying near the base.

    Returns:
        Kind "targeted"; n minus the victims rows, params["victims"] their numbers, and
        params["before"], params["after"] the objective.

    Raises:
        UsageError: A rate that cannot be met, a model of other classes, or victims of the target.
        DataError: The model has no gradient.

    **Cost**: ``steps`` forward and backward passes over the poison; one compilation for each power
    of two of rows.

    **Assumes / fails on**: a victim who trains only the last layers of the attacker's network. One
    who trains from scratch moves the features away from the collision.

    Reference: Shafahi et al. (2018), arXiv:1804.00792 (descent by signed steps in a ball instead of
    forward-backward splitting).
    """
    task = begin("feature_collision", x, y, key)
    aim = _aim(task, target, source, victims, model)
    features, rows = _nearest(task, model, aim, rate)
    low, high = value_range(task.x)
    unit = task.x.std(axis=0) if task.x.ndim == 2 else np.full(task.x.shape[1:], high - low)
    unit = np.maximum(epsilon * unit, 1e-12).astype(np.float32)

    def aux(padded: int) -> tuple[object, ...]:
        goal = np.resize(features, (padded, features.shape[1]))
        base = np.resize(task.x[rows].astype(np.float32), (padded, *task.x.shape[1:]))
        return goal, base, unit, np.float32(beta)

    done = descend(task, model, feature_gap, rows, aux, epsilon=epsilon, steps=steps)
    return _result(task, aim, rows, done, rate, epsilon=epsilon, steps=steps, beta=beta)


def bullseye_polytope(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    model: Model,
    victims: int | Sequence[int] = 1,
    epsilon: float = 0.25,
    steps: int = 100,
) -> Poisoned:
    """Moves rows of the target so that the victim is the centre of their features, labels kept.

    Lowers ``|f(t) - mean_j f(p_j)|^2 / |f(t)|^2``; with several victims f(t) is their mean.

    Args:
        x: As for ``feature_collision``.
        y: [n] labels.
        rate: Share of all rows.
        target: Class of the poisoned rows, None to draw one.
        source: Class of the victims, None to draw one.
        key: Of the draws.
        model: As for ``feature_collision``.
        victims: As for ``feature_collision``.
        epsilon: As for ``feature_collision``.
        steps: Of the descent.

    Returns:
        Kind "targeted", as ``feature_collision``.

    Raises:
        UsageError: A rate that cannot be met, a model of other classes, or victims of the target.
        DataError: The model has no gradient.

    **Cost**: as ``feature_collision``.

    **Assumes / fails on**: as ``feature_collision``; no single row has to reach the victim, so it
    carries further to other networks.

    Reference: Aghakhani et al. (2021), arXiv:2005.00191 (one network here, not an ensemble).
    """
    task = begin("bullseye_polytope", x, y, key)
    aim = _aim(task, target, source, victims, model)
    features, rows = _nearest(task, model, aim, rate)
    goal = features.mean(axis=0)
    done = descend(task, model, centre_gap, rows, lambda _: goal, epsilon=epsilon, steps=steps)
    return _result(task, aim, rows, done, rate, epsilon=epsilon, steps=steps)


def gradient_matching(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    model: Model,
    victims: int | Sequence[int] = 1,
    epsilon: float = 0.15,
    steps: int = 100,
    layers: Literal["all", "last"] = "all",
) -> Poisoned:
    """Moves rows of the target so that training on them is training the victim's wrong label.

    Lowers ``1 - cos(grad L(t, target), grad mean_j L(p_j, y_j))``, gradients by the weights. The
    bases are the target's rows with the largest gradients.

    Args:
        x: As for ``feature_collision``.
        y: [n] labels.
        rate: Share of all rows.
        target: Class of the poisoned rows, None to draw one.
        source: Class of the victims, None to draw one.
        key: Of the draws.
        model: As for ``feature_collision``.
        victims: As for ``feature_collision``.
        epsilon: As for ``feature_collision``.
        steps: Of the descent.
        layers: Weights whose gradient is matched: of all layers, or of the last one (taken to be
            linear), which costs less than half for images.

    Returns:
        Kind "targeted", as ``feature_collision``; params["before"] and ["after"] are one minus the
        cosine.

    Raises:
        UsageError: A rate that cannot be met, a model of other classes, victims of the target, or
            unknown layers.
        DataError: The model has no gradient.

    **Cost**: ``steps`` passes that differentiate twice; one compilation for each power of two.

    **Assumes / fails on**: a network like the victim's. Without restarts, augmentation and an
    ensemble, which the reference uses, it turns the gradient but seldom the prediction of a network
    trained from scratch.

    Reference: Geiping et al. (2021), arXiv:2009.02276.
    """
    task = begin("gradient_matching", x, y, key)
    if layers not in UNALIGNED:
        raise UsageError(f"layers is {layers!r}; choose all or last")
    aim = _aim(task, target, source, victims, model)
    mine = np.setdiff1d(task.rows_of(aim.target), aim.victims)
    features, logits = layers_of(model, task.x[mine])
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    share[np.arange(len(mine)), aim.classes[mine]] -= 1.0
    norms = np.linalg.norm(share, axis=1) * np.sqrt(1.0 + np.square(features).sum(axis=1))
    rows = _strongest(task, mine, -norms, rate)
    wrong = np.full(len(aim.victims), np.searchsorted(task.classes, aim.target), np.int32)
    shown = task.x[aim.victims].astype(np.float32)
    wanted = GRADIENT_OF[layers](model, shown, np.ones(len(shown), np.float32), wrong)

    def aux(padded: int) -> tuple[HostArray, object]:
        return np.full(padded, wrong[0], np.int32), wanted

    done = descend(task, model, UNALIGNED[layers], rows, aux, epsilon=epsilon, steps=steps)
    return _result(task, aim, rows, done, rate, epsilon=epsilon, steps=steps, layers=layers)


def _aim(
    task: Task,
    target: int | None,
    source: int | None,
    victims: int | Sequence[int],
    model: Model,
) -> _Aim:
    classes = check_model(task, model)
    if isinstance(victims, int | np.integer):
        target = task.label("target", target, other_than=source)
        source = task.label("source", source, other_than=target)
        possible = task.rows_of(source)
        if not 1 <= victims <= len(possible):
            raise UsageError(
                f"victims is {victims}; the source class {source} has {len(possible)} rows: give 1 "
                "to that, or row numbers"
            )
        chosen = np.sort(task.rng.choice(possible, int(victims), replace=False))
        return _Aim(chosen, target, source, classes)
    chosen = row_numbers("victims", victims)
    if not chosen.size or chosen[0] < 0 or chosen[-1] >= len(task):
        raise UsageError(f"victims is {list(victims)}; give row numbers from 0 to {len(task) - 1}")
    of = np.unique(task.y[chosen])
    target = task.label("target", target, other_than=int(of[0]))
    if target in of or (source is not None and of.tolist() != [source]):
        raise UsageError(
            f"victims have the labels {of.tolist()}; they must be of the source ({source}) and not "
            f"of the target ({target})"
        )
    return _Aim(chosen, target, int(of[0]) if of.size == 1 else None, classes)


def _strongest(task: Task, mine: HostArray, order: HostArray, rate: float) -> HostArray:
    """The rows that come first in an order, ascending."""
    count = num_rows(rate, len(task), "rows")
    if count > len(mine):
        task.choose(mine, rate, "of the target class")  # raises, with what is possible
    return np.sort(mine[np.argsort(order, kind="stable")[:count]])


def _nearest(task: Task, model: Model, aim: _Aim, rate: float) -> tuple[HostArray, HostArray]:
    """The victims' features [v, d], and rows of the target nearest to one of them."""
    goal, _ = layers_of(model, task.x[aim.victims])
    mine = np.setdiff1d(task.rows_of(aim.target), aim.victims)
    features, _ = layers_of(model, task.x[mine])
    distance = np.stack([np.linalg.norm(features - g, axis=1) for g in goal]).min(axis=0)
    return goal, _strongest(task, mine, distance, rate)


def _result(
    task: Task, aim: _Aim, rows: HostArray, done: Descended, rate: float, **params: Any
) -> Poisoned:
    """The truth, with the victims taken out of the training set."""
    full = task.poisoned(
        rows, None, "targeted", x_rows=done.x, rate=rate, target=aim.target, source=aim.source,
        victims=aim.victims, before=done.before, after=done.after, **params,
    )  # fmt: skip
    keep = np.ones(len(task), bool)
    keep[aim.victims] = False
    arrays = {
        name: getattr(full, name)[keep] for name in ("x", "y", "mask", "cover", "origin", "y_true")
    }
    return full._replace(**arrays)
