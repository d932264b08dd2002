"""Rows that only grow, shared by every version of a partition."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxpoison._check import DataError
from jaxpoison._types import HostArray

from ._canonical import as_labels, as_rows

_GROWTH = 1.25


@dataclass
class _Buffers:
    arrays: tuple[HostArray, ...]
    used: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process without the lock, and without room that holds nothing yet."""
        return _Buffers, (tuple(array[: self.used] for array in self.arrays), self.used)


class Rows:
    """All rows ever seen, by their id; versions that only differ in length share memory.

    The arrays that are given are kept, not copied: do not change them afterwards. The first
    ``append`` copies them once; later ones write behind the last row.

    Attributes:
        x: [n, ...] inputs.
        y: [n] labels.
        column: [n] key values, or None.
    """

    def __init__(self, x: HostArray, y: HostArray, column: HostArray | None) -> None:
        given = (x, y) if column is None else (x, y, np.asarray(column))
        self._buffers = _Buffers(given, len(x))
        self._show(len(x))

    def _show(self, rows: int) -> None:
        views = [array[:rows] for array in self._buffers.arrays]
        for view in views:
            view.flags.writeable = False
        self.x, self.y = views[:2]
        self.column = views[2] if len(views) > 2 else None

    def __len__(self) -> int:
        return len(self.y)

    def append(self, x: HostArray, y: HostArray, column: HostArray | None) -> Rows:
        """The same rows and these behind them; self stays as it is.

        Raises:
            DataError: Rows of another shape, or values that the dtype here cannot hold.
        """
        new = [_like("x", x, self.x), _like("y", y, self.y)]
        as_labels("y", new[1], len(as_rows("x", new[0])))
        if self.column is not None:
            if column is None or np.asarray(column).shape != new[1].shape:
                raise DataError("column is missing or not one value a row; give it for new rows")
            new.append(np.asarray(column))
        out = object.__new__(Rows)
        out._buffers = self._room(len(self), new)
        out._show(len(self) + len(new[1]))
        return out

    def _room(self, start: int, new: list[HostArray]) -> _Buffers:
        """Buffers with the new rows written at ``start``."""
        stop = start + len(new[1])
        old = self._buffers
        with old.lock:
            free = old.used == start and stop <= len(old.arrays[1])
            if free and (len(new) < 3 or np.can_cast(new[2].dtype, old.arrays[2].dtype, "safe")):
                for array, part in zip(old.arrays, new, strict=True):
                    array[start:stop] = part
                old.used = stop
                return old
        grown = []
        for array, part in zip(old.arrays, new, strict=True):
            dtype = array.dtype if array.dtype == part.dtype else _common(array, part)
            buffer = np.empty((int(stop * _GROWTH) + 16, *array.shape[1:]), dtype)
            buffer[:start] = array[:start]
            buffer[start:stop] = part
            grown.append(buffer)
        return _Buffers(tuple(grown), stop)


def _common(one: HostArray, other: HostArray) -> np.dtype[np.generic]:
    try:
        return np.result_type(one, other)
    except TypeError as error:
        raise DataError(
            f"column has dtype {other.dtype}, the rows before {one.dtype}; give the same"
        ) from error


def _like(name: str, values: HostArray, held: HostArray) -> HostArray:
    array = np.asarray(values)
    if array.shape[1:] != held.shape[1:] or array.ndim != held.ndim:
        raise DataError(
            f"{name} has shape {array.shape}; give rows of shape {held.shape[1:]}, as before"
        )
    if array.dtype == held.dtype:
        return array
    if array.dtype.kind == "f" and held.dtype.kind != "f":
        raise DataError(f"{name} has dtype {array.dtype}, the rows before {held.dtype}")
    with np.errstate(all="ignore"):
        cast = array.astype(held.dtype)
    if not np.array_equal(cast, array):
        raise DataError(
            f"{name} has dtype {array.dtype} and values that {held.dtype} of the rows before "
            "cannot hold; give the same dtype"
        )
    return cast
