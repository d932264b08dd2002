"""Folders, archives and record files of images: which of them a path is, and ``@HEIGHTxWIDTH``."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from jaxpoison._check import DataError, UsageError

from . import table
from .base import ColumnSource, listing, quote
from .columns import readable
from .shard_names import is_compressed, is_tar, record_format

PREFIXES = ("images", "tfds")
_MAX_SIDE = 4096
_SIZED = re.compile(r"(?P<path>.+)@(?P<height>\d{1,6})x(?P<width>\d{1,6})", re.DOTALL)
_KINDS = ("images by class (CLASS/NAME.png)", "tar archives", "TFRecord or ArrayRecord shards")
# Modules and functions by name: what only some data needs is imported for that data alone.
_FOLDER, _TAR = ("image_folder", "open_image_folder"), ("tar_shards", "open_tar")
_RECORDS, _TFDS = ("record_files", "open_records"), ("tfds", "open_tfds")

Size = tuple[int, int]


def _module(name: str) -> Any:
    return importlib.import_module(f".{name}", __package__)


def holds(path: Path) -> bool:
    """Whether a path is in one of these formats: by its name, or by what a folder holds.

    Raises:
        DataError: A folder that holds several formats, or cannot be listed.
    """
    return _opener(path) is not None


def _opener(path: Path) -> tuple[str, str] | None:
    if not path.is_dir():
        return _by_name(path)
    with readable(str(path)):
        entries = sorted(path.iterdir())
    if {"dataset_info.json", "features.json"} <= {entry.name for entry in entries}:
        return _TFDS
    named = [(entry, opener) for entry in entries if (opener := _by_name(entry))]
    plain = {opener: entry.name for entry, opener in named if not is_compressed(entry)}
    others = (e.name for e in entries if table.format_of_file(e) is not None and e.is_file())
    other = next(others, None)
    if other is not None and not plain:
        return None
    if _RECORDS not in plain and _module("image_folder").holds_images(path):
        if plain:
            raise DataError(
                f"{path}: holds folders of images and the archive {quote(plain[_TAR])}; keep them "
                "apart"
            )
        return _FOLDER  # a compressed archive is what they came in
    if len(plain) + (other is not None) > 1:
        mixed = listing([*plain.values(), *([other] if other else [])])
        raise DataError(f"{path}: the folder mixes formats ({mixed}); keep one format a folder")
    return next(iter(plain), named[0][1] if named else None)


def _by_name(path: Path) -> tuple[str, str] | None:
    if is_tar(path):
        return _TAR
    return _RECORDS if record_format(path) else None


def open_media(
    path: Path, name: str, *, split: str | None, labelled: bool, size: Size | None = None
) -> ColumnSource:
    """A path that ``holds`` knows.

    Args:
        path: A file or a folder that is there.
        name: What the user typed.
        split: Of a folder, or None.
        labelled: Whether labels are wanted, and must be there.
        size: Height and width that all images are brought to; None if they have one size.

    Returns:
        The source.

    Raises:
        UsageError: A split of a single file.
        DataError: A path of no such format, or anything wrong with what it holds.
        NothingToScan: No rows.
    """
    opener = _opener(path)
    if opener is None and path.is_dir():
        opener = _FOLDER  # asked for by its prefix; it says what is missing
    if opener is None:
        raise DataError(f"{name}: is no folder and no archive of images; give {', '.join(_KINDS)}")
    if split is not None and not path.is_dir():
        raise UsageError(f"{name}: '#{split}' chooses a split of a folder; remove it")
    source: ColumnSource = getattr(_module(opener[0]), opener[1])(
        path, name, split=split, size=size, labelled=labelled
    )
    return source


def open_prefixed(prefix: str, rest: str, name: str, *, labelled: bool) -> ColumnSource:
    """``images:PATH`` or ``tfds:NAME``, with ``@HEIGHTxWIDTH`` and ``#SPLIT`` behind it.

    Args:
        prefix: "images" or "tfds".
        rest: What follows it.
        name: What the user typed.
        labelled: Whether labels are wanted, and must be there.

    Returns:
        The source.

    Raises:
        UsageError: A size that is none.
        DataError: Missing or damaged data.
        NothingToScan: No rows.
    """
    from .formats import locate, split_name

    path, split = split_name(rest)
    size: Size | None = None
    match = _SIZED.fullmatch(str(path))
    if match and not path.exists():
        path, size = Path(match["path"]), (int(match["height"]), int(match["width"]))
        if not all(1 <= side <= _MAX_SIDE for side in size):
            raise UsageError(
                f"{quote(name)}: asks for images of {size[0]} x {size[1]}; height and width are 1 "
                f"to {_MAX_SIDE}"
            )
    if prefix == "tfds":
        folder = _module("tfds").find(str(path), name)
        return open_media(folder, name, split=split, size=size, labelled=labelled)
    return open_media(locate(path, name), name, split=split, size=size, labelled=labelled)
