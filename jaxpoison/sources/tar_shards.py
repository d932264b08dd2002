"""Tar archives of samples: ``KEY.png`` beside ``KEY.cls`` or ``KEY.json``, or ``CLASS/NAME.png``.

Members are read where they lie; nothing is extracted and nothing unpickled.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from jaxpoison._check import DataError, NothingToScan

from .base import Array, Column, ColumnSource, listing, quote
from .columns import readable
from .decoded import DecodedColumn
from .images import Size, image_column
from .labels import Labels, encode_labels
from .npy import Header, check_size, read_header
from .pixels import ENDINGS, OTHER_ENDINGS
from .shard_names import choose_shards, is_tar
from .spans import Spans, shown
from .tar_index import Member, members, open_for_walk

_PICKLED = (".pyd", ".pickle", ".pkl", ".pth", ".pt", ".joblib")
_LABEL_BYTES = {"cls": 1 << 12, "json": 1 << 20}
_LABEL_NAMES = ("label", "cls", "y", "target", "class")
_HEADER_BYTES = 1 << 14

Label = int | str


class _Data(NamedTuple):
    """The image or the array of one row."""

    member: Member
    is_array: bool
    label: Label | None


def open_tar(
    path: Path, name: str, *, split: str | None = None, size: Size | None = None, labelled: bool
) -> ColumnSource:
    """A tar archive, or a folder of them, whose samples are the rows in the order stored.

    Args:
        path: The archive or the folder.
        name: What the user typed.
        split: How the names of the archives in a folder begin; None for all.
        size: Height and width that all images are brought to; None if they have one size.
        labelled: Whether labels are wanted, and must be there.

    Returns:
        The source. Labels that are all integers are class numbers; others are numbered in the
        sorted order of their text.

    Raises:
        DataError: Archives or members that are damaged, compressed or not plain files, pickles,
            keys that occur twice, rows without a label, images and arrays mixed.
        NothingToScan: No images and no arrays.

    **Cost**: One pass over the headers of the members and of the images; about 200 bytes a row
    are kept.
    """
    paths = [path]
    if path.is_dir():
        with readable(name):
            found = sorted(e for e in path.iterdir() if is_tar(e))
        paths = choose_shards(found, name, split)
    rows: list[_Data] = []
    shards: list[int] = []
    labels: list[str] = []
    for number, shard in enumerate(paths):
        label = name if shard == path else f"{name}/{shown(shard.name)}"
        with readable(label), open_for_walk(shard) as file:
            held = _read_shard(file, shard, label, labelled)
        rows += held
        shards += [number] * len(held)
        labels += [f"{label}: member {quote(each.member.name)}" for each in held]
    source = ColumnSource(name, _column(paths, shards, rows, labels, name, size))
    return source.with_labels(*_to_labels(rows, labels, name)) if labelled else source


def _column(
    paths: list[Path], shards: list[int], rows: list[_Data], labels: list[str], name: str,
    size: Size | None,
) -> Column:  # fmt: skip
    if not rows:
        raise NothingToScan(f"{name}: holds no images and no .npy arrays; give some")
    mixed = next((i for i, each in enumerate(rows) if each.is_array != rows[0].is_array), None)
    if mixed is not None:
        raise DataError(f"{labels[mixed]}: arrays and images are mixed; keep them apart")
    spans = Spans(
        paths, labels, np.array(shards), np.array([each.member.offset for each in rows]),
        np.array([each.member.size for each in rows]),
    )  # fmt: skip
    if rows[0].is_array:
        return _array_column(spans, rows)
    return image_column(spans, name, resize=size)


def _read_shard(file: IO[bytes], path: Path, name: str, labelled: bool) -> list[_Data]:
    data: list[tuple[str, _Data]] = []
    labels: dict[str, Label] = {}
    for member in members(file, path, name):
        folder, _, base = member.name.rpartition("/")
        if not base or base[0] in "._":
            continue
        stem, _, ending = base.partition(".")
        key, ending = f"{folder}/{stem}", ending.lower()
        last = f".{ending.rpartition('.')[2]}"
        if last in _PICKLED:
            raise DataError(
                f"{name}: member {quote(member.name)} is a pickle, which runs code when it is "
                "loaded; store .npy and .cls members"
            )
        if last in OTHER_ENDINGS:
            raise DataError(
                f"{name}: member {quote(member.name)}: images that end in {last} are not read; "
                "store PNG or JPEG"
            )
        if ending in _LABEL_BYTES and labelled:
            if key in labels:
                raise DataError(_twice(name, member, key))
            labels[key] = _read_label(file, member, ending, name)
        elif last in ENDINGS or last == ".npy":
            data.append((key, _Data(member, last == ".npy", None)))
    return _join(data, labels, name) if labelled else [each for _, each in data]


def _twice(name: str, member: Member, key: str) -> str:
    return (
        f"{name}: member {quote(member.name)}: the key {quote(key.lstrip('/'))} has two images, "
        "arrays or labels; a key ends at the first dot and stands for one row"
    )


def _join(data: list[tuple[str, _Data]], labels: dict[str, Label], name: str) -> list[_Data]:
    """Rows with their labels: from members beside them, or from the folders in the archive."""
    seen: set[str] = set()
    rows = []
    for key, each in data:
        label: Label | None = labels.get(key)
        if labels and key in seen:
            raise DataError(_twice(name, each.member, key))
        if not labels:
            label = key.rpartition("/")[0].rpartition("/")[2] or None
        if label is None:
            raise DataError(
                f"{name}: member {quote(each.member.name)} has no label; store KEY.cls or KEY.json "
                "with a label beside each, or CLASS/NAME, or give the labels apart (labels=)"
            )
        seen.add(key)
        rows.append(each._replace(label=label))
    lonely = next((key for key in labels if key not in seen), None)
    if lonely is not None:
        raise DataError(
            f"{name}: the key {quote(lonely.lstrip('/'))} has a label and no image or array; "
            "make the archive again"
        )
    return rows


def _read_label(file: IO[bytes], member: Member, ending: str, name: str) -> Label:
    label = f"{name}: member {quote(member.name)}"
    if not 0 < member.size <= _LABEL_BYTES[ending]:
        raise DataError(
            f"{label} holds {member.size} bytes; a label has 1 to {_LABEL_BYTES[ending]}"
        )
    file.seek(member.offset)
    raw = file.read(member.size)
    try:
        text = raw.decode().strip()
        if ending == "cls":
            return _number(text)
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{label}: is no label ({error}); make the archive again") from error
    found = values if isinstance(values, dict) else {}
    value = next((found[each] for each in _LABEL_NAMES if each in found), None)
    if type(value) not in (int, str):
        keys = listing([str(each) for each in found]) or "nothing"
        raise DataError(
            f"{label}: has no integer or text under {', '.join(_LABEL_NAMES)}; it holds {keys}"
        )
    return value if isinstance(value, int) else str(value)


def _number(text: str) -> Label:
    """A class number if the text is one, as it is written; else the text."""
    is_number = text.lstrip("-").isascii() and text.lstrip("-").isdigit() and len(text) <= 19
    return int(text) if is_number else text


def _to_labels(rows: list[_Data], labels: list[str], name: str) -> Labels:
    values = [each.label for each in rows]
    if all(isinstance(each, int) for each in values):
        try:
            array = np.array(values, np.int64)
        except OverflowError as error:
            raise DataError(
                f"{name}: a label is too large ({error}); number the classes from 0"
            ) from error
        return encode_labels(array, rows=len(rows), name=name)
    mixed = next((i for i, each in enumerate(values) if isinstance(each, int)), None)
    if mixed is not None:
        raise DataError(
            f"{labels[mixed]}: its label {quote(values[mixed])} is a number, others are text; "
            "make them alike"
        )
    return encode_labels(np.array(values, object), rows=len(rows), name=name)


def _array_column(spans: Spans, rows: list[_Data]) -> DecodedColumn:
    """Rows that are ``.npy`` members of one shape and type."""
    first: Header | None = None
    for row in range(len(spans)):
        label = spans.name(row)
        header = read_header(io.BytesIO(spans.head(row, _HEADER_BYTES)), label)
        check_size(header, rows[row].member.size - header.offset, label)
        first = first or header
        if header[:2] != first[:2]:
            raise DataError(
                f"{label}: has shape {header.shape} and type {header.dtype}, the first "
                f"{first.shape} and {first.dtype}; make them alike"
            )
    assert first is not None  # there is at least one row
    spans.close()
    return DecodedColumn(spans, _decode_array, first.shape, first.dtype)


def _decode_array(data: bytes, name: str) -> Array:
    header = read_header(io.BytesIO(data), name)
    check_size(header, len(data) - header.offset, name)
    values = np.frombuffer(data, header.dtype, offset=header.offset)
    if header.fortran:
        return values.reshape(header.shape[::-1]).T
    return values.reshape(header.shape)
