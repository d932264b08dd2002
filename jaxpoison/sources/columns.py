"""Columns over bytes: a span of a file, and a stream that only goes forward.

Neither keeps a memory map: the resident size of an open map grows with the file, reading into a
new buffer stays at the size of one block.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase, RawIOBase
from lzma import LZMAError
from math import prod
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np

from jaxpoison._check import DataError, JaxpoisonError

from .base import Array

_SKIP_BYTES = 1 << 20
_DECODER_ERRORS = (
    BadZipFile,
    EOFError,
    LZMAError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zlib.error,
)

Stream = IO[bytes] | RawIOBase | BufferedIOBase


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what the operating system or a decoder says into an error that names the file."""
    try:
        yield
    except JaxpoisonError:
        raise
    except OSError as error:
        raise DataError(
            f"{name}: cannot be read ({error.strerror or error}); check the file"
        ) from error
    except _DECODER_ERRORS as error:
        raise DataError(f"{name}: damaged ({error}); copy or make the file again") from error


def fill(stream: Stream, view: memoryview, name: str) -> None:
    """Fill ``view`` from ``stream`` or say how much was missing.

    Raises:
        DataError: The stream ended first.
    """
    done = 0
    while done < len(view):
        # A bounded read: some decoders build the whole answer before they copy it.
        count = stream.readinto(view[done : done + _SKIP_BYTES])  # type: ignore[union-attr]
        if not count:
            raise DataError(
                f"{name}: truncated: {len(view) - done} bytes are missing; "
                "copy or make the file again"
            )
        done += count


def bytes_of(array: Array) -> memoryview:
    """The bytes of a new C-ordered array, for reading into."""
    return array.reshape(-1).view(np.uint8).data


class Sendable:
    """A column that goes to another process closed, and is opened there again."""

    _lock: threading.Lock

    def _closed(self) -> dict[str, Any]:
        """What a column that nothing was read of has in place of open files."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """All but the lock and what is open."""
        kept = {name: value for name, value in self.__dict__.items() if name != "_lock"}
        return {**kept, **self._closed()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The same, with a lock of its own."""
        self.__dict__.update(state)
        self._lock = threading.Lock()


class FileColumn(Sendable):
    """Rows stored at an offset of a file, in C or Fortran order."""

    def __init__(
        self,
        path: Path,
        name: str,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        fortran: bool = False,
    ) -> None:
        """``shape`` and ``offset`` were checked against the size of the file."""
        # absolute: another process may work in another folder
        self.path, self.name, self.offset = path.absolute(), name, offset
        self.shape, self.dtype = shape, dtype
        self._fortran = fortran and len(shape) > 1
        self._file: RawIOBase | None = None
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` in a new buffer."""
        count, rest, size = stop - start, self.shape[1:], self.dtype.itemsize
        with self._lock, readable(self.name):
            if self._file is None:
                self._file = open(self.path, "rb", buffering=0)
            if not self._fortran:
                rows = np.empty((count, *rest), self.dtype)
                self._file.seek(self.offset + start * prod(rest) * size)
                fill(self._file, bytes_of(rows), self.name)
                return rows
            # Fortran order keeps each position of a row for all rows together.
            columns = np.empty((*reversed(rest), count), self.dtype)
            for position, column in enumerate(columns.reshape(prod(rest), count)):
                self._file.seek(self.offset + (position * self.shape[0] + start) * size)
                fill(self._file, bytes_of(column), self.name)
            return columns.transpose()

    def _closed(self) -> dict[str, Any]:
        return {"_file": None}

    def close(self) -> None:
        """Close the file; the next ``read`` opens it again."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None

    def __del__(self) -> None:
        """Close the file: sources are handed around and have no one owner who would."""
        self.close()


class StreamColumn(Sendable):
    """Rows in a compressed stream: forward in linear time, backward by starting again."""

    def __init__(
        self,
        open_fn: Callable[[], Stream],
        name: str,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        """``open_fn`` gives the decompressed stream, whose rows begin at ``offset``."""
        self.name, self.offset = name, offset
        self.shape, self.dtype = shape, dtype
        self._open = open_fn
        self._stream: Stream | None = None
        self._at = 0
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` in a new buffer; cost: the bytes passed over."""
        row = prod(self.shape[1:]) * self.dtype.itemsize
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with self._lock, readable(self.name):
            try:
                stream = self._advance(self.offset + start * row)
                fill(stream, bytes_of(rows), self.name)
                self._at += rows.nbytes
                # Reading past the last row also makes the decoder compare its checksum.
                if stop == self.shape[0] and stream.read(1):
                    raise DataError(
                        f"{self.name}: holds more bytes than its header declares for shape "
                        f"{self.shape}; make the file again"
                    )
            except BaseException:
                self._drop()  # where the stream stands is no longer known
                raise
        return rows

    def _advance(self, target: int) -> Stream:
        if self._stream is None or target < self._at:
            self._drop()
            self._stream = self._open()
        scratch = memoryview(bytearray(min(_SKIP_BYTES, target - self._at)))
        while self._at < target:
            step = min(len(scratch), target - self._at)
            fill(self._stream, scratch[:step], self.name)
            self._at += step
        return self._stream

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._at = None, 0

    def _closed(self) -> dict[str, Any]:
        return {"_stream": None, "_at": 0}

    def close(self) -> None:
        """Close the stream; the next ``read`` starts it again."""
        with self._lock:
            self._drop()

    def __del__(self) -> None:
        """Close the stream, as for ``FileColumn``."""
        self.close()
