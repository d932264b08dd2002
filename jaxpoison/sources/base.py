"""What every source offers, and the one class that turns columns into a source.

A *column* is one array of ``n`` rows that can be read a range at a time (a file, a stream, an
array in memory). A *source* is a column of inputs with its labels, checked and converted.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxpoison._check import DataError, NothingToScan, UsageError

Array = np.ndarray[Any, np.dtype[Any]]
Kind = Literal["images", "rows"]

_PASS_BYTES = 4 << 20  # of one block in the passes this room makes by itself


class Schema(NamedTuple):
    """What one row looks like, as ``read`` returns it."""

    kind: Kind
    shape: tuple[int, ...]  # of one row: (H, W), (H, W, C) or (D,)
    dtype: str  # "uint8" for images, "float32" for rows
    class_names: tuple[str, ...] | None  # untrusted text, one a class; None when labels are numbers


@runtime_checkable
class Source(Protocol):
    """Rows and labels that can be read a range at a time."""

    @property
    def schema(self) -> Schema:
        """Kind, shape and type of one row."""

    @property
    def name(self) -> str:
        """What the user typed, for messages and the report."""

    def __len__(self) -> int:
        """Number of rows."""

    def read(self, start: int, stop: int) -> dict[str, Array]:
        """Rows ``start`` to ``stop``: ``x`` [b, ...] and, when labelled, ``y`` [b] int64."""

    def labels(self) -> Array | None:
        """All labels [n] int64 (integer, not negative), or None."""

    def fingerprint(self) -> str:
        """Content hash of x and y in order, whatever the format and the read size."""


class Column(Protocol):
    """One stored array of ``n`` rows; ``read`` returns the stored type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, ...], checked against the bytes that are really there."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored type, in any byte order."""

    def read(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop``."""

    def close(self) -> None:
        """Let go of the file; the next ``read`` opens it again."""


def quote(text: object, limit: int = 80) -> str:
    """Untrusted text for a message: control characters escaped, length bounded."""
    shown = repr(str(text)[: limit + 1])
    return shown if len(str(text)) <= limit else f"{shown[:limit]}...'"


def whole(name: str) -> str:
    """What the user typed, to be typed again: long, as paths are."""
    return quote(name, 400)


def parts_of(name: str, parts: list[str], most: int = 4) -> str:
    """What to write for a part of what was given, for a message."""
    return " or ".join(whole(f"{name}#{part}") for part in parts[:most])


def listing(names: list[str], limit: int = 8) -> str:
    """The first few of many untrusted names, for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(quote(name) for name in names[:limit]) + more


def is_number(dtype: np.dtype[Any]) -> bool:
    """Whether values of this type can become float32 (bfloat16 and float8 report kind V)."""
    return dtype.kind in "biuf" or dtype.name.startswith(("bfloat16", "float8"))


def check_range(start: int, stop: int, rows: int, name: str) -> None:
    """Refuse a range that is not inside the source.

    Raises:
        UsageError: The range is reversed or leaves ``0..rows``.
    """
    if not 0 <= start <= stop <= rows:
        raise UsageError(
            f"{name}: rows {start} to {stop} were asked for, it holds {rows}; "
            f"ask for 0 <= start <= stop <= {rows}"
        )


def make_schema(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    class_names: tuple[str, ...] | None = None,
) -> Schema:
    """The schema of an array of inputs, or the error that says why it has none.

    Args:
        name: What the user typed.
        shape: [n, ...] of the whole array.
        dtype: As stored.
        class_names: One a class, if the format has them.

    Returns:
        The schema of one row as ``read`` will return it.

    Raises:
        DataError: Not numeric, a wrong rank, empty rows, or images that are not uint8.
        NothingToScan: No rows.
    """
    if dtype.kind == "O":
        raise DataError(
            f"{name}: x holds Python objects, which are stored as pickles and never loaded; "
            "save it as one numeric array, for example np.stack(x).astype(np.float32)"
        )
    if not is_number(dtype):
        raise DataError(
            f"{name}: x has type {quote(dtype)}, which is not a number; "
            "save it as uint8 images or float32 rows"
        )
    if len(shape) not in (2, 3, 4):
        raise DataError(
            f"{name}: x has shape {shape}; expected images [n, H, W] or [n, H, W, C], or rows "
            "[n, D]; reshape it, for example x.reshape(len(x), -1)"
        )
    if shape[0] == 0:
        raise NothingToScan(f"{name}: x has shape {shape}: no rows; give data with rows")
    if 0 in shape[1:]:
        raise DataError(f"{name}: x has shape {shape}: its rows are empty; give rows with values")
    if len(shape) == 2:
        return Schema("rows", shape[1:], "float32", class_names)
    _check_images(name, shape, dtype)
    return Schema("images", shape[1:], "uint8", class_names)


def _check_images(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype != np.uint8:
        scale = "(x * 255).round()" if dtype.kind in "bfV" else "x"
        values = "0..1" if dtype.kind in "bfV" else "0..255"
        raise DataError(
            f"{name}: x has shape {shape} and type {dtype}; images must be uint8: if its values "
            f"are {values}, save {scale}.astype(np.uint8); if it holds features, save the rows "
            "x.reshape(len(x), -1)"
        )
    if len(shape) == 4 and shape[1] in (1, 3) and min(shape[2:]) > 4:
        raise DataError(
            f"{name}: x has shape {shape}, which looks like channels first [n, C, H, W]; "
            "save x.transpose(0, 2, 3, 1)"
        )


def convert(block: Array, kind: Kind) -> Array:
    """A block as ``read`` returns it: uint8 images or float32 rows, C order, native bytes."""
    with np.errstate(over="ignore", invalid="ignore"):  # too large becomes inf, and is reported
        return np.ascontiguousarray(block, np.uint8 if kind == "images" else np.float32)


def rows_per_block(schema: Schema, budget: int = _PASS_BYTES) -> int:
    """How many rows fit in ``budget`` bytes, at least one."""
    row = int(np.prod(schema.shape, dtype=np.int64)) * np.dtype(schema.dtype).itemsize
    return max(1, budget // row)


class Fingerprint:
    """Content hash fed block by block; equal for equal rows, whatever the block size."""

    def __init__(self, schema: Schema, rows: int) -> None:
        """Start with what is known before the first block."""
        self._head = [schema.kind, list(schema.shape), schema.dtype, rows]
        self._x = hashlib.blake2b(digest_size=32)
        self._y = hashlib.blake2b(digest_size=32)

    def update(self, block: dict[str, Array]) -> None:
        """Add the next block, as ``Source.read`` returned it."""
        x = block["x"]
        self._x.update(np.ascontiguousarray(x, x.dtype.newbyteorder("<")).data)
        if "y" in block:
            self._y.update(np.ascontiguousarray(block["y"], "<i8").data)

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        head = json.dumps(self._head).encode()
        return hashlib.blake2b(
            head + self._x.digest() + self._y.digest(), digest_size=32
        ).hexdigest()


def fingerprint_of(source: Source) -> str:
    """The fingerprint of any source, in one pass and a few megabytes."""
    rows, step = len(source), rows_per_block(source.schema)
    digest = Fingerprint(source.schema, rows)
    for start in range(0, rows, step):
        digest.update(source.read(start, min(start + step, rows)))
    return digest.hexdigest()


class ColumnSource:
    """A source made of a column of inputs and, perhaps, labels held in memory."""

    def __init__(
        self,
        name: str,
        column: Column,
        labels: Array | None = None,
        class_names: tuple[str, ...] | None = None,
        *,
        is_embedding: bool = False,
    ) -> None:
        """Check the column; ``labels`` [n] int64 have been checked by ``labels.check_labels``.

        ``is_embedding`` says that a network made the rows, as their name in the data tells.
        """
        self.name = name
        self.is_embedding = is_embedding
        self.column = column
        self.schema = make_schema(name, column.shape, column.dtype, class_names)
        self._labels = labels
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.column.shape[0])

    def read(self, start: int, stop: int) -> dict[str, Array]:
        """Rows ``start`` to ``stop``; safe to call from a prefetch thread."""
        check_range(start, stop, len(self), self.name)
        block = {"x": convert(self.column.read(start, stop), self.schema.kind)}
        if self._labels is not None:
            block["y"] = self._labels[start:stop]
        return block

    def labels(self) -> Array | None:
        """All labels [n] int64, read-only, or None."""
        return self._labels

    def fingerprint(self) -> str:
        """Content hash of x and y; one pass the first time."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self)
        return self._fingerprint

    def with_labels(self, labels: Array, class_names: tuple[str, ...] | None) -> ColumnSource:
        """The same inputs under other labels."""
        return ColumnSource(
            self.name, self.column, labels, class_names, is_embedding=self.is_embedding
        )

    def close(self) -> None:
        """Let go of open files; reading opens them again."""
        self.column.close()
