"""The tables of README: what is found, what is left of it, what it is called."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("detection_table")
    sys.modules.pop("detection_table", None)


def record(case="patch 1 %", seed=1, kind="backdoor", called="backdoor", tpr=0.8, **options):
    scores = {"fused": {"tpr": tpr}}
    return {
        "set": "digits", "case": case, "seed": seed, "status": "done", "kind": kind,
        "kind_found": called, "scores": scores, "flags": {"tpr": tpr}, "retrain": None, **options,
    }  # fmt: skip


def trained(left, best):
    def filtered(success, accuracy=0.9):
        return {"removed": 1, "success": success, "accuracy": accuracy}

    return {"poisoned": filtered(0.9), "flags": filtered(left), "perfect": filtered(best),
            "random": filtered(0.9)}  # fmt: skip


def held(tables, tmp_path, *records):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return tables.held([str(path)])


def test_the_last_record_of_a_seed_counts(tables, tmp_path):
    records = held(
        tables, tmp_path, record(tpr=0.1), record(tpr=0.6), record(seed=2, tpr=1.0),
        record(seed=3, status="refused"),
    )  # fmt: skip
    assert tables.cell(records["digits", "patch 1 %"]) == "0.80 / 0.80 (2)"
    assert "| patch 1 % | 0.80 / 0.80 (2) |" in tables.table(records)


def test_what_is_left(tables, tmp_path):
    records = held(
        tables, tmp_path,
        record(retrain=trained(0.1, 0.02)), record("warp 5 %", retrain=trained(0.03, 0.02)),
    )  # fmt: skip
    text = tables.retrained(records)
    assert "| patch 1 % | 0.90 → 0.10 / 0.02 |" in text
    assert "success in 1 of 2 pairs" in text and "accuracy in 2 of 2 pairs" in text


def test_what_it_is_called(tables, tmp_path):
    records = held(
        tables, tmp_path,
        record(), record(seed=2), record(seed=3, called="label_flip"), record(seed=4, called=None),
        record("sig", kind="clean_label", called="targeted"),
        record("noise 5 %", kind="availability", called=None), record("clean", kind=None),
    )  # fmt: skip
    text = tables.kinds(records)
    assert "| planted | cases | with a finding | backdoor | label_flip | targeted |" in text
    assert "| backdoor | 4 | 3 | **2** | 1 |  |" in text
    assert "| clean_label | 1 | 1 |  |  | 1 |" in text
    assert "Of 4 cases with a finding 2 are called what they are." in text


def test_a_file_without_marks_is_refused(tables):
    first, last = tables._MARKS
    assert tables.replaced(f"a\n{first}\nold\n{last}\nb", "new", tables._MARKS) == (
        f"a\n{first}\nnew\n{last}\nb"
    )
    with pytest.raises(SystemExit, match="once each"):
        tables.replaced("a", "new", tables._MARKS)
