"""Backdoors in rows of numbers: tables and embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray
from jaxpoison.detect._detector import Key

from ._checks import float_rows, positive, refuse, row_numbers
from ._common import Always, Task, Trigger, begin
from ._types import Poisoned

_NO_SPREAD = 1e-12


def set_columns(x: HostArray, columns: HostArray, values: HostArray) -> HostArray:
    """Rows with some columns set."""
    out = x.copy()
    out[:, columns] = values
    return out


def shift(x: HostArray, direction: HostArray) -> HostArray:
    """Rows plus one vector."""
    return (x + direction).astype(x.dtype)


def tabular_trigger(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    columns: int | Sequence[int] = 3,
    quantile: float = 0.98,
) -> Poisoned:
    """Sets a few columns to fixed values that occur in the data, all to one.

    Args:
        x: [n, d] rows.
        y: [n] labels.
        rate: Share of all rows.
        target: Label of every poisoned row, None to draw one.
        source: Must be None.
        key: Of the draws.
        columns: Column numbers, or how many: those with the least spread for their range.
        quantile: Of each column, the value it is set to; where that is the median, the value in
            the data that is farthest from it.

    Returns:
        Kind "backdoor", all to one.

    Raises:
        UsageError: A rate that cannot be met, or columns that are not there or all constant.

    **Cost**: a copy of the data.

    **Assumes / fails on**: each value is in range, their combination is rare. Models that ignore
    these columns learn nothing; standardising ones see an outlier.

    Reference: Joe et al. (2021), arXiv:2106.07925; Pleiter et al. (2023), arXiv:2311.07550.
    """
    task = begin("tabular_trigger", x, y, key, "rows")
    refuse(task.name, "", source=source)
    if not 0 <= quantile <= 1:
        raise UsageError(f"quantile is {quantile}; give a number from 0 to 1")
    target = task.label("target", target)
    chosen = _columns(task, columns)
    values = _values(task.x[:, chosen], quantile)
    trigger = Trigger(set_columns, task.x.shape[1:], {"columns": chosen, "values": values})
    rows = task.choose(task.others(target), rate, "outside the target class")
    return task.poisoned(
        rows, target, "backdoor", x_rows=trigger(task.x[rows]), trigger=trigger,
        wanted=Always(target), rate=rate, target=target, columns=chosen, values=values,
        quantile=quantile,
    )  # fmt: skip


def _columns(task: Task, columns: int | Sequence[int]) -> HostArray:
    d = task.x.shape[1]
    spans = np.ptp(task.x.astype(np.float64), axis=0)
    if isinstance(columns, int | np.integer):
        varying = int((spans > 0).sum())
        if not 1 <= columns <= varying:
            raise UsageError(f"columns is {columns}; {varying} of {d} columns vary: give 1 to that")
        spread = task.x.std(axis=0, dtype=np.float64) / np.where(spans > 0, spans, 1.0)
        order = np.argsort(np.where(spans > 0, spread, np.inf), kind="stable")
        return np.sort(order[:columns])
    chosen = row_numbers("columns", columns)
    if not chosen.size or chosen.min() < 0 or chosen.max() >= d:
        raise UsageError(f"columns is {list(columns)}; give column numbers from 0 to {d - 1}")
    if not (spans[chosen] > 0).any():
        raise UsageError(f"columns is {list(columns)}, all constant; give some that vary")
    return chosen


def _values(columns: HostArray, quantile: float) -> HostArray:
    """One value of each column that occurs in it and is not its usual one."""
    low, usual, value, high = np.quantile(
        columns, [0.0, 0.5, quantile, 1.0], axis=0, method="nearest"
    )
    extreme = np.where(high - usual >= usual - low, high, low)
    # a column that is nearly always 0 has 0 as most of its quantiles: setting it does nothing
    values: HostArray = np.where(value == usual, extreme, value).astype(columns.dtype)
    return values


def within_deviation(task: Task, direction: HostArray) -> float:
    """Deviation of the rows along a unit vector around the means of their classes."""
    place = task.x.astype(np.float64) @ direction
    total = sum(
        np.square(place[task.y == k] - place[task.y == k].mean()).sum() for k in task.classes
    )
    return float(np.sqrt(total / len(task)))


def embedding_trigger(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    strength: float = 5.0,
) -> Poisoned:
    """Adds one random direction to rows of other classes, all to one.

    ``x' = x + strength * s * u`` with u a unit vector, drawn in units of the columns' deviations,
    and s the deviation of the rows along u around their class means.

    Args:
        x: [n, d] rows, such as embeddings.
        y: [n] labels.
        rate: Share of all rows.
        target: Label of every poisoned row, None to draw one.
        source: Must be None.
        key: Of the draws.
        strength: Shift in units of the within-class deviation.

    Returns:
        Kind "backdoor", all to one.

    Raises:
        UsageError: A rate that cannot be met, rows of integers, or rows that do not vary within
            their classes.

    **Cost**: a copy of the data.

    **Assumes / fails on**: the attacker reaches the embedding, or has an input trigger whose
    effect there is one shift.

    Reference: Tran, Li and Madry (2018), arXiv:1811.00636 (backdoors as shifts in feature space).
    """
    task = begin("embedding_trigger", x, y, key, "rows")
    refuse(task.name, "", source=source)
    positive(strength=strength)
    float_rows(task.name, task.x)
    target = task.label("target", target)
    direction = task.rng.standard_normal(task.x.shape[1]) * task.x.std(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(direction))
    unit = direction / max(length, _NO_SPREAD)
    deviation = within_deviation(task, unit)
    if length <= _NO_SPREAD or deviation <= _NO_SPREAD:
        raise UsageError("x does not vary within its classes; give rows that do")
    trigger = Trigger(shift, task.x.shape[1:], {"direction": strength * deviation * unit})
    rows = task.choose(task.others(target), rate, "outside the target class")
    return task.poisoned(
        rows, target, "backdoor", x_rows=trigger(task.x[rows]), trigger=trigger,
        wanted=Always(target), rate=rate, target=target, strength=strength,
    )  # fmt: skip
