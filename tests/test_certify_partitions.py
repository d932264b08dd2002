"""Subsets are functions of the multiset of rows, and one row touches ``spread`` of them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from certify_data import contents, reference_subsets
from jaxpoison._check import DataError, UsageError
from jaxpoison.certify.keys import Column, ContentHash, KeyFunction, PixelSum, SortedPosition
from jaxpoison.certify.partitions import LADDER, Partitions, partition, rungs, shifts_of

KEYS = [ContentHash(), ContentHash(with_labels=True), PixelSum()]
ROWS = st.lists(
    st.tuples(st.tuples(*[st.integers(0, 3)] * 2), st.integers(0, 2)), min_size=5, max_size=14
)


def digits():
    x, y = load_digits(return_X_y=True)
    return x.astype(np.uint8), y


def arrays(rows):
    return np.array([r[0] for r in rows], np.uint8), np.array([r[1] for r in rows])


@settings(max_examples=80, deadline=None)
@given(ROWS, st.integers(1, 5), st.integers(1, 3), st.sampled_from(KEYS))
def test_subsets_are_those_of_the_definition(rows, k, spread, key):
    x, y = arrays(rows)
    p = partition(x, y, k=k, spread=spread, key=key)
    expected = reference_subsets(
        x, y, key.cells(x, y, k * spread).tolist(), p.design.shifts, k * spread
    )
    assert contents(p) == expected
    assert p.sizes.sum() == spread * len(x)


@settings(max_examples=80, deadline=None)
@given(ROWS, st.integers(1, 5), st.integers(1, 3), st.sampled_from(KEYS), st.randoms())
def test_no_order_of_the_rows_matters(rows, k, spread, key, rng):
    x, y = arrays(rows)
    order = list(range(len(rows)))
    rng.shuffle(order)
    p = partition(x, y, k=k, spread=spread, key=key)
    q = partition(x[order], y[order], k=k, spread=spread, key=key)
    assert contents(p) == contents(q) and (p.offsets == q.offsets).all()


@settings(max_examples=80, deadline=None)
@given(ROWS, ROWS, st.integers(1, 5), st.integers(1, 3), st.sampled_from(KEYS))
def test_insertion_is_what_a_new_partition_gives(rows, more, k, spread, key):
    x, y = arrays(rows)
    p = partition(x, y, k=k, spread=spread, key=key)
    q, touched = p.insert(*arrays(more))
    both = partition(*arrays(rows + more), k=k, spread=spread, key=key)
    assert contents(q) == contents(both) and (q.rows == both.rows).all()
    assert (q.cell == both.cell).all()
    untouched = np.setdiff1d(np.arange(k * spread), touched)
    for i in untouched:
        assert (q.subset(i) == p.subset(i)).all()
    r, again = q.delete(np.arange(len(rows), len(rows) + len(more)))
    assert (again == touched).all()
    assert (r.rows == p.rows).all() and (r.offsets == p.offsets).all()
    assert contents(p) == contents(partition(x, y, k=k, spread=spread, key=key))


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 5), st.integers(1, 3), st.sampled_from(KEYS), st.data())
def test_one_row_touches_spread_subsets(rows, k, spread, key, data):
    p = partition(*arrays(rows), k=k, spread=spread, key=key)
    q, touched = p.insert(*arrays([data.draw(ROWS)[0]]))
    assert len(touched) == spread
    grown = np.flatnonzero(q.sizes - p.sizes)
    assert (grown == touched).all() and (q.sizes - p.sizes)[grown].tolist() == [1] * spread
    victim = data.draw(st.integers(0, len(rows) - 1))
    r, gone = p.delete([victim])
    assert len(gone) == spread and (np.flatnonzero(p.sizes - r.sizes) == gone).all()
    kept = [row for i, row in enumerate(rows) if i != victim]
    if k <= len(kept):
        assert contents(r) == contents(partition(*arrays(kept), k=k, spread=spread, key=key))
    assert r.ids.tolist() == [i for i in range(len(rows)) if i != victim]


def test_digits_spread_evenly_and_versions_do_not_disturb_each_other():
    x, y = digits()
    p = partition(x, y, k=50)
    assert p.num_empty == 0 and p.sizes.max() < 3 * len(x) / 50
    first, _ = p.insert(x[:1] + 1, y[:1])
    one, _ = first.insert(x[1:2] + 1, y[1:2])
    two, _ = first.insert(x[2:3] + 1, y[2:3])  # of the same version: may not overwrite the other
    assert (one.x[-1] == x[1] + 1).all() and (two.x[-1] == x[2] + 1).all()
    back, _ = one.delete([len(x), len(x) + 1])
    assert back.digest() == p.digest() and len(p.x) == len(x)
    with pytest.raises(ValueError, match="read-only"):
        p.x[0] = 0


def test_no_rows_change_nothing():
    p = partition(X, Y, k=3)
    for q, touched in (p.insert(X[:0], Y[:0]), p.delete([])):
        assert q.digest() == p.digest() and not len(touched)


def test_repeated_rows_stay_as_often_as_they_occur():
    x = np.zeros((6, 2), np.uint8)
    p = partition(x, np.zeros(6, int), k=3)
    assert sorted(p.sizes.tolist()) == [0, 0, 6] and p.num_empty == 2
    q, touched = p.delete([2, 4])
    assert q.sizes.max() == 4 and len(touched) == 1


def test_shifts_are_those_of_the_reference():
    assert shifts_of(50, 16)[:5] == (363, 90, 492, 37, 157)
    random.seed(1000000207)
    assert shifts_of(1200, 16) == tuple(random.sample(range(19_200), 16))
    assert shifts_of(7, 1) == (0,)
    p = partition(*digits(), k=20, spread=4, key=PixelSum())
    cell = digits()[0].sum(axis=1, dtype=int) % 80
    for i in (0, 33, 79):
        inside = [r for r in range(1797) if any((cell[r] + s) % 80 == i for s in shifts_of(20, 4))]
        assert sorted(p.subset(i)) == inside


def test_sorted_positions_give_even_subsets_and_take_no_changes():
    x = np.arange(40, dtype=np.uint8).reshape(20, 2)[np.random.default_rng(1).permutation(20)]
    p = partition(x, np.zeros(20, int), k=6, key=SortedPosition())
    order = np.lexsort(x.T)
    for i in range(6):
        assert p.subset(i).tolist() == order[i::6].tolist()
    for change in (lambda: p.insert(x[:1], [0]), lambda: p.delete([0])):
        with pytest.raises(UsageError, match="moves every later row"):
            change()


def test_a_key_column_goes_with_its_rows():
    x, y = digits()
    clients = np.array([f"client {i}" for i in range(40)])[np.arange(len(x)) % 40]
    p = partition(x, y, k=10, key=Column("client"), column=clients)
    owners = [{clients[r] for r in p.subset(i)} for i in range(10)]
    assert sum(len(o) for o in owners) == 40
    more = np.array(["client 7", "a client with a longer name"])
    q, touched = p.insert(x[:2], y[:2], column=more)
    both = partition(
        np.concatenate([x, x[:2]]), np.concatenate([y, y[:2]]), k=10, key=Column("client"),
        column=np.concatenate([clients, more]),
    )  # fmt: skip
    assert q.digest() == both.digest() and len(touched) <= 2
    with pytest.raises(DataError, match="column is missing"):
        p.insert(x[:1], y[:1])


def test_floats_sort_by_all_their_bits():
    """Rows that hash alike, such as 0 and -0, still have one order."""
    x = np.array([[0.0, 1], [-0.0, 1], [1e-9, 1], [-1e-9, 1]])
    key = ContentHash(decimals=3)
    found = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [1, 0, 3, 2]):
        p = partition(x[order], np.zeros(4, int), k=2, key=key)
        assert sorted(p.sizes.tolist()) == [0, 4]
        found.append(p.x[p.rows].tobytes())
    assert len(set(found)) == 1


def test_rungs_depend_on_the_own_size_only():
    assert LADDER[:5] == (16, 32, 64, 128, 256)
    sizes = np.array([0, 1, 16, 17, 64, 65, 1000])
    assert rungs(sizes).tolist() == [0, 16, 16, 32, 64, 128, 1024]
    for size in sizes:
        assert rungs(np.array([size]))[0] == rungs(sizes)[sizes == size][0]
    assert rungs(np.array([10, 50]), (50,)).tolist() == [50, 50]
    with pytest.raises(UsageError, match="51 rows, the ladder ends at 50"):
        rungs(np.array([51]), (50,))
    with pytest.raises(UsageError, match="ascending"):
        rungs(sizes, (32, 16))


X, Y = np.arange(24, dtype=np.uint8).reshape(8, 3), np.arange(8) % 3


@pytest.mark.parametrize(
    "make,match",
    [
        (lambda: partition(X, Y, k=9), "k is 9, but there are 8 rows"),
        (lambda: partition(X, Y, k=0), "k is 0"),
        (lambda: partition(X, Y, k=2.0), r"k is 2\.0"),
        (lambda: partition(X, Y, k=True), "k is True"),
        (lambda: partition(X, Y, k=2, spread=0), "spread is 0"),
        (lambda: partition(X, Y, k=8, spread=2**30), "subsets"),
        (lambda: partition(X, Y[:5], k=2), "one label a row"),
        (lambda: partition(X, np.array(["a"] * 8), k=2), "y has dtype"),
        (lambda: partition(X.astype(float), Y, k=2), "decimals="),
        (lambda: partition(X, Y, k=2, column=Y), "reads none"),
        (lambda: partition(X, Y, k=2, key=Column("site"), column=[3] * 8), "site has only 3"),
        (lambda: partition(X, Y, k=2).insert(X[:1, :2], Y[:1]), r"rows of shape \(3,\)"),
        (lambda: partition(X, Y, k=2).insert(X[:1] + 0.5, Y[:1]), "float"),
        (lambda: partition(X, Y, k=2).insert(X[:1].astype(int) + 300, Y[:1]), "cannot hold"),
        (lambda: partition(X, Y, k=2).insert(X[:2], Y[:1]), "one label a row"),
        (lambda: partition(X, Y, k=2).delete([8]), "ids has 8"),
        (lambda: partition(X, Y, k=2).delete([-1]), "ids has -1"),
        (lambda: partition(X, Y, k=2).delete([1, 1]), "repeated"),
        (lambda: partition(X, Y, k=2).delete([0.5]), "dtype float64"),
        (lambda: partition(X, Y, k=2).delete([1])[0].delete([1]), "ids has 1, which is not there"),
    ],
)
def test_bad_input_is_named(make, match):
    with pytest.raises((UsageError, DataError), match=match):
        make()


def test_cells_out_of_range_and_missing_rows_are_refused():
    class Wild(ContentHash):
        def cells(self, x, y, num_cells, column=None):
            return np.full(len(x), num_cells)

    with pytest.raises(DataError, match="outside 0 to 1"):
        partition(X, Y, k=2, key=Wild())
    p = partition(X, Y, k=2)
    bare = Partitions(p.design, p.cell, p.rows, p.offsets)
    with pytest.raises(UsageError, match="key rule"):
        bare.insert(X[:1], Y[:1])
    with pytest.raises(UsageError, match="hold no rows"):
        _ = bare.x


def test_any_key_function_partitions():
    p = partition(X, Y, k=4, key=KeyFunction(lambda row: int(row[0]) // 6, "inputs"))
    q, touched = p.insert(X[:1], Y[:1])
    assert len(touched) == 1 and q.design.rule["rule"] == "function"


def test_only_empties_the_others():
    p = partition(*digits(), k=30)
    q = p.only(np.array([3, 17]))
    assert (q.subset(3) == p.subset(3)).all() and (q.subset(17) == p.subset(17)).all()
    assert q.num_empty == 28 and q.design == p.design
