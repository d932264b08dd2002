"""The evaluation: what is measured, that a run can be taken up, that all tables agree."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

import jaxpoison
from jaxpoison.attacks import Poisoned
from jaxpoison.evaluate import measure, retrain, runner
from jaxpoison.evaluate.markdown import render_markdown
from jaxpoison.evaluate.page import render_page
from jaxpoison.evaluate.sets import Split
from jaxpoison.evaluate.suites import Case, SetSpec, Suite
from jaxpoison.evaluate.tables import summarise

HOSTILE = "<script>alert(1)</script> | `x` \u202e\n# *b* [a](javascript:0)"
DIGITS = SetSpec("digits", "sklearn:digits", rows=300)
CASES = (
    Case("clean", "clean"),
    Case("patch 5 %", "patch", 0.05, options={"target": 3}),
    Case("flood", "flood_duplicates", 0.1),
)
TINY = Suite("tiny", (DIGITS, SetSpec("wine", "sklearn:wine")), CASES, (0, 1))


def fake_report(n, seed=0, flagged=(), kind="backdoor", target=3):
    """A report whose scores are noise and whose one finding is what was asked for."""
    rng = np.random.default_rng(seed)
    found = {"kind": kind, "target_class": target, "source_class": None}
    return SimpleNamespace(
        index=np.arange(n),
        scores={"spectral": rng.normal(size=n).astype(np.float32)},
        suspicion=rng.normal(size=n),
        flagged_indices=lambda: np.array(flagged, np.int64),
        verdict="poisoned" if len(flagged) else "clean",
        report={
            "p_poisoned": 0.5,
            "suspected_attacks": [found] if len(flagged) else [],
            "peak_mb": 100.0,
        },
    )


@pytest.fixture
def scans(monkeypatch):
    """Stands in for the scan: flags the brightest rows; keeps what it was called with."""
    calls = []

    def scan(x, y, *, seed):
        calls.append((x, y, seed))
        order = np.argsort(x.reshape(len(x), -1).sum(axis=1), kind="stable")
        return fake_report(len(y), seed, order[-5:])

    monkeypatch.setattr(jaxpoison, "scan", scan)
    return calls


@pytest.fixture
def trainings(monkeypatch):
    """Stands in for training: a network that knows the honest label of every row."""
    calls = []

    def train(x, y, num_classes, *, seed, exclude=None):
        calls.append((len(y), None if exclude is None else int(exclude.sum()), seed))
        return SimpleNamespace(model=len(calls))

    monkeypatch.setattr(retrain, "train", train)
    monkeypatch.setattr(retrain, "predict", lambda model, x, c: np.full(len(x), model % c))
    return calls


# --- records


def test_a_second_run_does_nothing(scans, trainings, tmp_path):
    first = runner.run_suite(TINY, tmp_path / "out")
    counts = len(scans), len(trainings)
    assert counts[0] == 10  # two seeds of clean, patch and flood on images, clean and flood on rows
    kept = (tmp_path / "out" / "records.jsonl").read_bytes()
    assert runner.run_suite(TINY, tmp_path / "out") == first
    assert (len(scans), len(trainings)) == counts
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == kept


def test_a_torn_last_line_is_cut_away_and_its_case_run_again(scans, tmp_path):
    run = {"set_names": ["wine"], "retrain": False}
    first = runner.run_suite(TINY, tmp_path, **run)
    path = tmp_path / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-25])
    again = runner.run_suite(TINY, tmp_path, **run)
    assert len(scans) == 5
    for document in (first, again):
        for entry in document["poisoned"] + document["clean"]:
            entry.pop("seconds")
    assert first == again
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [0, 0, 1, 1]


def test_a_last_line_without_its_end_is_kept(scans, tmp_path):
    runner.run_suite(TINY, tmp_path, set_names=["wine"], retrain=False)
    path = tmp_path / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    runner.run_suite(TINY, tmp_path, set_names=["wine"], retrain=False)
    assert len(scans) == 4 and path.read_bytes() == whole


def test_what_was_not_retrained_is_run_again_when_it_shall_be(scans, trainings, tmp_path):
    run = {"set_names": ["wine"], "attacks": ["clean"], "seeds": [0]}
    assert runner.run_suite(TINY, tmp_path, retrain=False, **run)["clean"][0]["retrain"][
        "poisoned"
    ] == {"removed": None, "accuracy": None, "success": None}
    document = runner.run_suite(TINY, tmp_path, **run)
    assert len(scans) == 2 and document["clean"][0]["retrain"]["flags"]["removed"] == 5


def test_another_rate_is_another_case(scans, tmp_path):
    for rate in (0.05, 0.06):
        suite = Suite("s", (DIGITS,), (Case("patch", "patch", rate),), (0,))
        runner.run_suite(suite, tmp_path, retrain=False)
    assert len(scans) == 2 and len((tmp_path / "records.jsonl").read_text().splitlines()) == 2


def test_a_refusal_is_recorded_and_a_failure_is_tried_again(scans, tmp_path, monkeypatch):
    suite = Suite("s", (DIGITS,), (Case("tiny", "patch", 1e-6), CASES[1]), (0,))
    monkeypatch.setattr(measure, "compare", lambda *_: 1 / 0)
    document = runner.run_suite(suite, tmp_path, retrain=False)
    assert [(e["case"], e["status"]) for e in document["not_done"]] == [
        ("tiny", "refused"),
        ("patch 5 %", "failed"),
    ]
    assert "ZeroDivisionError" in document["not_done"][1]["reason"]
    monkeypatch.undo()
    monkeypatch.setattr(jaxpoison, "scan", lambda x, y, *, seed: fake_report(len(y), seed))
    document = runner.run_suite(suite, tmp_path, retrain=False)
    assert [e["status"] for e in document["not_done"]] == ["refused"]
    assert [e["case"] for e in document["poisoned"]] == ["patch 5 %"]


# --- what is measured


def truth_of(n=100, planted=range(10), cover=range(10, 20), **options):
    mask, is_cover = np.zeros(n, bool), np.zeros(n, bool)
    mask[list(planted)], is_cover[list(cover)] = True, True
    plain = {"trigger": None, "wanted": None, "target": 3, "source": None, "params": {}}
    y = np.zeros(n, np.int64)
    arrays = (np.zeros((n, 2), np.float32), y, mask, is_cover, np.arange(n), y)
    return Poisoned(*arrays, "backdoor", **(plain | options))


def split_of(n=100):
    y = np.arange(n) % 4
    return Split(np.zeros((n, 2), np.float32), y, np.zeros((8, 2), np.float32), y[:8], "rows")


def test_cover_rows_are_left_out_of_rankings_and_count_as_clean_for_flags():
    report = fake_report(100, flagged=[0, 1, 15])
    scores = np.zeros(100)
    scores[:10], scores[10:20] = 1.0, 2.0  # cover rows rank above the poison
    report.suspicion = scores
    out = measure.compare(report, truth_of(), split_of())
    assert out["scores"]["fused"] == {"auroc": 1.0, "average_precision": 1.0, "tpr": 1.0}
    assert out["flags"] == {
        "flagged": 3, "tpr": 0.2, "fpr": pytest.approx(1 / 90), "cover": 0.1,
    }  # fmt: skip
    assert out["kind_right"] is True and out["target_right"] is True


def test_names_are_judged_by_the_first_finding():
    wrong = fake_report(100, flagged=[0], kind="clean_label", target=1)
    out = measure.compare(wrong, truth_of(), split_of())
    assert out["kind_right"] is False and out["target_right"] is False
    several = measure.compare(wrong, truth_of(target=None), split_of())
    assert several["target_right"] is None
    missed = measure.compare(fake_report(100), truth_of(), split_of())
    assert missed["kind_right"] is False and missed["kind_found"] is None
    clean = measure.compare(fake_report(100), None, split_of())
    assert clean["kind_right"] is None and clean["scores"] == {} and clean["flags"]["tpr"] is None


def test_rows_that_the_scan_dropped_are_not_ranked():
    report = fake_report(50)
    report.index = np.arange(50, 100)
    assert measure.compare(report, truth_of(), split_of())["scores"] == {}
    assert measure.compare(report, truth_of(planted=[60]), split_of())["scores"]


def test_images_prepared_as_a_table_are_poisoned_as_images_and_scanned_as_rows(scans):
    for spec in (DIGITS, replace(DIGITS, prepare="table")):
        task = measure.Task(spec, CASES[1], 0, None, False)
        assert measure.run(task)["status"] == "done"
    (images, y, _), (rows, same, _) = scans
    assert images.shape[1:] == (8, 8) and rows.shape == (300, 64) and rows.dtype == np.float32
    assert np.array_equal(rows, images.reshape(300, 64)) and np.array_equal(y, same)


def test_flags_on_honest_noise_are_told():
    noise = np.arange(100) < 4
    out = measure.compare(fake_report(100, flagged=[0, 50]), None, split_of()._replace(noise=noise))
    assert out["flags"]["noise"] == 0.25 and out["flags"]["fpr"] == 0.02


def test_the_four_filters_and_equal_ones_are_trained_once(trainings):
    flagged = np.zeros(100, bool)
    flagged[:4] = True
    out = retrain.closed_loop(truth_of(), split_of(), flagged, seed=0)
    assert [each["removed"] for each in out.values()] == [0, 4, 10, 4]
    assert [removed for _, removed, _ in trainings] == [0, 4, 10, 4]
    trainings.clear()
    none = retrain.closed_loop(None, split_of(), np.zeros(100, bool), seed=0)
    assert len(trainings) == 1 and len({str(each) for each in none.values()}) == 1


def test_success_counts_rows_that_are_not_wanted_already(trainings):
    poisoned = truth_of(trigger=lambda x: x + 1, wanted=lambda y: np.full(len(y), 1))
    goal = retrain.aim(poisoned, split_of())
    assert len(goal.x) == 6 and (goal.x == 1).all() and (goal.wanted == 1).all()
    out = retrain.closed_loop(poisoned, split_of(), np.zeros(100, bool), seed=0)
    assert out["poisoned"]["success"] == 1.0 and out["perfect"]["success"] == 0.0
    assert out["poisoned"]["accuracy"] == 0.25
    assert retrain.aim(truth_of(wanted=lambda y: y), split_of()) is None


def test_success_of_a_targeted_attack_is_its_victims():
    split = split_of()
    split.x[:] = np.arange(100)[:, None]
    goal = retrain.aim(truth_of(params={"victims": [7, 9]}), split)
    assert goal.x[:, 0].tolist() == [7, 9] and goal.wanted.tolist() == [3, 3]


# --- tables


class Text(HTMLParser):
    """The texts, the elements and the attributes of a page, style and script left out."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.tags, self.within = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.within = tag

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        if self.within not in ("style", "script"):
            self.texts.append(data)


def test_every_table_shows_the_numbers_of_the_json(scans, trainings, tmp_path):
    runner.run_suite(TINY, tmp_path, docs=tmp_path / "docs" / "evaluation.md")
    document = json.loads((tmp_path / "evaluation.json").read_text())
    markdown = (tmp_path / "evaluation.md").read_text()
    assert (tmp_path / "docs" / "evaluation.md").read_text() == markdown
    cells = {text.strip() for text in Text((tmp_path / "evaluation.html").read_text()).texts}
    rows = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    entries = document["poisoned"]
    assert len(entries) == 3
    for entry in entries:
        mine = [r for r in rows if (r["set"], r["case"]) == (entry["set"], entry["case"])]
        for name, metric in [("spectral", "auroc"), ("fused", "tpr"), ("fused", "auroc")]:
            cell = entry["scores"][name][metric]
            values = [r["scores"][name][metric] for r in mine]
            assert cell["mean"] == pytest.approx(np.mean(values)) and cell["n"] == len(mine) == 2
            shown = f"{cell['mean']:.3f}"
            line = f"{shown} ({cell['low']:.3f}–{cell['high']:.3f})"  # noqa: RUF001
            assert line in markdown and shown in cells
        cell = entry["retrain"]["flags"]["accuracy"]
        assert f"{cell['mean']:.3f}" in markdown and f"{cell['mean']:.3f}" in cells


def hostile_document(reason=HOSTILE):
    spec, case = SetSpec(HOSTILE, "sklearn:wine", note=HOSTILE), Case(HOSTILE, "patch", 0.1)
    done = {
        **measure.Task(spec, case, 0, None, False).header(),
        **measure.compare(fake_report(100, flagged=[0]), truth_of(), split_of()),
        "version": HOSTILE, "status": "done", "retrain": None, "peak_mb": None,
        "seconds": {"plant": 1.0, "scan": 1.0, "retrain": None},
    }  # fmt: skip
    failed = {**done, "seed": 1, "status": "failed", "reason": reason}
    return summarise([done, failed], Suite(HOSTILE, (spec,), (case,), (0, 1)))


def test_hostile_names_stay_text_in_html():
    page = render_page(hostile_document())
    seen = Text(page)
    assert sum(tag == "script" for tag, _ in seen.tags) == 1
    assert not any(key.startswith("on") or key == "src" for _, a in seen.tags for key in a)
    assert all(a["href"].startswith("#") for tag, a in seen.tags if tag == "a")
    assert "\u202e" not in page and "⟨U+202E⟩" in page
    assert "<script>alert(1)</script>" in "".join(seen.texts)
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", page)


def test_hostile_names_stay_text_in_markdown():
    text = render_markdown(hostile_document())
    assert "\u202e" not in text and "⟨U+202E⟩" in text
    assert not re.search(r"(?<!\\)[<>\[\]]", text)
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert tables and all(line.endswith(" |") for line in tables)
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in tables if r"\<script\>" in line}
    assert widths <= {len(re.findall(r"(?<!\\)\|", line)) for line in tables if "---" in line}


def test_the_page_needs_nothing_else():
    page = render_page(hostile_document())
    assert "http" not in page.replace("http-equiv", "") and "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_shades_follow_the_value():
    from jaxpoison.evaluate.views import share

    def level(mean, shade):
        return share({"mean": mean, "low": None, "high": None, "n": 1}, shade=shade).level

    assert [level(m, "auroc") for m in (0.0, 0.5, 0.75, 1.0)] == [-4, 0, 4, 8]
    assert [level(m, "plain") for m in (0.0, 0.5, 1.0)] == [0, 4, 8] and level(0.5, "") is None


# --- the real thing


@pytest.mark.slow
def test_a_real_case_in_a_process_of_its_own(tmp_path):
    suite = Suite("real", (DIGITS,), (Case("patch 10 %", "patch", 0.1),), (0,))
    document = runner.run_suite(suite, tmp_path, isolate=True)
    entry = document["poisoned"][0]
    assert document["not_done"] == [] and entry["peak_mb"] > 50
    success = {name: each["success"]["mean"] for name, each in entry["retrain"].items()}
    assert success["poisoned"] > success["perfect"] + 0.3
    assert entry["scores"]["fused"]["auroc"]["mean"] > 0.6
