"""Rows of a source as shards: what every engine reads them by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from jaxpoison._types import Block, HostArray
from jaxpoison.layout import Layout, aligned_empty

T = TypeVar("T")

_PIECE_BYTES = 1 << 24  # read at a time: a shard, but where classes are many
_PIECE_ROWS = 256  # at the least, as of a shard: larger rows are read as before


def one_ahead(make: Callable[[int], T], starts: range) -> Iterator[T]:
    """What is made of each start, in order; a thread makes the next one meanwhile."""
    with ThreadPoolExecutor(1) as maker:
        ahead = [maker.submit(make, start) for start in starts[:1]]
        for after in range(1, len(starts) + 1):
            made = ahead.pop().result()
            ahead += [maker.submit(make, start) for start in starts[after : after + 1]]
            yield made


class RowSource(Protocol):
    """What a stream needs of a source (``jaxpoison.sources.Source`` is one)."""

    def __len__(self) -> int:
        """Number of rows."""

    def read(self, start: int, stop: int) -> dict[str, HostArray]:
        """Rows ``start`` to ``stop`` under "x"; what was given stays as it is in later reads."""


@dataclass(frozen=True)
class Rows:
    """Rows with their classes, cut into shards of a size that follows from their shape alone.

    Attributes:
        source: Where rows come from.
        labels: [n] int32 dense classes (host).
        layout: Of a shard.
        row_shape: Of one row.
        dtype: Of its values.
    """

    source: RowSource
    labels: HostArray
    layout: Layout
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(
        cls, source: RowSource, labels: HostArray, num_classes: int, layout: Layout | None = None
    ) -> Rows:
        """Lays out the shards, as ``layout`` has them where it is given."""
        row = source.read(0, min(1, len(source)))["x"]
        shape, dtype = row.shape[1:], row.dtype
        row_bytes = max(int(np.prod(shape)) * dtype.itemsize, 1)
        layout = layout or Layout.of(len(source), row_bytes, num_classes)
        return cls(source, labels, layout, shape, dtype)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.source)

    @property
    def num_shards(self) -> int:
        """Shards of one pass."""
        return -(-len(self.source) // self.layout.rows)

    @property
    def shard_bytes(self) -> int:
        """Bytes of one shard's rows on a device."""
        return self.layout.tiles * self.layout.tile * self._row_bytes

    def stop(self, shard: int) -> int:
        """The row behind the last one of a shard."""
        return min((shard + 1) * self.layout.rows, len(self))

    def group(self, first: int, size: int) -> Block:
        """Shards ``first`` to ``first + size`` stacked; empty ones past the end.

        A thread puts what was read into its tiles while more is read, a piece at a time, so that
        hardly any row is held twice.
        """
        slots = self.layout.tiles * self.layout.tile
        x = aligned_empty((size, slots, *self.row_shape), self.dtype)
        with ThreadPoolExecutor(1) as sorter:
            placed: list[Future[None]] = []
            plans = []
            for shard, out in enumerate(x, first):
                begin, end = min(shard * self.layout.rows, len(self)), self.stop(shard)
                plan = self.layout.plan(self.labels[begin:end], begin)
                plans.append(plan)
                placed.append(sorter.submit(plan.clear, out))
                for start in range(begin, end, self._piece):
                    stop = min(start + self._piece, end)
                    piece = self.source.read(start, stop)["x"]
                    placed[-1].result()  # no more than two pieces are held
                    rows = slice(start - begin, stop - begin)
                    placed.append(sorter.submit(plan.put, piece, rows, out))
            for each in placed:
                each.result()
        shards = [plan.block(rows) for plan, rows in zip(plans, x, strict=True)]
        tiled = (size, self.layout.tiles, self.layout.tile, *self.row_shape)
        return Block(x.reshape(tiled), *(np.stack(p) for p in list(zip(*shards, strict=True))[1:]))

    def groups(self, starts: range, size: int) -> Iterator[Block]:
        """The group of each start; a background thread reads one group ahead."""
        return one_ahead(partial(self.group, size=size), starts)

    @property
    def _piece(self) -> int:
        """Rows read at a time, a power of two: a whole shard unless it is large."""
        rows = 1 << int(np.log2(max(_PIECE_BYTES // self._row_bytes, 1)))
        return min(max(rows, _PIECE_ROWS), self.layout.rows)

    @property
    def _row_bytes(self) -> int:
        return max(int(np.prod(self.row_shape)) * self.dtype.itemsize, 1)

    def take(self, rows: HostArray) -> HostArray:
        """Raw inputs of some rows, in the order asked, by one forward read of the source."""
        rows = np.asarray(rows, np.int64)
        out = np.empty((len(rows), *self.row_shape), self.dtype)
        order = np.argsort(rows, kind="stable")
        step = self._piece
        starts = range(0, len(self), step)
        edges = np.searchsorted(rows[order], np.arange(0, len(self) + step, step))
        for piece, start in enumerate(starts):
            where = order[edges[piece] : edges[piece + 1]]
            if where.size:
                x = self.source.read(start, min(start + step, len(self)))["x"]
                out[where] = x[rows[where] - start]
        return out
