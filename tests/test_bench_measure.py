"""Measuring: what a record and the ceilings hold, what follows from them, what a failure leaves."""

from __future__ import annotations

import json
import os

import jax
import numpy as np
import pytest

from bench_data import document, failed, record
from jaxpoison._check import UsageError
from jaxpoison.bench import ceilings, machine, measure, run
from jaxpoison.bench._case import Work
from jaxpoison.bench.cases import CASES, SIZES
from jaxpoison.bench.files import load, write

NAMES = ("kmeans", "softmax_errors", "gradient_norms")


@pytest.fixture(scope="module")
def measured():
    """A whole run of three kernels, and the events of its progress."""
    events = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_CEILING_SECONDS", 0.01)
        found = run.run_bench(
            size="tiny", only=NAMES, seconds=0.01, progress=lambda *event: events.append(event)
        )
    return found, events


def test_a_run_has_a_record_a_kernel_in_the_order_of_the_table(measured):
    found, events = measured
    assert [each["kernel"] for each in found["kernels"]] == [n for n in CASES if n in NAMES]
    assert [(done, total) for done, total, _ in events] == [(1, 3), (2, 3), (3, 3)]
    for each in found["kernels"]:
        assert each["status"] == "done"
        assert measure.LEAST_REPEATS <= each["repeats"] <= measure.MOST_REPEATS
        wall = each["wall"]
        assert 0 < wall["min"] <= wall["q1"] <= wall["median"] <= wall["q3"]
        assert each["trace_seconds"] > 0 and each["compile_seconds"] > 0
        assert each["memory"]["total"] >= each["memory"]["arguments"] > 0
        assert each["rows_per_second"] == pytest.approx(each["rows"] / wall["median"])
        assert each["gbps"] == pytest.approx(each["bytes"] / wall["median"] / 1e9)
        assert each["gflops"] == pytest.approx(each["flop"] / wall["median"] / 1e9)
        assert each["roofline_share"] > 0
    sources = {each["kernel"]: each["flop_source"] for each in found["kernels"]}
    assert sources["softmax_errors"] == "cost analysis" and sources["kmeans"] == "formula"


def test_it_survives_json_and_names_no_place_on_the_machine(measured, tmp_path):
    found, _ = measured
    write(found, tmp_path / "run.json")
    assert load(tmp_path / "run.json") == json.loads(json.dumps(found))
    text = (tmp_path / "run.json").read_text()
    assert os.path.expanduser("~") not in text and os.getcwd() not in text
    assert os.uname().nodename not in text
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_ceilings_are_told_with_their_rungs(measured):
    found = measured[0]["ceilings"]
    assert found["gemm_gflops"] > 0 and found["drift"] >= 1
    sizes = [rung["bytes"] for rung in found["memory"]]
    assert sizes == sorted(sizes) and len(sizes) >= 2
    assert found["memory"][-1]["copy_gbps"] == found["copy_gbps"]


def test_the_setting_of_the_compilation_cache_is_put_back(measured):
    assert jax.config.jax_enable_compilation_cache


def test_a_kernel_that_fails_does_not_end_the_run(monkeypatch):
    def broken(size):
        raise MemoryError("12 GB\nof /secret")

    monkeypatch.setattr(run, "measure_ceilings", lambda size, seconds: document()["ceilings"])
    monkeypatch.setitem(CASES, "kmeans", broken)
    found = run.run_bench(size="tiny", only=("kmeans", "el2n"), seconds=0.001)["kernels"]
    assert found[0] == {"kernel": "kmeans", "status": "failed", "reason": "MemoryError: 12 GB"}
    assert found[1]["status"] == "done"


def test_what_seems_slower_is_measured_once_more_and_the_better_counts(monkeypatch):
    runs = {"kmeans": [2.0, 1.0], "el2n": [1.0], "silhouette": [3.0, 4.0], "lissa": [5.0]}

    def one(name, size, seconds):
        return record(name, runs[name].pop(0))

    monkeypatch.setattr(run, "_one", one)
    monkeypatch.setattr(run, "measure_ceilings", lambda size, seconds: document()["ceilings"])
    before = document(*(record(name, 1.0) for name in ("kmeans", "el2n", "silhouette")))
    found = run.run_bench(size="tiny", only=tuple(runs), baseline=before)["kernels"]
    medians = {each["kernel"]: each["wall"]["median"] for each in found}
    assert medians == {"kmeans": 1.0, "el2n": 1.0, "silhouette": 3.0, "lissa": 5.0}
    assert not any(runs["kmeans"] + runs["silhouette"])


def test_a_second_measurement_that_fails_does_not_count(monkeypatch):
    answers = [record("kmeans", 2.0), failed("kmeans")]
    monkeypatch.setattr(run, "_one", lambda *_: answers.pop(0))
    monkeypatch.setattr(run, "measure_ceilings", lambda size, seconds: document()["ceilings"])
    found = run.run_bench(size="tiny", only=("kmeans",), baseline=document(record("kmeans", 1.0)))
    assert found["kernels"][0]["wall"]["median"] == 2.0 and answers == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"size": "huge"}, "size must be small, medium or large, got 'huge'"),
        ({"seconds": 0.0}, "seconds must be above 0"),
        ({"seconds": float("nan")}, "seconds must be above 0"),
        ({"only": ("nonsense",)}, "no kernel 'nonsense'"),
    ],
)
def test_arguments_without_sense_are_refused_before_anything_runs(options, word):
    with pytest.raises(UsageError, match=word):
        run.run_bench(**options)


def test_every_call_is_waited_for_and_the_budget_bounds_their_number():
    calls = []
    wall, cpu = measure.timed(lambda: calls.append(None), 1e-9)
    assert len(wall) == len(cpu) == measure.LEAST_REPEATS == len(calls) - 1  # one to warm up
    calls.clear()
    wall, _ = measure.timed(lambda: calls.append(None), 1e9)
    assert len(wall) == measure.MOST_REPEATS


def test_spread_is_quartiles_of_the_calls():
    found = measure.spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert found == {"median": 3.0, "q1": 2.0, "q3": 4.0, "min": 1.0}


def test_bytes_and_shapes_of_arguments():
    tree = ({"a": np.zeros((4, 3), np.float32)}, np.zeros(7, np.int32), jax.random.key(0))
    assert measure.nbytes(tree) == 48 + 28 + 8
    assert measure.shapes(tree) == "4x3, 7"
    assert measure.shapes([np.zeros(k) for k in range(1, 8)]) == "7, 6, 5, 4 and 3 more"


def test_the_flop_of_a_loop_come_from_the_formula_and_traffic_from_the_case():
    work = Work(np.negative, (np.zeros((8, 4), np.float32),), 8, 64.0, 1000.0)
    work = work._replace(call=lambda x: -x)
    found = measure.measure("x", work, 1e-9)
    assert (found["flop"], found["bytes"], found["footprint_bytes"]) == (64.0, 1000.0, 256)
    assert measure.measure("x", work._replace(traffic=None), 1e-9)["bytes"] == 256


def test_a_small_working_set_is_held_against_its_cache():
    known = document()["ceilings"]
    assert ceilings.bandwidth(known, 5e5) == 50e9
    assert ceilings.bandwidth(known, 2e6) == 12e9  # read faster than copied
    assert ceilings.bandwidth(known, 1e10) == 12e9


@pytest.mark.parametrize(
    ("flop", "moved", "seconds", "share", "bound"),
    [
        (1e9, 1e6, 0.02, 0.5, "compute"),  # 10 ms at 100 GFLOP/s
        (0.0, 5e8, 0.05, 0.2, "memory"),  # without FLOP there is a roofline all the same
        (1e3, 1e3, 2e-5, 1e-3, "dispatch"),
    ],
)
def test_the_share_is_the_least_time_over_the_time_taken(flop, moved, seconds, share, bound):
    known = document()["ceilings"]
    one = record("k", seconds, flop=flop, bytes=moved, footprint_bytes=5e5)
    found = ceilings.roofline(one, known)
    assert found["roofline_share"] == pytest.approx(share, rel=1e-2)
    assert found["bound"] == bound
    if bound == "compute":  # the usual form of the same thing
        attainable = min(100.0, found["intensity"] * 50.0)
        assert found["gflops"] / attainable == pytest.approx(share)


def test_ceilings_are_the_best_of_both_measurements():
    one, two = document()["ceilings"], document()["ceilings"]
    two["gemm_gflops"], two["memory"][0]["copy_gbps"], two["dispatch_seconds"] = 80.0, 70.0, 2e-5
    found = ceilings.merge(one, two)
    assert found["gemm_gflops"] == 100 and found["memory"][0]["copy_gbps"] == 70
    assert found["dispatch_seconds"] == 1e-5 and found["drift"] == pytest.approx(1.25)


def test_flags_that_name_a_place_lose_it(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_a=1 --xla_dump_to={os.sep}home{os.sep}me")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = machine.describe()
    assert found["xla_flags"] == ["--xla_a=1", "--xla_dump_to"]
    assert found["threads"]["OMP_NUM_THREADS"] == "1"
    assert found["usable_cores"] >= 1 and found["libraries"]["jax"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_kernel_runs_at_the_smallest_size(name):
    found = measure.measure(name, CASES[name](SIZES["tiny"]), 1e-9)
    assert found["wall"]["median"] > 0 and found["flop"] >= 0 and found["bytes"] > 0
