"""Taps: which leaves are reached how, and that what is reached is the gradient."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tap_oracle as oracle
from jaxpoison import kernels

few = settings(max_examples=6, deadline=None, derandomize=True)


def leaves_of(gradients):
    return [np.asarray(x) for x in jax.tree.leaves(gradients)]


def assert_taps_are_gradients(taps, exact, rtol=2e-5):
    """Every leaf's gradients, from its tap or from the rest, against float64."""
    exact = leaves_of(exact)

    def same(got, want):
        np.testing.assert_allclose(got, want, atol=rtol * max(np.abs(want).max(), 1e-3))

    for tap in taps.layers:
        layer, a = tap.layer, np.asarray(kernels.tap_inputs(tap), np.float64)
        d = np.asarray(tap.cotangents, np.float64)
        assert a.shape == (len(a), layer.num_positions, layer.num_inputs)
        assert d.shape == (len(a), layer.num_positions, layer.num_outputs)
        matrix = np.einsum("bti,bto->bio", a, d)
        same(kernels.matrix_to_leaf(layer, matrix), exact[layer.weight])
        if layer.bias is not None:
            same(d.sum(1).reshape(len(d), *layer.bias_shape), exact[layer.bias])
    for number, gradient in zip(taps.plan.rest, taps.rest, strict=True):
        same(gradient, exact[number])


@pytest.mark.parametrize("name", oracle.CASES)
def test_taps_give_the_gradient_of_every_row(name):
    if name != "nnx":
        loss, params, batch, exact = oracle.solved(name)
    else:  # its modules fix their dtype; the same in float32 is compared there
        loss, params, batch = oracle.nnx_case()
        exact = jax.jit(
            jax.vmap(jax.grad(lambda p, x, y: loss(p, x[None], y[None])[0]), in_axes=(None, 0, 0))
        )(params, *batch)
    taps = kernels.collect_taps(loss, params, batch)
    assert_taps_are_gradients(taps, exact)
    arguments = batch if type(batch) is tuple else (batch,)
    np.testing.assert_allclose(taps.losses, loss(params, *arguments), rtol=1e-5)


def methods(name):
    loss, params, batch = oracle.CASES[name]()
    coverage = kernels.plan_taps(loss, params, batch).coverage
    assert len(coverage) == len(jax.tree.leaves(params))
    return {"/".join(p.strip("[]'.") for p in path.split("][")): m for path, m in coverage.items()}


def test_coverage_names_the_method_of_every_leaf():
    every = {"w": "dense", "b": "bias", "v": "dense", "c": "bias"}
    assert methods("mlp") == every
    assert methods("nested") == {**every, "inner": "dense", "shift": "bias"}
    slow = "vmap(grad)"
    assert methods("shared") == {"twice": "dense", "b": slow, "tied": slow}
    assert set(methods("odd").values()) == {slow}


def test_coverage_of_flax_modules():
    got = {path.split(".")[0]: method for path, method in methods("nnx").items()}
    assert {m for p, m in got.items() if "norm" in p} == {"vmap(grad)"}
    assert {m for p, m in got.items() if "embed" in p} == {"embedding"}
    assert {m for p, m in got.items() if "attention" in p} == {"dense", "bias"}
    assert {m for p, m in got.items() if "conv" in p} == {"conv", "bias"}
    got = methods("linen")
    assert [got[f"params/Conv_{k}/kernel"] for k in range(3)] == ["conv"] * 2 + ["vmap(grad)"]
    assert got["params/Conv_0/bias"] == "bias" and got["params/Conv_2/bias"] == "vmap(grad)"


def test_a_shared_weight_is_one_tap_with_the_positions_of_both_uses():
    taps = kernels.collect_taps(*oracle.shared_case())
    (tap,) = taps.layers
    assert tap.layer.num_positions == 2 and tap.inputs.shape == (6, 2, 4)


@few
@given(
    st.integers(0, 2**31),
    st.tuples(*[st.integers(1, 3)] * 2),
    st.tuples(*[st.integers(1, 3)] * 2),
    st.tuples(*[st.integers(1, 2)] * 4),
    st.tuples(*[st.integers(-1, 2)] * 4),
    st.sampled_from([("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")]),
    st.sampled_from([1, 2]),
)
def test_convolutions(seed, kernel, strides, dilations, padding, layout, groups):
    channels, outputs = 2 * groups, 4
    sizes = dict(zip("HWIO", (*kernel, channels // groups, outputs), strict=True))
    params = oracle.normal(seed, *(sizes[letter] for letter in layout[1]))
    sizes = {"N": 3, "H": 8, "W": 9, "C": channels}
    x = oracle.normal(seed, *(sizes[letter] for letter in layout[0]))

    def loss(weight, x):
        y = jax.lax.conv_general_dilated(
            x.astype(weight.dtype),
            weight,
            strides,
            [padding[:2], padding[2:]],
            lhs_dilation=dilations[:2],
            rhs_dilation=dilations[2:],
            dimension_numbers=layout,
            feature_group_count=groups,
        )
        return jnp.sum(jnp.sin(y) * jnp.cos(jnp.arange(y[0].size).reshape(y[0].shape)), (1, 2, 3))

    plan = kernels.plan_taps(loss, params, x)
    assert plan.coverage == {"params": "conv" if groups == 1 else "vmap(grad)"}
    exact = oracle.naive_gradients(loss, params, x)
    assert_taps_are_gradients(kernels.collect_taps(loss, params, x), exact)
    got = kernels.gradient_norms(loss, params, x).norms
    np.testing.assert_allclose(got, np.linalg.norm(oracle.flat(exact), axis=1), rtol=2e-5)


def test_the_weight_may_be_either_operand_in_any_layout():
    def loss(params, x):
        h = jnp.tanh(jnp.einsum("oi,bti->bot", params["left"], x))
        h = jnp.tanh(jnp.einsum("bot,ohk->bthk", h, params["heads"]) + params["bias"])
        flat = params["flat"].reshape(6, 4).T  # used as [k h -> 4], stored as [2, 3, 4]
        return jnp.einsum("bthk,khf->b", h, flat.T.reshape(3, 2, 4) ** 1)

    params = {"left": oracle.normal(0, 4, 3), "heads": oracle.normal(1, 4, 2, 3)}
    params |= {"bias": oracle.normal(2, 2, 3), "flat": oracle.normal(3, 2, 3, 4)}
    x = oracle.normal(4, 5, 6, 3)
    taps = kernels.collect_taps(loss, params, x)
    assert taps.plan.coverage["['left']"] == taps.plan.coverage["['heads']"] == "dense"
    assert taps.plan.coverage["['bias']"] == "bias"
    assert_taps_are_gradients(taps, oracle.naive_gradients(loss, params, x))


def pooled_loss(params, x, y, window=(1, 2, 3, 1), strides=(1, 2, 3, 1), padding="VALID"):
    hidden = jax.lax.conv_general_dilated(
        x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    hidden = jax.lax.reduce_window(hidden, -jnp.inf, jax.lax.max, window, strides, padding)
    return oracle.cross_entropy(hidden.reshape(len(x), -1) @ params["head"], y)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"padding": "SAME"},
        {"strides": (1, 1, 2, 1)},
        {"window": (1, 2, 2, 2), "strides": (1, 2, 2, 2)},
    ],
    ids=["apart", "padded", "overlapping", "channels"],
)
def test_maximum_pooling_gives_ties_to_the_first_as_reduce_window_does(form):
    loss = functools.partial(pooled_loss, **form)
    rng = np.random.default_rng(0)
    # few distinct numbers: most windows hold equal ones; 7 and 8 leave rests of windows
    x = rng.integers(0, 2, (5, 7, 8, 1)).astype(np.float32)
    kernel = rng.integers(-1, 2, (1, 1, 1, 4)).astype(np.float32)
    shape = jax.eval_shape(
        lambda k: jax.lax.reduce_window(
            jnp.broadcast_to(k, (1, 7, 8, 4)), -jnp.inf, jax.lax.max,
            form.get("window", (1, 2, 3, 1)), form.get("strides", (1, 2, 3, 1)),
            form.get("padding", "VALID"),
        ),
        kernel,
    ).shape  # fmt: skip
    params = {"kernel": kernel, "head": oracle.normal(1, int(np.prod(shape)), 3)}
    batch = x, rng.integers(0, 3, 5)
    want = oracle.naive_gradients(loss, params, batch)
    got = kernels.per_sample_gradients(loss, params, batch)
    for name in params:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)
    # and where a window holds NaN, so does the loss
    x[2, 0, 0] = np.nan
    assert kernels.gradient_norms(loss, params, (x, batch[1])).is_finite.tolist() == [
        True, True, False, True, True,
    ]  # fmt: skip


def test_a_vector_over_positions_is_no_bias_of_the_layer():
    def loss(params, x):
        y = x @ params["w"]
        return jnp.sum(jnp.sin(y + params["b"][:, None]), axis=(1, 2))  # T = o

    params = {"w": oracle.normal(0, 3, 4), "b": oracle.normal(1, 4)}
    taps = kernels.collect_taps(loss, params, oracle.normal(2, 5, 4, 3))
    assert taps.plan.coverage == {"['w']": "dense", "['b']": "vmap(grad)"}
    assert_taps_are_gradients(taps, oracle.naive_gradients(loss, params, oracle.normal(2, 5, 4, 3)))


def test_a_number_repeated_to_a_matrix_is_no_layer():
    def loss(params, x):
        y = x @ jnp.broadcast_to(params["a"], (3, 1)) + jnp.broadcast_to(params["b"], (len(x), 1))
        return jnp.sin(y)[:, 0] + jnp.sum(x * params["c"], axis=1)

    params = {"a": oracle.normal(0, 1), "b": oracle.normal(1, 1), "c": oracle.normal(2, 1)}
    taps = kernels.collect_taps(loss, params, oracle.normal(3, 5, 3))
    assert set(taps.plan.coverage.values()) == {"vmap(grad)"}
    assert_taps_are_gradients(taps, oracle.naive_gradients(loss, params, oracle.normal(3, 5, 3)))


def test_a_product_read_before_its_bias_keeps_the_bias_apart():
    def loss(params, x):
        y = x @ params["w"]
        return jnp.sum(jnp.sin(y + params["b"]) + y**2, axis=1)

    params, x = {"w": oracle.normal(0, 3, 4), "b": oracle.normal(1, 4)}, oracle.normal(2, 5, 3)
    taps = kernels.collect_taps(loss, params, x)
    assert taps.plan.coverage["['b']"] == "vmap(grad)"
    assert_taps_are_gradients(taps, oracle.naive_gradients(loss, params, x))


@pytest.mark.parametrize("mode", ["fill", "clip"])
def test_ids_out_of_range(mode):
    def loss(params, ids):
        return jnp.nansum(jnp.sin(jnp.take(params, ids, axis=0, mode=mode)), axis=(1, 2))

    params, ids = oracle.normal(0, 4, 3), np.array([[0, 1, 1, 9], [2, 2, 2, 2], [-1, 9, 9, 3]])
    taps = kernels.collect_taps(loss, params, ids)
    assert taps.layers[0].layer.kind == "embedding"
    exact = oracle.naive_gradients(loss, params, ids)
    assert_taps_are_gradients(taps, exact)
    got = kernels.gradient_norms(loss, params, ids).norms
    np.testing.assert_allclose(got, np.linalg.norm(oracle.flat(exact), axis=1), rtol=1e-5)


def test_marked_layers_give_what_the_walker_finds():
    def marked(params, x, y, tap):
        h = jnp.tanh(tap(x @ params["w"] + params["b"], x, params["w"], params["b"]))
        return oracle.cross_entropy(tap(h @ params["v"], h, params["v"]) + params["c"], y)

    loss, params, batch = oracle.mlp_case()
    plan = kernels.plan_explicit_taps(marked, params, batch)
    assert plan is kernels.plan_explicit_taps(marked, params, batch)
    assert plan.coverage["['w']"] == "dense" and plan.coverage["['b']"] == "bias"
    assert plan.coverage["['c']"] == "vmap(grad)"  # not marked
    assert_taps_are_gradients(plan(params, batch), oracle.naive_gradients(loss, params, batch))


def test_frozen_and_unused_leaves():
    loss, params, batch = oracle.mlp_case()
    both = (params, {"key": jax.random.key(0), "unused": np.zeros(2, np.float32)})

    def second(both, x, y):
        return loss(both[0], x + 0 * jax.random.normal(both[1]["key"], x.shape, x.dtype), y)

    plan = kernels.plan_taps(second, both, batch, trainable=(True, {"key": False, "unused": True}))
    assert plan.coverage["[1]['key']"] == "frozen" and plan.coverage["[1]['unused']"] == "unused"
    got = kernels.gradient_norms(
        second, both, batch, trainable=({"w": False, "b": True, "v": True, "c": True}, False)
    ).norms
    exact = oracle.naive_gradients(loss, params, batch)
    want = np.linalg.norm(oracle.flat({k: v for k, v in exact.items() if k != "w"}), axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_the_loss_is_traced_when_planned_and_never_again():
    loss, params, batch = oracle.mlp_case()
    with oracle.counted(loss) as (counting, runs):
        first = kernels.gradient_norms(counting, params, batch)
        once = len(runs)
        other = jax.tree.map(lambda x: x + 1, params)
        again = kernels.gradient_norms(counting, other, batch)
        kernels.gradient_norms(counting, params, jax.tree.map(lambda x: x[:3], batch), chunk=2)
        kernels.collect_taps(counting, params, batch)
        assert len(runs) == once == 2
    assert not np.allclose(first.norms, again.norms)


def test_plan_inside_jit():
    loss, params, batch = oracle.mlp_case()

    @jax.jit
    def total(params, batch):
        return kernels.gradient_norms(loss, params, batch).norms.sum()

    want = oracle.naive_norms(loss, params, batch).sum()
    np.testing.assert_allclose(total(params, batch), want, rtol=1e-5)


def test_masked_rows_are_zero_whatever_they_hold():
    loss, params, (x, y) = oracle.mlp_case()
    x[2:4] = np.nan
    mask = np.array([1, 1, 0, 0, 1, 1], np.float32)
    taps = kernels.collect_taps(loss, params, (x, y), mask)
    for tap in taps.layers:
        assert not np.any(tap.inputs[2:4]) and not np.any(tap.cotangents[2:4])
    assert not np.any(taps.losses[2:4])


class _Unhashable:
    __hash__ = None

    def __call__(self, params, x):
        return x @ params


X = np.ones((4, 3), np.float32)
W = np.ones((3, 1), np.float32)
BAD = {
    "one floating loss for each": (lambda p, x: x @ p, W, X, {}),
    r"it gave int32\[4\]": (lambda p, x: jnp.argmax(x, 1), W, X, {}),
    "is int32, not floating": (lambda p, x: (x @ p)[:, 0], W.astype(np.int32), X, {}),
    "same number of rows": (lambda p, x, y: x @ p, W, (X, X[:3]), {}),
    "no leaf to train": (lambda p, x: x @ p, W, X, {"trainable": False}),
    "no prefix of params": (lambda p, x: x @ p, W, X, {"trainable": [True, True]}),
    "not hashable": (_Unhashable(), W, X, {}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_a_clear_error(message):
    loss, params, batch, options = BAD[message]
    with pytest.raises(ValueError, match=message):
        kernels.plan_taps(loss, params, batch, **options)


def test_a_plan_refuses_other_shapes_and_traced_constants():
    loss, params, batch = oracle.mlp_case()
    plan = kernels.plan_taps(loss, params, batch)
    with pytest.raises(ValueError, match="rows have shapes"):
        plan(params, (batch[0][:, :4], batch[1]))
    with pytest.raises(ValueError, match="differ in structure"):
        plan({**params, "w": params["w"].T}, batch)

    def closing(scale):
        return kernels.gradient_norms(lambda p, x: (x @ p)[:, 0] * scale, W, X).norms

    with pytest.raises(ValueError, match="being traced"):
        jax.jit(closing)(2.0)


def test_bad_marks_are_clear_errors():
    def cast(params, x, tap):
        return tap(x @ params, x, params * 1)[:, 0]

    def transposed(params, x, tap):
        return tap(x @ params, x.T, params)[:, 0]

    def twice(params, x, tap):
        return (tap(x @ params, x, params) + tap(x @ params, x, params))[:, 0]

    for loss, message in (
        (cast, "no trained leaf"),
        (transposed, "it must be y"),
        (twice, "marked by two taps"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.plan_explicit_taps(loss, W, X)
