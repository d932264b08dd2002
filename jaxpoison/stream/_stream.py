"""Rows of a source seen as blocks, and the three verbs on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpoison._types import Block, HostArray
from jaxpoison.heap import trim
from jaxpoison.layout import Layout

from ._engines import Engine, Feed, LocalEngine, ShardValue
from ._keys import Unnamed, key_of_pass
from ._records import Journal, Record, Unkept
from ._rows import Rows, RowSource
from ._steps import (
    Stage,
    make_mesh,
    mesh_of_solvers,
    one_each,
    replicated,
    spread_in_turn,
    spread_step,
)

_GROUP_ROWS = 16_384  # rows of all members that one vmapped call of ``spread`` works on
_GROUPS = (16, 32)  # fewest and most members of one, where that many rows allow
_LARGE_BYTES = 1 << 28  # of rows: less is never worth giving back


class Fold(Protocol):
    """A statistic of all rows, as a frozen dataclass registered as a pytree.

    Array fields are operands, configuration is static: a fold that closed over arrays would be
    compiled anew for each value. ``merge`` runs on the host, shard by shard in their order.
    """

    def update(self, block: Block) -> Any:
        """The partial result of one block, traced."""

    def merge(self, carry: Any, part: Any) -> Any:
        """The carry, in float64 and its own to change, with the partial result of a shard."""

    def finish(self, carry: Any) -> Any:
        """The value, on the host."""


class Additive:
    """A fold whose partial results are added."""

    def merge(self, carry: Any, part: Any) -> Any:
        """Adds leaf by leaf, in place where that can be: totals may be gigabytes."""
        return jax.tree.map(_added, carry, part)

    def finish(self, carry: Any) -> Any:
        """The sums themselves."""
        return carry


class Held:
    """Rows in the hands of an engine, from when they are first needed."""

    def __init__(self, take: Callable[[], Feed]) -> None:
        self._take = take

    @cached_property
    def feed(self) -> Feed:
        """Taken once."""
        return self._take()


def update_of(block: Block, fold: Fold) -> Any:
    """What a fold makes of a block, as a pass calls it."""
    return fold.update(block)


@dataclass
class Stream:
    """Rows of a source as blocks on the devices of an engine.

    Attributes:
        source: Where rows come from; read by a background thread, one block ahead.
        labels: [n] int32 dense classes 0..c-1 (host).
        num_classes: c.
        mesh: Devices of this process: members of ``spread`` are shared out over them, and the
            shards too where no engine is given.
        stage: Applied to every block on the device, or None.
        budget_bytes: Blocks stay on the devices between passes while all of them fit in this.
        progress: Called with the rows done so far after each shard.
        engine: What runs the passes; None for the mesh.
        journal: Keeps what passes gave, so that a scan that was cut off need not do them again;
            or None.
        identity: What stands for the rows in the journal; None for their content hash.
        layout: Of a shard; None for the one that follows from the rows.
    """

    source: RowSource
    labels: HostArray
    num_classes: int
    mesh: Mesh = field(default_factory=make_mesh)
    stage: Stage | None = None
    budget_bytes: int = 1 << 30
    progress: Callable[[int], None] | None = None
    engine: Engine | None = None
    journal: Journal | None = None
    identity: str | None = None
    layout: Layout | None = None

    def __post_init__(self) -> None:
        """Lays out the blocks."""
        self.rows = Rows.of(self.source, self.labels, self.num_classes, self.layout)
        self.row_shape, self.dtype = self.rows.row_shape, self.rows.dtype
        self.num_shards = self.rows.num_shards
        self.resident_bytes = self.rows.shard_bytes * self.num_shards
        self.counts = np.bincount(self.labels, minlength=self.num_classes)
        self.runs = self.engine or LocalEngine(self.mesh)
        self._held = Held(lambda: self.runs.feed(self.rows, self.budget_bytes))
        self._memo: dict[Any, Any] = {}
        self._passing: list[Any] = []

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.source)

    def through(self, stage: Stage) -> Stream:
        """The same rows behind a stage (of which a stream has one at the most)."""
        if self.stage is not None:
            raise ValueError("this stream has a stage already; compose the two functions instead")
        return self.behind(stage)

    def behind(self, stage: Stage | None) -> Stream:
        """The same rows behind another stage."""
        other = replace(self, stage=stage)
        other._held = self._held  # the rows are there once, whatever is made of them
        return other

    def of(self, source: RowSource, **changes: Any) -> Stream:
        """Other rows, run and kept in the same way, without a stage unless one is given."""
        plain = {"stage": None, "identity": None, "layout": None}
        return replace(self, source=source, **{**plain, **changes})

    def memo(self, key: Any, make: Callable[[], Any], *, lasts: bool = True) -> Any:
        """A value computed once for this stream, so that detectors share passes.

        Args:
            key: Names it.
            make: Computes it.
            lasts: Whether it is wanted after the detectors have spoken (see ``forget``).
        """
        if key not in self._memo:
            self._memo[key] = make()
            if not lasts:
                self._passing.append(key)
        return self._memo[key]

    def forget(self) -> None:
        """Drops what only detectors share, where rows are many; asked again, it is made again."""
        if self.is_large:
            for key in self._passing:
                del self._memo[key]
            self._passing.clear()

    def _trim(self) -> None:
        """Gives memory that was freed back to the system, where rows are many."""
        if self.is_large:
            trim()

    @property
    def is_large(self) -> bool:
        """Whether memory is worth the time it takes to give it back."""
        return self.resident_bytes >= _LARGE_BYTES

    def fold(self, fold: Fold) -> Any:
        """One pass: the fold of all rows, bit-equal on any number of devices.

        **Cost**: one read of the data, plus the partial result of each shard brought to the host.
        """
        record = self._record("fold", type(fold), fold)
        done, carry = record.load_carry()
        for shard, part in self._pass(update_of, (fold,), done):
            if carry is None:
                carry = jax.tree.map(lambda a: np.array(a, _wide(a)), part.value)
            else:
                carry = fold.merge(carry, part.value)
            record.keep_carry(shard + 1, carry, is_last=shard + 1 == self.num_shards)
        return fold.finish(carry)

    def map(self, fn: Callable[..., Any], *operands: Any) -> HostArray:
        """One pass: ``fn(block, *operands) -> [tiles, t, ...]`` for each row, in input order.

        Args:
            fn: Static, module-level.
            *operands: Arrays that ``fn`` needs; traced, so new values compile nothing.

        Returns:
            [n, ...] on the host.
        """
        if not len(self):
            raise ValueError("the source is empty")
        record = self._record("map", fn, operands)
        done, out = record.load_rows(len(self))
        for shard, (value, ids, mask) in self._pass(fn, operands, done):
            if out is None:
                out = np.empty((len(self), *value.shape[2:]), value.dtype)
            keep = mask > 0
            out[ids[keep]] = value[keep]
            record.keep_rows(shard + 1, out, self.rows.stop(shard))
        assert out is not None
        return out

    def spread(
        self, fn: Callable[..., Any], members: Any, *shared: Any, in_turn: bool = False
    ) -> Any:
        """``fn(member, *shared)`` for every member, members spread over the devices.

        Args:
            fn: Static, module-level; sees one member.
            members: Pytree whose leaves are stacked on the first axis.
            *shared: What every member sees.
            in_turn: On CPUs, one member after the other. That is faster where a member alone is
                much work, or some need many more steps than others: XLA:CPU is slow at products
                of batches. Accelerators always get groups.

        Returns:
            Pytree of stacked host arrays. Groups have a size that follows from the members'
            shape alone, so the bits do not depend on the number of devices, and few sizes, so
            that another number of members seldom compiles.
        """
        leaves = jax.tree.leaves(members)
        count, rows = leaves[0].shape[0], max(a.shape[1] if a.ndim > 1 else 1 for a in leaves)
        fewest, most = _GROUPS
        group = most if count > fewest else fewest
        group = min(group, 1 << int(np.log2(max(_GROUP_ROWS // max(rows, 1), 1))))
        mesh = mesh_of_solvers(self.mesh)
        step = group * mesh.size

        def stack(a: Any, start: int) -> Any:
            part = np.asarray(a[start : start + step])
            part = np.resize(part, (mesh.size, group, *a.shape[1:]))  # repeats members
            return jax.device_put(part, one_each(mesh))

        shared = jax.device_put(shared, replicated(mesh))
        out = []
        for start in range(0, count, step):
            part = jax.tree.map(partial(stack, start=start), members)
            if in_turn and mesh.devices.flat[0].platform == "cpu":
                left = np.clip(count - start - group * np.arange(mesh.size), 0, group)
                counts = jax.device_put(left.astype(np.int32), one_each(mesh))
                out.append(spread_in_turn(shared, part, counts, fn=fn, mesh=mesh))
            else:
                out.append(spread_step(shared, part, fn=fn, mesh=mesh))
        flat = [jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), p) for p in jax.device_get(out)]
        return jax.tree.map(lambda *a: np.concatenate(a)[:count], *flat)

    def take(self, rows: HostArray) -> HostArray:
        """Raw inputs of some rows, in the order asked, by one forward read of the source.

        **Cost**: reads only the blocks that hold one of the rows; holds the result.
        """
        return replace(self.rows, source=self.runs.shared(self.source)).take(rows)

    def _pass(
        self, fn: Callable[..., Any], operands: Any, first: int
    ) -> Iterator[tuple[int, ShardValue]]:
        """Each shard from ``first`` on with its value, progress told behind it."""
        if first == self.num_shards:
            return
        self._trim()  # a pass needs the most: what was freed since the last one goes first
        feed = self._held.feed
        stage = self.memo("stage", lambda: feed.place(self.stage))
        value = None
        values = feed.run(fn, feed.place(operands), stage, first)
        for shard, value in enumerate(values, first):
            yield shard, value
            if self.progress is not None:
                self.progress(self.rows.stop(shard))
        del value, values  # the last ones, so that they can go
        self._trim()

    def _record(self, verb: str, fn: Any, operands: Any) -> Record | Unkept:
        if self.journal is None:
            return Unkept()
        try:
            return Record(self.journal, key_of_pass(self, verb, fn, operands))
        except Unnamed:
            return Unkept()


def _added(total: Any, part: Any) -> Any:
    is_ours = isinstance(total, np.ndarray) and total.flags.writeable
    return np.add(total, part, out=total) if is_ours else np.add(total, part)


def _wide(a: Any) -> Any:
    """Partial sums are added in float64; integers stay what they are."""
    return np.float64 if np.issubdtype(a.dtype, np.floating) else a.dtype
