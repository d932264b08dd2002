"""Where shards are computed: an engine takes the rows once and runs any number of passes on them.

Whatever the engine, a pass gives one host value a shard, in shard order. What is made of these
values is the same everywhere, and so is the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
from jax.sharding import Mesh

from jaxpoison._types import Block, HostArray

from ._records import Journal
from ._rows import Rows
from ._steps import Stage, first_devices, one_each, pass_step, replicated

T = TypeVar("T")


class ShardValue(NamedTuple):
    """What a pass gives for one shard, on the host.

    Attributes:
        value: Pytree of arrays.
        ids: [tiles, t] row numbers.
        mask: [tiles, t], 0 for padding.
    """

    value: Any
    ids: HostArray
    mask: HostArray


class Feed(Protocol):
    """Rows in the hands of an engine."""

    def place(self, tree: Any) -> Any:
        """A pytree of host arrays where the engine's passes find it."""

    def run(
        self, fn: Callable[..., Any], operands: Any, stage: Any, first: int
    ) -> Iterator[ShardValue]:
        """``fn(block, *operands)`` for the shards from ``first`` on; both were placed."""


class Engine(Protocol):
    """Where shards are computed."""

    def feed(self, rows: Rows, budget_bytes: int) -> Feed:
        """The rows, of which so many bytes may be held between passes."""

    def shared(self, source: Any) -> Any:
        """The source as the host's own code should read it, every process the same rows."""

    @property
    def is_writer(self) -> bool:
        """Whether this process writes what all of them found."""

    @property
    def num_processes(self) -> int:
        """That run this program together."""

    @property
    def sees_files(self) -> bool:
        """Whether a file that this process makes can be read where shards are computed."""

    def agreed(self, do: Callable[[], T]) -> T | None:
        """What the writer does, or None on the others; all of them raise if it raises."""

    def journal(self, kept: Any, decode: Callable[[bytes], Any], *, resume: bool) -> Journal | None:
        """The writer's journal as every process may use it."""

    def tasks(self, fn: Callable[..., Any], shared: Any, items: Iterable[Any]) -> Iterator[Any]:
        """``fn(shared, item)`` of each item, in order; ``shared`` is what ``put`` gave."""

    def put(self, value: Any) -> Any:
        """A value where all tasks find it."""


class Alone:
    """What engines of one process share: there is no one to agree with."""

    @property
    def is_writer(self) -> bool:
        """Always."""
        return True

    @property
    def num_processes(self) -> int:
        """1."""
        return 1

    @property
    def sees_files(self) -> bool:
        """It is this process that reads them."""
        return True

    def shared(self, source: Any) -> Any:
        """The source itself."""
        return source

    def agreed(self, do: Callable[[], T]) -> T | None:
        """What is done."""
        return do()

    def journal(self, kept: Any, decode: Callable[[bytes], Any], *, resume: bool) -> Journal | None:
        """The journal itself."""
        journal: Journal | None = kept
        return journal

    def put(self, value: Any) -> Any:
        """The value itself."""
        return value

    def tasks(self, fn: Callable[..., Any], shared: Any, items: Iterable[Any]) -> Iterator[Any]:
        """One after the other, each when it is taken."""
        for item in items:
            yield fn(shared, item)


class LocalEngine(Alone):
    """All devices of this process, one shard each."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def feed(self, rows: Rows, budget_bytes: int) -> LocalFeed:
        """The rows on the mesh, held there between passes while all of them fit."""
        return LocalFeed(rows, self.mesh, budget_bytes)


class Group(NamedTuple):
    """One shard a device.

    Attributes:
        first: Number of the first shard.
        blocks: On the devices.
        ids: [shards, tiles, t] row numbers of those that this process read, on the host.
        mask: The same, 0 for padding.
    """

    first: int
    blocks: Block
    ids: HostArray
    mask: HostArray


class LocalFeed:
    """Rows on a mesh of this process; a background thread reads one group ahead."""

    def __init__(self, rows: Rows, mesh: Mesh, budget_bytes: int) -> None:
        # a device without a shard would work on padding, at the cost of the others' cores
        self.rows, self.mesh = rows, first_devices(mesh, rows.num_shards)
        self._keeps = rows.shard_bytes * rows.num_shards <= budget_bytes
        self._held: list[Group] | None = None
        # which of the devices are of this process: the shards that it reads of each group
        mine = [d.process_index == jax.process_index() for d in self.mesh.devices.flat]
        self._offset, self._count = mine.index(True), sum(mine)

    def place(self, tree: Any) -> Any:
        """Replicated on the mesh: else the second step would compile for another sharding."""
        return jax.device_put(tree, replicated(self.mesh))

    def run(
        self, fn: Callable[..., Any], operands: Any, stage: Stage | None, first: int
    ) -> Iterator[ShardValue]:
        """One step a group of shards."""
        for group in self._groups(first):
            values = pass_step(operands, stage, group.blocks, fn=fn, mesh=self.mesh)
            values, ids, mask = self._on_host(values, group)
            for i in range(min(self.mesh.size, self.rows.num_shards - group.first)):
                yield ShardValue(jax.tree.map(lambda a, i=i: a[i], values), ids[i], mask[i])

    def _on_host(self, values: Any, group: Group) -> tuple[Any, HostArray, HostArray]:
        """Values, row numbers and masks of all shards of a group."""
        return jax.device_get(values), group.ids, group.mask

    def _put(self, blocks: Block) -> Block:
        """What this process read, as a part of what is on the mesh."""
        placed: Block = jax.device_put(blocks, one_each(self.mesh))
        return placed

    def _groups(self, first: int) -> Iterator[Group]:
        if self._held is not None and first == 0:
            yield from self._held
            return
        keep: list[Group] | None = [] if self._keeps and first == 0 else None
        starts = range(first, self.rows.num_shards, self.mesh.size)
        read = range(first + self._offset, starts.stop + self._offset, self.mesh.size)
        for start, blocks in zip(starts, self.rows.groups(read, self._count), strict=True):
            group = Group(start, self._put(blocks), blocks.ids, blocks.mask)
            if keep is not None:
                keep.append(group)
            yield group
        if keep is not None:
            self._held = keep
