"""Detectors of training dynamics: what a network's losses say of each row while it learns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import Dynamics, HostArray, Scores
from jaxpoison.detect._detector import Key
from jaxpoison.detect._two_groups import two_groups
from jaxpoison.stream import Stream

_FLOOR = 1e-6  # of a loss or an error before its logarithm: float32 says no more below it
_SLOWEST = 3  # the early epochs are the first of so many parts of the training


class DynamicsInfo(NamedTuple):
    """What the scores come from.

    Attributes:
        epochs: First and last epoch used, counted from 0, the last one included.
        num_seen: Rows that were trained on; the others have the median of their class.
        weight: [c] share of the smaller group of each class.
    """

    epochs: tuple[int, int]
    num_seen: int
    weight: HostArray


@dataclass(frozen=True)
class EarlyLoss:
    """Log of the mean loss of a row in the early epochs; hard rows are suspicious.

    ``score_i = log mean_e l_ie`` over the first third of the training. The very first epoch is
    left out where there are others: a row's loss in it says when its turn came.

    Attributes:
        epochs: Early epochs used; None is a third of all, at least one.
        min_rows: Classes with fewer trained rows are skipped.

    **Cost**: one read of the record; a mixture of one number a row and class.

    **Assumes / fails on**: wrong labels contradict the rest of the class, and are learnt late.
    Backdoors with a clear trigger are learnt early and score low.

    Reference: Arazo et al., 2019, arXiv:1904.11238 (mixture of losses for label noise).
    """

    epochs: int | None = None
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key, dynamics: Dynamics) -> Scores:
        """Scores [n]; the statistic separates two groups of log loss, see ``two_groups``."""
        losses, first, last = _early(_record(stream, dynamics, "losses"), self.epochs)
        values = np.log(losses.mean(axis=1) + _FLOOR)
        return _scores(stream, dynamics, values, (first, last), self.min_rows)


@dataclass(frozen=True)
class EL2N:
    """Log odds of the mean error norm of a row in the early epochs.

    ``e_i = mean_e |softmax(z_ie) - onehot(y_i)|_2 / sqrt(2)`` over the epochs of ``EarlyLoss``, and
    ``score_i = log(e_i / (1 - e_i))``: the norm ends at sqrt(2), where rows would crowd. Being
    bounded, it keeps one epoch of a large loss from outweighing the others.

    Attributes:
        epochs: Early epochs used; None is a third of all, at least one.
        min_rows: Classes with fewer trained rows are skipped.

    **Cost**: one read of the record; a mixture of one number a row and class.

    **Assumes / fails on**: as ``EarlyLoss``. Where the paper averages ten trainings measured
    between epochs, this is one training and each row as its turn comes.

    Reference: Paul, Ganguli, Dziugaite, 2021, arXiv:2107.07075.
    """

    epochs: int | None = None
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key, dynamics: Dynamics) -> Scores:
        """Scores [n]; the statistic separates two groups of log odds, see ``two_groups``."""
        errors, first, last = _early(_record(stream, dynamics, "errors"), self.epochs)
        part = np.clip(errors.mean(axis=1) / np.sqrt(2.0), _FLOOR, 1.0 - _FLOOR)
        values = np.log(part / (1.0 - part))
        return _scores(stream, dynamics, values, (first, last), self.min_rows)


@dataclass(frozen=True)
class AUM:
    """Area under the margin, its sign turned: rows whose own class never wins.

    ``score_i = -mean_e (z_ie[y_i] - max_{k != y_i} z_ie[k])`` over all epochs.

    Attributes:
        min_rows: Classes with fewer trained rows are skipped.

    **Cost**: one read of the record; a mixture of one number a row and class.

    **Assumes / fails on**: wrong labels; not backdoors, whose margins are large. Where the paper
    adds a class of rows known to be mislabelled for its threshold, nothing is added here.

    Reference: Pleiss et al., 2020, arXiv:2001.10528.
    """

    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key, dynamics: Dynamics) -> Scores:
        """Scores [n]; the statistic separates two groups of margins, see ``two_groups``."""
        margins = _record(stream, dynamics, "margins")
        values = -margins.mean(axis=1, dtype=np.float64)
        return _scores(stream, dynamics, values, (0, margins.shape[1] - 1), self.min_rows)


@dataclass(frozen=True)
class LossDrop:
    """How unlike its class a row's loss falls, whichever way: much faster or much later.

    The line fitted to the row's log loss over the epochs has a level ``a_i = mean_e log l_ie`` and
    a slope ``b_i ~ sum_e (e - mean e) log l_ie``. ``score_i = log(1 + |a_i|' + |b_i|')``, where
    ``|.|'`` is the distance from the median of the class in the median distance of the same side:
    losses of honest rows are skewed.

    Attributes:
        min_rows: Classes with fewer trained rows are skipped.

    **Cost**: two medians a class; a mixture of one number a row and class.

    **Assumes / fails on**: triggered rows are learnt at another pace than the rows of their class.
    Says nothing where poison is most of the class: the curve is then its own.

    Reference: the two signs are those of Li et al., 2021, arXiv:2110.11571 (learnt faster) and
    Arazo et al., 2019, arXiv:1904.11238 (learnt late).
    """

    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key, dynamics: Dynamics) -> Scores:
        """Scores [n]; the statistic separates two groups of log scores, see ``two_groups``."""
        losses = _record(stream, dynamics, "losses")
        labels = stream.labels[dynamics.rows]
        logs = np.log(losses.astype(np.float64) + _FLOOR)
        epochs = np.arange(logs.shape[1])
        level, slope = logs.mean(axis=1), logs @ (epochs - epochs.mean())
        values = np.zeros(len(logs))
        for c in np.unique(labels):
            mine = labels == c
            values[mine] = _two_sided(level[mine]) + _two_sided(slope[mine])
        # the log: deviations are positive and skewed, and a mixture of Gaussians wants neither
        return _scores(stream, dynamics, np.log1p(values), (0, len(epochs) - 1), self.min_rows)


@dataclass(frozen=True)
class LowLossIsolation:
    """The lowest losses of the early epochs, within the class: what is learnt at once.

    ``score_i = -log mean_e l_ie`` over the epochs of ``EarlyLoss``.

    Attributes:
        epochs: Early epochs used; None is a third of all, at least one.
        min_rows: Classes with fewer trained rows are skipped.

    **Cost**: one read of the record; a mixture of one number a row and class.

    **Assumes / fails on**: the trigger is easier to learn than the class itself, and not rare.
    Warps, clean labels and low rates are learnt later than easy honest rows. Where the paper
    floods the loss at 0.5 to keep honest rows up, the training is not interfered with here.

    Reference: anti-backdoor learning, Li et al., 2021, arXiv:2110.11571.
    """

    epochs: int | None = None
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key, dynamics: Dynamics) -> Scores:
        """Scores [n]; the statistic separates two groups of log loss, see ``two_groups``."""
        losses, first, last = _early(_record(stream, dynamics, "losses"), self.epochs)
        values = -np.log(losses.mean(axis=1) + _FLOOR)
        return _scores(stream, dynamics, values, (first, last), self.min_rows)


def _record(stream: Stream, dynamics: Dynamics, name: str) -> HostArray:
    """One record [r, epochs] of the training, checked against the rows it belongs to."""
    rows, record = dynamics.rows, getattr(dynamics, name)
    if rows is None or record is None:
        raise UsageError(
            f"dynamics has no {name}: no network was trained on these rows; let the scan train "
            "one, or leave out the detectors that read a training"
        )
    record = np.asarray(record)
    if record.ndim != 2 or record.shape[0] != len(rows) or record.shape[1] == 0:
        raise UsageError(
            f"dynamics.{name} has shape {record.shape}; expected one line for each of the "
            f"{len(rows)} rows of dynamics.rows, and an epoch or more"
        )
    if len(rows) and (rows.min() < 0 or rows.max() >= len(stream)):
        raise UsageError(
            f"dynamics.rows goes from {rows.min()} to {rows.max()}, the data has {len(stream)} "
            "rows; give the record of a training on these rows"
        )
    return record


def _early(record: HostArray, epochs: int | None) -> tuple[HostArray, int, int]:
    """The early epochs of a record in float64, the first and the last of them."""
    if epochs is not None and epochs < 1:
        raise UsageError(f"epochs is {epochs}; give the number of early epochs, 1 or more")
    first = min(1, record.shape[1] - 1)
    wanted = epochs if epochs is not None else max(record.shape[1] // _SLOWEST, 1)
    stop = min(first + wanted, record.shape[1])
    return record[:, first:stop].astype(np.float64), first, stop - 1


def _two_sided(values: HostArray) -> HostArray:
    """Distances from the median in the median distance of each side."""
    centred = values - np.median(values)
    out = np.zeros(len(values))
    for side in (centred > 0, centred < 0):
        if side.any():
            out[side] = np.abs(centred[side]) / np.median(np.abs(centred[side]))
    return out


def _scores(
    stream: Stream, dynamics: Dynamics, values: HostArray, epochs: tuple[int, int], min_rows: int
) -> Scores:
    rows = np.asarray(dynamics.rows)
    everywhere, seen = np.zeros(len(stream)), np.zeros(len(stream), np.bool_)
    everywhere[rows], seen[rows] = values, True
    groups = two_groups(stream, everywhere, min_rows, seen)
    null = np.zeros((stream.num_classes, 0))
    info = DynamicsInfo(epochs, len(rows), groups.weight)
    return Scores(groups.values, groups.statistic, null, groups.candidates, info)
