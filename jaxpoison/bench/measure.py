"""One kernel's time, memory and work; compiling apart from running."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison.bench._case import Work
from jaxpoison.stream import compiled, make_mesh, place

LEAST_REPEATS, MOST_REPEATS = 5, 1000
_SHAPES_SHOWN = 4


def ready(value: Any) -> Any:
    """The value when nothing of it is under way any more."""
    return jax.block_until_ready(value)  # type: ignore[no-untyped-call]  # jax leaves it so


def measure(name: str, work: Work, seconds: float) -> dict[str, Any]:
    """Compiles a kernel as one program, warms it up, and times it until the budget is spent.

    Everything is told of the very program that runs: its compilation, its memory (arguments,
    results and temporaries as the compiler laid them out) and, where no formula says, its FLOP.

    Args:
        name: of the kernel.
        work: what to run; its arguments are placed on the first device before any clock starts.
        seconds: to spend on timed calls; at least LEAST_REPEATS are made, at most MOST_REPEATS.

    Returns:
        A record that JSON can hold, without the figures that need ceilings.
    """
    args = ready(place(work.args, make_mesh(1), 0))
    start = time.perf_counter()
    lowered = compiled(work.call).lower(*args)  # type: ignore[attr-defined]
    traced = time.perf_counter()
    program = lowered.compile()
    done = time.perf_counter()
    out = ready(program(*args))
    flops, source = work.flops, "formula"
    if flops is None:
        flops, source = _counted(program), "cost analysis"
    footprint = nbytes(args) + nbytes(out)
    del out
    wall, cpu = timed(lambda: program(*args), seconds)
    return {
        "kernel": name,
        "status": "done",
        "arguments": shapes(work.args),
        "rows": work.rows,
        "flop": flops,
        "flop_source": source,
        "bytes": footprint if work.traffic is None else float(work.traffic),
        "footprint_bytes": footprint,
        "trace_seconds": traced - start,
        "compile_seconds": done - traced,
        "wall": spread(wall),
        "cpu": spread(cpu),
        "repeats": len(wall),
        "memory": _memory(program),
    }


def timed(run: Callable[[], Any], seconds: float) -> tuple[list[float], list[float]]:
    """Wall and processor seconds of each call, every one waited for.

    Args:
        run: starts the work on the device.
        seconds: to spend.

    Returns:
        Seconds by the wall clock, and of this process's processor time, call by call.
    """
    wall: list[float] = []
    cpu: list[float] = []
    spent = 0.0
    ready(run())  # warm caches, and whatever is set up by the first run
    while len(wall) < LEAST_REPEATS or (spent < seconds and len(wall) < MOST_REPEATS):
        worked, start = time.process_time(), time.perf_counter()
        out = ready(run())
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - worked)
        spent += wall[-1]
        del out  # before the next call: two results would need memory for both
    return wall, cpu


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles and minimum in seconds."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high, "min": min(values)}


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a pytree; a random key counts its words."""
    return sum(_bytes_of(leaf) for leaf in jax.tree.leaves(tree))


def shapes(tree: Any) -> str:
    """Shapes of the arrays as text, the largest first: what makes two records comparable."""
    leaves = sorted(jax.tree.leaves(tree), key=_bytes_of, reverse=True)
    parts = ["x".join(map(str, leaf.shape)) for leaf in leaves if leaf.ndim]
    more = len(parts) - _SHAPES_SHOWN
    return ", ".join(parts[:_SHAPES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _bytes_of(leaf: Any) -> int:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return int(np.prod(leaf.shape)) * int(leaf.dtype.itemsize)


def _counted(program: Any) -> float:
    """FLOP by the compiler's count; 0 where a backend does not tell, or there are none."""
    return float((program.cost_analysis() or {}).get("flops", 0.0))


def _memory(program: Any) -> dict[str, int] | None:
    """Bytes as the compiler laid them out; None where a backend does not tell."""
    found = program.memory_analysis()
    if found is None:
        return None
    parts = {
        "arguments": int(found.argument_size_in_bytes),
        "results": int(found.output_size_in_bytes),
        "temporaries": int(found.temp_size_in_bytes),
    }
    return {**parts, "total": sum(parts.values()) - int(found.alias_size_in_bytes)}
