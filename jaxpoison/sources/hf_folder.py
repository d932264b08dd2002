"""Folders of Hugging Face's ``save_to_disk``, read without its package.

Only the files that ``state.json`` lists are read: the folder may also hold cached ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxpoison._check import DataError

from .base import ColumnSource, listing, parts_of, quote
from .columns import readable
from .folder import join_shards

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_MAX_JSON = 8 << 20  # bytes


def holds_saved(folder: Path) -> bool:
    """Whether a folder is a saved data set, or several splits of one."""
    return (folder / _STATE).is_file() or (folder / _SPLITS).is_file()


def _read(path: Path, name: str) -> dict[str, Any]:
    with readable(name), open(path, "rb") as file:
        found = json.loads(file.read(_MAX_JSON))
    if not isinstance(found, dict):
        raise DataError(f"{name}: {path.name} is damaged; save the data set again")
    return found


def _choose(folder: Path, name: str, split: str | None) -> Path:
    """The folder of a split."""
    if not (folder / _SPLITS).is_file():
        if split is not None and _read(folder / _STATE, name).get("_split") != split:
            raise DataError(f"{name}: the folder is one data set without splits; remove '#{split}'")
        return folder
    splits = _read(folder / _SPLITS, name).get("splits")
    if not isinstance(splits, list) or not all(isinstance(each, str) for each in splits):
        raise DataError(f"{name}: {_SPLITS} names no splits; save the data set again")
    wanted = splits[0] if split is None and len(splits) == 1 else split
    if wanted not in splits:
        base = name if split is None else name.rpartition("#")[0]
        step = parts_of(base, splits)
        raise DataError(f"{name}: holds the splits {listing(splits)}; write {step}")
    inner = _inside(folder, str(wanted), name)
    if not (inner / _STATE).is_file():
        raise DataError(f"{name}: the folder of the split holds no {_STATE}; copy it again")
    return inner


def _inside(folder: Path, entry: str, name: str) -> Path:
    """A file or folder that lies directly in a folder: the names come from the data."""
    if entry in ("", ".", "..") or "/" in entry or "\\" in entry or "\0" in entry:
        raise DataError(f"{name}: names {quote(entry)}, which lies elsewhere; save it again")
    return folder / entry


def _files(folder: Path, name: str) -> list[Path]:
    state = _read(folder / _STATE, name)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"{name}: its rows are chosen by a table of indices; save it again after "
            "flatten_indices()"
        )
    try:
        entries = [str(each["filename"]) for each in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{name}: {_STATE} lists no data files; save it again") from error
    paths = [_inside(folder, entry, name) for entry in entries]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{name}: {quote(path.name)} is missing; copy the folder again")
    if not paths:
        raise DataError(f"{name}: {_STATE} lists no data files; save it again")
    return paths


def open_saved(path: Path, name: str, *, split: str | None, labelled: bool) -> ColumnSource:
    """A folder of ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``.

    Args:
        path: The folder.
        name: What the user typed.
        split: Which one of a DatasetDict.
        labelled: Whether the label column is read, and must be there.

    Returns:
        The source: columns as in an Arrow file; the names of a ClassLabel are those of the
        classes.

    Raises:
        DataError: No such split, missing files, or anything wrong with a file.
        UsageError: It holds images and Pillow is not installed.
        NothingToScan: No rows.
    """
    from .arrow import open_arrow  # pyarrow is heavy, and every folder is asked for its format

    def open_file(file: Path, label: str, is_labelled: bool) -> ColumnSource:
        return open_arrow(file, label, labelled=is_labelled)

    folder = _choose(path, name, split)
    return join_shards(_files(folder, name), name, open_fn=open_file, labelled=labelled)
