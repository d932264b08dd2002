"""Rows that must be decoded: made in order, and kept in a temporary file for the next pass."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import IO, Any

import numpy as np

from jaxpoison._check import DataError

from .base import Array
from .columns import bytes_of, fill
from .spans import Records

Decode = Callable[[bytes, str], Array]

_PIECE_ROWS = 64  # fetched before they are decoded
_MAX_THREADS = 8
_THREAD_BYTES = 1 << 14  # of a decoded row: smaller ones are decoded faster than handed over
_FREE_SHARE = 2  # the temporary file takes at most one half of what is free


class Spill:
    """Rows that were made once, in a temporary file without a name."""

    def __init__(self, rows: int, row_bytes: int) -> None:
        """Nothing is written before the first ``save``."""
        self._row_bytes, self._total = row_bytes, rows * row_bytes
        self._is_there = np.zeros(rows, dtype=bool)
        self._file: IO[bytes] | None = None
        self._is_open = True

    def load(self, start: int, out: Array) -> bool:
        """Fill ``out`` with the rows from ``start`` on, if all of them have been saved."""
        if self._file is None or not self._is_there[start : start + len(out)].all():
            return False
        self._file.seek(start * self._row_bytes)
        fill(self._file, bytes_of(out), "the temporary file of decoded rows")
        return True

    def save(self, start: int, rows: Array) -> None:
        """Keep rows; where there is no room, they are decoded again in the next pass."""
        if not self._is_open or self._is_there[start : start + len(rows)].all():
            return
        try:
            if self._file is None:
                free = shutil.disk_usage(tempfile.gettempdir()).free
                if self._total > free // _FREE_SHARE:
                    self._is_open = False
                    return
                self._file = tempfile.TemporaryFile(buffering=0)
            self._file.seek(start * self._row_bytes)
            view = bytes_of(rows)
            while view:
                view = view[self._file.write(view) :]
        except OSError:  # the disk is full, or may not be written to
            self.close()
        else:
            self._is_there[start : start + len(rows)] = True

    def close(self) -> None:
        """Drop the file and keep nothing from now on."""
        if self._file is not None:
            self._file.close()
        self._file, self._is_open = None, False


class DecodedColumn:
    """Records as rows [n, ...]; a second pass reads what the first one decoded."""

    def __init__(
        self, records: Records, decode: Decode, row: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        """``decode`` makes a row of shape ``row`` of a record and the name of the record."""
        self.shape: tuple[int, ...] = (len(records), *row)
        self.dtype = dtype
        self._records, self._decode = records, decode
        row_bytes = prod(row) * dtype.itemsize
        self._threads = 1
        if row_bytes >= _THREAD_BYTES:
            self._threads = min(_MAX_THREADS, os.cpu_count() or 1)
        self._spill = Spill(len(records), row_bytes)
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop``.

        Raises:
            DataError: A record that is damaged, or unlike the others.
        """
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with self._lock:
            if self._spill.load(start, rows):
                return rows
            if self._threads == 1 or len(rows) < _MAX_THREADS:
                self._make(start, rows, map)
            else:
                with ThreadPoolExecutor(self._threads) as pool:
                    self._make(start, rows, pool.map)
            self._spill.save(start, rows)
        return rows

    def _make(self, start: int, out: Array, mapped: Callable[..., Iterator[None]]) -> None:
        for first in range(0, len(out), _PIECE_ROWS):
            last = min(first + _PIECE_ROWS, len(out))
            records = self._records.fetch(start + first, start + last)

            def make(worker: int, first: int = first, records: list[bytes] = records) -> None:
                for position in range(worker, len(records), self._threads):
                    row = first + position
                    self._make_row(start + row, records[position], out[row])

            for _ in mapped(make, range(self._threads)):
                pass  # hands on what a worker raised

    def _make_row(self, row: int, record: bytes, out: Array) -> None:
        name = self._records.name(row)
        values = self._decode(record, name)
        if values.shape != out.shape:
            raise DataError(
                f"{name}: has shape {values.shape}, others have {out.shape}; make them alike"
            )
        out[...] = values

    def close(self) -> None:
        """Close the files that are read; what was decoded is kept."""
        self._records.close()

    def __del__(self) -> None:
        """Drop the temporary file."""
        if hasattr(self, "_spill"):
            self._spill.close()
