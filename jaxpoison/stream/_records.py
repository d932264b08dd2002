"""What a pass has given so far, kept so that one that was cut off goes on where it was."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np

from jaxpoison._types import HostArray


class Journal(Protocol):
    """Named pytrees of host arrays that outlive the process (``jaxpoison.work.Work`` is one)."""

    every: float
    """Seconds of a pass that may be lost."""

    def load(self, name: str) -> Any:
        """What was saved under the name, or None where that is not there or not whole."""

    def save(self, name: str, tree: Any) -> None:
        """Keeps it in place of what was there."""


class Record:
    """One pass in a journal.

    A fold is kept as its carry after so many shards, a map as pieces of rows that follow each
    other. The carry is in float64 as it was, so going on from it gives the same bits.
    """

    def __init__(self, journal: Journal, key: str) -> None:
        self._journal, self._key = journal, key
        self._since, self._kept, self._is_kept = time.monotonic(), (0, 0), True

    def load_carry(self) -> tuple[int, Any]:
        """Shards done and the carry after them."""
        held = self._journal.load(self._key)
        return (0, None) if held is None else (held["done"], held["carry"])

    def keep_carry(self, done: int, carry: Any, *, is_last: bool) -> None:
        """Keeps the carry, if it is the last or enough was done since."""
        if is_last or self._is_due():
            self._save(self._key, {"done": done, "carry": carry})

    def load_rows(self, num_rows: int) -> tuple[int, HostArray | None]:
        """Shards done, and [n, ...] with their rows filled in."""
        out: HostArray | None = None
        while (held := self._journal.load(self._piece(self._kept[0]))) is not None:
            rows, start = held["rows"], self._kept[1]
            if held["done"] <= self._kept[0] or start + len(rows) > num_rows:
                break  # not of this pass, whatever its name says
            if out is None:
                out = np.empty((num_rows, *rows.shape[1:]), rows.dtype)
            out[start : start + len(rows)] = rows
            self._kept = held["done"], start + len(rows)
        return self._kept[0], out

    def keep_rows(self, done: int, out: HostArray, stop: int) -> None:
        """Keeps the rows up to ``stop``, if they are the last or enough was done since."""
        if stop == len(out) or self._is_due():
            first, start = self._kept
            self._save(self._piece(first), {"done": done, "rows": out[start:stop]})
            self._kept = done, stop

    def _piece(self, first: int) -> str:
        return f"{self._key}-{first:06}"

    def _save(self, name: str, tree: Any) -> None:
        if self._is_kept:
            try:
                self._journal.save(name, tree)
            except TypeError:  # a value of another package's type: the pass goes on unkept
                self._is_kept = False
        self._since = time.monotonic()

    def _is_due(self) -> bool:
        return time.monotonic() - self._since >= self._journal.every


class Unkept:
    """A pass without a journal."""

    def load_carry(self) -> tuple[int, Any]:
        """Nothing."""
        return 0, None

    def keep_carry(self, done: int, carry: Any, *, is_last: bool) -> None:
        """Lets it go."""

    def load_rows(self, num_rows: int) -> tuple[int, HostArray | None]:
        """Nothing."""
        return 0, None

    def keep_rows(self, done: int, out: HostArray, stop: int) -> None:
        """Lets them go."""
