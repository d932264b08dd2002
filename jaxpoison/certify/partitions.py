"""Rows spread over subsets, each in an order that only its contents decide."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import HostArray

from ._canonical import as_labels, as_rows, sort_keys
from ._store import Rows
from ._types import Design
from .keys import ContentHash, KeyRule

LADDER = tuple(16 << i for i in range(21))
"""Capacities that subsets are padded to. Declared once: a capacity taken from the data would let
one subset change the shapes, and so the bits, of another."""

_REFERENCE_SEED = 1000000207
_GONE = -1


def rungs(sizes: HostArray, ladder: tuple[int, ...] = LADDER) -> HostArray:
    """Capacity of each subset: the first rung that holds it, 0 for an empty one.

    A function of the subset's own size and of nothing else.

    Args:
        sizes: [m] rows of each subset.
        ladder: Ascending capacities.

    Raises:
        UsageError: A ladder that does not ascend, or a subset above its last rung.
    """
    steps = np.asarray(ladder, np.int64)
    if not steps.size or steps[0] < 1 or (np.diff(steps) <= 0).any():
        raise UsageError(f"ladder is {ladder}; give ascending capacities above 0")
    sizes = np.asarray(sizes, np.int64)
    if sizes.size and sizes.max() > steps[-1]:
        raise UsageError(
            f"a subset has {sizes.max()} rows, the ladder ends at {steps[-1]}; add rungs to it"
        )
    return np.where(sizes > 0, steps[np.searchsorted(steps, sizes)], 0)


@lru_cache(maxsize=64)
def shifts_of(k: int, spread: int) -> tuple[int, ...]:
    """The d shifts of Finite Aggregation over ``k * spread`` cells, as the reference draws them.

    Reference: Wang, Levine and Feizi (2022), arXiv:2202.02628.
    """
    if spread == 1:
        return (0,)
    return tuple(random.Random(_REFERENCE_SEED).sample(range(k * spread), spread))


@dataclass(frozen=True, eq=False)
class Partitions:
    """Which rows lie in which subset. Rows have ids that no insertion or deletion changes.

    Attributes:
        design: How rows spread over subsets.
        cell: [n] int64 cell of each row, -1 for a deleted one.
        rows: [t] int64 ids; subset i is ``rows[offsets[i]:offsets[i + 1]]``, in canonical order
            (``sort_keys``: inputs from the last value to the first, then label).
        offsets: [m + 1] int64.
        key: The rule the cells came from, None where they came from elsewhere.
        store: The rows themselves, None where they were not given; ``insert`` needs them.
    """

    design: Design
    cell: HostArray
    rows: HostArray
    offsets: HostArray
    key: KeyRule | None = field(default=None, repr=False)
    store: Rows | None = field(default=None, repr=False)

    def subset(self, index: int) -> HostArray:
        """[s] ids of the rows of one subset."""
        return self.rows[self.offsets[index] : self.offsets[index + 1]]

    @property
    def sizes(self) -> HostArray:
        """[m] rows of each subset."""
        return np.diff(self.offsets)

    @property
    def num_empty(self) -> int:
        """Subsets without rows; their model votes for class 0 whatever it is shown."""
        return int((self.sizes == 0).sum())

    @property
    def x(self) -> HostArray:
        """[n, ...] inputs by id, those of deleted rows too."""
        return self._held().x

    @property
    def y(self) -> HostArray:
        """[n] labels by id, those of deleted rows too."""
        return self._held().y

    @property
    def ids(self) -> HostArray:
        """Ids of the rows that are there."""
        return np.flatnonzero(self.cell != _GONE)

    def digest(self) -> str:
        """Of row ids and offsets: equal for equal subsets in equal order."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.rows, self.offsets):
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()

    def touched(self, cells: HostArray) -> HostArray:
        """Ascending ids of the subsets that rows of these cells lie in."""
        shifts = np.asarray(self.design.shifts, np.int64)
        spread = np.asarray(cells, np.int64)[:, None] + shifts
        return np.unique(spread % self.design.num_subsets)

    def only(self, subsets: HostArray) -> Partitions:
        """The same partitions with every other subset emptied."""
        keep = np.zeros(self.design.num_subsets, bool)
        keep[subsets] = True
        inside = np.repeat(keep, self.sizes)
        return replace(self, rows=self.rows[inside], offsets=_offsets(self.sizes * keep))

    def insert(
        self, x: HostArray, y: HostArray, *, column: HostArray | None = None
    ) -> tuple[Partitions, HostArray]:
        """Adds rows; what ``partition`` of all the rows gives, subset by subset.

        Args:
            x: [m, ...] inputs.
            y: [m] labels.
            column: [m] key values where the key reads a column.

        Returns:
            The new partitions, where the rows have the ids n ... n + m - 1, and the ascending ids
            of the touched subsets: d for one row. All other subsets are as they were.

        Raises:
            UsageError: A rule by position, under which every subset would change, or no rows held.
            DataError: Rows unlike those held.

        **Cost**: O(n d) copied integers and a sort of the touched subsets; the first insertion
        copies the inputs once.
        """
        key = self._changeable("insert")
        store = self._held().append(np.asarray(x), np.asarray(y), column)
        if len(store) == len(self.cell):
            return self, np.empty(0, np.int64)
        start, total = len(self.cell), self.design.num_subsets
        fresh = slice(start, len(store))
        values = None if store.column is None else store.column[fresh]
        new = key.cells(store.x[fresh], store.y[fresh], total, values)
        ids = np.arange(start, len(store))
        shifts = np.asarray(self.design.shifts, np.int64)
        place = ((new[:, None] + shifts) % total).ravel()
        by = np.argsort(place, kind="stable")
        place, ids = place[by], np.repeat(ids, len(shifts))[by]
        touched, first = np.unique(place, return_index=True)
        changed = [
            _in_order(store, np.concatenate([self.subset(index), added]))
            for index, added in zip(touched, np.split(ids, first[1:]), strict=True)
        ]
        rows, offsets = self._spliced(touched, changed)
        cell = np.concatenate([self.cell, new])
        return replace(self, cell=cell, rows=rows, offsets=offsets, store=store), touched

    def delete(self, ids: HostArray) -> tuple[Partitions, HostArray]:
        """Removes rows; the others keep their ids.

        Args:
            ids: Of rows that are there, each once.

        Returns:
            The new partitions and the ascending ids of the touched subsets.

        Raises:
            UsageError: A rule by position, or ids that are unknown, gone or repeated.

        **Cost**: O(n d) copied integers.
        """
        self._changeable("delete")
        rows = np.asarray(ids)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise UsageError(f"ids has shape {rows.shape} and dtype {rows.dtype}; give row ids")
        rows = rows.astype(np.int64)
        known = (rows >= 0) & (rows < len(self.cell))
        known[known] = self.cell[rows[known]] != _GONE
        if not known.all():
            raise UsageError(f"ids has {rows[~known][0]}, which is not there; give rows of .ids")
        if len(np.unique(rows)) < len(rows):
            raise UsageError("ids has repeated rows; give each once")
        gone = np.zeros(len(self.cell), bool)
        gone[rows] = True
        touched = self.touched(self.cell[rows])
        members = [self.subset(index) for index in touched]
        kept, offsets = self._spliced(touched, [ids[~gone[ids]] for ids in members])
        cell = self.cell.copy()
        cell[rows] = _GONE
        return replace(self, cell=cell, rows=kept, offsets=offsets), touched

    def _spliced(self, touched: HostArray, members: list[HostArray]) -> tuple[HostArray, HostArray]:
        """Rows and offsets with new members in the touched subsets, which ascend."""
        sizes, pieces, end = self.sizes, [], 0
        for index, ids in zip(touched.tolist(), members, strict=True):
            pieces += [self.rows[end : self.offsets[index]], ids]
            end = self.offsets[index + 1]
            sizes[index] = len(ids)
        return np.concatenate([*pieces, self.rows[end:]]), _offsets(sizes)

    def _held(self) -> Rows:
        if self.store is None:
            raise UsageError("these partitions hold no rows; make them with partition(x, y, ...)")
        return self.store

    def _changeable(self, what: str) -> KeyRule:
        if self.design.covers == "sorted position":
            raise UsageError(
                f"{what} under a sorted position moves every later row, so all subsets change; "
                "call partition again, or take ContentHash()"
            )
        if self.key is None:
            raise UsageError(f"{what} needs the key rule; make these with partition(x, y, ...)")
        return self.key


def partition(
    x: HostArray,
    y: HostArray,
    *,
    k: int,
    spread: int = 1,
    key: KeyRule | None = None,
    column: HostArray | None = None,
) -> Partitions:
    """Spreads rows over ``k * spread`` subsets by a key of each row alone.

    ``row in subset (h + s) mod (k d)`` for its cell ``h = key(row) mod (k d)`` and d shifts s.

    Any permutation of the rows gives the same subsets with the same contents in the same order;
    repeated rows stay, as often as they occur.

    Args:
        x: [n, ...] integers or floats.
        y: [n] labels.
        k: Partitions. A subset has about n / k rows whatever the spread.
        spread: d, the subsets each row lies in: 1 for Deep Partition Aggregation, more for Finite
            Aggregation.
        key: What gives a row its cell; ``ContentHash()`` where None.
        column: [n] values where the key reads a column.

    Raises:
        UsageError: k or spread that make no sense, floats without a rounding rule.
        DataError: Rows that cannot be a row, or a key column with one value.

    **Cost**: a hash and a sort of n rows; one copy of x at a time, O(n d) integers. 60,000 rows of
    784 bytes take about half a second.

    Reference: Levine and Feizi (2021), arXiv:2006.14768; Wang, Levine and Feizi (2022),
    arXiv:2202.02628.
    """
    rule = ContentHash() if key is None else key
    inputs = as_rows("x", x)
    labels = as_labels("y", y, len(inputs))
    _check_counts(len(inputs), k, spread)
    k, spread = int(k), int(spread)
    rule.examine(column)
    total = k * spread
    cell = _valid_cells(rule.cells(np.asarray(x), np.asarray(y), total, column), len(inputs), total)
    design = Design(k, spread, shifts_of(k, spread), rule.covers, rule.to_json())
    order = np.argsort(sort_keys(inputs, labels), kind="stable")
    # Rows outermost, so that the stable sort leaves every subset in canonical order.
    place = ((cell[order, None] + np.asarray(design.shifts)) % total).ravel()
    small = place.astype(np.uint16) if total <= 1 << 16 else place  # sorted by radix
    rows = order[np.argsort(small, kind="stable") // spread]
    offsets = _offsets(np.bincount(place, minlength=total))
    store = Rows(np.asarray(x), np.asarray(y), column)
    return Partitions(design, cell, rows, offsets, rule, store)


def _check_counts(rows: int, k: int, spread: int) -> None:
    for name, value in (("k", k), ("spread", spread)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise UsageError(f"{name} is {value!r}; give an integer of at least 1")
    if k > rows:
        raise UsageError(f"k is {k}, but there are {rows} rows; give k of at most {rows}")
    if k * spread > np.iinfo(np.int32).max:
        raise UsageError(f"k * spread is {k * spread} subsets; give fewer than 2^31")


def _valid_cells(cells: HostArray, rows: int, total: int) -> HostArray:
    found = np.asarray(cells)
    if found.shape != (rows,) or found.dtype.kind not in "iu":
        raise DataError(
            f"the key gave cells of shape {found.shape} and dtype {found.dtype}; it must give one "
            "integer a row"
        )
    if found.size and not (found.min() >= 0 and found.max() < total):
        raise DataError(f"the key gave a cell outside 0 to {total - 1}; take them modulo num_cells")
    return found.astype(np.int64)


def _in_order(store: Rows, ids: HostArray) -> HostArray:
    """Ids in the order of their contents; equal rows keep the order they came in."""
    x = as_rows("x", store.x[ids])
    keys = sort_keys(x, as_labels("y", store.y[ids], len(ids)))
    return ids[np.argsort(keys, kind="stable")]


def _offsets(sizes: HostArray) -> HostArray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
