"""EK-FAC against per-sample gradients in explicit Kronecker eigenbases, and against kronfluence."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tap_oracle as oracle
from ekfac_oracle import agree, conv, dense_loss, fitted, naive
from jaxpoison import kernels
from jaxpoison.kernels._ekfac_layers import over_gradients
from jaxpoison.linalg.ekfac import invert_ekfac

# benchmarks/ekfac_goldens.py made them with kronfluence 1.0.1 on torch 2.13, in float64
GOLDENS = np.load(Path(__file__).with_name("ekfac_goldens.npz"))
few = settings(max_examples=6, deadline=None, derandomize=True)


def check_case(case, queries, rest="diagonal", tolerance=1e-5, **knobs):
    loss, params, batch = case
    fit = fitted(case)
    scores, pairs, lambdas = naive(case, queries, rest=rest, **knobs)
    inverse = invert_ekfac(fit, rest=rest, **knobs).inverse
    for got, want in zip(fit.eigenvalues, lambdas, strict=True):
        agree(got, want, tolerance)
    own = kernels.ekfac_self_influence(loss, params, batch, inverse=inverse)
    both = kernels.ekfac_influence(loss, params, batch, queries, inverse=inverse)
    assert own.is_finite.all() and both.is_finite.all()
    agree(own.scores, scores, tolerance)
    agree(both.scores, pairs, tolerance)
    return fit


@few
@given(
    t=st.sampled_from([None, 1, 2, 5, 9]),
    i=st.integers(1, 6),
    h=st.integers(1, 7),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_dense_layers_equal_the_naive_answer(t, i, h, bias, seed):
    # more rows than numbers of a layer's inputs: no eigenvalue is exactly repeated
    shape = (24, i) if t is None else (24, t, i)
    params = {"w": oracle.normal(seed, i, h), "v": oracle.normal(seed, h, 3)}
    if bias:
        params["b"] = oracle.normal(seed, h)
    y = np.random.default_rng(seed).integers(0, 3, 24)
    batch = (oracle.normal(seed, *shape, scale=1.0), y)
    case = dense_loss, params, batch
    # Lambda in an eigenvector depends on how well the next eigenvalue is told apart
    check_case(case, (batch[0][:4] * 0.5, y[4:8]), tolerance=1e-3, damping=0.05)


def conv_loss(params, x, y):
    h = jnp.tanh(conv(x, params["w"], (2, 1)) + params.get("b", 0.0))
    return oracle.cross_entropy(h.mean(axis=(1, 2)) @ params["v"], y)


@pytest.mark.parametrize(
    ("kernel", "outputs", "bias"), [(3, 4, True), (1, 5, False), (2, 40, True)]
)
def test_convolutions_equal_the_naive_answer(kernel, outputs, bias):
    params = {
        "w": oracle.normal(1, kernel, kernel, 2, outputs),
        "v": oracle.normal(2, outputs, 3),
    }
    if bias:
        params["b"] = oracle.normal(3, outputs)
    batch = (oracle.normal(4, 50, 6, 5, 2, scale=1.0), np.arange(50) % 3)
    check_case((conv_loss, params, batch), (batch[0][:3] + 1, np.arange(3)), tolerance=2e-4)


@pytest.mark.parametrize("rest", ["diagonal", "left out"])
def test_leaves_without_taps_and_embeddings(rest):
    def loss(params, ids, y):
        h = jnp.tanh(params["embed"][ids] @ params["w"]) * params["scale"]
        return oracle.cross_entropy(h.mean(axis=1) @ params["v"] + params["c"], y)

    params = {"embed": oracle.normal(1, 7, 4), "w": oracle.normal(2, 4, 5)}
    params |= {"scale": 1 + oracle.normal(3, 5), "v": oracle.normal(4, 5, 3)}
    params["c"] = oracle.normal(5, 3)
    rng = np.random.default_rng(0)
    batch = (rng.integers(0, 7, (60, 6)), rng.integers(0, 3, 60))
    queries = (rng.integers(0, 7, (5, 6)), np.arange(5) % 3)
    fit = check_case((loss, params, batch), queries, rest=rest, tolerance=2e-4)
    treatment = invert_ekfac(fit, rest=rest).treatment
    assert treatment == dict.fromkeys(["['embed']", "['w']", "['v']", "['c']"], "EK-FAC") | {
        "['scale']": rest
    }
    assert fit.basis[[layer.name for layer in fit.layers].index("['embed']")].inputs is None


def test_a_layer_without_any_gradient_is_left_out_and_said():
    def dead(params, x, y):
        gate = jax.nn.relu(x @ params["dead"] - 1e3).sum(axis=-1)
        return oracle.mlp_loss(params, x, y) + gate

    _, params, batch = oracle.mlp_case(rows=20)
    params = {**params, "dead": oracle.normal(0, 5, 2)}
    damped = invert_ekfac(fitted((dead, params, batch)))
    assert damped.treatment["['dead']"] == "no gradient"
    assert damped.damping["['dead']"] == 0
    got = kernels.ekfac_self_influence(dead, params, batch, inverse=damped.inverse)
    assert got.is_finite.all() and (got.scores > 0).all()


def test_groups_of_rows_change_nothing():
    """An accelerator forms the gradients of many rows at a time, a CPU of one."""
    for t, i, o in ((5, 3, 4), (2, 3, 4), (4, 3, 6), (4, 6, 3)):
        layer = kernels.Layer("dense", "w", 0, None, t, i, o, (), (i, o))
        tap = kernels.Tap(oracle.normal(0, 8, t, i), oracle.normal(1, 8, t, o), layer)
        basis = kernels.LayerBasis(
            np.linalg.qr(oracle.normal(2, i, i))[0], np.linalg.qr(oracle.normal(3, o, o))[0]
        )
        gradients = np.einsum("bti,bto->bio", tap.inputs, tap.cotangents)
        want = np.einsum("ik,bij,jl->bkl", basis.inputs, gradients, basis.cotangents)
        for group in (1, 3, 8):
            total, rows = over_gradients(
                tap,
                jnp.ones(8, bool),
                basis,
                lambda total, g: (total + jnp.sum(g, axis=0), g),
                jnp.zeros((i, o)),
                group=group,
            )
            np.testing.assert_allclose(rows, want, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(total, want.sum(axis=0), rtol=1e-4, atol=1e-5)


def test_frozen_leaves_stay_out():
    loss, params, batch = oracle.mlp_case(rows=30)
    trainable = {"w": False, "b": False, "v": True, "c": True}
    fit = fitted((loss, params, batch), trainable=trainable)
    treatment = invert_ekfac(fit).treatment
    assert {treatment["['w']"], treatment["['b']"]} == {"frozen"}
    assert {treatment["['v']"], treatment["['c']"]} == {"EK-FAC"}
    whole = fitted((loss, params, batch))
    k = [layer.name for layer in whole.layers].index("['v']")
    agree(fit.eigenvalues[0], whole.eigenvalues[k])
    inverse = invert_ekfac(fit).inverse
    own = kernels.ekfac_self_influence(loss, params, batch, inverse=inverse, trainable=trainable)
    every = kernels.ekfac_self_influence(loss, params, batch, inverse=invert_ekfac(whole).inverse)
    assert (own.scores < every.scores).all()


# kronfluence


def golden_case(name):
    def of(key):
        return GOLDENS[f"{name}/{key}"] if f"{name}/{key}" in GOLDENS else None

    params = {}
    for k in range(3):
        weight, bias = of(f"l{k}.weight"), of(f"l{k}.bias")
        params[f"w{k}"] = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        if bias is not None:
            params[f"b{k}"] = bias

    def loss(params, x, y):
        h = jnp.tanh(layer(params, 0, x))
        h = jnp.tanh(layer(params, 1, h))
        if name != "mlp":
            h = h.mean(axis=tuple(range(1, h.ndim - 1)))
        return oracle.cross_entropy(layer(params, 2, h), y)

    def layer(params, k, x):
        w, b = params[f"w{k}"], params.get(f"b{k}", 0.0)
        if w.ndim == 4:
            return conv(x, w, *(((1, 1), "SAME") if k == 0 else ((2, 1), "VALID"))) + b
        return x @ w + b

    return (loss, params, (of("x"), of("y"))), of


@pytest.mark.parametrize("name", ["mlp", "mlp/fixed", "sequence", "conv"])
def test_scores_of_kronfluence(name):
    name, _, fixed = name.partition("/")
    (loss, params, (x, y)), of = golden_case(name)
    suffix = "/fixed" if fixed else ""
    fit = fitted((loss, params, (x, y)), batch_size=16)
    order = np.argsort([layer.name for layer in fit.layers])
    sums = np.array([fit.eigenvalues[k].sum() for k in order])
    np.testing.assert_allclose(sums, of("lambda"), rtol=1e-5)
    inverse = invert_ekfac(fit, damping=0.01 if fixed else None).inverse
    own = kernels.ekfac_self_influence(loss, params, (x, y), inverse=inverse)
    np.testing.assert_allclose(own.scores * len(x), of("self" + suffix), rtol=1e-5)
    want = of("pairs" + suffix)
    queries = (x[: len(want)] * np.float32(0.7), y[: len(want)][::-1])
    got = kernels.ekfac_influence(loss, params, (x, y), queries, inverse=inverse).scores * len(x)
    assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)
    agree(got, want)
