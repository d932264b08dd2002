"""The three verbs of a stream against numpy, and what they may compile and read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine_data as data
from jaxpoison import folds
from jaxpoison.layout import Layout
from jaxpoison.stream import Additive, Stage, Stream, compiled


def table(n, num_classes, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.integers(0, num_classes, n)


def small_shards(monkeypatch, rows=256, tile=16):
    """Many shards out of little data."""
    tiles = -(-rows // tile)
    monkeypatch.setattr(
        Layout, "of", classmethod(lambda cls, n, b, c: cls(rows, tile, tiles + min(c, rows)))
    )


def doubled(block, scale):
    return block.x * scale


def class_of_tile(block):
    return jnp.broadcast_to(block.label[:, None], block.mask.shape)


def norm(member, shared):
    x, mask = member
    return (x * mask[:, None] * shared).sum(), mask.sum()


def scaled(params, x):
    return x.astype(jnp.float32) * params


class CountingSource:
    """Rows in memory that remember what was read."""

    def __init__(self, x):
        self.x, self.reads = x, []

    def __len__(self):
        return len(self.x)

    def read(self, start, stop):
        assert 0 <= start <= stop <= len(self.x), "rows past the end"
        self.reads.append((start, stop))
        return {"x": self.x[start:stop]}


SIZES = [(1, 1), (2, 3), (255, 4), (256, 4), (257, 4), (1000, 7), (1500, 300)]


@pytest.mark.parametrize("is_many_shards", [False, True])
@pytest.mark.parametrize(("n", "num_classes"), SIZES)
def test_fold_map_and_take_equal_numpy(monkeypatch, n, num_classes, is_many_shards):
    if is_many_shards:
        small_shards(monkeypatch)
    x, labels = table(n, num_classes)
    stream = data.stream_of(x, labels, num_classes=num_classes)
    assert stream.num_shards == (-(-n // 256) if is_many_shards else 1)
    counts, sums = stream.fold(folds.ClassSums(num_classes))
    assert counts.dtype == sums.dtype == np.float64
    np.testing.assert_array_equal(counts, np.bincount(labels, minlength=num_classes))
    want = np.eye(num_classes)[labels].T @ x.astype(np.float64)
    np.testing.assert_allclose(sums, want, rtol=1e-5, atol=1e-4)  # float32 sums of a block
    np.testing.assert_array_equal(stream.map(doubled, np.float32(2.0)), 2 * x)
    np.testing.assert_array_equal(stream.map(class_of_tile), labels)
    rows = np.random.default_rng(1).integers(0, n, 2 * n + 3)  # any order, with repetitions
    np.testing.assert_array_equal(stream.take(rows), x[rows])
    assert stream.take(rows[:0]).shape == (0, 5)


def test_classes_of_one_row_and_of_none():
    x, _ = table(40, 2)
    labels = np.where(np.arange(40) == 17, 3, 1)
    stream = data.stream_of(x, labels, num_classes=5)
    moments = folds.class_moments(stream)
    assert moments.counts.tolist() == [0, 39, 0, 1, 0]
    np.testing.assert_allclose(moments.mean[3], x[17], rtol=1e-6)
    np.testing.assert_allclose(moments.cov[3], 0, atol=1e-10)
    assert not moments.mean[0].any() and not moments.cov[[0, 2, 4]].any()
    assert np.isfinite(moments.within).all()


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_of_data_with_a_large_mean(offset):
    """Squares of 1e4 would leave no digit of a variance of 1 in float32."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(20_000, 6)) @ np.diag([1, 1, 1, 2, 0.5, 1]) + offset).astype(np.float32)
    labels = rng.integers(0, 3, len(x))
    moments = folds.class_moments(data.stream_of(x, labels))
    for c in range(3):
        wide = x[labels == c].astype(np.float64)
        np.testing.assert_allclose(moments.mean[c], wide.mean(axis=0), atol=1e-4, rtol=0)
        np.testing.assert_allclose(moments.cov[c], np.cov(wide.T, ddof=0), atol=1e-4, rtol=0)
    within = sum(np.cov(x[labels == c].astype(np.float64).T, ddof=0) * (labels == c).mean()
                 for c in range(3))  # fmt: skip
    np.testing.assert_allclose(moments.within, within, atol=1e-4, rtol=0)
    np.testing.assert_allclose(
        folds.pooled_within(data.stream_of(x, labels)), within, atol=1e-4, rtol=0
    )


def test_projection_about_a_large_mean():
    x, labels = table(3000, 3)
    far = (x + np.float32(1e4)).astype(np.float32)
    stream = data.stream_of(far, labels)
    _, mean = folds.class_means(stream)
    basis = np.repeat(data.rotation(5)[None, :2], 3, axis=0)
    got = folds.project(stream, basis, mean)
    want = np.empty((3000, 2))
    for c in range(3):
        mine = far[labels == c].astype(np.float64)
        want[labels == c] = (mine - mine.mean(axis=0)) @ basis[0].T
    # one rounding of a product of size 1e4 is 1e-3; a few of them meet here
    np.testing.assert_allclose(got, want, atol=1e-2)


def test_directions_given_to_some_tiles_at_a_time_change_no_bit(monkeypatch):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(6000, 9)).astype(np.float32), rng.integers(0, 40, 6000)
    stream = data.stream_of(x, labels.astype(np.int32))
    basis, mean = rng.normal(size=(40, 4, 9)), rng.normal(size=(40, 9))
    whole = folds.project(stream, basis, mean)
    want = np.einsum("nkd,nd->nk", basis[labels], x - mean[labels])
    np.testing.assert_allclose(whole, want, atol=1e-4)
    monkeypatch.setattr(folds, "_GIVEN_FLOATS", 0)
    jax.clear_caches()
    np.testing.assert_array_equal(folds.project(stream, basis, mean), whole)


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=[])
@dataclass(frozen=True)
class LargestRow(Additive):
    """A fold that is no sum, and whose value is an integer and a float."""

    def update(self, block):
        values = jnp.where(block.mask > 0, block.x[..., 0], -jnp.inf)
        at = values.argmax()
        return values.max(), block.ids.reshape(-1)[at]

    def merge(self, left, right):
        return left if left[0] >= right[0] else right

    def finish(self, carry):
        return float(carry[0]), int(carry[1])


def test_fold_with_a_merge_of_its_own(monkeypatch):
    small_shards(monkeypatch)
    x, labels = table(3001, 4)
    value, row = data.stream_of(x, labels).fold(LargestRow())
    assert value == x[:, 0].max() and row == x[:, 0].argmax()


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 130])
def test_spread_is_a_loop(count, in_turn):
    x = np.random.default_rng(0).normal(size=(count, 9, 3)).astype(np.float32)
    mask = (np.arange(9) < np.arange(count)[:, None] % 10).astype(np.float32)
    stream = data.stream_of(*table(10, 2))
    sums, sizes = stream.spread(norm, (x, mask), np.float32(2.0), in_turn=in_turn)
    assert sums.shape == sizes.shape == (count,)
    want = (2.0 * x.astype(np.float64) * mask[..., None]).sum(axis=(1, 2))
    np.testing.assert_allclose(sums, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(sizes, mask.sum(axis=1))


@pytest.mark.parametrize("order", ["C", "F"])
def test_spread_takes_arrays_of_any_memory_order(order):
    x = np.asarray(np.random.default_rng(0).normal(size=(5, 4, 3)), np.float32, order=order)
    sums, _ = data.stream_of(*table(10, 2)).spread(norm, (x, np.ones((5, 4), np.float32)), 1.0)
    np.testing.assert_allclose(sums, x.sum(axis=(1, 2)), rtol=1e-5, atol=1e-5)


def test_large_shards_are_read_a_piece_at_a_time(monkeypatch):
    x, labels = table(1000, 3)
    whole = data.stream_of(x, labels)
    blocks = next(iter(whole.rows.groups(range(1), 1)))
    monkeypatch.setattr("jaxpoison.stream._rows._PIECE_BYTES", 11 * x[0].nbytes)
    monkeypatch.setattr("jaxpoison.stream._rows._PIECE_ROWS", 1)
    source = CountingSource(x)
    stream = Stream(source, labels.astype(np.int32), 3)
    source.reads.clear()
    pieces = next(iter(stream.rows.groups(range(1), 1)))
    assert source.reads == [(i, min(i + 8, 1000)) for i in range(0, 1000, 8)]
    for one, other in zip(blocks, pieces, strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    source.reads.clear()
    np.testing.assert_array_equal(stream.take(np.array([900, 3, 901])), x[[900, 3, 901]])
    assert source.reads == [(0, 8), (896, 904)]


def test_a_piece_that_can_not_be_read_ends_the_pass(monkeypatch):
    x, labels = table(1000, 3)
    monkeypatch.setattr("jaxpoison.stream._rows._PIECE_BYTES", 100 * x[0].nbytes)
    monkeypatch.setattr("jaxpoison.stream._rows._PIECE_ROWS", 64)

    class Cut(CountingSource):
        def __len__(self):
            return 1000

    stream = Stream(Cut(x[:550]), labels.astype(np.int32), 3)
    with pytest.raises(AssertionError, match="past the end"):
        stream.fold(folds.ClassSums(3))


def test_what_detectors_share_is_forgotten_where_rows_are_many(monkeypatch):
    stream = data.stream_of(*table(40, 2))
    made = []
    for name, lasts in (("kept", True), ("shared", False)):
        stream.memo(name, lambda name=name: made.append(name), lasts=lasts)
    stream.forget()
    assert not stream.is_large
    stream.memo("shared", lambda: made.append("again"))
    assert made == ["kept", "shared"]  # few rows: nothing is worth making again
    monkeypatch.setattr("jaxpoison.stream._stream._LARGE_BYTES", 1)
    stream.forget()
    stream.forget()
    stream.memo("kept", lambda: made.append("again"))
    stream.memo("shared", lambda: made.append("anew"))
    assert made == ["kept", "shared", "anew"]


def test_a_large_stream_gives_back_memory_around_each_pass(monkeypatch):
    calls = []
    monkeypatch.setattr("jaxpoison.stream._stream.trim", lambda: calls.append(1))
    stream = data.stream_of(*table(40, 2))
    stream.fold(folds.ClassSums(2))
    assert not calls
    monkeypatch.setattr("jaxpoison.stream._stream._LARGE_BYTES", 1)
    stream.fold(folds.ClassSums(2))
    stream.fold(folds.ClassSums(2))
    assert len(calls) == 4


def test_memo_is_of_one_stream():
    stream, calls = data.stream_of(*table(10, 2)), []

    def make():
        calls.append(1)
        return len(calls)

    assert stream.memo("k", make) == stream.memo("k", make) == 1
    assert stream.memo("other", make) == 2
    assert stream.through(Stage(scaled, np.float32(2))).memo("k", make) == 3


def test_stage_is_seen_by_every_verb_and_there_is_one():
    images = np.random.default_rng(0).integers(0, 256, (300, 2, 3), np.uint8)
    labels = np.arange(300) % 3
    stream = data.stream_of(images, labels).through(Stage(flat, np.float32(0.5)))
    want = images.reshape(300, 6) * np.float32(0.5)
    np.testing.assert_array_equal(stream.map(doubled, np.float32(1.0)), want)
    np.testing.assert_allclose(folds.class_means(stream)[1][1], want[1::3].mean(axis=0), rtol=1e-5)
    assert stream.take(np.array([4])).shape == (1, 2, 3)  # the rows themselves, as documented
    with pytest.raises(ValueError, match="a stage already"):
        stream.through(Stage(flat, np.float32(1)))


def flat(params, x):
    return x.reshape(*x.shape[:2], -1).astype(jnp.float32) * params


def test_held_and_read_again_blocks_give_the_same_bits(monkeypatch):
    small_shards(monkeypatch)
    x, labels = table(2000, 5)
    held, again = CountingSource(x), CountingSource(x)
    streams = [
        Stream(source, labels.astype(np.int32), 5, budget_bytes=budget)
        for source, budget in ((held, 1 << 30), (again, 0))
    ]
    passes = []
    for stream, source in zip(streams, (held, again), strict=True):
        source.reads.clear()
        first = jax.tree.map(np.asarray, stream.fold(folds.ClassSums(5)))
        second = stream.fold(folds.ClassSums(5))
        mapped = stream.map(doubled, np.float32(3.0))
        passes.append((*first, *second, mapped))
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(*passes, strict=True))
    assert len(held.reads) == 8 and len(again.reads) == 24  # 8 shards, three passes
    assert sorted(held.reads) == [(i, min(i + 256, 2000)) for i in range(0, 2000, 256)]


def test_take_reads_only_what_it_needs(monkeypatch):
    small_shards(monkeypatch)
    x, labels = table(2000, 5)
    source = CountingSource(x)
    stream = Stream(source, labels.astype(np.int32), 5)
    source.reads.clear()
    np.testing.assert_array_equal(stream.take(np.array([1999, 3, 700])), x[[1999, 3, 700]])
    assert source.reads == [(0, 256), (512, 768), (1792, 2000)]


def test_other_values_compile_nothing(monkeypatch):
    small_shards(monkeypatch)
    (x, labels), (x2, labels2) = table(1100, 4), table(1100, 4, seed=1)
    members = (np.ones((3, 6, 2), np.float32), np.ones((3, 6), np.float32))

    def once(x, labels, scale):
        stream = data.stream_of(x, labels, num_classes=4)
        folds.class_moments(stream)
        folds.pooled_within(stream)
        stream.map(doubled, np.float32(scale))
        stream.spread(norm, members, np.float32(scale))

    once(x, labels, 1.0)
    before = data.num_compiled()
    once(x2, labels2, 2.0)  # other rows, other operands, other mix of classes
    assert data.num_compiled() == before


def test_progress_counts_rows(monkeypatch):
    small_shards(monkeypatch)
    stream, seen = data.stream_of(*table(1100, 4)), []
    stream.progress = seen.append
    stream.fold(folds.ClassSums(4))
    stream.fold(folds.ClassSums(4))  # the second pass comes from the device
    assert seen == 2 * [256, 512, 768, 1024, 1100]


def test_errors_while_reading_reach_the_caller(monkeypatch):
    small_shards(monkeypatch)
    x, labels = table(1100, 4)
    source = CountingSource(x)
    stream = Stream(source, labels.astype(np.int32), 4)
    source.read = lambda start, stop: (_ for _ in ()).throw(OSError("disk is gone"))
    with pytest.raises(OSError, match="disk is gone"):
        stream.fold(folds.ClassSums(4))


def test_compiled_shares_its_cache():
    fn = compiled(scaled)
    assert fn(np.float32(2), np.ones(3, np.float32)).tolist() == [2, 2, 2]
    before = fn._cache_size()
    fn(np.float32(3), np.zeros(3, np.float32))
    assert fn._cache_size() == before == 1
