"""Names of archives and record files: their format, and which of them are one data set."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import overload

from jaxpoison._check import DataError

from .base import listing, parts_of, quote

_OF = re.compile(r"(?P<stem>.*?)-(?P<number>\d{5,})-of-(?P<total>\d{5,})(?P<end>\.\w+)?")
_COMPRESSED = re.compile(r".*\.(tar\.(gz|bz2?|xz|zst|lz4?|lzma|z|br)|tgz|tbz2?|txz|tzst)", re.I)
_RECORDS = re.compile(r".*\.(tfrecords?|array_record)(-\d{5,}-of-\d{5,})?", re.IGNORECASE)
_RECORDS_LAST = re.compile(r".*-\d{5,}-of-\d{5,}\.(tfrecords?|array_record)", re.IGNORECASE)
_NUMBERED = re.compile(r"(?P<stem>.*?)[-_.]?\d+(?P<end>\.\w+)")


def is_tar(path: Path) -> bool:
    """Whether a file is a tar archive by its name; compressed ones get an error when opened."""
    is_named = path.name.lower().endswith(".tar") or is_compressed(path)
    return is_named and path.name[0] not in "._" and path.is_file()


def is_compressed(path: Path) -> bool:
    """Whether a file name is that of a compressed tar archive."""
    return _COMPRESSED.fullmatch(path.name) is not None


def record_format(path: Path) -> str | None:
    """Whether a file holds records by its name: "tfrecord", "array_record", or None."""
    match = _RECORDS_LAST.fullmatch(path.name) or _RECORDS.fullmatch(path.name)
    if match is None or path.name[0] in "._" or not path.is_file():
        return None
    return match[1].lower().removesuffix("s")


def choose_shards(paths: list[Path], name: str, split: str | None) -> list[Path]:
    """The shards of one data set, in order.

    Args:
        paths: Sorted, of one format. ``a-00000-of-00002``, ``a-000000.tar`` and so on belong
            together by what is in front of the number.
        name: What the user typed.
        split: The data set whose name is or ends with this; None if there is only one.

    Returns:
        Its shards.

    Raises:
        DataError: Several data sets or none of that name, or a shard that is missing.
    """
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(_group(path.name), []).append(path)
    if split is not None:
        fits = [g for g in groups if g == split or re.fullmatch(rf".*[-_.]{re.escape(split)}", g)]
    else:
        fits = list(groups)
    if len(fits) != 1:
        base = name if split is None else name.rpartition("#")[0]
        known = parts_of(base, list(groups))
        what = f"{len(fits)} data sets" if fits or split is None else f"no shards of {quote(split)}"
        raise DataError(
            f"{name}: the folder holds {what}; its shards are named {listing(list(groups))}; "
            f"write {known}"
        )
    found = groups[fits[0]]
    _check_complete(found, name)
    return found


def _group(file_name: str) -> str:
    """What comes before the number and the ending."""
    match = _OF.fullmatch(file_name) or _NUMBERED.fullmatch(file_name)
    stem = match["stem"] if match else file_name
    return re.sub(r"\.(tar|tfrecords?|array_record)$", "", stem, flags=re.IGNORECASE)


def _check_complete(paths: list[Path], name: str) -> None:
    """Shards that say how many there are must all be there."""
    matches = [(path.name, _OF.fullmatch(path.name)) for path in paths]
    totals = {int(match["total"]) for _, match in matches if match}
    if not totals:
        return
    numbers = [int(match["number"]) for _, match in matches if match]
    total = max(totals)
    if len(totals) > 1 or len(numbers) != len(paths) or sorted(numbers) != list(range(total)):
        lacking = sorted(set(range(min(total, 1 << 20))) - set(numbers))[:4]
        raise DataError(
            f"{name}: shards are missing or belong to different sets: {len(paths)} files, of "
            f"which the names say there are {total}"
            + (f" (no {', '.join(map(str, lacking))})" if lacking else "")
            + "; copy the rest, or remove what does not belong"
        )


class Numbered(Sequence[str]):
    """Names of records by file and number, made when they are asked for."""

    def __init__(self, files: Sequence[str], counts: Sequence[int]) -> None:
        """``counts`` says how many records each of the files has."""
        self._files = files
        self._starts = [0, *accumulate(counts)]

    def __len__(self) -> int:
        """Number of records."""
        return self._starts[-1]

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        """The name of a record."""
        if isinstance(row, slice):
            return [self[each] for each in range(len(self))[row]]
        file = bisect_right(self._starts, row) - 1
        return f"{self._files[file]}: record {row - self._starts[file]}"
