"""Progress: how often, in which words, and never with what the data smuggles in."""

from __future__ import annotations

import io

import pytest

from jaxpoison.cli.progress import (
    LiveProgress,
    PlainProgress,
    clock_time,
    make_bar,
    show_progress,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class ClosedStream(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_one_plain_line_every_ten_seconds():
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, clock)
    for second in range(0, 31):
        clock.now = 1000.0 + second
        progress("score", 1000 * second, 60_000)
    assert stream.getvalue().splitlines() == [
        "jaxpoison: score 10,000 of 60,000 (16 %), 1,000 rows/s, 0:50 left",
        "jaxpoison: score 20,000 of 60,000 (33 %), 1,000 rows/s, 0:40 left",
        "jaxpoison: score 30,000 of 60,000 (50 %), 1,000 rows/s, 0:30 left",
    ]


def test_a_new_stage_starts_its_own_rate():
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, clock)
    progress("train", 0, 100)
    clock.now += 8
    progress("train", 100, 100)
    progress("score", 0, 1000)
    clock.now += 2
    progress("score", 10, 1000)
    assert stream.getvalue() == "jaxpoison: score 10 of 1,000 (1 %), 5 rows/s, 3:18 left\n"


@pytest.mark.parametrize(("done", "total"), [(0, 0), (0, 100)])
def test_unknown_rate_or_total_is_left_out(done, total):
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, clock)
    clock.now += 10
    progress("read", done, total)
    line = stream.getvalue()
    assert line.startswith("jaxpoison: read 0") and "rows/s" not in line and "left" not in line


def test_plain_lines_show_hidden_characters_and_no_escape_code():
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, clock)
    clock.now += 10
    progress("\x1b[31m[red]x[/red]\n\u202e", 1, 2)
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line and "\u202e" not in line
    assert "⟨U+001B⟩[31m[red]x[/red] ⟨U+202E⟩" in line


def test_a_log_nobody_reads_does_not_stop_the_scan():
    clock, stream = Clock(), ClosedStream()
    progress = PlainProgress(stream, clock)
    clock.now += 10
    progress("score", 1, 2)
    assert clock.now == 1010.0 and stream.getvalue() == ""


def test_live_bar_takes_no_markup_from_a_stage():
    clock, stream = Clock(), Terminal()
    with make_bar(stream, force_terminal=True, color_system=None, width=120) as bar:
        progress = LiveProgress(bar, clock)
        progress("[red]x[/red] \x1b[31m {0}", 0, 600)
        clock.now += 2
        progress("[red]x[/red] \x1b[31m {0}", 200, 600)
    text = stream.getvalue()
    assert "[red]x[/red] ⟨U+001B⟩[31m {0}" in text
    assert "\x1b[31m" not in text
    assert "100 rows/s, 0:04 left" in text


def test_live_bar_shows_one_stage_and_skips_what_comes_too_fast():
    clock, stream = Clock(), Terminal()
    bar = make_bar(stream, force_terminal=True, width=120)
    progress = LiveProgress(bar, clock)
    progress("train", 0, 100)
    progress("score", 0, 100)
    (task,) = bar.tasks
    assert task.description == "score"
    clock.now += 0.01
    progress("score", 5, 100)
    assert task.completed == 0
    clock.now += 1
    progress("score", 6, 100)
    assert task.completed == 6
    progress("score", 100, 100)
    assert task.completed == 100


@pytest.mark.parametrize(
    ("stream", "term", "kind"),
    [
        (io.StringIO(), "xterm", "PlainProgress"),
        (Terminal(), "dumb", "PlainProgress"),
        (Terminal(), "xterm", "LiveProgress"),
    ],
)
def test_the_display_fits_the_stream(monkeypatch, stream, term, kind):
    monkeypatch.setenv("TERM", term)
    with show_progress(stream=stream) as progress:
        assert type(progress).__name__ == kind


def test_quiet_shows_nothing():
    stream = Terminal()
    with show_progress(quiet=True, stream=stream) as progress:
        progress("score", 1, 2)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (59.7, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_clock_time(seconds, text):
    assert clock_time(seconds) == text
