"""Named trees of arrays in a folder beside the output, each whole or not there.

A tree is a file whose name holds the digest of its bytes, written under another name first: one
that is damaged or half-written is not used. What decides the result is in ``plan.json``, and what
is of another plan is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from jaxpoison._check import DataError, UsageError
from jaxpoison.report.files import WORK_NAME, explain_failure

from ._codec import read, write

_PLAN = "plan.json"
_DIGEST = 16  # bytes
_EVERY = 5.0
_BLOCK = 1 << 20
_LOCKS: dict[str, int] = {}  # folders that this process works in


class Work:
    """What one run has done.

    Args:
        out: Folder of the run's output.
        identity: All that decides its result, as JSON holds it.
        resume: Use what an earlier run left; what is there is removed otherwise.

    Attributes:
        folder: Where it is kept.
        reused: How many trees were found and used.
        every: Seconds of a long pass that may be lost.
        plan_bytes: The identity, for digests.

    Raises:
        UsageError: What is there is of another plan.
        OutputError: The folder cannot be written to.
    """

    def __init__(self, out: Path, identity: dict[str, Any], *, resume: bool) -> None:
        self.folder = out / WORK_NAME
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.reused = 0
        self.every = _EVERY
        held = saved_identity(out) if resume else None
        if held is not None:
            found = difference(self.identity, held)
            if found:
                raise UsageError(
                    f"--resume: {out} holds work of another run: {found}; give the same data and "
                    "options, or choose another folder"
                )
        elif self.folder.exists():
            self.remove()
        self._lock: int | None = None  # an open folder
        self.plan_bytes = json.dumps(self.identity, sort_keys=True).encode()

    def load(self, name: str) -> Any:
        """A tree, or None where it is not there, not whole, or of another plan."""
        path = self._found(name)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                tree = read(file)
        except (OSError, ValueError, KeyError, TypeError, ImportError, BadZipFile):
            return None  # whole, but written by something else: it is made again
        self.reused += 1
        return tree

    def load_bytes(self, name: str) -> bytes | None:
        """The same as it was written, for ``decode``."""
        path = self._found(name)
        self.reused += path is not None
        return None if path is None else path.read_bytes()

    def holds(self, name: str) -> bool:
        """Whether it is there and whole."""
        return self._found(name) is not None

    def _found(self, name: str) -> Path | None:
        for path in sorted(self.folder.glob(f"{_stem(name)}.*.npz")):
            with suppress(OSError):
                if path.name == self._name(name, path):
                    return path
        return None

    def save(self, name: str, tree: Any) -> None:
        """Keeps a tree in place of what was there under the name.

        Raises:
            OutputError: No space, or no permission.
        """
        draft = self.folder / f".{_stem(name)}.{os.getpid()}"
        try:
            self.begin()
            with draft.open("wb") as file:
                write(file, tree)
            kept = self.folder / self._name(name, draft)
            earlier = [p for p in self.folder.glob(f"{_stem(name)}.*.npz") if p != kept]
            os.replace(draft, kept)
            for path in earlier:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise explain_failure(error, self.folder, is_kept=True) from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def begin(self) -> None:
        """Makes the folder and its plan, and keeps other runs out of it.

        Raises:
            UsageError: Another run works in it.
            OSError: It can not be written to.
        """
        if self._lock is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder)
        for path in self.folder.glob(".*"):  # drafts of a process that was killed
            path.unlink(missing_ok=True)
        if not (self.folder / _PLAN).exists():
            _write_lasting(self.folder / _PLAN, json.dumps(self.identity, indent=1).encode())

    def folder_of(self, name: str) -> Path:
        """A folder of the run's own for a library that keeps its files itself."""
        return self.folder / _stem(name)

    def _name(self, name: str, path: Path) -> str:
        """With a digest of the name, the file's bytes, and all that decides the result."""
        state = hashlib.blake2b(digest_size=_DIGEST)
        for part in (self.plan_bytes, name.encode()):
            state.update(len(part).to_bytes(8, "little"))
            state.update(part)
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                state.update(block)
        return f"{_stem(name)}.{state.hexdigest()}.npz"

    def remove(self) -> None:
        """Lets go of everything."""
        held = _LOCKS.pop(str(self.folder.resolve()), None)
        if held is not None:
            os.close(held)
        self._lock = None
        shutil.rmtree(self.folder, ignore_errors=True)


def saved_identity(out: Path) -> dict[str, Any] | None:
    """What decides the result that a folder holds parts of; None where it holds none.

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


@cache
def code_identity() -> dict[str, Any]:
    """The code that makes a result: releases, and the content of this package's own files."""
    from importlib.metadata import version

    import jaxpoison

    state = hashlib.blake2b(digest_size=_DIGEST)
    root = Path(jaxpoison.__file__).parent
    for folder in (root, root / "kernels"):  # a link where the package is not installed
        for path in sorted(folder.rglob("*.py")):
            state.update(str(path.relative_to(folder)).encode())
            state.update(path.read_bytes())
    return {
        "jaxpoison": {"version": jaxpoison.__version__, "code": state.hexdigest()},
        "jax": version("jax"),
        "numpy": version("numpy"),
    }


def difference(now: Any, held: Any, name: str = "") -> str:
    """The first difference of two JSON values in words; empty where they are equal."""
    if isinstance(now, dict) and isinstance(held, dict):
        for key in sorted({*now, *held}):
            found = difference(now.get(key), held.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return ""
    return "" if now == held else f"{name} is {now!r:.80}, there it was {held!r:.80}"


def _stem(name: str) -> str:
    """A file name for any name; what is replaced in it still tells two names apart by digest."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    if plain == name:
        return plain
    return f"{plain}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def _locked(folder: Path) -> int:
    """An open folder that this process alone has locked; the lock goes with the process."""
    name = str(folder.resolve())
    if name in _LOCKS:  # an earlier run of this process, which is over
        os.close(_LOCKS.pop(name))
    opened = os.open(folder, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # no such locks on this system
        pass
    except BlockingIOError as error:
        os.close(opened)
        raise UsageError(
            f"out_dir {str(folder.parent)!r}: another run works there; wait for it, or choose "
            "another folder"
        ) from error
    except OSError:  # nor on this file system
        pass
    _LOCKS[name] = opened
    return opened


def _write_lasting(path: Path, data: bytes) -> None:
    """A rename that outlives a power cut must not be of nothing."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
