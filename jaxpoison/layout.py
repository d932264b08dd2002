"""How rows become blocks: sorted by class into tiles, on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpoison._types import Block, HostArray

_BLOCK_BYTES = 16 << 20  # of one shard: enough to hide the dispatch, small enough to stay fast


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
        tile = 1 << max(3, min(8, int(np.log2(max(rows // (4 * num_classes), 8)))))
        return cls(rows, tile, -(-rows // tile) + min(num_classes, rows))

    def block(
        self,
        x: HostArray | None,
        labels: HostArray,
        start: int,
        row: tuple[tuple[int, ...], np.dtype[Any]],
    ) -> Block:
        """Rows of a shard in class-pure tiles.

        Args:
            x: [r, ...] rows, r at most ``rows``; None for no rows.
            labels: [r] dense classes.
            start: Row number of the first.
            row: Shape and type of one row.

        Returns:
            A block whose shape does not depend on the labels.
        """
        shape, dtype = row
        rows = np.zeros((self.tiles * self.tile, *shape), dtype)
        label = np.zeros(self.tiles, np.int32)
        mask = np.zeros(self.tiles * self.tile, np.float32)
        ids = np.zeros(self.tiles * self.tile, np.int32)
        if x is not None and len(labels):
            order = np.argsort(labels, kind="stable")
            classes, counts = np.unique(labels, return_counts=True)
            tiles = -(-counts // self.tile)
            first_row = (np.cumsum(tiles) - tiles) * self.tile
            within = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
            slot = np.repeat(first_row, counts) + within
            rows[slot] = x[order]
            label[: tiles.sum()] = np.repeat(classes, tiles)
            mask[slot] = 1.0
            ids[slot] = start + order
        tiled = (self.tiles, self.tile)
        return Block(rows.reshape(*tiled, *shape), label, mask.reshape(tiled), ids.reshape(tiled))
