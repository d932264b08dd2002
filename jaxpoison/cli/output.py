"""Writing to a standard output that may be closed, too narrow for Unicode, or not there."""

from __future__ import annotations

import contextlib
import io
import os
import sys

_MAX_LINE = 2000


def make_lenient() -> None:
    """Makes both streams escape what their encoding lacks, instead of failing on it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def emit(text: str) -> None:
    """Prints a result; a reader that has gone away (`| head`) does not change the verdict."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _silence()


def flush() -> None:
    """Flushes standard output, which may have been closed by its reader."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence()


def complain(line: str) -> None:
    """Writes one line to standard error, whatever characters the text holds."""
    from jaxpoison.report._text import visible

    with contextlib.suppress(OSError):
        print(visible(line, _MAX_LINE), file=sys.stderr, flush=True)


def _silence() -> None:
    # Python flushes standard output once more at exit, and would fail there a second time.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
