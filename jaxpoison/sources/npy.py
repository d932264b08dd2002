"""``.npy``: the header is parsed here, so that nothing is unpickled or allocated on its word."""

from __future__ import annotations

import ast
import re
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from jaxpoison._check import DataError

from .base import ColumnSource, quote
from .columns import FileColumn, readable
from .labels import Labels, read_labels

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000  # numpy's own limit
_DTYPE = re.compile(r"[<>|=]?[A-Za-z?]\d*(\[\d*\w+\])?")


class Header(NamedTuple):
    """What an npy header declares."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int  # where the values begin

    @property
    def nbytes(self) -> int:
        """Bytes of values declared, exact however large."""
        return prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes], name: str) -> Header:
    """Parse the header at the start of a stream.

    Args:
        stream: Positioned at the first byte.
        name: File or member, for messages.

    Returns:
        The declared shape, type and order.

    Raises:
        DataError: Not an npy file, a damaged header, or a type that needs pickle.
    """
    lead = stream.read(8)
    if len(lead) < 8 or lead[:6] != _MAGIC:
        raise DataError(
            f"{name}: starts with {lead[:6]!r}, not with the npy signature; save it with np.save"
        )
    width = {1: 2, 2: 4, 3: 4}.get(lead[6])
    if width is None:
        raise DataError(f"{name}: npy version {lead[6]} is unknown; save it again with np.save")
    raw = stream.read(width)
    size = int.from_bytes(raw, "little")
    text = stream.read(size) if len(raw) == width and size <= _MAX_HEADER else b""
    if not text or len(text) < size:
        raise DataError(
            f"{name}: truncated or damaged header of {size} bytes; save it again with np.save"
        )
    shape, dtype, fortran = _parse(text.decode("utf8" if lead[6] == 3 else "latin1"), name)
    return Header(shape, dtype, fortran, 8 + width + size)


def _parse(text: str, name: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    try:
        fields = ast.literal_eval(text.strip())
        shape, descr, fortran = fields["shape"], fields["descr"], fields["fortran_order"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise DataError(f"{name}: damaged npy header; save it again with np.save") from error
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise DataError(f"{name}: declares shape {quote(shape)}; save it again with np.save")
    if not isinstance(fortran, bool):
        raise DataError(f"{name}: damaged npy header; save it again with np.save")
    if not isinstance(descr, str):
        raise DataError(
            f"{name}: holds records with several fields; save one numeric array for x and one for y"
        )
    try:
        dtype = np.dtype(descr) if _DTYPE.fullmatch(descr) else None
    except (TypeError, ValueError):
        dtype = None
    if dtype is None:
        raise DataError(f"{name}: declares type {quote(descr)}; save it again as a numeric array")
    if dtype.hasobject:
        raise DataError(
            f"{name}: has object dtype, that is pickled Python objects, which are never loaded; "
            "save one numeric array, for example np.stack(x).astype(np.float32)"
        )
    return shape, dtype, fortran


def check_size(header: Header, held: int, name: str) -> None:
    """Refuse a header that declares other than the bytes that are there.

    Raises:
        DataError: More bytes declared (truncated, or made to exhaust memory), or fewer.
    """
    if header.nbytes == held:
        return
    word = "truncated or damaged" if header.nbytes > held else "damaged"
    raise DataError(
        f"{name}: {word}: the header declares shape {quote(header.shape)} of "
        f"{header.dtype}, {header.nbytes} bytes, the file holds {held}; copy or save it again"
    )


def open_npy(path: Path, name: str) -> FileColumn:
    """The array of an ``.npy`` file, as a column that is read in place.

    Raises:
        DataError: Not an npy file, truncated, or a type that needs pickle.
    """
    with readable(name), open(path, "rb") as file:
        header = read_header(file, name)
    check_size(header, path.stat().st_size - header.offset, name)
    return FileColumn(path, name, header.offset, header.shape, header.dtype, fortran=header.fortran)


def open_npy_rows(path: Path, name: str, *, labelled: bool) -> ColumnSource:
    """The array of an ``.npy`` file as a source, which never has labels.

    Raises:
        DataError: As ``open_npy``.
    """
    del labelled  # a bare array may come without
    return ColumnSource(name, open_npy(path, name))


def open_npy_labels(path: Path, name: str, *, rows: int) -> Labels:
    """The array of an ``.npy`` file as labels for other inputs.

    Raises:
        DataError: As ``open_npy``, or not one class number a row.
    """
    return read_labels(open_npy(path, name), rows=rows, name=name)
