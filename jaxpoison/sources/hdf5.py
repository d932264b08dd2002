"""HDF5 through h5py: arrays x and y, at the top of the file or in a group.

A file may point elsewhere: external and soft links, virtual datasets and external storage are
refused, so that nothing but the file itself is read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from jaxpoison._check import DataError, JaxpoisonError

from .base import Array, ColumnSource, quote
from .columns import Sendable, readable
from .labels import Labels
from .members import check_chunk, open_member_labels, open_members
from .table import need

_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 32000: "lzf"}


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """As ``columns.readable``, and for what h5py raises besides."""
    try:
        with readable(name):
            yield
    except JaxpoisonError:
        raise
    except (KeyError, TypeError, AttributeError, MemoryError) as error:
        raise DataError(f"{name}: damaged ({quote(error)}); make the file again") from error


class Hdf5Column(Sendable):
    """A dataset, read a range of rows at a time."""

    def __init__(self, path: Path, member: str, name: str, dataset: Any) -> None:
        """``dataset`` is open and was checked; it is opened again at the first read."""
        self.name = name
        self.shape: tuple[int, ...] = tuple(int(n) for n in dataset.shape)
        self.dtype: np.dtype[Any] = dataset.dtype
        self._path, self._member = path, member
        self._file: Any = None
        self._dataset: Any = None
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop``; cost: the chunks they touch."""
        h5py = need("h5py", "hdf5", self.name)
        with self._lock, _decoding(self.name):
            if self._file is None:
                self._file = h5py.File(self._path, "r")
                self._dataset = self._file[self._member]
                _check(self._dataset, self.name)  # the file may have been replaced
            if tuple(self._dataset.shape) != self.shape or self._dataset.dtype != self.dtype:
                raise DataError(f"{self.name}: has changed while it was open; start again")
            return np.asarray(self._dataset[start:stop])

    def _closed(self) -> dict[str, Any]:
        return {"_file": None, "_dataset": None}

    def close(self) -> None:
        """Close the file; the next ``read`` opens it again."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = self._dataset = None


def _check(dataset: Any, name: str) -> None:
    """Refuse what would read another file, run code, or fill the memory.

    Raises:
        DataError: Names what it is.
    """
    if dataset.is_virtual or dataset.external:
        raise DataError(
            f"{name}: its values are kept in other files, which are not followed; copy them into "
            "this one"
        )
    dtype = dataset.dtype
    if dtype.kind not in "biuf":
        raise DataError(
            f"{name}: has type {quote(dtype)}; save numbers, for example x.astype(np.float32)"
        )
    if dataset.shape is None:
        raise DataError(f"{name}: is empty; save it again")
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(k)[0] for k in range(plist.get_nfilters())]
    unknown = [number for number in filters if number not in _FILTERS]
    if unknown:
        raise DataError(
            f"{name}: is packed by filter {unknown[0]}, which needs code from elsewhere; save it "
            "with compression='gzip'"
        )
    if dataset.chunks is None:
        held, declared = dataset.id.get_storage_size(), prod(dataset.shape) * dtype.itemsize
        what = "bytes"
    else:
        check_chunk(dataset.chunks, dtype, name)
        held = dataset.id.get_num_chunks()
        sizes = zip(dataset.shape, dataset.chunks, strict=True)
        declared, what = prod(-(-n // size) for n, size in sizes), "chunks"
    if held < declared:
        raise DataError(
            f"{name}: declares shape {quote(dataset.shape)}, {declared} {what}, the file holds "
            f"{held}; write all rows, or save it again"
        )


class _File:
    """An HDF5 file as named arrays; it is open for as long as ``open_hdf5`` runs."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._h5py = need("h5py", "hdf5", name)

    def _entries(self, group: str, kind: Any) -> list[str]:
        with _decoding(self.name), self._h5py.File(self.path, "r") as file:
            inside = self._hard(file, group) if group else file
            if not isinstance(inside, self._h5py.Group):
                return []
            return [
                key
                for key in inside
                if not isinstance(inside.get(key, getlink=True), self._h5py.HardLink)
                or isinstance(inside[key], kind)
            ]

    def arrays(self, group: str) -> list[str]:
        return self._entries(group, self._h5py.Dataset)

    def groups(self) -> list[str]:
        return self._entries("", self._h5py.Group)

    def _hard(self, file: Any, path: str) -> Any:
        """What a path names, over hard links only."""
        inside = file
        for part in path.split("/"):
            if not isinstance(inside.get(part, getlink=True), self._h5py.HardLink):
                raise DataError(
                    f"{self.name}: {quote(path)} is a link to another place, which is not "
                    "followed; copy the array into the file"
                )
            inside = inside[part]
        return inside

    def column(self, path: str) -> Hdf5Column:
        name = f"{self.name}: array {quote(path)}"
        with _decoding(name), self._h5py.File(self.path, "r") as file:
            dataset = self._hard(file, path)
            _check(dataset, name)
            return Hdf5Column(self.path, path, name, dataset)


def open_hdf5(path: Path, name: str, *, split: str | None, labelled: bool) -> ColumnSource:
    """The arrays of a file, or of its group SPLIT.

    Args:
        path: The file.
        name: What the user typed.
        split: None, or the name of a group, or the ending of the names of arrays.
        labelled: Whether labels are read, and must be there.

    Returns:
        The source: x is the array called x, else features, images or the like; y that called y,
        label or the like.

    Raises:
        UsageError: h5py is not installed.
        DataError: Missing arrays, links to elsewhere, types that are no numbers.
        NothingToScan: No rows.

    **Assumes / fails on**: a chunk that unpacks to more than its header declares is unpacked by
    the library before it is refused.
    """
    return open_members(lambda: _File(path, name), split=split, labelled=labelled)


def open_hdf5_labels(path: Path, name: str, *, rows: int, split: str | None) -> Labels:
    """The labels of a file whose inputs are not wanted.

    Raises:
        DataError: As ``open_hdf5``.
    """
    return open_member_labels(lambda: _File(path, name), split=split, rows=rows)
