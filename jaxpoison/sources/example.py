"""``tf.train.Example``, the protocol buffer in most TFRecord and ArrayRecord files.

Its wire format is three nested messages and two kinds of numbers, so it is read here without
TensorFlow. What a lenient reader would merge or overwrite is refused: readers differ in which
value they take, and a scan must see what training sees.

Reference: Protocol Buffers, "Encoding"; TensorFlow, ``core/example/feature.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from jaxpoison._check import DataError

from .base import Array, quote

Kind = Literal["bytes", "float", "int64", "empty"]
Span = tuple[int, int]  # first byte and the byte behind the last

_KINDS: dict[int, Kind] = {1: "bytes", 2: "float", 3: "int64"}
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_NAME = 1000


class Feature(NamedTuple):
    """Where the values of a feature lie in the record.

    Attributes:
        kind: Of all values; "empty" where none was set.
        spans: One for each text, or for each run of numbers.
    """

    kind: Kind
    spans: list[Span]


def _varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    value, shift = 0, 0
    while at < stop and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise ValueError("a number is cut or too long")


def _fields(data: bytes, at: int, stop: int) -> Iterator[tuple[int, int, Span]]:
    """Number, wire type and span of each field of a message; the span of a number is its bytes."""
    while at < stop:
        tag, at = _varint(data, at, stop)
        number, wire = tag >> 3, tag & 7
        if wire == _LENGTH:
            size, at = _varint(data, at, stop)
            end = at + size
        elif wire == _VARINT:
            _, end = _varint(data, at, stop)
        elif wire in (_FIXED32, _FIXED64):
            end = at + (4 if wire == _FIXED32 else 8)
        else:
            raise ValueError(f"wire type {wire} is unknown")
        if number == 0 or end > stop:
            raise ValueError("a field leaves its message")
        yield number, wire, (at, end)
        at = end


def parse(data: bytes, name: str) -> dict[str, Feature]:
    """The features of a record, by name.

    Args:
        data: A serialised ``tf.train.Example``.
        name: What to call it in a message.

    Returns:
        Where the values of each feature lie; none has been decoded.

    Raises:
        DataError: No such message, or a feature that occurs twice.
    """
    features: dict[str, Feature] = {}
    try:
        for number, wire, (start, stop) in _fields(data, 0, len(data)):
            if number != 1 or wire != _LENGTH or features:
                raise ValueError(f"its field {number} belongs to another message")
            for inner, _, (first, last) in _fields(data, start, stop):
                if inner != 1:
                    raise ValueError(f"its features have a field {inner}")
                key, feature = _entry(data, first, last)
                if key in features:
                    raise ValueError(f"the feature {quote(key)} occurs twice")
                features[key] = feature
    except ValueError as error:
        raise DataError(
            f"{name}: is no tf.train.Example ({error}); write records with tf.train.Example, or "
            "save the arrays with np.savez"
        ) from error
    return features


def _entry(data: bytes, at: int, stop: int) -> tuple[str, Feature]:
    key: str | None = None
    feature: Feature | None = None
    for number, wire, (first, last) in _fields(data, at, stop):
        if wire != _LENGTH or number not in (1, 2):
            raise ValueError("an entry of its features is malformed")
        if number == 1:
            if key is not None or last - first > _MAX_NAME:
                raise ValueError("a feature has two names or an overlong one")
            key = data[first:last].decode()
        else:
            if feature is not None:
                raise ValueError("a feature has two values")
            feature = _feature(data, first, last)
    return key or "", feature or Feature("empty", [])


def _feature(data: bytes, at: int, stop: int) -> Feature:
    kind: Kind = "empty"
    spans: list[Span] = []
    for number, wire, (first, last) in _fields(data, at, stop):
        if wire != _LENGTH or number not in _KINDS or kind != "empty":
            raise ValueError("a feature has values of several kinds")
        kind = _KINDS[number]
        plain = {"bytes": _LENGTH, "float": _FIXED32, "int64": _VARINT}[kind]
        for inner, form, span in _fields(data, first, last):
            # Numbers come packed in one run or, from older writers, one by one.
            if inner != 1 or form not in (plain, _LENGTH):
                raise ValueError(f"a list of {kind} holds something else")
            spans.append(span)
    return Feature(kind, spans)


def floats(data: bytes, feature: Feature) -> Array:
    """The values [k] float32 of a feature of kind "float".

    Raises:
        ValueError: A run that is no multiple of 4 bytes.
    """
    return np.frombuffer(b"".join(data[first:last] for first, last in feature.spans), "<f4")


def integers(data: bytes, feature: Feature) -> Array:
    """The values [k] int64 of a feature of kind "int64".

    Raises:
        ValueError: A number that is cut.
    """
    raw = np.frombuffer(b"".join(data[first:last] for first, last in feature.spans), np.uint8)
    if not raw.size:
        return np.empty(0, np.int64)
    ends = np.flatnonzero(raw < 0x80)
    if not ends.size or ends[-1] != raw.size - 1:
        raise ValueError("a number is cut")
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(raw.size) - np.repeat(starts, ends - starts + 1)
    if int(place.max()) > 9:
        raise ValueError("a number is too long")
    parts = (raw & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(parts, starts).view(np.int64)


def describe(features: dict[str, Feature]) -> list[str]:
    """Names with kinds and counts, for messages."""
    return [f"{key}: {value.kind}" for key, value in sorted(features.items())]
