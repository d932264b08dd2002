"""The engine: the only room that compiles, shards, places and pads.

A ``Stream`` is rows of a source seen as blocks. It has three verbs: ``fold`` (a statistic of all
rows), ``map`` (a value for each row) and ``spread`` (a function of many members, such as classes).
Fixed-size shards are the unit of work: one shard goes to one device, its partial result comes back
and is added on the host in shard order in float64. So no result depends on the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpoison._types import Block, HostArray
from jaxpoison.caching import use_compile_cache as use_compile_cache
from jaxpoison.layout import Layout, aligned_empty

_AXIS = "data"
_GROUP_ROWS = 16_384  # rows of all members that one vmapped call of ``spread`` works on
_GROUPS = (16, 32)  # fewest and most members of one, where that many rows allow


_Group: TypeAlias = tuple[Block, list[tuple[HostArray, HostArray]]]
"""Blocks of one shard a device, and the ids and mask of each real shard on the host."""


class RowSource(Protocol):
    """What a stream needs of a source (``jaxpoison.sources.Source`` is one)."""

    def __len__(self) -> int:
        """Number of rows."""

    def read(self, start: int, stop: int) -> dict[str, HostArray]:
        """Rows ``start`` to ``stop`` under "x"."""


class Fold(Protocol):
    """A statistic of all rows, as a frozen dataclass registered as a pytree.

    Array fields are operands, configuration is static: a fold that closed over arrays would be
    compiled anew for each value. ``merge`` runs on the host on float64 arrays and must be
    associative.
    """

    def update(self, block: Block) -> Any:
        """The partial result of one block, traced."""

    def merge(self, left: Any, right: Any) -> Any:
        """Two partial results made one, on the host."""

    def finish(self, carry: Any) -> Any:
        """The value, on the host."""


class Additive:
    """A fold whose partial results are added."""

    def merge(self, left: Any, right: Any) -> Any:
        """Adds leaf by leaf."""
        return jax.tree.map(np.add, left, right)

    def finish(self, carry: Any) -> Any:
        """The sums themselves."""
        return carry


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["fn"])
@dataclass(frozen=True)
class Stage:
    """A pure function of each tile's inputs: ``fn(params, x[tiles, t, ...]) -> [tiles, t, d]``.

    ``fn`` is static and must be a module-level function, or every call compiles again.
    """

    fn: Callable[[Any, Any], Any]
    params: Any


def compiled(
    fn: Callable[..., Any],
    *,
    static: tuple[str, ...] = (),
    donate: tuple[str, ...] = (),
    single_thread: bool = False,
) -> Callable[..., Any]:
    """Compiles a pure function for rooms that may not call jit themselves.

    Args:
        fn: A module-level function.
        static: Names of arguments that are configuration.
        donate: Names of arguments whose memory the result may take over.
        single_thread: A CPU device runs it on one thread, for programs that run side by side.

    Returns:
        The compiled function.
    """
    options: Any = {"xla_cpu_multi_thread_eigen": False} if single_thread else None
    return jax.jit(fn, static_argnames=static, donate_argnames=donate, compiler_options=options)


def make_mesh(num_devices: int | None = None) -> Mesh:
    """One axis over the first local devices, automatic axes.

    ``jax.make_mesh`` would give explicit axes, on which ``x.T @ x`` along the sharded axis raises.
    """
    devices = jax.devices()[:num_devices] if num_devices else jax.devices()
    return Mesh(np.array(devices), (_AXIS,))


def _spec(*axes: str) -> PartitionSpec:
    return PartitionSpec(*axes)  # type: ignore[no-untyped-call]  # jax leaves it without types


def mesh_of_solvers(mesh: Mesh) -> Mesh:
    """The devices that may run eigendecompositions side by side: one, if they are CPU devices.

    CPU devices share one pool of threads. A decomposition holds a thread while it waits for others
    of the pool, so as many of them as there are threads wait for ever (seen with 8 devices on 2
    cores, jaxlib 0.10.2). One device has all the threads anyway.
    """
    devices = mesh.devices.flat
    return Mesh(np.array(devices[:1]), (_AXIS,)) if devices[0].platform == "cpu" else mesh


def place(tree: Any, mesh: Mesh, index: int) -> Any:
    """A pytree of arrays on one device of the mesh, counted round."""
    return jax.device_put(tree, mesh.devices.flat[index % mesh.size])


def _at_device(tree: Any) -> Any:
    return jax.tree.map(lambda a: a[0], tree)


def _from_device(tree: Any) -> Any:
    return jax.tree.map(lambda a: a[None], tree)


def _staged(stage: Stage | None, block: Block) -> Block:
    return block if stage is None else block._replace(x=stage.fn(stage.params, block.x))


def _sharded(mesh: Mesh, fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn(operands, shard)`` on every device: operands replicated, shards one a device."""
    shard, whole = _spec(_AXIS), _spec()
    mapped: Callable[..., Any] = jax.shard_map(
        fn, mesh=mesh, in_specs=(whole, shard), out_specs=shard, check_vma=False
    )
    return mapped


@partial(jax.jit, static_argnames=("mesh",))
def _fold_step(fold: Fold, stage: Stage | None, blocks: Block, *, mesh: Mesh) -> Any:
    def one(operands: Any, blocks: Block) -> Any:
        fold, stage = operands
        return _from_device(fold.update(_staged(stage, _at_device(blocks))))

    return _sharded(mesh, one)((fold, stage), blocks)


@partial(jax.jit, static_argnames=("mesh", "fn"))
def _map_step(
    operands: Any, stage: Stage | None, blocks: Block, *, fn: Callable[..., Any], mesh: Mesh
) -> Any:
    def one(operands: Any, blocks: Block) -> Any:
        operands, stage = operands
        return _from_device(fn(_staged(stage, _at_device(blocks)), *operands))

    return _sharded(mesh, one)((operands, stage), blocks)


@partial(jax.jit, static_argnames=("mesh", "fn"))
def _spread_step(shared: Any, members: Any, *, fn: Callable[..., Any], mesh: Mesh) -> Any:
    def one(shared: Any, members: Any) -> Any:
        # one group a device: a loop over groups would compile anew for every number of them
        mapped = jax.vmap(lambda member: fn(member, *shared))(_at_device(members))
        return _from_device(mapped)

    return _sharded(mesh, one)(shared, members)


@dataclass
class Stream:
    """Rows of a source as blocks on a mesh of devices.

    Attributes:
        source: Where rows come from; read by a background thread, one block ahead.
        labels: [n] int32 dense classes 0..c-1 (host).
        num_classes: c.
        mesh: Devices; a shard goes to each.
        stage: Applied to every block on the device, or None.
        budget_bytes: Blocks stay on the devices between passes while all of them fit in this.
        progress: Called with the rows done so far after each group of shards.
    """

    source: RowSource
    labels: HostArray
    num_classes: int
    mesh: Mesh = field(default_factory=make_mesh)
    stage: Stage | None = None
    budget_bytes: int = 1 << 30
    progress: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        """Lays out the blocks."""
        row = self.source.read(0, min(1, len(self.source)))["x"]
        self.row_shape: tuple[int, ...] = row.shape[1:]
        self.dtype = row.dtype
        row_bytes = max(int(np.prod(self.row_shape)) * row.dtype.itemsize, 1)
        self.counts = np.bincount(self.labels, minlength=self.num_classes)
        self.layout = Layout.of(len(self.source), row_bytes, self.num_classes)
        per_block = self.layout.tiles * self.layout.tile * row_bytes
        self.resident_bytes = per_block * self.num_shards
        self._resident: list[_Group] | None = None
        self._memo: dict[Any, Any] = {}

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.source)

    @property
    def num_shards(self) -> int:
        """Shards of one pass."""
        return -(-len(self.source) // self.layout.rows)

    def through(self, stage: Stage) -> Stream:
        """The same rows behind a stage (of which a stream has one at the most)."""
        if self.stage is not None:
            raise ValueError("this stream has a stage already; compose the two functions instead")
        return replace(self, stage=stage)

    def memo(self, key: Any, make: Callable[[], Any]) -> Any:
        """A value computed once for this stream, so that detectors share passes."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def fold(self, fold: Fold) -> Any:
        """One pass: the fold of all rows, bit-equal on any number of devices.

        **Cost**: one read of the data, plus the partial result of each shard brought to the host.
        """
        carry: Any = None
        fold = self._place(fold)
        for blocks, shards in self._groups():
            partials = jax.device_get(_fold_step(fold, self._stage(), blocks, mesh=self.mesh))
            for i in range(len(shards)):
                part = jax.tree.map(lambda a, i=i: np.asarray(a[i], _wide(a)), partials)
                carry = part if carry is None else fold.merge(carry, part)
        return fold.finish(carry)

    def map(self, fn: Callable[..., Any], *operands: Any) -> HostArray:
        """One pass: ``fn(block, *operands) -> [tiles, t, ...]`` for each row, in input order.

        Args:
            fn: Static, module-level.
            *operands: Arrays that ``fn`` needs; traced, so new values compile nothing.

        Returns:
            [n, ...] on the host.
        """
        out: HostArray | None = None
        operands = self._place(operands)
        for blocks, shards in self._groups():
            values = np.asarray(_map_step(operands, self._stage(), blocks, fn=fn, mesh=self.mesh))
            if out is None:
                out = np.empty((len(self), *values.shape[3:]), values.dtype)
            for i, (block_ids, block_mask) in enumerate(shards):
                keep = block_mask > 0
                out[block_ids[keep]] = values[i][keep]
        if out is None:
            raise ValueError("the source is empty")
        return out

    def spread(self, fn: Callable[..., Any], members: Any, *shared: Any) -> Any:
        """``fn(member, *shared)`` for every member, members spread over the devices.

        Args:
            fn: Static, module-level; sees one member.
            members: Pytree whose leaves are stacked on the first axis.
            *shared: What every member sees.

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
            return jax.device_put(part, NamedSharding(mesh, _spec(_AXIS)))

        shared = jax.device_put(shared, NamedSharding(mesh, _spec()))
        out = []
        for start in range(0, count, step):
            part = jax.tree.map(partial(stack, start=start), members)
            out.append(_spread_step(shared, part, fn=fn, mesh=mesh))
        flat = [jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), p) for p in jax.device_get(out)]
        return jax.tree.map(lambda *a: np.concatenate(a)[:count], *flat)

    def take(self, rows: HostArray) -> HostArray:
        """Raw inputs of some rows, in the order asked, by one forward read of the source.

        **Cost**: reads only the blocks that hold one of the rows; holds the result.
        """
        rows = np.asarray(rows, np.int64)
        out = np.empty((len(rows), *self.row_shape), self.dtype)
        order = np.argsort(rows, kind="stable")
        edges = np.searchsorted(
            rows[order], np.arange(0, len(self) + self.layout.rows, self.layout.rows)
        )
        for shard in range(self.num_shards):
            where = order[edges[shard] : edges[shard + 1]]
            if where.size:
                start = shard * self.layout.rows
                x = self.source.read(start, min(start + self.layout.rows, len(self)))["x"]
                out[where] = x[rows[where] - start]
        return out

    def _stage(self) -> Stage | None:
        """The stage with its parameters on the mesh, placed once."""
        if self.stage is None:
            return None
        placed: Stage = self.memo("stage", lambda: self._place(self.stage))
        return placed

    def _place(self, tree: Any) -> Any:
        """Replicated on the mesh: else the second step would compile for another sharding."""
        return jax.device_put(tree, NamedSharding(self.mesh, _spec()))

    def _groups(self) -> Iterator[_Group]:
        """Groups of one shard a device, with each real shard's ids and mask on the host."""
        if self._resident is not None:
            for (blocks, shards), done in zip(self._resident, self._rows_done(), strict=True):
                yield blocks, shards
                self._tell(done)
            return
        keep: list[_Group] | None = [] if self.resident_bytes <= self.budget_bytes else None
        starts = list(range(0, self.num_shards, self.mesh.size))
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._read_group, starts[0]) if starts else None
            for i, done in enumerate(self._rows_done()):
                assert ahead is not None
                blocks, shards = ahead.result()
                ahead = (
                    reader.submit(self._read_group, starts[i + 1]) if i + 1 < len(starts) else None
                )
                placed = jax.device_put(blocks, NamedSharding(self.mesh, _spec(_AXIS)))
                if keep is not None:
                    keep.append((placed, shards))
                yield placed, shards
                self._tell(done)
        self._resident = keep

    def _rows_done(self) -> list[int]:
        step = self.layout.rows * self.mesh.size
        return [min(i + step, len(self)) for i in range(0, max(len(self), 1), step)]

    def _tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done)

    def _read_group(self, first: int) -> _Group:
        slots = self.layout.tiles * self.layout.tile
        x = aligned_empty((self.mesh.size, slots, *self.row_shape), self.dtype)
        shards = [self._read_shard(first + i, out) for i, out in enumerate(x)]
        tiled = (self.mesh.size, self.layout.tiles, self.layout.tile, *self.row_shape)
        blocks = Block(
            x.reshape(tiled), *(np.stack(p) for p in list(zip(*shards, strict=True))[1:])
        )
        real = min(self.mesh.size, self.num_shards - first)
        return blocks, [(shard.ids, shard.mask) for shard in shards[:real]]

    def _read_shard(self, shard: int, out: HostArray) -> Block:
        """One shard as a block (an empty one past the end), its rows written to ``out``."""
        start = min(shard * self.layout.rows, len(self))
        stop = min(start + self.layout.rows, len(self))
        x = self.source.read(start, stop)["x"] if start < stop else None
        return self.layout.block(
            x, self.labels[start:stop], start, (self.row_shape, self.dtype), out
        )


def _wide(a: Any) -> Any:
    """Partial sums are added in float64; integers stay what they are."""
    return np.float64 if np.issubdtype(a.dtype, np.floating) else a.dtype
