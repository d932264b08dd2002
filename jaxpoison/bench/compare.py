"""Two runs side by side: what became slower by more than their spread explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxpoison._check import DataError
from jaxpoison.bench.cases import TABLE_VERSION

SLOWER, FASTER, SAME, UNCERTAIN = "slower", "faster", "same", "uncertain"
OTHER, MISSING, NEW, FAILED = "other workload", "not in this run", "not in the old run", "failed"
LEAST_EFFECT = 0.05
"""A change of the median below this is called the same, however small the spread is."""
_LEAST_CEILING = 0.10  # by which the ceilings of two runs may differ
STEADY = 1.25
"""The ceilings of one run before and after its kernels differ by less, or it was disturbed."""
_FACTS = (
    ("cpu", "processor"), ("device", "device"), ("usable_cores", "usable cores"),
    ("threads", "thread settings"), ("xla_flags", "XLA flags"), ("settings", "jax settings"),
)  # fmt: skip
_CEILINGS = (("gemm_gflops", "product, GFLOP/s"), ("copy_gbps", "copy, GB/s"))


def check_comparable(old: dict[str, Any], size: str) -> None:
    """Refuses an earlier run that a new one of a size could not be held against.

    Args:
        old: document of the earlier run.
        size: of the new one.

    Raises:
        DataError: if the two are not of the same size and table of workloads.
    """
    mine = {"size": size, "table_version": TABLE_VERSION}
    for name, what in (("size", "size"), ("table_version", "version of the table of workloads")):
        if old[name] != mine[name]:
            raise DataError(
                f"the runs differ in {what}: {old[name]!r} before, {mine[name]!r} now; measure the "
                "old code again with the same"
            )


def compare(
    old: dict[str, Any], new: dict[str, Any], *, only: Sequence[str] | None = None
) -> dict[str, Any]:
    """Holds a run against an earlier one.

    Args:
        old: document of the earlier run.
        new: document of this one.
        only: kernels asked for; others of the old run are not missed.

    Returns:
        ``rows`` (one a kernel: verdict, ratio of the medians, both spreads), ``warnings`` that
        say in what the two machines or runs differ, the ``least`` ratio that is a change, and the
        number of ``regressions``.

    Raises:
        DataError: if the two are not of the same size and table.
    """
    check_comparable(old, new["size"])
    least = least_change(old, new)
    on_cpu = all(document["machine"]["platform"] == "cpu" for document in (old, new))
    found = rows(old["kernels"], new["kernels"], least=least, has_cpu_time=on_cpu)
    if only is not None:
        found = [row for row in found if row["kernel"] in only]
    return {
        "rows": found,
        "warnings": _warnings(old, new),
        "least": least,
        "regressions": sum(row["verdict"] == SLOWER for row in found),
    }


def suspects(old: dict[str, Any], records: list[dict[str, Any]]) -> set[str]:
    """The kernels that the clock calls slower than in an earlier run, whatever else speaks for it.

    Args:
        old: document of the earlier run.
        records: of this one.

    Returns:
        Their names.
    """
    found = rows(old["kernels"], records, least=1 + LEAST_EFFECT, has_cpu_time=False)
    return {row["kernel"] for row in found if row["verdict"] == SLOWER}


def least_change(old: dict[str, Any], new: dict[str, Any]) -> float:
    """The ratio from which on a change is the kernel's and not the machine's.

    Args:
        old: document of the earlier run.
        new: document of this one.

    Returns:
        1 + LEAST_EFFECT, or by how much the machine's own rates changed during either run or
        between the two, if that is more.
    """
    moved: list[float] = [document["ceilings"]["drift"] for document in (old, new)]
    for key, _ in _CEILINGS:
        ratio = new["ceilings"][key] / old["ceilings"][key]
        moved.append(max(ratio, 1 / ratio))
    return max(1 + LEAST_EFFECT, *moved)


def rows(
    old: list[dict[str, Any]], new: list[dict[str, Any]], *, least: float, has_cpu_time: bool
) -> list[dict[str, Any]]:
    """The verdict on each kernel, those of the new run first.

    Args:
        old: records of the earlier run.
        new: of this one.
        least: ratio from which on a change counts.
        has_cpu_time: the work was done by processors whose time was taken: a change that they do
            not show as well is uncertain, for calls may have waited for a core.

    Returns:
        One dictionary a kernel.
    """
    held = {record["kernel"]: record for record in old}
    found = [_row(held.pop(record["kernel"], None), record, least, has_cpu_time) for record in new]
    return found + [{"kernel": name, "verdict": MISSING, "ratio": None} for name in held]


def verdict(old: dict[str, float], new: dict[str, float], least: float = 1 + LEAST_EFFECT) -> str:
    """What two spreads say.

    Slower or faster is a median that moved by a factor of ``least`` or more while the intervals
    from the first to the third quartile do not touch; where they do, or the factor is below
    ``least`` and not below 1 + LEAST_EFFECT, a change is uncertain.

    Args:
        old: median, q1, q3 in seconds.
        new: the same.
        least: ratio from which on a change counts.

    Returns:
        ``slower``, ``faster``, ``same`` or ``uncertain``.
    """
    ratio = new["median"] / old["median"]
    if 1 / (1 + LEAST_EFFECT) < ratio < 1 + LEAST_EFFECT:
        return SAME
    if new["q1"] > old["q3"] and ratio >= least:
        return SLOWER
    if new["q3"] < old["q1"] and ratio <= 1 / least:
        return FASTER
    return UNCERTAIN


def _row(
    old: dict[str, Any] | None, new: dict[str, Any], least: float, has_cpu_time: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {"kernel": new["kernel"], "verdict": NEW, "ratio": None}
    if new["status"] != "done":
        return {**row, "verdict": FAILED}
    if old is None or old["status"] != "done":
        return row
    if old["arguments"] != new["arguments"]:
        return {**row, "verdict": OTHER}
    said = verdict(old["wall"], new["wall"], least)
    # a clock of the processor may not resolve a short call: then it says nothing
    work = new["cpu"]["median"] / old["cpu"]["median"] if old["cpu"]["median"] > 0 else None
    if has_cpu_time and work is not None:
        is_borne_out = {SLOWER: work >= least, FASTER: work <= 1 / least}
        said = said if is_borne_out.get(said, True) else UNCERTAIN
    return {
        **row,
        "verdict": said,
        "ratio": new["wall"]["median"] / old["wall"]["median"],
        "cpu_ratio": work,
        "old": old["wall"],
        "new": new["wall"],
    }


def _warnings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Why a verdict may be the machine's rather than the code's."""
    found = []
    before, now = old["machine"], new["machine"]
    for key, name in _FACTS:
        if before.get(key) != now.get(key):
            found.append(f"another {name}: {before.get(key)} before, {now.get(key)} now")
    for library, version in now["libraries"].items():
        earlier = before["libraries"].get(library)
        if earlier != version:
            found.append(f"another {library}: {earlier} before, {version} now")
    for key, name in _CEILINGS:
        one, two = old["ceilings"][key], new["ceilings"][key]
        if abs(two / one - 1) > _LEAST_CEILING:
            found.append(
                f"the machine itself gave another rate ({name}): {one:.1f} before, {two:.1f} now"
            )
    for document, when in ((old, "old"), (new, "new")):
        drift = document["ceilings"]["drift"]
        if drift > STEADY:
            found.append(
                f"the machine was not steady: its rates changed {drift:.2f} times during the "
                f"{when} run"
            )
    return found
