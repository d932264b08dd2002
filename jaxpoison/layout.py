"""How rows become blocks: sorted by class into tiles, on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxpoison._types import Block, HostArray

_BLOCK_BYTES = 16 << 20  # of one shard: enough to hide the dispatch, small enough to stay fast
_MANY_CLASSES_BYTES = 128 << 20  # of one whose classes would have a few rows each otherwise
_FEW_ROWS, _ENOUGH_ROWS = 32, 64  # of a class in a shard: tiles of fewer are mostly padding
_ALIGNMENT = 64


class Plan(NamedTuple):
    """Where the rows of a shard go.

    Attributes:
        slot: [r] place of each row among those of the block.
        label: [tiles] class of each tile.
        mask: [tiles, tile] 1 where there is a row.
        ids: [tiles, tile] row numbers.
    """

    slot: HostArray
    label: HostArray
    mask: HostArray
    ids: HostArray

    def clear(self, out: HostArray) -> None:
        """Zeros where there is no row of ``out`` [tiles * tile, ...]."""
        out[self.mask.ravel() == 0] = 0

    def put(self, x: HostArray, rows: slice, out: HostArray) -> None:
        """Some rows of the shard at their places in ``out``; as many must be there."""
        slot = self.slot[rows]
        if len(x) != len(slot):
            raise ValueError(f"a source gave {len(x)} rows where {len(slot)} were asked for")
        out[slot] = x

    def block(self, rows: HostArray) -> Block:
        """What was put together, [tiles * tile, ...], as a block."""
        return Block(
            rows.reshape(*self.mask.shape, *rows.shape[1:]), self.label, self.mask, self.ids
        )


@dataclass(frozen=True)
class Layout:
    """How rows become blocks: it follows from the shape of the data alone, never the machine.

    Attributes:
        rows: Rows of a shard.
        tile: Rows of a tile.
        tiles: Tiles of a block: enough for any mix of classes.
    """

    rows: int
    tile: int
    tiles: int

    @classmethod
    def of(cls, num_rows: int, row_bytes: int, num_classes: int) -> Layout:
        """The layout for so many rows of so many bytes in so many classes."""
        rows, tiles_a_class = _rows_in(_BLOCK_BYTES, row_bytes), 8
        if rows < _FEW_ROWS * num_classes:
            # and each shard's partial results, a value a class or more, are moved less often
            wanted = 1 << int(np.ceil(np.log2(_ENOUGH_ROWS * num_classes)))
            rows = max(rows, min(wanted, _rows_in(_MANY_CLASSES_BYTES, row_bytes)))
            tiles_a_class = 4  # an eighth is padding, but a loop over half as many tiles
        rows = min(rows, 1 << max(8, int(np.ceil(np.log2(max(num_rows, 2))))))
        tile = 1 << max(3, min(8, int(np.log2(max(rows // (tiles_a_class * num_classes), 8)))))
        return cls(rows, tile, -(-rows // tile) + min(num_classes, rows))

    def plan(self, labels: HostArray, start: int) -> Plan:
        """Where the rows of a shard go, in class-pure tiles.

        Args:
            labels: [r] dense classes, r at most ``rows``.
            start: Row number of the first.
        """
        slots = self.tiles * self.tile
        label = np.zeros(self.tiles, np.int32)
        mask = np.zeros(slots, np.float32)
        ids = np.zeros(slots, np.int32)
        slot = np.empty(len(labels), np.intp)
        order, classes, counts, within = _by_class(labels)
        tiles = -(-counts // self.tile)
        first_row = (np.cumsum(tiles) - tiles) * self.tile
        slot[order] = np.repeat(first_row, counts) + within
        label[: tiles.sum()] = np.repeat(classes, tiles)
        mask[slot] = 1.0
        ids[slot] = start + np.arange(len(labels))
        tiled = (self.tiles, self.tile)
        return Plan(slot, label, mask.reshape(tiled), ids.reshape(tiled))

    def places(self, labels: HostArray) -> HostArray:
        """The place [n] of each row in its tile, of all rows by their labels [n]."""
        out = np.empty(len(labels), np.int64)
        for start in range(0, len(labels), self.rows):
            order, _, _, within = _by_class(labels[start : start + self.rows])
            out[start + order] = within % self.tile
        return out


def _by_class(labels: HostArray) -> tuple[HostArray, HostArray, HostArray, HostArray]:
    """Rows in the order of their classes, the classes, their sizes, and each row's place in its."""
    order = np.argsort(labels, kind="stable")
    classes, counts = np.unique(labels, return_counts=True)
    within = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order, classes, counts, within


class ClassRows:
    """The rows of each class, ascending, by one sort for all: a comparison a class is n c work."""

    def __init__(self, labels: HostArray, num_classes: int) -> None:
        """Sorts the rows by class.

        Args:
            labels: [n] dense classes.
            num_classes: c.
        """
        self._order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels, minlength=num_classes)
        self._first = np.concatenate([[0], np.cumsum(counts)])

    def __getitem__(self, label: int | np.integer[Any]) -> HostArray:
        """Row numbers of a class."""
        out: HostArray = self._order[self._first[label] : self._first[label + 1]]
        return out


def _rows_in(num_bytes: int, row_bytes: int) -> int:
    """The largest power of two of rows in so many bytes, from 256 to 65536."""
    return 1 << max(8, min(16, int(np.log2(max(num_bytes // max(row_bytes, 1), 1)))))


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostArray:
    """An array at a multiple of 64 bytes: the CPU backend uses it in place instead of copying."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % _ALIGNMENT
    out: HostArray = raw[first : first + size].view(dtype).reshape(shape)
    return out
