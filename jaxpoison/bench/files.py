"""The JSON of a run: read with suspicion, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from jaxpoison._check import DataError, UsageError
from jaxpoison.bench.run import SCHEMA_VERSION, TOOL
from jaxpoison.report.files import to_json

_MOST_BYTES = 16 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_RATES = ("gemm_gflops", "copy_gbps", "read_gbps", "host_copy_gbps", "dispatch_seconds", "drift")
_FIGURES = (
    "rows", "flop", "bytes", "trace_seconds", "compile_seconds", "repeats", "rows_per_second",
    "gbps", "gflops", "roofline_share",
)  # fmt: skip
_TEXTS = ("arguments", "flop_source", "bound")


def write(document: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a run as JSON; see ``write_text``."""
    write_text(to_json(document), path)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Writes a file, which is the old one or the new one to any reader, never half of it."""
    target = Path(path)
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def check_target(argument: str, path: str | os.PathLike[str]) -> None:
    """Refuses a file that could not be written, before anything is measured.

    Raises:
        UsageError: if it is a folder, or lies in none.
    """
    target = Path(path)
    if not str(path) or target.is_dir():
        raise UsageError(f"{argument} {str(path)!r} is a folder; name a file")
    if not target.parent.is_dir():
        raise UsageError(f"{argument} {str(path)!r}: there is no such folder; make it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{argument} {str(path)!r}: no permission to write there")


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a run and checks everything that is used of it.

    Args:
        path: of a file that ``write`` made.

    Returns:
        The document.

    Raises:
        UsageError: if there is no such file.
        DataError: if it is no run, or one of another schema.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"{str(path)!r}: no such file; name the JSON of an earlier run")
    if file.stat().st_size > _MOST_BYTES:
        raise DataError(f"{str(path)!r} has more than {_MOST_BYTES >> 20} MB: it is no run")
    try:
        document = json.loads(file.read_bytes(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is no JSON: {error}") from None
    if not isinstance(document, dict) or document.get("tool") != TOOL:
        raise DataError(f"{str(path)!r} was not made by `{TOOL} --out`")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{str(path)!r} has schema version {document.get('schema_version')!r}, this program "
            f"reads {SCHEMA_VERSION}; measure the old code again"
        )
    try:
        _check(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{str(path)!r} is damaged: {error}; measure again") from None
    return document


def _check(document: dict[str, Any]) -> None:
    _text(document, "size", "version")
    _positive(document, "table_version", "seconds")
    _positive(document["ceilings"], *_RATES)
    for rung in document["ceilings"]["memory"]:
        _positive(rung, "bytes", "copy_gbps", "read_gbps")
    machine = document["machine"]
    _text(machine, "cpu", "device", "platform")
    if not isinstance(machine["libraries"], dict):
        raise TypeError("machine.libraries is no object")
    seen = set()
    for record in document["kernels"]:
        name = record["kernel"]
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in seen:
            raise ValueError(f"kernel {name!r} is no name, or is there twice")
        seen.add(name)
        _check_record(record)


def _check_record(record: dict[str, Any]) -> None:
    if record["status"] == "failed":
        return _text(record, "reason")
    if record["status"] != "done":
        raise ValueError(f"status {record['status']!r}")
    _text(record, *_TEXTS)
    _each(record, _FIGURES, lambda value: value >= 0)
    _positive(record["wall"], "median", "q1", "q3")
    _each(record["cpu"], ("median", "q1", "q3"), lambda value: value >= 0)
    if record["memory"] is not None:
        _each(record["memory"], ("total",), lambda value: value >= 0)


def _text(values: dict[str, Any], *names: str) -> None:
    for name in names:
        if not isinstance(values[name], str):
            raise TypeError(f"{name} is no text")


def _positive(values: dict[str, Any], *names: str) -> None:
    _each(values, names, lambda value: value > 0)


def _each(values: dict[str, Any], names: tuple[str, ...], is_good: Callable[[Any], bool]) -> None:
    for name in names:
        value = values[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not is_good(value):
            raise ValueError(f"{name} is {value!r}")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}")
