"""What this machine can do at most: bytes a second through memory, FLOP a second in a product.

A small working set stays in a cache, which is many times faster than memory. So bandwidth is
measured on working sets of several sizes, and a kernel's ceiling is the best rate of any that is
at least as large as its own: what the caches could do for it, and no more.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison.bench.measure import ready, timed
from jaxpoison.stream import compiled, make_mesh, place

_MB = 1 << 20
_WORKING_SETS_MB = (1, 4, 16, 64, 256)
_DEVICE_TOP_MB = 1024  # on an accelerator, whose caches are smaller
_MOST_TOP_MB = 2048
_HOST_COPY_MB = 256
_PRODUCTS = {"tiny": (128,), "small": (512, 1024, 2048), "medium": (512, 1024, 2048)}
_LARGEST_PRODUCTS = (1024, 2048, 4096)
_DEVICE_PRODUCTS = (2048, 4096, 8192)
_TIMES_CACHE = 4  # "far larger than the last-level cache"


def measure_ceilings(size: str, seconds: float) -> dict[str, Any]:
    """Copy, read and product rates of the first device, and the cost of an empty call.

    Args:
        size: how large the products are; tiny also leaves out the large working sets.
        seconds: to spend on each of them.

    Returns:
        A record that JSON can hold; ``memory`` has a rung for each working set.
    """
    rungs = [_rung(mb, seconds) for mb in _working_sets(size)]
    return {
        "gemm_gflops": max(_product_gflops(n, seconds) for n in _sizes_of_products(size)),
        "gemm_precision": "float32, precision HIGHEST",
        "memory": rungs,
        "copy_gbps": rungs[-1]["copy_gbps"],
        "read_gbps": rungs[-1]["read_gbps"],
        "host_copy_gbps": _host_copy_gbps(16 if size == "tiny" else _HOST_COPY_MB),
        "dispatch_seconds": _dispatch_seconds(),
    }


def merge(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The best of two measurements, one before the kernels and one after, and how far they differ.

    Args:
        before: of ``measure_ceilings``.
        after: the same.

    Returns:
        Like both, with ``drift``: the largest of the ratios between the two, at least 1.
    """
    best = {**before}
    for name in ("gemm_gflops", "copy_gbps", "read_gbps", "host_copy_gbps"):
        best[name] = max(before[name], after[name])
    best["memory"] = [
        {key: max(one[key], two[key]) for key in one}
        for one, two in zip(before["memory"], after["memory"], strict=True)
    ]
    best["dispatch_seconds"] = min(before["dispatch_seconds"], after["dispatch_seconds"])
    both = ("gemm_gflops", "copy_gbps")
    best["drift"] = math.exp(max(abs(math.log(before[name] / after[name])) for name in both))
    return best


def bandwidth(ceilings: dict[str, Any], footprint: float) -> float:
    """Bytes a second at most, for a working set of so many bytes.

    Args:
        ceilings: of ``measure_ceilings``.
        footprint: bytes of arguments and results together.

    Returns:
        The best of the rates, by copy or by reading alone, of the working sets at least as large;
        that of the largest for anything larger.
    """
    rungs = ceilings["memory"]
    fitting = [rung for rung in rungs if rung["bytes"] >= footprint] or rungs[-1:]
    best: float = max(max(rung["copy_gbps"], rung["read_gbps"]) for rung in fitting)
    return 1e9 * best


def roofline(record: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, Any]:
    """The figures of a record that need time or ceilings.

    ``share`` is the least time that the FLOP and the bytes allow over the median time: the same as
    the achieved rate over min(product ceiling, intensity x bandwidth), and defined without FLOP.

    Args:
        record: of ``measure``.
        ceilings: of the same run.

    Returns:
        Rates, the share, and which of ``memory``, ``compute`` and ``dispatch`` bounds the kernel.
    """
    seconds = record["wall"]["median"]
    computing = record["flop"] / (1e9 * ceilings["gemm_gflops"])
    moving = record["bytes"] / bandwidth(ceilings, record["footprint_bytes"])
    bound = "compute" if computing > moving else "memory"
    if seconds < 5 * ceilings["dispatch_seconds"]:
        bound = "dispatch"
    return {
        "rows_per_second": record["rows"] / seconds,
        "gbps": record["bytes"] / seconds / 1e9,
        "gflops": record["flop"] / seconds / 1e9,
        "intensity": record["flop"] / record["bytes"],
        "roofline_share": max(computing, moving) / seconds,
        "bound": bound,
    }


def _add_one(x: Any) -> Any:
    return x + 1


def _row_maxima(x: Any) -> Any:
    return jnp.max(x, axis=1)


def _multiply(a: Any, b: Any) -> Any:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _on_device(array: Any) -> Any:
    return ready(place(array, make_mesh(1), 0))


def _rung(mb: float, seconds: float) -> dict[str, float]:
    """Rates of a working set: x + 1 in its own memory, and a maximum of each row."""
    x = np.zeros((max(int(mb * _MB) // 4096, 1), 1024), np.float32)
    bytes_of = x.nbytes
    read = compiled(_row_maxima)
    held = _on_device(x)
    reading = min(timed(lambda: read(held), seconds)[0])
    add = compiled(_add_one, donate=("x",))

    def step() -> Any:
        # in place: memory that is new to the process would be filled with zeros by the system first
        nonlocal held
        held = add(held)
        return held

    copying = min(timed(step, seconds)[0])
    return {
        "bytes": float(bytes_of),
        "copy_gbps": 2 * bytes_of / copying / 1e9,
        "read_gbps": bytes_of / reading / 1e9,
    }


def _product_gflops(n: int, seconds: float) -> float:
    a = _on_device(np.ones((n, n), np.float32))
    multiply = compiled(_multiply)
    return 2 * n**3 / min(timed(lambda: multiply(a, a), seconds)[0]) / 1e9


def _host_copy_gbps(mb: int) -> float:
    """numpy.copyto between two arrays, what one thread of the host moves."""
    source = np.ones(mb * _MB // 4, np.float32)
    target = np.ones_like(source)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best / 1e9


def _dispatch_seconds() -> float:
    add, one = compiled(_add_one), _on_device(np.zeros(1, np.float32))
    return float(np.median(timed(lambda: add(one), 0.05)[0]))


def _is_cpu() -> bool:
    return bool(jax.devices()[0].platform == "cpu")


def _working_sets(size: str) -> tuple[float, ...]:
    if size == "tiny":
        return (1, 4)
    if not _is_cpu():
        return (*_WORKING_SETS_MB, _DEVICE_TOP_MB)
    top = _TIMES_CACHE * last_level_cache() / _MB
    most = min(_MOST_TOP_MB, _memory_bytes() / _MB / 8)
    top = min(max(top, 2 * _WORKING_SETS_MB[-1]), most)
    return (*(mb for mb in _WORKING_SETS_MB if mb < top), top)


def _sizes_of_products(size: str) -> tuple[int, ...]:
    if size != "tiny" and not _is_cpu():
        return _DEVICE_PRODUCTS
    return _PRODUCTS.get(size, _LARGEST_PRODUCTS)


def last_level_cache() -> int:
    """Bytes of the largest processor cache; 0 where the system does not tell."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    largest = 0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()
            largest = max(largest, int(text[:-1]) * units.get(text[-1], 1))
        except (OSError, ValueError):
            continue
    return largest


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return 8 << 30
