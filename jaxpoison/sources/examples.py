"""Files of ``tf.train.Example`` as a source: which features are x and y, and their values.

One pass parses every record: it finds the labels, looks at the headers of the images and, in
TFRecord files, compares the checksums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpoison._check import DataError, NothingToScan

from . import pixels, tfrecord
from .array_records import ArrayRecords
from .base import Array, Column, ColumnSource, listing, quote
from .decoded import DecodedColumn
from .example import Feature, describe, floats, integers, parse
from .images import Size, Survey
from .labels import Labels, check_labels, encode_labels
from .names import IMAGE_NAMES as ANY_IMAGE
from .names import X_NAMES, is_embedding_name
from .names import Y_NAMES as ANY_LABEL
from .shard_names import Numbered
from .spans import Records, Spans

IMAGE_NAMES = ("image/encoded", *ANY_IMAGE, "image_raw", "png", "jpg", "jpeg")
Y_NAMES = ("image/class/label", *ANY_LABEL)


class Choice(NamedTuple):
    """Which features are read, and as what.

    Attributes:
        x: Name of the inputs.
        y: Name of the labels; None if they are not wanted.
        is_image: Whether x is an encoded image; else it is a list of numbers.
        is_colour: Images only: colour in any case.
        shape: Of one row of numbers; None for as many as the first record has.
        dtype: Of numbers; None for float32.
        class_names: One a class; None for numbers, or for labels that are text.
    """

    x: str
    y: str | None
    is_image: bool
    is_colour: bool = False
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    class_names: tuple[str, ...] | None = None


class Read(NamedTuple):
    """A source, and how many records each file had."""

    source: ColumnSource
    counts: list[int]


def choose(features: dict[str, Feature], name: str, *, labelled: bool) -> Choice:
    """Inputs and labels by their usual names.

    Raises:
        DataError: No such features; the message lists those that are there.
    """
    seen = listing(describe(features)) or "no features"
    x = next((key for key in IMAGE_NAMES if _is(features, key, "bytes")), None)
    is_image = x is not None
    if x is None:
        lists = [key for key, value in features.items() if value.kind == "float"]
        x = next((key for key in X_NAMES if key in lists), lists[0] if len(lists) == 1 else None)
    if x is None:
        raise DataError(
            f"{name}: no image called {', '.join(IMAGE_NAMES)} and no list of floats called "
            f"{', '.join(X_NAMES)}; it holds {seen}; rename one"
        )
    if not labelled:
        return Choice(x, None, is_image)
    y = next(
        (key for key in Y_NAMES if _is(features, key, "int64") or _is(features, key, "bytes")), None
    )
    if y is None:
        raise DataError(
            f"{name}: no label called {', '.join(Y_NAMES)}; it holds {seen}; rename it, or give "
            "the labels apart (labels=)"
        )
    return Choice(x, y, is_image)


def _is(features: dict[str, Feature], key: str, kind: str) -> bool:
    return key in features and features[key].kind == kind


def read_examples(
    paths: Sequence[Path], names: Sequence[str], name: str,
    choose_fn: Callable[[dict[str, Feature], str], Choice], *, is_array_record: bool,
    size: Size | None,
) -> Read:  # fmt: skip
    """All records of some files as rows.

    Args:
        paths: The files in order, of one format.
        names: What to call each in a message.
        name: What the user typed.
        choose_fn: Says what is x and y, given the first record and its name.
        is_array_record: ArrayRecord files; else TFRecord.
        size: Height and width that all images are brought to; None if they have one size.

    Returns:
        The source, labelled if the choice has labels.

    Raises:
        DataError: Damaged files, records without those features, or labels that are none.
        NothingToScan: No records.
    """
    choice: Choice | None = None
    survey = Survey(name, size)
    labels: list[int | str] = []
    first: Array | None = None
    index = _Index(paths, names, is_array_record)
    for label, data in index:
        features = parse(data, label)
        if choice is None:
            choice = choose_fn(features, label)
            survey = Survey(name, size, is_colour=choice.is_colour)
        if choice.y is not None:
            labels.append(_label(data, features, choice.y, label))
        if choice.is_image:
            survey.add(pixels.look(_bytes(data, features, choice.x, label), label), label)
        elif first is None:
            first = _numbers(data, features, choice, label)
    if choice is None:
        raise NothingToScan(f"{name}: holds no records; give data with rows")
    column = _column(index.records(), choice, survey, first)
    is_embedding = not choice.is_image and is_embedding_name(choice.x)
    source = ColumnSource(name, column, is_embedding=is_embedding)
    if choice.y is not None:
        source = source.with_labels(*_to_labels(labels, choice, name))
    return Read(source, index.counts)


def _column(records: Records, choice: Choice, survey: Survey, first: Array | None) -> Column:
    if choice.is_image:
        return survey.column(records, lambda d, n: _bytes(d, parse(d, n), choice.x, n))
    row = np.empty(0) if first is None else first
    return DecodedColumn(
        records, lambda d, n: _numbers(d, parse(d, n), choice, n), row.shape, row.dtype
    )


class _Index:
    """Names and bytes of all records, once in order; afterwards, where they are."""

    def __init__(self, paths: Sequence[Path], names: Sequence[str], is_array_record: bool) -> None:
        self._paths, self._names = paths, names
        self._records = ArrayRecords(paths, names) if is_array_record else None
        self.counts: list[int] = [] if self._records is None else self._records.counts
        self._offset: list[int] = []
        self._size: list[int] = []

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        if self._records is not None:
            for row, data in enumerate(self._records):
                yield self._records.name(row), data
            self._records.close()
            return
        for path, name in zip(self._paths, self._names, strict=True):
            self.counts.append(0)
            for offset, data in tfrecord.records(path, name):
                yield f"{name}: record {self.counts[-1]}", data
                self.counts[-1] += 1
                self._offset.append(offset)
                self._size.append(len(data))

    def records(self) -> Records:
        if self._records is not None:
            return self._records
        return Spans(
            self._paths, Numbered(self._names, self.counts),
            np.repeat(np.arange(len(self._paths)), self.counts),
            np.array(self._offset, np.int64), np.array(self._size, np.int64),
        )  # fmt: skip


def _get(features: dict[str, Feature], key: str, name: str) -> Feature:
    if key not in features:
        raise DataError(
            f"{name}: has no feature {quote(key)}; it holds {listing(describe(features))}; make "
            "the records alike"
        )
    return features[key]


def _bytes(data: bytes, features: dict[str, Feature], key: str, name: str) -> bytes:
    feature = _get(features, key, name)
    if feature.kind != "bytes" or len(feature.spans) != 1:
        raise DataError(
            f"{name}: feature {quote(key)} has {len(feature.spans)} values of kind {feature.kind}; "
            "expected one image as bytes"
        )
    start, stop = feature.spans[0]
    return data[start:stop]


def _numbers(data: bytes, features: dict[str, Feature], choice: Choice, name: str) -> Array:
    feature = _get(features, choice.x, name)
    label = f"{name}: feature {quote(choice.x)}"
    if feature.kind not in ("float", "int64"):
        raise DataError(f"{label} is of kind {feature.kind}; store numbers")
    try:
        values = (floats if feature.kind == "float" else integers)(data, feature)
    except ValueError as error:
        raise DataError(f"{label}: damaged ({error}); make the file again") from error
    dtype = np.dtype(choice.dtype or values.dtype)
    shape = choice.shape or values.shape
    if values.size != np.prod(shape, dtype=object):
        raise DataError(f"{label} has {values.size} values, its shape is {shape}; make it again")
    if values.dtype.kind == "i" and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if values.min(initial=0) < limits.min or values.max(initial=0) > limits.max:
            raise DataError(f"{label} has values outside {dtype}; make the file again")
    return values.astype(dtype).reshape(shape)


def _label(data: bytes, features: dict[str, Feature], key: str, name: str) -> int | str:
    feature = _get(features, key, name)
    label = f"{name}: label {quote(key)}"
    try:
        if feature.kind == "int64":
            values: list[Any] = integers(data, feature).tolist()
        elif feature.kind == "bytes":
            values = [data[start:stop].decode() for start, stop in feature.spans]
        else:
            values = []
    except ValueError as error:
        raise DataError(f"{label}: damaged ({error}); make the file again") from error
    if len(values) != 1:
        raise DataError(
            f"{label} has {len(values)} values of kind {feature.kind}; give one integer or text"
        )
    found: int | str = values[0]
    return found


def _to_labels(values: list[int | str], choice: Choice, name: str) -> Labels:
    texts = sum(isinstance(each, str) for each in values)
    if 0 < texts < len(values):
        raise DataError(f"{name}: {texts} of {len(values)} labels are text; make them alike")
    if texts:
        return encode_labels(np.array(values, object), rows=len(values), name=name)
    numbers = check_labels(np.array(values, np.int64), rows=len(values), name=name)
    names = choice.class_names
    if names is not None and numbers.max(initial=0) >= len(names):
        row = int(numbers.argmax())
        raise DataError(
            f"{name}: label of row {row} is {numbers[row]}, and there are {len(names)} classes; "
            "prepare the data again"
        )
    return Labels(numbers, names)
