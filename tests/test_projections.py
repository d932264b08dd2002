"""Random projections against explicit matrices, and the after-kernel against a float64 solve."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpoison.kernels import projections
from jaxpoison.kernels.projections import (
    after_kernel,
    feature_gram,
    khatri_rao_project,
    kronecker_project,
    random_project,
)

KEY = jax.random.key(3)
examples = settings(max_examples=10, deadline=None, derandomize=True)


def matrix_of(p, k, key=KEY):
    """The projection's own matrix, R / sqrt(k)."""
    return np.asarray(random_project(np.eye(p, dtype=np.float32), num_features=k, key=key))


@pytest.mark.parametrize(("p", "k"), [(5, 3), (1024, 40), (1500, 64), (2048, 1), (3000, 100)])
def test_the_matrix_is_signs_without_bias_or_repeats(p, k):
    r = matrix_of(p, k) * np.sqrt(k)
    np.testing.assert_allclose(np.abs(r), 1, rtol=1e-6)
    assert abs(r.mean()) < 5 / np.sqrt(r.size)
    if p > 1000:
        for inner in (r.T @ r / p, (r[:300] @ r[:300].T) / k):
            off = inner[~np.eye(len(inner), dtype=bool)]
            size = p if inner.shape[0] == k else k
            assert np.abs(off).max(initial=0) < 6 / np.sqrt(size) or k == 1
        assert len(np.unique(r, axis=1).T) == k


@examples
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_projection_is_one_product_whatever_the_number_of_rows(seed, n):
    rows = np.random.default_rng(seed).standard_normal((6, 1300)).astype(np.float32)
    r = matrix_of(1300, 33).astype(np.float64)
    got = random_project(rows[:n], num_features=33, key=KEY)
    np.testing.assert_allclose(got, rows[:n] @ r, atol=1e-4)
    other = random_project(rows[:n], num_features=33, key=jax.random.key(4))
    assert np.abs(other - got).max() > 0.1


def test_inner_products_survive():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 5000)).astype(np.float32) + rng.standard_normal((20, 1))
    got = np.asarray(random_project(rows, num_features=4096, key=KEY), np.float64)
    want = rows.astype(np.float64) @ rows.T
    norms = np.sqrt(np.outer(np.diag(want), np.diag(want)))
    assert np.abs((got @ got.T - want) / norms).max() < 5 / np.sqrt(4096)


def test_a_row_that_is_not_finite_projects_to_zeros_alone():
    rows = np.random.default_rng(1).standard_normal((4, 50)).astype(np.float32)
    want = np.asarray(random_project(rows, num_features=8, key=KEY))
    rows[1, 3], rows[2, 0] = np.nan, np.inf
    got = np.asarray(random_project(rows, num_features=8, key=KEY))
    assert not got[1:3].any()
    np.testing.assert_allclose(got[[0, 3]], want[[0, 3]], atol=1e-6)


@examples
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_kronecker_projection_is_that_of_the_gradient(seed, t):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((3, 5, 7)).astype(np.float32)
    d = rng.standard_normal((3, 5, 4)).astype(np.float32)
    d[:, t:] = 0  # padding positions
    got = kronecker_project(a, d, num_inputs=6, num_outputs=2, key=KEY)
    left, right = jax.random.split(KEY)
    gradient = np.einsum("bti,bto->bio", a, d, dtype=np.float64)
    want = np.einsum("bio,ik,ol->bkl", gradient, matrix_of(7, 6, left), matrix_of(4, 2, right))
    np.testing.assert_allclose(got, want.reshape(3, 12), atol=1e-4)


@examples
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_khatri_rao_projection_is_that_of_the_gradient(seed, t):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((3, 5, 7)).astype(np.float32)
    d = rng.standard_normal((3, 5, 4)).astype(np.float32)
    d[:, t:] = 0  # padding positions
    got = khatri_rao_project(a, d, num_features=6, key=KEY)
    left, right = jax.random.split(KEY)
    gradient = np.einsum("bti,bto->bio", a, d, dtype=np.float64)
    signs = [np.sign(matrix_of(size, 6, key)) for size, key in ((7, left), (4, right))]
    want = np.einsum("bio,ik,ok->bk", gradient, *signs) / 6**0.5
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_khatri_rao_features_keep_squared_norms_as_well_as_they_say():
    rng = np.random.default_rng(3)
    a = rng.standard_normal((200, 1, 30)).astype(np.float32)
    d = rng.standard_normal((200, 1, 20)).astype(np.float32)
    k = 1024
    features = np.asarray(khatri_rao_project(a, d, num_features=k, key=KEY), np.float64)
    exact = np.square(a[:, 0]).sum(1) * np.square(d[:, 0]).sum(1)
    ratio = np.square(features).sum(1) / exact
    # rows share one matrix, so their mean is off too; half the bound is what independent signs have
    assert abs(ratio.mean() - 1) < 0.02
    assert 0.5 * (8 / k) ** 0.5 < ratio.std() < 1.1 * (8 / k) ** 0.5


def test_the_gram_adds_up_over_micro_batches_and_ignores_padding():
    rng = np.random.default_rng(2)
    phi = rng.standard_normal((20, 6)).astype(np.float32)
    mask = np.ones(20, np.float32)
    gram, count = feature_gram(phi, mask)
    np.testing.assert_allclose(gram, phi.T.astype(np.float64) @ phi, rtol=1e-5, atol=1e-5)
    parts = [feature_gram(phi[s : s + 5], mask[:5]) for s in range(0, 20, 5)]
    np.testing.assert_allclose(sum(p[0] for p in parts), gram, rtol=1e-5, atol=1e-5)
    assert sum(float(p[1]) for p in parts) == count == 20
    padded = np.r_[phi, np.full((4, 6), np.nan, np.float32)]
    wide, wide_count = feature_gram(padded, np.r_[mask, np.zeros(4, np.float32)])
    np.testing.assert_allclose(wide, gram, rtol=1e-6)
    assert wide_count == 20


@examples
@given(st.integers(0, 2**31), st.integers(1, 20), st.sampled_from([1e-2, 1.0, 100.0]))
def test_after_kernel_is_the_damped_solve(seed, rank, damping):
    rng = np.random.default_rng(seed)
    phi = rng.standard_normal((12, 8)).astype(np.float32)
    phi[rank:] = 0  # fewer rows than features: singular without damping
    queries = rng.standard_normal((3, 8)).astype(np.float32)
    mask = np.ones(12, np.float32)
    got = after_kernel(*feature_gram(phi, mask), queries, phi, mask, damping=damping)
    wide = phi.astype(np.float64)
    kernel = wide.T @ wide / 12 + damping * np.eye(8)
    want = queries @ np.linalg.solve(kernel, wide.T) / 12
    np.testing.assert_allclose(got.scores, want, rtol=1e-3, atol=1e-3 * np.abs(want).max() + 1e-7)
    assert got.is_positive
    doubled = after_kernel(*feature_gram(phi, mask), phi, phi, mask, damping=damping)
    assert (np.diag(doubled.scores) >= 0).all()  # a row helps itself


def test_after_kernel_of_padding_and_nan_is_zero():
    rng = np.random.default_rng(5)
    phi = rng.standard_normal((6, 4)).astype(np.float32)
    phi[4:] = np.nan
    mask = np.array([1, 1, 1, 1, 0, 0], np.float32)
    gram, count = feature_gram(phi, mask)
    got = after_kernel(gram, count, phi[:2], phi, mask, damping=0.1)
    assert np.isfinite(got.scores).all() and not np.any(got.scores[:, 4:]) and got.is_positive
    broken = after_kernel(gram * np.nan, count, phi[:2], phi, mask, damping=0.1)
    assert not broken.is_positive and not np.any(broken.scores)
    negative = after_kernel(-gram, count, phi[:2], phi, mask, damping=1e-6)
    assert not negative.is_positive and not np.any(negative.scores)


def test_the_second_call_compiles_nothing():
    jitted = random_project, kronecker_project, feature_gram, projections._after_kernel
    sizes = []
    for seed in (0, 1):
        rng, key = np.random.default_rng(seed), jax.random.key(seed)
        a, d = (rng.standard_normal((3, 2, n)).astype(np.float32) for n in (5, 4))
        phi = kronecker_project(a, d, num_inputs=2, num_outputs=2, key=key)
        mask = np.ones(3, np.float32)
        random_project(a[:, 0], num_features=3, key=key)
        after_kernel(*feature_gram(phi, mask), phi, phi, mask, damping=1.0 + seed)
        sizes.append([f._cache_size() for f in jitted])
    assert sizes[0] == sizes[1] and min(sizes[0]) > 0


def test_wrong_shapes_and_knobs_name_the_argument():
    rows = np.ones((2, 5), np.float32)
    with pytest.raises(ValueError, match=r"rows must be \[n, p\].*got \(5,\) and 3"):
        random_project(rows[0], num_features=3, key=KEY)
    with pytest.raises(ValueError, match=r"num_features at least 1, got \(2, 5\) and 0"):
        random_project(rows, num_features=0, key=KEY)
    with pytest.raises(ValueError, match=r"inputs must be \[b, t, i\]"):
        kronecker_project(rows, rows, num_inputs=1, num_outputs=1, key=KEY)
    with pytest.raises(ValueError, match="sizes must be at least 1, got 0 and 1"):
        kronecker_project(rows[None], rows[None], num_inputs=0, num_outputs=1, key=KEY)
    for damping in (0.0, -1.0):
        with pytest.raises(ValueError, match="damping must be a positive finite number"):
            after_kernel(np.eye(5), 2, rows, rows, np.ones(2), damping=damping)
