"""Influence against exact retraining without the row, on two real tables."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

from jaxpoison import kernels
from jaxpoison.kernels import SolveStatus
from jaxpoison.linalg import ritz_pairs

DAMPING = 1e-2  # lambda over n of the sum of losses
ROWS, LEFT_OUT, QUERIES = 400, 25, 60
TABLES = ["digits", "breast_cancer"]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def losses_of(x, y, weights):
    z = x @ weights.T
    top = z.max(1)
    return np.log(np.exp(z - top[:, None]).sum(1)) + top - z[np.arange(len(y)), y]


def dense_hessian(x, p, total, damping):
    """[c d, c d] float64 Hessian of ``sum l / total + damping |W|^2 / 2``."""
    (_, d), c = x.shape, p.shape[1]
    out = np.zeros((c, d, c, d))
    for a in range(c):
        for b in range(a + 1):
            entry = p[:, a] * ((a == b) - p[:, b]) / total
            out[a, :, b] = out[b, :, a] = (x * entry[:, None]).T @ x
    return out.reshape(c * d, c * d) + damping * np.eye(c * d)


def trained(x, y, classes, total, start):
    """The minimum to rounding, by Newton steps in float64."""
    weights = start
    for _ in range(40):
        p = softmax(x @ weights.T)
        gradient = (p - np.eye(classes)[y]).T @ x / total + DAMPING * weights
        if np.abs(gradient).max() < 1e-11:
            return weights
        step = np.linalg.solve(dense_hessian(x, p, total, DAMPING), gradient.ravel())
        weights = weights - step.reshape(weights.shape)
    raise AssertionError("Newton's method did not converge")


@functools.cache
def retrained(name):
    """A table, its head, and the exact change of losses when single rows are left out."""
    x, y = (load_digits if name == "digits" else load_breast_cancer)(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    x = x / 16 if name == "digits" else (x - x[:ROWS].mean(0)) / x[:ROWS].std(0)
    x = np.c_[x, np.ones(len(x))].astype(np.float32).astype(np.float64)
    classes = y.max() + 1
    asked, own = x[ROWS : ROWS + QUERIES], y[ROWS : ROWS + QUERIES]
    x, y = x[:ROWS], y[:ROWS]
    weights = trained(x, y, classes, ROWS, np.zeros((classes, x.shape[1])))
    rows = np.arange(0, ROWS, ROWS // LEFT_OUT)
    changes, own_changes = [], []
    for i in rows:
        kept = np.arange(ROWS) != i
        without = trained(x[kept], y[kept], classes, ROWS, weights)
        changes.append(losses_of(asked, own, without) - losses_of(asked, own, weights))
        own_changes.append((losses_of(x, y, without) - losses_of(x, y, weights))[i])
    table = x.astype(np.float32), y, asked.astype(np.float32), own
    return table, weights.astype(np.float32), rows, np.array(changes).T, np.array(own_changes)


def compared(predicted, exact):
    """Pearson correlation and the slope of the exact values on the predicted ones."""
    predicted, exact = np.ravel(predicted).astype(np.float64), np.ravel(exact)
    return np.corrcoef(predicted, exact)[0, 1], np.polyfit(predicted, exact, 1)[0]


def ones(x):
    return np.ones(len(x), np.float32)


@pytest.mark.parametrize("name", TABLES)
def test_the_fitted_head_is_the_exact_minimum(name):
    (x, y, *_), weights, *_ = retrained(name)
    got = kernels.fit_softmax_head(x, y, ones(x), num_classes=len(weights), damping=DAMPING)
    assert got.gradient < 2e-5 and got.steps < 15
    np.testing.assert_allclose(got.weights, weights, atol=2e-4)


@pytest.mark.parametrize("name", TABLES)
def test_influence_predicts_leaving_a_row_out(name):
    (x, y, asked, own), weights, rows, exact, own_exact = retrained(name)
    alone = kernels.head_self_influence(x, y, ones(x), weights, damping=DAMPING)
    found = kernels.solve_head(
        x, ones(x), weights, kernels.head_gradients(asked, own, weights),
        damping=DAMPING, tolerance=1e-4,
    )  # fmt: skip
    assert (np.asarray(found.status) == SolveStatus.SOLVED).all()
    plain = kernels.head_influence(x, ones(x), weights, alone.residuals, found.x)
    assert compared(plain[:, rows], exact)[0] >= 0.97
    corrected = kernels.head_loss_influence(
        x, ones(x), weights, alone.corrected_residuals, asked, own,
        damping=DAMPING, tolerance=1e-4,
    )  # fmt: skip
    pearson, slope = compared(corrected.scores[:, rows], exact)
    assert pearson >= 0.998 and abs(slope - 1) <= 0.02
    pearson, slope = compared(alone.corrected[rows], own_exact)
    # One Newton step does not see how the curvature of the other rows changes: a row that moves its
    # own logits by several comes out a few hundredths too small.
    assert pearson >= 0.998 and abs(slope - 1) <= 0.04
    assert compared(alone.plain[rows], own_exact)[0] < pearson
    # the sign: without a row, its own loss rises
    assert (np.asarray(alone.corrected) > 0).all() and (own_exact > -1e-12).all()


@pytest.mark.parametrize("name", TABLES)
def test_fifty_lanczos_vectors_correlate_with_the_exact_scores(name):
    (x, y, asked, own), weights, *_ = retrained(name)
    c, d = weights.shape
    p = softmax(x @ weights.T).astype(np.float32)
    key = jax.random.key(0)
    start = jax.random.normal(key, (c * d,))
    found = kernels.lanczos(head_product, (x, p), start, num_vectors=50, key=key)
    values, vectors = ritz_pairs(np.asarray(found.basis), np.asarray(found.projected))
    queries = np.asarray(kernels.head_gradients(asked, own, weights)).reshape(QUERIES, -1)
    gradients = np.asarray(kernels.head_gradients(x, y, weights)).reshape(ROWS, -1)
    exact = queries @ np.linalg.solve(dense_hessian(x, p, ROWS, DAMPING), gradients.T) / ROWS
    got = kernels.low_rank_influence(
        vectors @ queries.T, vectors @ gradients.T, queries @ gradients.T, values,
        num_rows=ROWS, damping=DAMPING,
    )  # fmt: skip
    assert compared(got, exact)[0] >= 0.95
    by_rows = kernels.low_rank_inverse(values, vectors, queries, damping=DAMPING) @ gradients.T
    np.testing.assert_allclose(got, by_rows / ROWS, atol=2e-4 * np.abs(exact).max())


def head_product(operands, v):
    x, p = operands
    stacked = v.reshape(-1, p.shape[1], x.shape[1])
    weight = jnp.full(len(x), 1 / len(x))
    return kernels.softmax_hessian_products(x, p, weight, stacked).reshape(len(v), -1)
