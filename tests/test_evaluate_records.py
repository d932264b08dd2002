"""Files of an evaluation that are not what they should be: refused, and left as they are."""

from __future__ import annotations

import json

import numpy as np
import pytest

import jaxpoison
from jaxpoison._check import DataError, UsageError
from jaxpoison.evaluate import records, runner
from jaxpoison.evaluate.files import check_docs, check_folder
from jaxpoison.evaluate.markdown import render_markdown
from jaxpoison.evaluate.suites import Case, SetSpec, Suite
from jaxpoison.evaluate.tables import summarise
from jaxpoison.report.files import OutputError

RECORD = {
    "suite_version": 1, "set": "wine", "case": "clean", "attack": "clean", "rate": 0.0, "seed": 0,
    "rows": None, "definition": "d", "version": "0", "status": "done", "kind": None,
    "num_rows": 9, "num_poisoned": 0, "num_cover": 0, "num_added": 0, "scores": {},
    "flags": {"flagged": 0, "tpr": None, "fpr": 0.0, "cover": None}, "verdict": "clean",
    "kind_right": None, "target_right": None, "retrain": None, "seconds": {"scan": 1.0},
}  # fmt: skip
LINE = json.dumps(RECORD)
CLEAN = Suite("s", (SetSpec("wine", "sklearn:wine"),), (Case("clean", "clean"),), (0,))


@pytest.mark.parametrize(
    "text",
    [
        '{"user": "alice", "score": 3}',
        '{"user": "alice", "score": 3}\n',
        '{"case": "x", "set": "y"}\n{"user": "bob"}',
        LINE + '\n{"user": "bob"}',
        LINE + "\nnotes",
        "\ufeff\x00garbage",
        "[1, 2]",
    ],
)
@pytest.mark.parametrize("render_only", [False, True])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path, text, render_only):
    path = tmp_path / "records.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"line \d .*no record"):
        runner.run_suite(CLEAN, tmp_path, render_only=render_only)
    assert path.read_text(encoding="utf-8") == text and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("end", [LINE[:1], LINE[:9], LINE[:60], LINE[:-1]])
@pytest.mark.parametrize("before", ["", LINE + "\n"])
def test_only_a_torn_record_is_cut_and_only_where_records_are_to_follow(tmp_path, end, before):
    path = tmp_path / "records.jsonl"
    path.write_text(before + end)
    held = records.load(path, repair=False)
    assert len(held) == len(before.splitlines()) and path.read_text() == before + end
    assert records.load(path) == held and path.read_text() == before


@pytest.mark.parametrize("name", sorted(set(RECORD) - {"definition"}))
def test_a_record_that_lacks_something(tmp_path, name):
    path = tmp_path / "records.jsonl"
    broken = {key: value for key, value in RECORD.items() if key != name}
    path.write_text(f"{LINE}\n{json.dumps(broken)}\n{LINE}\n")
    with pytest.raises(DataError, match=f"line 2 has no '{name}'"):
        records.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"set": [1]},
        {"num_rows": "x"},
        {"seed": True},
        {"scores": None},
        {"scores": {"spectral": {"auroc": "high"}}},
        {"flags": {"fpr": float("nan")}},
        {"retrain": {"flags": {"a": {"b": 1}}}},
        {"status": "failed"},  # without a reason
    ],
)
def test_a_record_of_wrong_types(tmp_path, change):
    path = tmp_path / "records.jsonl"
    path.write_text(LINE + "\n" + json.dumps(RECORD | change) + "\n")
    with pytest.raises(DataError, match="line 2 "):
        records.load(path)
    path.write_text("{" * 5000 + "\n")
    with pytest.raises(DataError, match="line 1 is no JSON"):
        records.load(path)


def test_docs_take_the_place_of_nothing_but_an_evaluation(tmp_path):
    path = tmp_path / "made" / "page.md"
    assert check_docs(path) == path and not path.parent.exists()
    path.parent.mkdir()
    for text in ("", render_markdown(summarise([RECORD], CLEAN))):
        path.write_text(text)
        check_docs(path)
    path.write_text("# Evaluation of my students")
    with pytest.raises(UsageError, match="something else"):
        check_docs(path)
    path.write_text("# My notes")
    for docs in (path, tmp_path, "", path / "below.md"):
        with pytest.raises(UsageError, match="docs"):
            runner.run_suite(CLEAN, tmp_path / "out", docs=docs)
    assert path.read_text() == "# My notes" and not (tmp_path / "out").exists()


def test_tables_that_can_not_be_written_leave_no_part(tmp_path, monkeypatch):
    (tmp_path / "records.jsonl").write_text(LINE + "\n")
    (tmp_path / "evaluation.md").mkdir()
    with pytest.raises(UsageError, match=r"evaluation\.md"):
        check_folder(tmp_path)
    (tmp_path / "evaluation.md").rmdir()
    monkeypatch.setattr("os.replace", lambda a, b: (_ for _ in ()).throw(OSError(28, "full")))
    task = runner.Task(CLEAN.sets[0], CLEAN.cases[0], 0, None, False)
    (tmp_path / "records.jsonl").write_text(json.dumps(RECORD | task.header()) + "\n")
    with pytest.raises(OutputError, match="full"):
        runner.run_suite(CLEAN, tmp_path, render_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def test_a_file_that_changed_is_scanned_anew(tmp_path, monkeypatch):
    seen = []

    def scan(x, y, *, seed):
        seen.append(len(y))
        raise RuntimeError("seen")  # a case that failed would be run again anyway

    monkeypatch.setattr(jaxpoison, "scan", scan)
    rng, path = np.random.default_rng(0), tmp_path / "mine.npz"
    suite = Suite("s", (SetSpec("mine", str(path)),), (Case("clean", "clean"),), (0,))
    np.savez(path, x=rng.normal(size=(40, 3)), y=np.arange(40) % 2)
    runner.run_suite(suite, tmp_path / "out", retrain=False)
    kept = tmp_path / "out" / "records.jsonl"
    done = json.loads(kept.read_text())
    assert done["content"]
    done |= {key: RECORD[key] for key in set(RECORD) - set(done)} | {"status": "done"}
    kept.write_text(json.dumps(done) + "\n")
    assert runner.run_suite(suite, tmp_path / "out", retrain=False)["clean"] and seen == [32]
    np.savez(path, x=rng.normal(size=(160, 3)), y=np.arange(160) % 2)
    again = runner.run_suite(suite, tmp_path / "out", retrain=False)
    assert seen == [32, 128] and not again["clean"] and again["not_done"]


def test_of_data_that_changed_the_last_content_counts(tmp_path):
    path = tmp_path / "records.jsonl"
    of = {"definition": "d-mine.npz-as is"}
    old = [RECORD | of | {"seed": seed, "content": "old"} for seed in (0, 1)]
    new = [RECORD | of | {"content": "new"}]
    other = [RECORD | {"definition": "d-sklearn:wine-as is", "seed": seed} for seed in (0, 1)]
    for before in (old, [RECORD | of | {"seed": 1}]):
        path.write_text("".join(json.dumps(each) + "\n" for each in [*before, *other, *new]))
        kept = [(each.get("content"), each["seed"]) for each in records.load(path)]
        assert sorted(kept, key=str) == [("new", 0), (None, 0), (None, 1)]


def test_rows_that_are_not_finite_are_refused_before_anything_is_run(tmp_path):
    x = np.zeros((40, 3))
    x[7, 1] = np.nan
    np.savez(tmp_path / "mine.npz", x=x, y=np.arange(40) % 2)
    suite = Suite("s", (SetSpec("m", str(tmp_path / "mine.npz")),), CLEAN.cases, (0,))
    with pytest.raises(DataError, match=r"mine\.npz: row 7 holds NaN"):
        runner.run_suite(suite, tmp_path / "out")
    assert not (tmp_path / "out").exists()
