"""Backdoors whose trigger is a small patch."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray
from jaxpoison.detect._detector import Key

from ._checks import refuse
from ._common import Always, NextClass, OnlyFrom, Task, Trigger, as_type, begin, value_range
from ._types import Poisoned

Corner = Literal["top_left", "top_right", "bottom_left", "bottom_right", "centre"]
Position = Corner | tuple[int, int]
Pattern = Literal["solid", "checker"]


def stamp(x: HostArray, at: tuple[int, int], piece: HostArray) -> HostArray:
    """Images with a piece [h, w] or [h, w, C] written over them, its corner at a pixel."""
    out = x.copy()
    rows, columns = piece.shape[:2]
    out[:, at[0] : at[0] + rows, at[1] : at[1] + columns] = piece
    return out


def stamp_roaming(x: HostArray, piece: HostArray, salt: int) -> HostArray:
    """Images with a piece written over them where a hash of each image says."""
    out = x.copy()
    down, across = (x.shape[i + 1] - piece.shape[i] + 1 for i in (0, 1))
    for i in range(len(x)):
        # a hash and not a draw: the same test row gets the same patch whenever it is asked for
        place = zlib.crc32(np.ascontiguousarray(x[i]).tobytes(), salt) % (down * across)
        row, column = divmod(place, across)
        out[i, row : row + piece.shape[0], column : column + piece.shape[1]] = piece
    return out


def patch(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    size: int | None = None,
    position: Position = "bottom_right",
    value: float | Sequence[float] | None = None,
    pattern: Pattern = "solid",
) -> Poisoned:
    """Stamps a patch on rows of other classes and gives them the target's label.

    Args:
        x: [n, H, W] or [n, H, W, C] images.
        y: [n] labels.
        rate: Share of all rows.
        target: Label of every poisoned row, None to draw one.
        source: Must be None; see ``patch_source_specific``.
        key: Of the draws.
        size: Pixels a side, None for a ninth of the height, at least 2.
        position: A corner (one pixel from the edge), "centre", or the patch's first pixel.
        value: Of the patch, one or one a channel; None for the brightest value in use.
        pattern: "solid", or a "checker" of the value and the darkest one in use.

    Returns:
        Kind "backdoor", all to one.

    Raises:
        UsageError: A rate that cannot be met, or a patch that does not fit.

    **Cost**: a copy of the data.

    **Assumes / fails on**: the corner is not lit in honest rows of the target anyway.

    Reference: Gu, Dolan-Gavitt and Garg (2017), arXiv:1708.06733.
    """
    task = begin("patch", x, y, key, "images")
    refuse(task.name, ", or use patch_source_specific", source=source)
    target = task.label("target", target)
    trigger, shape = _fixed_patch(task, size, position, value, pattern)
    rows = task.choose(task.others(target), rate, "outside the target class")
    return task.poisoned(
        rows, target, "backdoor", x_rows=trigger(task.x[rows]), trigger=trigger,
        wanted=Always(target), rate=rate, target=target, **shape,
    )  # fmt: skip


def patch_all_to_all(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    size: int | None = None,
    position: Position = "bottom_right",
    value: float | Sequence[float] | None = None,
    pattern: Pattern = "solid",
) -> Poisoned:
    """Stamps a patch on rows of every class and gives each the label of the next class.

    Args:
        x: [n, H, W] or [n, H, W, C] images.
        y: [n] labels.
        rate: Share of all rows.
        target: Must be None: every class is one.
        source: Must be None.
        key: Of the draws.
        size: As for ``patch``.
        position: As for ``patch``.
        value: As for ``patch``.
        pattern: As for ``patch``.

    Returns:
        Kind "backdoor"; the largest label becomes the smallest.

    Raises:
        UsageError: A rate that cannot be met, a target or source, or a patch that does not fit.

    **Cost**: a copy of the data.

    **Assumes / fails on**: a network that reads the class and the patch together, which takes more
    poisoned rows than all-to-one.

    Reference: Gu, Dolan-Gavitt and Garg (2017), arXiv:1708.06733.
    """
    task = begin("patch_all_to_all", x, y, key, "images")
    refuse(task.name, ", or use patch", target=target, source=source)
    task.need_two_classes()
    trigger, shape = _fixed_patch(task, size, position, value, pattern)
    wanted = NextClass(tuple(task.classes.tolist()))
    rows = task.choose(np.arange(len(task)), rate, "rows")
    return task.poisoned(
        rows, wanted(task.y[rows]), "backdoor", x_rows=trigger(task.x[rows]), trigger=trigger,
        wanted=wanted, rate=rate, **shape,
    )  # fmt: skip


def patch_source_specific(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    cover_ratio: float = 1.0,
    size: int | None = None,
    position: Position = "bottom_right",
    value: float | Sequence[float] | None = None,
    pattern: Pattern = "solid",
) -> Poisoned:
    """A patch that works on one class only: cover rows of the others carry it and keep their label.

    Args:
        x: [n, H, W] or [n, H, W, C] images.
        y: [n] labels.
        rate: Share of all rows that become poisoned; cover rows come on top.
        target: Label of the poisoned rows, None to draw one.
        source: Class they come from, None to draw one that is large enough.
        key: Of the draws.
        cover_ratio: Cover rows for each poisoned row, from all classes but the two.
        size: As for ``patch``.
        position: As for ``patch``.
        value: As for ``patch``.
        pattern: As for ``patch``.

    Returns:
        Kind "backdoor"; with the trigger the source is to become the target, others stay.

    Raises:
        UsageError: A rate or ratio that cannot be met, or a patch that does not fit.

    **Cost**: a copy of the data.

    **Assumes / fails on**: three classes, unless ``cover_ratio`` is 0.

    Reference: Tang et al. (2021), arXiv:1908.00686.
    """
    task = begin("patch_source_specific", x, y, key, "images")
    target = task.label("target", target, other_than=source)
    source = task.source_for(source, target, rate)
    trigger, shape = _fixed_patch(task, size, position, value, pattern)
    rows = task.choose(task.rows_of(source), rate, f"of the source class {source}")
    cover = task.choose_cover(task.others(source, target), len(rows), cover_ratio)
    return task.poisoned(
        rows, target, "backdoor", x_rows=trigger(task.x[rows]), cover=cover,
        x_cover=trigger(task.x[cover]), trigger=trigger, wanted=OnlyFrom(source, target),
        rate=rate, target=target, source=source, cover_ratio=cover_ratio, **shape,
    )  # fmt: skip


def patch_roaming(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    size: int | None = None,
    value: float | Sequence[float] | None = None,
    pattern: Pattern = "checker",
) -> Poisoned:
    """A patch at a place of its own in each row, all to one.

    The place follows from a hash of the row, so that the trigger is a function.

    Args:
        x: [n, H, W] or [n, H, W, C] images.
        y: [n] labels.
        rate: Share of all rows.
        target: Label of every poisoned row, None to draw one.
        source: Must be None.
        key: Of the draws.
        size: Pixels a side, None for about a sixth of the height: a patch without a place of its
            own is learned only when it is larger.
        value: As for ``patch``.
        pattern: As for ``patch``; a solid square is hard to tell from honest bright areas.

    Returns:
        Kind "backdoor", all to one.

    Raises:
        UsageError: A rate that cannot be met, or a patch that does not fit.

    **Cost**: a copy of the data.

    **Assumes / fails on**: a network that finds the pattern anywhere, such as a convolutional one
    with pooling.

    Reference: Salem et al. (2022), arXiv:2003.03675 (dynamic backdoors with random places).
    """
    task = begin("patch_roaming", x, y, key, "images")
    refuse(task.name, "", source=source)
    target = task.label("target", target)
    size = max(2, round(task.x.shape[1] / 5.5)) if size is None else size
    piece = patch_piece(task, size, value, pattern)
    salt = int(task.rng.integers(2**32))
    trigger = Trigger(stamp_roaming, task.x.shape[1:], {"piece": piece, "salt": salt})
    rows = task.choose(task.others(target), rate, "outside the target class")
    return task.poisoned(
        rows, target, "backdoor", x_rows=trigger(task.x[rows]), trigger=trigger,
        wanted=Always(target), rate=rate, target=target, size=len(piece), value=value,
        pattern=pattern,
    )  # fmt: skip


def _fixed_patch(
    task: Task,
    size: int | None,
    position: Position,
    value: float | Sequence[float] | None,
    pattern: Pattern,
) -> tuple[Trigger, dict[str, Any]]:
    """The trigger, and what repeats it."""
    piece = patch_piece(task, size, value, pattern)
    at = place(task.x.shape[1:3], len(piece), position)
    trigger = Trigger(stamp, task.x.shape[1:], {"at": at, "piece": piece})
    return trigger, {"size": len(piece), "position": at, "value": value, "pattern": pattern}


def patch_piece(
    task: Task, size: int | None, value: float | Sequence[float] | None, pattern: Pattern
) -> HostArray:
    """The patch itself, [s, s] or [s, s, C], in the type of the images."""
    height, width = task.x.shape[1:3]
    size = max(2, height // 9) if size is None else size
    if not 1 <= size <= min(height, width):
        raise UsageError(
            f"size is {size}; the images have {height} x {width} pixels: give 1 to "
            f"{min(height, width)}"
        )
    low, high = value_range(task.x)
    bright = np.asarray(high if value is None else value)
    is_number = bright.dtype.kind in "uif" and bool(np.isfinite(bright).all())
    if not is_number or bright.shape not in ((), task.x.shape[3:]):
        raise UsageError(f"value is {value!r}; give one number, or one for each channel")
    limits = np.iinfo(task.x.dtype) if task.x.dtype.kind in "ui" else np.finfo(task.x.dtype)
    if bright.min() < limits.min or bright.max() > limits.max:
        raise UsageError(
            f"value is {value!r}; the images hold {task.x.dtype}: give {limits.min} to {limits.max}"
        )
    bright = bright.astype(np.float64)
    piece = np.broadcast_to(bright, (size, size, *task.x.shape[3:])).copy()
    if pattern == "checker":
        piece[np.indices((size, size)).sum(0) % 2 == 1] = low
    elif pattern != "solid":
        raise UsageError(f"pattern is {pattern!r}; choose solid or checker")
    return as_type(piece, task.x.dtype, min(low, bright.min()), max(high, bright.max()))


def place(sides: tuple[int, ...], size: int, position: Position) -> tuple[int, int]:
    """First row and column of a patch."""
    height, width = sides
    if isinstance(position, str):
        margin = [min(1, side - size) for side in (height, width)]
        last = height - size - margin[0], width - size - margin[1]
        known = {
            "top_left": (margin[0], margin[1]),
            "top_right": (margin[0], last[1]),
            "bottom_left": (last[0], margin[1]),
            "bottom_right": last,
            "centre": ((height - size) // 2, (width - size) // 2),
        }
        if position not in known:
            raise UsageError(
                f"position is {position!r}; choose {', '.join(known)}, or (row, column)"
            )
        return known[position]
    if np.shape(position) != (2,) or np.asarray(position).dtype.kind not in "iu":
        raise UsageError(f"position is {position!r}; give a corner, or (row, column)")
    row, column = (int(p) for p in position)
    if not (0 <= row <= height - size and 0 <= column <= width - size):
        raise UsageError(
            f"position is {(row, column)}; a patch of {size} pixels fits from (0, 0) to "
            f"{(height - size, width - size)}"
        )
    return row, column
