"""Rows that cannot be read at random where they are, kept once in a temporary file.

The file has no name: it lies in the folder of TMPDIR (or the system's own) and is gone when the
source is, even if the process is killed.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any

import numpy as np

from jaxpoison._check import DataError

from .arrays import ArrayColumn
from .base import Array, quote
from .columns import bytes_of, fill, readable

_RESERVE = 256 << 20  # bytes left to others on the disk
_shared: ContextVar[SpillFile | None] = ContextVar("_shared", default=None)


class SpillFile:
    """Bytes in an anonymous temporary file, which is made when the first are written."""

    def __init__(self) -> None:
        """Nothing is written yet."""
        self._file: Any = None
        self._lock = threading.Lock()
        self.size = 0

    def append(self, block: Array, name: str) -> None:
        """Write a block behind all others.

        Raises:
            DataError: The disk is full, or nearly, or may not be written to.
        """
        folder = None
        view = bytes_of(np.ascontiguousarray(block))
        with self._lock:
            try:
                folder = tempfile.gettempdir()
                if shutil.disk_usage(folder).free < len(view) + _RESERVE:
                    raise OSError(errno.ENOSPC, "the disk is nearly full")
                if self._file is None:
                    self._file = tempfile.TemporaryFile(buffering=0)
                    weakref.finalize(self, self._file.close)
                self._file.seek(self.size)
                done = 0
                while done < len(view):
                    done += self._file.write(view[done:])
            except OSError as error:
                raise DataError(
                    f"{name}: no room for its rows in {folder or 'a temporary folder'} after "
                    f"{self.size >> 20} MB ({error.strerror}); set TMPDIR to a folder with more, "
                    "or save it as .npy"
                ) from error
            self.size += len(view)

    def read(self, offset: int, view: memoryview, name: str) -> None:
        """Fill ``view`` from an offset."""
        with self._lock, readable(name):
            self._file.seek(offset)
            fill(self._file, view, name)


@contextmanager
def sharing() -> Iterator[None]:
    """Columns that are spilled inside share one file: a folder may hold thousands of shards."""
    token = _shared.set(SpillFile() if _shared.get() is None else _shared.get())
    try:
        yield
    finally:
        _shared.reset(token)


class SpillColumn:
    """Rows of one shape and type, appended once and then read at random."""

    def __init__(self, name: str) -> None:
        """Start without rows; shape and type are those of the first block."""
        self.name = name
        self._spill = _shared.get() or SpillFile()
        self._offset = self._spill.size
        self.shape: tuple[int, ...] = (0, 0)
        self.dtype: np.dtype[Any] = np.dtype(np.float32)

    def append(self, block: Array) -> None:
        """Add rows [b, ...].

        Raises:
            DataError: A block unlike the first one, or a full disk.
        """
        rows = self.shape[0]
        if rows == 0:
            self.shape, self.dtype = (0, *block.shape[1:]), block.dtype
        if block.shape[1:] != self.shape[1:] or block.dtype != self.dtype:
            raise DataError(
                f"{self.name}: rows from {rows} on have shape {block.shape[1:]} and type "
                f"{quote(block.dtype)}, those before {self.shape[1:]} and {quote(self.dtype)}; "
                "give rows of one shape and type"
            )
        self._spill.append(block, self.name)
        self.shape = (rows + len(block), *self.shape[1:])

    def read(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` in a new buffer."""
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        row = prod(self.shape[1:]) * self.dtype.itemsize
        self._spill.read(self._offset + start * row, bytes_of(rows), self.name)
        return rows

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets the rows themselves, as the file has no name."""
        return ArrayColumn, (self.read(0, self.shape[0]),)

    def close(self) -> None:
        """Nothing to let go of: the rows are nowhere else."""
