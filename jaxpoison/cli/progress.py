"""How far a scan is: a live bar on a terminal, one plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

ProgressFn = Callable[[str, int, int], None]
PLAIN_SECONDS = 10.0
LIVE_SECONDS = 0.1


class Pace:
    """Rows a second and time left of the stage that is running.

    Args:
      clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.stage: str | None = None
        self.rate = 0.0
        self.now = clock()
        self._start = (0.0, 0)

    def update(self, stage: str, done: int) -> bool:
        """Takes in an event; returns whether it opens a stage."""
        self.now = self._clock()
        is_new = stage != self.stage
        if is_new:
            self.stage, self._start, self.rate = stage, (self.now, done), 0.0
        elapsed, rows = self.now - self._start[0], done - self._start[1]
        if elapsed > 0 and rows > 0:
            self.rate = rows / elapsed
        return is_new

    def describe(self, done: int, total: int) -> str:
        """Returns the rate and the time left, as far as they are known yet."""
        if self.rate <= 0:
            return ""
        parts = [f"{self.rate:,.0f} rows/s"]
        if total > done:
            parts.append(f"{clock_time((total - done) / self.rate)} left")
        return ", ".join(parts)


class PlainProgress:
    """One line every ten seconds, without escape codes: for log files and CI.

    Args:
      stream: where the lines go.
      clock: seconds, never going back.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._pace = Pace(clock)
        self._next = self._pace.now + PLAIN_SECONDS

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Takes in an event; prints a line if one is due."""
        self._pace.update(stage, done)
        if self._pace.now < self._next:
            return
        self._next = self._pace.now + PLAIN_SECONDS
        parts = [f"jaxpoison: {_visible(stage)} {done:,}"]
        if total > 0:
            parts = [f"{parts[0]} of {total:,} ({100 * done // total} %)"]
        parts += filter(None, [self._pace.describe(done, total)])
        # A scan goes on even if nobody reads its log any more.
        with contextlib.suppress(OSError):
            print(", ".join(parts), file=self._stream, flush=True)


class LiveProgress:
    """A bar that is redrawn in place, for terminals.

    Args:
      bar: the display; its columns show `description` and the field `pace`.
      clock: seconds, never going back.
    """

    def __init__(self, bar: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar = bar
        self._pace = Pace(clock)
        self._task: TaskID | None = None
        self._next = self._pace.now

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Takes in an event; redraws at most ten times a second."""
        is_new = self._pace.update(stage, done)
        if not is_new and self._pace.now < self._next and done < total:
            return
        self._next = self._pace.now + LIVE_SECONDS
        if is_new and self._task is not None:
            self._bar.remove_task(self._task)
        if is_new or self._task is None:
            self._task = self._bar.add_task(_visible(stage), pace="")
        self._bar.update(
            self._task,
            completed=done,
            total=total if total > 0 else None,
            pace=self._pace.describe(done, total),
        )


@contextlib.contextmanager
def show_progress(*, quiet: bool = False, stream: TextIO | None = None) -> Iterator[ProgressFn]:
    """Shows progress on standard error while the block runs.

    Args:
      quiet: show nothing.
      stream: instead of standard error.

    Yields:
      A function of (stage, done, total) to call as often as one likes.
    """
    stream = sys.stderr if stream is None else stream
    if quiet:
        yield _ignore
    elif stream.isatty() and os.environ.get("TERM") != "dumb":
        with make_bar(stream) as bar:
            yield LiveProgress(bar)
    else:
        yield PlainProgress(stream)


def make_bar(stream: TextIO, **console_options: Any) -> Progress:
    """Returns the bar, not started: its texts are never read as markup."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %", markup=False),
        TextColumn("{task.fields[pace]}", markup=False),
        console=Console(file=stream, **console_options),
        transient=True,
    )


def clock_time(seconds: float) -> str:
    """Formats a duration as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _visible(stage: str) -> str:
    from jaxpoison.report._text import visible

    return visible(stage, 60)


def _ignore(stage: str, done: int, total: int) -> None:
    return None
