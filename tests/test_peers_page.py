"""The page of the peers: who leads is said, and the last record of a case counts."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def peers_page(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    held = {name: sys.modules.pop(name, None) for name in ("common", "peers_page")}
    yield importlib.import_module("peers_page")
    for name, module in held.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def tool(name, auroc, flags=(None, None)):
    return {
        "contender": name, "sees": "features", "AUROC": auroc, "TPR at 1 % FPR": auroc,
        "flagged of the poisoned": flags[0], "flagged of the others": flags[1],
    }  # fmt: skip


def record(case="patch", ours=0.9, peer=0.8, poisoned=10, **options):
    flags = (0.7, 0.01) if poisoned else (None, 0.02)
    tools = [
        tool("jaxpoison, fused", ours, flags),
        tool("jaxpoison, fused on features", ours, flags),
        tool("ART one", peer),
        tool("ART two", peer),
        tool("cleanlab", "not installed"),
    ]
    ratio = {"detector": "spectral", "same": "1e-7", "ours, CPU s": 0.1, "ART, CPU s": 0.4}
    return {
        "benchmark": "peers", "set": "digits", "case": case, "seed": 1, "rows": 100,
        "poisoned": poisoned, "shape": [100, 8], "tools": tools,
        "speed": [{**ratio, "CPU ratio": 4.0}], "versions": {"ART": "1.20.1"},
        "machine": {"cpu": "a", "cores": 2, "libraries": {"scikit-learn": "1.9"}}, **options,
    }  # fmt: skip


def test_a_peer_that_leads_stands_out(peers_page):
    behind, ahead = peers_page.by_case([record(), record("warp", ours=0.7, peer=0.75)])
    assert behind["best peer"] == "0.800" and behind["which"] == "ART one"
    assert ahead["best peer"] == "**0.750**"
    page = peers_page.render([record(), record("warp", ours=0.7, peer=0.75)])
    assert "leads 1 of 2 cases" in page


def test_cases_stand_in_the_order_of_the_suite(peers_page):
    own, *known = "one of ours", "patch 1 %", "warp 5 %"
    page = peers_page.render([record(own), record(known[1]), record(known[0])])
    assert page.index(known[0]) < page.index(known[1]) < page.index(own)


def test_clean_data_have_flags_alone(peers_page):
    records = [record(), record("clean", ours=None, peer=None, poisoned=0)]
    assert [row["case"] for row in peers_page.by_case(records)] == ["patch"]
    (ours, *_) = peers_page.by_tool(records)
    assert ours["cases"] == 1 and ours["mean AUROC"] == "0.900" and ours["of clean data"] == "0.020"


def test_the_last_record_of_a_case_counts(peers_page, tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    paths[0].write_text(json.dumps(record(ours=0.5)) + "\n" + json.dumps(record("warp")) + "\n")
    paths[1].write_text(json.dumps(record(ours=0.6)) + "\n" + json.dumps({"benchmark": "other"}))
    found = peers_page.latest([str(path) for path in paths])
    assert [each["tools"][0]["AUROC"] for each in found] == [0.9, 0.6]


def test_speed_is_the_middle_of_the_cases(peers_page):
    records = [record(speed=[{"detector": "spectral", "same": "yes", "ours, CPU s": 1.0,
                              "ART, CPU s": ratio, "CPU ratio": ratio}])
               for ratio in (1.0, 9.0, 3.0)]  # fmt: skip
    (row,) = peers_page.speeds(records)
    assert row["ratio"] == 3.0 and row["features"] == "100 x 8"
