"""Votes of a run that may be cut off, kept piece by piece beside its output.

A piece is a file whose name holds the digest of its bytes, written under another name first: one
that is damaged or half-written is not used. What decides the votes is in ``plan.json``, and
pieces of another plan are refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import HostArray
from jaxpoison.report.files import WORK_NAME, explain_failure

_PLAN = "plan.json"
_DIGEST = 16  # bytes


class Work:
    """The pieces of one run.

    Args:
        out: Folder of the run's output.
        identity: All that decides the votes, as JSON holds it.
        resume: Use what an earlier run left.

    Raises:
        UsageError: Votes are there that are of another plan.
        OutputError: The folder cannot be written to.
    """

    def __init__(self, out: Path, identity: dict[str, Any], *, resume: bool) -> None:
        self.folder = out / WORK_NAME
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.reused = 0
        self._resume = resume
        held = saved_identity(out) if resume else None
        if held is not None:
            found = difference(self.identity, held)
            if found:
                raise UsageError(
                    f"--resume: {out} holds votes of another run: {found}; give the same options, "
                    "or choose another folder"
                )

    def load(self, number: int) -> dict[str, HostArray] | None:
        """A piece, or None where it is not there, not whole, or of another plan."""
        for path in sorted(self.folder.glob(f"piece-{number:06}-*.npz")):
            data = path.read_bytes()
            if self._resume and path.stem.rpartition("-")[2] == self._digest(data):
                with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                    self.reused += 1
                    return {name: arrays[name] for name in arrays.files}
            path.unlink()
        return None

    def save(self, number: int, **arrays: HostArray) -> None:
        """Keeps a piece."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # names are those of the arrays
        data = buffer.getvalue()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / _PLAN).exists():
                _write(self.folder / _PLAN, json.dumps(self.identity, indent=1).encode())
            _write(self.folder / f"piece-{number:06}-{self._digest(data)}.npz", data)
        except OSError as error:
            raise explain_failure(error, self.folder) from error

    def _digest(self, data: bytes) -> str:
        """Of the piece and of all that decided its votes: it fits no other plan."""
        plan = json.dumps(self.identity, sort_keys=True).encode()
        return hashlib.blake2b(plan + b"\0" + data, digest_size=_DIGEST).hexdigest()

    def remove(self) -> None:
        """Lets go of all pieces."""
        shutil.rmtree(self.folder, ignore_errors=True)


def saved_identity(out: Path) -> dict[str, Any] | None:
    """What decided the votes that a folder holds; None where it holds none.

    Raises:
        DataError: It cannot be read.
    """
    path = out / WORK_NAME / _PLAN
    if not path.exists():
        return None
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove {path.parent}") from error
    if not isinstance(held, dict):
        raise DataError(f"{path}: is no plan; remove {path.parent}")
    return held


def difference(now: Any, held: Any, name: str = "") -> str:
    """The first difference of two JSON values in words; empty where they are equal."""
    if isinstance(now, dict) and isinstance(held, dict):
        for key in sorted({*now, *held}):
            found = difference(now.get(key), held.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return ""
    return "" if now == held else f"{name} is {now!r:.80}, there it was {held!r:.80}"


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(data)
        os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
