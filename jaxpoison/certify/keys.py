"""Key rules: which cell a row falls into, and so what a change of the row can touch.

A rule gives a row its cell from the row alone (``SortedPosition`` excepted, which is why it carries
no other claim than label flips). That is the whole reason why one changed row touches one cell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import HostArray

from . import _canonical as canonical
from ._canonical import as_labels, as_rows, hash_rows, hash_values, sort_keys, whole
from ._types import Covers

_COVERED: tuple[Covers, ...] = ("inputs", "inputs and labels", "key column")
_MOST_SALT = 64
_ASKED_TWICE = 32


class KeyRule(Protocol):
    """What every rule has."""

    @property
    def name(self) -> str:
        """Of the rule, or of the column it reads."""

    @property
    def covers(self) -> Covers:
        """What of a row decides its cell."""

    def cells(
        self, x: HostArray, y: HostArray, num_cells: int, column: HostArray | None = None
    ) -> HostArray:
        """[n] int64 in [0, num_cells)."""

    def examine(self, column: HostArray | None) -> None:
        """Raises where the column of the whole data set makes no sense as a key."""

    def to_json(self) -> dict[str, Any]:
        """Rule and parameters; of a salt only its digest."""


@dataclass(frozen=True)
class _Rule:
    def examine(self, column: HostArray | None) -> None:
        if column is not None:
            raise UsageError(
                f"column is given, but the key {type(self).__name__} reads none; leave it out or "
                "take Column(name)"
            )


@dataclass(frozen=True)
class ContentHash(_Rule):
    """Keyed hash of a row's values.

    ``cell = blake2b(values, key=salt) mod cells``

    Integers and booleans are hashed exactly: the type, byte order, memory order and shape of the
    array do not matter, the values in C order do. Floats are first rounded to ``decimals`` digits
    (-0 is 0).

    Attributes:
        salt: Up to 64 bytes. A secret salt keeps an attacker from unbalancing the subsets; it does
            not enlarge what is certified.
        with_labels: Hash the label too. A flipped label then moves the row and touches two cells.
        decimals: Rounding rule, 0 to 15, that floats need. With it an integer hashes as the float
            of its value does.

    **Cost**: about 4 seconds a million rows of 784 bytes.

    **Assumes / fails on**: NaN, infinity and floats without ``decimals`` raise.

    Reference: Levine and Feizi (2021), arXiv:2006.14768 (the partition by a hash of the content).
    """

    salt: bytes = b""
    with_labels: bool = False
    decimals: int | None = None
    name: ClassVar[str] = "content hash"

    def __post_init__(self) -> None:
        _check_salt(self.salt)
        if self.decimals is not None and self.decimals not in range(16):
            raise UsageError(f"decimals is {self.decimals!r}; give an integer from 0 to 15")

    @property
    def covers(self) -> Covers:
        """Inputs, and labels where they are hashed."""
        return "inputs and labels" if self.with_labels else "inputs"

    def cells(
        self, x: HostArray, y: HostArray, num_cells: int, column: HostArray | None = None
    ) -> HostArray:
        """[n] int64 cell of each row."""
        rows = as_rows("x", x)
        labels = as_labels("y", y, len(rows)) if self.with_labels else None
        return _modulo(hash_rows(rows, self.decimals, self.salt, labels), num_cells)

    def to_json(self) -> dict[str, Any]:
        """Rule, parameters and the digest of the salt."""
        return {
            "rule": self.name, "hash": "blake2b-64", "salt_digest": _salt_digest(self.salt),
            "with_labels": self.with_labels, "decimals": self.decimals,
        }  # fmt: skip


@dataclass(frozen=True)
class PixelSum(_Rule):
    """Sum of integer pixels modulo the cells: the partition of the reference.

    **Assumes / fails on**: whoever chooses inputs chooses cells, so he can unbalance the subsets.
    The certificate holds all the same. Floats raise.

    Reference: Levine and Feizi (2021), arXiv:2006.14768.
    """

    name: ClassVar[str] = "pixel sum"
    covers: ClassVar[Covers] = "inputs"

    def cells(
        self, x: HostArray, y: HostArray, num_cells: int, column: HostArray | None = None
    ) -> HostArray:
        """[n] int64 cell of each row."""
        rows = as_rows("x", x)
        if rows.dtype.kind == "f":
            raise UsageError(
                f"x has dtype {rows.dtype}; PixelSum needs integer pixels: give those as stored, "
                "or ContentHash(decimals=...)"
            )
        rows = whole("x", rows, None)
        if rows.dtype.itemsize == 8:  # a sum could overflow
            rows = rows % rows.dtype.type(num_cells)
        return np.asarray(rows.sum(axis=1, dtype=np.int64) % num_cells)

    def to_json(self) -> dict[str, Any]:
        """The rule; it has no parameters."""
        return {"rule": self.name}


@dataclass(frozen=True)
class SortedPosition(_Rule):
    """Position among all inputs in sorted order, modulo the cells.

    Even subsets, bought dearly: one inserted input shifts every later one. So it carries claims
    about label flips only, with inputs that nobody could choose, and it takes no ``insert``.

    **Assumes / fails on**: repeated inputs have no position and raise.

    Reference: Levine and Feizi (2021), arXiv:2006.14768 (SS-DPA).
    """

    name: ClassVar[str] = "sorted position"
    covers: ClassVar[Covers] = "sorted position"

    def cells(
        self, x: HostArray, y: HostArray, num_cells: int, column: HostArray | None = None
    ) -> HostArray:
        """[n] int64 cell of each row."""
        rows = as_rows("x", x)
        if rows.dtype.kind == "f":
            rows = rows + rows.dtype.type(0)  # -0 is 0: the two are one input
        keys = sort_keys(rows, np.zeros(len(rows), np.int64))
        order = np.argsort(keys, kind="stable")
        equal = keys[order[1:]] == keys[order[:-1]]
        if equal.any():
            pairs = [f"{order[i]} and {order[i + 1]}" for i in np.flatnonzero(equal)[:3]]
            raise DataError(
                f"x has {int(equal.sum())} repeated inputs (rows {', '.join(pairs)}"
                f"{', ...' if equal.sum() > 3 else ''}), which have no sorted position; drop the "
                "repeats or take ContentHash()"
            )
        position = np.empty(len(rows), np.int64)
        position[order] = np.arange(len(rows))
        return position % num_cells

    def to_json(self) -> dict[str, Any]:
        """The rule; it has no parameters."""
        return {"rule": self.name}


@dataclass(frozen=True)
class Column:
    """Hash of a column's value: client, source, legal entity.

    All rows of one value share a cell, so everything one client does costs one.

    Attributes:
        name: Of the column, for messages and the manifest.
        salt: As in ``ContentHash``.

    **Assumes / fails on**: the attacker owns at most r values. One who can write any value into
    the column touches as many cells as he likes. Values are integers, text or bytes; 7 and "7" are
    one value.

    Reference: Cao et al. (2022), FLCert, arXiv:2210.00584 (clients as the unit).
    """

    name: str
    salt: bytes = b""
    covers: ClassVar[Covers] = "key column"

    def __post_init__(self) -> None:
        _check_salt(self.salt)

    def examine(self, column: HostArray | None) -> None:
        """Refuses a column that is missing or has one value."""
        values = hash_values(self.name, _given(self.name, column), b"")
        _refuse_constant(self.name, values, column)

    def cells(
        self, x: HostArray, y: HostArray, num_cells: int, column: HostArray | None = None
    ) -> HostArray:
        """[n] int64 cell of each row."""
        values = _given(self.name, column, len(x))
        return _modulo(hash_values(self.name, values, self.salt), num_cells)

    def to_json(self) -> dict[str, Any]:
        """Rule, column and the digest of the salt."""
        return {"rule": "column", "column": self.name, "salt_digest": _salt_digest(self.salt)}


@dataclass(frozen=True)
class TimeWindow:
    """Number of the time window a row fell into, modulo the cells.

    ``cell = floor(time / width) mod cells``

    Attributes:
        name: Of the column, for messages and the manifest.
        width: Of a window, above 0, in the column's unit; in seconds for datetime64.

    **Assumes / fails on**: the attacker is active in at most r windows and cannot date rows as he
    likes. Missing times raise.

    Reference: Wang and Feizi (2023), arXiv:2302.03684 (temporal aggregation).
    """

    name: str
    width: int | float
    covers: ClassVar[Covers] = "key column"

    def __post_init__(self) -> None:
        if isinstance(self.width, bool) or not 0 < self.width < np.inf:
            raise UsageError(f"width is {self.width!r}; give the length of a window, above 0")

    def examine(self, column: HostArray | None) -> None:
        """Refuses a column that is missing or lies in one window."""
        _refuse_constant(f"the window of {self.name}", self._windows(column), column)

    def cells(
        self, x: HostArray, y: HostArray, num_cells: int, column: HostArray | None = None
    ) -> HostArray:
        """[n] int64 cell of each row."""
        _given(self.name, column, len(x))
        return np.asarray(self._windows(column) % num_cells).astype(np.int64)

    def _windows(self, column: HostArray | None) -> HostArray:
        times = _given(self.name, column)
        if times.dtype.kind == "M":
            if np.isnat(times).any():
                row = int(np.isnat(times).argmax())
                raise DataError(f"{self.name} has no time in row {row}; drop the row or date it")
            unit = times.astype("M8[us]").astype(np.int64)
            if not isinstance(self.width, float):
                return np.asarray(unit // (1_000_000 * self.width))
            times = unit / 1e6
        if times.dtype.kind not in "iuf":
            raise DataError(f"{self.name} has dtype {times.dtype}; give numbers or datetime64")
        if times.dtype.kind in "iu" and times.dtype.itemsize < 8:
            times = times.astype(np.int64)
        if not np.isfinite(times).all():
            row = int(np.isfinite(times).argmin())
            raise DataError(f"{self.name} is {times[row]} in row {row}; drop the row or date it")
        large = times.dtype.kind == "f" and np.abs(times) >= canonical.MOST_EXACT
        if np.any(large):
            row = int(np.argmax(large))
            raise DataError(
                f"{self.name} is {times[row]} in row {row}, beyond what floats tell apart; give "
                "integers, datetime64, or a larger unit"
            )
        return np.asarray(np.floor_divide(times, self.width))

    def to_json(self) -> dict[str, Any]:
        """Rule, column and width."""
        return {"rule": "time window", "column": self.name, "width": self.width}


@dataclass(frozen=True)
class KeyFunction:
    """Any function of one row; its value is hashed.

    The function is handed exactly what ``covers`` names, so it cannot depend on more:
    ``fn(x)`` for "inputs", ``fn(x, y)`` for "inputs and labels", ``fn(value)`` for "key column",
    each of one row.

    Attributes:
        fn: Gives an integer, text or bytes for a row.
        covers: What it is handed.
        name: For messages and the manifest; the function's own where empty.
        salt: As in ``ContentHash``.

    **Assumes / fails on**: the function has no state. Some rows are asked twice, and a function
    that answers differently raises.
    """

    fn: Callable[..., int | str | bytes]
    covers: Covers
    name: str = ""
    salt: bytes = b""

    def __post_init__(self) -> None:
        _check_salt(self.salt)
        if self.covers not in _COVERED:
            raise UsageError(f"covers is {self.covers!r}; give one of {', '.join(_COVERED)}")
        if not self.name:
            object.__setattr__(self, "name", getattr(self.fn, "__qualname__", "key function"))

    def examine(self, column: HostArray | None) -> None:
        """Refuses a key column that is missing or gets one value only."""
        if self.covers == "key column":
            values = _given(self.name, column)
            found = np.array([self.fn(v) for v in values.tolist()], object)
            _refuse_constant(self.name, hash_values(self.name, found, b""), column)
        elif column is not None:
            raise UsageError(f"column is given, but the key {self.name} covers {self.covers}")

    def cells(
        self, x: HostArray, y: HostArray, num_cells: int, column: HostArray | None = None
    ) -> HostArray:
        """[n] int64 cell of each row."""
        values = self._values(x, y, column, range(len(x)))
        again = range(len(x))[:: max(1, len(x) // _ASKED_TWICE)]
        for row, value in zip(again, self._values(x, y, column, again), strict=True):
            if value != values[row]:
                raise UsageError(
                    f"key function {self.name} gave {values[row]!r} and then {value!r} for row "
                    f"{row}; give one that depends on the row alone"
                )
        found = np.empty(len(values), object)
        found[:] = values
        return _modulo(hash_values(self.name, found, self.salt), num_cells)

    def _values(
        self, x: HostArray, y: HostArray, column: HostArray | None, rows: range
    ) -> list[Any]:
        if self.covers == "key column":
            keys = _given(self.name, column, len(x)).tolist()
            found = [self.fn(keys[i]) for i in rows]
        elif self.covers == "inputs":
            found = [self.fn(np.array(x[i])) for i in rows]
        else:
            found = [self.fn(np.array(x[i]), y[i]) for i in rows]
        return [v.item() if isinstance(v, np.generic) else v for v in found]

    def to_json(self) -> dict[str, Any]:
        """The function's name and the digest of the salt."""
        return {
            "rule": "function", "function": self.name, "salt_digest": _salt_digest(self.salt)
        }  # fmt: skip


def _modulo(hashes: HostArray, num_cells: int) -> HostArray:
    return (hashes % np.uint64(num_cells)).astype(np.int64)


def _check_salt(salt: bytes) -> None:
    if not isinstance(salt, bytes) or len(salt) > _MOST_SALT:
        raise UsageError(f"salt is {type(salt).__name__} {salt!r:.40}; give up to 64 bytes")


def _salt_digest(salt: bytes) -> str:
    return hashlib.blake2b(salt, digest_size=16, person=b"jaxpoison.salt").hexdigest()


def _given(name: str, column: HostArray | None, rows: int | None = None) -> HostArray:
    if column is None:
        raise UsageError(f"the key reads the column {name}, but column is None; give column=[n]")
    values = np.asarray(column)
    if values.ndim != 1 or (rows is not None and len(values) != rows):
        raise DataError(f"column {name} has shape {values.shape}; give one value a row")
    return values


def _refuse_constant(name: str, values: HostArray, column: HostArray | None) -> None:
    if len(np.unique(values)) < 2:
        seen = "no value" if column is None or not len(column) else f"only {column[0]!r}"
        raise DataError(
            f"{name} has {seen} in all rows: everything would lie in one subset and nothing could "
            "be certified; take another column or ContentHash()"
        )
