"""The table of `jaxpoison bench`: complete, and right about what each kernel computes and moves."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from flop_oracle import count
from jaxpoison import kernels
from jaxpoison._check import UsageError
from jaxpoison.bench._case import NEVER, STEPS
from jaxpoison.bench.cases import CASES, NOT_TIMED, SIZES, public_names, select
from jaxpoison.bench.measure import nbytes, shapes
from jaxpoison.stream import compiled

SMALL = SIZES["small"]
LOOPS = ("scan", "while")


def test_every_public_name_is_timed_or_excluded_with_a_reason():
    assert public_names() == set(CASES) | set(NOT_TIMED), "a new kernel needs a case"
    assert not set(CASES) & set(NOT_TIMED)
    for name, why in NOT_TIMED.items():
        assert why
        is_type = isinstance(getattr(kernels, name), type)
        assert is_type == why.startswith(("a result", "an argument", "a loss")) or name == "TapPlan"


def test_a_new_kernel_without_a_case_is_noticed(monkeypatch):
    def another(x):
        return x

    another.__module__ = "jaxpoison.kernels.another"
    monkeypatch.setattr(kernels, "another", another, raising=False)
    assert public_names() - set(CASES) - set(NOT_TIMED) == {"another"}


@pytest.mark.parametrize("name", CASES)
def test_the_flop_formula_agrees_with_a_count_of_the_trace(name):
    work = CASES[name](SMALL)
    counted = count(work.call, work.args, work.trips)
    if work.flops is None:
        return  # the next test is about those
    if work.flops == 0:
        assert counted == 0  # nothing but copies
    else:  # formulas leave out lower terms, such as the norms beside a product
        assert counted / 2 <= work.flops <= 1.2 * counted


@pytest.mark.parametrize("name", CASES)
def test_xlas_own_count_agrees_where_nothing_loops(name):
    work = CASES[name](SMALL)
    trace = str(jax.make_jaxpr(work.call)(*work.args))
    if any(f"{loop}[" in trace for loop in LOOPS):
        assert work.flops is not None, "XLA counts the body of a loop once: give a formula"
        return
    lowered = compiled(work.call).lower(*work.args)
    found = lowered.cost_analysis().get("flops", 0.0)
    assert found > 0 or name == "tap_inputs"
    if work.flops:
        # decompositions are calls of a library, of which XLA counts nothing, and a cumulative sum
        # is a window of all columns to it
        least = 0.0 if "cholesky" in trace or "eigh" in trace else 0.5 * work.flops
        most = np.inf if "cumsum" in trace else 2 * work.flops
        assert least <= found <= most


@pytest.mark.parametrize("name", CASES)
def test_more_rows_never_mean_less_work(name):
    tiny, small = CASES[name](SIZES["tiny"]), CASES[name](SMALL)
    assert 0 < tiny.rows <= small.rows
    assert nbytes(tiny.args) < nbytes(small.args)
    assert shapes(tiny.args) != shapes(small.args)
    if small.flops:
        assert tiny.flops < small.flops
    if small.traffic is not None:
        assert tiny.traffic < small.traffic


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("conjugate_gradients", lambda out: out.steps),
        ("solve_head", lambda out: out.steps),
        ("head_loss_influence", lambda out: out.solution.steps),
        ("influence", lambda out: out.solution.steps),
    ],
)
def test_solvers_take_the_steps_that_are_counted(name, found):
    work = CASES[name](SIZES["tiny"])
    out = compiled(work.call)(*work.args)
    np.testing.assert_array_equal(found(out), STEPS)
    assert work.trips[-1] == STEPS and NEVER > 0


@pytest.mark.parametrize(
    ("kernel", "static"),
    [
        (kernels.kmeans, {"num_clusters": 2, "num_inits": 8}),
        (kernels.trimmed_gaussian, {"keep": 0.75}),
    ],
)
def test_loops_that_may_end_early_do_not(kernel, static):
    """One step less gives another result, so the last of those counted was taken."""
    args = CASES[kernel.__name__](SMALL).args
    extra = dict(zip(("draws",), args[2:], strict=False))
    fits = [kernel(*args[:2], **static, **extra, num_steps=steps) for steps in (STEPS - 1, STEPS)]
    assert not np.array_equal(*(jax.tree.leaves(fit)[0] for fit in fits))


def test_the_newton_step_is_the_one_that_is_counted():
    work = CASES["fit_softmax_head"](SMALL)
    assert int(compiled(work.call)(*work.args).steps) == 1
    assert work.trips[:2] == (1, 1) and work.trips[2] > 1


def test_selection_keeps_the_order_of_the_table_and_refuses_what_is_not_there():
    assert select(None) == tuple(CASES)
    assert select(("silhouette", "kmeans")) == ("kmeans", "silhouette")
    with pytest.raises(UsageError, match="did you mean 'kmeans'"):
        select(("kmean",))
    with pytest.raises(UsageError, match="not timed: a result type"):
        select(("KMeans",))
