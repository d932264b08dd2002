"""Data sets prepared by tensorflow-datasets, read from their folder without that package.

Nothing is downloaded and no code of a data set is run: the folder says by itself what it holds.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from jaxpoison._check import DataError, UsageError

from .base import ColumnSource, listing, parts_of, quote
from .columns import readable
from .example import Feature
from .examples import Choice, read_examples
from .images import Size
from .spans import shown
from .tfds_features import choose_features

_NAME = re.compile(r"[A-Za-z0-9][\w.\-+]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_MAX_METADATA = 64 << 20
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_FILES = ("dataset_info.json", "features.json")


class _Split(NamedTuple):
    """The shards of a split, as the folder declares them."""

    name: str
    lengths: list[int]
    template: str


def is_prepared(folder: Path) -> bool:
    """Whether a folder is a prepared data set (of one version)."""
    return all((folder / each).is_file() for each in _FILES)


def find(which: str, name: str) -> Path:
    """The folder of ``NAME[:CONFIG][:VERSION]`` below TFDS_DATA_DIR or ~/tensorflow_datasets.

    Args:
        which: What follows "tfds:", without a split; "/" is as good as ":".
        name: What the user typed.

    Returns:
        The folder; without a version, that of the highest.

    Raises:
        UsageError: A name that is none.
        DataError: Not prepared there; the message holds the command that prepares it.
    """
    parts = re.split("[:/]", which)
    if not 1 <= len(parts) <= 3 or not all(_NAME.fullmatch(part) for part in parts):
        raise UsageError(
            f"{quote(name)}: write tfds:NAME, tfds:NAME:CONFIG or tfds:NAME:CONFIG:VERSION"
        )
    given = os.environ.get("TFDS_DATA_DIR")
    top = Path(given or "~/tensorflow_datasets").expanduser()
    version = parts.pop() if len(parts) > 1 and _VERSION.fullmatch(parts[-1]) else None
    folder = top.joinpath(*parts)
    if not folder.is_dir():
        raise DataError(_unprepared(name, parts, folder))
    with readable(name):
        inner = sorted(each.name for each in folder.iterdir() if each.is_dir())
    versions = [each for each in inner if _VERSION.fullmatch(each)]
    if not versions and len(parts) == 1:  # one level of configs lies between
        configs = [each for each in inner if each[0] not in "._" and "incomplete" not in each]
        if len(configs) == 1:
            return find(":".join([*parts, configs[0], *([version] if version else [])]), name)
        if configs:
            known = " or ".join(f"tfds:{parts[0]}:{each}" for each in configs[:4])
            raise DataError(f"{name}: has {len(configs)} configs in {folder}; write {known}")
    if version is None and versions:
        version = max(versions, key=lambda each: [int(part) for part in each.split(".")])
    if version is None or not is_prepared(folder / version):
        raise DataError(_unprepared(name, parts, folder / (version or "")))
    return folder / version


def _unprepared(name: str, parts: list[str], folder: Path) -> str:
    builder = "/".join(parts)
    return (
        f"{name}: is not prepared (looked in {quote(folder, 300)}), and nothing is ever "
        f"downloaded; prepare it: tfds build {builder} --file_format=array_record, or python -c "
        f'"import tensorflow_datasets as tfds; tfds.builder({builder!r}, '
        "file_format='array_record').download_and_prepare()\", or set TFDS_DATA_DIR"
    )


def open_tfds(
    path: Path, name: str, *, split: str | None = None, size: Size | None = None, labelled: bool
) -> ColumnSource:
    """A prepared data set, from its folder.

    Args:
        path: Holds ``dataset_info.json`` and ``features.json``.
        name: What the user typed.
        split: Name of a split; None for the only one, or "train".
        size: Height and width that all images are brought to; None if they have one size.
        labelled: Whether labels are wanted, and must be there.

    Returns:
        The source: x and y are the supervised keys, or the only image and the only class label.

    Raises:
        DataError: Damaged metadata or shards, other rows than declared, no such split, or
            features that are no images and no numbers.
        UsageError: A package that reads the files is not installed.

    **Cost**: One pass over all bytes; 16 bytes a row are kept.
    """
    info, features = (_read_json(path / each, f"{name}/{each}") for each in _FILES)
    held = _choose_split(info, name, split)
    kind = str(info.get("fileFormat") or "tfrecord")
    paths = _shards(path, name, info, held, kind)
    names = [f"{name}/{shown(each.name)}" for each in paths]
    if kind not in ("array_record", "tfrecord"):
        raise DataError(_other_format(paths, name, kind, held))
    choice = choose_features(path, info, features, name, labelled=labelled)

    def choose(_: dict[str, Feature], label: str) -> Choice:
        return choice

    is_array_record = kind == "array_record"
    read = read_examples(paths, names, name, choose, is_array_record=is_array_record, size=size)
    if read.counts != held.lengths:
        at = next(i for i, count in enumerate(read.counts) if count != held.lengths[i])
        raise DataError(
            f"{names[at]}: declares {held.lengths[at]} rows and holds {read.counts[at]}; prepare "
            "the data again"
        )
    return read.source


def _read_json(path: Path, name: str) -> dict[str, Any]:
    with readable(name):
        if path.stat().st_size > _MAX_METADATA:
            raise DataError(f"{name}: has more than {_MAX_METADATA} bytes; prepare the data again")
        raw = path.read_bytes()
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: damaged ({error}); prepare the data again") from error
    if not isinstance(values, dict):
        raise DataError(f"{name}: holds no object; prepare the data again")
    return values


def _choose_split(info: dict[str, Any], name: str, split: str | None) -> _Split:
    damaged = DataError(f"{name}/dataset_info.json: damaged splits; prepare the data again")
    listed = info.get("splits")
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise damaged
    splits = {str(each.get("name")): each for each in listed}
    if len(splits) != len(listed):
        raise damaged
    wanted = split or ("train" if len(splits) != 1 else next(iter(splits)))
    if wanted not in splits:
        base = name.rpartition("#")[0] if split else name
        known = parts_of(base, list(splits), 6) or "another set"
        raise DataError(f"{name}: no split {quote(wanted)}; write {known}")
    held = splits[wanted]
    try:
        lengths = [int(each) for each in held["shardLengths"]]
        template = str(held.get("filepathTemplate") or _TEMPLATE)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged from error
    return _Split(wanted, lengths, template)


def _shards(
    folder: Path, name: str, info: dict[str, Any], held: _Split, kind: str
) -> list[Path]:  # fmt: skip
    """The files of a split; a template that leads out of the folder finds none."""
    with readable(name):
        there = {each.name for each in folder.iterdir() if each.is_file()}
    total, paths = len(held.lengths), []
    for number in range(total):
        index, of = f"{number:05d}", f"{total:05d}"
        file = held.template
        for key, value in (
            ("DATASET", str(info.get("name", ""))), ("SPLIT", held.name), ("FILEFORMAT", kind),
            ("SHARD_X_OF_Y", f"{index}-of-{of}"), ("SHARD_INDEX", index), ("NUM_SHARDS", of),
        ):  # fmt: skip
            file = file.replace(f"${{{key}}}", value).replace(f"{{{key}}}", value)
        if file not in there:
            raise DataError(
                f"{name}: declares {total} shards of {quote(held.name)}, and {quote(file)} is not "
                f"among {listing(sorted(there))}; copy the rest, or prepare the data again"
            )
        paths.append(folder / file)
    return paths


def _other_format(paths: list[Path], name: str, kind: str, held: _Split) -> str:
    """Why a file format is not read; of Parquet, whose writer drops rows, how many there are."""
    counted = ""
    if kind == "parquet":
        from .arrow_files import decoding, open_arrow_file

        with decoding(name):
            found = sum(open_arrow_file(path, name).starts[-1] for path in paths)
        counted = f": {sum(held.lengths)} rows are declared, {found} are there"
    return (
        f"{name}: is stored as {quote(kind)}, which is not read{counted}; prepare it again with "
        "file_format='array_record'"
    )
