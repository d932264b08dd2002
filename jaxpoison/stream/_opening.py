"""Engines by the names that users give them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxpoison._check import UsageError

from ._engines import Engine, LocalEngine
from ._steps import make_mesh

ENGINES = ("local", "spmd", "ray", "ray://HOST:PORT")


@contextmanager
def open_engine(name: str | Engine, *, devices: int | None = None) -> Iterator[Engine]:
    """An engine, let go of afterwards.

    Args:
        name: "local"; "spmd", or "spmd:HOST:PORT,PROCESSES,PROCESS" where no cluster tells;
            "ray" for the cluster that RAY_ADDRESS names, or one of this machine; "ray://HOST:PORT";
            or an engine, which is left as it is.
        devices: Of this process, for "local"; None for all.

    Raises:
        UsageError: It is unknown, not installed, or can not be reached.
    """
    if not isinstance(name, str):
        yield name
    elif name == "local":
        yield LocalEngine(make_mesh(devices))
    elif name == "spmd" or name.startswith("spmd:"):
        from ._spmd import SpmdEngine, join

        join(*_meeting(name))
        yield SpmdEngine(json.dumps(machine_identity()))
    elif name == "ray" or name.startswith("ray://"):
        from ._ray import RayEngine, connect

        ray, had = _connected(connect, None if name == "ray" else name)
        try:
            yield RayEngine(ray)
        finally:
            if not had:
                ray.shutdown()
    else:
        raise UsageError(f"engine: {name!r}; give one of {', '.join(ENGINES)}")


def machine_identity() -> dict[str, Any]:
    """What of a machine decides the last bits of a result: kinds of devices, cores of a CPU."""
    import os

    import jax

    devices = sorted({f"{device.platform} {device.device_kind}" for device in jax.local_devices()})
    able = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if able else os.cpu_count()
    precision = str(getattr(jax.config, "jax_default_matmul_precision", None))
    return {"machine": {"devices": devices, "cores": cores, "matmul": precision}}


def leave_others(status: int) -> None:
    """Ends this process at once if it runs together with others, so that they do not wait for it.

    The usual end would wait for all of them, and they wait for values of this one.
    """
    import os
    import sys

    import jax

    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def is_first_process() -> bool:
    """Of those that run this program together, once they have met."""
    import jax

    return bool(jax.process_index() == 0)


def _connected(connect: Any, address: str | None) -> tuple[Any, bool]:
    import sys

    ray = sys.modules.get("ray")
    had = ray is not None and ray.is_initialized()
    return connect(address), had


def _meeting(name: str) -> tuple[str | None, int | None, int | None]:
    """Coordinator, number of processes and number of this one, as the name has them."""
    told = name.removeprefix("spmd").removeprefix(":")
    if not told:
        return None, None, None
    try:
        address, processes, process = told.rsplit(",", 2)
        return address, int(processes), int(process)
    except ValueError as error:
        raise UsageError(
            f"engine: {name!r}; give spmd, or spmd:HOST:PORT,PROCESSES,PROCESS such as "
            "spmd:10.0.0.1:1234,4,0"
        ) from error
