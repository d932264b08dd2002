"""Backdoors that know the detectors: a part of the trigger in training, and cover rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray
from jaxpoison.detect._detector import Key

from ._checks import refuse, share
from ._common import Always, Trigger, as_type, begin, value_range
from ._types import Poisoned
from .patches import place

_CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")


def mix_where(
    x: HostArray, pattern: HostArray, weight: HostArray, low: float, high: float
) -> HostArray:
    """``(1 - w) x + w pattern`` with a weight for each pixel, [H, W, ...] or [m, H, W, ...]."""
    return as_type((1.0 - weight) * x + weight * pattern, x.dtype, low, high)


def adaptive_blend(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    cover_ratio: float = 1.0,
    alpha: float = 0.2,
    pieces: int = 4,
    shown: float = 0.5,
) -> Poisoned:
    """Blends random parts of one pattern, with cover rows; the whole pattern at test time.

    The image is cut into ``pieces x pieces`` parts. Each poisoned and each cover row gets the
    pattern in its own random share of them; cover rows keep their label.

    Args:
        x: [n, H, W] or [n, H, W, C] images.
        y: [n] labels.
        rate: Share of all rows that become poisoned; cover rows come on top.
        target: Label of every poisoned row, None to draw one.
        source: Must be None.
        key: Of the draws.
        cover_ratio: Cover rows for each poisoned row, from all classes.
        alpha: Weight of the pattern where it is shown.
        pieces: Parts a side.
        shown: Share of the parts that a row shows.

    Returns:
        Kind "backdoor", all to one.

    Raises:
        UsageError: A rate or ratio that cannot be met, or parts that do not fit.

    **Cost**: a copy of the data.

    **Assumes / fails on**: cover rows make the network want more than a part before it says the
    target, so the attack needs the whole pattern to work and is weaker per poisoned row.

    Reference: Qi et al. (2023), arXiv:2205.13613.
    """
    task = begin("adaptive_blend", x, y, key, "images")
    refuse(task.name, "", source=source)
    share(alpha=alpha, shown=shown)
    height, width = task.x.shape[1:3]
    if not 1 <= pieces <= min(height, width):
        raise UsageError(f"pieces is {pieces}; give 1 to {min(height, width)}")
    target = task.label("target", target)
    low, high = value_range(task.x)
    pattern = task.rng.uniform(low, high, task.x.shape[1:])
    fixed: dict[str, Any] = {"pattern": pattern, "low": low, "high": high}
    trigger = Trigger(mix_where, task.x.shape[1:], {**fixed, "weight": np.float64(alpha)})
    rows = task.choose(task.others(target), rate, "outside the target class")
    cover = task.choose_cover(np.setdiff1d(np.arange(len(task)), rows), len(rows), cover_ratio)
    piece_of = (
        np.arange(height)[:, None] * pieces // height * pieces + np.arange(width) * pieces // width
    )

    def partial_rows(some: HostArray) -> HostArray:
        order = task.rng.random((len(some), pieces * pieces)).argsort(axis=1)
        on = order < max(1, round(shown * pieces * pieces))
        weight = alpha * on[:, piece_of]
        return mix_where(
            task.x[some], weight=weight.reshape(*weight.shape, *[1] * (task.x.ndim - 3)), **fixed
        )

    return task.poisoned(
        rows, target, "backdoor", x_rows=partial_rows(rows), cover=cover,
        x_cover=partial_rows(cover), trigger=trigger, wanted=Always(target), rate=rate,
        target=target, cover_ratio=cover_ratio, alpha=alpha, pieces=pieces, shown=shown,
    )  # fmt: skip


def adaptive_patch(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    cover_ratio: float = 2.0,
    opacity: float = 0.5,
    size: int | None = None,
) -> Poisoned:
    """One of four faint corner patches in each row, with cover rows; all four at test time.

    Args:
        x: [n, H, W] or [n, H, W, C] images.
        y: [n] labels.
        rate: Share of all rows that become poisoned; cover rows come on top.
        target: Label of every poisoned row, None to draw one.
        source: Must be None.
        key: Of the draws.
        cover_ratio: Cover rows for each poisoned row, from all classes.
        opacity: Weight of a patch over the image.
        size: Pixels a side, None for a seventh of the height, at least 2.

    Returns:
        Kind "backdoor", all to one.

    Raises:
        UsageError: A rate or ratio that cannot be met, or patches that overlap.

    **Cost**: a copy of the data.

    **Assumes / fails on**: as ``adaptive_blend``. Each patch has random pixels of its own.

    Reference: Qi et al. (2023), arXiv:2205.13613.
    """
    task = begin("adaptive_patch", x, y, key, "images")
    refuse(task.name, "", source=source)
    share(opacity=opacity)
    height, width = task.x.shape[1:3]
    size = max(2, height // 7) if size is None else size
    if not 1 <= size <= min(height, width) // 2:
        raise UsageError(f"size is {size}; four patches fit with 1 to {min(height, width) // 2}")
    target = task.label("target", target)
    low, high = value_range(task.x)
    # black and white squares: a grey patch over a grey area would be no trigger
    pattern = np.where(task.rng.random(task.x.shape[1:]) < 0.5, low, high)
    weights = np.zeros((4, *task.x.shape[1:]))
    for weight, corner in zip(weights, _CORNERS, strict=True):
        row, column = place((height, width), size, corner)  # type: ignore[arg-type]
        weight[row : row + size, column : column + size] = opacity
    fixed: dict[str, Any] = {"pattern": pattern, "low": low, "high": high}
    trigger = Trigger(mix_where, task.x.shape[1:], {**fixed, "weight": weights.max(axis=0)})
    rows = task.choose(task.others(target), rate, "outside the target class")
    cover = task.choose_cover(np.setdiff1d(np.arange(len(task)), rows), len(rows), cover_ratio)
    one = [weights[task.rng.integers(0, 4, len(some))] for some in (rows, cover)]
    x_rows, x_cover = (
        mix_where(task.x[some], weight=w, **fixed)
        for some, w in zip((rows, cover), one, strict=True)
    )
    return task.poisoned(
        rows, target, "backdoor", x_rows=x_rows, cover=cover, x_cover=x_cover, trigger=trigger,
        wanted=Always(target), rate=rate, target=target, cover_ratio=cover_ratio, opacity=opacity,
        size=size,
    )  # fmt: skip
