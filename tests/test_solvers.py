"""Krylov and stochastic solvers on matrices of known spectrum, against float64 solves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpoison.kernels.conjugate_gradients import SolveStatus, _jitted, conjugate_gradients
from jaxpoison.kernels.krylov import arnoldi, lanczos, low_rank_inverse
from jaxpoison.kernels.lissa import largest_eigenvalue, lissa
from jaxpoison.linalg import ritz_pairs

KEY = jax.random.key(0)
SPECTRUM = 10 ** np.linspace(-2, 2, 100)
examples = settings(max_examples=15, deadline=None, derandomize=True)


def product(matrix, v):
    return jnp.matmul(v, matrix.T, precision="highest")


def jacobi(matrix, r):
    return r / jnp.diag(matrix)


def symmetric(values, seed=0):
    """A matrix of given eigenvalues, as float32, and what float32 made of it, as float64."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    matrix = ((q * values) @ q.T).astype(np.float32)
    matrix = (matrix + matrix.T) / 2
    return matrix, matrix.astype(np.float64)


def right_sides(q, p, seed=1):
    return np.random.default_rng(seed).standard_normal((q, p)).astype(np.float32)


def exact(matrix, b, damping):
    return np.linalg.solve(matrix + damping * np.eye(len(matrix)), b.T.astype(np.float64)).T


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def relative_residual(matrix, b, x, damping):
    left = b - np.asarray(x, np.float64) @ (matrix + damping * np.eye(len(matrix)))
    return np.linalg.norm(left, axis=1) / np.linalg.norm(b, axis=1)


# Conjugate gradients


@examples
@given(st.integers(0, 2**31), st.floats(0.01, 10), st.integers(1, 20))
def test_cg_solves_random_positive_systems(seed, damping, rank):
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((20, rank))
    matrix = (half @ half.T).astype(np.float32)
    b = (rng.standard_normal((3, 20)) * 10 ** rng.uniform(-3, 3, (3, 1))).astype(np.float32)
    got = conjugate_gradients(product, matrix, b, damping=damping, tolerance=1e-4, max_steps=400)
    assert (np.asarray(got.status) == SolveStatus.SOLVED).all()
    true = relative_residual(matrix.astype(np.float64), b, got.x, damping)
    assert (true <= 1.2e-4).all()
    np.testing.assert_allclose(got.residual, true, atol=2e-5)


def test_cg_on_a_prescribed_spectrum():
    matrix, wide = symmetric(SPECTRUM)
    b = right_sides(8, 100)
    # at damping 1e-2 a float32 product alone leaves a residual of about 1e-4
    for damping, tolerance in ((1e-2, 1e-3), (1.0, 1e-5)):
        got = conjugate_gradients(
            product, matrix, b, damping=damping, tolerance=tolerance, max_steps=600
        )
        assert (np.asarray(got.status) == SolveStatus.SOLVED).all()
        want = exact(wide, b, damping)
        error = np.linalg.norm(got.x - want) / np.linalg.norm(want)
        assert error <= tolerance * np.linalg.cond(wide + damping * np.eye(100))
        assert (relative_residual(wide, b, got.x, damping) <= 1.5 * tolerance).all()
    assert got.steps.max() > 50  # so that residuals were replaced on the way


def test_cg_rows_do_not_depend_on_their_neighbours():
    matrix, _ = symmetric(SPECTRUM)
    b = right_sides(5, 100)
    b[1] = 0
    b[3] *= 1e4
    many = conjugate_gradients(product, matrix, b, damping=1.0)
    assert many.steps[1] == 0 and many.residual[1] == 0 and not np.any(many.x[1])
    for i in (0, 2, 3, 4):
        one = conjugate_gradients(product, matrix, b[i : i + 1], damping=1.0)
        np.testing.assert_allclose(many.x[i], one.x[0], rtol=1e-3, atol=1e-3 * np.abs(one.x).max())
        assert one.status[0] == many.status[i] == SolveStatus.SOLVED
        assert abs(int(one.steps[0]) - int(many.steps[i])) <= 3


def test_a_preconditioner_saves_steps():
    scale = np.diag(10 ** np.linspace(0, 2, 100))
    small, _ = symmetric(np.linspace(0.5, 1.5, 100))
    matrix = (scale @ small @ scale).astype(np.float32)
    b = right_sides(4, 100)
    plain = conjugate_gradients(product, matrix, b, damping=1e-2, tolerance=1e-4, max_steps=500)
    helped = conjugate_gradients(
        product, matrix, b, damping=1e-2, tolerance=1e-4, max_steps=500, preconditioner=jacobi
    )
    assert (np.asarray(helped.status) == SolveStatus.SOLVED).all()
    assert helped.steps.max() < plain.steps.max() / 3
    assert (relative_residual(matrix.astype(np.float64), b, helped.x, 1e-2) < 2e-4).all()


def test_cg_says_how_it_ended():
    matrix, _ = symmetric(SPECTRUM)
    b = right_sides(3, 100)
    short = conjugate_gradients(product, matrix, b, damping=1e-2, tolerance=1e-6, max_steps=3)
    assert (np.asarray(short.status) == SolveStatus.STEP_LIMIT).all()
    assert (np.asarray(short.steps) == 3).all() and (np.asarray(short.residual) > 1e-6).all()
    np.testing.assert_allclose(
        short.residual, relative_residual(matrix.astype(np.float64), b, short.x, 1e-2), rtol=1e-3
    )
    negative, _ = symmetric(np.r_[-5.0, np.linspace(1, 2, 99)])
    saddle = conjugate_gradients(product, negative, b, damping=1e-2)
    assert (np.asarray(saddle.status) == SolveStatus.NOT_POSITIVE).all()
    enough = conjugate_gradients(product, negative, b, damping=6.0)
    assert (np.asarray(enough.status) == SolveStatus.SOLVED).all()
    assert np.isfinite(saddle.x).all() and np.isfinite(saddle.residual).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_cg_never_returns_nan(bad):
    matrix, _ = symmetric(SPECTRUM)
    b = right_sides(3, 100)
    b[1, 7] = bad
    got = conjugate_gradients(product, matrix, b, damping=1.0)
    assert np.asarray(got.status).tolist() == [0, SolveStatus.NOT_FINITE, 0]
    assert np.isfinite(got.x).all() and not np.any(got.x[1]) and got.residual[1] == 1
    matrix = matrix.copy()
    matrix[3, 4] = bad
    got = conjugate_gradients(product, matrix, right_sides(3, 100), damping=1.0)
    assert (np.asarray(got.status) == SolveStatus.NOT_FINITE).all()
    assert not np.any(got.x) and (np.asarray(got.residual) == 1).all()


def test_the_second_solve_compiles_nothing():
    matrix, _ = symmetric(SPECTRUM)
    conjugate_gradients(product, matrix, right_sides(4, 100), damping=1.0, max_steps=20)
    before = _jitted._cache_size()
    conjugate_gradients(
        product, matrix, right_sides(4, 100, 9), damping=0.1, tolerance=1e-2, max_steps=30
    )
    assert _jitted._cache_size() == before > 0


# LiSSA


def test_largest_eigenvalue():
    for values in (SPECTRUM, -SPECTRUM, np.linspace(0, 3, 30)):
        matrix, _ = symmetric(values)
        got = largest_eigenvalue(product, matrix, size=len(values), num_steps=200, key=KEY)
        np.testing.assert_allclose(got, np.abs(values).max(), rtol=2e-2)
    assert largest_eigenvalue(product, np.zeros((4, 4), np.float32), size=4, key=KEY) == 0


def test_lissa_solves_the_damped_system_of_the_mean_operator():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((8, 40, 10)).astype(np.float32)
    samples = np.einsum("tni,tnj->tij", rows, rows) / 40
    mean = samples.mean(0).astype(np.float64)
    b = right_sides(3, 10)
    got = lissa(product, samples, b, damping=0.5, num_steps=3000, num_averaged=2500, key=KEY)
    want = exact(mean, b, 0.5)
    assert (np.asarray(got.status) <= SolveStatus.STEP_LIMIT).all()
    for x, w in zip(np.asarray(got.x), want, strict=True):
        assert np.linalg.norm(x - w) < 0.05 * np.linalg.norm(w)
    true = relative_residual(mean, b, got.x, 0.5)
    np.testing.assert_allclose(got.residual, true, rtol=1e-2, atol=1e-4)


def test_lissa_damping_is_that_of_other_libraries_times_their_scale():
    matrix, wide = symmetric(np.linspace(0.1, 4, 20))
    b = right_sides(2, 20)
    scale, theirs = 10.0, 0.05
    x = b.astype(np.float64)
    for _ in range(4000):  # the loop of the other libraries, whose result is x / scale
        x = b + (1 - theirs) * x - x @ wide / scale
    got = lissa(
        product, matrix[None], b, damping=theirs * scale, num_steps=400, num_averaged=1, key=KEY
    )
    np.testing.assert_allclose(got.x, x / scale, rtol=1e-3, atol=1e-4)
    assert (np.asarray(got.status) == SolveStatus.SOLVED).all()


def test_lissa_never_returns_nan():
    samples = np.stack([np.eye(5), np.full((5, 5), np.nan)]).astype(np.float32)
    b = right_sides(2, 5)
    got = lissa(product, samples, b, damping=1.0, num_steps=10, key=KEY)
    assert (np.asarray(got.status) == SolveStatus.NOT_FINITE).all()
    assert not np.any(got.x) and np.isfinite(got.residual).all()


# Lanczos and Arnoldi


@pytest.mark.parametrize("method", [lanczos, arnoldi])
def test_the_basis_is_orthonormal_and_projects_the_operator(method):
    matrix, wide = symmetric(SPECTRUM)
    got = method(product, matrix, right_sides(1, 100)[0], num_vectors=60, key=KEY)
    basis = np.asarray(got.basis, np.float64)
    np.testing.assert_allclose(basis @ basis.T, np.eye(60), atol=1e-5)
    np.testing.assert_allclose(got.projected, basis @ wide @ basis.T, atol=1e-3)
    left = basis[-1] @ wide - (basis[-1] @ wide @ basis.T) @ basis
    np.testing.assert_allclose(got.remainder, np.linalg.norm(left), rtol=1e-3)
    values, vectors = ritz_pairs(basis, np.asarray(got.projected))
    np.testing.assert_allclose(values[:10], np.sort(SPECTRUM)[::-1][:10], rtol=1e-4)
    moved = vectors[:10] @ wide
    np.testing.assert_allclose(moved, values[:10, None] * vectors[:10], atol=2e-2)


@pytest.mark.parametrize("method", [lanczos, arnoldi])
def test_fifty_vectors_with_the_complement_correlate_with_the_damped_solve(method):
    matrix, wide = symmetric(SPECTRUM)
    b = right_sides(20, 100)
    found = method(product, matrix, right_sides(1, 100, 7)[0], num_vectors=50, key=KEY)
    values, vectors = ritz_pairs(np.asarray(found.basis), np.asarray(found.projected))
    inner = b @ vectors.T / (values + 1.0)
    want = exact(wide, b, 1.0)
    assert correlation(low_rank_inverse(values, vectors, b, damping=1.0), want) >= 0.95
    assert correlation(inner @ vectors, want) < 0.5  # without the complement
    # Half of this spectrum lies far above a damping of 0.01, so no 50 vectors describe it; what
    # can be asked is that they do nearly as well as the 50 leading eigenvectors.
    eigen, q = np.linalg.eigh(wide)
    best = low_rank_inverse(eigen[::-1][:50], q[:, ::-1][:, :50].T, b, damping=0.01)
    want = exact(wide, b, 0.01)
    got = correlation(low_rank_inverse(values, vectors, b, damping=0.01), want)
    assert got > correlation(best, want) - 0.1


@pytest.mark.parametrize("method", [lanczos, arnoldi])
def test_an_exhausted_space_is_continued(method):
    values = np.repeat([4.0, 1.0], 10)
    matrix, wide = symmetric(values)
    got = method(product, matrix, right_sides(1, 20)[0], num_vectors=20, key=KEY)
    basis = np.asarray(got.basis, np.float64)
    np.testing.assert_allclose(basis @ basis.T, np.eye(20), atol=1e-4)
    ritz, vectors = ritz_pairs(basis, np.asarray(got.projected))
    np.testing.assert_allclose(ritz, values, atol=1e-3)
    b = right_sides(3, 20)
    np.testing.assert_allclose(
        low_rank_inverse(ritz, vectors, b, damping=0.1), exact(wide, b, 0.1), rtol=5e-3, atol=5e-3
    )


def test_negative_ritz_values_are_dropped():
    matrix, wide = symmetric(np.r_[-8.0, np.linspace(0.5, 4, 19)])
    found = lanczos(product, matrix, right_sides(1, 20)[0], num_vectors=20, key=KEY)
    every, _ = ritz_pairs(np.asarray(found.basis), np.asarray(found.projected), keep_negative=True)
    values, vectors = ritz_pairs(np.asarray(found.basis), np.asarray(found.projected))
    assert abs(every[-1] + 8) < 1e-3 and values.min() == 0 and not np.any(vectors[-1])
    b = right_sides(4, 20)
    got = np.asarray(low_rank_inverse(values, vectors, b, damping=0.1))
    assert (np.sum(got * b, axis=1) > 0).all()
    eigen, q = np.linalg.eigh(wide)
    inverse = (q / (np.maximum(eigen, 0) + 0.1)) @ q.T
    np.testing.assert_allclose(got, b @ inverse, rtol=1e-2, atol=1e-2)


def test_krylov_of_nan_is_zero_and_says_so():
    matrix, _ = symmetric(np.linspace(1, 2, 10))
    matrix[2, 3] = np.nan
    got = lanczos(product, matrix, right_sides(1, 10)[0], num_vectors=4, key=KEY)
    assert not got.is_finite
    assert not np.any(got.basis) and not np.any(got.projected) and got.remainder == 0
    none = lanczos(product, np.eye(5, dtype=np.float32), np.zeros(5), num_vectors=3, key=KEY)
    assert none.is_finite and np.isfinite(none.projected).all()


def test_krylov_and_lissa_compile_once():
    matrix, _ = symmetric(np.linspace(1, 2, 10))
    sizes = []
    for seed in (1, 2):
        start = right_sides(1, 10, seed)[0]
        lanczos(product, matrix, start, num_vectors=4, key=jax.random.key(seed))
        low_rank_inverse(np.ones(2), np.ones((2, 10), np.float32), start[None], damping=seed)
        sizes.append((lanczos._cache_size(), arnoldi._cache_size()))
    assert sizes[0] == sizes[1]


def test_wrong_knobs_name_the_argument():
    matrix, b = np.eye(3, dtype=np.float32), right_sides(2, 3)
    for damping in (0, -1.0, float("nan"), np.float32(0), float("inf")):
        with pytest.raises(ValueError, match="damping must be a positive finite number, got"):
            conjugate_gradients(product, matrix, b, damping=damping)
        with pytest.raises(ValueError, match="damping"):
            lissa(product, matrix[None], b, damping=damping, key=KEY)
        with pytest.raises(ValueError, match="damping"):
            low_rank_inverse(np.ones(1), matrix[:1], b, damping=damping)
    with pytest.raises(ValueError, match="tolerance"):
        conjugate_gradients(product, matrix, b, damping=1.0, tolerance=0.0)
    with pytest.raises(ValueError, match=r"b must be \[q, p\].*got \(3,\)"):
        conjugate_gradients(product, matrix, b[0], damping=1.0)
    with pytest.raises(ValueError, match=r"b must be \[q, p\].*got \(3,\)"):
        lissa(product, matrix[None], b[0], damping=1.0, key=KEY)
    with pytest.raises(ValueError, match=r"num_vectors must be in 1..p .*got 4 for \(3,\)"):
        lanczos(product, matrix, b[0], num_vectors=4, key=KEY)
