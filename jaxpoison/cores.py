"""The cores of a machine without an accelerator, as devices."""

from __future__ import annotations

import os
from typing import Any

_MOST = 8  # devices: each holds a shard and the one read ahead


def use_cores() -> int | None:
    """Makes one CPU device a core, unless somebody has decided about it already.

    A pass is a loop over small tiles, which one device works on with one thread; results do not
    depend on the number of devices. Must come before jax is first used. Where XLA_FLAGS or jax's
    settings name a number of devices, or jax runs already, everything stays as it is.

    Returns:
        The number of devices, or None where nothing was changed.
    """
    import jax

    if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return None
    config: Any = jax.config  # its settings have no types
    if getattr(config, "jax_num_cpu_devices", 0) > 0:
        return None
    is_told = hasattr(os, "sched_getaffinity")  # of this process, where containers have a share
    cores = len(os.sched_getaffinity(0)) if is_told else os.cpu_count() or 1
    count = min(cores, _MOST)
    try:
        config.update("jax_num_cpu_devices", count)
    except (AttributeError, RuntimeError):  # a setting that is not there; a jax that runs already
        return None
    return count
