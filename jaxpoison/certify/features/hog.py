"""Histograms of oriented gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import HostArray

from ._feature_map import FeatureMap, images_of, unit_rows

_SMALLEST = np.float32(1e-6)


@dataclass(frozen=True)
class Hog(FeatureMap):
    """Gradient magnitudes by direction in cells of pixels, square root, each row of length 1.

    A pixel's gradient ``(g_y, g_x)`` counts with its length, shared linearly by the two nearest of
    ``directions`` angles in [0, pi) and, in both axes, by the two nearest cells. It is simpler than
    the original: no blocks that overlap, one normalisation of the whole row.

    Attributes:
        cell: Pixels a side.
        directions: Angles.

    Reference: Dalal and Triggs, Histograms of oriented gradients for human detection (2005).
    """

    cell: int = 4
    directions: int = 8

    def __post_init__(self) -> None:
        for name in ("cell", "directions"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give an integer of at least 1")

    def of_block(self, x: HostArray) -> HostArray:
        """[b, f] from images."""
        images = images_of(x, self.name)
        b, _, high, wide = images.shape
        if min(high, wide) < max(self.cell, 2):
            raise DataError(
                f"x has images of {high} x {wide} pixels; take a cell of at most {min(high, wide)}"
            )
        down, right = np.gradient(images, axis=(2, 3))
        length = np.sqrt(down * down + right * right)
        # angles of lines, not of arrows: a dark stroke and a light one count alike
        turn = np.arctan2(down, right) * np.float32(self.directions / np.pi) % self.directions
        low = np.floor(turn)
        share = turn - low
        parts = []
        for direction in range(self.directions):
            near = (low.astype(np.int64) % self.directions == direction) * (1 - share)
            far = ((low.astype(np.int64) + 1) % self.directions == direction) * share
            parts.append(length * (near + far))
        maps = np.stack(parts, axis=2).astype(np.float32)
        rows, columns = (_shares(n, self.cell) for n in (high, wide))
        cells = np.matmul(np.matmul(rows, maps), columns.T)
        return unit_rows(np.sqrt(np.maximum(cells.reshape(b, -1), 0)))


def _shares(length: int, cell: int) -> HostArray:
    """[cells, length] share that each cell has in each pixel, linear between their centres."""
    count = -(-length // cell)
    centres = cell * np.arange(count) + (cell - 1) / 2
    distance = np.abs(np.arange(length) - centres[:, None]) / cell
    shares = np.maximum(1 - distance, 0)
    out: HostArray = (shares / np.maximum(shares.sum(axis=0), _SMALLEST)).astype(np.float32)
    return out
