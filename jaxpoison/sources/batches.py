"""Python objects: sequences and iterators whose elements are rows, or batches of rows.

An element is a pair (x, y), a mapping with keys such as "x" or "image" and "y" or "label", or x
alone. What has a length and can be indexed is read in place; what can only be iterated over is
read once and kept in a temporary file (see ``spill``).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np

from jaxpoison._check import DataError, NothingToScan

from .base import Array, ColumnSource, is_number, listing, quote
from .columns import Sendable
from .labels import Labels, encode_labels
from .names import ARRAY_LABELS, ARRAY_NAMES, choose, is_embedding_name
from .spill import SpillColumn

_PIECE = 4 << 20  # bytes of rows that are collected before they are written


class MissingElement(DataError):
    """None where an element should be."""


class _Form(NamedTuple):
    """What the first element was; all others must be the same."""

    x_key: str | None  # of a mapping
    y_key: str | None
    is_pair: bool
    is_batch: bool
    shape: tuple[int, ...]  # of one row
    dtype: np.dtype[Any]

    @property
    def is_labelled(self) -> bool:
        return self.is_pair or self.y_key is not None


def is_elements(values: object) -> bool:
    """Whether an object is a sequence or iterator of elements, and not itself an array of rows."""
    if isinstance(values, list | tuple):
        first = values[0] if values else None  # lists of lists are arrays
        return isinstance(first, Mapping) or (isinstance(first, tuple) and _is_pair(first))
    if isinstance(values, Mapping | str | bytes | bytearray | memoryview):
        return False
    if any(hasattr(values, name) for name in ("__array__", "__array_interface__", "__dlpack__")):
        return False
    return _is_sequence(values) or isinstance(values, Iterable)


def _is_sequence(values: object) -> bool:
    return hasattr(values, "__len__") and hasattr(values, "__getitem__")


def _is_pair(element: object) -> bool:
    """A tuple (x, y); in lists of plain numbers only a label beside a row tells one from a row."""
    if not isinstance(element, tuple | list) or len(element) != 2:
        return False
    x, y = element
    if isinstance(x, list | tuple):
        return not isinstance(y, list | tuple)
    if hasattr(x, "shape"):
        return len(x.shape) > 0
    return hasattr(x, "__array_interface__")  # an image of Pillow


def _to_array(value: object, where: str) -> Array:
    try:
        array = np.asarray(value)
    except Exception as error:  # a tensor on a device, a ragged list, anything
        raise DataError(
            f"{where} cannot become an array ({type(value).__name__}: {quote(error, 160)}); give "
            "numpy arrays"
        ) from error
    has_type = hasattr(value, "dtype") or not isinstance(value, list | tuple)
    return array if has_type or array.dtype.kind not in "bif" else array.astype(np.float32)


def _parts(element: object, form: _Form | None, where: str) -> tuple[Any, Any, str | None, Any]:
    """x, y, and the keys they were under in a mapping."""
    if isinstance(element, Mapping):
        keys = [key for key in element if isinstance(key, str)]
        x_key = form.x_key if form else choose(keys, ARRAY_NAMES)
        y_key = form.y_key if form else choose(keys, ARRAY_LABELS)
        if x_key is None or x_key not in element or (y_key is not None and y_key not in element):
            wanted = ", ".join(ARRAY_NAMES) if x_key is None else listing([x_key, y_key or ""])
            raise DataError(
                f"{where} has the keys {listing(keys) or 'none'}; it needs one of {wanted}; give "
                '{"x": ..., "y": ...}'
            )
        return element[x_key], None if y_key is None else element[y_key], x_key, y_key
    if form.is_pair if form else _is_pair(element):
        if not isinstance(element, tuple | list) or len(element) != 2:
            raise DataError(f"{where} is {type(element).__name__}, the first was a pair (x, y)")
        return element[0], element[1], None, None
    return element, None, None, None


def _is_batch(x: Array, y: Array | None, where: str) -> bool:
    if y is not None and y.ndim < 2:
        return y.ndim == 1
    if y is None and x.ndim == 3:
        raise DataError(
            f"{where}: x has shape {x.shape} and no label beside it, which may be one image or "
            "many; give pairs (x, y)"
        )
    if y is not None:
        raise DataError(
            f"{where}: labels have shape {y.shape}; give one class number a row, for example "
            "y.argmax(axis=1)"
        )
    return x.ndim > 1 and not (x.ndim == 2 and x.dtype == np.uint8)


def _take(element: object, form: _Form | None, where: str) -> tuple[Array, Array | None, _Form]:
    """An element as a batch: x [b, ...], y [b] or None.

    Raises:
        DataError: An element unlike the first one, or no arrays in it.
    """
    if element is None:
        raise MissingElement(f"{where} is None; leave such elements out")
    raw_x, raw_y, x_key, y_key = _parts(element, form, where)
    x = _to_array(raw_x, f"{where}: x")
    y = None if raw_y is None else _to_array(raw_y, f"{where}: y")
    if y is not None and y.dtype == np.float32 and not hasattr(raw_y, "dtype"):
        y = np.asarray(raw_y)  # a list of labels keeps its integers
    if x.ndim == 0 or not is_number(x.dtype):
        raise DataError(
            f"{where} is {quote(type(element).__name__)} with x of type {quote(x.dtype)} and shape "
            f"{x.shape}; give arrays of numbers, as (x, y) or with keys x and y"
        )
    is_batch = form.is_batch if form else _is_batch(x, y, where)
    if not is_batch:
        x, y = x[None], None if y is None else y[None]
    if y is not None and (y.ndim != 1 or len(y) != len(x)):
        raise DataError(f"{where}: {len(x)} rows of x, labels of shape {y.shape}; give one a row")
    found = _Form(x_key, y_key, raw_y is not None and y_key is None, is_batch, x.shape[1:], x.dtype)
    if form is not None and found != form:
        raise DataError(
            f"{where}: x has rows of shape {found.shape} and type {quote(found.dtype)}, the first "
            f"{form.shape} and {quote(form.dtype)}; make the elements alike"
        )
    return x, y, found


class SequenceColumn(Sendable):
    """A sequence of elements, indexed whenever rows are read."""

    def __init__(self, values: Any, name: str, form: _Form, starts: Sequence[int]) -> None:
        """``starts`` are the first rows of all elements, and the number of rows at the end."""
        self.name, self.dtype = name, form.dtype
        self.shape: tuple[int, ...] = (starts[-1], *form.shape)
        self._values, self._form = values, form
        self._starts = np.asarray(starts)
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop``."""
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        element = int(np.searchsorted(self._starts, start, side="right")) - 1
        done = 0
        while done < len(rows):
            first, beyond = int(self._starts[element]), int(self._starts[element + 1])
            with self._lock:
                x = _take(self._values[element], self._form, _where(self.name, element))[0]
            if len(x) != beyond - first:
                raise DataError(
                    f"{_where(self.name, element)} has {len(x)} rows, it had {beyond - first}; "
                    "give a sequence that does not change"
                )
            part = x[start + done - first : stop - first]
            rows[done : done + len(part)] = part
            done += len(part)
            element += 1
        return rows

    def close(self) -> None:
        """Nothing is open."""


def _where(name: str, element: int) -> str:
    return f"{name}: element {element}"


def open_elements(
    values: Any, name: str, *, labelled: bool, is_checked: bool = False
) -> ColumnSource:
    """A sequence or an iterator of rows or batches.

    Args:
        values: Elements are pairs (x, y), mappings, or x alone. A sequence must give the same
            rows whenever it is asked; an iterator must end.
        name: What to call it in messages.
        labelled: Whether the labels of the elements are taken, if they have any.
        is_checked: Look at every element of a sequence at opening even if only x is wanted.

    Returns:
        The source.

    Raises:
        DataError: Elements that are no arrays, or differ in keys, shape or type.
        NothingToScan: No elements.

    Cost: one pass at opening (but for sequences of rows without labels). An iterator's rows go to
    the disk of TMPDIR.
    """
    if _is_sequence(values):
        count = len(values)
        if count == 0:
            raise NothingToScan(f"{name}: the sequence is empty; give data with rows")
        return _in_place(values, name, count, labelled, is_checked)
    return spool(iter(values), name, labelled=labelled)


def _in_place(values: Any, name: str, count: int, labelled: bool, is_checked: bool) -> ColumnSource:
    _, _, form = _take(values[0], None, _where(name, 0))
    if not form.is_batch and not is_checked and not (labelled and form.is_labelled):
        return _source(SequenceColumn(values, name, form, range(count + 1)), name, form, [])
    sizes: list[int] = []
    parts: list[Array] = []
    for element in range(count):
        x, y, _ = _take(values[element], form, _where(name, element))
        sizes.append(len(x))
        if y is not None and labelled:
            parts.append(y)
    column = SequenceColumn(values, name, form, [0, *accumulate(sizes)])
    return _source(column, name, form, parts)


def spool(elements: Iterator[Any], name: str, *, labelled: bool) -> ColumnSource:
    """An iterator's rows, kept in a temporary file.

    Raises:
        DataError: As ``open_elements``.
        NothingToScan: No elements.
    """
    form: _Form | None = None
    column = SpillColumn(name)
    labels: list[Array] = []
    held: list[Array] = []
    size = 0
    for number, element in enumerate(elements):
        x, y, form = _take(element, form, _where(name, number))
        if y is not None and labelled:
            labels.append(y)
        held.append(x)
        size += x.nbytes
        if size >= _PIECE:
            column.append(np.concatenate(held))
            held, size = [], 0
    if form is None:
        raise NothingToScan(f"{name}: the iterator gave nothing; is it used up? give a new one")
    column.append(np.concatenate([*held, np.empty((0, *form.shape), form.dtype)]))
    return _source(column, name, form, labels)


def _source(
    column: SequenceColumn | SpillColumn, name: str, form: _Form, parts: list[Array]
) -> ColumnSource:
    is_embedding = form.x_key is not None and is_embedding_name(form.x_key)
    source = ColumnSource(name, column, is_embedding=is_embedding)
    if not parts:
        return source
    kinds = {part.dtype.kind for part in parts}
    if len(kinds) > 1 and kinds & set("OUS"):
        raise DataError(f"{name}: some labels are text and some are not; make them alike")
    values = np.concatenate(parts)
    if values.dtype.kind == "O":  # rows of Python strings
        values = np.array(list(chain(values)), dtype=object)
    found: Labels = encode_labels(values, rows=len(source), name=f"{name}: labels")
    return source.with_labels(*found)
