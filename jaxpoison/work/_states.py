"""The state of a training that may be cut off, kept by Orbax."""

from __future__ import annotations

import hashlib
import shutil
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpoison.report.files import explain_failure

if TYPE_CHECKING:
    from jaxpoison.work._work import Work

_DIGEST = "digest"


class TrainingStates:
    """The latest state of one training.

    Orbax writes a state under another name and renames it; the digest of its arrays and of what
    decides the run is kept among them, so a state that is damaged or of another run is not used.

    Args:
        work: Of the run.
        name: Of the training.
    """

    def __init__(self, work: Work, name: str) -> None:
        self._work, self._folder = work, work.folder_of(name)
        self._start = self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The latest state that is whole, or None."""
        if not self._folder.is_dir():
            return None
        orbax = _orbax()
        for path in sorted(self._folder.iterdir(), reverse=True):
            try:
                held: dict[str, Any] = orbax.restore(path.absolute())
                if bytes(held.pop(_DIGEST)) == self._digest(held):
                    self._work.reused += 1
                    return held
            except MemoryError:
                raise
            except Exception:  # whatever a library raises at damaged files: they are not used
                pass
        return None

    def save(self, tree: dict[str, Any], *, is_last: bool = False) -> None:
        """Keeps a state, if it is the last or enough was done since the one before.

        Args:
            tree: Dicts of host arrays.
            is_last: Behind the last epoch.

        Raises:
            OutputError: No space, or no permission.
        """
        now = time.monotonic()
        since = self._start if is_last else self._last  # a short training is not worth it
        if now - since < self._work.every:
            return
        try:
            self._work.begin()
            self._folder.mkdir(exist_ok=True)
            earlier = sorted(path for path in self._folder.iterdir())
            number = max((int(p.name) for p in earlier if p.name.isdigit()), default=0) + 1
            whole = {**tree, _DIGEST: np.frombuffer(self._digest(tree), np.uint8)}
            _orbax().save((self._folder / f"{number:06}").absolute(), whole)
            for path in earlier:
                shutil.rmtree(path, ignore_errors=True)
        except (OSError, ValueError) as error:  # tensorstore tells of a full disk by ValueError
            cause = error if isinstance(error, OSError) else OSError(str(error))
            raise explain_failure(cause, self._folder, is_kept=True) from error
        self._last = time.monotonic()

    def _digest(self, tree: Any) -> bytes:
        state = hashlib.blake2b(self._work.plan_bytes, digest_size=16)
        _add(state, tree)
        return state.digest()


def _add(state: Any, tree: Any) -> None:
    if isinstance(tree, dict):
        for name in sorted(tree):
            state.update(f"{name};".encode())
            _add(state, tree[name])
        return
    array = np.ascontiguousarray(tree)
    state.update(f"{array.dtype.str} {array.shape};".encode())
    state.update(array.tobytes())


def _orbax() -> Any:
    import orbax.checkpoint as ocp  # a second to import, and only long trainings need it

    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
