"""ArrayRecord: records by number, read by the package ``array_record``."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxpoison._check import DataError, JaxpoisonError, UsageError

from .shard_names import Numbered
from .spans import MAX_RECORD_BYTES
from .table import install_command

_MODULE = "array_record.python.array_record_module"
_PIECE_ROWS = 64


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn what the library says into an error that names the file."""
    try:
        yield
    except JaxpoisonError:
        raise
    except (RuntimeError, ValueError, IndexError, OSError, MemoryError) as error:
        text = str(error).partition(";")[0] or type(error).__name__
        raise DataError(
            f"{name}: truncated or damaged ArrayRecord file ({text}); copy or make it again"
        ) from error


def _open(path: Path, name: str) -> Any:
    try:
        module = importlib.import_module(_MODULE)
    except ImportError as error:
        raise UsageError(
            f"{name}: ArrayRecord files are read by array_record, which is not installed; "
            f"{install_command('tfds')}"
        ) from error
    with _readable(name):
        # Rows are asked for in order and piece by piece: reading ahead would only cost memory.
        reader = module.ArrayRecordReader(str(path), options="readahead_buffer_size:0")
        if not reader.ok():
            reader.close()  # raises what is wrong
            raise DataError(f"{name}: is no ArrayRecord file; make it again")
        return reader


class ArrayRecords:
    """The records of ArrayRecord files, one after another."""

    def __init__(self, paths: Sequence[Path], names: Sequence[str]) -> None:
        """Ask each file how many records it has.

        Raises:
            DataError: A file that is damaged.
            UsageError: ``array_record`` is not installed.
        """
        self._paths, self._file_names = paths, names
        self._reader: tuple[int, Any] | None = None
        self._lock = threading.Lock()
        self.counts: list[int] = []
        for number in range(len(paths)):
            self.counts.append(int(self._enter(number).num_records()))
        self._starts = np.concatenate([[0], np.cumsum(self.counts)]).tolist()
        self._names = Numbered(names, self.counts)

    def __len__(self) -> int:
        """Number of records."""
        return int(self._starts[-1])

    def name(self, row: int) -> str:
        """What to call a record in a message."""
        return self._names[row]

    def fetch(self, start: int, stop: int) -> list[bytes]:
        """Records ``start`` to ``stop``, whole."""
        found: list[bytes] = []
        with self._lock:
            while start + len(found) < stop:
                row = start + len(found)
                number = int(np.searchsorted(self._starts, row, side="right")) - 1
                first, end = self._starts[number : number + 2]
                reader = self._enter(number)
                with _readable(self._file_names[number]):
                    part = reader.read(row - first, min(stop, end) - first)
                if len(part) != min(stop, end) - row:
                    raise DataError(f"{self._names[row]}: cannot be read; copy the file again")
                found += part
        large = next((i for i, each in enumerate(found) if len(each) > MAX_RECORD_BYTES), None)
        if large is not None:
            raise DataError(
                f"{self._names[start + large]}: holds {len(found[large])} bytes; at most "
                f"{MAX_RECORD_BYTES} are read"
            )
        return found

    def head(self, row: int, limit: int) -> bytes:
        """The first bytes of a record, at most ``limit``."""
        return self.fetch(row, row + 1)[0][:limit]

    def __iter__(self) -> Iterator[bytes]:
        """Every record in order."""
        for start in range(0, len(self), _PIECE_ROWS):
            yield from self.fetch(start, min(start + _PIECE_ROWS, len(self)))

    def _enter(self, number: int) -> Any:
        if self._reader is None or self._reader[0] != number:
            self._drop()
            self._reader = number, _open(self._paths[number], self._file_names[number])
        return self._reader[1]

    def _drop(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            with _readable(self._file_names[reader[0]]):
                reader[1].close()

    def close(self) -> None:
        """Close the file; the next ``fetch`` opens it again."""
        with self._lock:
            self._drop()
