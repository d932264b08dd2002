"""k-NN Shapley values against their definition, and against the efficiency axiom."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpoison.kernels.shapley import knn_shapley, knn_shapley_of_ranks, rank_keys
from jaxpoison.linalg import knn_shapley as knn_shapley_on_host
from jaxpoison.linalg import ranked

ROWS, QUERIES = 8, 6  # what random examples are padded to, so that they share compilations
examples = settings(max_examples=20, deadline=None, derandomize=True)


def utility(order, match, members, k):
    """Share of matches among the k nearest of the members of a set, over k."""
    return sum(match[i] for i in [j for j in order if j in members][:k]) / k


def by_definition(x, y, queries, query_labels, k):
    """The mean marginal utility over all sets, one query after the other."""
    n = len(x)
    values = np.zeros(n)
    for q, own in zip(queries, query_labels, strict=True):
        order = np.argsort(((x - q) ** 2).sum(1), kind="stable")
        match = (y == own).astype(float)
        for i in range(n):
            rest = [j for j in range(n) if j != i]
            for size in range(n):
                for chosen in itertools.combinations(rest, size):
                    gain = utility(order, match, {*chosen, i}, k) - utility(order, match, chosen, k)
                    values[i] += gain / (n * comb(n - 1, size))
    return values / len(queries)


def by_recursion(x, y, queries, query_labels, k):
    """The published recursion, in float64 with exact distances."""
    n = len(x)
    values = np.zeros(n)
    for q, own in zip(queries, query_labels, strict=True):
        order = np.argsort(((x - q) ** 2).sum(1), kind="stable")
        match = (y[order] == own).astype(float)
        s = np.zeros(n)
        s[-1] = match[-1] / max(k, n)
        for j in range(n - 2, -1, -1):
            s[j] = s[j + 1] + (match[j] - match[j + 1]) / max(k, j + 1)
        values[order] += s
    return values / len(queries)


def on_device(x, y, queries, query_labels, k, rows=None, fill=0.0, **knobs):
    rows, count = rows or len(x), QUERIES if len(queries) <= QUERIES else len(queries)
    wide = np.full((rows, x.shape[1]), fill, np.float32)
    wide[: len(x)] = x
    asked = np.full((count, x.shape[1]), fill, np.float32)
    asked[: len(queries)] = queries
    labels = np.full(rows, 0, np.int32)
    labels[: len(y)] = y
    own = np.zeros(count, np.int32)
    own[: len(queries)] = query_labels
    masks = (np.arange(r) < n for r, n in ((rows, len(x)), (count, len(queries))))
    mask, query_mask = (m.astype(np.float32) for m in masks)
    got = knn_shapley(wide, labels, mask, asked, own, query_mask, num_neighbours=k, **knobs)
    assert not np.any(np.asarray(got)[len(x) :])
    return np.asarray(got)[: len(x)]


def both(x, y, queries, query_labels, k):
    host = knn_shapley_on_host(x, y, queries, query_labels, num_neighbours=k)
    return host, on_device(x, y, queries, query_labels, k, rows=max(ROWS, len(x)), fill=5.0)


@st.composite
def tables(draw_from):
    """Few rows on a small grid, so that distances are exact and ties are common."""
    rng = np.random.default_rng(draw_from(st.integers(0, 2**31)))
    n, t = draw_from(st.integers(1, ROWS)), draw_from(st.integers(1, 3))
    x = rng.integers(-2, 3, (n, 2)).astype(np.float32)
    queries = rng.integers(-2, 3, (t, 2)).astype(np.float32)
    # the mean of the rows is subtracted on the way: a power of two keeps that exact too
    x = np.r_[x, np.zeros((-n % 8 if n > 4 else -n % 4 if n > 2 else 0, 2), np.float32)]
    n = len(x)
    classes = draw_from(st.sampled_from([1, 2, 3]))
    return x, rng.integers(0, classes, n), queries, rng.integers(0, classes, t)


@examples
@given(tables(), st.sampled_from([1, 2, 5, 9]))
def test_values_are_the_mean_marginal_utility_over_all_sets(table, k):
    want = by_definition(*table, k)
    for got in both(*table, k):
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 300])
def test_values_equal_the_recursion_and_add_up_to_the_utility(k):
    rng = np.random.default_rng(k)
    x = rng.standard_normal((200, 4)).astype(np.float32)
    y, queries = rng.integers(0, 3, 200), rng.standard_normal((17, 4)).astype(np.float32)
    own = rng.integers(0, 3, 17)
    want = by_recursion(x.astype(np.float64), y, queries.astype(np.float64), own, k)
    accuracy = 0.0
    for q, label in zip(queries, own, strict=True):
        order = np.argsort(((x - q) ** 2).sum(1), kind="stable")
        accuracy += utility(order, y == label, range(200), k) / len(queries)
    for got in both(x, y, queries, own, k):
        np.testing.assert_allclose(got, want, atol=1e-6)
        np.testing.assert_allclose(np.sum(got), accuracy, atol=1e-5)


def test_ties_count_in_the_order_of_the_rows():
    x, y = np.zeros((4, 2), np.float32), np.array([1, 0, 1, 0])
    queries, own = np.zeros((1, 2), np.float32), np.array([1])
    for got in both(x, y, queries, own, 1):
        np.testing.assert_allclose(got, [5 / 6, -1 / 6, 1 / 3, 0], atol=1e-6)
        np.testing.assert_allclose(got, by_recursion(x, y, queries, own, 1), atol=1e-6)


def test_row_order_blocks_and_padding_change_only_rounding():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 3)).astype(np.float32)
    y, queries = rng.integers(0, 2, 50), rng.standard_normal((11, 3)).astype(np.float32)
    own, order = rng.integers(0, 2, 11), rng.permutation(50)
    want = on_device(x, y, queries, own, 3)
    for block in (1, 4, 64):
        got = on_device(x, y, queries, own, 3, block=block)
        np.testing.assert_allclose(got, want, atol=1e-6)
    for fill in (0.0, 1e6, np.nan, np.inf):
        got = on_device(x, y, queries, own, 3, rows=64, fill=fill)
        np.testing.assert_allclose(got, want, atol=1e-6)
    shuffled = on_device(x[order], y[order], queries, own, 3)
    np.testing.assert_allclose(shuffled, want[order], atol=1e-6)
    host = [
        knn_shapley_on_host(x[order], y[order], queries, own, num_neighbours=3),
        knn_shapley_on_host(x, y, queries, own, num_neighbours=3)[order],
    ]
    np.testing.assert_allclose(*host, atol=1e-12)


def test_rows_that_are_not_finite_are_the_farthest():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((8, 2)).astype(np.float32)
    y, queries, own = np.arange(8) % 2, x[:2].copy(), np.array([0, 1])
    far = x.copy()
    far[[3, 6]] = 1e6  # so far that their order is that of their numbers is not known: both tried
    x[3, 0], x[6, 1] = np.nan, np.inf
    for got in both(x, y, queries, own, 2):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(np.sum(got), np.sum(by_recursion(far, y, queries, own, 2)))
        far[6] = 2e6
        np.testing.assert_allclose(got, by_recursion(far, y, queries, own, 2), atol=1e-6)


def test_a_flipped_label_has_the_least_value():
    rng = np.random.default_rng(2)
    y = np.arange(100) % 2
    x = (rng.standard_normal((100, 5)) + 6 * y[:, None]).astype(np.float32)
    flipped = y.copy()
    flipped[17] = 1 - y[17]
    for got in both(x[:80], flipped[:80], x[80:], y[80:], 5):
        assert np.argmin(got) == 17 and got[17] < 0
        assert np.mean(np.delete(np.asarray(got), 17) > 0) > 0.9


@examples
@given(st.integers(0, 2**31), st.integers(1, 40))
def test_ranked_is_a_stable_argsort(seed, n):
    rng = np.random.default_rng(seed)
    keys = rng.choice([-np.inf, -1.5, -1e-40, -0.0, 0.0, 1e-40, 2.0, 3e38, np.inf], (3, n))
    keys = np.where(rng.random((3, n)) < 0.5, keys, rng.standard_normal((3, n))).astype(np.float32)
    bit = rng.random((3, n)) < 0.5
    order, moved = ranked(keys, bit)
    want = np.argsort(keys, axis=1, kind="stable")
    np.testing.assert_array_equal(order, want)
    np.testing.assert_array_equal(moved, np.take_along_axis(bit, want, axis=1))


def test_rank_keys_order_as_distances_do():
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((30, 4)) + 50).astype(np.float32)
    queries = (rng.standard_normal((5, 4)) + 50).astype(np.float32)
    keys = np.asarray(rank_keys(x, np.ones(30, np.float32), queries))
    wide = x.astype(np.float64)
    want = ((queries[:, None].astype(np.float64) - wide) ** 2).sum(2)
    offset = want - keys
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:, :1], offset.shape), atol=1e-3)


def test_nothing_to_rank_is_zero():
    x, y = np.ones((3, 2), np.float32), np.zeros(3, int)
    none, no_labels = np.zeros((0, 2), np.float32), np.zeros(0, int)
    assert not knn_shapley_on_host(x, y, none, no_labels, num_neighbours=1).any()
    assert len(knn_shapley_on_host(none, no_labels, x, y, num_neighbours=1)) == 0
    empty = np.zeros(3, np.float32)
    assert not np.any(knn_shapley(x, y, empty, x, y, empty + 1, num_neighbours=1))
    assert not np.any(knn_shapley(x, y, empty + 1, x, y, empty, num_neighbours=1))


def test_the_second_call_compiles_nothing():
    rng = np.random.default_rng(4)
    sizes = []
    for _ in range(2):
        x = rng.standard_normal((16, 2)).astype(np.float32)
        on_device(x, rng.integers(0, 2, 16), x[:6], rng.integers(0, 2, 6), 2)
        knn_shapley_on_host(x, np.zeros(16, int), x[:6], np.zeros(6, int), num_neighbours=2)
        sizes.append([f._cache_size() for f in (knn_shapley, rank_keys, knn_shapley_of_ranks)])
    assert sizes[0] == sizes[1]


def test_progress_counts_queries(monkeypatch):
    x = np.random.default_rng(5).standard_normal((10, 2)).astype(np.float32)
    monkeypatch.setattr("jaxpoison.linalg.ranks._BLOCK_KEYS", 40)
    seen = []
    knn_shapley_on_host(x, np.zeros(10), x, np.zeros(10), num_neighbours=1, progress=seen.append)
    assert seen == [4, 8, 10]


def test_wrong_knobs_and_lengths_name_the_argument():
    x, y, one = np.ones((3, 2), np.float32), np.zeros(3, int), np.ones(3, np.float32)
    with pytest.raises(ValueError, match="num_neighbours and block must be at least 1, got 0"):
        knn_shapley(x, y, one, x, y, one, num_neighbours=0)
    with pytest.raises(ValueError, match="num_neighbours must be at least 1, got 0"):
        knn_shapley_on_host(x, y, x, y, num_neighbours=0)
    with pytest.raises(ValueError, match="rows and labels must match, got 3, 2, 3 and 3"):
        knn_shapley_on_host(x, y[:2], x, y, num_neighbours=1)
    with pytest.raises(ValueError, match=r"labels and mask must match, got \(2,\)"):
        knn_shapley(x, y[:2], one, x, y, one, num_neighbours=1)
