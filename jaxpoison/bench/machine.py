"""What the figures depend on besides the code; nothing that names the machine or a place on it."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxpoison.bench.ceilings import last_level_cache

_LIBRARIES = ("jax", "jaxlib", "numpy")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_SETTINGS = ("jax_default_matmul_precision", "jax_enable_x64")


def describe() -> dict[str, Any]:
    """Processor, device, threads, versions and settings, as JSON can hold them."""
    device = jax.devices()[0]
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "last_level_cache_bytes": last_level_cache(),
        "platform": device.platform,
        "device": device.device_kind,
        "num_devices": len(jax.devices()),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "threads": {name: os.environ[name] for name in _THREADS if name in os.environ},
        "xla_flags": _flags(os.environ.get("XLA_FLAGS", "")),
        "settings": {name: _plain(getattr(jax.config, name)) for name in _SETTINGS},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _flags(text: str) -> list[str]:
    """Flags with their values, but for values that name a place on this machine."""
    return [flag.split("=")[0] if os.sep in flag or "\\" in flag else flag for flag in text.split()]


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | type(None)) else str(value)
