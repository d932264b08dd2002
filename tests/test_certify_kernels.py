"""Kernels of many small subsets: against float64, under padding, at any position."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from jaxpoison import kernels
from jaxpoison.kernels._workloads import WORKLOADS, draw

TABLE = draw(WORKLOADS[1])
X = (TABLE.x / np.linalg.norm(TABLE.x, axis=1, keepdims=True)).astype(np.float32)
Y = TABLE.label
ONEHOT = np.eye(3, dtype=np.float32)[Y]
ONES = np.ones(len(X), np.float32)


def exact_gram(a, b, kernel, gamma):
    a, b = a.astype(np.float64), b.astype(np.float64)
    distance2 = ((a[:, None] - b[None]) ** 2).sum(axis=2)
    return {"rbf": np.exp(-gamma * distance2), "linear": 1 + a @ b.T, "distance": distance2}[kernel]


def padded(array, rows, fill):
    out = np.full((rows, *array.shape[1:]), fill, array.dtype)
    out[: len(array)] = array
    return out


@pytest.mark.parametrize("kernel", ["rbf", "linear", "distance"])
def test_gram_against_float64(kernel):
    got = kernels.gram_block(X[:40], X[40:70], 0.7, kernel=kernel)
    np.testing.assert_allclose(got, exact_gram(X[:40], X[40:70], kernel, 0.7), atol=2e-6)


@pytest.mark.parametrize("shape", [(64, 64, 8), (2048, 1024, 96), (256, 128, 777)])
def test_an_entry_of_the_gram_matrix_has_the_same_bits_at_any_position(shape):
    r, b, f = shape
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(size=(r, f)), rng.normal(size=(b, f))
    rows, queries = (v.astype(np.float32) / np.float32(np.sqrt(f)) for v in (rows, queries))
    want = np.asarray(kernels.gram_block(rows, queries, 0.5))
    p, q = rng.permutation(r), rng.permutation(b)
    got = np.asarray(kernels.gram_block(rows[p], queries[q], 0.5))
    np.testing.assert_array_equal(got, want[np.ix_(p, q)])
    others = rows.copy()
    others[1::3] = 100 * rng.normal(size=others[1::3].shape)
    got = np.asarray(kernels.gram_block(others, queries, 0.5))
    np.testing.assert_array_equal(got[::3], want[::3])
    np.testing.assert_array_equal(got[2::3], want[2::3])


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
@pytest.mark.parametrize("rows", [1, 7, 200])
def test_kernel_ridge_against_float64(kernel, rows):
    x, targets = X[:rows], ONEHOT[:rows] - 1 / 3
    got = kernels.kernel_ridge(x, targets, ONES[:rows], 0.7, 0.01, kernel=kernel)
    system = exact_gram(x, x, kernel, 0.7) + 0.01 * np.eye(rows)
    want = np.linalg.solve(system, targets.astype(np.float64))
    fitted = exact_gram(x, x, kernel, 0.7) @ np.asarray(got, np.float64)
    np.testing.assert_allclose(fitted, targets - 0.01 * want, atol=2e-4)
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3 * np.abs(want).max())


@pytest.mark.parametrize("garbage", [1e6, np.nan, np.inf])
def test_padding_has_no_say(garbage):
    want = {
        "ridge": kernels.kernel_ridge(
            padded(X[:50], 64, 0), padded(ONEHOT[:50], 64, 0), padded(ONES[:50], 64, 0), 1.0, 0.01
        ),
        "means": kernels.class_means(
            padded(X[:50], 64, 0), padded(ONEHOT[:50], 64, 0), padded(ONES[:50], 64, 0)
        ).coefficients,
    }
    x, onehot = padded(X[:50], 64, garbage), padded(ONEHOT[:50], 64, garbage)
    mask = padded(ONES[:50], 64, 0)
    got = {
        "ridge": kernels.kernel_ridge(x, onehot, mask, 1.0, 0.01),
        "means": kernels.class_means(x, onehot, mask).coefficients,
    }
    for name, value in got.items():
        np.testing.assert_array_equal(value, want[name], err_msg=name)
        assert not np.asarray(value)[50:].any()
    alone = kernels.kernel_ridge(X[:50], ONEHOT[:50], ONES[:50], 1.0, 0.01)
    np.testing.assert_allclose(want["ridge"][:50], alone, rtol=1e-3, atol=1e-3)


def test_gathered_scores_are_those_of_the_rows_alone():
    gram = np.asarray(kernels.gram_block(X, X[:20], 1.0))
    rows = np.array([5, 17, 200, 0], np.int32)
    coefficients = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    coefficients[3] = 0
    got = kernels.gathered_scores(gram, coefficients, rows)
    want = coefficients.T.astype(np.float64) @ gram[rows]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_class_means_are_scikit_learns():
    model = kernels.class_means(X[:200], ONEHOT[:200], ONES[:200])
    gram = kernels.gram_block(X[:200], X[200:], 1.0, kernel="linear")
    scores = kernels.gathered_scores(gram, model.coefficients, np.arange(200)) + model.bias[:, None]
    want = NearestCentroid().fit(X[:200], Y[:200]).predict(X[200:])
    np.testing.assert_array_equal(np.argmax(scores, axis=0), want)
    means = np.stack([X[:200][Y[:200] == c].astype(np.float64).mean(axis=0) for c in range(3)])
    exact = 2 + 2 * means @ X[200:].T - (means**2).sum(axis=1)[:, None]
    np.testing.assert_allclose(scores, exact, atol=1e-5)


def test_a_class_without_rows_never_wins():
    rows = np.flatnonzero(Y[:60] != 1)
    model = kernels.class_means(X[rows], ONEHOT[rows], ONES[rows])
    gram = kernels.gram_block(X[rows], X, 1.0, kernel="linear")
    scores = kernels.gathered_scores(gram, model.coefficients, np.arange(len(rows)))
    scores = np.asarray(scores + model.bias[:, None])
    assert np.isfinite(scores).all()
    assert (np.argmax(scores, axis=0) != 1).all()


@pytest.mark.parametrize("k", [1, 3, 8])
def test_neighbour_counts_are_scikit_learns(k):
    distance2 = kernels.gram_block(X, X[250:], 1.0, kernel="distance")
    rows = np.random.default_rng(1).permutation(200).astype(np.int32)
    mask = np.ones(200, np.float32)
    mask[150:] = 0
    got = kernels.neighbour_counts(distance2, ONEHOT[rows], rows, mask, num_neighbours=k)
    model = KNeighborsClassifier(k, algorithm="brute").fit(X[rows[:150]], Y[rows[:150]])
    want = k * model.predict_proba(X[250:]).T
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_equal_distances_go_to_the_first_row_and_few_rows_all_count():
    distance2 = np.array([[2.0], [1.0], [1.0], [1.0]], np.float32)
    members = np.eye(4, dtype=np.float32)
    rows = np.array([3, 1, 2, 0], np.int32)
    counts = kernels.neighbour_counts(distance2, members, rows, np.ones(4), num_neighbours=2)
    np.testing.assert_array_equal(np.asarray(counts)[:, 0], [1, 1, 0, 0])
    mask = np.array([0, 1, 0, 1], np.float32)
    counts = kernels.neighbour_counts(distance2, members, rows, mask, num_neighbours=9)
    np.testing.assert_array_equal(np.asarray(counts)[:, 0], [0, 1, 0, 1])


def test_vmap_equals_a_loop_in_every_bit():
    """An ensemble fits groups of members: a member must not feel which place it has in one."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 32, 24)).astype(np.float32) / 5
    targets = rng.normal(size=(4, 32, 5)).astype(np.float32)
    mask = np.ones((4, 32), np.float32)
    mask[1, 20:] = mask[3, 1:] = 0
    mapped = jax.jit(jax.vmap(lambda *a: kernels.kernel_ridge(*a, 1.0, 0.01)))
    want = np.asarray(mapped(x, targets, mask))
    order = np.array([2, 3, 0, 1])
    np.testing.assert_array_equal(mapped(x[order], targets[order], mask[order]), want[order])
    x[2], targets[2], mask[2] = 0, 0, 0
    np.testing.assert_array_equal(np.asarray(mapped(x, targets, mask))[[0, 1, 3]], want[[0, 1, 3]])


def test_the_second_call_compiles_nothing():
    kernels.kernel_ridge(X[:10], ONEHOT[:10], ONES[:10], 1.0, 0.01)
    before = kernels.kernel_ridge._cache_size()
    kernels.kernel_ridge(X[10:20], ONEHOT[10:20], ONES[:10], 0.5, 0.1)  # both are operands
    assert kernels.kernel_ridge._cache_size() == before


def test_wrong_shapes_and_knobs_name_the_argument():
    with pytest.raises(ValueError, match=r"rows must be \[r, f\]"):
        kernels.gram_block(X[:3], X[:3, :2], 1.0)
    with pytest.raises(ValueError, match="kernel must be one of rbf"):
        kernels.gram_block(X[:3], X[:3], 1.0, kernel="cosine")
    with pytest.raises(ValueError, match="kernel must be 'rbf' or 'linear'"):
        kernels.kernel_ridge(X, ONEHOT, ONES, 1.0, 0.1, kernel="distance")
    with pytest.raises(ValueError, match="targets must be"):
        kernels.kernel_ridge(X, ONEHOT[:3], ONES, 1.0, 0.1)
    with pytest.raises(ValueError, match="rows"):
        kernels.gathered_scores(X, ONEHOT, np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="members must be"):
        kernels.class_means(X, ONEHOT[:4], ONES)
    with pytest.raises(ValueError, match="num_neighbours must be at least 1, got 0"):
        kernels.neighbour_counts(X, ONEHOT, np.arange(300), ONES, num_neighbours=0)
    with pytest.raises(ValueError, match="members must be"):
        kernels.neighbour_counts(X, ONEHOT, np.arange(3), ONES, num_neighbours=1)
