"""What every feature map has, and how blocks of rows go through one."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import HostArray
from jaxpoison.layout import aligned_empty
from jaxpoison.linalg.threads import one_thread

BLOCK = 4
"""Rows that go through a map together, always so many: shorter blocks are padded, so that the
features of a row have the same bits alone and among others."""

_SMALLEST = np.float32(1e-12)
_BLOCKS_A_TASK = 32


@dataclass(frozen=True)
class FeatureMap(ABC):
    """A fixed function of one row: no parameter is learnt, no row sees another.

    Statistics of the data set (mean, variance, principal directions) would let one poisoned row
    change the features of all, and with them every model of an ensemble.
    """

    @abstractmethod
    def of_block(self, x: HostArray) -> HostArray:
        """[b, ...] float32 rows to [b, ...] float32, each row by itself."""

    @property
    def name(self) -> str:
        """Of the map."""
        return type(self).__name__

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, **asdict(self)}

    @one_thread()  # of BLAS: blocks have threads of their own
    def __call__(self, x: HostArray) -> HostArray:
        """Features of rows.

        Args:
            x: [n, ...] integers or floats, such as images [n, h, w] or [n, h, w, ch].

        Returns:
            [n, f] float32.

        Raises:
            DataError: No numbers, or a value that is not finite.

        **Cost**: blocks of 4 rows on as many threads as there are cores; the bits depend on
        neither.
        """
        rows = np.asarray(x)
        if rows.dtype.kind not in "buif" or rows.ndim < 2 or 0 in rows.shape[1:]:
            raise DataError(
                f"x has shape {rows.shape} and dtype {rows.dtype}; {self.name} takes [n, ...] "
                "integers or floats"
            )
        first = self._of_padded(rows[:BLOCK])
        if len(rows) <= BLOCK:
            return first
        out = aligned_empty((len(rows), first.shape[1]), np.dtype(np.float32))
        out[:BLOCK] = first
        step = BLOCK * _BLOCKS_A_TASK

        def work(begin: int) -> None:
            for start in range(begin, min(begin + step, len(rows)), BLOCK):
                stop = min(start + BLOCK, len(rows))
                out[start:stop] = self._of_padded(rows[start:stop])

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(work, range(BLOCK, len(rows), step)))
        return out

    def _of_padded(self, rows: HostArray) -> HostArray:
        block = np.zeros((BLOCK, *rows.shape[1:]), np.float32)
        with np.errstate(over="ignore"):
            block[: len(rows)] = rows
        if not np.isfinite(block).all():
            raise DataError("x has a value that is not a finite float32; drop the row or fill it")
        return self.of_block(block).reshape(BLOCK, -1)[: len(rows)]


@dataclass(frozen=True)
class Chain(FeatureMap):
    """Maps one after the other, such as ``Chain((Deskew(), Scattering()))``.

    Attributes:
        maps: At least one.
    """

    maps: tuple[FeatureMap, ...]

    def __post_init__(self) -> None:
        if not self.maps or not all(isinstance(each, FeatureMap) for each in self.maps):
            raise UsageError(f"maps is {self.maps!r}; give a tuple of at least one feature map")

    def of_block(self, x: HostArray) -> HostArray:
        """Each map on what the one before it made."""
        for each in self.maps:
            x = each.of_block(x)
        return x

    def to_json(self) -> dict[str, Any]:
        """The maps in order."""
        return {"name": self.name, "maps": [each.to_json() for each in self.maps]}


@dataclass(frozen=True)
class Pixels(FeatureMap):
    """The values themselves, each row scaled to length 1.

    Attributes:
        unit: False leaves the length of rows alone.
    """

    unit: bool = True

    def of_block(self, x: HostArray) -> HostArray:
        """Flattened rows."""
        flat = x.reshape(len(x), -1)
        return unit_rows(flat) if self.unit else flat


def images_of(x: HostArray, name: str) -> HostArray:
    """[b, ch, h, w] with each row divided by its own largest absolute value.

    So a row of bytes and the same row in [0, 1] have the same features.

    Raises:
        DataError: Neither [b, h, w] nor [b, h, w, ch].
    """
    if x.ndim not in (3, 4):
        raise DataError(
            f"x has rows of shape {x.shape[1:]}; {name} takes images [n, h, w] or [n, h, w, ch]: "
            "reshape them, or take Pixels()"
        )
    channels = x[:, None] if x.ndim == 3 else np.moveaxis(x, 3, 1)
    top = np.abs(channels).max(axis=(1, 2, 3), keepdims=True)
    return np.ascontiguousarray(channels / np.where(top > 0, top, np.float32(1)))


def unit_rows(flat: HostArray) -> HostArray:
    """[b, f] rows of Euclidean length 1; a row of zeros stays one."""
    length = np.sqrt(np.einsum("bf,bf->b", flat, flat))
    out: HostArray = flat / np.maximum(length, _SMALLEST)[:, None]
    return out
