"""One JSON line a case: written as it ends, so that a run can be stopped and taken up."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jaxpoison._check import DataError

FILE_NAME = "records.jsonl"
_BEGINNING = b'{"suite_version"'  # of every line
_NONE = type(None)
_ALL: dict[str, tuple[type, ...]] = {
    "suite_version": (int,), "set": (str,), "case": (str,), "attack": (str,), "seed": (int,),
    "rate": (int, float), "rows": (int, _NONE), "status": (str,),
}  # fmt: skip
_NOT_DONE: dict[str, tuple[type, ...]] = {"reason": (str,)}
_DONE: dict[str, tuple[type, ...]] = {
    "version": (str,), "kind": (str, _NONE), "num_rows": (int,), "num_poisoned": (int,),
    "num_cover": (int,), "num_added": (int,), "scores": (dict,), "flags": (dict,),
    "verdict": (str,), "kind_right": (bool, _NONE), "target_right": (bool, _NONE),
    "retrain": (dict, _NONE), "seconds": (dict,),
}  # fmt: skip
_KEY = ("suite_version", "set", "case", "attack", "rate", "seed", "rows", "definition")


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two records the same case: set, attack, rate, seed, rows, suite's version."""
    return tuple(record.get(name) for name in _KEY)


def load(path: Path, *, repair: bool = True) -> list[dict[str, Any]]:
    """The records of earlier runs; a last line that an interrupt tore off is cut away.

    Of several records of one case the last counts, and of a user's data that changed those of the
    last content. Nothing is cut that this program can not have begun to write.

    Args:
        path: The file; a missing one holds nothing.
        repair: Whether the end of the file may be mended, so that records can be appended.

    Returns:
        Records in the order of their first appearance.

    Raises:
        DataError: A line is no record.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    held: dict[tuple[Any, ...], dict[str, Any]] = {}
    latest: dict[tuple[str, str], str | None] = {}  # content of what was read last
    last = data[whole:]
    is_torn = _is_torn(last)
    for number, line in enumerate((data[:whole] if is_torn else data).splitlines(), 1):
        if line.strip():
            record = _parse(line)
            wrong = "is no JSON" if record is None else _fault(record)
            if wrong:
                raise DataError(f"{path}: line {number} {wrong}; it is no record: remove that line")
            held[key_of(record)] = record
            latest[_data_of(record)] = record.get("content")
    if last and repair:
        _repair(path, whole, b"" if is_torn else last)
    return [record for record in held.values() if record.get("content") == latest[_data_of(record)]]


def _data_of(record: dict[str, Any]) -> tuple[str, str]:
    """What a record is of, whatever was done to it."""
    return record["set"], str(record.get("definition")).partition("-")[2]


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


def _parse(line: bytes) -> Any:
    """What a line holds; None where it is no JSON, or has numbers that JSON has no form for."""
    try:
        return json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _is_torn(line: bytes) -> bool:
    """Whether a line is the beginning of a record, and not all of one."""
    begun = line[: len(_BEGINNING)] == _BEGINNING[: len(line)]
    return begun and _parse(line) is None


def _fault(record: Any) -> str | None:
    """What a record lacks or holds wrongly, or None; the tables rely on these members."""
    if not isinstance(record, dict):
        return "is no JSON object"
    members = {**_ALL, **(_DONE if record.get("status") == "done" else _NOT_DONE)}
    for name, kinds in members.items():
        if name not in record:
            return f"has no {name!r}"
        value = record[name]
        is_kind = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if not is_kind or (isinstance(value, dict) and not _is_tree(value, 2)):
            return f"has {str(value)[:40]!r} for {name!r}"
    return None


def _is_tree(value: Any, depth: int) -> bool:
    """Numbers, nothings, and objects of them."""
    if isinstance(value, dict):
        return depth > 0 and all(_is_tree(each, depth - 1) for each in value.values())
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


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
