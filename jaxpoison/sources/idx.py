"""IDX, the format of MNIST and Fashion-MNIST, plain or compressed with gzip."""

from __future__ import annotations

import gzip
import re
import struct
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from jaxpoison._check import DataError

from .base import Column, ColumnSource, listing, quote
from .columns import FileColumn, StreamColumn, readable
from .labels import read_labels

_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MAX_RATIO = 1040  # deflate cannot expand further
_NAME = re.compile(r"(.+[-.])?idx\d?(-\w+)?(\.gz)?", re.IGNORECASE)
_ALIASES = {"test": ("test", "t10k"), "t10k": ("t10k",), "train": ("train",)}
_CHUNK = 1 << 20


def is_idx(path: Path) -> bool:
    """Whether a file name is one of those IDX files go by."""
    return _NAME.fullmatch(path.name) is not None


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else open(path, "rb")


def open_column(path: Path, name: str) -> Column:
    """The array of an IDX file, as a column.

    Raises:
        DataError: A wrong magic number, or another size than the header declares.
    """
    with readable(name), _open(path) as file:
        shape, dtype, offset = _header(file, name)
    declared = offset + prod(shape) * dtype.itemsize
    size = path.stat().st_size
    if path.suffix == ".gz":
        if declared > size * _MAX_RATIO + _CHUNK:
            raise DataError(_size_message(name, shape, declared, f"{size} compressed bytes"))
        with readable(name):
            held = _gzip_size(path, declared)
    else:
        held = size
    if held != declared:
        raise DataError(_size_message(name, shape, declared, f"{held} bytes"))
    if path.suffix == ".gz":
        return StreamColumn(partial(_open, path.absolute()), name, offset, shape, dtype)
    return FileColumn(path, name, offset, shape, dtype)


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    lead = file.read(4)
    if len(lead) < 4 or lead[:2] != b"\0\0" or lead[2] not in _TYPES or not 1 <= lead[3] <= 8:
        raise DataError(
            f"{name}: starts with {lead!r}, which is no IDX magic number; "
            "expected for example 00 00 08 03 for images"
        )
    raw = file.read(4 * lead[3])
    if len(raw) < 4 * lead[3]:
        raise DataError(f"{name}: truncated IDX header; copy the file again")
    return struct.unpack(f">{lead[3]}I", raw), np.dtype(_TYPES[lead[2]]), 4 + len(raw)


def _gzip_size(path: Path, expected: int) -> int:
    """Decompressed size: from the trailer if that agrees, else counted (at most one more)."""
    with open(path, "rb") as file:
        file.seek(-4, 2)
        (trailer,) = struct.unpack("<I", file.read(4))
    if trailer == expected % (1 << 32):
        return expected
    held = 0
    with _open(path) as stream:  # several gzip members, or damaged
        while held <= expected and (chunk := stream.read(_CHUNK)):
            held += len(chunk)
    return held


def _size_message(name: str, shape: tuple[int, ...], declared: int, held: str) -> str:
    return (
        f"{name}: truncated or damaged: the header declares shape {shape}, {declared} bytes, the "
        f"file holds {held}; copy the file again"
    )


def open_idx(path: Path, name: str, *, labelled: bool) -> ColumnSource:
    """An IDX file of images, with the labels file found beside it.

    Args:
        path: For example ``train-images-idx3-ubyte.gz``.
        name: What the user typed.
        labelled: Whether labels are wanted and must be found.

    Returns:
        The source.

    Raises:
        DataError: Damaged files, or no labels beside the images.
    """
    source = ColumnSource(name, open_column(path, name))
    if not labelled:
        return source
    beside = path.name.replace("images", "labels").replace("idx3", "idx1")
    beside = beside.removesuffix(".gz")
    for candidate in (path.with_name(beside), path.with_name(f"{beside}.gz")):
        if candidate != path and candidate.is_file():
            label = str(candidate)
            column = open_column(candidate, label)
            return source.with_labels(*read_labels(column, rows=len(source), name=label))
    raise DataError(
        f"{name}: no labels beside it (looked for {quote(beside)} and {quote(beside + '.gz')}); "
        "give the labels apart (labels=)"
    )


def holds_idx(folder: Path) -> bool:
    """Whether a folder holds IDX images."""
    return any(is_idx(entry) and "images" in entry.name for entry in folder.iterdir())


def open_idx_folder(folder: Path, name: str, *, split: str | None, labelled: bool) -> ColumnSource:
    """The images of one split in a folder of IDX files.

    Args:
        folder: Holds for example ``train-images-idx3-ubyte.gz``.
        name: What the user typed.
        split: How the file names begin; None means "train".
        labelled: Whether labels are wanted and must be found.

    Returns:
        The source.

    Raises:
        DataError: No such split, or damaged files.
    """
    entries = sorted(entry for entry in folder.iterdir() if is_idx(entry))
    for start in _ALIASES.get(split or "train", (str(split),)):
        for entry in entries:  # an uncompressed file sorts before its .gz and is faster
            if entry.name.startswith(f"{start}-images"):
                return open_idx(entry, name, labelled=labelled)
    raise DataError(
        f"{name}: no {split or 'train'}-images-idx3-ubyte file in the folder; it holds "
        f"{listing([entry.name for entry in entries]) or 'no IDX files'}; write FOLDER#SPLIT"
    )
