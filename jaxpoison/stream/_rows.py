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
        row = max(int(np.prod(self.row_shape)) * self.dtype.itemsize, 1)
        return self.layout.tiles * self.layout.tile * row

    def stop(self, shard: int) -> int:
        """The row behind the last one of a shard."""
        return min((shard + 1) * self.layout.rows, len(self))

    def group(self, first: int, size: int) -> Block:
        """Shards ``first`` to ``first + size`` stacked; empty ones past the end.

        One is sorted into its tiles by a thread while the next one is read.
        """
        slots = self.layout.tiles * self.layout.tile
        x = aligned_empty((size, slots, *self.row_shape), self.dtype)
        with ThreadPoolExecutor(1) as sorter:
            sorted_by: list[Future[Block]] = []
            for i, out in enumerate(x):
                rows = self._read(first + i)
                for earlier in sorted_by[-1:]:
                    earlier.result()  # so that no more than two shards are held twice
                sorted_by.append(sorter.submit(self._shard, first + i, rows, out))
            shards = [each.result() for each in sorted_by]
        tiled = (size, self.layout.tiles, self.layout.tile, *self.row_shape)
        return Block(x.reshape(tiled), *(np.stack(p) for p in list(zip(*shards, strict=True))[1:]))

    def groups(self, starts: range, size: int) -> Iterator[Block]:
        """The group of each start; a background thread reads one group ahead."""
        return one_ahead(partial(self.group, size=size), starts)

    def _read(self, shard: int) -> HostArray | None:
        """The rows of a shard, None past the end."""
        start, stop = shard * self.layout.rows, self.stop(shard)
        return self.source.read(start, stop)["x"] if start < stop else None

    def _shard(self, shard: int, x: HostArray | None, out: HostArray) -> Block:
        """One shard as a block (an empty one past the end), its rows written to ``out``."""
        start = min(shard * self.layout.rows, len(self))
        stop = self.stop(shard)
        return self.layout.block(
            x, self.labels[start:stop], start, (self.row_shape, self.dtype), out
        )

    def take(self, rows: HostArray) -> HostArray:
        """Raw inputs of some rows, in the order asked, by one forward read of the source."""
        rows = np.asarray(rows, np.int64)
        out = np.empty((len(rows), *self.row_shape), self.dtype)
        order = np.argsort(rows, kind="stable")
        step = self.layout.rows
        edges = np.searchsorted(rows[order], np.arange(0, len(self) + step, step))
        for shard in range(self.num_shards):
            where = order[edges[shard] : edges[shard + 1]]
            if where.size:
                start = shard * step
                x = self.source.read(start, self.stop(shard))["x"]
                out[where] = x[rows[where] - start]
        return out
