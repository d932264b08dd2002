"""What keeps a million rows of a thousand classes within bounds, on a small scale."""

from __future__ import annotations

import tracemalloc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine_data as data
from jaxpoison import chunks, folds
from jaxpoison._types import Block
from jaxpoison.detect import (
    ContrastWhitening,
    LabelViews,
    LocalDensity,
    NearDuplicates,
    SharedMixture,
    SpectralSignatures,
    contrast_whitening,
    neighbours,
)
from jaxpoison.detect import _cells as cells
from jaxpoison.detect import _coordinates as coordinates
from jaxpoison.detect import _discriminants as discriminants
from jaxpoison.detect import _ridge_views as ridge_views
from jaxpoison.layout import ClassRows, Layout
from jaxpoison.sources import open_source
from jaxpoison.stream import Stream, make_mesh
from jaxpoison.stream._steps import pass_step
from jaxpoison.stream._stream import update_of

KEY = jax.random.key(0)


class Counted:
    """Rows in memory that count how many of them are read."""

    def __init__(self, x):
        self.x, self.read_rows = x, 0

    def __len__(self):
        return len(self.x)

    def read(self, start, stop):
        self.read_rows += stop - start
        return {"x": self.x[start:stop]}


def classes_of(n, d, c, seed=0):
    """Rows of Gaussian classes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % c).astype(np.int32)
    x = 2.0 * rng.normal(size=(c, d))[labels] + rng.normal(size=(n, d))
    return x.astype(np.float32), labels


def in_many_shards(monkeypatch):
    monkeypatch.setattr("jaxpoison.layout._BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr("jaxpoison.layout._MANY_CLASSES_BYTES", 1 << 16)


@pytest.mark.parametrize("c", [1, 3, 17])
def test_class_rows_are_those_of_a_comparison(c):
    labels = np.random.default_rng(c).integers(0, c, 200)
    of_class = ClassRows(labels, c + 1)
    for label in range(c + 1):
        np.testing.assert_array_equal(of_class[label], np.flatnonzero(labels == label))


def test_shards_of_many_classes_are_mostly_rows():
    for classes in (100, 1000, 10_000):
        layout = Layout.of(1_000_000, 2048, classes)
        assert layout.tiles * layout.tile <= 2.3 * layout.rows
        assert layout.rows * 2048 <= 128 << 20
    assert Layout.of(1_000_000, 2048, 100).rows == Layout.of(1_000_000, 2048, 10).rows


@pytest.mark.parametrize("tiles", [1, 5, 64, 130])
def test_parts_of_a_block_are_the_block(tiles, monkeypatch):
    monkeypatch.setattr(chunks, "_ROWS", 32)
    rng = np.random.default_rng(tiles)
    mask = (rng.random((tiles, 8)) < 0.7).astype(np.float32)
    label = rng.integers(0, 3, tiles).astype(np.int32)
    ids = np.zeros((tiles, 8), np.int32)
    block = Block(rng.normal(size=(tiles, 8, 2)).astype(np.float32), label, mask, ids)

    def add(total, part):
        return total + (part.x * part.mask[..., None]).sum(axis=(0, 1))

    def scaled(part):
        return part.x * (1 + part.label[:, None, None])

    total = jax.jit(partial(chunks.scan_parts, add))(jnp.zeros(2), block)
    want = (block.x * mask[..., None]).sum(axis=(0, 1), dtype=np.float64)
    np.testing.assert_allclose(total, want, rtol=1e-5, atol=1e-5)
    mapped = jax.jit(partial(chunks.map_parts, scaled))(block)
    want = block.x * (1 + label[:, None, None])
    np.testing.assert_allclose(mapped, want, rtol=1e-6)


def test_large_blocks_give_the_same_equations_and_opinions(monkeypatch):
    x, labels = classes_of(900, 6, 5)
    rng = np.random.default_rng(1)
    waves = folds.RandomFeatures(
        np.zeros(6, np.float32), rng.normal(size=(6, 40)).astype(np.float32),
        rng.uniform(0, 6, 40).astype(np.float32),
    )  # fmt: skip
    weights = rng.normal(size=(3, 41, 5)).astype(np.float32)
    got = []
    for large in (1 << 16, 1):
        monkeypatch.setattr(chunks, "_LARGE", large)
        monkeypatch.setattr(chunks, "_ROWS", 64)
        jax.clear_caches()
        stream = data.stream_of(x, labels)
        equations = stream.fold(folds.RidgeEquations(waves, 5, 3))
        got.append((*equations, stream.map(folds.out_of_fold_agrees, waves, weights)))
    jax.clear_caches()
    for whole, parts in zip(*got, strict=True):
        assert whole.shape == parts.shape
        np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-3)
    assert 0 < got[0][2].mean() < 1


def test_a_pass_holds_features_of_some_rows_only():
    d, p, c = 64, 1024, 300
    layout = Layout.of(1_000_000, 4 * d, c)
    mesh = make_mesh(1)
    waves = folds.RandomFeatures(
        np.zeros(d, np.float32), np.zeros((d, p), np.float32), np.zeros(p, np.float32)
    )
    size = (1, layout.tiles, layout.tile)
    block = Block(
        *(
            jax.ShapeDtypeStruct(shape, kind)
            for shape, kind in (
                ((*size, d), np.float32), (size[:2], np.int32), (size, np.float32),
                (size, np.int32),
            )
        )
    )  # fmt: skip
    fold = folds.RidgeEquations(waves, c, 5)
    compiled = pass_step.lower((fold,), None, block, fn=update_of, mesh=mesh).compile()
    of_all_rows = 4 * layout.tiles * layout.tile * (p + 1)
    partial_bytes = 4 * 5 * (p + 1) * (p + 1 + c)
    held = compiled.memory_analysis().temp_size_in_bytes
    assert held < 4 * partial_bytes + of_all_rows / 4


@pytest.mark.parametrize("detector", [SpectralSignatures(), SharedMixture(basis="contrast")])
def test_reads_do_not_grow_with_the_classes_or_the_rows(detector, monkeypatch):
    in_many_shards(monkeypatch)
    monkeypatch.setattr(folds, "GRAM_FLOATS", 1 << 8)  # bases come from sketches
    reads = []
    for n, c in ((1500, 3), (1500, 24), (6000, 24)):
        x, labels = classes_of(n, 12, c)
        source = Counted(x)
        detector.score(Stream(source, labels, c, budget_bytes=0), key=KEY)
        reads.append((source.read_rows - 1) / n)
    assert max(reads) <= 20
    if not isinstance(detector, SpectralSignatures):  # whose passes depend on the spectrum
        assert max(reads) - min(reads) <= 1


def test_both_bases_come_from_the_same_passes(monkeypatch):
    monkeypatch.setattr(folds, "GRAM_FLOATS", 1 << 8)
    x, labels = classes_of(1200, 16, 6)
    source = Counted(x)
    stream = Stream(source, labels, 6, budget_bytes=0)
    coordinates.coordinates(stream, "principal", 4)
    first = source.read_rows
    coordinates.coordinates(stream, "contrast", 4)
    assert source.read_rows == first


@pytest.mark.parametrize("most", [2, 128])
def test_sketched_coordinates_span_what_moments_give(most, monkeypatch):
    monkeypatch.setattr(cells, "_MANY_CLASSES", most)
    x, labels = classes_of(1200, 40, 6)
    x += np.random.default_rng(5).normal(size=(1200, 3)).astype(np.float32) @ (
        4 * np.random.default_rng(6).normal(size=(3, 40)).astype(np.float32)
    )
    want = {b: coordinates.coordinates(data.stream_of(x, labels), b, 3) for b in _BASES}
    monkeypatch.setattr(folds, "GRAM_FLOATS", 1 << 8)
    stream = data.stream_of(x, labels)
    got = coordinates.coordinates(stream, "principal", 3)
    np.testing.assert_allclose(
        (got**2).sum(axis=1), (want["principal"] ** 2).sum(axis=1), rtol=2e-2, atol=1e-2
    )
    with_odds = coordinates.coordinates(stream, "contrast", 3)
    assert np.isfinite(with_odds).all() and with_odds.shape == (1200, 3)


_BASES = ("principal", "contrast")


def test_spectral_directions_may_come_from_the_shared_bases(monkeypatch):
    monkeypatch.setattr(folds, "GRAM_FLOATS", 1 << 8)
    x, labels = classes_of(1200, 24, 6)
    x += np.random.default_rng(5).normal(size=(1200, 1)).astype(np.float32) * np.linspace(
        1, 3, 24, dtype=np.float32
    )
    stream = data.stream_of(x, labels)
    want = SpectralSignatures().score(stream, key=KEY)
    got = SpectralSignatures(shares_bases=True).score(stream, key=KEY)
    assert got.info.passes < want.info.passes and got.info.converged
    np.testing.assert_allclose(got.values, want.values, rtol=1e-2, atol=1e-2)


def test_cells_find_what_a_full_search_does_where_all_are_probed(monkeypatch):
    x, labels = classes_of(700, 8, 4)
    x[100] = x[600]
    stream = data.stream_of(x, labels)
    want = neighbours.nearest_rows(stream, 5)
    monkeypatch.setattr(cells, "_PROBES", 1000)
    monkeypatch.setattr(cells, "_CELLS", 12)
    monkeypatch.setattr(cells, "_CHUNK_ROWS", 64)
    bank = cells.cells_of(np.arange(700), x)
    distance, rows = cells.search(stream, bank, np.zeros((8, 0), np.float32), 5)
    np.testing.assert_allclose(distance, want.distance[:, :5], rtol=1e-3, atol=1e-4)
    assert (rows == want.rows[:, :5]).mean() > 0.999
    assert distance[100, 0] == 0 and rows[100, 0] == 600
    assert (rows != np.arange(700)[:, None]).all()


def test_cells_of_equal_rows_stay_small():
    x = np.zeros((5000, 3), np.float32)
    x[:50] = np.random.default_rng(0).normal(size=(50, 3))
    bank = cells.cells_of(np.arange(5000), x)
    assert np.diff(bank.first).max() <= cells._LARGEST * -(-5000 // 500)
    assert sorted(bank.rows.tolist()) == list(range(5000))


def test_class_searches_on_the_host_and_on_the_device_agree(monkeypatch):
    x, labels = classes_of(900, 6, 5)
    detector = LocalDensity(num_neighbours=4, num_reference=64)
    want = detector.score(data.stream_of(x, labels), key=KEY)
    monkeypatch.setattr(neighbours, "_BANK_ROWS", 100)
    monkeypatch.setattr(neighbours, "_MANY_CLASSES", 2)
    got = detector.score(data.stream_of(x, labels), key=KEY)
    np.testing.assert_allclose(got.values, want.values, atol=2e-3)
    np.testing.assert_allclose(got.statistic, want.statistic, atol=2e-2)


def test_a_bank_of_many_classes_is_projected(monkeypatch):
    monkeypatch.setattr(neighbours, "_BANK_FLOATS", 64 * 6 * 4)
    x, labels = classes_of(1200, 32, 6)
    (found,) = list(neighbours.class_nearest_rows(data.stream_of(x, labels), 3, 64, 1))
    assert (labels[found.rows] == labels[:, None]).all()


def test_copies_are_found_among_cells(monkeypatch):
    monkeypatch.setattr(neighbours, "_BANK_ROWS", 1500)
    monkeypatch.setattr(neighbours, "_CELLS_FROM", 1)
    x, labels = classes_of(2000, 10, 4)
    mine = np.flatnonzero(labels == 1)[:40]
    x[mine] = x[mine[0]]
    scores = NearDuplicates().score(data.stream_of(x, labels), key=KEY)
    np.testing.assert_array_equal(np.flatnonzero(scores.candidates), mine)


@pytest.mark.parametrize("max_rows", [50_000, 800])
def test_codes_find_the_labels_that_scores_of_all_classes_find(max_rows, monkeypatch):
    n, c = 1600, 20
    x, labels = classes_of(n, 24, c)
    rng = np.random.default_rng(3)
    flipped = rng.permutation(n)[:60]
    labels[flipped] = (labels[flipped] + rng.integers(1, c, 60)) % c
    monkeypatch.setattr(ridge_views, "MOST_SCORES", 12)
    monkeypatch.setattr(discriminants, "_PART_FLOATS", 5000)
    opinion = LabelViews(num_features=256, max_rows=max_rows).judge(
        Stream(open_source(x), labels, c), key=KEY
    )
    is_flipped = np.isin(np.arange(n), flipped)
    assert opinion.margins[is_flipped].min() > np.quantile(opinion.margins[~is_flipped], 0.9)
    assert (opinion.depth[is_flipped] > 0.3).mean() > 0.8
    assert (opinion.depth[~is_flipped] > 0.3).mean() < 0.02
    assert opinion.likelihoods is None


def test_classes_that_share_a_null_open_no_gate_by_it(monkeypatch):
    x, labels = classes_of(3000, 12, 30)
    alone = ContrastWhitening().score(data.stream_of(x, labels), key=KEY)
    monkeypatch.setattr(contrast_whitening, "_MOST_NULLS", 8)
    shared = ContrastWhitening().score(data.stream_of(x, labels), key=KEY)
    np.testing.assert_array_equal(alone.values, shared.values)
    assert shared.null.shape == alone.null.shape and np.isfinite(shared.null).all()
    np.testing.assert_allclose(shared.null.mean(), alone.null.mean(), rtol=0.5, atol=0.3)


@pytest.mark.slow
def test_no_array_of_all_rows_in_doubles(tmp_path):
    n, d, c = 200_000, 64, 200
    x, labels = classes_of(n, d, c)
    np.save(tmp_path / "x.npy", x)
    del x
    stream = Stream(open_source(tmp_path / "x.npy", role="features"), labels, c, budget_bytes=0)
    tracemalloc.start()
    try:
        SpectralSignatures().score(stream, key=KEY)
        NearDuplicates().score(stream, key=KEY)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # blocks, a bank in float32 and n x 16 neighbours; x in doubles beside them is too much
    assert peak < 1.5 * n * d * 8
