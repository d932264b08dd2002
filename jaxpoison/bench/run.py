"""A run: ceilings, every kernel asked for, ceilings again; one document of plain values."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax

import jaxpoison
from jaxpoison._check import UsageError
from jaxpoison.bench import compare
from jaxpoison.bench.cases import CASES, SIZES, TABLE_VERSION, select
from jaxpoison.bench.ceilings import measure_ceilings, merge, roofline
from jaxpoison.bench.machine import describe
from jaxpoison.bench.measure import measure
from jaxpoison.report._text import visible

SCHEMA_VERSION = 1
TOOL = "jaxpoison bench"
MOST_SECONDS = 3600.0
_LONGEST_REASON = 200
_CEILING_SECONDS = 0.3  # for each working set and each product

ProgressFn: TypeAlias = Callable[[int, int, dict[str, Any]], None]


def run_bench(
    *,
    size: str = "small",
    only: Sequence[str] | None = None,
    seconds: float = 1.0,
    baseline: dict[str, Any] | None = None,
    progress: ProgressFn | None = None,
) -> dict[str, Any]:
    """Measures the machine and its kernels, in one process, one after the other.

    Args:
        size: small, medium or large: which workloads (``bench.cases.SIZES``).
        only: names of kernels; None for all.
        seconds: of timed calls for each kernel; compiling comes on top.
        baseline: an earlier document; what seems slower than there is measured once more, and
            the better of the two counts.
        progress: called as ``(done, total, record)`` when a kernel has been measured.

    Returns:
        The document that ``bench.files.write`` takes.

    Raises:
        UsageError: if an argument makes no sense.
    """
    if size not in SIZES:
        raise UsageError(f"size must be small, medium or large, got {size!r}")
    if not 0 < seconds <= MOST_SECONDS:
        raise UsageError(f"seconds must be above 0 and at most {MOST_SECONDS:.0f}, got {seconds}")
    names = select(only)
    config: Any = jax.config  # its settings have no types
    is_cached = config.jax_enable_compilation_cache
    # a program from the cache on disk would be told as compiled in no time
    config.update("jax_enable_compilation_cache", False)
    try:
        before = measure_ceilings(size, _CEILING_SECONDS)
        records = []
        for number, name in enumerate(names, 1):
            records.append(_one(name, size, seconds))
            if progress is not None:
                progress(number, len(names), records[-1])
        if baseline is not None:
            records = _twice(records, baseline, size, seconds)
        ceilings = merge(before, measure_ceilings(size, _CEILING_SECONDS))
    finally:
        config.update("jax_enable_compilation_cache", is_cached)
    return {
        "tool": TOOL,
        "schema_version": SCHEMA_VERSION,
        "table_version": TABLE_VERSION,
        "version": jaxpoison.__version__,
        "size": size,
        "seconds": seconds,
        "machine": describe(),
        "ceilings": ceilings,
        "kernels": [_with_rates(record, ceilings) for record in records],
    }


def _one(name: str, size: str, seconds: float) -> dict[str, Any]:
    """The record of one kernel; one that fails, for want of memory say, does not end the run."""
    try:
        return measure(name, CASES[name](SIZES[size]), seconds)
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else ''}"
        return {
            "kernel": name, "status": "failed", "reason": visible(reason, _LONGEST_REASON),
        }  # fmt: skip
    finally:
        gc.collect()  # arguments and programs of one kernel do not weigh on the next


def _twice(
    records: list[dict[str, Any]], baseline: dict[str, Any], size: str, seconds: float
) -> list[dict[str, Any]]:
    """Records, those that seem slower than the baseline measured anew: noise seldom comes twice."""
    slower = compare.suspects(baseline, records)
    kept = []
    for record in records:
        if record["kernel"] in slower:
            again = _one(record["kernel"], size, seconds)
            if _median(again) < _median(record):
                record = again
        kept.append(record)
    return kept


def _median(record: dict[str, Any]) -> float:
    return float(record["wall"]["median"]) if record["status"] == "done" else math.inf


def _with_rates(record: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, Any]:
    return {**record, **roofline(record, ceilings)} if record["status"] == "done" else record
