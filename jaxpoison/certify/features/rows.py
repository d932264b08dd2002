"""Features of all rows in chunks of one fixed shape, growing only at the end."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.layout import aligned_empty

CHUNK = 2048
"""Rows of a chunk: the shape of every block of a Gram matrix, however many rows there are."""


@dataclass
class _Chunk:
    rows: HostArray  # [CHUNK, f]; zeros behind the last row
    used: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process without the lock."""
        return _Chunk, (self.rows, self.used)


class FeatureRows:
    """[n, f] features by row id; versions that only differ in length share their chunks.

    Whole chunks of the array that is given are kept, not copied: do not change it afterwards.

    Attributes:
        width: f.
    """

    def __init__(self, features: HostArray) -> None:
        self.width: int = features.shape[1]
        self._chunks: tuple[_Chunk, ...] = ()
        self._length = 0
        self._extend(features)

    def __len__(self) -> int:
        return self._length

    def copy_to(self, out: HostArray, ids: HostArray) -> None:
        """Writes some rows to ``out`` [s, f]."""
        chunks = [chunk.rows for chunk in self._chunks]
        for place, row in enumerate(np.asarray(ids).tolist()):
            out[place] = chunks[row // CHUNK][row % CHUNK]

    def __getitem__(self, ids: HostArray) -> HostArray:
        """[s, f] a copy of some rows."""
        out = np.empty((len(ids), self.width), np.float32)
        self.copy_to(out, ids)
        return out

    def append(self, features: HostArray) -> FeatureRows:
        """The same rows and these behind them; self stays as it is. O(rows appended)."""
        out = object.__new__(FeatureRows)
        out.width, out._chunks, out._length = self.width, self._chunks, self._length
        out._extend(features)
        return out

    @property
    def chunks(self) -> list[tuple[int, HostArray]]:
        """First row of each chunk and its [CHUNK, f] rows; the last one is a copy."""
        found = [(i * CHUNK, chunk.rows) for i, chunk in enumerate(self._chunks)]
        left = len(self) - CHUNK * (len(found) - 1)
        if found and left < CHUNK:  # another version may write behind it
            last = _empty(self.width)
            last[:left] = found[-1][1][:left]
            found[-1] = (found[-1][0], last)
        return found

    def _extend(self, features: HostArray) -> None:
        chunks, start = list(self._chunks), 0
        while start < len(features):
            inside = self._length % CHUNK
            stop = min(start + CHUNK - inside, len(features))
            if not inside and stop - start == CHUNK:
                chunks.append(_Chunk(np.ascontiguousarray(features[start:stop]), CHUNK))
            else:
                last = chunks.pop() if inside else _Chunk(_empty(self.width), 0)
                chunks.append(_claimed(last, inside, stop - start))
                chunks[-1].rows[inside : inside + stop - start] = features[start:stop]
            self._length += stop - start
            start = stop
        self._chunks = tuple(chunks)


def _claimed(chunk: _Chunk, inside: int, count: int) -> _Chunk:
    """The chunk with room behind row ``inside`` that no other version writes to."""
    with chunk.lock:
        if chunk.used == inside:
            chunk.used = inside + count
            return chunk
    copy = _Chunk(_empty(chunk.rows.shape[1]), inside + count)
    copy.rows[:inside] = chunk.rows[:inside]
    return copy


def _empty(width: int) -> HostArray:
    rows = aligned_empty((CHUNK, width), np.dtype(np.float32))
    rows[...] = 0
    return rows
