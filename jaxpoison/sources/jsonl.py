"""JSON Lines: an object a line, with a list of numbers and a label.

As for CSV, the lines are read once at opening and the rows kept as float32 in a temporary file.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pj

from jaxpoison._check import DataError, NothingToScan

from .arrow import label_codes, list_rows, refuse_nulls
from .arrow_files import decoding
from .base import Array, ColumnSource, quote
from .labels import Labels, check_labels, number_names
from .names import X_NAMES, Y_NAMES, choose, is_embedding_name, no_labels
from .spill import SpillColumn

_BLOCK = 2 << 20  # bytes; also the longest line
_PARSE = re.compile(r"JSON parse error: (.*) in row (\d+)", re.DOTALL)


def _open(path: Path) -> Any:
    kind = "gzip" if path.name.endswith(".gz") else None
    return pa.input_stream(str(path), compression=kind)


def _first(path: Path, name: str) -> dict[str, Any]:
    """The object of the first line that is not blank."""
    with decoding(name), _open(path) as file:
        text = file.read(_BLOCK)
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{name}: is UTF-16 text; save it as UTF-8")
    lines = text.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)
    if not lines[0]:
        raise NothingToScan(f"{name}: no rows; give data with rows")
    if len(lines) == 1 and len(text) == _BLOCK:
        raise _too_long(name)
    try:
        found = json.loads(lines[0])
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{name}: row 0: {quote(error)}; write one JSON object a line, in UTF-8"
        ) from error
    if not isinstance(found, dict):
        raise DataError(
            f"{name}: row 0 is {quote(type(found).__name__)}, not an object; write lines such as "
            '{"x": [0.5, 1], "label": 3}'
        )
    return found


def _too_long(name: str) -> DataError:
    return DataError(f"{name}: a line is longer than {_BLOCK >> 20} MB; save the rows as .npy")


def _blocks(file: Any, name: str) -> Iterator[bytes]:
    """Whole lines, some megabytes at a time."""
    rest = b""
    while data := file.read(_BLOCK):
        block = rest + data
        cut = block.rfind(b"\n") + 1
        if cut == 0 and len(block) > _BLOCK:
            raise _too_long(name)
        rest = block[cut:]
        if block[:cut].strip():
            yield block[:cut]
    if rest.strip():
        yield rest


def _pieces(path: Path, name: str, types: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """Row number and record batch, forward."""
    options = pj.ParseOptions(
        explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore"
    )
    sizes = pj.ReadOptions(use_threads=False, block_size=2 * _BLOCK + 1)
    done = 0
    with decoding(name), _open(path) as file:
        for block in _blocks(file, name):
            try:
                table = pj.read_json(io.BytesIO(block), read_options=sizes, parse_options=options)
            except pa.ArrowInvalid as error:
                raise _explained(error, name, done) from error
            for batch in table.to_batches():
                yield done, batch
                done += batch.num_rows


def _explained(error: Exception, name: str, done: int) -> DataError:
    found = _PARSE.search(str(error))
    where, what = f"a row after {done}", str(error)
    if found:  # pyarrow counts the rows of a block
        where, what = f"row {done + int(found[2])}", found[1]
    return DataError(f"{name}: {where}: {quote(what, 160)}; mend the line, or drop it")


def _label_type(value: object) -> Any:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, str):
        return pa.string()
    return pa.float64() if isinstance(value, float) else pa.int64()


class _Labels:
    """The labels of all pieces."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._codes: dict[str, int] = {}
        self._parts: list[Array] = []

    def add(self, piece: Any, first: int) -> None:
        refuse_nulls(piece, first, self._name)
        with decoding(self._name):
            self._parts.append(label_codes(piece, self._codes, self._name))

    def finish(self, rows: int) -> Labels:
        values = np.concatenate(self._parts) if self._parts else np.empty(0, np.int64)
        if self._codes:
            return number_names(values, list(self._codes), rows=rows, name=self._name)
        return Labels(check_labels(values, rows=rows, name=self._name), None)


def open_jsonl(path: Path, name: str, *, labelled: bool) -> ColumnSource:
    """A file of JSON objects, one a line, UTF-8, perhaps compressed with gzip.

    Args:
        path: Ends in .jsonl, .ndjson, or these and .gz.
        name: What the user typed.
        labelled: Whether the label is read, and must be there.

    Returns:
        The source: x is the field with one of the usual names, or the only one that holds a list
        of numbers; y the field with one of the usual names, integers or text.

    Raises:
        DataError: Damaged lines, rows of unequal length, missing fields.
        NothingToScan: No rows.

    Cost: one pass at opening; 4 bytes a value on the disk of TMPDIR.
    """
    first = _first(path, name)
    lists = [key for key, value in first.items() if _is_row(value)]
    x_name = choose(lists, X_NAMES) or (lists[0] if len(lists) == 1 else None)
    y_name = choose([k for k, v in first.items() if not isinstance(v, list | dict)], Y_NAMES)
    if x_name is None:
        raise DataError(
            f"{name}: no field with a list of numbers called {', '.join(X_NAMES)} in row 0; it "
            f"holds {', '.join(quote(key) for key in list(first)[:8]) or 'nothing'}"
        )
    if labelled and y_name is None:
        raise no_labels(name, list(first))
    types = {x_name: pa.list_(pa.float64())}
    if labelled:
        types[str(y_name)] = _label_type(first[str(y_name)])
    where, width = f"{name}: field {quote(x_name)}", len(first[x_name])
    column, labels = SpillColumn(name), _Labels(f"{name}: field {quote(y_name)}")
    for done, batch in _pieces(path, name, types):
        if not batch.num_rows:
            continue
        values = list_rows(batch.column(x_name), width, done, where)
        with np.errstate(over="ignore"):
            column.append(values.astype(np.float32))
        if labelled:
            labels.add(batch.column(str(y_name)), done)
    source = ColumnSource(name, column, is_embedding=is_embedding_name(x_name))
    return source.with_labels(*labels.finish(len(source))) if labelled else source


def _is_row(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    )


def open_jsonl_labels(path: Path, name: str, *, rows: int) -> Labels:
    """The label field of a file that holds labels for other inputs.

    Raises:
        DataError: No label field, or not one label a row.
    """
    first = _first(path, name)
    y_name = choose(first, Y_NAMES) or (next(iter(first)) if len(first) == 1 else None)
    if y_name is None:
        raise no_labels(name, list(first))
    labels = _Labels(f"{name}: field {quote(y_name)}")
    for done, batch in _pieces(path, name, {y_name: _label_type(first[y_name])}):
        labels.add(batch.column(y_name), done)
    return labels.finish(rows)
