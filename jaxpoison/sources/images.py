"""Encoded images as one column: a look at every header, then rows of one size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from jaxpoison._check import DataError, NothingToScan

from . import pixels
from .base import Array
from .decoded import DecodedColumn
from .spans import MAX_RECORD_BYTES, Records

Size = tuple[int, int]  # height and width

_HEAD_BYTES = 1 << 14  # of an image: enough for the header of most


class Survey:
    """What the headers of many images say together."""

    def __init__(self, name: str, resize: Size | None, *, is_colour: bool = False) -> None:
        """Nothing has been seen.

        Args:
            name: What the user typed.
            resize: Height and width that all are brought to; None if all must have one size.
            is_colour: Colour in any case; else only if one of the images has colours.
        """
        self._name, self._resize = name, resize
        self._is_colour = is_colour
        self._first: tuple[pixels.Look, str] | None = None

    def add(self, seen: pixels.Look, label: str) -> None:
        """The next image.

        Raises:
            DataError: Another size than the first, and no size to bring them to.
        """
        self._is_colour = self._is_colour or seen.is_colour
        if self._first is None:
            self._first = seen, label
            return
        first, first_label = self._first
        if self._resize is None and seen[:2] != first[:2]:
            raise DataError(
                f"{self._name}: images have several sizes: {first_label} is {first.height} x "
                f"{first.width}, {label} is {seen.height} x {seen.width}; make them alike, or "
                f"have them resized: {with_size(self._name, first[:2])}"
            )

    def column(
        self, records: Records, extract: Callable[[bytes, str], bytes] | None = None
    ) -> DecodedColumn:
        """The images that were looked at.

        Args:
            records: As many as were added, in the same order.
            extract: Takes the image out of a record, if a record is more than that.

        Returns:
            [n, H, W] uint8, or [n, H, W, 3] if one of the images has colours.

        Raises:
            NothingToScan: No images.
        """
        if self._first is None:
            raise NothingToScan(f"{self._name}: holds no images; give some")
        stored = self._first[0][:2]
        decode = partial(
            pixels.decode, is_colour=self._is_colour,
            stored=stored if self._resize is None else None, resize=self._resize,
        )  # fmt: skip

        def make(data: bytes, label: str) -> Array:
            return decode(data if extract is None else extract(data, label), label)

        row = (*(self._resize or stored), *((3,) if self._is_colour else ()))
        return DecodedColumn(records, make, row, np.dtype(np.uint8))


def image_column(records: Records, name: str, *, resize: Size | None) -> DecodedColumn:
    """A column of records that are images and nothing else.

    Args:
        records: Encoded images.
        name: What the user typed.
        resize: Height and width that all are brought to; None if all must have one size.

    Returns:
        [n, H, W] uint8, or [n, H, W, 3] if one of the images has colours.

    Raises:
        DataError: Images that are damaged, or have several sizes.
        NothingToScan: No images.

    **Cost**: The first 16 KiB of every image.
    """
    survey = Survey(name, resize)
    for row in range(len(records)):
        survey.add(_look(records, row), records.name(row))
    records.close()
    return survey.column(records)


def _look(records: Records, row: int) -> pixels.Look:
    label = records.name(row)
    head = records.head(row, _HEAD_BYTES)
    try:
        return pixels.look(head, label)
    except DataError:
        if len(head) < _HEAD_BYTES:
            raise
    return pixels.look(records.head(row, MAX_RECORD_BYTES), label)  # a header behind much else


def with_size(name: str, size: Size) -> str:
    """How to ask for images of one size: the name with ``@HEIGHTxWIDTH``."""
    base, mark, split = name.rpartition("#")
    base, split = (base, split) if mark else (name, "")
    prefix = "" if base.startswith(("images:", "tfds:")) else "images:"
    return f"{prefix}{base}@{size[0]}x{size[1]}{mark}{split}"
