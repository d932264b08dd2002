"""One pass finds broken rows, duplicates and row ids that survive reordering."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpoison._check import DataError, NothingToScan, UsageError
from jaxpoison.sources import DropRows, Subset, open_source
from jaxpoison.sources.inspect import _mix, inspect, unique_ids

IDS = [3798658079499693545, 3186625842688361825]
FINGERPRINT = "5614deca7cbe6e478920c10ca7f164e48210d2f730aad1c73fe507c92ea1cbb7"
few = settings(max_examples=25, deadline=None)


def rows(n, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.integers(0, 3, n)


@few
@given(n=st.integers(1, 60), seed=st.integers(0, 999), block_rows=st.integers(1, 70))
def test_ids_go_with_the_rows(n, seed, block_rows):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 3, (n, 2, 3), dtype=np.uint8) // 2  # many equal rows
    y = rng.integers(0, 2, n)
    order = rng.permutation(n)
    first = inspect(open_source(x, y), block_rows=block_rows)
    second = inspect(open_source(x[order], y[order]), block_rows=n)
    assert len(np.unique(first.ids)) == n
    by_id = {int(i): (x[k].tobytes(), int(y[k])) for k, i in enumerate(first.ids)}
    for k, i in enumerate(second.ids):
        assert by_id[int(i)] == (x[order[k]].tobytes(), int(y[order[k]]))
    distinct = len({(row.tobytes(), int(label)) for row, label in zip(x, y, strict=True)})
    assert first.duplicates == second.duplicates == n - distinct


def test_ids_depend_on_every_byte_and_on_the_label():
    x = np.zeros((1, 7, 3), np.uint8)  # 21 bytes: not a multiple of four
    seen = {int(inspect(open_source(x, [0])).ids[0]), int(inspect(open_source(x, [1])).ids[0])}
    seen.add(int(inspect(open_source(x)).ids[0]))
    for position in range(21):
        changed = x.copy()
        changed.reshape(-1)[position] = 1
        seen.add(int(inspect(open_source(changed, [0])).ids[0]))
    assert len(seen) == 24


def test_ids_are_fixed_for_ever():
    """Ids are written to reports and compared later: constants may not drift."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert inspect(open_source(x, [0, 1])).ids.tolist() == IDS
    assert inspect(open_source(x, [0, 1])).fingerprint == FINGERPRINT


def test_near_rows_do_not_collide():
    x = np.zeros((200_000, 2), np.float32)
    x[:, 0], x[:, 1] = np.divmod(np.arange(len(x)), 500)  # small integers: mostly zero bits
    found = inspect(open_source(x, np.zeros(len(x), int)))
    assert found.duplicates == 0 and len(np.unique(found.ids)) == len(x)


def test_an_id_that_meets_another_hash_is_mixed_again():
    hashes = np.array([5, 5, 0], np.uint64)
    hashes[2] = unique_ids(hashes)[0][1]  # what the second 5 becomes
    ids, duplicates = unique_ids(hashes)
    assert duplicates == 1 and len(set(ids.tolist())) == 3
    assert len(np.unique(_mix(np.arange(10_000, dtype=np.uint64)))) == 10_000


@few
@given(bad=st.lists(st.integers(0, 29), max_size=8), block_rows=st.integers(1, 40))
def test_rows_that_are_not_finite(bad, block_rows):
    x, y = rows(30)
    for k, row in enumerate(bad):
        x[row, k % 5] = [np.nan, np.inf, -np.inf][k % 3]
    found = inspect(open_source(x, y), block_rows=block_rows)
    assert found.nonfinite.tolist() == sorted(set(bad)) and found.nonfinite.dtype == np.int64
    if not bad:
        found.require_finite("data")
        return
    with pytest.raises(DataError, match=rf"{len(set(bad))} of 30 rows .* row {min(bad)} \("):
        found.require_finite("data")


def test_progress_and_block_rows():
    x, y = rows(10)
    seen = []
    inspect(
        open_source(x, y), block_rows=4, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]
    with pytest.raises(UsageError, match="block_rows is 0"):
        inspect(open_source(x, y), block_rows=0)


@few
@given(data=st.data())
def test_views_equal_indexing(tmp_path_factory, data):
    n = data.draw(st.integers(2, 40))
    x, y = rows(n, seed=n)
    path = tmp_path_factory.mktemp("views") / "a.npz"
    np.savez_compressed(path, x=x, y=y)
    dropped = data.draw(st.lists(st.integers(0, n - 1), max_size=n - 1))
    wanted = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n))
    kept = np.setdiff1d(np.arange(n), dropped)
    source = open_source(path)
    for view, index in (
        (DropRows(source, np.array(dropped, int)), kept),
        (Subset(source, np.array(wanted)), np.array(wanted)),
    ):
        np.testing.assert_array_equal(view.kept, index)
        assert len(view) == len(index) and view.schema == source.schema
        start = data.draw(st.integers(0, len(index)))
        stop = data.draw(st.integers(start, len(index)))
        block = view.read(start, stop)
        np.testing.assert_array_equal(block["x"], x[index][start:stop])
        np.testing.assert_array_equal(block["y"], y[index][start:stop])
        np.testing.assert_array_equal(view.labels(), y[index])
        assert view.fingerprint() == open_source(x[index], y[index]).fingerprint()
        assert view.name == source.name == str(path)


def test_views_of_unlabelled_sources_and_of_views():
    x, _ = rows(10)
    view = DropRows(DropRows(open_source(x), np.array([0])), np.array([0]))
    assert view.labels() is None and set(view.read(0, 3)) == {"x"}
    np.testing.assert_array_equal(view.read(0, 8)["x"], x[2:])


def test_errors_of_views():
    source = open_source(*rows(6))
    for index, words in (
        ([6], "row number 6 is outside 0..5"),
        ([-1, 2], "row number -1"),
        ([0.5], "float64"),
        (np.ones(6, bool), "np.flatnonzero"),
    ):
        for view in (Subset, DropRows):
            with pytest.raises(UsageError, match=words):
                view(source, np.asarray(index))
    with pytest.raises(NothingToScan, match="none of its 6 rows"):
        DropRows(source, np.arange(6))
