"""Cells come from a row's values alone, and bad keys are refused by name."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxpoison._check import DataError, UsageError
from jaxpoison.certify import _canonical
from jaxpoison.certify.keys import (
    Column,
    ContentHash,
    KeyFunction,
    PixelSum,
    SortedPosition,
    TimeWindow,
)

CELLS = 997
RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (40, 4, 3)).astype(np.uint8)
Y = RNG.integers(0, 3, 40)


def cells(x, y=Y, key=None, **given):
    return (key or ContentHash()).cells(x, y, CELLS, **given)


@pytest.mark.parametrize("dtype", ["i2", ">i4", "<u4", "i8", ">u8", "u2"])
def test_the_hash_is_of_values_and_not_of_the_array(dtype):
    expected = cells(X)
    assert (cells(X.astype(dtype)) == expected).all()
    assert (cells(np.asfortranarray(X)) == expected).all()
    assert (cells(X.reshape(40, -1)) == expected).all()
    assert (cells(np.repeat(X, 2, axis=0)[::2]) == expected).all()


def test_the_hash_is_blake2b_of_the_row():
    rows = X.reshape(40, -1)
    for salt in (b"", b"s" * 64):
        by_hand = [
            int.from_bytes(
                hashlib.blake2b(
                    r.tobytes(), digest_size=8, key=salt, person=b"jaxpoison.u1"
                ).digest(),
                "little",
            )
            % CELLS
            for r in rows
        ]
        assert cells(X, key=ContentHash(salt)).tolist() == by_hand


@pytest.mark.parametrize("low,high", [(0, 255), (-5, 5), (0, 70_000), (2**33, 2**40)])
def test_each_row_is_hashed_by_its_own_width(low, high):
    """A row hashes the same whatever rows lie beside it."""
    wide = RNG.integers(low, high, (30, 5))
    wide[::3] = RNG.integers(0, 200, (10, 5))
    alone = np.concatenate([cells(wide[i : i + 1], Y[:1]) for i in range(30)])
    assert (cells(wide, Y[:30]) == alone).all()
    assert (cells(wide[::3].astype(np.uint8), Y[:10]) == alone[::3]).all()


def test_booleans_are_zero_and_one_and_huge_integers_keep_their_value():
    flags = RNG.integers(0, 2, (20, 6))
    assert (cells(flags.astype(bool), Y[:20]) == cells(flags, Y[:20])).all()
    huge = np.array([[2**64 - 1], [2**63], [2**63 - 1]], np.uint64)
    assert len(set(cells(huge, Y[:3]).tolist())) == 3
    assert cells(huge[2:], Y[:1]) == cells(huge[2:].astype(np.int64), Y[:1])
    assert cells(np.array([[-1]]), Y[:1]) != cells(np.array([[2**64 - 1]], np.uint64), Y[:1])


def test_labels_count_only_where_they_are_hashed():
    other = (Y + 1) % 3
    assert (cells(X) == cells(X, other)).all()
    with_labels = ContentHash(with_labels=True)
    assert (cells(X, key=with_labels) != cells(X, other, key=with_labels)).mean() > 0.9
    assert (cells(X, Y.astype(np.int8), with_labels) == cells(X, Y, with_labels)).all()
    assert ContentHash().covers == "inputs" and with_labels.covers == "inputs and labels"


def test_floats_need_a_rounding_rule_and_then_hash_by_rounded_value():
    x = RNG.normal(size=(40, 5)).astype(np.float32)
    with pytest.raises(UsageError, match=r"float32.*decimals="):
        cells(x)
    key = ContentHash(decimals=3)
    rounded = cells(x, key=key)
    assert (rounded == cells(x.astype(np.float64), key=key)).all()
    assert (rounded == cells(np.round(x.astype(np.float64), 3) + 1e-5, key=key)).all()
    assert (rounded != cells(x + 0.01, key=key)).mean() > 0.9
    zeros = np.zeros((1, 4)), -np.zeros((1, 4)), np.full((1, 4), -1e-9)
    assert len({int(cells(z, Y[:1], key)[0]) for z in zeros}) == 1
    assert (cells(X, key=key) == cells(X.astype(float), key=key)).all()
    both = ContentHash(with_labels=True, decimals=1)
    assert (cells(X, Y, both) == cells(X.astype("f4"), Y.astype(float), both)).all()
    with pytest.raises(DataError, match="too large to round"):
        cells(np.full((40, 2), 2**53), key=key)
    with pytest.raises(UsageError, match=r"y has floats"):
        ContentHash(with_labels=True).cells(X, Y.astype(float), CELLS)


@pytest.mark.parametrize(
    "value,match", [(np.nan, "NaN in row 7"), (np.inf, "row 7"), (1e30, "large to round.*row 7")]
)
def test_floats_that_cannot_be_rounded_are_named(value, match):
    x = np.zeros((40, 5))
    x[7, 2] = value
    with pytest.raises(DataError, match=match):
        cells(x, key=ContentHash(decimals=2))


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "i8", "u8"])
def test_pixel_sums_are_sums(dtype):
    expected = [sum(row.ravel().tolist()) % CELLS for row in X]
    assert PixelSum().cells(X.astype(dtype), Y, CELLS).tolist() == expected
    top = np.full((1, 9), 2**63 + 5, np.uint64)
    assert PixelSum().cells(top, Y[:1], CELLS)[0] == 9 * (2**63 + 5) % CELLS
    with pytest.raises(UsageError, match="integer pixels"):
        PixelSum().cells(X.astype(float), Y, CELLS)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int8, np.int64, np.uint64, np.bool_]),
        st.tuples(st.integers(1, 8), st.integers(1, 4)),
    ),
    st.data(),
)
def test_sort_keys_sort_as_lexsort_does(x, data):
    y = np.array(data.draw(st.lists(st.integers(-2, 2), min_size=len(x), max_size=len(x))))
    rows = _canonical.as_rows("x", x)
    keys = _canonical.sort_keys(rows, _canonical.as_labels("y", y, len(x)))
    # Python integers, since no array type holds all of these columns.
    by_hand = sorted(range(len(x)), key=lambda i: ([*x[i].tolist()[::-1]], y[i]))
    assert np.argsort(keys, kind="stable").tolist() == by_hand
    if x.dtype != np.uint64:
        columns = np.column_stack([y, x.astype(np.int64)])
        assert np.lexsort(columns.T).tolist() == by_hand


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, (6, 2), elements=st.floats(-2, 2, width=32)))
def test_sort_keys_order_floats_by_value_and_zeros_by_sign(x):
    keys = _canonical.sort_keys(x, np.zeros(6, np.int64))
    by_hand = sorted(range(6), key=lambda i: [(v, np.copysign(1, v)) for v in x[i, ::-1].tolist()])
    assert np.argsort(keys, kind="stable").tolist() == by_hand
    bits = np.ascontiguousarray(x).view("V8")[:, 0]
    assert ((keys[:, None] == keys) == (bits[:, None] == bits)).all()


def test_sorted_positions_are_positions_and_refuse_repeats():
    x = RNG.permutation(60).astype(np.uint8).reshape(20, 3)
    expected = np.empty(20, int)
    expected[np.lexsort(x.T)] = np.arange(20)
    assert (SortedPosition().cells(x, Y[:20], 7) == expected % 7).all()
    x[11] = x[4]
    with pytest.raises(DataError, match=r"1 repeated inputs \(rows 4 and 11\)"):
        SortedPosition().cells(x, Y[:20], 7)
    with pytest.raises(DataError, match="repeated"):
        SortedPosition().cells(np.array([[0.0], [-0.0]]), Y[:2], 7)


def test_a_column_shares_a_cell_by_value():
    clients = np.array(["ann", "bob", "eve", "bob"] * 10)
    found = Column("client").cells(X, Y, CELLS, clients)
    assert len(set(found)) == 3 and (found[1::4] == found[3::4]).all()
    assert (Column("client").cells(X, Y, CELLS, clients.astype(object)) == found).all()
    numbers = np.arange(40) % 5
    by_number = Column("client").cells(X, Y, CELLS, numbers)
    for kind in (np.uint8, object, str):
        assert (by_number == Column("client").cells(X, Y, CELLS, numbers.astype(kind))).all()


def test_one_row_of_another_type_moves_no_other_row():
    """A wider, fractional or wordy value changes the type of the whole array."""
    x = np.arange(40, dtype=np.uint8).reshape(20, 2)
    key = ContentHash(decimals=1)
    for odd in ([300, 1], [-1, 1], [0.5, 1], [2**40, 1]):
        mixed = np.concatenate([x, [odd]])
        assert mixed.dtype != x.dtype
        assert (cells(mixed, Y[:21], key)[:20] == cells(x, Y[:20], key)).all()
        if mixed.dtype.kind != "f":
            assert (cells(mixed, Y[:21])[:20] == cells(x, Y[:20])).all()
    clients = np.arange(20)
    for odd in ("eve", 10**30):
        mixed = np.array([*clients, odd], object if isinstance(odd, int) else None)
        assert mixed.dtype != clients.dtype
        found = Column("client").cells(X[:21], Y[:21], CELLS, mixed)[:20]
        assert (found == Column("client").cells(X[:20], Y[:20], CELLS, clients)).all()


@pytest.mark.parametrize(
    "column,match",
    [
        (None, "client, but column is None"),
        (np.full(40, "ann"), "client has only .*ann.* in all rows"),
        (np.array(["ann", None] * 20, object), "client is None .* in row 1"),
        (np.array([1.0, 2.0] * 20), r"client is 1\.0 \(float\) in row 0"),
        (np.zeros((40, 2)), r"shape \(40, 2\)"),
    ],
)
def test_columns_that_are_no_key_are_refused(column, match):
    with pytest.raises((UsageError, DataError), match=match):
        Column("client").examine(column)
        Column("client").cells(X, Y, CELLS, column)


def test_time_windows_are_counted_from_zero():
    times = np.array([0, 59, 60, 61, 119, 120, -1])
    key = TimeWindow("time", 60)
    assert key.cells(X[:7], Y[:7], 10, times).tolist() == [0, 0, 1, 1, 1, 2, 9]
    assert key.cells(X[:7], Y[:7], 10, times.astype(float)).tolist() == [0, 0, 1, 1, 1, 2, 9]
    for unit in ("s", "ms", "ns"):
        dated = times.astype("M8[s]").astype(f"M8[{unit}]")
        for width in (60, 60.0):
            found = TimeWindow("time", width).cells(X[:7], Y[:7], 10, dated)
            assert found.tolist() == [0, 0, 1, 1, 1, 2, 9]
    with pytest.raises(DataError, match="window of time has only"):
        TimeWindow("time", 1000).examine(np.arange(9))
    with pytest.raises(DataError, match="time has no time in row 1"):
        key.examine(np.array(["2020-01-01", "NaT"], "M8[s]"))
    with pytest.raises(DataError, match="nan in row 1"):
        key.examine(np.array([0.0, np.nan]))
    with pytest.raises(UsageError, match="width is 0"):
        TimeWindow("time", 0)


def test_a_key_function_sees_what_it_covers_and_nothing_else():
    seen = []
    KeyFunction(lambda *row: seen.append(row) or 1, "inputs").cells(X, Y, CELLS)
    assert {len(row) for row in seen} == {1} and seen[0][0].shape == X.shape[1:]
    both = KeyFunction(lambda x, y: int(x.sum()) * 3 + int(y), "inputs and labels")
    found = both.cells(X, Y, CELLS)
    assert (both.cells(X[::-1], Y[::-1], CELLS) == found[::-1]).all()
    domain = KeyFunction(lambda url: url.split("/")[0], "key column", name="domain")
    column = np.array(["a.org/1", "b.org/1", "a.org/2"])
    got = domain.cells(X[:3], Y[:3], CELLS, column)
    assert got[0] == got[2] != got[1] and domain.to_json()["function"] == "domain"
    with pytest.raises(DataError, match="domain has only"):
        domain.examine(column[::2])
    with pytest.raises(UsageError, match="covers is 'sorted position'"):
        KeyFunction(hash, "sorted position")


def test_a_key_function_with_a_state_is_refused():
    count = iter(range(10_000))
    with pytest.raises(UsageError, match="counter gave 0 and then"):
        KeyFunction(lambda row: next(count), "inputs", name="counter").cells(X, Y, CELLS)


@pytest.mark.parametrize(
    "make,match",
    [
        (lambda: ContentHash(b"x" * 65), "up to 64 bytes"),
        (lambda: ContentHash("text"), "salt is str"),
        (lambda: ContentHash(decimals=99), "decimals is 99"),
        (lambda: ContentHash().examine(np.arange(3)), "ContentHash reads none"),
        (lambda: cells(X.astype(object)), "dtype object"),
        (lambda: cells(np.zeros((40, 0), np.uint8)), r"shape \(40, 0\)"),
        (lambda: cells(X, Y[:3], ContentHash(with_labels=True)), "one label a row"),
    ],
)
def test_bad_arguments_are_named(make, match):
    with pytest.raises((UsageError, DataError), match=match):
        make()


def test_salts_move_rows_and_are_not_written_down():
    assert (cells(X) != cells(X, key=ContentHash(b"secret"))).mean() > 0.9
    for key in (ContentHash(b"secret"), Column("c", b"secret")):
        assert "secret" not in str(key.to_json())
    assert ContentHash(b"a").to_json() != ContentHash(b"b").to_json()


def test_one_wider_value_moves_no_other_row():
    """Bytes become text, and integers floats, when one row does not fit."""
    x, y = np.zeros((4, 1), np.uint8), np.zeros(4, np.int64)
    narrow, wide = np.array([b"ab", b"cd", b"ef", b"gh"]), np.array(["ab", "cd", "ef", "\u00e9"])
    before, after = (Column("who").cells(x, y, 997, column) for column in (narrow, wide))
    assert (before == after).tolist() == [True, True, True, False]
    times = np.array([2**60, 2**60 + 5, 2**60 + 9, 7.5])
    with pytest.raises(DataError, match="beyond what floats tell apart"):
        TimeWindow("at", 10).cells(x, y, 997, times)
