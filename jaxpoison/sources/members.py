"""Files and folders that hold several named arrays, in groups: which of them are x and y."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from jaxpoison._check import DataError

from .base import Column, ColumnSource, listing, parts_of, quote
from .labels import Labels, read_labels
from .names import ARRAY_LABELS, ARRAY_NAMES, choose, is_embedding_name

MAX_CHUNK = 64 << 20
"""Bytes of one chunk that are decoded: more than that is no way to store rows."""


class Holder(Protocol):
    """An open file or folder of named arrays; a name may have "/" in it."""

    name: str

    def arrays(self, group: str) -> list[str]:
        """Names of the arrays of a group, "" for the outermost."""

    def groups(self) -> list[str]:
        """Names of the outermost group's groups."""

    def column(self, path: str) -> Column:
        """One array."""


def check_chunk(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> None:
    """Refuse chunks that would fill the memory when one row is read.

    Raises:
        DataError: Names the size.
    """
    size = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    if size > MAX_CHUNK:
        raise DataError(
            f"{name}: stored in chunks of shape {shape}, {size >> 20} MB each, at most "
            f"{MAX_CHUNK >> 20} MB are decoded; save it in chunks of fewer rows"
        )


def _find(holder: Holder, wanted: tuple[str, ...], split: str | None) -> tuple[str, str] | None:
    """The path of an array and its name without the split."""
    if split is None:
        found = choose(holder.arrays(""), wanted)
        return None if found is None else (found, found)
    if split in holder.groups():
        found = choose(holder.arrays(split), wanted)
        return None if found is None else (f"{split}/{found}", found)
    found = choose(holder.arrays(""), wanted, split)
    return None if found is None else (found, found.removesuffix(f"_{split}"))


def _missing(holder: Holder, wanted: tuple[str, ...], split: str | None, what: str) -> DataError:
    held = [*holder.arrays(""), *(f"{each}/" for each in holder.groups())]
    where = "" if split is None else f" for the split {quote(split)}"
    base = holder.name if split is None else holder.name.rpartition("#")[0]
    splits = [each for each in holder.groups() if choose(holder.arrays(each), ARRAY_NAMES)]
    splits += [n[2:] for n in holder.arrays("") if n.startswith("x_")]
    step = f"name one of them {wanted[0]}"
    if splits and split not in splits:
        step = "write " + parts_of(base, sorted(splits))
    elif what == "labels":
        step += ", or give the labels apart (labels=)"
    return DataError(
        f"{holder.name}: no array of {what} called {', '.join(wanted)}{where}; it holds "
        f"{listing(held) or 'nothing'}; {step}"
    )


def open_members(
    open_fn: Callable[[], Holder], *, split: str | None, labelled: bool
) -> ColumnSource:
    """The arrays x and y of a file: in its group SPLIT, or called x_SPLIT, where one is given.

    Raises:
        DataError: Missing arrays, or anything wrong with one of them.
    """
    holder = open_fn()
    found = _find(holder, ARRAY_NAMES, split)
    only = holder.arrays("")
    if found is None and split is None and not labelled and len(only) == 1:
        found = (only[0], only[0])
    if found is None:
        raise _missing(holder, ARRAY_NAMES, split, "inputs")
    path, name = found
    column = holder.column(path)
    source = ColumnSource(holder.name, column, is_embedding=is_embedding_name(name))
    if not labelled:
        return source
    return source.with_labels(*_labels(holder, split, len(source)))


def open_member_labels(open_fn: Callable[[], Holder], *, split: str | None, rows: int) -> Labels:
    """The array of labels of a file whose inputs are not wanted.

    Raises:
        DataError: No such array, or not one class number a row.
    """
    holder = open_fn()
    only = holder.arrays("")
    if split is None and len(only) == 1:
        return _read(holder, only[0], rows)
    return _labels(holder, split, rows)


def _labels(holder: Holder, split: str | None, rows: int) -> Labels:
    found = _find(holder, ARRAY_LABELS, split)
    if found is None:
        raise _missing(holder, ARRAY_LABELS, split, "labels")
    return _read(holder, found[0], rows)


def _read(holder: Holder, path: str, rows: int) -> Labels:
    name = f"{holder.name}: array {quote(path)}"
    return read_labels(holder.column(path), rows=rows, name=name)
