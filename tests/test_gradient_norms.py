"""Gradient norms, gradients, their dot products and the closed forms of a softmax head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tap_oracle as oracle
from jaxpoison import kernels
from jaxpoison.kernels import _tap_norms
from jaxpoison.kernels._tap_norms import form_of, squared_norms
from jaxpoison.models import networks
from jaxpoison.models._model import CrossEntropy

few = settings(max_examples=10, deadline=None, derandomize=True)
FLOAT64 = [name for name in oracle.CASES if name != "nnx"]  # its modules fix their dtype


@pytest.mark.parametrize("name", FLOAT64)
def test_norms_equal_the_naive_ones(name):
    loss, params, batch, exact = oracle.solved(name)
    got = kernels.gradient_norms(loss, params, batch, per_layer=True)
    want = np.linalg.norm(oracle.flat(exact), axis=1)
    np.testing.assert_allclose(got.norms, want, rtol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(got.layers, axis=1), want, rtol=2e-5)
    assert got.is_finite.all()


def test_norms_of_the_layers():
    loss, params, batch = oracle.mlp_case(seed=2)
    plan = kernels.plan_taps(loss, params, batch)
    got = kernels.gradient_norms(loss, params, batch, per_layer=True)
    exact = oracle.naive_gradients(loss, params, batch)
    assert plan.layer_names == ("['w']", "['v']")
    for k, parts in enumerate((("w", "b"), ("v", "c"))):
        want = np.linalg.norm(oracle.flat([exact[part] for part in parts]), axis=1)
        np.testing.assert_allclose(got.layers[:, k], want, rtol=1e-5)
    assert kernels.gradient_norms(loss, params, batch).layers is None


# One layer in each form. The tap is made by hand, so any shape is cheap to try.


def hand_made(seed, t, i, o, rows=3, bias=True):
    layer = kernels.Layer(
        "dense", "w", 0, 1 if bias else None, t, i, o, (), (i, o), (o,) if bias else None
    )
    return kernels.Tap(oracle.normal(seed, rows, t, i), oracle.normal(seed + 1, rows, t, o), layer)


@few
@given(st.integers(0, 2**20), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_squared_norms_of_a_sequence(seed, t, i, o):
    tap = hand_made(seed, t, i, o)
    weight, bias = squared_norms(tap)
    a, d = (np.asarray(x, np.float64) for x in (tap.inputs, tap.cotangents))
    exact = np.einsum("bti,bto->bio", a, d)
    np.testing.assert_allclose(weight, (exact**2).sum((1, 2)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(bias, (d.sum(1) ** 2).sum(1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        ((1, 50, 50), "outer"),
        ((8, 64, 64), "gram"),
        ((64, 8, 16), "direct"),
        ((32, 64, 64), "direct"),
    ],
)
def test_the_form_follows_from_the_shape(shape, form):
    assert form_of(hand_made(0, *shape).layer) == form
    t, i, o = shape
    assert form == "outer" or (form == "gram") == (t < i * o / (i + o))


@pytest.mark.parametrize(("size", "channels", "form"), [(3, 40, "gram"), (16, 2, "direct")])
def test_convolutions_in_both_forms(size, channels, form):
    def loss(weight, x):
        y = jax.lax.conv_general_dilated(
            x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(jnp.sin(y), axis=(1, 2, 3))

    weight, x = (
        oracle.normal(0, 3, 3, channels, 2 * channels),
        oracle.normal(1, 3, size, size, channels),
    )
    plan = kernels.plan_taps(loss, weight, x)
    got_form = form_of(plan.layers[0])
    assert got_form == form or (form == "gram" and got_form == "shifts")
    got = kernels.gradient_norms(loss, weight, x).norms
    np.testing.assert_allclose(got, oracle.naive_norms(loss, weight, x), rtol=1e-5)


def test_patch_gram_by_shifts_is_the_gram_of_the_patches():
    from jaxpoison.kernels._tap_norms import _gram, _patch_gram

    def loss(weight, x):
        y = jax.lax.conv_general_dilated(
            x,
            weight,
            (2, 1),
            [(1, 2), (0, 1)],
            rhs_dilation=(1, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jnp.sum(jnp.sin(y), axis=(1, 2, 3))

    (tap,) = kernels.collect_taps(
        loss, oracle.normal(0, 3, 2, 4, 5), oracle.normal(1, 2, 7, 6, 4)
    ).layers
    want = _gram(kernels.tap_inputs(tap))
    np.testing.assert_allclose(_patch_gram(tap), want, atol=1e-5)


# The contract of every kernel on rows: order, padding, micro-batches, precision, bad rows


def test_norms_do_not_depend_on_order_padding_or_chunks():
    loss, params, (x, y) = oracle.mlp_case(seed=3, rows=11)
    whole = kernels.gradient_norms(loss, params, (x, y)).norms
    order = np.random.default_rng(0).permutation(11)
    again = kernels.gradient_norms(loss, params, (x[order], y[order])).norms
    np.testing.assert_allclose(again, whole[order], rtol=1e-6)
    for chunk in (4, 50):
        part = kernels.gradient_norms(loss, params, (x, y), chunk=chunk).norms
        np.testing.assert_allclose(part, whole, rtol=1e-6)
    filled = np.vstack([x, np.full((5, 5), np.inf, np.float32)])
    mask = np.r_[np.ones(11, np.float32), np.zeros(5, np.float32)]
    for chunk in (None, 3):
        got = kernels.gradient_norms(loss, params, (filled, np.r_[y, [0] * 5]), mask, chunk=chunk)
        np.testing.assert_allclose(got.norms[:11], whole, rtol=1e-6)
        assert not np.any(got.norms[11:]) and not np.any(got.losses[11:]) and got.is_finite.all()


def test_a_summed_loss_and_a_mean_count_like_losses_of_rows():
    loss, params, batch = oracle.mlp_case()
    want = kernels.gradient_norms(loss, params, batch).norms
    for reduce in (jnp.sum, jnp.mean):
        got = kernels.gradient_norms(lambda *a, r=reduce: r(loss(*a)), params, batch).norms
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_rows_that_are_not_finite_get_a_status_and_no_rank(bad):
    def loss(params, x, y):
        return jnp.square(x @ params["w"] - y)

    x, params = oracle.normal(0, 5, 3), {"w": oracle.normal(1, 3)}
    want = np.asarray(kernels.gradient_norms(loss, params, (x, x[:, 0])).norms)
    x[2, 1] = bad
    got = kernels.gradient_norms(loss, params, (x, x[:, 0]), per_layer=True)
    np.testing.assert_array_equal(got.is_finite, np.arange(5) != 2)
    rest = np.arange(5) != 2
    np.testing.assert_allclose(got.norms[rest], want[rest], rtol=1e-6)
    assert got.norms[2] == 0 and np.isfinite(got.layers).all()
    traced = kernels.tracin_self(loss, [params], (x, x[:, 0]), learning_rates=[1.0])
    np.testing.assert_array_equal(traced.is_finite, rest)
    assert np.isfinite(traced.scores).all()


def test_bfloat16_taps_are_right_to_a_percent():
    loss, params, (x, y) = oracle.mlp_case(seed=4, rows=32, sizes=(64, 64, 8))
    want = np.asarray(kernels.gradient_norms(loss, params, (x, y)).norms)

    def narrow(params, x, y):
        cast = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
        return loss(cast, x.astype(jnp.bfloat16), y).astype(jnp.float32)

    assert kernels.collect_taps(narrow, params, (x, y)).layers[0].inputs.dtype == jnp.bfloat16
    error = np.abs(np.asarray(kernels.gradient_norms(narrow, params, (x, y)).norms) / want - 1)
    # 8 bits of mantissa through forward and backward: 4e-3 a rounding, in the norm partly averaged
    assert np.median(error) < 1e-2 and error.max() < 5e-2


def test_no_gradient_of_a_row_is_ever_held():
    loss, params, batch = oracle.mlp_case(rows=64, sizes=(64, 64, 8))
    program = jax.jit(lambda p, b: kernels.gradient_norms(loss, p, b).norms).lower(params, batch)
    held = program.compile().memory_analysis().temp_size_in_bytes
    taps = 4 * 64 * (64 + 64 + 64 + 8)
    gradients = 4 * 64 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert held < 3 * taps < gradients / 5  # taps, and what the backward keeps beside them


def temporary_bytes(tap):
    # a new function each time: what was compiled for another limit must not be found
    program = jax.jit(lambda tap: squared_norms(tap)[0]).lower(tap).compile()
    return program(tap), program.memory_analysis().temp_size_in_bytes


def test_long_sequences_hold_some_columns_of_an_embeddings_gram(monkeypatch):
    b, t, o = 2, 700, 6
    ids = np.random.default_rng(0).integers(-1, 40, (b, t)).astype(np.int32)
    layer = kernels.Layer("embedding", "w", 0, None, t, 40, o, (), (40, o), None)
    tap = kernels.Tap(ids, oracle.normal(2, b, t, o), layer)
    want, whole = temporary_bytes(tap)
    monkeypatch.setattr(_tap_norms, "_GRAMS", b * t * 32)  # 22 parts, the last one filled up
    got, some = temporary_bytes(tap)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    gram = 4 * b * t * t
    assert some < 3 * 4 * b * t * 32 + 4 * 4 * b * t * (o + 1) < gram / 3 < gram <= whole


def test_grams_of_a_dense_layer_hold_at_most_what_its_taps_do():
    for t, i, o in ((60, 130, 120), (100, 220, 190)):
        tap = hand_made(5, t, i, o, bias=False)
        assert form_of(tap.layer) == "gram"
        assert temporary_bytes(tap)[1] < 4 * len(tap.inputs) * t * (i + o)


def test_bad_masks_and_chunks():
    loss, params, batch = oracle.mlp_case()
    with pytest.raises(ValueError, match=r"mask must be \[6\]"):
        kernels.gradient_norms(loss, params, batch, np.ones(5, np.float32))
    with pytest.raises(ValueError, match="at least 1 row"):
        kernels.gradient_norms(loss, params, batch, chunk=0)
    with pytest.raises(ValueError, match="rows have shapes"):
        kernels.grad_dot(loss, params, batch, (batch[0][:, :4], batch[1]))


def test_a_network_of_a_scan():
    architecture = networks.Architecture("images", (4, 4), 3)
    params = jax.tree.map(
        lambda a: jnp.asarray(oracle.normal(0, *a.shape)),
        networks.nnx.split(architecture.build(), networks.nnx.Param, ...)[1:],
    )
    loss = CrossEntropy(networks.NetworkFn(architecture, "logits"))
    x = np.random.default_rng(0).integers(0, 256, (3, 4, 4)).astype(np.uint8)
    batch = x, np.arange(3)
    got = kernels.gradient_norms(loss, params, batch, trainable=(True, False)).norms
    one = jax.jit(
        jax.vmap(jax.grad(lambda p, x, y: loss((p, params[1]), x[None], y[None])[0]), (None, 0, 0))
    )
    want = np.linalg.norm(oracle.flat(one(params[0], *batch)), axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    coverage = kernels.plan_taps(loss, params, batch, trainable=(True, False)).coverage
    assert set(coverage.values()) == {"dense", "conv", "bias", "frozen"}


# Gradients and their products


@pytest.mark.parametrize("name", FLOAT64)
def test_gradients_of_rows(name):
    loss, params, batch, exact = oracle.solved(name)
    got = kernels.per_sample_gradients(loss, params, batch)
    assert jax.tree.structure(got) == jax.tree.structure(exact)
    want = oracle.flat(exact)
    np.testing.assert_allclose(oracle.flat(got), want, atol=2e-5 * np.abs(want).max())


def _first_entries(gradients):
    return gradients["w"][:, 0]


def test_gradients_are_mapped_by_chunks():
    loss, params, batch = oracle.mlp_case(rows=7)
    mask = np.array([1, 1, 1, 1, 1, 1, 0], np.float32)
    want = kernels.per_sample_gradients(loss, params, batch, mask)["w"][:, 0]
    got = kernels.per_sample_gradients(loss, params, batch, mask, map_fn=_first_entries, chunk=3)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert not np.any(got[6]) and np.all(got[:6])


@pytest.mark.parametrize("name", FLOAT64)
def test_products_of_gradients(name):
    loss, params, batch, exact = oracle.solved(name)
    want = oracle.flat(exact) @ oracle.flat(exact)[::-1][:3].T
    others = jax.tree.map(lambda x: x[::-1][:3], batch)
    got = kernels.grad_dot(loss, params, batch, others, chunk=2 if name == "mlp" else None)
    np.testing.assert_allclose(got.scores, want, atol=2e-5 * np.abs(want).max())
    assert got.is_finite.all()


def test_products_of_embeddings_and_of_long_and_short_sequences():
    def loss(params, ids):
        h = jnp.take(params["e"], ids, axis=0)
        return jnp.sum(jnp.sin(h @ params["w"]), axis=(1, 2))

    ids = np.random.default_rng(0).integers(0, 5, (4, 3))
    for width in (2, 40):  # gradients formed, and pairs of positions
        params = {"e": oracle.normal(0, 5, width), "w": oracle.normal(1, width, width)}
        exact = oracle.flat(oracle.naive_gradients(loss, params, ids))
        want = exact[:3] @ exact[2:].T
        got = kernels.grad_dot(loss, params, ids[:3], ids[2:]).scores
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def test_tracin_sums_over_checkpoints_and_its_sign_is_that_of_help():
    loss, params, batch = oracle.mlp_case(seed=8)
    checkpoints = [params, jax.tree.map(lambda a: 0.5 * a, params)]
    rates = [0.1, 0.02]
    mask = np.array([1, 1, 1, 1, 1, 0], np.float32)
    exact = [oracle.flat(oracle.naive_gradients(loss, p, batch)) for p in checkpoints]
    want = sum(rate * g @ g.T for rate, g in zip(rates, exact, strict=True))
    got = kernels.tracin(loss, checkpoints, batch, batch, mask, learning_rates=rates)
    np.testing.assert_allclose(got.scores[:5], want[:5], atol=1e-5 * np.abs(want).max())
    assert not np.any(got.scores[5])
    self_scores = kernels.tracin_self(loss, checkpoints, batch, mask, learning_rates=rates).scores
    np.testing.assert_allclose(self_scores[:5], np.diag(want)[:5], rtol=1e-5)
    # a step on row 0 lowers the losses that it scores as helped, to first order
    rate = 1e-3
    step = jax.jit(jax.grad(lambda p: loss(p, *batch)[0]))(params)
    after = jax.tree.map(lambda a, g: a - rate * g, params, step)
    change = np.asarray(loss(params, *batch) - loss(after, *batch)) / rate
    dots = kernels.grad_dot(loss, params, batch, batch).scores[0]
    np.testing.assert_allclose(change, dots, atol=2e-2 * np.abs(dots).max())
    for rates in ([0.1], [0.1, np.nan]):
        with pytest.raises(ValueError, match="learning_rates"):
            kernels.tracin(loss, checkpoints, batch, batch, learning_rates=rates)


# Closed forms of the softmax head


def head_case(seed=0, rows=7, d=5, c=4):
    h, w, b = oracle.normal(seed, rows, d), oracle.normal(seed + 1, d, c), oracle.normal(seed, c)
    return h, w, b, np.random.default_rng(seed).integers(0, c, rows)


def test_closed_forms_of_the_head():
    h, w, b, y = head_case()

    def loss(params, h, y):
        return oracle.cross_entropy(h @ params[0] + params[1], y)

    exact = oracle.flat(oracle.naive_gradients(loss, (w, b), (h, y)))
    logits = h @ w + b
    got = kernels.grand_last_layer(h, logits, y)
    np.testing.assert_allclose(got.scores, np.linalg.norm(exact, axis=1), rtol=1e-5)
    errors = kernels.softmax_errors(logits, y)
    np.testing.assert_allclose(
        kernels.el2n(logits, y).scores, np.linalg.norm(errors, axis=1), rtol=1e-6
    )
    want = exact[:4] @ exact[4:].T
    got = kernels.tracin_last_layer(h[:4], errors[:4], h[4:], errors[4:])
    np.testing.assert_allclose(got.scores, want, atol=1e-6 * np.abs(want).max() + 1e-7)


def test_closed_forms_mask_padding_and_flag_bad_rows():
    h, w, b, y = head_case()
    logits = h @ w + b
    mask = np.array([1, 1, 1, 1, 1, 0, 0], np.float32)
    logits[5:], h[6], logits[1] = np.nan, np.inf, np.nan
    for got in (kernels.el2n(logits, y, mask), kernels.grand_last_layer(h, logits, y, mask)):
        np.testing.assert_array_equal(got.is_finite, np.arange(7) != 1)
        scores = np.asarray(got.scores)
        assert np.all(scores[[0, 2, 3, 4]] > 0) and not np.any(scores[[1, 5, 6]])


def test_errors_of_sure_rows():
    logits = np.array([[100.0, 0, 0], [0, 100.0, 0]], np.float32)
    got = kernels.el2n(logits, np.zeros(2, np.int32)).scores
    np.testing.assert_allclose(got, [0, np.sqrt(2)], atol=1e-6)
