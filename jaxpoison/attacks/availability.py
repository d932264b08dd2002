"""Attacks on quality: rows become worse, labels stay honest."""

from __future__ import annotations

from typing import Literal

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray
from jaxpoison.detect._detector import Key

from ._checks import positive, refuse, share
from ._common import Task, as_type, begin, value_range
from ._types import Poisoned

Damage = Literal["dead", "clipped", "salt_pepper"]


def noise(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    scale: float = 1.0,
) -> Poisoned:
    """Adds Gaussian noise to the inputs of some rows.

    Args:
        x: [n, ...] inputs.
        y: [n] labels.
        rate: Share of all rows.
        target: Must be None.
        source: Only rows of this class.
        key: Of the draws.
        scale: Deviation of the noise in units of each column's (each channel's) own.

    Returns:
        Kind "availability".

    Raises:
        UsageError: A rate that cannot be met, or a target.

    **Cost**: a copy of the data.

    **Assumes / fails on**: nothing. Values stay in the range in use, so dark and bright pixels
    move one way only.

    Reference: Hendrycks and Dietterich (2019), arXiv:1903.12261 (kinds of corruption).
    """
    task = begin("noise", x, y, key)
    positive(scale=scale)
    rows = _victims(task, rate, target, source)
    low, high, deviation = _limits(task)
    drawn = task.rng.standard_normal(task.x[rows].shape)
    worse = as_type(task.x[rows] + scale * deviation * drawn, task.x.dtype, low, high)
    return task.poisoned(
        rows, None, "availability", x_rows=worse, rate=rate, source=source, scale=scale
    )


def corrupt(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    damage: Damage = "dead",
    extent: float = 0.3,
) -> Poisoned:
    """Breaks the inputs of some rows as faulty sensors and pipelines do.

    Args:
        x: [n, ...] inputs.
        y: [n] labels.
        rate: Share of all rows.
        target: Must be None.
        source: Only rows of this class.
        key: Of the draws.
        damage: "dead" sets the same columns (of pixels) of all these rows to the lowest value;
            "clipped" cuts values off above the ``1 - extent`` quantile; "salt_pepper" sets cells
            drawn for each row to the lowest or the highest value.
        extent: Share of columns, of values or of cells.

    Returns:
        Kind "availability".

    Raises:
        UsageError: A rate that cannot be met, an unknown damage, or a target.

    **Cost**: a copy of the data.

    **Assumes / fails on**: dead columns that were empty anyway change nothing.

    Reference: Hendrycks and Dietterich (2019), arXiv:1903.12261 (kinds of corruption).
    """
    task = begin("corrupt", x, y, key)
    share(extent=extent)
    rows = _victims(task, rate, target, source)
    low, high, _ = _limits(task)
    broken = task.x[rows].copy()
    columns: list[int] | None = None
    if damage == "dead":
        # images lose columns of pixels, rows lose features: both are axis 2 of [n, ?, columns, ?]
        axis = 2 if broken.ndim > 2 else 1
        num = max(1, round(extent * broken.shape[axis]))
        columns = np.sort(task.rng.choice(broken.shape[axis], num, replace=False)).tolist()
        if axis == 2:
            broken[:, :, columns] = np.asarray(low, broken.dtype)
        else:
            broken[:, columns] = np.broadcast_to(low, broken.shape[1:])[columns]
    elif damage == "clipped":
        axes = 0 if broken.ndim == 2 else None
        top = np.quantile(task.x, 1.0 - extent, axis=axes)
        broken = as_type(np.minimum(broken, top), broken.dtype, low, high)
    elif damage == "salt_pepper":
        hit = task.rng.random(broken.shape) < extent
        bright = task.rng.random(broken.shape) < 0.5
        broken = np.where(hit, np.where(bright, high, low), broken).astype(broken.dtype)
    else:
        raise UsageError(f"damage is {damage!r}; choose dead, clipped or salt_pepper")
    return task.poisoned(
        rows, None, "availability", x_rows=broken, rate=rate, source=source,
        damage=damage, extent=extent, columns=columns,
    )  # fmt: skip


def _victims(task: Task, rate: float, target: int | None, source: int | None) -> HostArray:
    refuse(task.name, "", target=target)
    if source is None:
        return task.choose(np.arange(len(task)), rate, "rows")
    return task.choose(
        task.rows_of(task.label("source", source)), rate, f"of the source class {source}"
    )


def _limits(task: Task) -> tuple[HostArray | float, HostArray | float, HostArray]:
    """Lowest and highest value in use, and the deviation: by column, or of images by channel."""
    if task.x.ndim == 2:
        deviation = task.x.std(axis=0, dtype=np.float64)
        return task.x.min(axis=0), task.x.max(axis=0), deviation
    low, high = value_range(task.x)
    axes = (0, 1, 2) if task.x.ndim == 4 else None
    return low, high, np.asarray(task.x.std(axis=axes, dtype=np.float64))
