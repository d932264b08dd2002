"""EK-FAC for the tests: the naive float64 answer and what all of its tests share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import tap_oracle as oracle
from jaxpoison import kernels
from jaxpoison.linalg.ekfac import RowBatches, fit_ekfac


def conv(x, w, strides=(1, 1), padding="SAME"):
    return jax.lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def fitted(case, batch_size=1024, **knobs):
    loss, params, batch = case
    return fit_ekfac(loss, params, RowBatches(batch, batch_size), **knobs)


# The naive answer: float64 gradients of every row, each layer's Kronecker product written out.


def naive(case, queries, damping=None, rest="diagonal"):
    """Scores [n] of each row with itself, [q, n] with the queries, and Lambda of each layer."""
    loss, params, batch = case
    plan = kernels.plan_taps(loss, params, batch)
    taps = kernels.collect_taps(loss, params, batch)
    own = jax.tree.leaves(oracle.naive_gradients(loss, params, batch))
    asked = jax.tree.leaves(oracle.naive_gradients(loss, params, queries))
    n = len(taps.losses)
    scores, pairs, lambdas = 0.0, 0.0, []
    for tap in taps.layers:
        layer = tap.layer
        a = np.asarray(kernels.tap_inputs(tap), np.float64)
        if layer.bias is not None:
            a = np.concatenate([a, np.ones((*a.shape[:2], 1))], axis=2)
        d = np.asarray(tap.cotangents, np.float64)
        q_a = np.linalg.eigh(np.einsum("bti,btj->ij", a, a))[1]
        if layer.kind == "embedding":
            q_a = np.eye(len(q_a))
        kronecker = np.kron(q_a, np.linalg.eigh(np.einsum("bto,btp->op", d, d))[1])
        sides = []
        for leaves in (own, asked):
            g = np.stack([kernels.leaf_to_matrix(layer, one) for one in leaves[layer.weight]])
            if layer.bias is not None:
                g = np.concatenate([g, leaves[layer.bias].reshape(len(g), 1, -1)], axis=1)
            sides.append(g.reshape(len(g), -1) @ kronecker)
        lambdas.append(np.mean(sides[0] ** 2, axis=0).reshape(-1, layer.num_outputs))
        lam = 0.1 * lambdas[-1].mean() if damping is None else damping
        weights = 1 / (lambdas[-1].reshape(-1) + lam)
        scores = scores + (sides[0] ** 2) @ weights / n
        pairs = pairs + (sides[1] * weights) @ sides[0].T / n
    for number in plan.rest if rest == "diagonal" else ():
        sides = [leaves[number].reshape(len(leaves[number]), -1) for leaves in (own, asked)]
        mean = np.mean(sides[0] ** 2, axis=0)
        weights = 1 / (mean + (0.1 * mean.mean() if damping is None else damping))
        scores = scores + (sides[0] ** 2) @ weights / n
        pairs = pairs + (sides[1] * weights) @ sides[0].T / n
    return scores, pairs, lambdas


def agree(got, want, tolerance=1e-5):
    scale = np.max(np.abs(want))
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)


def dense_loss(params, x, y):
    h = x
    if "w" in params:
        h = jnp.tanh(h @ params["w"] + params.get("b", 0.0))
    h = h @ params["v"]
    return oracle.cross_entropy(h.mean(axis=1) if h.ndim == 3 else h, y)
