"""A column of encoded images in a Parquet or Arrow file, as struct<bytes, path>."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from jaxpoison._check import DataError, NothingToScan

from . import pixels
from .arrow_files import ArrowFile, decoding
from .base import quote
from .decoded import DecodedColumn
from .spans import MAX_RECORD_BYTES

_PIECE_ROWS = 64


class ArrowImages:
    """The bytes of the images, forward; going back starts again at a row group."""

    def __init__(self, file: ArrowFile, column: str) -> None:
        """Nothing is read."""
        self._file, self._column = file, column
        self._label = f"{file.name}: column {quote(column)}"
        self._pieces: Iterator[Any] | None = None
        self._piece: list[bytes] = []
        self._at = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of images."""
        return self._file.starts[-1]

    def name(self, row: int) -> str:
        """What to call an image in a message."""
        return f"{self._label}: row {row}"

    def fetch(self, start: int, stop: int) -> list[bytes]:
        """Images ``start`` to ``stop``, as they are stored."""
        found: list[bytes] = []
        with self._lock:
            try:
                while len(found) < stop - start:
                    self._seek(start + len(found))
                    first = start + len(found) - self._at
                    found += self._piece[first : first + stop - start - len(found)]
            except BaseException:
                self._drop()
                raise
        return found

    def head(self, row: int, limit: int) -> bytes:
        """The first bytes of an image."""
        return self.fetch(row, row + 1)[0][:limit]

    def _seek(self, row: int) -> None:
        starts = self._file.starts
        group = int(np.searchsorted(starts, row, side="right")) - 1
        if self._pieces is None or row < self._at or starts[group] > self._at + len(self._piece):
            self._drop()
            self._pieces = self._file.pieces(self._column, group, _PIECE_ROWS)
            self._at = starts[group]
        while row >= self._at + len(self._piece):
            self._at += len(self._piece)
            with decoding(self._label):
                piece = next(self._pieces, None)
                if piece is None:
                    raise DataError(
                        f"{self._label}: declares {len(self)} rows and ends after {self._at}; "
                        "copy or make the file again"
                    )
                self._piece = self._bytes(piece)

    def _bytes(self, piece: Any) -> list[bytes]:
        held = piece.field("bytes")
        found: list[bytes] = []
        for row, value in enumerate(held, self._at):
            data = value.as_buffer()
            if data is None:
                raise DataError(
                    f"{self.name(row)}: holds no bytes of an image, at most the path of a file, "
                    "which is not followed; save the data set with its images inside"
                )
            if not 0 < data.size <= MAX_RECORD_BYTES:
                raise DataError(
                    f"{self.name(row)}: holds {data.size} bytes; an image has 1 to "
                    f"{MAX_RECORD_BYTES}"
                )
            found.append(data.to_pybytes())
        return found

    def _drop(self) -> None:
        self._pieces, self._piece, self._at = None, [], 0

    def close(self) -> None:
        """Let go of the file; the next ``fetch`` opens it again."""
        with self._lock:
            self._drop()


def open_images(file: ArrowFile, column: str) -> DecodedColumn:
    """The images of a column, all of one size.

    Args:
        file: The file.
        column: Its column of encoded images.

    Returns:
        [n, H, W] uint8, or [n, H, W, 3] if one of the images has colours.

    Raises:
        DataError: Images that are damaged, of several sizes, or not in the file.
        UsageError: Pillow is not installed.
        NothingToScan: No rows.

    Cost: one pass over the bytes at opening, for sizes alone; each image is decoded once.
    """
    pixels.pillow(file.name)
    records = ArrowImages(file, column)
    if not len(records):
        raise NothingToScan(f"{file.name}: no rows; give data with rows")
    first = pixels.look(records.fetch(0, 1)[0], records.name(0))
    is_colour = False
    for start in range(0, len(records), _PIECE_ROWS):
        images = records.fetch(start, min(start + _PIECE_ROWS, len(records)))
        for row, data in enumerate(images, start):
            seen = pixels.look(data, records.name(row))
            is_colour = is_colour or seen.is_colour
            if seen[:2] != first[:2]:
                raise DataError(
                    f"{records.name(row)}: is {seen.height} x {seen.width}, row 0 is "
                    f"{first.height} x {first.width}; bring all images to one size"
                )
    records.close()
    decode = partial(pixels.decode, is_colour=is_colour, stored=first[:2], resize=None)
    row_shape = (*first[:2], *((3,) if is_colour else ()))
    return DecodedColumn(records, decode, row_shape, np.dtype(np.uint8))
