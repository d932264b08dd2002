"""Which rows the user knows to be honest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import HostArray
from jaxpoison.calibrate import MIN_TRUSTED
from jaxpoison.sources.npy import open_npy

_ENDINGS = (".npy", ".txt", ".csv")


def trusted_rows(given: Any, num_rows: int) -> HostArray:
    """A mask of the trusted rows.

    Args:
        given: Row numbers, counted from 0, or a mask of all rows; as an array, or as a file: .npy
            of either, or .txt or .csv with one row number a line.
        num_rows: Of the data, before any row is dropped.

    Returns:
        [num_rows] bool.

    Raises:
        UsageError: Another kind of file or array.
        DataError: The file can not be read, a number is no row of the data or is there twice, or
            there are fewer rows than a null needs.
    """
    is_file = isinstance(given, str) or hasattr(given, "__fspath__")
    name = f"trusted {str(given)!r}" if is_file else "trusted"
    values = _read(Path(given), name) if is_file else _array(given)
    if values.ndim != 1 or values.dtype.kind not in "biu":
        raise UsageError(_unlike(name, values.shape, values.dtype))
    if values.dtype == np.bool_:
        if len(values) != num_rows:
            raise DataError(
                f"{name}: a mask of {len(values)} rows, the data has {num_rows}; "
                "give one bool for each row of data, or row numbers"
            )
        mask = values.copy()
    else:
        mask = _mask(values, num_rows, name)
    require_enough(mask, name)
    return mask


def require_enough(mask: HostArray, name: str = "trusted") -> None:
    """Checks that the trusted rows suffice for a null.

    Raises:
        DataError: They do not.
    """
    if mask.sum() < MIN_TRUSTED:
        raise DataError(
            f"{name}: {mask.sum()} rows; p-values need at least {MIN_TRUSTED} trusted rows, better "
            "some hundred of every class: trust more rows, or scan without"
        )


def _unlike(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return (
        f"{name}: shape {shape} and type {dtype}; give row numbers as a list of integers, or a "
        "mask with one bool for each row"
    )


def _array(given: Any) -> HostArray:
    try:
        values = np.asarray(given)
    except ValueError as error:
        raise UsageError(f"trusted: {error}; give row numbers as a list of integers") from error
    return values if values.size else values.astype(np.int64)  # an empty list has no type


def _mask(rows: HostArray, num_rows: int, name: str) -> HostArray:
    outside = np.flatnonzero((rows < 0) | (rows >= num_rows))
    if len(outside):
        raise DataError(
            f"{name}: entry {outside[0]} is row {rows[outside[0]]}; the rows of the data are "
            f"numbered from 0 to {num_rows - 1}"
        )
    unique, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{name}: row {unique[counts > 1][0]} is there twice; give each row once")
    mask = np.zeros(num_rows, np.bool_)
    mask[rows.astype(np.int64)] = True
    return mask


def _npy(path: Path, name: str) -> HostArray:
    """The array of a .npy file; nothing is unpickled, or taken memory for on its header's word."""
    column = open_npy(path, name)
    if len(column.shape) != 1:
        raise UsageError(_unlike(name, column.shape, column.dtype))
    values = np.array(column.read(0, column.shape[0]))
    column.close()
    return values


def _read(path: Path, name: str) -> HostArray:
    if path.suffix.lower() not in _ENDINGS:
        raise UsageError(f"{name}: give a file that ends in {', '.join(_ENDINGS)}")
    try:
        if path.suffix.lower() == ".npy":
            return _npy(path, name)
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{name}: can not be read: {reason}; check the path") from error
    except ValueError as error:  # no text, or no path
        raise DataError(f"{name}: can not be read: {error}; save row numbers anew") from error
    return np.array(_integers(lines, name), np.int64)


def _integers(lines: list[str], name: str) -> list[int]:
    numbers = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise DataError(
                f"{name}: line {number} is {text[:40]!r}; give one row number a line, counted "
                "from 0, and nothing else"
            )
        numbers.append(int(text))
    return numbers
