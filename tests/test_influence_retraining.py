"""Influence against exact retraining without the row, on two real tables."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

from head_oracle import compared, dense_hessian, left_out, minimum, ones, softmax
from jaxpoison import kernels
from jaxpoison.kernels import SolveStatus
from jaxpoison.linalg import ritz_pairs

DAMPING = 1e-2  # lambda over n of the sum of losses
ROWS, LEFT_OUT, QUERIES = 400, 25, 60
TABLES = ["digits", "breast_cancer"]


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
    weights = minimum(x, y, ROWS, np.zeros((classes, x.shape[1])), DAMPING)
    rows = np.arange(0, ROWS, ROWS // LEFT_OUT)
    changes, own_changes = left_out(rows, x, y, weights, DAMPING, asked, own)
    table = x.astype(np.float32), y, asked.astype(np.float32), own
    return table, weights.astype(np.float32), rows, changes.T, own_changes


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
