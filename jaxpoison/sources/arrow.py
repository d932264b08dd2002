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
from .hf_schema import check_named, declared_names, image_column_of
from .labels import Labels, check_labels, number_names
from .names import X_NAMES, Y_NAMES, is_embedding_name

_PIECE_BYTES = 16 << 20
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
            refuse_nulls(first, 0, self.name)
            # pyarrow's own to_pandas_dtype asks for pandas in some versions
            self.dtype = pa.array([], first.type.value_type).to_numpy(zero_copy_only=False).dtype
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
            self._piece = self._piece[:0].copy()  # it may lie in a map, which goes with the next
            with decoding(self.name):
                piece = next(self._pieces, None)
                if piece is None:
                    raise DataError(
                        f"{self.name}: declares {self.shape[0]} rows and ends after {self._at}; "
                        "copy or make the file again"
                    )
                self._piece = list_rows(piece, self.shape[1], self._at, self.name)

    def _drop(self) -> None:
        self._pieces, self._at = None, 0
        self._piece = np.empty((0, self.shape[1]), self.dtype)

    def _closed(self) -> dict[str, Any]:
        return {"_pieces": None, "_at": 0, "_piece": np.empty((0, self.shape[1]), self.dtype)}

    def close(self) -> None:
        """Let go of the file; the next ``read`` opens it again."""
        with self._lock:
            self._drop()


def list_rows(piece: Any, width: int, first_row: int, name: str) -> Array:
    """A piece of a list column as an array [b, width], in its memory: valid as long as the piece.

    Raises:
        DataError: Nulls, or rows of another length; names the row.
    """
    refuse_nulls(piece, first_row, name)
    if not pa.types.is_fixed_size_list(piece.type):
        lengths = piece.value_lengths().to_numpy()
        wrong = np.flatnonzero(lengths != width)
        if wrong.size:
            row = int(wrong[0])
            raise DataError(
                f"{name}: row {first_row + row} has {lengths[row]} values, row 0 has {width}; "
                "give rows of equal length"
            )
    values: Array = piece.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(-1, width)


def refuse_nulls(piece: Any, first_row: int, name: str) -> None:
    """Refuse a piece with a null, or with one inside its lists.

    Raises:
        DataError: Names the row.
    """
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


def _choose(
    file: ArrowFile, names: tuple[str, ...], *, lists: bool, is_only: bool = False
) -> str | None:
    """The column whose name is tried first, of the kind that is wanted, or the only one."""
    fields = [f for f in file.schema if _is_list(f.type) == lists]
    found = [f.name for wanted in names for f in fields if f.name == wanted]
    if not found and is_only and len(fields) == 1:
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
            refuse_nulls(piece, done, name)
            done += len(piece)
            parts.append(label_codes(piece, codes, name))
    values = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if codes:
        return number_names(values, list(codes), rows=rows, name=name)
    checked = check_labels(values, rows=rows, name=name)
    names = declared_names(file.schema, column, name)
    if names is not None:
        check_named(checked, names, name)
    return Labels(checked, names)


def label_codes(piece: Any, codes: dict[str, int], name: str) -> Array:
    """A piece of labels: numbers as they are, text by its number in ``codes``, which grows.

    Raises:
        DataError: Labels of another type, or nulls.
    """
    piece.validate(full=True)  # the Parquet reader lets dictionary indices pass unchecked
    kind = piece.type
    if pa.types.is_dictionary(kind) and not _is_text(kind.value_type):
        piece = piece.dictionary_decode()
        refuse_nulls(piece, 0, name)
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
        y_name = _choose(file, Y_NAMES, lists=False)
    source = _open_inputs(file, name)
    if not labelled:
        return source
    if y_name is None:
        raise DataError(
            f"{name}: no label column called {', '.join(Y_NAMES)}; it holds {_seen(file)}; "
            "add it, or give the labels apart (labels=)"
        )
    return source.with_labels(*_read_labels(file, y_name))


def _seen(file: ArrowFile) -> str:
    return listing([f"{f.name}: {f.type}" for f in file.schema]) or "no columns"


def _open_inputs(file: ArrowFile, name: str) -> ColumnSource:
    """A list column of a usual name, else images, else the only list column."""
    x_name = _choose(file, X_NAMES, lists=True)
    image = image_column_of(file.schema)
    if x_name is None and image is not None:
        from .arrow_images import open_images  # Pillow is an extra

        return ColumnSource(name, open_images(file, image))
    x_name = x_name or _choose(file, (), lists=True, is_only=True)
    if x_name is None:
        raise DataError(
            f"{name}: no column with a list of numbers called {', '.join(X_NAMES)}, and none of "
            f"images; it holds {_seen(file)}; store the features of a row as one list or "
            "fixed_size_list column"
        )
    value_type = file.schema.field(x_name).type.value_type
    if not (pa.types.is_integer(value_type) or _is_float(value_type)):
        raise DataError(
            f"{name}: column {quote(x_name)} is a list of {quote(value_type)}; store float32"
        )
    column = ArrowColumn(file, x_name)
    return ColumnSource(name, column, is_embedding=is_embedding_name(x_name))


def open_arrow_labels(path: Path, name: str, *, rows: int) -> Labels:
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
