"""Shards as tasks of a Ray cluster: it schedules them, and retries those whose worker died."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxpoison._check import DataError, JaxpoisonError, UsageError
from jaxpoison.sources import open_source
from jaxpoison.sources.table import install_command

from ._engines import Alone, ShardValue
from ._rows import Rows
from ._steps import Stage, make_mesh, one_each, pass_step, replicated

_RETRIES = 8
_SHOWN = 160  # characters of what a library says of it
_AHEAD = 2  # tasks a worker has waiting
_PARTS = 4  # of a pass a worker, so that one that dies loses little
_MOST = 8  # shards of a part: the values of all of them come back together


class RayEngine(Alone):
    """Every processor of a cluster, one shard each.

    The bits are those of one process where the workers run on the same kind of processor.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self.workers = int(ray.cluster_resources().get("CPU", 0))
        if self.workers < 1:
            raise UsageError("engine ray: the cluster has no processors; add a node that has some")

    @property
    def sees_files(self) -> bool:
        """A worker may be on another machine."""
        return False

    def feed(self, rows: Rows, budget_bytes: int) -> RayFeed:
        """The rows in the cluster's object store, or how to read them where they are in files."""
        return RayFeed(rows, self)

    def put(self, value: Any) -> Any:
        """A value in the cluster's object store.

        Raises:
            DataError: It can not be sent to another process.
        """
        try:
            return self._ray.put(value)
        except TypeError as error:
            raise DataError(
                "engine ray: something can not be sent to workers "
                f"({str(error).splitlines()[0][-_SHOWN:]}); give rows as a path of a file, and "
                "functions that another process can import"
            ) from error

    def tasks(self, fn: Callable[..., Any], shared: Any, items: Iterable[Any]) -> Iterator[Any]:
        """``fn(shared, item)`` of each item, in order; few are computed ahead of what is taken.

        Args:
            fn: Module-level.
            shared: What ``put`` gave.
            items: Small.
        """
        remote = self._ray.remote(num_cpus=1, max_retries=_RETRIES)(fn)
        waiting: deque[Any] = deque()
        try:
            for item in items:
                waiting.append(remote.remote(shared, item))
                if len(waiting) >= _AHEAD * self.workers:
                    yield self._get(waiting.popleft())
            while waiting:
                yield self._get(waiting.popleft())
        finally:  # of a pass that was given up
            for reference in waiting:
                self._ray.cancel(reference)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, JaxpoisonError):
                raise error.cause from None
            raise error.as_instanceof_cause() from None
        except self._ray.exceptions.RayError as error:
            raise DataError(
                f"engine ray: a task was given up after {_RETRIES} retries "
                f"({type(error).__name__}: {str(error).splitlines()[0][:_SHOWN]}); look after the "
                "workers' memory, and go on with --resume"
            ) from error


class RayFeed:
    """Rows in the hands of a cluster: how to read them, or themselves where they are no files."""

    def __init__(self, rows: Rows, engine: RayEngine) -> None:
        self.rows, self._engine = rows, engine
        try:
            self._held = engine.put(rows)
        except DataError:  # an open file or a lock: the rows themselves, in memory
            x = rows.take(np.arange(len(rows)))
            self._held = engine.put(replace(rows, source=open_source(x, role="features")))

    def place(self, tree: Any) -> Any:
        """In the object store, once."""
        return self._engine.put(jax.device_get(tree))

    def run(
        self, fn: Callable[..., Any], operands: Any, stage: Any, first: int
    ) -> Iterator[ShardValue]:
        """One task a few shards."""
        shards = self.rows.num_shards
        step = max(1, min(_MOST, (shards - first) // (_PARTS * self._engine.workers)))
        parts = [(i, min(i + step, shards)) for i in range(first, shards, step)]
        shared = (self._held, self._engine.put(fn), operands, stage)
        for values in self._engine.tasks(run_shards, shared, parts):
            yield from values


def run_shards(shared: Any, part: tuple[int, int]) -> list[ShardValue]:
    """In a worker: the values of some shards, one after the other, on its first device."""
    import ray

    rows, fn, operands, stage = ray.get(list(shared))
    mesh = make_mesh(1)
    placed: tuple[Any, Stage | None] = jax.device_put((operands, stage), replicated(mesh))
    out = []
    for shard in range(*part):
        blocks = rows.group(shard, 1)
        on_device = jax.device_put(blocks, one_each(mesh))
        values = jax.device_get(pass_step(*placed, on_device, fn=fn, mesh=mesh))
        value = jax.tree.map(lambda a: a[0], values)
        out.append(ShardValue(value, blocks.ids[0], blocks.mask[0]))
    return out


def connect(address: str | None) -> Any:
    """Ray, connected to a cluster, or to one of this machine that is started for the purpose.

    Raises:
        UsageError: Ray is not installed, or the cluster can not be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            f"engine ray: Ray is not installed; {install_command('ray')}, or leave --engine out"
        ) from error
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None and "RAY_ADDRESS" not in os.environ:
        options["include_dashboard"] = False
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise UsageError(
            f"engine ray: no cluster at {address!r} ({error}); start one with ray start --head, or "
            "give --engine ray for one of this machine"
        ) from error
    return ray
