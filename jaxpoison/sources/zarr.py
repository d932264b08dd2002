"""zarr folders, versions 2 and 3, through tensorstore: arrays x and y of a group."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from jaxpoison._check import DataError, JaxpoisonError

from .base import Array, ColumnSource, is_number, quote
from .labels import Labels
from .members import check_chunk, open_member_labels, open_members
from .table import need

_META = ("zarr.json", ".zarray", ".zgroup")
_MAX_META = 1 << 20  # bytes of metadata
_SPARSE = 1000  # chunks of the fill value alone, which are not written, for each that is there
_CACHE = 1 << 25  # bytes of decoded chunks that are kept: blocks do not end where chunks do


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    try:
        yield
    except JaxpoisonError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError) as error:
        text = str(error).partition("[tensorstore_spec")[0]  # tensorstore adds all it was told
        raise DataError(
            f"{name}: cannot be decoded ({quote(text, 200)}); copy or make it again"
        ) from error


class ZarrColumn:
    """An array in chunks, read a range of rows at a time."""

    def __init__(self, store: Any, name: str) -> None:
        """``store`` was checked."""
        self.name = name
        self._store = store
        self.shape: tuple[int, ...] = tuple(int(n) for n in store.shape)
        self.dtype: np.dtype[Any] = np.dtype(store.dtype.numpy_dtype)

    def read(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop``; cost: the chunks they touch."""
        with _decoding(self.name):
            return np.asarray(self._store[start:stop].read().result())

    def close(self) -> None:
        """Nothing is open between reads."""


def _metadata(folder: Path, name: str) -> tuple[str, str] | None:
    """The driver and "array" or "group" of a folder; None where it is neither."""
    for file, kind in ((".zarray", "array"), (".zgroup", "group")):
        if (folder / file).is_file():
            return "zarr", kind
    path = folder / "zarr.json"
    if not path.is_file():
        return None
    with _decoding(name), open(path, "rb") as stream:
        fields = json.loads(stream.read(_MAX_META))
    node = fields.get("node_type") if isinstance(fields, dict) else None
    if node not in ("array", "group"):
        raise DataError(f"{name}: zarr.json names no node_type; save it again")
    return "zarr3", str(node)


class _Folder:
    """A zarr group, or an array by itself."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._tensorstore = need("tensorstore", "zarr", name)

    def _entries(self, group: str, kind: str) -> list[str]:
        folder = self.path / group if group else self.path
        found = _metadata(folder, self.name)
        if found is not None and found[1] == "array" and not group:
            return ["x"] if kind == "array" else []
        with _decoding(self.name):
            entries = sorted(e for e in folder.iterdir() if e.is_dir() and not e.is_symlink())
        return [e.name for e in entries if (_metadata(e, self.name) or ("", ""))[1] == kind]

    def arrays(self, group: str) -> list[str]:
        return self._entries(group, "array")

    def groups(self) -> list[str]:
        return self._entries("", "group")

    def column(self, path: str) -> ZarrColumn:
        folder, name = self.path / path, f"{self.name}: array {quote(path)}"
        found = _metadata(self.path, self.name)
        if found is None or found[1] == "group":
            found = _metadata(folder, name)
        else:
            folder = self.path
        if found is None:  # it was there when the folder was listed
            raise DataError(f"{name}: is gone; start again")
        spec = {"driver": found[0], "kvstore": {"driver": "file", "path": f"{folder}/"}}
        limits = {
            "cache_pool": {"total_bytes_limit": _CACHE},
            "data_copy_concurrency": {"limit": 1},
            "file_io_concurrency": {"limit": 4},
        }
        with _decoding(name):
            context = self._tensorstore.Context(limits)
            store = self._tensorstore.open(spec, open=True, read=True, context=context).result()
            dtype = np.dtype(store.dtype.numpy_dtype)
            if not is_number(dtype):
                raise DataError(f"{name}: has type {quote(dtype)}; save numbers")
            # Of shards only the chunks inside are decoded one by one.
            check_chunk(store.chunk_layout.read_chunk.shape or store.shape, dtype, name)
            self._check_stored(folder, store, name)
            return ZarrColumn(store, name)

    def _check_stored(self, folder: Path, store: Any, name: str) -> None:
        """Refuse metadata that promise far more than is there: missing chunks read as fill."""
        shape = store.chunk_layout.write_chunk.shape or store.shape
        sizes = zip(store.shape, shape, strict=True)
        declared = prod(-(-int(n) // max(int(size), 1)) for n, size in sizes)
        held = sum(1 for _ in islice(_files(folder), declared // _SPARSE + 2)) - 1  # the metadata
        if declared > _SPARSE * (held + 1):
            raise DataError(
                f"{name}: declares shape {quote(store.shape)}, {declared} chunks, the folder holds "
                f"{held}; write the rows, or copy it again"
            )


def _files(folder: Path) -> Iterator[str]:
    return (file for _, _, files in os.walk(folder) for file in files)


def holds_zarr(folder: Path) -> bool:
    """Whether a folder is a zarr group or array."""
    return folder.suffix == ".zarr" or any((folder / file).is_file() for file in _META)


def open_zarr(path: Path, name: str, *, split: str | None, labelled: bool) -> ColumnSource:
    """The arrays of a zarr group, or of its group SPLIT; an array by itself is x.

    Args:
        path: The folder.
        name: What the user typed.
        split: None, or the name of a group, or the ending of the names of arrays.
        labelled: Whether labels are read, and must be there.

    Returns:
        The source; chunks that were never written read as the fill value, as zarr has it.

    Raises:
        UsageError: tensorstore is not installed.
        DataError: Missing or damaged arrays, types that are no numbers, chunks too large.
        NothingToScan: No rows.
    """
    return open_members(lambda: _Folder(path, name), split=split, labelled=labelled)


def open_zarr_labels(path: Path, name: str, *, rows: int, split: str | None) -> Labels:
    """The labels of a zarr group whose inputs are not wanted.

    Raises:
        DataError: As ``open_zarr``.
    """
    return open_member_labels(lambda: _Folder(path, name), split=split, rows=rows)
