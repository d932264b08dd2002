"""Influence against explicit float64 formulas, every shortcut against the long way."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from head_oracle import dense_hessian, losses_of, ones, softmax
from jaxpoison import kernels
from jaxpoison.kernels import SolveStatus
from jaxpoison.kernels.head_influence import _loss_influence, _self_influence
from jaxpoison.kernels.influence import _influence
from jaxpoison.kernels.softmax_head import _fit, _solve_head

examples = settings(max_examples=10, deadline=None, derandomize=True)


# Heads, against float64


def small_head(seed, n=14, d=3, c=3):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)).astype(np.float32)
    weights = (rng.standard_normal((c, d)) / 2).astype(np.float32)
    return x, rng.integers(0, c, n).astype(np.int32), weights, rng


@examples
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 1e-1, 10.0]))
def test_self_influence_is_a_newton_step_without_the_row(seed, damping):
    x, y, weights, _ = small_head(seed)
    got = kernels.head_self_influence(x, y, ones(x), weights, damping=damping)
    wide, w = x.astype(np.float64), weights.astype(np.float64)
    p, n = softmax(wide @ w.T), len(x)
    residuals = p - np.eye(3)[y]
    np.testing.assert_allclose(got.residuals, residuals, atol=1e-6)
    whole = dense_hessian(wide, p, n, damping)
    for i in range(n):
        g = np.outer(residuals[i], wide[i]).ravel()
        without = whole - dense_hessian(wide[i : i + 1], p[i : i + 1], n, 0.0)
        step = (np.linalg.solve(without, g) / n).reshape(w.shape)
        change = losses_of(wide[i : i + 1], y[i : i + 1], w + step)
        change = change[0] - losses_of(wide[i : i + 1], y[i : i + 1], w)[0]
        np.testing.assert_allclose(got.corrected[i], change, rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(
            got.plain[i], g @ np.linalg.solve(whole, g) / n, rtol=2e-3, atol=1e-6
        )
        # the corrected residual stands for the step: H^-1 (r~ x^T) / n
        outer = np.outer(np.asarray(got.corrected_residuals[i], np.float64), wide[i]).ravel()
        moved = (np.linalg.solve(whole, outer) / n).reshape(w.shape)
        np.testing.assert_allclose(moved, step, rtol=1e-2, atol=1e-3 * np.abs(step).max())
    assert (np.asarray(got.plain) >= 0).all() and (np.asarray(got.leverage) >= 0).all()
    assert (np.asarray(got.leverage) <= 2 + 1e-4).all()


@examples
@given(st.integers(0, 2**31))
def test_head_influence_is_the_explicit_formula(seed):
    x, y, weights, rng = small_head(seed)
    targets = rng.standard_normal((4, 3, 3)).astype(np.float32)
    found = kernels.solve_head(x, ones(x), weights, targets, damping=0.1, tolerance=1e-5)
    p = softmax(x.astype(np.float64) @ weights.T)
    residuals = (p - np.eye(3)[y]).astype(np.float32)
    got = kernels.head_influence(x, ones(x), weights, residuals, found.x)
    gradients = (residuals[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    inverse = np.linalg.inv(dense_hessian(x.astype(np.float64), p, len(x), 0.1))
    want = targets.reshape(4, -1) @ inverse @ gradients.T / len(x)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def head_scores(x, y, mask, weights, asked, own):
    alone = kernels.head_self_influence(x, y, mask, weights, damping=0.1)
    linear = kernels.solve_head(
        x, mask, weights, kernels.head_gradients(asked, own, weights),
        damping=0.1, tolerance=1e-6,
    )  # fmt: skip
    exact = kernels.head_loss_influence(
        x, mask, weights, alone.corrected_residuals, asked, own, damping=0.1, tolerance=1e-6
    )
    scores = kernels.head_influence(x, mask, weights, alone.residuals, linear.x)
    return [np.asarray(a) for a in (scores.T, exact.scores.T, *alone)]  # rows first


def test_padding_and_row_order_change_only_rounding_in_heads():
    x, y, weights, rng = small_head(5)
    asked, own = x[:4] + 1, y[:4]
    want = head_scores(x, y, ones(x), weights, asked, own)
    order = rng.permutation(len(x))
    for a, b in zip(
        head_scores(x[order], y[order], ones(x), weights, asked, own), want, strict=True
    ):
        np.testing.assert_allclose(a, b[order], rtol=1e-3, atol=1e-5)
    mask = np.r_[ones(x), np.zeros(5, np.float32)]
    for fill in (0.0, np.nan, 1e30):
        wide = np.r_[x, np.full((5, 3), fill, np.float32)]
        got = head_scores(wide, np.r_[y, np.full(5, 7)], mask, weights, asked, own)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a[: len(x)], b, rtol=1e-3, atol=1e-5)
            assert not a[len(x) :].any()
    fit = [
        kernels.fit_softmax_head(
            np.r_[x, np.full((5, 3), fill, np.float32)], np.r_[y, np.full(5, 7)], mask,
            num_classes=3, damping=0.1,
        ).weights
        for fill in (0.0, np.nan)
    ]  # fmt: skip
    np.testing.assert_array_equal(*fit)


def test_nan_never_leaves_a_head():
    x, y, weights, _ = small_head(6)
    x[3, 1] = np.nan
    for value in head_scores(x, y, ones(x), weights, x[:2] * np.inf, y[:2]):
        assert np.isfinite(value).all()
    none = np.zeros(len(x), np.float32)
    for value in head_scores(x, y, none, weights, np.ones((2, 3), np.float32), y[:2]):
        assert not value.any()
    separable = np.array([[1.0], [-1.0]], np.float32)
    fit = kernels.fit_softmax_head(
        separable * 100, np.array([0, 1]), ones(separable), num_classes=2, damping=1e-6
    )
    assert np.isfinite(fit.weights).all()


# Any loss


def logits_fn(params, x):
    return jnp.tanh(x @ params["w1"]) @ params["w2"]


def row_loss_fn(params, x, y):
    chosen = jax.nn.one_hot(y, 3)
    return -jnp.sum(chosen * jax.nn.log_softmax(logits_fn(params, x)), axis=1)


def probability_fn(params, x, y):
    return jnp.sum(jax.nn.one_hot(y, 3) * jax.nn.softmax(logits_fn(params, x)), axis=1)


def linear_logits_fn(weights, x):
    return x @ weights.T


def linear_loss_fn(weights, x, y):
    return -jnp.sum(jax.nn.one_hot(y, 3) * jax.nn.log_softmax(x @ weights.T), axis=1)


def network(seed):
    rng = np.random.default_rng(seed)
    params = {
        "w1": jnp.asarray(rng.standard_normal((3, 4)) / 2, jnp.float32),
        "w2": jnp.asarray(rng.standard_normal((4, 3)) / 2, jnp.float32),
    }
    x = rng.standard_normal((20, 3)).astype(np.float32)
    return params, x, rng.integers(0, 3, 20).astype(np.int32)


KNOBS = {"row_loss_fn": row_loss_fn, "damping": 1.0, "tolerance": 1e-5}


@pytest.mark.parametrize(("target_fn", "chunk"), [(None, 3), (probability_fn, 16)])
def test_influence_of_a_network_is_the_explicit_formula(target_fn, chunk):
    params, x, y = network(0)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    got = kernels.influence(
        params, (x, y), ones(x), (x[:5], y[:5]), target_fn=target_fn, chunk=chunk, **KNOBS
    )
    assert (np.asarray(got.solution.status) == SolveStatus.SOLVED).all()
    jacobian = jax.jit(jax.jacrev(lambda v: row_loss_fn(unravel(v), x, y)))(flat)
    asked = target_fn or row_loss_fn
    targets = jax.jit(jax.jacrev(lambda v: asked(unravel(v), x[:5], y[:5])))(flat)
    matrix = jax.jit(jax.hessian(lambda v: row_loss_fn(unravel(v), x, y).mean()))(flat)
    matrix = np.asarray(matrix, np.float64) + np.eye(flat.size)
    want = np.asarray(targets) @ np.linalg.solve(matrix, np.asarray(jacobian).T) / len(x)
    np.testing.assert_allclose(got.scores, want, atol=1e-4 * np.abs(want).max())
    assert np.asarray(got.is_finite).all()


def test_general_influence_equals_the_heads():
    x, y, weights, _ = small_head(8)
    linear = head_scores(x, y, ones(x), weights, x[:4], y[:4])[0].T
    for fn in (None, linear_logits_fn):
        got = kernels.influence(
            jnp.asarray(weights), (x, y), ones(x), (x[:4], y[:4]), row_loss_fn=linear_loss_fn,
            logits_fn=fn, damping=0.1, tolerance=1e-5,
        )  # fmt: skip
        np.testing.assert_allclose(got.scores, linear, rtol=1e-3, atol=1e-5)


def test_gradient_products_and_low_rank_self_influence():
    params, x, y = network(1)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    jacobian = jax.jit(jax.jacrev(lambda v: row_loss_fn(unravel(v), x, y)))(flat)
    jacobian = np.asarray(jacobian, np.float64)
    matrix = jax.jit(jax.hessian(lambda v: row_loss_fn(unravel(v), x, y).mean()))(flat)
    values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    vectors = vectors.T.astype(np.float32)
    products = kernels.gradient_products(
        params, (x, y), ones(x), vectors, row_loss_fn=row_loss_fn, chunk=4
    )
    np.testing.assert_allclose(products, vectors @ jacobian.T, atol=1e-5)
    got = kernels.low_rank_self_influence(
        products, np.sum(jacobian**2, axis=1), values, num_rows=20, damping=0.5
    )
    kept = np.maximum(values, 0)
    want = np.sum((jacobian @ vectors.T) ** 2 / (kept + 0.5), axis=1) / 20
    np.testing.assert_allclose(got, want, rtol=1e-4)
    few = kernels.low_rank_self_influence(
        products[-3:], np.sum(jacobian**2, axis=1), values[-3:], num_rows=20, damping=0.5
    )
    assert (np.asarray(few) >= np.asarray(got) - 1e-6).all()  # the rest counts as flat


def test_padding_order_and_micro_batches_of_a_network():
    params, x, y = network(2)
    queries = (x[:3], y[:3])
    want = np.asarray(kernels.influence(params, (x, y), ones(x), queries, **KNOBS).scores)
    order = np.random.default_rng(0).permutation(20)
    got = kernels.influence(params, (x[order], y[order]), ones(x), queries, **KNOBS)
    np.testing.assert_allclose(got.scores, want[:, order], atol=1e-5)
    mask = np.r_[ones(x), np.zeros(4, np.float32)]
    for fill in (0.0, np.nan):
        wide = np.r_[x, np.full((4, 3), fill, np.float32)], np.r_[y, np.full(4, 9, np.int32)]
        got = kernels.influence(params, wide, mask, queries, **KNOBS)
        np.testing.assert_allclose(got.scores[:, :20], want, atol=1e-5)
        assert not np.any(got.scores[:, 20:]) and np.asarray(got.is_finite).all()
    # rows are scored in micro-batches against one set of solutions
    solved = kernels.influence(params, (x, y), ones(x), queries, **KNOBS).solution.x
    parts = [
        kernels.gradient_products(
            params, (x[s : s + 5], y[s : s + 5]), ones(x[:5]), solved, row_loss_fn=row_loss_fn
        )
        for s in range(0, 20, 5)
    ]
    np.testing.assert_allclose(np.concatenate(parts, axis=1) / 20, want, atol=1e-5)


def test_a_saddle_or_nan_is_a_status_not_a_score():
    params, x, y = network(3)
    sharp = {name: 4 * value for name, value in params.items()}
    knobs = KNOBS | {"damping": 1e-6}
    got = kernels.influence(sharp, (x, y), ones(x), (x[:4], y[:4]), **knobs)
    assert (np.asarray(got.solution.status) == SolveStatus.NOT_POSITIVE).any()
    assert np.isfinite(got.scores).all()
    knobs["damping"] = 1e-2
    ggn = kernels.influence(
        sharp, (x, y), ones(x), (x[:4], y[:4]), logits_fn=logits_fn, **knobs, max_steps=400
    )
    assert not (np.asarray(ggn.solution.status) == SolveStatus.NOT_POSITIVE).any()
    asked = x[:4].copy()
    asked[2, 0] = np.nan
    got = kernels.influence(params, (x, y), ones(x), (asked, y[:4]), **KNOBS)
    assert np.asarray(got.solution.status).tolist() == [0, 0, SolveStatus.NOT_FINITE, 0]
    assert np.isfinite(got.scores).all() and not np.any(got.scores[2])
    x[7, 1] = np.inf
    got = kernels.influence(params, (x, y), ones(x), (asked, y[:4]), **KNOBS)
    assert (np.asarray(got.solution.status) == SolveStatus.NOT_FINITE).all()
    assert not np.any(got.scores)


def test_the_second_call_compiles_nothing():
    jitted = (
        _influence, kernels.gradient_products, _self_influence,
        _loss_influence, kernels.head_influence, _solve_head,
        _fit,
    )  # fmt: skip
    sizes = []
    for seed in (10, 11):
        params, x, y = network(seed)
        knobs = KNOBS | {"damping": 1.0 + seed}
        kernels.influence(params, (x, y), ones(x), (x[:3], y[:3]), **knobs)
        x, y, weights, _ = small_head(seed)
        head_scores(x, y, ones(x), weights, x[:4], y[:4])
        kernels.fit_softmax_head(x, y, ones(x), num_classes=3, damping=seed)
        sizes.append([f._cache_size() for f in jitted])
    assert sizes[0] == sizes[1] and min(sizes[0]) > 0


def test_wrong_input_names_the_argument():
    params, x, y = network(4)
    rest = (x, y), ones(x), (x[:2], y[:2])
    with pytest.raises(ValueError, match="damping must be a positive finite number, got 0"):
        kernels.influence(params, *rest, row_loss_fn=row_loss_fn, damping=0)
    with pytest.raises(ValueError, match=r"row_loss_fn must return one value a row"):
        kernels.influence(params, *rest, **KNOBS | {"row_loss_fn": mean_loss_fn})
    with pytest.raises(ValueError, match="must have 20 rows like the weights"):
        kernels.influence(params, (x, y[:7]), ones(x), (x[:2], y[:2]), **KNOBS)
    for fn in (kernels.head_self_influence, kernels.fit_softmax_head):
        knobs = {"num_classes": 3} if fn is kernels.fit_softmax_head else {}
        weights = () if knobs else (np.ones((3, 3), np.float32),)
        with pytest.raises(ValueError, match="damping must be"):
            fn(x, y, ones(x), *weights, damping=-1.0, **knobs)


def mean_loss_fn(params, x, y):
    return row_loss_fn(params, x, y).mean()
