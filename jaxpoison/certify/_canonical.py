"""Bytes that stand for rows: the same for the same values, whatever array holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import HostArray

_CHUNK_BYTES = 1 << 24
MOST_EXACT = 2.0**53
_UNSIGNED = ((1 << 8, "u1"), (1 << 16, "u2"), (1 << 32, "u4"))


def as_rows(name: str, values: HostArray) -> HostArray:
    """[n, f] view in native byte order and C order; a copy only where there is none.

    Raises:
        DataError: Nothing numeric, rows without values, or NaN.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
        raise DataError(f"{name} has dtype {array.dtype}; give integers or floats of up to 64 bit")
    if array.ndim == 0 or (array.ndim > 1 and 0 in array.shape[1:]):
        raise DataError(f"{name} has shape {array.shape}; give [n, ...] with values in every row")
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    array = array.reshape(len(array), -1 if array.size else int(np.prod(array.shape[1:])))
    if array.dtype.kind == "f":
        _refuse(name, array, np.isnan, "is NaN", "drop the row or fill the value")
    return array


def as_labels(name: str, values: HostArray, rows: int) -> HostArray:
    """[n] int64 or float64.

    Raises:
        DataError: Another shape, nothing numeric, NaN, or integers beyond 63 bits.
    """
    array = np.asarray(values)
    if array.shape != (rows,):
        raise DataError(f"{name} has shape {array.shape}; x has {rows} rows, give one label a row")
    flat = as_rows(name, array)[:, 0]
    if flat.dtype.kind == "f":
        return flat.astype(np.float64)
    if flat.dtype == np.uint64 and flat.size and flat.max() > np.iinfo(np.int64).max:
        raise DataError(f"{name} has {flat.max()}; give labels below 2^63")
    return flat.astype(np.int64)


def sort_keys(x: HostArray, y: HostArray) -> HostArray:
    """[n] void values that sort as ``numpy.lexsort`` over the columns [y, x_1 ... x_f] does.

    The last column of x decides first and the label last, as in the reference. Comparing bytes is
    comparing values once integers are unsigned and big-endian. Floats order by all their bits
    (-0 before 0), so that only equal bits are ever a tie.

    Args:
        x: [n, f] from ``as_rows``.
        y: [n] from ``as_labels``.

    **Cost**: one copy of x.
    """
    width = x.shape[1] * x.dtype.itemsize
    keys = np.empty((len(x), width + 8), np.uint8)
    for start, stop in _chunks(len(x), width):
        keys[start:stop, :width] = _big_endian(x[start:stop, ::-1])
    keys[:, width:] = _big_endian(y[:, None])
    return keys.view(f"V{width + 8}")[:, 0]


def hash_rows(
    x: HostArray, decimals: int | None, salt: bytes, labels: HostArray | None = None
) -> HostArray:
    """[n] uint64 keyed hash of each row alone.

    Integers are hashed in the narrowest of five forms that holds the row, which depends on its
    values only and not on the array's type. Floats become integers first.

    Args:
        x: [n, f] from ``as_rows``.
        decimals: Digits after the point that values are rounded to; needed for floats.
        salt: Key of the hash.
        labels: [n] from ``as_labels`` to hash with the row.

    Raises:
        UsageError: Floats without ``decimals``.
        DataError: Values too large to round.
    """
    x = whole("x", x, decimals)
    tail = None
    if labels is not None:
        tail = whole("y", labels[:, None], decimals).astype("<i8").view(np.uint8)
    out = np.empty(len(x), np.uint64)
    form = _forms(x)
    for name in np.unique(form):
        rows = np.flatnonzero(form == name)
        kind = np.dtype("<" + str(name))
        person = b"jaxpoison." + str(name).encode() + (b"" if tail is None else b".y")
        for start, stop in _chunks(len(rows), x.shape[1] * kind.itemsize):
            part = rows[start:stop]
            payload = np.ascontiguousarray(x[part].astype(kind, copy=False)).view(np.uint8)
            if tail is not None:
                payload = np.hstack([payload, tail[part]])
            out[part] = _digests(payload, person, salt)
    return out


def whole(name: str, values: HostArray, decimals: int | None) -> HostArray:
    """Integers as they are, or with ``decimals`` all as ``round(value * 10^decimals)``.

    Halves round to even. Integers are scaled too: one inserted row may turn a column of integers
    into floats, and must not move the others.
    """
    array = values.view(np.uint8) if values.dtype.kind == "b" else values
    if decimals is None:
        if array.dtype.kind != "f":
            return array
        raise UsageError(
            f"{name} has floats ({values.dtype}) and no rounding rule: equal inputs could hash "
            "apart. Give ContentHash(decimals=...), or integers"
        )
    with np.errstate(over="ignore"):
        scaled = np.rint(array.astype(np.float64) * 10.0**decimals)
    _refuse(
        name, scaled, lambda s: ~(np.abs(s) < MOST_EXACT),
        f"is too large to round to {decimals} decimals", "scale the inputs or give fewer decimals",
    )  # fmt: skip
    return scaled.astype(np.int64)


def hash_values(name: str, values: HostArray, salt: bytes) -> HostArray:
    """[n] uint64 keyed hash of integers, text or bytes; each distinct value is hashed once.

    Raises:
        DataError: A value of another kind, named with its row.
    """
    seen: dict[Any, int] = {}
    out = np.empty(len(values), np.uint64)
    for row, value in enumerate(np.asarray(values).tolist()):
        token = _token(name, row, value)
        if token not in seen:
            seen[token] = int(_digests([token], b"jaxpoison.value", salt)[0])
        out[row] = seen[token]
    return out


def _token(name: str, row: int, value: Any) -> bytes:
    # A number is its text, and bytes are theirs: one inserted word turns a column of numbers into
    # text, one of more letters a column of bytes, and must not move the other rows.
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, int):
        return b"s%d" % value
    if isinstance(value, str):
        return b"s" + value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return b"s" + value
    raise DataError(
        f"{name} is {value!r} ({type(value).__name__}) in row {row}; give integers, text or bytes "
        "(TimeWindow for times)"
    )


def _digests(payload: HostArray | list[bytes], person: bytes, salt: bytes) -> HostArray:
    if isinstance(payload, np.ndarray):
        rows: list[bytes] = payload.view(f"V{payload.shape[1]}")[:, 0].tolist()
    else:
        rows = payload
    blake = hashlib.blake2b
    joined = b"".join(blake(r, digest_size=8, key=salt, person=person).digest() for r in rows)
    return np.frombuffer(joined, "<u8").astype(np.uint64)


def _forms(x: HostArray) -> HostArray:
    """[n] narrowest form of each row: u1, u2, u4, u8, or i8 where a value is negative."""
    form = np.full(len(x), "u8")
    if x.dtype.itemsize == 1 and x.dtype.kind == "u":
        form[:] = "u1"
        return form
    if not len(x):
        return form
    low, high = x.min(axis=1), x.max(axis=1)
    for bound, name in reversed(_UNSIGNED):
        form[high < bound] = name
    form[low < 0] = "i8"
    return form


def _big_endian(values: HostArray) -> HostArray:
    """[n, f * width] bytes that compare as the values do."""
    width = values.dtype.itemsize
    unsigned = np.dtype(f"u{width}")
    top = unsigned.type(1 << (8 * width - 1))
    bits = values.view(unsigned)
    if values.dtype.kind == "i":
        bits = bits ^ top
    elif values.dtype.kind == "f":
        bits = np.where(bits & top, ~bits, bits | top)
    return np.ascontiguousarray(bits, unsigned.newbyteorder(">")).view(np.uint8)


def _refuse(name: str, values: HostArray, bad_fn: Any, what: str, then: str) -> None:
    for start, stop in _chunks(len(values), values.shape[1] * values.dtype.itemsize):
        bad = bad_fn(values[start:stop]).any(axis=1)
        if bad.any():
            raise DataError(f"{name} {what} in row {start + int(bad.argmax())}; {then}")


def _chunks(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK_BYTES // max(1, row_bytes))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
