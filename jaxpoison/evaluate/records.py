"""One JSON line a case: written as it ends, so that a run can be stopped and taken up."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jaxpoison._check import DataError

FILE_NAME = "records.jsonl"
_KEY = ("suite_version", "set", "case", "attack", "rate", "seed", "rows", "definition")


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two records the same case: set, attack, rate, seed, rows, suite's version."""
    return tuple(record.get(name) for name in _KEY)


def load(path: Path) -> list[dict[str, Any]]:
    """The records of earlier runs; a last line that an interrupt tore off is cut away.

    Of several records of one case the last counts.

    Args:
        path: The file; a missing one holds nothing.

    Returns:
        Records in the order of their first appearance.

    Raises:
        DataError: A line other than the last is no JSON object.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    held: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, line in enumerate(data[:whole].splitlines(), 1):
        if line.strip():
            record = _parse(line)
            if record is None:
                raise DataError(f"{path}: line {number} is no JSON object; remove that line")
            held[key_of(record)] = record
    rest = _parse(data[whole:])
    if rest is not None:  # complete, but for the end of its line
        held[key_of(rest)] = rest
    if whole < len(data):
        _repair(path, whole, data[whole:] if rest is not None else b"")
    return list(held.values())


def append(path: Path, record: dict[str, Any]) -> None:
    """Writes one record and makes sure that it is on the disk."""
    line = to_line(record)
    with path.open("a", encoding="ascii") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def to_line(record: dict[str, Any]) -> str:
    """A record as JSON in ASCII; numbers that JSON has no form for are refused."""
    return json.dumps(record, allow_nan=False, default=_plain)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "case" in record and "set" in record else None


def _repair(path: Path, whole: int, rest: bytes) -> None:
    with path.open("r+b") as file:
        file.truncate(whole)
        if rest:
            file.seek(whole)
            file.write(rest + b"\n")


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a record holds {type(value).__name__}, which JSON has no form for")
