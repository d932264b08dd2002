"""Blocks: each row once, one class a tile, everything else masked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_data import block_of
from jaxpoison.layout import Layout

examples = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def shards(draw):
    """A layout, and the labels of rows that fit in one of its shards."""
    num_classes = draw(st.sampled_from([1, 2, 5, 40, 300]))
    num_rows = draw(st.integers(1, 3000))
    row_bytes = draw(st.sampled_from([1, 4, 3072, 1 << 20]))
    layout = Layout.of(num_rows, row_bytes, num_classes)
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    size = draw(st.integers(0, min(num_rows, layout.rows)))
    used = draw(st.integers(1, num_classes))
    return layout, rng.choice(rng.permutation(num_classes)[:used], size).astype(np.int32)


@examples
@given(shards(), st.integers(0, 10**6))
def test_block_holds_each_row_once_in_a_tile_of_its_class(shard, start):
    layout, labels = shard
    x = (np.arange(len(labels) * 3).reshape(-1, 3) + 1).astype(np.float32)
    block = block_of(layout, x, labels, start)
    keep = block.mask > 0
    assert set(np.unique(block.mask)) <= {0.0, 1.0}
    assert sorted(block.ids[keep].tolist()) == list(range(start, start + len(labels)))
    where = block.ids[keep] - start
    assert np.array_equal(block.x[keep], x[where])
    label = np.broadcast_to(block.label[:, None], keep.shape)
    assert np.array_equal(label[keep], labels[where])
    assert not block.x[~keep].any() and not block.ids[~keep].any()
    assert not block.label[~keep.any(axis=1)].any()


@examples
@given(shards())
def test_shape_does_not_depend_on_the_labels(shard):
    layout, labels = shard
    x = np.ones((len(labels), 2, 2), np.uint8)
    full = block_of(layout, x, labels)
    none = block_of(layout, x[:0], labels[:0])
    assert [part.shape for part in full] == [part.shape for part in none]
    assert [part.dtype for part in full] == [part.dtype for part in none]
    assert full.x.dtype == np.uint8 and full.x.shape == (layout.tiles, layout.tile, 2, 2)
    assert full.label.dtype == full.ids.dtype == np.int32 and full.mask.dtype == np.float32
    assert not none.mask.any()


@examples
@given(shards())
def test_rows_keep_their_order_inside_a_class(shard):
    layout, labels = shard
    x = np.zeros((len(labels), 1), np.float32)
    block = block_of(layout, x, labels)
    for c in np.unique(labels):
        mine = (block.label[:, None] == c) & (block.mask > 0)
        assert (np.diff(block.ids[mine]) > 0).all()


@examples
@given(st.integers(1, 10**8), st.integers(1, 10**7), st.integers(1, 10**5))
def test_bounds_of_a_layout(num_rows, row_bytes, num_classes):
    layout = Layout.of(num_rows, row_bytes, num_classes)
    assert 256 <= layout.rows <= 1 << 16 and layout.rows & (layout.rows - 1) == 0
    assert 8 <= layout.tile <= 256 and layout.tile & (layout.tile - 1) == 0
    # the worst mix: every class present, each with one row over a full tile
    assert layout.tiles * layout.tile >= layout.rows
    assert layout.tiles >= min(num_classes, layout.rows)
    # padding never costs more than a tile for each class that a shard can hold
    assert layout.tiles <= layout.rows / layout.tile + min(num_classes, layout.rows) + 1


@pytest.mark.parametrize("extra", [0, 1, 7])
def test_worst_mix_of_classes_fits(extra):
    """Every class has one row more than fills its tiles."""
    layout = Layout.of(4096, 4, 100)
    per_class = layout.rows // 100 // layout.tile * layout.tile + 1 + extra
    labels = np.repeat(np.arange(100), per_class)[: layout.rows]
    block = block_of(layout, np.ones((len(labels), 1), np.float32), labels)
    assert block.mask.sum() == len(labels)


def test_a_source_that_gives_too_few_rows_is_refused():
    layout, labels = Layout.of(300, 4, 3), np.arange(300) % 3
    plan, out = layout.plan(labels, 0), np.zeros((layout.tiles * layout.tile, 1), np.float32)
    for given_rows in (99, 1, 101):  # a single row would be spread over all places
        with pytest.raises(ValueError, match=f"gave {given_rows} rows where 100"):
            plan.put(np.ones((given_rows, 1), np.float32), slice(100, 200), out)
    assert not out.any()


def test_layout_follows_from_the_shape_alone():
    assert Layout.of(60_000, 784, 10) == Layout.of(60_000, 784, 10)
    assert Layout.of(10, 4, 2).rows == 256  # tiny data is one small shard
    assert Layout.of(10**9, 1 << 30, 10).rows == 256  # huge rows: few at a time


def test_places_are_those_in_the_tiles_of_the_blocks():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 1000)
    layout = Layout(rows=256, tile=8, tiles=256 // 8 + 7)
    places = layout.places(labels)
    for start in range(0, len(labels), 256):
        mine = labels[start : start + 256]
        block = block_of(layout, np.zeros((len(mine), 1), np.float32), mine, start)
        _, place = np.nonzero(block.mask)
        assert np.array_equal(places[block.ids[block.mask > 0]], place)
