"""Floods of near-duplicates under the attacker's label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray
from jaxpoison.detect._detector import Key

from ._checks import finite_rows, num_rows, on_or_off, row_numbers
from ._common import Task, as_type, begin, value_range
from ._types import Poisoned


def flood_duplicates(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    seeds: int | Sequence[int] | HostArray = 5,
    jitter: float = 0.02,
    added: bool = True,
) -> Poisoned:
    """Repeats a few rows many times, slightly changed, under another label.

    Args:
        x: [n, ...] inputs.
        y: [n] labels.
        rate: Copies as a share of the n given rows.
        target: Label of the copies, None to draw one.
        source: Class of the seeds, None for any but the target.
        key: Of the draws.
        seeds: Row numbers that are copied, or how many to draw.
        jitter: Deviation of the noise on a copy, as a share of the range in use (of images) or of
            each column's deviation (of rows).
        added: Copies are added at the end; else they replace rows drawn at random.

    Returns:
        Kind "duplicates"; the seeds themselves keep their label, and params["seeds"] lists them.

    Raises:
        UsageError: A rate that cannot be met, or seeds that are not there or of the target.

    **Cost**: a copy of the data and of the copies.

    **Assumes / fails on**: the victim does not drop duplicates. With labels flipped on a few rows
    only those rows' neighbourhood changes class.

    Reference: Carlini et al. (2024), arXiv:2302.10149 (what it costs to place rows in web data).
    """
    task = begin("flood_duplicates", x, y, key)
    if not 0 <= jitter < np.inf:
        raise UsageError(f"jitter is {jitter}; give a number of at least 0")
    on_or_off(added=added)
    target = task.label("target", target, other_than=source)
    if source is not None:
        source = task.label("source", source, other_than=target)
    count = num_rows(rate, len(task), "rows")
    bases = _seeds(task, seeds, target, source)
    origin_of = bases[np.arange(count) % len(bases)]
    copies = _jittered(task, origin_of, jitter)
    params: dict[str, Any] = {"seeds": bases, "jitter": jitter, "added": added}
    if not added:
        free = np.setdiff1d(np.arange(len(task)), bases)
        rows = task.choose(free, rate, "other than the seeds")
        out = task.poisoned(
            rows, target, "duplicates", x_rows=copies, rate=rate, target=target, source=source,
            **params,
        )  # fmt: skip
        origin, y_true = out.origin.copy(), out.y_true.copy()
        origin[rows], y_true[rows] = origin_of, task.y[origin_of]
        return out._replace(origin=origin, y_true=y_true)
    finite_rows(task.name, copies)
    n = len(task)
    return Poisoned(
        np.concatenate([task.x, copies]),
        np.concatenate([task.y, np.full(count, target, np.int64)]),
        np.arange(n + count) >= n,
        np.zeros(n + count, bool),
        np.concatenate([np.arange(n), origin_of]),
        np.concatenate([task.y, task.y[origin_of]]),
        "duplicates", None, None, target, source,
        task.settings(rate, target, source, **params),
    )  # fmt: skip


def _seeds(
    task: Task, seeds: int | Sequence[int] | HostArray, target: int, source: int | None
) -> HostArray:
    possible = task.others(target) if source is None else task.rows_of(source)
    if not len(possible):
        task.need_two_classes()
    if isinstance(seeds, int | np.integer):
        if not 1 <= seeds <= len(possible):
            raise UsageError(f"seeds is {seeds}; give 1 to {len(possible)}, or row numbers")
        return np.sort(task.rng.choice(possible, int(seeds), replace=False))
    rows = row_numbers("seeds", seeds)
    wrong = np.setdiff1d(rows, possible)
    if not rows.size or wrong.size:
        raise UsageError(
            f"seeds has {'no rows' if not rows.size else f'row {wrong[0]}'}; give row numbers "
            f"outside the target class {target}" + ("" if source is None else f", of {source}")
        )
    return rows


def _jittered(task: Task, rows: HostArray, jitter: float) -> HostArray:
    drawn = task.rng.standard_normal((len(rows), *task.x.shape[1:]))
    if task.x.ndim == 2:
        noise = jitter * task.x.std(axis=0, dtype=np.float64) * drawn
        return as_type(task.x[rows] + noise, task.x.dtype, -np.inf, np.inf)
    low, high = value_range(task.x)
    return as_type(task.x[rows] + jitter * (high - low) * drawn, task.x.dtype, low, high)
