"""How rows become blocks: sorted by class into tiles, on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpoison._types import Block, HostArray

_BLOCK_BYTES = 16 << 20  # of one shard: enough to hide the dispatch, small enough to stay fast
_ALIGNMENT = 64


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
        rows = 1 << max(8, min(16, int(np.log2(max(_BLOCK_BYTES // max(row_bytes, 1), 1)))))
        rows = min(rows, 1 << max(8, int(np.ceil(np.log2(max(num_rows, 2))))))
        tile = 1 << max(3, min(8, int(np.log2(max(rows // (8 * num_classes), 8)))))
        return cls(rows, tile, -(-rows // tile) + min(num_classes, rows))

    def block(
        self,
        x: HostArray | None,
        labels: HostArray,
        start: int,
        row: tuple[tuple[int, ...], np.dtype[Any]],
        out: HostArray | None = None,
    ) -> Block:
        """Rows of a shard in class-pure tiles.

        Args:
            x: [r, ...] rows, r at most ``rows``; None for no rows.
            labels: [r] dense classes.
            start: Row number of the first.
            row: Shape and type of one row.
            out: [tiles * tile, ...] memory for the rows, or None for new memory.

        Returns:
            A block whose shape does not depend on the labels.
        """
        shape, dtype = row
        slots = self.tiles * self.tile
        rows = aligned_empty((slots, *shape), dtype) if out is None else out
        label = np.zeros(self.tiles, np.int32)
        mask = np.zeros(slots, np.float32)
        ids = np.zeros(slots, np.int32)
        if x is None or not len(labels):
            rows[...] = 0
        else:
            order = np.argsort(labels, kind="stable")
            classes, counts = np.unique(labels, return_counts=True)
            tiles = -(-counts // self.tile)
            first_row = (np.cumsum(tiles) - tiles) * self.tile
            within = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
            slot = np.repeat(first_row, counts) + within
            taken = np.zeros(slots, np.intp)
            taken[slot] = order
            # one copy from the source to its place; the default mode would buffer the output
            np.take(np.asarray(x, dtype), taken, axis=0, out=rows, mode="clip")
            label[: tiles.sum()] = np.repeat(classes, tiles)
            mask[slot] = 1.0
            rows[mask == 0] = 0
            ids[slot] = start + order
        tiled = (self.tiles, self.tile)
        return Block(rows.reshape(*tiled, *shape), label, mask.reshape(tiled), ids.reshape(tiled))


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostArray:
    """An array at a multiple of 64 bytes: the CPU backend uses it in place instead of copying."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % _ALIGNMENT
    out: HostArray = raw[first : first + size].view(dtype).reshape(shape)
    return out
