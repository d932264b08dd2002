"""Independent pieces of work on threads, their results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax.sharding import Mesh


def num_threads(mesh: Mesh) -> int:
    """One a device; on the CPU, whose devices share the cores, one a core."""
    if mesh.devices.flat[0].platform != "cpu":
        return int(mesh.size)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def side_by_side(
    work: Callable[[int, Any], Any], items: Iterator[Any], threads: int
) -> Iterator[Any]:
    """``work(index, item)`` for each item on threads.

    Args:
        work: Called with the number of the item and the item.
        items: Made one by one in the calling thread, few ahead of what is yielded.
        threads: That run ``work``.

    Yields:
        The results, in the order of the items.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Any]] = deque()
        try:
            for index, item in enumerate(items):
                waiting.append(pool.submit(work, index, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()
