"""Principal component pursuit on planted matrices, and its use on rows of classes."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import engine_data as data
from jaxpoison.detect import robust_pca
from jaxpoison.detect.robust_pca import RobustPCA, principal_component_pursuit

KEY = jax.random.key(0)


def low_rank_plus_sparse(rows, columns, rank, share, seed=0):
    rng = np.random.default_rng(seed)
    low = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns)) / np.sqrt(rank)
    sparse = np.where(rng.random((rows, columns)) < share, rng.uniform(-5, 5, low.shape), 0.0)
    return low, sparse


def sparsely_marked(share, n=900, d=40, seed=0):
    """Rows near a plane of their class, some with a few entries far from it."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    basis = rng.normal(size=(3, 4, d))
    x = np.einsum("nk,nkd->nd", rng.normal(size=(n, 4)), basis[labels])
    x += 0.1 * rng.normal(size=(n, d))
    mine = np.flatnonzero(labels == 1)
    rows = rng.permutation(mine)[: round(share * len(mine))]
    for row in rows:
        x[row, rng.permutation(d)[:3]] += 4.0 * rng.choice([-1.0, 1.0], 3)
    mask = np.zeros(n, np.bool_)
    mask[rows] = True
    return x.astype(np.float32), labels, mask


@pytest.mark.parametrize(
    ("rows", "columns", "rank", "share"),
    [(80, 60, 3, 0.05), (60, 80, 3, 0.1), (200, 160, 8, 0.05), (150, 300, 10, 0.1)],
)
def test_a_planted_split_is_recovered(rows, columns, rank, share):
    """Below 96 by a full decomposition, above by partial ones."""
    low, sparse = low_rank_plus_sparse(rows, columns, rank, share)
    got = principal_component_pursuit(low + sparse, tolerance=1e-7)
    assert got.rank == rank and got.residual < 1e-7
    np.testing.assert_allclose(got.low_rank, low, atol=1e-3 * np.abs(low).max())
    np.testing.assert_allclose(got.sparse, sparse, atol=1e-3 * np.abs(low).max())


def test_partial_and_full_decompositions_agree(monkeypatch):
    low, sparse = low_rank_plus_sparse(120, 110, 5, 0.05)
    partial = principal_component_pursuit(low + sparse)
    monkeypatch.setattr(robust_pca, "_FULL", 1000)
    full = principal_component_pursuit(low + sparse)
    np.testing.assert_allclose(partial.low_rank, full.low_rank, atol=1e-4)
    assert partial.rank == full.rank


def test_the_split_is_no_better_elsewhere():
    """The objective at the solution is below that at the planted split and at plain ones."""
    low, sparse = low_rank_plus_sparse(60, 50, 4, 0.1)
    x = low + sparse
    got = principal_component_pursuit(x, tolerance=1e-8)

    def objective(part):
        return np.linalg.norm(part, "nuc") + np.abs(x - part).sum() / np.sqrt(max(x.shape))

    best = objective(got.low_rank)
    assert best <= objective(low) * (1 + 1e-6)
    assert best < min(objective(x), objective(0 * x))
    for seed in range(5):
        move = np.random.default_rng(seed).normal(size=x.shape)
        assert best < objective(got.low_rank + 1e-2 * move)


def test_odd_matrices():
    zeros = principal_component_pursuit(np.zeros((6, 4)))
    assert zeros.rank == 0 and not zeros.low_rank.any() and not zeros.sparse.any()
    one = principal_component_pursuit(np.array([[2.0]]))
    np.testing.assert_allclose(one.low_rank + one.sparse, 2.0, atol=1e-4)
    x = np.outer(np.arange(1.0, 6), np.ones(3))
    np.testing.assert_allclose(principal_component_pursuit(x).low_rank, x, atol=1e-3)


def test_max_rank_is_kept():
    low, sparse = low_rank_plus_sparse(150, 120, 10, 0.02)
    got = principal_component_pursuit(low + sparse, max_rank=4, max_steps=20)
    assert np.linalg.matrix_rank(got.low_rank, tol=1e-6) <= 4


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_sparse_marks_are_seen(share):
    x, labels, mask = sparsely_marked(share)
    scores = RobustPCA().score(data.stream_of(x, labels), key=KEY)
    mine = labels == 1
    assert data.auroc(scores.values[mine], mask[mine]) > 0.99
    assert scores.statistic.argmax() == 1
    assert (scores.info.rank >= 4).all()


def test_the_energy_is_that_of_the_alternation():
    """Eight alternations in float64, from the subspace that the detector learnt."""
    x, labels, _ = sparsely_marked(0.05, n=300)
    rng = np.random.default_rng(3)
    centre = x[labels == 0].mean(axis=0)
    basis = np.linalg.qr(rng.normal(size=(40, 5)))[0].T
    tau = 0.3
    stream = data.stream_of(x, np.zeros(300, int))
    used = np.arange(40, dtype=np.int32)
    operands = (centre[None], basis[None].astype(np.float32), np.array([tau], np.float32), used)
    got = stream.map(robust_pca._energy, *operands)
    z, sparse = x.astype(np.float64) - centre, np.zeros((300, 40))
    for _ in range(8):
        rest = z - (z - sparse) @ basis.T @ basis
        sparse = np.sign(rest) * np.maximum(np.abs(rest) - tau, 0)
    np.testing.assert_allclose(got, (sparse**2).sum(axis=1), rtol=1e-3)


def test_many_features_are_drawn():
    x, labels, mask = sparsely_marked(0.05, d=120)
    scores = RobustPCA(num_features=60).score(data.stream_of(x, labels), key=KEY)
    assert scores.info.num_features == 60
    seen = data.auroc(scores.values[labels == 1], mask[labels == 1])
    assert 0.8 < seen  # three marks in 120 entries, of which half are looked at


def test_few_fitted_rows_are_enough():
    x, labels, mask = sparsely_marked(0.05)
    scores = RobustPCA(num_fitted=60).score(data.stream_of(x, labels), key=KEY)
    assert data.auroc(scores.values[labels == 1], mask[labels == 1]) > 0.98
