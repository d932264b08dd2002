"""Hessian and Gauss-Newton products against explicit matrices, closed forms and differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from jaxpoison.kernels import hessian

ROWS, INPUTS, HIDDEN, CLASSES = 12, 4, 5, 3
examples = settings(max_examples=10, deadline=None, derandomize=True)


def logits_fn(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]


def row_loss_fn(params, x, y):
    log_p = jax.nn.log_softmax(logits_fn(params, x))
    return -jnp.take_along_axis(log_p, y[:, None], axis=1)[:, 0]


LOSS = hessian.WeightedLoss(row_loss_fn)


def network(seed, rows=ROWS):
    rng = np.random.default_rng(seed)
    params = {
        "w1": rng.standard_normal((INPUTS, HIDDEN)) / 2,
        "b1": rng.standard_normal(HIDDEN) / 2,
        "w2": rng.standard_normal((HIDDEN, CLASSES)) / 2,
    }
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    x = rng.standard_normal((rows, INPUTS)).astype(np.float32)
    return params, x, rng.integers(0, CLASSES, rows).astype(np.int32), rng


def mean_weight(rows):
    return np.full(rows, 1 / rows, np.float32)


def float64_gradient(flat, unravel, x, y):
    """Gradient of the mean loss, by hand in numpy."""
    p = {name: np.asarray(value, np.float64) for name, value in unravel(flat).items()}
    h = np.tanh(x @ p["w1"] + p["b1"])
    z = h @ p["w2"]
    e = np.exp(z - z.max(1, keepdims=True))
    e = (e / e.sum(1, keepdims=True) - np.eye(CLASSES)[y]) / len(y)
    back = (e @ p["w2"].T) * (1 - h * h)
    return np.concatenate([back.sum(0), (x.T @ back).ravel(), (h.T @ e).ravel()])  # b1, w1, w2


def float64_unravel(flat):
    cut = HIDDEN + INPUTS * HIDDEN
    return {
        "b1": flat[:HIDDEN],
        "w1": flat[HIDDEN:cut].reshape(INPUTS, HIDDEN),
        "w2": flat[cut:].reshape(HIDDEN, CLASSES),
    }


@examples
@given(st.integers(0, 2**31))
def test_hessian_products_are_central_differences_of_the_float64_gradient(seed):
    params, x, y, rng = network(seed)
    flat = np.asarray(ravel_pytree(params)[0], np.float64)
    vectors = rng.standard_normal((3, flat.size)).astype(np.float32)
    got = hessian.hessian_vector_products(
        params, ((x, y), mean_weight(ROWS)), vectors, loss_fn=LOSS, chunk=2
    )
    step = 1e-5
    for v, hv in zip(vectors.astype(np.float64), np.asarray(got), strict=True):
        ends = (float64_gradient(flat + s * v, float64_unravel, x, y) for s in (step, -step))
        want = np.subtract(*ends) / (2 * step)
        np.testing.assert_allclose(hv, want, atol=3e-6 * np.abs(vectors).sum())


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_hessian_products_are_the_explicit_hessian(chunk):
    params, x, y, rng = network(0)
    flat, unravel = ravel_pytree(params)
    batch = ((x, y), mean_weight(ROWS))
    want = jax.hessian(lambda v: LOSS(unravel(v), *batch))(flat)
    got = hessian.hessian_vector_products(
        params, batch, np.eye(flat.size, dtype=np.float32), loss_fn=LOSS, chunk=chunk
    )
    np.testing.assert_allclose(got, want, atol=1e-6)
    vectors = jax.vmap(unravel)(rng.standard_normal((4, flat.size)).astype(np.float32))
    trees = hessian.hessian_vector_products(params, batch, vectors, loss_fn=LOSS, chunk=chunk)
    rows = jax.vmap(lambda t: ravel_pytree(t)[0])
    np.testing.assert_allclose(rows(trees), rows(vectors) @ want, atol=1e-5)


@examples
@given(st.integers(0, 2**31))
def test_ggn_products_are_jacobians_around_the_logit_hessian(seed):
    params, x, _, rng = network(seed)
    flat, unravel = ravel_pytree(params)
    weight = rng.uniform(0.1, 1, ROWS).astype(np.float32)
    vectors = rng.standard_normal((3, flat.size)).astype(np.float32)
    got = hessian.ggn_vector_products(params, x, weight, vectors, logits_fn=logits_fn)
    jacobian = np.asarray(jax.jacfwd(lambda v: logits_fn(unravel(v), x))(flat), np.float64)
    p = np.asarray(jax.nn.softmax(logits_fn(params, x)), np.float64)
    inner = np.einsum("bi,ij->bij", p, np.eye(CLASSES)) - np.einsum("bi,bj->bij", p, p)
    want = np.einsum("b,bip,bij,bjq,vq->vp", weight, jacobian, inner, jacobian, vectors)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max() + 1e-6)
    assert (np.sum(np.asarray(got) * vectors, axis=1) >= -1e-5).all()


@examples
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 4), st.integers(2, 4))
def test_closed_softmax_products(seed, n, d, c):
    rng = np.random.default_rng(seed)
    a, v = rng.standard_normal((n, d)), rng.standard_normal((3, c, d))
    p = rng.dirichlet(np.ones(c), n)
    got = hessian.softmax_hessian_products(
        *(np.asarray(arg, np.float32) for arg in (a, p, np.full(n, 1 / n), v))
    )
    want = np.zeros_like(v)
    for i in range(n):
        spread = np.diag(p[i]) - np.outer(p[i], p[i])
        want += np.einsum("kl,qld,d,e->qke", spread, v, a[i], a[i]) / n
    np.testing.assert_allclose(got, want, atol=1e-5 * max(np.abs(want).max(), 1))


def test_hessian_and_ggn_agree_where_logits_are_linear():
    _, x, y, rng = network(3)
    weights = jnp.asarray(rng.standard_normal((INPUTS, CLASSES)), jnp.float32)
    vectors = rng.standard_normal((4, weights.size)).astype(np.float32)
    weight = mean_weight(ROWS)
    full = hessian.hessian_vector_products(
        weights, ((x, y), weight), vectors, loss_fn=hessian.WeightedLoss(linear_loss_fn)
    )
    ggn = hessian.ggn_vector_products(weights, x, weight, vectors, logits_fn=linear_logits_fn)
    p = jax.nn.softmax(x @ weights)
    stacked = vectors.reshape(-1, INPUTS, CLASSES).swapaxes(1, 2)
    closed = hessian.softmax_hessian_products(x, p, weight, stacked).swapaxes(1, 2)
    np.testing.assert_allclose(full, ggn, atol=1e-6)
    np.testing.assert_allclose(closed.reshape(4, -1), ggn, atol=1e-6)


def linear_logits_fn(weights, x):
    return x @ weights


def linear_loss_fn(weights, x, y):
    return -jax.nn.log_softmax(x @ weights)[jnp.arange(len(y)), y]


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -3e38])
def test_padding_contributes_exactly_nothing(garbage):
    params, x, y, rng = network(1)
    vectors = rng.standard_normal((2, ravel_pytree(params)[0].size)).astype(np.float32)
    weight = np.r_[mean_weight(ROWS), np.zeros(4, np.float32)]
    results = []
    for fill in (0.0, garbage):
        wide = np.r_[x, np.full((4, INPUTS), fill, np.float32)]
        labels = np.r_[y, np.full(4, 99 if fill else 0, np.int32)]
        results.append(
            (
                hessian.hessian_vector_products(
                    params, ((wide, labels), weight), vectors, loss_fn=LOSS
                ),
                hessian.ggn_vector_products(params, wide, weight, vectors, logits_fn=logits_fn),
            )
        )
    for clean, dirty in zip(*results, strict=True):
        np.testing.assert_array_equal(clean, dirty)
    short = hessian.hessian_vector_products(
        params, ((x, y), mean_weight(ROWS)), vectors, loss_fn=LOSS
    )
    np.testing.assert_allclose(results[0][0], short, atol=1e-6)


def test_micro_batches_and_row_order_change_only_rounding():
    params, x, y, rng = network(2)
    vectors = rng.standard_normal((2, ravel_pytree(params)[0].size)).astype(np.float32)
    weight = mean_weight(ROWS)

    def products(rows):
        batch = ((x[rows], y[rows]), weight[rows])
        return np.asarray(
            hessian.hessian_vector_products(params, batch, vectors, loss_fn=LOSS)
        ), np.asarray(
            hessian.ggn_vector_products(params, x[rows], weight[rows], vectors, logits_fn=logits_fn)
        )

    whole = products(np.arange(ROWS))
    parts = [products(np.arange(s, s + 4)) for s in range(0, ROWS, 4)]
    shuffled = products(rng.permutation(ROWS))
    for kind in (0, 1):
        np.testing.assert_allclose(sum(p[kind] for p in parts), whole[kind], atol=1e-5)
        np.testing.assert_allclose(shuffled[kind], whole[kind], atol=1e-5)


def test_the_second_call_compiles_nothing():
    jitted = hessian.hessian_vector_products, hessian.ggn_vector_products
    sizes = []
    for seed in (5, 6):
        params, x, y, rng = network(seed)
        vectors = rng.standard_normal((2, ravel_pytree(params)[0].size)).astype(np.float32)
        loss_fn = hessian.WeightedLoss(row_loss_fn)  # another object, equal to the first
        hessian.hessian_vector_products(
            params, ((x, y), mean_weight(ROWS)), vectors, loss_fn=loss_fn
        )
        hessian.ggn_vector_products(params, x, mean_weight(ROWS), vectors, logits_fn=logits_fn)
        sizes.append([f._cache_size() for f in jitted])
    assert sizes[0] == sizes[1] and min(sizes[0]) > 0


def test_wrong_losses_params_and_shapes_name_the_argument():
    params, x, y, _ = network(0)
    size = ravel_pytree(params)[0].size
    one, weight = np.ones((1, size), np.float32), mean_weight(ROWS)
    batch = ((x, y), weight)
    with pytest.raises(ValueError, match=r"loss_fn must return a scalar, got shape \(12,\)"):
        hessian.hessian_vector_products(params, (x, y), one, loss_fn=row_loss_fn)
    with pytest.raises(ValueError, match=r"row_loss_fn must return one value a row, \[12\]"):
        wrong = hessian.WeightedLoss(lambda p, x, y: row_loss_fn(p, x, y).sum())
        hessian.hessian_vector_products(params, batch, one, loss_fn=wrong)
    with pytest.raises(ValueError, match="must have 12 rows like the weights, got"):
        hessian.hessian_vector_products(params, ((x, y[:5]), weight), one, loss_fn=LOSS)
    with pytest.raises(ValueError, match=r"vectors must be \[q, 40\]"):
        hessian.hessian_vector_products(params, batch, one[:, 1:], loss_fn=LOSS)
    with pytest.raises(ValueError, match="floating arrays, got a leaf of int32"):
        hessian.hessian_vector_products({"w": np.arange(3)}, batch, one, loss_fn=LOSS)
    with pytest.raises(ValueError, match="params holds no array"):
        hessian.hessian_vector_products({}, batch, one, loss_fn=LOSS)
    with pytest.raises(ValueError, match=r"logits_fn must return \[12, c\]"):
        hessian.ggn_vector_products(
            params, x, weight, one, logits_fn=lambda p, x: logits_fn(p, x).sum(0)
        )
