"""A folder of shards: one format, sorted names, one schema."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np

from jaxpoison._check import DataError, NothingToScan

from .base import Array, ColumnSource, convert, listing, whole
from .labels import Labels, check_labels, number_names
from .spill import sharing
from .table import ending_of

OpenFile = Callable[[Path, str, bool], ColumnSource]


class ShardsColumn:
    """Shards one after another; only the shard being read keeps its file open."""

    def __init__(self, shards: list[ColumnSource]) -> None:
        """The shards agree in kind and shape; ``read`` converts what they store."""
        self._columns = [shard.column for shard in shards]
        self._kind = shards[0].schema.kind
        self._starts = [0, *accumulate(len(shard) for shard in shards)]
        self._last = 0
        self.shape: tuple[int, ...] = (self._starts[-1], *shards[0].column.shape[1:])
        self.dtype = np.dtype(shards[0].schema.dtype)

    def read(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop``, across shards."""
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        done = 0
        while done < len(rows):
            first = self._starts[shard]
            low, high = start + done - first, min(stop, self._starts[shard + 1]) - first
            self._enter(shard)
            part = convert(self._columns[shard].read(low, high), self._kind)
            rows[done : done + len(part)] = part
            done += len(part)
            shard += 1
        return rows

    def _enter(self, shard: int) -> None:
        previous, self._last = self._last, shard
        if previous != shard:
            self._columns[previous].close()

    def close(self) -> None:
        """Close every shard."""
        for column in self._columns:
            column.close()


def open_shards(
    folder: Path,
    name: str,
    *,
    known: tuple[str, ...],
    open_fn: OpenFile,
    labelled: bool,
    exclude: Path | None = None,
) -> ColumnSource:
    """All shards of a folder, in the sorted order of their names.

    Args:
        folder: Holds shards of one format; other files are left alone.
        name: What the user typed.
        known: Endings that count as shards.
        open_fn: Opens one file, given path, name and whether it must be labelled.
        labelled: Whether each shard must bring its labels.
        exclude: A file in the folder that is not a shard (the labels).

    Returns:
        The source over all rows.

    Raises:
        DataError: An empty folder, mixed formats, or a shard that differs, which is named.
        NothingToScan: No rows in any shard.
    """
    entries = sorted(e for e in folder.iterdir() if e.name[0] not in "._")
    paths = [e for e in entries if ending_of(e.name) in known and e.is_file()]
    paths = [e for e in paths if exclude is None or e.resolve() != exclude.resolve()]
    if not paths:
        seen = f"holds {listing([e.name for e in entries])}" if entries else "is empty"
        raise DataError(f"{name}: the folder {seen}; put shards in it that end in {known}")
    by_suffix = {ending_of(path.name): path.name for path in reversed(paths)}
    if len(by_suffix) > 1:
        raise DataError(
            f"{name}: the folder mixes formats ({listing(sorted(by_suffix.values()))}); "
            "keep one format a folder"
        )
    if labelled and [path.name for path in paths] == ["x.npy", "y.npy"]:
        raise DataError(
            f"{name}: the folder holds a pair x.npy, y.npy, not shards; give x.npy as the data and "
            "y.npy as the labels"
        )
    return join_shards(paths, name, open_fn=open_fn, labelled=labelled)


def join_shards(paths: list[Path], name: str, *, open_fn: OpenFile, labelled: bool) -> ColumnSource:
    """Files of one format as one source, in the order given.

    Args:
        paths: The files.
        name: What the user typed.
        open_fn: Opens one file, given path, name and whether it must be labelled.
        labelled: Whether each file must bring its labels.

    Returns:
        The source over all rows.

    Raises:
        DataError: A file that differs from the first, which is named.
        NothingToScan: No rows in any of them.
    """
    shards: list[ColumnSource] = []
    with sharing():
        for path in paths:
            try:
                shard = open_fn(path, f"{name}/{path.name}", labelled)
            except NothingToScan:  # writers leave empty shards behind
                continue
            if shards:
                _compare(shards[0], shard)
            shards.append(shard)
            shard.close()
    if not shards:
        raise NothingToScan(f"{name}: no rows in {len(paths)} shards; give data with rows")
    labels = _join_labels(shards, name)
    source = ColumnSource(name, ShardsColumn(shards), is_embedding=shards[0].is_embedding)
    return source if labels is None else source.with_labels(*labels)


def _compare(first: ColumnSource, shard: ColumnSource) -> None:
    for field in ("kind", "shape", "dtype"):
        mine, theirs = getattr(shard.schema, field), getattr(first.schema, field)
        if mine != theirs:
            raise DataError(
                f"{shard.name}: {field} {mine} differs from {theirs} of {whole(first.name)}; "
                "make the shards alike, or scan them apart"
            )
    if (shard.schema.class_names is None) != (first.schema.class_names is None):
        raise DataError(
            f"{shard.name}: its labels are {'numbers' if first.schema.class_names else 'text'}, "
            f"those of {whole(first.name)} are not; make the shards alike"
        )


def _join_labels(shards: list[ColumnSource], name: str) -> Labels | None:
    """One numbering for all shards: text labels were numbered in each shard apart."""
    held = [shard.labels() for shard in shards]
    alike = shards[0].schema.class_names
    if alike and all(shard.schema.class_names == alike for shard in shards):
        # Declared names keep their numbers, whether all of them occur or not.
        return Labels(np.concatenate([part for part in held if part is not None]), alike)
    parts: list[Array] = []
    names: list[str] = []
    for shard, part in zip(shards, held, strict=True):
        if part is None:
            return None
        parts.append(part + len(names))
        names.extend(shard.schema.class_names or ())
    if names:
        rows = sum(map(len, parts))
        return number_names(np.concatenate(parts), names, rows=rows, name=name)
    values = np.concatenate(parts)
    return Labels(check_labels(values, rows=len(values), name=name), None)
