"""Encoded records: each is a span of bytes of some file, read when it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from jaxpoison._check import DataError

from .base import Array, quote
from .columns import fill, readable

MAX_RECORD_BYTES = 64 << 20  # of one encoded image or record: it is held in memory whole
_BUFFER_BYTES = 1 << 20


def shown(file_name: str) -> str:
    """A file name for a message: as it is, or escaped where it could move the cursor."""
    return file_name if file_name.isprintable() else quote(file_name, 300)


class Records(Protocol):
    """Encoded rows by number: images, or protocol buffers that hold them."""

    def __len__(self) -> int:
        """Number of records."""

    def name(self, row: int) -> str:
        """What to call a record in a message."""

    def fetch(self, start: int, stop: int) -> list[bytes]:
        """Records ``start`` to ``stop``, whole."""

    def head(self, row: int, limit: int) -> bytes:
        """The first bytes of a record, at most ``limit``."""

    def close(self) -> None:
        """Let go of open files; the next ``fetch`` opens them again."""


class Spans:
    """Records that lie as they are in files: one a file, or many in an archive."""

    def __init__(
        self, paths: Sequence[Path | str], names: Sequence[str], file: Array, offset: Array,
        size: Array,
    ) -> None:  # fmt: skip
        """Keep where the records are.

        Args:
            paths: The files.
            names: [n] what to call each record in a message.
            file: [n] position in ``paths``.
            offset: [n] first byte in the file.
            size: [n] bytes.

        Raises:
            DataError: A record that is empty or too large to be held in memory.
        """
        wrong = np.flatnonzero((size < 1) | (size > MAX_RECORD_BYTES))
        if wrong.size:
            row = int(wrong[0])
            raise DataError(
                f"{names[row]}: holds {size[row]} bytes; a record has 1 to {MAX_RECORD_BYTES}: "
                "make it again, or leave it out"
            )
        self._paths, self._names = paths, names
        self._file, self._offset, self._size = file, offset, size
        self._open: tuple[int, IO[bytes]] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of records."""
        return len(self._size)

    def name(self, row: int) -> str:
        """What to call a record in a message."""
        return self._names[row]

    def fetch(self, start: int, stop: int) -> list[bytes]:
        """Records ``start`` to ``stop``, whole."""
        return [self.head(row, MAX_RECORD_BYTES) for row in range(start, stop)]

    def head(self, row: int, limit: int) -> bytes:
        """The first bytes of a record, at most ``limit``."""
        data = bytearray(min(int(self._size[row]), limit))
        with self._lock, readable(self._names[row]):
            file = self._enter(int(self._file[row]))
            file.seek(int(self._offset[row]))
            fill(file, memoryview(data), self._names[row])
        return bytes(data)

    def _enter(self, number: int) -> IO[bytes]:
        if self._open is None or self._open[0] != number:
            self._drop()
            # Neighbours in an archive are often asked for together: a buffer serves several.
            many = len(self._paths) < len(self._size)
            self._open = number, open(self._paths[number], "rb", _BUFFER_BYTES if many else 0)
        return self._open[1]

    def _drop(self) -> None:
        if self._open is not None:
            self._open[1].close()
        self._open = None

    def close(self) -> None:
        """Close the file; the next ``fetch`` opens it again."""
        with self._lock:
            self._drop()

    def __del__(self) -> None:
        """Close the file: sources are handed around and have no one owner who would."""
        if hasattr(self, "_lock"):
            self.close()
