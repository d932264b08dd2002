"""A run, and what changed since an earlier one, as Markdown."""

from __future__ import annotations

import re
import statistics
from typing import Any

from jaxpoison.bench.compare import STEADY
from jaxpoison.report import _text

_MARKUP = re.compile(r"([\\`*_\[\]<>|#!~&$])")
_LONGEST = 200
_MB = 1e6
_OWN_CORE = 0.8  # of a core, which a call on a CPU has for itself where nothing else runs

_COLUMNS = (
    "kernel", "rows", "run", "spread", "CPU", "rows/s", "GB/s", "GFLOP/s", "roofline", "bound by",
    "MB", "compile",
)  # fmt: skip
_NOTE = """\
*Run* is the median of blocked calls after a warm-up, *spread* the distance of the quartiles over \
that median, *CPU* processor time of all threads. GB/s counts every argument and result once (a \
solver's operands once a step), GFLOP/s a product and a sum each; a star marks FLOP by XLA's own \
count instead of a formula. *Roofline* is the least time that the ceilings above allow over the \
time taken. *MB* is what the compiled program holds: arguments, results, temporaries. *Compile* \
is tracing and compiling, which no other column has in it."""


def render(document: dict[str, Any], *, level: int = 1) -> str:
    """A run as Markdown: the machine, its ceilings, one row a kernel.

    Args:
        document: of ``run_bench``.
        level: of the heading.

    Returns:
        Text that ends with a newline.
    """
    done = [record for record in document["kernels"] if record["status"] == "done"]
    lines = ["#" * level + " Kernels", "", _machine(document), "", _ceilings(document), ""]
    lines += [line for warning in _disturbances(document, done) for line in (warning, "")]
    if done:
        lines += [*_table(_COLUMNS, [_row(record) for record in done]), "", _NOTE, ""]
    failed = [record for record in document["kernels"] if record["status"] != "done"]
    lines += [f"- {plain(r['kernel'])} failed: {plain(r['reason'])}" for r in failed]
    lines += [""] if failed else []
    return "\n".join(lines)


def render_comparison(comparison: dict[str, Any], *, level: int = 1) -> str:
    """What changed, as Markdown; kernels that were measured once only come last.

    Args:
        comparison: of ``compare``.
        level: of the heading.

    Returns:
        Text that ends with a newline.
    """
    lines = ["#" * level + " Beside the earlier run", ""]
    lines += [f"- Beware: {plain(warning)}" for warning in comparison["warnings"]]
    lines += [""] if comparison["warnings"] else []
    both = [row for row in comparison["rows"] if row["ratio"] is not None]
    if both:
        columns = ("kernel", "verdict", "new / old", "CPU", "old", "new")
        cells = [
            [
                f"`{row['kernel']}`",
                row["verdict"].upper() if row["verdict"] == "slower" else row["verdict"],
                f"{row['ratio']:.2f}",
                "\N{EN DASH}" if row["cpu_ratio"] is None else f"{row['cpu_ratio']:.2f}",
                _interval(row["old"]),
                _interval(row["new"]),
            ]
            for row in sorted(both, key=lambda row: -row["ratio"])
        ]
        lines += [*_table(columns, cells, text=2), ""]
    lines += [f"- `{r['kernel']}`: {r['verdict']}" for r in comparison["rows"] if r not in both]
    lines += [""] if len(both) < len(comparison["rows"]) else []
    count, least = comparison["regressions"], comparison["least"]
    lines += [
        f"{count} of {len(both)} slower by more than the spread and {least:.2f} times, which is "
        "what the machine's own rates explain, or 5 %.",
        "",
    ]
    return "\n".join(lines)


def plain(text: object) -> str:
    """Text as Markdown shows it: on one line, markup escaped, nothing hidden."""
    return _MARKUP.sub(r"\\\1", _text.visible(text, _LONGEST))


def duration(seconds: float) -> str:
    """Seconds with a unit that fits: 12.3 µs, 4.56 ms, 7.89 s."""
    for unit, least in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= least:
            return f"{_text.number(seconds / least)} {unit}"
    return f"{_text.number(seconds * 1e6)} \N{MICRO SIGN}s"


def amount(value: float) -> str:
    """A large number with three digits: 940, 12.3 k, 4.56 M."""
    for unit, least in ((" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if value >= least:
            return f"{_text.number(value / least)}{unit}"
    return _text.number(value)


def share(value: float) -> str:
    """A share with two digits, of small ones the first that counts."""
    return f"{value:.2f}" if value >= 0.095 else f"{value:.1g}" if value >= 1e-4 else "< 0.0001"


def _machine(document: dict[str, Any]) -> str:
    machine = document["machine"]
    libraries = ", ".join(f"{k} {v}" for k, v in machine["libraries"].items())
    threads = "".join(f", {k}={v}" for k, v in machine.get("threads", {}).items())
    device = "" if machine["platform"] == "cpu" else f"{machine['device']} on "
    return (
        f"Made by `jaxpoison bench --size {plain(document['size'])}`, version "
        f"{plain(document['version'])}. {plain(device)}{plain(machine['cpu'])}, "
        f"{plain(machine.get('usable_cores'))} of {plain(machine.get('cores'))} cores"
        f"{plain(threads)}, load {plain(machine.get('load'))}, {plain(libraries)}."
    )


def _ceilings(document: dict[str, Any]) -> str:
    found = document["ceilings"]
    rungs = ", ".join(
        f"{max(r['copy_gbps'], r['read_gbps']):.1f} up to {r['bytes'] / _MB:.0f} MB"
        for r in found["memory"][:-1]
    )
    return (
        f"Ceilings, measured in the same run: matrix product {found['gemm_gflops']:.1f} GFLOP/s "
        f"(float32, precision HIGHEST); memory {found['copy_gbps']:.1f} GB/s copied and "
        f"{found['read_gbps']:.1f} read in a working set of "
        f"{found['memory'][-1]['bytes'] / _MB:.0f} MB; smaller ones, GB/s: {rungs}; numpy.copyto "
        f"on the host {found['host_copy_gbps']:.1f} GB/s; an empty call "
        f"{duration(found['dispatch_seconds'])}. Before and after the kernels they differed "
        f"{found['drift']:.2f} times."
    )


def _disturbances(document: dict[str, Any], done: list[dict[str, Any]]) -> list[str]:
    """Signs that the machine had other things to do."""
    found = []
    drift = document["ceilings"]["drift"]
    if drift > STEADY:
        found.append(f"the ceilings before and after differ {drift:.2f} times")
    if document["machine"]["platform"] == "cpu" and done:
        cores = statistics.median(r["cpu"]["median"] / r["wall"]["median"] for r in done)
        if cores < _OWN_CORE:
            found.append(f"half of the kernels got {cores:.2f} of a core or less")
    if not found:
        return []
    return [f"**The machine was not quiet** ({'; '.join(found)}): shares and rates are too low."]


def _row(record: dict[str, Any]) -> list[str]:
    wall, memory = record["wall"], record["memory"]
    star = "" if record["flop_source"] == "formula" else "\\*"
    total = "\N{EN DASH}" if memory is None else _text.number(memory["total"] / _MB)
    return [
        f"`{record['kernel']}`",
        _text.count(record["rows"]),
        duration(wall["median"]),
        f"{100 * (wall['q3'] - wall['q1']) / wall['median']:.0f} %",
        duration(record["cpu"]["median"]),
        amount(record["rows_per_second"]),
        _text.number(record["gbps"]),
        _text.number(record["gflops"]) + star,
        share(record["roofline_share"]),
        plain(record["bound"]),
        total,
        duration(record["trace_seconds"] + record["compile_seconds"]),
    ]


def _interval(wall: dict[str, float]) -> str:
    return f"{duration(wall['median'])} ({duration(wall['q1'])} to {duration(wall['q3'])})"


def _table(columns: tuple[str, ...], rows: list[list[str]], *, text: int = 1) -> list[str]:
    """Rows of Markdown; the first columns are text, the others numbers."""
    rule = ["---" if k < text else "---:" for k in range(len(columns))]
    return ["| " + " | ".join(cells) + " |" for cells in (list(columns), rule, *rows)]
