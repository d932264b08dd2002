"""Arrays that are already in memory: numpy, lists, anything with ``__array__``."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxpoison._check import DataError

from .base import Array, ColumnSource


class ArrayColumn:
    """An array in memory; reads are read-only views where no conversion is needed."""

    def __init__(self, array: Array) -> None:
        """Keep a view, so that the caller's own flags stay as they are."""
        self._array = array.view()
        self._array.flags.writeable = False
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = array.dtype

    def read(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop``."""
        return self._array[start:stop]

    def close(self) -> None:
        """Nothing is open."""


def to_array(values: object, name: str) -> Array:
    """Any array-like as numpy.

    Raises:
        DataError: Ragged lists, or a value that is no array.
    """
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{name}: not an array ({type(values).__name__}: {error}); "
            "give rows of equal length, for example np.stack(rows)"
        ) from error
    if array.ndim == 0:
        raise DataError(
            f"{name}: got {type(values).__name__}, which is not an array of rows; "
            "give a numpy array [n, ...] or a path"
        )
    return array


def open_array(values: object, name: str) -> ColumnSource:
    """A source over an array in memory, without labels.

    Raises:
        DataError: Not numeric, wrong rank, or images that are not uint8.
    """
    return ColumnSource(name, ArrayColumn(to_array(values, name)))
