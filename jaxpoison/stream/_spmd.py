"""Shards over the devices of all processes that run this program together.

Every process reads the shards of its own devices, and every process gets the values of all of
them, in shard order: what is made of them on the host is the same everywhere, so no process needs
to be told what another decided.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import Block, HostArray

from ._engines import Alone, Group, LocalFeed
from ._records import Journal
from ._rows import Rows
from ._steps import make_mesh, one_each, replicated

T = TypeVar("T")
_PIECE = 64 << 20  # bytes sent to all at a time
_LAST_WAIT = 20  # seconds that a process waits for the others when it ends


class SpmdEngine(Alone):
    """All devices of all processes, one shard each; needs ``jax.distributed.initialize`` before."""

    def __init__(self, machine: str) -> None:
        """Raises UsageError where processes run on unlike machines, whose bits would differ."""
        self.mesh = make_mesh(is_global=True)
        own = np.frombuffer(hashlib.blake2b(machine.encode(), digest_size=4).digest(), np.int32)
        if len(np.unique(_gathered(own))) > 1:
            raise UsageError(
                f"engine spmd: the processes run on unlike machines (here: {machine}); give each "
                "the same kind of device and as many cores, or use --engine ray"
            )

    @property
    def is_writer(self) -> bool:
        """Whether this is the first process."""
        first: bool = jax.process_index() == 0
        return first

    @property
    def num_processes(self) -> int:
        """Of ``jax.distributed``."""
        return int(jax.process_count())

    def feed(self, rows: Rows, budget_bytes: int) -> SpmdFeed:
        """The rows on the mesh; each process holds those of its own devices."""
        return SpmdFeed(rows, self.mesh, budget_bytes)

    def shared(self, source: Any) -> Any:
        """The source read by all processes together, a part each."""
        return source if jax.process_count() == 1 else SharedSource(source)

    def agreed(self, do: Callable[[], T]) -> T | None:
        """What the first process does, or None on the others; all of them raise if it raises.

        Raises:
            UsageError: On the others, where the first process raised anything.
        """
        failure: BaseException | None = None
        value: T | None = None
        if self.is_writer:
            try:
                value = do()
            except BaseException as error:  # raised below, once the others know
                failure = error
        failed = _broadcast(np.array(failure is not None, np.int32))
        if failure is not None:
            raise failure
        if failed:
            raise UsageError("the first process gave up; its message says why")
        return value

    def journal(self, kept: Any, decode: Callable[[bytes], Any], *, resume: bool) -> Journal | None:
        """What all processes take from the journal of the first one; None where none is kept."""
        if not _broadcast(np.array(kept is not None, np.int32)):
            return None
        return SharedJournal(kept, decode, resume=resume)


class SpmdFeed(LocalFeed):
    """Rows on a mesh of several processes."""

    def place(self, tree: Any) -> Any:
        """Replicated on the mesh, from the equal values that every process has."""

        def put(leaf: Any) -> Any:
            host = np.asarray(leaf)
            return jax.make_array_from_callback(host.shape, replicated(self.mesh), host.__getitem__)

        return jax.tree.map(put, tree)

    def _on_host(self, values: Any, group: Group) -> tuple[Any, HostArray, HostArray]:
        found: tuple[Any, HostArray, HostArray] = _gathered(
            (values, group.blocks.ids, group.blocks.mask), tiled=True
        )
        return found

    def _put(self, blocks: Block) -> Block:
        make: Any = jax.make_array_from_process_local_data
        shape = (self.mesh.size,)
        return Block(*(make(one_each(self.mesh), p, (*shape, *p.shape[1:])) for p in blocks))


class SharedSource:
    """A source of which every process reads a part of each range, and gets all of it.

    Every process must ask for the same ranges in the same order.
    """

    def __init__(self, source: Any) -> None:
        self._source = source

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        """Schema, name, labels and what else the source has."""
        return getattr(self._source, name)

    def read(self, start: int, stop: int) -> dict[str, HostArray]:
        """Rows ``start`` to ``stop``, as the source itself gives them."""
        size, me, rows = jax.process_count(), jax.process_index(), stop - start
        step = -(-max(rows, 1) // size)
        first, last = (min(start + i * step, stop) for i in (me, me + 1))
        mine = self._source.read(first, last)["x"]
        part = np.zeros((step, *mine.shape[1:]), mine.dtype)
        part[: len(mine)] = mine
        parts = np.asarray(_gathered(part))
        block = {"x": np.ascontiguousarray(parts.reshape(-1, *mine.shape[1:])[:rows])}
        labels = self._source.labels()
        if labels is not None:  # not gathered: 64-bit integers would lose their upper half
            block["y"] = labels[start:stop]
        return block


class SharedJournal:
    """A journal of the first process; what it has, all processes take from it."""

    def __init__(self, kept: Any, decode: Callable[[bytes], Any], *, resume: bool) -> None:
        self._kept, self._decode, self._resume = kept, decode, resume
        self.every = math.inf if kept is None else kept.every

    def load(self, name: str) -> Any:
        """Of the first process; nothing is asked where nothing can be there."""
        if not self._resume:
            return None
        data = b"" if self._kept is None else self._kept.load_bytes(name) or b""
        high, low = _broadcast(np.array(divmod(len(data), _PIECE), np.int32))
        size = int(high) * _PIECE + int(low)
        if not size:
            return None
        whole = np.empty(size, np.uint8)
        for start in range(0, size, _PIECE):
            part = whole[start : start + _PIECE]
            if data:
                part[...] = np.frombuffer(data, np.uint8, len(part), start)
            part[...] = _broadcast(part)
        return self._decode(whole.tobytes())

    def save(self, name: str, tree: Any) -> None:
        """By the first process."""
        if self._kept is not None:
            self._kept.save(name, tree)


@contextmanager
def _told_apart() -> Iterator[None]:
    """What a library prints from its own code goes to standard error: results go to output."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # no such files, as under some servers
        yield
        return
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _gathered(tree: Any, *, tiled: bool = False) -> Any:
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(tree, tiled=tiled)


def _broadcast(value: HostArray) -> Any:
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return broadcast_one_to_all(value)


def join(coordinator: str | None, num_processes: int | None, process: int | None) -> None:
    """Meets the other processes: as told, or as the cluster tells (``jax.distributed``).

    Raises:
        UsageError: They can not be met.
    """
    if jax.distributed.is_initialized():
        return
    try:
        with _told_apart():
            jax.distributed.initialize(
                coordinator, num_processes, process, shutdown_timeout_seconds=_LAST_WAIT
            )
            _broadcast(np.zeros((), np.int32))  # whom they are connected to is told here
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"engine spmd: the processes did not meet ({error}); start one process a machine under "
            "SLURM, Open MPI, Kubernetes or Cloud TPU, or give --coordinator HOST:PORT, "
            "--processes N and --process I to each"
        ) from error
