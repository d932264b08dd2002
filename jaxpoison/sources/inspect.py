"""One pass over the data before anything is computed: fingerprint, broken rows, row ids.

A row id is a hash of the row's bytes and its label, with the rank among equal rows mixed in, so
ids are unique and go with the rows when these are reordered.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxpoison._check import DataError, UsageError

from .base import Array, Fingerprint, Source

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_UNLABELLED = np.uint64(0xD1B54A32D192ED03)
_HIGH = np.uint64(0xFFFFFFFF00000000)
_CHUNK_BYTES = 1 << 20


class Inspection(NamedTuple):
    """What one pass over a source found."""

    fingerprint: str
    num_rows: int
    nonfinite: Array  # [k] int64, rows that hold NaN or infinity, ascending
    first_nonfinite: str  # where and what, for a message; "" when there is none
    ids: Array  # [n] uint64, unique, kept under reordering
    duplicates: int  # rows equal to an earlier row, label included

    def require_finite(self, name: str) -> None:
        """Refuse rows that hold NaN or infinity.

        Args:
            name: The source, for the message.

        Raises:
            DataError: Names how many rows, and the first with its value.
        """
        count = len(self.nonfinite)
        if count:
            raise DataError(
                f"{name}: {count} of {self.num_rows} rows hold NaN or infinity, the first is "
                f"{self.first_nonfinite}; repair them, or leave them out "
                "(--drop-nonfinite, drop_nonfinite=True)"
            )


def inspect(
    source: Source,
    *,
    block_rows: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Look at every row once.

    Args:
        source: Any source.
        block_rows: Rows read at a time; the result does not depend on it.
        progress: Called with rows done and rows in all after each block.

    Returns:
        Fingerprint, rows that are not finite, row ids [n] and the number of duplicates.

    Raises:
        UsageError: ``block_rows`` is not positive.
        DataError: The source cannot be read.

    Cost: one pass; 8 bytes a row for the ids besides a few copies of one block.
    """
    if block_rows < 1:
        raise UsageError(f"block_rows is {block_rows}; give at least 1")
    rows, schema = len(source), source.schema
    digest = Fingerprint(schema, rows)
    hashes = np.empty(rows, np.uint64)
    constants = _constants(schema.shape, schema.dtype)
    broken: list[Array] = []
    first = ""
    for start in range(0, rows, block_rows):
        stop = min(start + block_rows, rows)
        block = source.read(start, stop)
        digest.update(block)
        hashes[start:stop] = _row_hashes(block, constants)
        if schema.kind == "rows":
            wrong = np.flatnonzero(~np.isfinite(block["x"]).all(axis=1))
            if wrong.size and not broken:
                first = _where(block["x"][wrong[0]], start + int(wrong[0]))
            if wrong.size:
                broken.append(wrong.astype(np.int64) + start)
        if progress is not None:
            progress(stop, rows)
    ids, duplicates = unique_ids(hashes)
    nonfinite = np.concatenate(broken) if broken else np.empty(0, np.int64)
    return Inspection(digest.hexdigest(), rows, nonfinite, first, ids, duplicates)


def _where(row: Array, number: int) -> str:
    position = int(np.flatnonzero(~np.isfinite(row))[0])
    return f"row {number} ({row[position]} at position {position})"


def _mix(values: Array) -> Array:
    """Splitmix64's finaliser: a bijection of 64-bit words that scatters every bit."""
    values = values ^ (values >> np.uint64(30))
    values = values * np.uint64(0xBF58476D1CE4E5B9)
    values = values ^ (values >> np.uint64(27))
    values = values * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def _constants(shape: tuple[int, ...], dtype: str) -> Array:
    """[2, words + 1] fixed multipliers, drawn from a counter so that no library can change them."""
    row_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    words = -(-row_bytes // 4)
    counter = np.arange(1, 2 * (words + 1) + 1, dtype=np.uint64)
    return _mix(counter * _GOLDEN).reshape(2, words + 1)


def _row_hashes(block: dict[str, Array], constants: Array) -> Array:
    """[b] hash of each row: two multilinear hashes, of which the strong upper halves are kept."""
    x = np.ascontiguousarray(block["x"])
    count, words = len(x), constants.shape[1] - 1
    raw = x.reshape(count, -1).view(np.uint8)
    hashes = np.empty(count, np.uint64)
    step = max(1, _CHUNK_BYTES // (8 * words))
    for start in range(0, count, step):
        part = raw[start : start + step]
        if part.shape[1] != 4 * words:
            part = np.pad(part, ((0, 0), (0, 4 * words - part.shape[1])))
        if sys.byteorder == "big" and x.dtype.itemsize == 4:
            part = part.reshape(len(part), -1, 4)[..., ::-1].reshape(len(part), -1)
        values = part.view("<u4").astype(np.uint64)
        upper = values @ constants[0, 1:] + constants[0, 0]
        lower = values @ constants[1, 1:] + constants[1, 0]
        hashes[start : start + step] = (upper & _HIGH) | (lower >> np.uint64(32))
    if "y" in block:
        return _mix(hashes ^ _mix(block["y"].astype(np.uint64) + _GOLDEN))
    return _mix(hashes ^ _UNLABELLED)


def unique_ids(hashes: Array) -> tuple[Array, int]:
    """Make hashes unique by mixing in the rank among equal ones, in order of position.

    Args:
        hashes: [n] uint64.

    Returns:
        Unique ids [n] uint64, and how many hashes repeat an earlier one.
    """
    ids, duplicates, is_first_round = hashes.copy(), 0, True
    while True:  # a second round only if a mixed id meets another hash
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        is_new = np.ones(len(ids), dtype=bool)
        is_new[1:] = ordered[1:] != ordered[:-1]
        repeats = np.flatnonzero(~is_new)
        if is_first_round:
            duplicates, is_first_round = len(repeats), False
        if not repeats.size:
            return ids, duplicates
        starts = np.flatnonzero(is_new)
        rank = repeats - starts[np.searchsorted(starts, repeats, side="right") - 1]
        ids[order[repeats]] = _mix(ordered[repeats] + rank.astype(np.uint64) * _GOLDEN)
