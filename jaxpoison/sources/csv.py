"""CSV and TSV with a header: a column a feature, or one column of JSON lists.

Text has no rows that can be found by number, so it is read once at opening, some megabytes at a
time, and the rows are kept as float32 in a temporary file (4 bytes a value, see ``spill``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc

from jaxpoison._check import DataError

from .arrow import label_codes
from .arrow_files import decoding
from .base import Array, ColumnSource, listing, quote
from .labels import Labels, check_labels, check_shape, number_names
from .names import X_NAMES, Y_NAMES, choose, is_embedding_name, no_labels, refuse_repeated
from .spill import SpillColumn

_BLOCK = 2 << 20  # bytes; also the longest line
_MISSING = ["", "NA", "N/A", "null", "NULL", "None"]
_ASIDE = ("", "id", "index", "unnamed: 0")  # names of columns that number the rows
_WHOLE = re.compile(r"\s*[+-]?\d{1,19}\s*")
_ROW = re.compile(r"(?:In CSV column #(\d+): )?(?:CSV parse error: )?Row #(\d+): (.*)", re.DOTALL)


class Header(NamedTuple):
    """What the first lines of a file tell of its columns."""

    names: list[str]
    numeric: list[str]  # whose first value is a number, but those that number the rows
    listed: str | None  # the column that holds JSON lists
    label: str | None


class _Text:
    """The bytes of a file for pyarrow, with its quotation marks counted on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.quotes, self.closed = file, 0, False

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self._file.read(size)
        self.quotes += data.count(b'"')
        return data

    def close(self) -> None:
        """Nothing: whoever opened the file closes it."""


def _open(path: Path) -> Any:
    kind = "gzip" if path.name.endswith(".gz") else None
    return pa.input_stream(str(path), compression=kind)


def _reader(file: Any, path: Path, convert: Any, *, header: bool = True) -> Any:
    is_tab = path.name.endswith((".tsv", ".tsv.gz"))
    return pc.open_csv(
        file,
        read_options=pc.ReadOptions(
            use_threads=False, block_size=_BLOCK, autogenerate_column_names=not header
        ),
        parse_options=pc.ParseOptions(delimiter="\t" if is_tab else ",", newlines_in_values=True),
        convert_options=convert,
    )


def read_header(path: Path, name: str) -> Header:
    """Tell columns apart by their names and first values.

    Raises:
        DataError: No header, another encoding, or a name that occurs twice.
    """
    with decoding(name), _open(path) as file:
        lead = file.read(3)
    if lead[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{name}: is UTF-16 text; save it as UTF-8")
    # The header is read as a row, so that columns are text unless their name is a number too.
    options = pc.ConvertOptions(null_values=[], strings_can_be_null=False)
    with decoding(name), _explained(name, []), _open(path) as file:
        first = _reader(file, path, options, header=False).read_next_batch()
        columns = [column.cast(pa.string()) for column in first.columns]
        names = [str(column[0]).removeprefix("\ufeff").strip() for column in columns]
        values = [_first_value(column) for column in columns]
    refuse_repeated(names, name)
    if all(map(_is_number, names)) and names != [str(k) for k in range(len(names))]:
        raise DataError(
            f"{name}: the first line holds numbers ({listing(names, 4)}); add a header line that "
            "names the columns, the label's one of " + ", ".join(Y_NAMES)
        )
    label = choose(names, Y_NAMES)
    lists = [n for n, v in zip(names, values, strict=True) if v.startswith("[") and n != label]
    listed = choose(lists, X_NAMES) or (lists[0] if len(lists) == 1 else None)
    numeric = [n for n, v in zip(names, values, strict=True) if _is_number(v) and n != label]
    return Header(names, [n for n in numeric if n.lower() not in _ASIDE], listed, label)


def _first_value(column: Any) -> str:
    """The first value of a column that is not missing."""
    for start in range(1, len(column), 1024):
        for value in column.slice(start, 1024).to_pylist():
            if value.strip() not in _MISSING:
                return str(value).strip()
    return "0"  # nothing there: reading it as a number says which value is missing


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


@contextmanager
def _explained(name: str, columns: list[str]) -> Iterator[None]:
    """Turn what pyarrow says of a row into the numbers and names the user knows."""
    try:
        yield
    except pa.ArrowInvalid as error:
        message = _message(str(error), columns)
        if message is None:
            raise
        raise DataError(f"{name}: {message}") from error


def _message(text: str, columns: list[str]) -> str | None:
    if "straddles" in text:
        return (
            f"a line is longer than {_BLOCK >> 20} MB, or a quotation mark is never closed; mend "
            "it, or save the rows as .npy"
        )
    if "utf8" in text.lower():
        return f"is not UTF-8 text ({quote(text, 160)}); save it as UTF-8"
    if "Empty CSV" in text:
        return "holds no header line; name the columns in the first"
    found = _ROW.match(text)
    if not found:
        return None
    column = ""
    if found[1] and int(found[1]) < len(columns):
        column = f"column {quote(columns[int(found[1])])}, "
    what = found[3].replace("CSV conversion error to ", "not a ")
    return (
        f"{column}row {int(found[2]) - 2}: {quote(what, 160)}; rows are counted from 0 after the "
        "header; mend the row, or drop it"
    )


def _batches(path: Path, name: str, types: dict[str, Any], names: list[str]) -> Iterator[Any]:
    options = pc.ConvertOptions(
        column_types=types, include_columns=list(types), null_values=_MISSING,
        strings_can_be_null=False,
    )  # fmt: skip
    with decoding(name), _explained(name, names), _open(path) as file:
        text = _Text(file)
        yield from _reader(pa.PythonFile(text, mode="r"), path, options)
        if text.quotes % 2:
            raise DataError(
                f"{name}: has an odd number of quotation marks, so that rows may have been taken "
                "for text; close the open one"
            )


def open_csv(path: Path, name: str, *, labelled: bool) -> ColumnSource:
    """A file of text with a header line, UTF-8, perhaps compressed with gzip.

    Args:
        path: Ends in .csv, .tsv, or these and .gz.
        name: What the user typed.
        labelled: Whether the label column is read, and must be there.

    Returns:
        The source. x is the column of JSON lists if there is one, else all columns whose first
        value is a number, in their order; a column called id or index, or without a name, and
        columns of text are left aside. y is the column with one of the usual names.

    Raises:
        DataError: Ragged rows, missing values, text among numbers, no such columns.
        NothingToScan: No rows.

    Cost: one pass at opening; 4 bytes a value on the disk of TMPDIR.
    """
    header = read_header(path, name)
    if labelled and header.label is None:
        raise no_labels(name, header.names)
    wanted = header.numeric if header.listed is None else [header.listed]
    if not wanted:
        raise DataError(
            f"{name}: no column of numbers, and none of JSON lists called {', '.join(X_NAMES)}; "
            f"it holds {listing(header.names) or 'no columns'}"
        )
    kind = pa.float64() if header.listed is None else pa.string()
    types = dict.fromkeys(wanted, kind)
    if labelled:
        types[str(header.label)] = pa.string()
    column, gathered = SpillColumn(name), TextLabels(f"{name}: column {quote(header.label)}")
    for batch in _batches(path, name, types, header.names):
        first = column.shape[0]
        if header.listed is None:
            block = _numbers(batch, wanted, first, name)
        else:
            block = _lists(batch.column(0), first, f"{name}: column {quote(header.listed)}")
        if labelled:
            gathered.add(batch.column(len(wanted)))
        if len(block):
            column.append(block)
    is_embedding = header.listed is not None and is_embedding_name(header.listed)
    source = ColumnSource(name, column, is_embedding=is_embedding)
    return source.with_labels(*gathered.finish(len(source))) if labelled else source


def _numbers(batch: Any, wanted: list[str], first: int, name: str) -> Array:
    block = np.empty((batch.num_rows, len(wanted)), np.float32)
    with np.errstate(over="ignore"):
        for position, each in enumerate(wanted):
            values = batch.column(position)
            if values.null_count:
                row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
                raise DataError(
                    f"{name}: column {quote(each)}, row {first + row} has no value; drop or fill "
                    "such rows (write nan to have it counted as not finite)"
                )
            block[:, position] = values.to_numpy()
    return block


def _lists(texts: Any, first: int, name: str) -> Array:
    rows: list[Array] = []
    for row, text in enumerate(texts.to_pylist(), first):
        try:
            values = np.asarray(json.loads(text), np.float64)
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            raise DataError(
                f"{name}: row {row} holds {quote(text, 40)}, which is no JSON list of numbers "
                "such as [0.5, 1]"
            ) from error
        if values.ndim != 1 or (rows and len(values) != len(rows[0])):
            want = f"[{len(rows[0])}]" if rows else "[d]"
            raise DataError(
                f"{name}: row {row} has shape {list(values.shape)}, expected {want}; give rows of "
                "equal length"
            )
        rows.append(values)
    with np.errstate(over="ignore"):
        return np.array(rows, np.float32) if rows else np.empty((0, 0), np.float32)


class TextLabels:
    """Labels that come as text: numbers if all of them are, else names in sorted order."""

    def __init__(self, name: str) -> None:
        """Start without rows."""
        self._name, self._rows = name, 0
        self._codes: dict[str, int] = {}
        self._parts: list[Array] = []

    def add(self, piece: Any) -> None:
        """Add a pyarrow array of text.

        Raises:
            DataError: A row without a label.
        """
        self._parts.append(label_codes(piece, self._codes, self._name))
        if "" in self._codes:
            row = self._rows + int(np.flatnonzero(self._parts[-1] == self._codes[""])[0])
            raise DataError(f"{self._name}: row {row} has no label; drop or fill such rows")
        self._rows += len(piece)

    def finish(self, rows: int) -> Labels:
        """The labels of all rows.

        Raises:
            DataError: As ``check_labels``.
        """
        codes = np.concatenate(self._parts) if self._parts else np.empty(0, np.int64)
        check_shape(codes.shape, rows, self._name)
        names = list(self._codes)
        if names and all(map(_is_number, names)):
            is_whole = all(map(_WHOLE.fullmatch, names))
            table = np.array([int(t) if is_whole else float(t) for t in names])
            return Labels(check_labels(table[codes], rows=rows, name=self._name), None)
        return number_names(codes, names, rows=rows, name=self._name)


def open_csv_labels(path: Path, name: str, *, rows: int) -> Labels:
    """The label column of a file that holds labels for other inputs, or its only column.

    Raises:
        DataError: No label column, or not one label a row.
    """
    header = read_header(path, name)
    label = header.label or (header.names[0] if len(header.names) == 1 else None)
    if label is None:
        raise no_labels(name, header.names)
    gathered = TextLabels(f"{name}: column {quote(label)}")
    for batch in _batches(path, name, {label: pa.string()}, header.names):
        gathered.add(batch.column(0))
    return gathered.finish(rows)
