"""Runs that are cut off, and what they write without the times that they took."""

from __future__ import annotations

import json

import pytest

from jaxpoison.work import Work


def files(folder):
    """Every file of a report, without what the scan took of time and memory."""
    held = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    held.pop("report.html")
    report = json.loads(held.pop("report.json"))
    for name in ("timing", "peak_mb"):
        report.pop(name)
    for found in report["detectors"].values():
        found.pop("seconds")
    return held, report


def cut_off(monkeypatch, after, run):
    """Calls a run that is stopped when it has kept so many trees; their names."""
    saved, save = [], Work.save

    def stopping(self, name, tree):
        save(self, name, tree)
        saved.append(name)
        if len(saved) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Work, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(Work, "save", save)
    return saved
