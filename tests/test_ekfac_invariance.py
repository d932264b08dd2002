"""EK-FAC: what must change nothing, low-rank weights, drawn labels, bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tap_oracle as oracle
from ekfac_oracle import agree, dense_loss, fitted
from jaxpoison import kernels
from jaxpoison._check import DataError, UsageError
from jaxpoison.linalg.ekfac import RowBatches, fit_ekfac, invert_ekfac


@pytest.fixture(scope="module")
def sequence():
    params = {"w": oracle.normal(1, 5, 6), "b": oracle.normal(2, 6), "v": oracle.normal(3, 6, 3)}
    batch = (oracle.normal(4, 40, 4, 5, scale=1.0), np.arange(40) % 3)
    return dense_loss, params, batch


def test_self_influence_is_the_diagonal_of_the_pairs(sequence):
    for loss, params, batch in (sequence, oracle.mlp_case(rows=30)):
        inverse = invert_ekfac(fitted((loss, params, batch))).inverse
        own = kernels.ekfac_self_influence(loss, params, batch, inverse=inverse).scores
        pairs = kernels.ekfac_influence(loss, params, batch, batch, inverse=inverse).scores
        np.testing.assert_allclose(np.diag(pairs), own, rtol=1e-5)
        np.testing.assert_allclose(pairs, pairs.T, rtol=1e-4, atol=1e-6 * np.max(pairs))


def both_scores(case, inverse, chunk=None):
    loss, params, batch = case
    queries = jax.tree.map(lambda x: x[:5], batch)
    own = kernels.ekfac_self_influence(loss, params, batch, inverse=inverse, chunk=chunk)
    pairs = kernels.ekfac_influence(loss, params, batch, queries, inverse=inverse, chunk=chunk)
    return np.asarray(own.scores), np.asarray(pairs.scores)


@pytest.mark.parametrize("kind", ["rows", "sequence"])
def test_batch_size_and_chunk_change_nothing(kind, sequence):
    case = sequence if kind == "sequence" else oracle.mlp_case(rows=40)
    want = both_scores(case, invert_ekfac(fitted(case)).inverse)
    for size, chunk in ((7, 3), (16, 40)):
        inverse = invert_ekfac(fitted(case, size, chunk=chunk)).inverse
        for got, expected in zip(both_scores(case, inverse, chunk), want, strict=True):
            agree(got, expected)


def test_order_of_rows_only_orders_the_scores(sequence):
    loss, params, batch = sequence
    order = np.random.default_rng(0).permutation(40)
    moved = loss, params, jax.tree.map(lambda x: x[order], batch)
    inverses = [invert_ekfac(fitted(case)).inverse for case in (sequence, moved)]
    first = kernels.ekfac_self_influence(*sequence, inverse=inverses[0]).scores
    second = kernels.ekfac_self_influence(*moved, inverse=inverses[1]).scores
    agree(second, first[order])


@pytest.mark.parametrize("kind", ["rows", "sequence"])
def test_padding_counts_nothing_whatever_it_holds(kind, sequence):
    loss, params, (x, y) = sequence if kind == "sequence" else oracle.mlp_case(rows=40)
    case = loss, params, (x, y)
    padded = np.concatenate([x, np.full_like(x[:5], np.nan)]), np.concatenate([y, y[:5]])
    mask = (np.arange(45) < 40).astype(np.float32)
    fit = fit_ekfac(loss, params, [(padded, mask)])
    assert (fit.num_rows, fit.num_not_finite) == (40, 0)
    inverse = invert_ekfac(fit).inverse
    own = kernels.ekfac_self_influence(loss, params, padded, mask, inverse=inverse)
    want, want_pairs = both_scores(case, invert_ekfac(fitted(case)).inverse)
    agree(own.scores[:40], want)
    assert (own.scores[40:] == 0).all() and own.is_finite.all()
    pairs = kernels.ekfac_influence(
        loss, params, padded, (padded[0][38:43], padded[1][38:43]), mask, mask[38:43],
        inverse=inverse,
    )  # fmt: skip
    assert (pairs.scores[2:] == 0).all() and (pairs.scores[:, 40:] == 0).all()
    same = kernels.ekfac_influence(loss, params, (x, y), (x[:5], y[:5]), inverse=inverse)
    agree(same.scores, want_pairs)


def test_rows_that_are_not_finite_are_left_out_and_said():
    loss, params, (x, y) = oracle.mlp_case(rows=30)
    bad = x.copy()
    bad[3, 0], bad[8, 1] = np.nan, np.inf
    fit = fitted((loss, params, (bad, y)))
    assert (fit.num_rows, fit.num_not_finite) == (28, 2)
    good = np.delete(np.arange(30), [3, 8])
    want = fitted((loss, params, (x[good], y[good])))
    for one, other in zip(fit.eigenvalues, want.eigenvalues, strict=True):
        agree(one, other)
    got = kernels.ekfac_self_influence(loss, params, (bad, y), inverse=invert_ekfac(fit).inverse)
    assert np.flatnonzero(~got.is_finite).tolist() == [3, 8]
    assert np.isfinite(got.scores).all()
    with pytest.raises(DataError, match="no row has a finite"):
        fitted((loss, params, (np.full_like(x, np.nan), y)))


# Low rank


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_error_of_low_rank_weights_is_bounded_as_reported(rank):
    case = oracle.mlp_case(rows=60, sizes=(12, 9, 8))
    loss, params, batch = case
    fit = fitted(case)
    full, low = invert_ekfac(fit), invert_ekfac(fit, rank=rank)
    assert set(low.rank_error) == {"['w']", "['v']"} and full.rank_error == {}
    error = max(low.rank_error.values())
    assert 0 < error
    own, pairs = both_scores(case, full.inverse)
    low_own, low_pairs = both_scores(case, low.inverse)
    slack = 1e-5 * np.max(own)
    assert (np.abs(low_own - own) <= error * own + slack).all()
    bound = error * np.sqrt(own[:5, None] * own) + slack
    assert (np.abs(low_pairs - pairs) <= bound).all()
    assert np.max(np.abs(low_pairs - pairs)) > 0
    asked = jax.tree.map(lambda x: x[:5], batch)
    again = kernels.ekfac_influence(loss, params, batch, asked, inverse=low.inverse)
    np.testing.assert_allclose(np.diag(again.scores), low_own[:5], rtol=1e-4, atol=slack)


def test_more_rank_is_closer_and_full_rank_is_exact(sequence):
    case = oracle.mlp_case(rows=60, sizes=(12, 9, 8))
    fit = fitted(case)
    _, want = both_scores(case, invert_ekfac(fit).inverse)
    errors = []
    for rank in (1, 3, 7):
        _, got = both_scores(case, invert_ekfac(fit, rank=rank).inverse)
        errors.append(np.linalg.norm(got - want) / np.linalg.norm(want))
    assert errors[0] > errors[1] > errors[2]
    exact = invert_ekfac(fit, rank=9)
    assert exact.rank_error == {}
    # a layer with T > 1 keeps its full weights
    assert set(invert_ekfac(fitted(sequence), rank=1).rank_error) == set()


# Fisher matrix, bad input, compilation


def test_labels_are_drawn_by_key_and_row():
    loss, params, (x, y) = oracle.mlp_case(rows=400)

    def logits(params, x):
        return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"] + params["c"]

    drawn = kernels.sample_labels(params, x, jax.random.key(0), logits_fn=logits)
    tail = kernels.sample_labels(
        params, x[300:], jax.random.key(0), logits_fn=logits, first_row=300
    )
    np.testing.assert_array_equal(drawn[300:], tail)
    other = kernels.sample_labels(params, x, jax.random.key(1), logits_fn=logits)
    assert np.mean(drawn != other) > 0.2
    expected = jax.nn.softmax(logits(params, x)).mean(axis=0)
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 400, expected, atol=0.08)

    knobs = {"logits_fn": logits, "key": jax.random.key(0)}
    want = fitted((loss, params, (x, np.asarray(drawn))))
    for size in (1024, 64):
        fit = fitted((loss, params, (x, y)), size, **knobs)
        for got, expected in zip(fit.eigenvalues, want.eigenvalues, strict=True):
            agree(got, expected)


def test_the_second_call_traces_nothing(sequence):
    loss, params, batch = sequence
    with oracle.counted(loss) as (counted, runs):
        for _ in range(2):
            inverse = invert_ekfac(fit_ekfac(counted, params, RowBatches(batch, 16))).inverse
            kernels.ekfac_self_influence(counted, params, batch, inverse=inverse)
            kernels.ekfac_influence(counted, params, batch, batch, inverse=inverse)
            seen, runs[:] = len(runs), []
        assert seen == 0


def test_bad_input_is_refused(sequence):
    loss, params, batch = sequence
    fit = fitted(sequence)
    for damping in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="damping must be a positive"):
            invert_ekfac(fit, damping=damping)
    with pytest.raises(UsageError, match="rank must be at least 1"):
        invert_ekfac(fit, rank=0)
    with pytest.raises(UsageError, match="rest must be"):
        invert_ekfac(fit, rest="identity")
    with pytest.raises(UsageError, match="both logits_fn and key"):
        fitted(sequence, key=jax.random.key(0))
    with pytest.raises(UsageError, match="iterable twice"):
        fit_ekfac(loss, params, iter(RowBatches(batch)))
    with pytest.raises(UsageError, match="batches are empty"):
        fit_ekfac(loss, params, [])
    with pytest.raises(ValueError, match="must have shapes"):
        kernels.ekfac_eigenvalues(loss, params, batch, basis=fit.basis[::-1])
    other, other_params, other_batch = oracle.nested_case()
    with pytest.raises(ValueError, match="the basis has 2"):
        kernels.ekfac_self_influence(
            other, other_params, other_batch, inverse=invert_ekfac(fit).inverse
        )
