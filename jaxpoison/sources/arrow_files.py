"""Parquet and Arrow IPC files as pieces of one column, in order, with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from jaxpoison._check import DataError, JaxpoisonError

_BUFFER_BYTES = 1 << 16  # without a buffer, a whole column chunk is read at once


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn what pyarrow says into an error that names the file."""
    try:
        yield
    except JaxpoisonError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name}: cannot be decoded ({text[:200]!r}); copy or make the file again"
        ) from error


class ArrowFile(Protocol):
    """One file of record batches or row groups."""

    path: Path
    name: str
    schema: Any  # pyarrow.Schema
    starts: list[int]  # first row of each group, and the number of rows at the end

    def pieces(self, column: str, group: int, rows: int) -> Iterator[Any]:
        """The column from a group on, as pyarrow arrays of at most about ``rows`` rows.

        A piece is valid until the next one is asked for.
        """


def _starts(counts: list[int], name: str) -> list[int]:
    if min(counts, default=0) < 0:
        raise DataError(f"{name}: declares {min(counts)} rows; make the file again")
    return [0, *accumulate(counts)]


def _only(schema: Any, column: str) -> Any:
    return pa.ipc.IpcReadOptions(
        included_fields=[schema.get_field_index(column)], use_threads=False
    )


class ParquetFile:
    """Row groups, decoded a few pages at a time."""

    def __init__(self, path: Path, name: str) -> None:
        """Read the footer."""
        self.path, self.name = path.absolute(), name
        with decoding(name), self._open([]) as file:
            self.schema = file.schema_arrow
            meta = file.metadata
            counts = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
        self.starts = _starts(counts, name)

    def _open(self, dictionaries: list[str]) -> Any:
        # pre_buffer would hold every selected column chunk of the file in memory.
        return pq.ParquetFile(
            self.path, pre_buffer=False, buffer_size=_BUFFER_BYTES, read_dictionary=dictionaries
        )

    def pieces(self, column: str, group: int, rows: int) -> Iterator[Any]:
        """The column from a row group on."""
        text = pa.types.is_string(self.schema.field(column).type)
        with decoding(self.name), self._open([column] if text else []) as file:
            groups = range(group, len(self.starts) - 1)
            for batch in file.iter_batches(rows, groups, columns=[column], use_threads=False):
                yield batch.column(batch.schema.get_field_index(column))


class IpcFile:
    """Arrow IPC file format (also Feather): record batches at random."""

    def __init__(self, path: Path, name: str) -> None:
        """Read the footer and the size of each batch."""
        self.path, self.name = path.absolute(), name
        with decoding(name), pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            self.schema = reader.schema
            counts = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
            # Uncompressed batches point into the map; others are decoded into memory.
            self._mapped = bool(counts) and _is_mapped(file, reader)
        self.starts = _starts(counts, name)

    def pieces(self, column: str, group: int, rows: int) -> Iterator[Any]:
        """The column from a batch on."""
        yield from (self._mapped_pieces if self._mapped else self._decoded_pieces)(
            column, group, rows
        )

    def _mapped_pieces(self, column: str, group: int, rows: int) -> Iterator[Any]:
        for index in range(group, len(self.starts) - 1):
            for start in range(0, self.starts[index + 1] - self.starts[index], rows):
                # Opened again for each piece: the pages an open map has touched stay resident.
                with decoding(self.name), pa.memory_map(str(self.path)) as file:
                    piece = pa.ipc.open_file(file).get_batch(index).column(column)
                    piece = piece.slice(start, rows)
                    piece.validate(full=True)
                    yield piece
                    del piece

    def _decoded_pieces(self, column: str, group: int, rows: int) -> Iterator[Any]:
        with decoding(self.name), pa.OSFile(str(self.path)) as file:
            reader = pa.ipc.open_file(file, options=_only(self.schema, column))
            for index in range(group, reader.num_record_batches):
                yield from _slices(reader.get_batch(index).column(0), rows)


class IpcStream:
    """Arrow IPC stream format (what HF ``save_to_disk`` writes): forward only."""

    def __init__(self, path: Path, name: str) -> None:
        """Count the rows, which a stream does not declare."""
        self.path, self.name = path.absolute(), name
        with decoding(name), pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_stream(file)
            self.schema = reader.schema
            rows = sum(batch.num_rows for batch in reader)
        self.starts = [0, rows]

    def pieces(self, column: str, group: int, rows: int) -> Iterator[Any]:
        """The column from the first batch on."""
        with decoding(self.name), pa.OSFile(str(self.path)) as file:
            for batch in pa.ipc.open_stream(file, options=_only(self.schema, column)):
                yield from _slices(batch.column(column), rows)


def _slices(array: Any, rows: int) -> Iterator[Any]:
    # Offsets in an IPC file come from its writer: nothing may follow them unchecked.
    array.validate(full=True)
    for start in range(0, len(array), rows):
        yield array.slice(start, rows)


def _is_mapped(file: Any, reader: Any) -> bool:
    file.seek(0)
    whole = file.read_buffer(file.size())
    for array in reader.get_batch(0).columns:
        for buffer in array.buffers():
            if buffer is not None and buffer.size:
                return bool(whole.address <= buffer.address < whole.address + whole.size)
    return False


def open_arrow_file(path: Path, name: str) -> ArrowFile:
    """The right reader for a file, by its first bytes.

    Raises:
        DataError: Neither Parquet nor Arrow.
    """
    with open(path, "rb") as file:
        lead = file.read(6)
    if lead[:4] == b"PAR1":
        return ParquetFile(path, name)
    if lead == b"ARROW1":
        return IpcFile(path, name)
    if lead[:4] == b"\xff\xff\xff\xff":
        return IpcStream(path, name)
    raise DataError(
        f"{name}: starts with {lead!r}, which is neither Parquet nor Arrow IPC; "
        "write it with pyarrow.parquet.write_table or pyarrow.feather.write_feather"
    )
