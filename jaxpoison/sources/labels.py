"""Labels: whatever was given becomes int64 class numbers, or an error that names the row."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from jaxpoison._check import DataError

from .base import Array, Column, quote

_LONGEST_NAME = 4 * 256  # bytes of a label in a file: 256 characters
_NAMES_AT_ONCE = 1 << 16
_SURROGATES = 0xD800, 0xDFFF  # halves of characters


class Labels(NamedTuple):
    """Checked class numbers, with names when the labels were text."""

    values: Array  # [n] int64, read-only
    class_names: tuple[str, ...] | None


def check_shape(shape: tuple[int, ...], rows: int, name: str) -> None:
    """Refuse labels that are not one a row, before any of them is read.

    Raises:
        DataError: Two-dimensional labels, or a number of them that is not ``rows``.
    """
    if len(shape) == 2:
        step = "y.ravel()" if shape[1] == 1 else "y.argmax(axis=1) if they are one-hot"
        raise DataError(f"{name}: labels have shape {shape}, expected [{rows}]; give {step}")
    if len(shape) != 1:
        raise DataError(f"{name}: labels have shape {shape}; give one class number a row, [{rows}]")
    if shape[0] != rows:
        raise DataError(
            f"{name}: {shape[0]} labels for {rows} rows of x; give one label for each row"
        )


def check_dtype(dtype: np.dtype[Any], name: str) -> None:
    """Refuse label types that are not numbers.

    Raises:
        DataError: Text, objects or anything else that is not an integer, bool or float.
    """
    if dtype.kind == "O":
        raise DataError(
            f"{name}: labels are Python objects, which are stored as pickles and never loaded; "
            "save y.astype(np.int64)"
        )
    if dtype.kind in "US":
        raise DataError(
            f"{name}: labels are text of type {dtype}; number them: "
            "names, y = np.unique(y, return_inverse=True)"
        )
    if dtype.kind not in "biuf":
        raise DataError(f"{name}: labels have type {dtype}; save them as integers")


def check_labels(values: Array, *, rows: int, name: str) -> Array:
    """Class numbers as int64.

    Args:
        values: [rows] bool or integers.
        rows: How many there must be.
        name: What to call them in a message.

    Returns:
        [rows] int64, read-only.

    Raises:
        DataError: A wrong shape or type, floats, a negative or an overlarge class number.
    """
    check_shape(values.shape, rows, name)
    check_dtype(values.dtype, name)
    if values.dtype.kind == "f":
        broken = np.flatnonzero(values != np.floor(values))  # NaN differs from itself
        if broken.size or not np.isfinite(values).all():
            row = int(broken[0]) if broken.size else int(np.flatnonzero(np.isinf(values))[0])
            raise DataError(
                f"{name}: label of row {row} is {values[row]}; labels must be class numbers 0, 1, "
                "..., not measurements"
            )
        raise DataError(f"{name}: labels are {values.dtype}; cast them: y.astype(np.int64)")
    outside = (values < 0) if values.dtype.kind == "i" else (values > np.iinfo(np.int64).max)
    if values.dtype.kind != "b" and outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise DataError(
            f"{name}: label of row {row} is {values[row]}; class numbers start at 0: "
            "remove rows without a class, or renumber the classes"
        )
    numbers = np.array(values, dtype=np.int64)  # a copy: the caller may change theirs
    numbers.flags.writeable = False
    return numbers


def encode_labels(values: Array, *, rows: int, name: str) -> Labels:
    """Labels held in memory: numbers are checked, text is numbered in sorted order.

    Args:
        values: [rows] integers, bool, or text (also objects that are all str).
        rows: How many there must be.
        name: What to call them in a message.

    Returns:
        Class numbers, and the names when the labels were text.

    Raises:
        DataError: As ``check_labels``.
    """
    check_shape(values.shape, rows, name)
    if values.dtype.kind == "O":
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise DataError(
                    f"{name}: label of row {row} is {quote(value)} of type "
                    f"{type(value).__name__}; give integers: y.astype(np.int64)"
                )
    if values.dtype.kind not in "OU":
        return Labels(check_labels(values, rows=rows, name=name), None)
    texts = [str(value) for value in values]
    return number_names(np.arange(rows), texts, rows=rows, name=name)


def number_names(codes: Array, names: list[str], *, rows: int, name: str) -> Labels:
    """Number text labels in the sorted order of the names that occur.

    Args:
        codes: [rows] positions in ``names``.
        names: Text, in any order, with repetitions and unused entries.
        rows: How many labels there must be.
        name: What to call them in a message.

    Returns:
        Class numbers and the sorted names.

    Raises:
        DataError: A wrong number of labels.
    """
    check_shape(codes.shape, rows, name)
    used = sorted({names[code] for code in np.unique(codes).tolist()})
    number = {text: position for position, text in enumerate(used)}
    table = np.array([number.get(text, -1) for text in names], dtype=np.int64)
    return Labels(check_labels(table[codes], rows=rows, name=name), tuple(used))


def read_labels(column: Column, *, rows: int, name: str) -> Labels:
    """Labels kept in a file: shape and type are checked before anything is decoded.

    Raises:
        DataError: As ``check_labels``.
    """
    check_shape(column.shape, rows, name)
    if column.dtype.kind == "U" and 0 < column.dtype.itemsize <= _LONGEST_NAME:
        return _read_names(column, rows, name)
    check_dtype(column.dtype, name)
    values = column.read(0, rows)
    column.close()
    return Labels(check_labels(values, rows=rows, name=name), None)


def _read_names(column: Column, rows: int, name: str) -> Labels:
    """Text labels of a fixed width, a block at a time: only distinct names are held."""
    codes, number = np.empty(rows, np.int64), dict[str, int]()
    for start in range(0, rows, _NAMES_AT_ONCE):
        stop = min(start + _NAMES_AT_ONCE, rows)
        found, place = np.unique(column.read(start, stop), return_inverse=True)
        native = np.ascontiguousarray(found.astype(found.dtype.newbyteorder("=")))
        letters = native.view(np.uint32)
        is_half = (letters >= _SURROGATES[0]) & (letters <= _SURROGATES[1])
        if letters.max() > sys.maxunicode or is_half.any():  # numpy makes text of anything
            raise DataError(f"{name}: labels are damaged text, not characters; save them again")
        texts = native.tolist()
        codes[start:stop] = np.array([number.setdefault(t, len(number)) for t in texts])[place]
    column.close()
    return number_names(codes, list(number), rows=rows, name=name)
