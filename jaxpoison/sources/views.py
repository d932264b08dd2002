"""Some rows of a source, as a source: by number, or all but a few."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from jaxpoison._check import NothingToScan, UsageError

from .base import Array, Schema, Source, check_range, fingerprint_of


class Subset:
    """The rows of a source in a given order.

    Cost: one read for each run of consecutive row numbers; on a compressed source, blocks that
    go backwards start its stream again.
    """

    def __init__(self, source: Source, rows: Array) -> None:
        """Keep the row numbers.

        Args:
            source: Any source.
            rows: [m] integers in ``0..n-1``, in the order wanted.

        Raises:
            UsageError: Not integers, or outside the source.
            NothingToScan: No rows are left.
        """
        self.source = source
        self.kept = check_rows(rows, len(source), source.name)
        if not self.kept.size:
            raise NothingToScan(
                f"{source.name}: none of its {len(source)} rows are left; keep some"
            )
        labels = source.labels()
        self._labels = None if labels is None else labels[self.kept]
        self._fingerprint: str | None = None

    @property
    def name(self) -> str:
        """The name of the whole source."""
        return self.source.name

    @property
    def schema(self) -> Schema:
        """The schema of the whole source."""
        return self.source.schema

    def __len__(self) -> int:
        """Number of rows kept."""
        return len(self.kept)

    def read(self, start: int, stop: int) -> dict[str, Array]:
        """Rows ``start`` to ``stop`` of those kept."""
        check_range(start, stop, len(self), self.name)
        rows = self.kept[start:stop]
        order = np.argsort(rows, kind="stable")  # forward through the source
        ordered = rows[order]
        x = np.empty((len(rows), *self.schema.shape), self.schema.dtype)
        cuts = np.flatnonzero(np.diff(ordered) != 1) + 1
        bounds = [0, *cuts.tolist(), len(rows)]
        for low, high in pairwise(bounds):
            if low < high:
                first = int(ordered[low])
                x[order[low:high]] = self.source.read(first, first + high - low)["x"]
        block = {"x": x}
        if self._labels is not None:
            block["y"] = self._labels[start:stop]
        return block

    def labels(self) -> Array | None:
        """Labels of the rows kept [m] int64, or None."""
        return self._labels

    def fingerprint(self) -> str:
        """Content hash of the rows kept, equal to that of a file holding just them."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self)
        return self._fingerprint


def is_embedding(source: Source) -> bool:
    """Whether the rows are what a network made of the inputs, as their name in the data says."""
    while isinstance(source, Subset):
        source = source.source
    return bool(getattr(source, "is_embedding", False))


class DropRows(Subset):
    """A source without some rows; ``kept`` [m] maps its row numbers to those of the whole."""

    def __init__(self, source: Source, rows: Array) -> None:
        """Leave out the given row numbers (any order, repetitions allowed).

        Raises:
            UsageError: Not integers, or outside the source.
            NothingToScan: No rows are left.
        """
        stays = np.ones(len(source), dtype=bool)
        stays[check_rows(rows, len(source), source.name)] = False
        super().__init__(source, np.flatnonzero(stays))


def check_rows(rows: Array, total: int, name: str) -> Array:
    """Row numbers as int64 [m].

    Raises:
        UsageError: Not integers, not a list, or outside ``0..total-1``.
    """
    array = np.asarray(rows)
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UsageError(
            f"{name}: row numbers have shape {array.shape} and type {array.dtype}; give one list "
            "of integers (np.flatnonzero(mask) for a mask)"
        )
    if int(array.min()) < 0 or int(array.max()) >= total:
        wrong = int(array.min()) if int(array.min()) < 0 else int(array.max())
        raise UsageError(f"{name}: row number {wrong} is outside 0..{total - 1}; give others")
    return array.astype(np.int64)
