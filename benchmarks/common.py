"""What all benchmarks share: clocks, machine facts, a record of each figure, tables."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

_LIBRARIES = ("jax", "jaxlib", "numpy", "scipy", "scikit-learn")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS")


def cpu_seconds() -> float:
    """User and system time of this process, all of its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_mb() -> float:
    """Largest resident size of this process so far, in 10^6 bytes.

    Linux hands ``ru_maxrss`` down from the process that started this one; ``VmHWM`` is our own.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def resident_mb() -> float:
    """Resident size now, in 10^6 bytes (0 where the system does not tell)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    facts: dict[str, Any] = {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "threads": {name: os.environ[name] for name in _THREADS if name in os.environ},
        "libraries": {},
    }
    for name in _LIBRARIES:
        try:
            facts["libraries"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "jax" in sys.modules:
        facts["devices"] = [str(d) for d in sys.modules["jax"].devices()]
    return facts


@dataclass
class Timing:
    """Runs of one contender; what the first run took beyond the others is its compilation."""

    name: str
    first_wall: float = 0.0
    first_cpu: float = 0.0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median_cpu(self) -> float:
        return float(np.median(self.cpu))

    @property
    def median_wall(self) -> float:
        return float(np.median(self.wall))

    def row(self) -> dict[str, Any]:
        """The figures of a table row: medians, the spread as min..max."""
        return {
            "contender": self.name,
            "first s": round(self.first_wall, 3),
            "wall s": round(self.median_wall, 3),
            "wall range": f"{min(self.wall):.3f}..{max(self.wall):.3f}",
            "CPU s": round(self.median_cpu, 3),
            "CPU range": f"{min(self.cpu):.3f}..{max(self.cpu):.3f}",
        }

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "median_cpu": self.median_cpu, "median_wall": self.median_wall}


def _blocked(value: Any) -> Any:
    """Waits for what is still under way on a device."""
    if "jax" in sys.modules:
        sys.modules["jax"].block_until_ready(value)
    return value


def measured(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of one run, its wall seconds and its CPU seconds."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    value = _blocked(run())
    return value, time.perf_counter() - wall, cpu_seconds() - cpu


def interleaved(
    contenders: dict[str, Callable[[], Any]], repeats: int, *, once: tuple[str, ...] = ()
) -> tuple[dict[str, Timing], dict[str, Any]]:
    """One warm-up of each, then A B C A B C ...; the timings and the last results.

    Those named in ``once`` are too slow to repeat: they have no warm-up and run in the first round.
    """
    timings = {name: Timing(name) for name in contenders}
    results: dict[str, Any] = {}
    for name, run in contenders.items():
        if name not in once:
            results[name], wall, cpu = measured(run)
            timings[name].first_wall, timings[name].first_cpu = wall, cpu
    for repeat in range(repeats):
        for name, run in contenders.items():
            if repeat == 0 or name not in once:
                results[name], wall, cpu = measured(run)
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    return timings, results


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; the columns are those of the first row."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def goal(name: str, value: float, bar: float, *, at_least: bool) -> dict[str, Any]:
    """One goal and whether it was reached."""
    met = value >= bar if at_least else value <= bar
    sign = ">=" if at_least else "<="
    return {"goal": name, "value": value, "bar": f"{sign} {bar:g}", "met": "yes" if met else "NO"}


def emit(record: dict[str, Any], out: str | None) -> None:
    """One JSON line on standard output, and appended to a file where one is named."""
    line = json.dumps(record, default=_plain)
    print(line, flush=True)
    if out:
        with open(out, "a") as file:
            file.write(line + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def in_fresh_process(script: str, *arguments: str) -> dict[str, Any]:
    """Runs a benchmark script of this folder by itself; the last line it prints is its record.

    Peak memory and compile time belong to a process: they can be measured in a fresh one only.
    """
    root = Path(__file__).resolve().parent
    path = os.pathsep.join([str(root.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, str(root / script), *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} ended with status {done.returncode}")
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


@contextmanager
def profiled(path: str | None, *, top: int = 30) -> Iterator[None]:
    """Profiles the body by cProfile and prints the top costs; does nothing without a path."""
    if path is None:
        yield
        return
    import cProfile
    import pstats

    profile = cProfile.Profile()
    with profile:
        yield
    profile.dump_stats(path)
    print(f"profile in {path}", file=sys.stderr)
    pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(top)
