"""Two runs side by side: verdicts on records that nobody measured, and how they are shown."""

from __future__ import annotations

import json

import pytest

from bench_data import document, failed, record, spread
from jaxpoison._check import DataError, UsageError
from jaxpoison.bench import files
from jaxpoison.bench.compare import compare, suspects, verdict
from jaxpoison.bench.tables import duration, render, render_comparison


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (spread(1.0), spread(1.2), "slower"),
        (spread(1.2), spread(1.0), "faster"),
        (spread(1.0), spread(1.0), "same"),
        (spread(1.0, 0.001), spread(1.04, 0.001), "same"),  # apart, but too little to matter
        (spread(1.0, 0.6), spread(1.3, 0.6), "uncertain"),  # much, but within the spread
        (spread(1.0, 0.6), spread(1.04, 0.6), "same"),
        (spread(1.0, 0.6), spread(2.0, 0.6), "slower"),
        (spread(1.0), spread(1.06), "slower"),
        (spread(1.0), spread(0.9, 0.4), "uncertain"),
    ],
)
def test_verdicts_use_the_spread_and_a_least_effect(old, new, said):
    assert verdict(old, new) == said


@pytest.mark.parametrize(("name", "value"), [("drift", 1.5), ("copy_gbps", 6.5)])
def test_what_the_machines_own_rates_explain_is_uncertain(name, value):
    old, new = document(record("a", 1.0)), document(record("a", 1.4))
    assert verdicts(old, new) == {"a": "slower"}
    for which in (old, new):
        saved = which["ceilings"][name]
        which["ceilings"][name] = value
        assert verdicts(old, new) == verdicts(new, old) == {"a": "uncertain"}
        which["ceilings"][name] = saved
    new["kernels"] = [record("a", 1.6)]
    new["ceilings"][name] = value
    assert verdicts(old, new) == {"a": "slower"}
    new["kernels"] = [record("a", 1.6, cpu=1.1)]  # it waited for a core
    assert verdicts(old, new) == {"a": "uncertain"}


def verdicts(old, new, **options):
    return {row["kernel"]: row["verdict"] for row in compare(old, new, **options)["rows"]}


def test_processor_time_must_bear_out_the_clock():
    old = document(record("a", 1.0), record("b", 1.0), record("c", 1.0), record("d", 1.0))
    new = document(
        record("a", 2.0), record("b", 2.0, cpu=1.0), record("c", 0.5, cpu=1.0),
        record("d", 2.0, cpu=0.0),
    )  # fmt: skip
    for each in old["kernels"]:
        if each["kernel"] == "d":
            each["cpu"] = spread(0.0)  # too short for that clock: it says nothing
    assert verdicts(old, new) == {"a": "slower", "b": "uncertain", "c": "uncertain", "d": "slower"}
    assert suspects(old, new["kernels"]) == {"a", "b", "d"}
    for each in (old, new):
        each["machine"]["platform"] = "gpu"  # the host only waits there
    assert verdicts(old, new) == {"a": "slower", "b": "slower", "c": "faster", "d": "slower"}


def test_kernels_of_one_run_only_other_workloads_and_failures_are_no_regressions():
    old = document(
        record("gone", 1.0), record("grown", 1.0), record("broken", 1.0), failed("mended")
    )
    new = document(
        record("grown", 9.0, arguments="200x8"), failed("broken"), record("mended", 9.0),
        record("fresh", 9.0),
    )  # fmt: skip
    found = compare(old, new)
    assert found["regressions"] == 0
    assert {row["kernel"]: row["verdict"] for row in found["rows"]} == {
        "grown": "other workload", "broken": "failed", "mended": "not in the old run",
        "fresh": "not in the old run", "gone": "not in this run",
    }  # fmt: skip
    text = render_comparison(found)
    assert "`gone`: not in this run" in text and "0 of 0 slower" in text


def test_kernels_not_asked_for_are_not_missed():
    old = document(record("a", 1.0), record("b", 1.0))
    assert verdicts(old, document(record("a", 1.0)), only=("a",)) == {"a": "same"}


def test_another_machine_is_warned_of():
    old, new = document(record("a", 1.0)), document(record("a", 1.9))
    assert compare(old, new)["warnings"] == []
    new["machine"]["cpu"], new["machine"]["threads"] = "Other", {}
    new["machine"]["libraries"]["jax"] = "0.12.0"
    new["ceilings"]["gemm_gflops"], new["ceilings"]["copy_gbps"] = 50.0, 10.5
    new["ceilings"]["drift"] = 1.6
    found = compare(old, new)
    assert [warning.split(":")[0] for warning in found["warnings"]] == [
        "another processor",
        "another thread settings",
        "another jax",
        "the machine itself gave another rate (product, GFLOP/s)",
        "the machine was not steady",
    ]
    # nearly twice as slow on a machine half as fast is no regression
    assert found["regressions"] == 0 and found["rows"][0]["verdict"] == "uncertain"
    assert render_comparison(found).count("Beware") == 5
    new["kernels"] = [record("a", 2.5)]
    assert compare(old, new)["regressions"] == 1


@pytest.mark.parametrize("changed", [{"size": "medium"}, {"table_version": 9}])
def test_runs_of_other_workloads_are_refused(changed):
    with pytest.raises(DataError, match="the runs differ"):
        compare(document(**changed), document())


def test_the_table_has_a_row_a_kernel_and_no_markup_of_strangers():
    found = document(
        record("a", 2.5e-3), record("b", 2.0, flop_source="cost analysis"), failed("c")
    )
    text = render(found, level=2)
    assert text.startswith("## Kernels\n") and "Some(R) Processor \\| 9" in text
    assert "| `a` | 100 | 2.50 ms | 2 % |" in text and "\\* | 0.50 | compute |" in text
    assert "- c failed: MemoryError: no \\| room" in text
    columns = {line.count(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert len(columns) == 1
    assert "100.0 GFLOP/s" in text and "10.0 GB/s copied" in text


@pytest.mark.parametrize(
    ("cpu", "drift", "word"),
    [(1.0, 1.02, None), (0.3, 1.02, "got 0.30 of a core"), (1.0, 2.0, "differ 2.00 times")],
)
def test_a_machine_that_was_not_quiet_is_told(cpu, drift, word):
    found = document(record("a", 1.0, cpu=cpu))
    found["ceilings"]["drift"] = drift
    text = render(found)
    assert ("was not quiet" in text) == (word is not None)
    assert word is None or word in text
    found["machine"]["platform"] = "gpu"  # whose work no processor time shows
    assert "of a core" not in render(found)


def test_a_program_that_tells_no_memory_has_a_dash():
    assert "| \N{EN DASH} | 600 ms |" in render(document(record("a", 1.0, memory=None)))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.5, "1.50 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 \N{MICRO SIGN}s"), (90.0, "90.0 s")],
)
def test_durations_have_a_unit_that_fits(seconds, text):
    assert duration(seconds) == text


def test_json_comes_back_as_it_went(tmp_path):
    whole = document(record("a", 1.0), record("b", 1.0, memory=None), failed("c"))
    files.write(whole, tmp_path / "run.json")
    assert files.load(tmp_path / "run.json") == whole


def damaged(change):
    whole = document(record("a", 1.0), failed("c"))
    change(whole)
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "was not made by"),
        ('{"tool": "other"}', "was not made by"),
        (damaged(lambda d: d.update(schema_version=7)), "has schema version 7"),
        (damaged(lambda d: d.pop("size")), "is damaged: 'size'"),
        (damaged(lambda d: d.pop("ceilings")), "is damaged"),
        (damaged(lambda d: d["ceilings"].update(copy_gbps=0)), "copy_gbps is 0"),
        (damaged(lambda d: d["kernels"][0]["wall"].update(median=-1)), "median is -1"),
        (damaged(lambda d: d["kernels"][0]["wall"].update(q1="1")), "q1 is '1'"),
        (damaged(lambda d: d["kernels"][0].update(rows=True)), "rows is True"),
        (damaged(lambda d: d["kernels"][0].update(gbps=float("nan"))), "it holds NaN"),
        (damaged(lambda d: d["kernels"][0].update(kernel="a | b")), "is no name"),
        (damaged(lambda d: d["kernels"].append(d["kernels"][0])), "is there twice"),
        (damaged(lambda d: d["kernels"][0].update(status="odd")), "status 'odd'"),
        (damaged(lambda d: d["kernels"][1].update(reason=None)), "reason is no text"),
        (damaged(lambda d: d.update(kernels=[3])), "is damaged"),
        (damaged(lambda d: d["machine"].update(libraries=[])), "libraries is no object"),
    ],
)
def test_files_that_are_no_run_are_refused(text, word, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(DataError, match=word):
        files.load(path)


def test_a_file_that_is_not_there_or_too_large_is_not_read(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no such file"):
        files.load(tmp_path / "none.json")
    monkeypatch.setattr(files, "_MOST_BYTES", 10)
    (tmp_path / "large.json").write_text("{}" + " " * 20)
    with pytest.raises(DataError, match="it is no run"):
        files.load(tmp_path / "large.json")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    files.write_text("old", path)
    with pytest.raises(UnicodeEncodeError):
        files.write_text("new \ud800", path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["run.json"]
