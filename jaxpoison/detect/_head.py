"""A softmax head on the features of all rows, and what rows of it did to the loss of others.

Whatever network made the features, its last layer is fitted anew to its minimum: only there does
influence predict what a fit without a row would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpoison import kernels
from jaxpoison._check import DataError
from jaxpoison._types import Array
from jaxpoison.kernels import SolveStatus
from jaxpoison.linalg import one_thread

DAMPING = 3e-3
"""lambda of ``sum_i l_i / n + lambda |W|^2 / 2``, on features of mean squared length 1.

A head that fits every row closely makes hard rows weigh most, whatever is asked: on digits under a
patch planted rows led for triggered targets (AUROC .98 to 1), and at a tenth of it less (.94)."""

MAX_CORRECTED = 2048
"""Weights of a head up to which its Hessian is factored, for the leverage of every row."""

MAX_SOLVED = 1 << 17
"""Weights of a head up to which systems in its Hessian are solved."""

_MAX_SOLVES = 64  # for losses that are evaluated; more targets share one solve of their mean
_HELD_FLOATS = 1 << 25  # of the scores of a block of targets
_TOLERANCE = 1e-4  # of the relative residuals


class Head(NamedTuple):
    """A head at its minimum.

    Attributes:
        rows: [n, d + 1] float32 features in their units, and a column of ones.
        weights: [c, d + 1].
        residuals: [n, c] ``p - y``, corrected by the leverage of each row where ``is_corrected``.
        own: [n] change of each row's loss when it is removed itself, nats; zeros without solves.
        is_corrected: Whether the residuals are those of a Newton step without the row.
        gradient: Norm of the objective's gradient.
        damping: lambda.
        centre: [d] mean of the features.
        unit: What they were divided by then.
    """

    rows: Array
    weights: Array
    residuals: Array
    own: Array
    is_corrected: bool
    gradient: float
    damping: float
    centre: Array
    unit: float

    def of(self, features: Array) -> Array:
        """Features [m, d] as rows [m, d + 1] of this head."""
        return _with_ones((np.asarray(features, np.float32) - self.centre) / self.unit)


class Responsible(NamedTuple):
    """What each row did to the loss of some targets.

    Attributes:
        scores: [n] float32 mean change of the targets' losses when the row is removed, nats.
        form: "leave-one-out", "influence", or "gradients".
        residual: Largest relative residual of the solves behind them, 0 without any.
    """

    scores: Array
    form: str
    residual: float


@one_thread()  # of LAPACK, which decomposes in another order on another number of cores
def fit_head(
    features: Array,
    labels: Array,
    num_classes: int,
    damping: float = DAMPING,
    name: str = "features",
) -> Head:
    """The head of least ``sum_i l_i / n + damping |W|^2 / 2`` on centred features of unit length.

    Args:
        features: [n, d].
        labels: [n] classes 0..c-1.
        num_classes: c.
        damping: lambda.
        name: Of the features, for messages.

    Raises:
        DataError: Features that are not finite.

    **Cost**: about ten Newton steps of some tens of products, 4 n d c FLOP each; the leverages
    another ``(n c d + c^2 d^2) c d`` where c (d + 1) is at most 2048.
    """
    features = np.asarray(features, np.float32)
    _require_finite(features, name)
    centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    shifted = features - centre
    length = np.sqrt(np.sum(shifted * shifted, dtype=np.float64) / max(len(features), 1))
    unit = float(length) or 1.0
    rows = _with_ones(shifted / np.float32(unit))
    mask: Array = np.ones(len(rows), np.float32)
    labels = np.asarray(labels, np.int32)
    size = num_classes * rows.shape[1]
    fit = kernels.fit_softmax_head(
        rows, labels, mask, num_classes=num_classes, damping=damping,
        max_steps=30 if size <= MAX_SOLVED else 2,
    )  # fmt: skip
    weights: Array = np.asarray(fit.weights)
    own = np.zeros(len(rows), np.float32)
    if size <= MAX_CORRECTED:
        alone = kernels.head_self_influence(rows, labels, mask, weights, damping=damping)
        residuals, own = np.asarray(alone.corrected_residuals), np.asarray(alone.corrected)
    else:
        residuals = np.array(kernels.softmax_errors(rows @ weights.T, labels))
    return Head(
        rows, weights, residuals, own, size <= MAX_CORRECTED, float(fit.gradient), damping,
        centre, unit,
    )  # fmt: skip


def mean_responsibility(
    head: Head,
    targets: Array,
    target_labels: Array,
    told: Callable[[int], Any] | None = None,
) -> Responsible:
    """Mean change of the targets' losses when each row is removed, nats; positive: it rises.

    Few targets: the loss of each is evaluated at the logits that a fit without the row predicts
    (``kernels.head_loss_influence``). Many: their mean loss is linear in the weights, which takes
    one solve (``kernels.head_influence``). Heads that are too large for solves: dot products of
    gradients (``kernels.tracin_last_layer``), as if all curvature were the damping.

    Args:
        head: Of ``fit_head``.
        targets: [m, d + 1] rows of the head, m at least 1.
        target_labels: [m] classes.
        told: Called with the number of targets done.
    """
    c, d = head.weights.shape
    labels: Array = np.asarray(target_labels, np.int32)
    if c * d > MAX_SOLVED:
        return _by_gradients(head, targets, labels)
    form = "leave-one-out" if head.is_corrected else "influence"
    mask: Array = np.ones(len(head.rows), np.float32)
    if len(targets) * (c - 1) > _MAX_SOLVES:
        mean = np.zeros((c, d))
        for part in row_blocks(len(targets), max(_HELD_FLOATS // (c * d), 1)):
            gradients = kernels.head_gradients(targets[part], labels[part], head.weights)
            mean += np.asarray(gradients).sum(axis=0, dtype=np.float64) / len(targets)
        asked: Array = mean[None].astype(np.float32)
        found = kernels.solve_head(
            head.rows, mask, head.weights, asked, damping=head.damping, tolerance=_TOLERANCE
        )
        scores = kernels.head_influence(head.rows, mask, head.weights, head.residuals, found.x)
        return Responsible(np.asarray(scores)[0], form, _worst(found))
    total, worst = np.zeros(len(mask)), 0.0
    size = min(max(_HELD_FLOATS // (len(mask) * c), 1), len(targets))
    for part in row_blocks(len(targets), size):
        changes = kernels.head_loss_influence(
            head.rows, mask, head.weights, head.residuals, targets[part], labels[part],
            damping=head.damping, tolerance=_TOLERANCE,
        )  # fmt: skip
        total += np.asarray(changes.scores).sum(axis=0, dtype=np.float64)
        worst = max(worst, _worst(changes.solution))
        if told is not None:
            told(part.stop)
    return Responsible((total / len(targets)).astype(np.float32), form, worst)


def _by_gradients(head: Head, targets: Array, labels: Array) -> Responsible:
    errors = np.asarray(kernels.softmax_errors(targets @ head.weights.T, labels))
    total = np.zeros(len(head.rows))
    for part in row_blocks(len(targets), max(_HELD_FLOATS // len(total), 1)):
        found = kernels.tracin_last_layer(
            head.rows[:, :-1], head.residuals, targets[part, :-1], errors[part]
        )
        total += np.asarray(found.scores).sum(axis=1, dtype=np.float64)
    scale = 1.0 / (len(targets) * len(total) * head.damping)
    return Responsible((total * scale).astype(np.float32), "gradients", 0.0)


def probabilities(head: Head, rows: Array) -> Array:
    """[m, c] float64 that the head gives to rows [m, d + 1]."""
    z = rows.astype(np.float64) @ head.weights.T.astype(np.float64)
    z = np.exp(z - z.max(axis=1, keepdims=True))
    out: Array = z / z.sum(axis=1, keepdims=True)
    return out


def _with_ones(x: Array) -> Array:
    out = np.ones((len(x), x.shape[1] + 1), np.float32)
    out[:, :-1] = x
    return out


def _require_finite(features: Array, name: str) -> None:
    is_finite = np.isfinite(features).all(axis=1)
    if not is_finite.all():
        raise DataError(
            f"{name}: those of row {int(np.argmin(is_finite))} are not finite; repair the network "
            "or the features"
        )


def row_blocks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` rows that cover ``count`` of them."""
    return (slice(k, min(k + size, count)) for k in range(0, count, size))


def _worst(found: Any) -> float:
    """The largest relative residual, infinite where a solve met numbers that are not finite."""
    status, residual = jax.device_get((found.status, found.residual))
    if (status == SolveStatus.NOT_FINITE).any():
        return float("inf")
    return float(np.max(residual, initial=0.0))
