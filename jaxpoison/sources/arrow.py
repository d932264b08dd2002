"""Parquet, Feather and Arrow IPC files with an embedding column and a label column."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jaxpoison._check import DataError, NothingToScan

from .arrow_files import ArrowFile, decoding, open_arrow_file
from .base import Array, ColumnSource, listing, quote
from .columns import Sendable
from .labels import Labels, check_labels, number_names

X_NAMES = ("embedding", "embeddings", "features", "x", "vector")
Y_NAMES = ("label", "labels", "y", "target", "class")

_PIECE_BYTES = 4 << 20
_LABEL_ROWS = 1 << 16


class ArrowColumn(Sendable):
    """A list column as rows [n, D], decoded forward a few megabytes at a time.

    Going back, or to a later group, starts again at the beginning of a row group.
    """

    def __init__(self, file: ArrowFile, column: str) -> None:
        """Find the row length and the value type from the schema and the first row."""
        self.name = f"{file.name}: column {quote(column)}"
        self._file, self._column = file, column
        rows = file.starts[-1]
        if rows == 0:
            raise NothingToScan(f"{file.name}: no rows; give data with rows")
        with decoding(self.name):
            first = next(file.pieces(column, 0, 1), None)
            if first is None or len(first) == 0:
                raise DataError(f"{self.name}: declares {rows} rows and holds none; make it again")
            _refuse_nulls(first, 0, self.name)
            self.dtype = np.dtype(first.type.value_type.to_pandas_dtype())
            self.shape: tuple[int, ...] = (rows, len(first.flatten()))
        self._step = max(1, _PIECE_BYTES // max(1, self.shape[1] * self.dtype.itemsize))
        self._pieces: Iterator[Any] | None = None
        self._piece = np.empty((0, self.shape[1]), self.dtype)
        self._at = 0  # row number of the first row of the piece
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop``."""
        rows = np.empty((stop - start, self.shape[1]), self.dtype)
        with self._lock:
            try:
                done = 0
                while done < len(rows):
                    self._seek(start + done)
                    part = self._piece[start + done - self._at :][: len(rows) - done]
                    rows[done : done + len(part)] = part
                    done += len(part)
            except BaseException:
                self._drop()
                raise
        return rows

    def _seek(self, row: int) -> None:
        starts = self._file.starts
        group = int(np.searchsorted(starts, row, side="right")) - 1
        beyond = self._at + len(self._piece)
        if self._pieces is None or row < self._at or starts[group] > beyond:
            self._drop()
            self._pieces = self._file.pieces(self._column, group, self._step)
            self._at = starts[group]
        while row >= self._at + len(self._piece):
            self._at += len(self._piece)
            with decoding(self.name):
                piece = next(self._pieces, None)
                if piece is None:
                    raise DataError(
                        f"{self.name}: declares {self.shape[0]} rows and ends after {self._at}; "
                        "copy or make the file again"
                    )
                self._piece = self._to_rows(piece)

    def _to_rows(self, piece: Any) -> Array:
        _refuse_nulls(piece, self._at, self.name)
        width = self.shape[1]
        if not pa.types.is_fixed_size_list(piece.type):
            lengths = piece.value_lengths().to_numpy()
            wrong = np.flatnonzero(lengths != width)
            if wrong.size:
                row = int(wrong[0])
                raise DataError(
                    f"{self.name}: row {self._at + row} has {lengths[row]} values, row 0 has "
                    f"{width}; give rows of equal length"
                )
        values = piece.flatten().to_numpy(zero_copy_only=False)
        return np.array(values.reshape(-1, width))  # a copy: the piece may lie in a map

    def _drop(self) -> None:
        self._pieces, self._at = None, 0
        self._piece = np.empty((0, self.shape[1]), self.dtype)

    def _closed(self) -> dict[str, Any]:
        return {"_pieces": None, "_at": 0, "_piece": np.empty((0, self.shape[1]), self.dtype)}

    def close(self) -> None:
        """Let go of the file; the next ``read`` opens it again."""
        with self._lock:
            self._drop()


def _refuse_nulls(piece: Any, first_row: int, name: str) -> None:
    if piece.null_count:
        row = int(np.flatnonzero(piece.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{name}: row {first_row + row} is null; drop or fill such rows")
    if not hasattr(piece.type, "value_type") or pa.types.is_dictionary(piece.type):
        return
    values = piece.flatten()
    if values.null_count:
        position = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        lengths = piece.value_lengths().to_numpy()
        row = int(np.searchsorted(np.cumsum(lengths), position, side="right"))
        raise DataError(
            f"{name}: row {first_row + row} has a null among its values; drop or fill such rows"
        )


def _is_list(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _choose(file: ArrowFile, names: tuple[str, ...], *, lists: bool) -> str | None:
    """The column whose name is tried first, of the kind that is wanted."""
    fields = [f for f in file.schema if _is_list(f.type) == lists]
    found = [f.name for wanted in names for f in fields if f.name == wanted]
    if not found and lists and len(fields) == 1:
        found = [fields[0].name]
    if not found:
        return None
    if file.schema.names.count(found[0]) > 1:
        raise DataError(f"{file.name}: column {quote(found[0])} occurs twice; rename one")
    return str(found[0])


def _read_labels(file: ArrowFile, column: str) -> Labels:
    """The label column; text and dictionaries are numbered in sorted order."""
    name, rows = f"{file.name}: column {quote(column)}", file.starts[-1]
    parts: list[Array] = []
    codes: dict[str, int] = {}
    done = 0
    with decoding(name):
        for piece in file.pieces(column, 0, _LABEL_ROWS):
            _refuse_nulls(piece, done, name)
            done += len(piece)
            parts.append(_label_part(piece, codes, name))
    values = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if codes:
        return number_names(values, list(codes), rows=rows, name=name)
    return Labels(check_labels(values, rows=rows, name=name), None)


def _label_part(piece: Any, codes: dict[str, int], name: str) -> Array:
    piece.validate(full=True)  # the Parquet reader lets dictionary indices pass unchecked
    kind = piece.type
    if pa.types.is_dictionary(kind) and not _is_text(kind.value_type):
        piece = piece.dictionary_decode()
        _refuse_nulls(piece, 0, name)
        kind = piece.type
    elif _is_text(kind):
        piece = piece.dictionary_encode()
    if not pa.types.is_dictionary(piece.type):
        if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_float(kind)):
            raise DataError(f"{name}: labels have type {kind}; store integers or text")
        return np.asarray(piece.to_numpy(zero_copy_only=False))
    texts = piece.dictionary.to_pylist()
    if any(text is None for text in texts):
        raise DataError(f"{name}: the dictionary of labels has a null; drop such rows")
    table = np.array([codes.setdefault(text, len(codes)) for text in texts], dtype=np.int64)
    return np.asarray(table[piece.indices.to_numpy(zero_copy_only=False)])


def _is_text(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_float(kind: Any) -> bool:
    return bool(pa.types.is_floating(kind))


def open_arrow(path: Path, name: str, *, labelled: bool) -> ColumnSource:
    """A Parquet, Feather or Arrow IPC file.

    Args:
        path: The file.
        name: What the user typed.
        labelled: Whether the label column is read, and must be there.

    Returns:
        The source: rows from the embedding column, labels from the label column.

    Raises:
        DataError: No such columns, nulls, rows of unequal length, or a damaged file.
        NothingToScan: No rows.
    """
    with decoding(name):
        file = open_arrow_file(path, name)
        x_name = _choose(file, X_NAMES, lists=True)
        y_name = _choose(file, Y_NAMES, lists=False)
    seen = listing([f"{f.name}: {f.type}" for f in file.schema]) or "no columns"
    if x_name is None:
        raise DataError(
            f"{name}: no column with a list of numbers called {', '.join(X_NAMES)}; it holds "
            f"{seen}; store the features of a row as one list or fixed_size_list column"
        )
    value_type = file.schema.field(x_name).type.value_type
    if not (pa.types.is_integer(value_type) or _is_float(value_type)):
        raise DataError(
            f"{name}: column {quote(x_name)} is a list of {quote(value_type)}; store float32"
        )
    source = ColumnSource(name, ArrowColumn(file, x_name))
    if not labelled:
        return source
    if y_name is None:
        raise DataError(
            f"{name}: no label column called {', '.join(Y_NAMES)}; it holds {seen}; "
            "add it, or give the labels apart (labels=)"
        )
    return source.with_labels(*_read_labels(file, y_name))


def open_arrow_labels(path: Path, name: str, rows: int) -> Labels:
    """The label column of a file that holds labels for other inputs.

    Raises:
        DataError: No label column, or not one label a row.
    """
    with decoding(name):
        file = open_arrow_file(path, name)
        y_name = _choose(file, Y_NAMES, lists=False)
    if y_name is None:
        raise DataError(
            f"{name}: no label column called {', '.join(Y_NAMES)}; it holds "
            f"{listing(file.schema.names) or 'no columns'}; rename the label column"
        )
    if file.starts[-1] != rows:
        raise DataError(
            f"{name}: {file.starts[-1]} labels for {rows} rows of x; give one label for each row"
        )
    return _read_labels(file, y_name)
