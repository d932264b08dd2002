"""The features that wrong labels are looked for in: responses to patches, and waves."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxpoison.detect._patches import MAX_SIDE, averaged_down, views_of
from jaxpoison.scanning.spaces import input_space
from jaxpoison.sources import open_source
from jaxpoison.stream import Stream, make_mesh

KEY = jax.random.key(0)
SHAPES = [(8, 8), (16, 16, 3), (28, 28), (28, 28, 1), (40, 50, 3), (5, 30), (2, 9), (1, 7), (65, 8)]


def images(shape, n=60, seed=0):
    """Smooth random images [n, *shape] uint8: patches of noise alone would all be alike."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, *shape)).cumsum(axis=1).cumsum(axis=2)
    x -= x.min()
    return (x * (255 / x.max())).astype(np.uint8)


def stream_of(x):
    labels = (np.arange(len(x)) % 2).astype(np.int32)
    source = open_source(x, role="features") if x.ndim == 2 else open_source(x)
    return Stream(source, labels, 2, make_mesh(1))


_run = jax.jit(lambda stage, x: stage.fn(stage.params, x))


def features(views, x):
    """Rows [n, p] as the stage gives them, on one tile."""
    return np.asarray(_run(views.stage, x[None]))[0]


def cell_means(x, most=32):
    """Images [n, H, W, channels] by plain loops: means of cells, the edge repeated."""
    steps = [-(-side // most) for side in x.shape[1:3]]
    sizes = [-(-side // step) for side, step in zip(x.shape[1:3], steps, strict=True)]
    out = np.zeros((len(x), *sizes, x.shape[3]))
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            rows = np.minimum(np.arange(i * steps[0], (i + 1) * steps[0]), x.shape[1] - 1)
            columns = np.minimum(np.arange(j * steps[1], (j + 1) * steps[1]), x.shape[2] - 1)
            out[:, i, j] = x[:, rows][:, :, columns].mean(axis=(1, 2))
    return out


def respond(image, filters, offset, grid):
    """Pooled responses [grid, grid, 2k] of one image [h, w, channels], patch by patch."""
    side, step = len(filters), 2 if len(filters) > 3 else 1
    margin = side // 2
    wide = np.pad(image, ((margin, margin), (margin, margin), (0, 0)))
    sizes = [(s - side) // step + 1 for s in wide.shape[:2]]
    maps = np.zeros((*sizes, 2 * filters.shape[-1]))
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            patch = wide[i * step : i * step + side, j * step : j * step + side]
            patch = (patch - patch.mean()) / np.sqrt(patch.var() + 0.01)
            z = np.einsum("hwc,hwck->k", patch, filters) - offset
            maps[i, j] = np.concatenate([np.maximum(z - 0.25, 0), np.maximum(-z - 0.25, 0)])
    out = np.zeros((grid, grid, maps.shape[-1]))
    edges = [np.linspace(0, size, grid + 1).round().astype(int) for size in sizes]
    for i in range(grid):
        for j in range(grid):
            cell = maps[
                edges[0][i] : max(edges[0][i + 1], edges[0][i] + 1),
                edges[1][j] : max(edges[1][j + 1], edges[1][j] + 1),
            ]
            out[i, j] = cell.mean(axis=(0, 1)) if cell.size else 0.0
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_responses_are_those_of_a_loop_over_patches(shape):
    x = images(shape)
    views = views_of(stream_of(x), 128, 4, key=KEY)
    scale, filters, offset, *_ = views.stage.params
    assert scale == np.float32(1 / x.max())
    found = features(views, x[:3])
    small = cell_means((x[:3] * float(scale)).reshape(3, *shape[:2], -1))
    least = min(small.shape[1:3])
    assert len(filters) == (6 if least >= 16 else min(3, least))
    expected = [respond(image, filters, offset, 4).ravel() for image in small]
    # float32 responses against float64 ones of order 1
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert views.columns.shape == (6, found.shape[1]) and found.shape[1] == 4 * 4 * 2 * 4
    assert found.any() or 1 in shape[:2]  # a patch of one pixel has no contrast


@pytest.mark.parametrize("p, grid", [(2048, 4), (256, 4), (100, 3), (1, 4)])
def test_number_of_features(p, grid):
    views = views_of(stream_of(images((8, 8))), p, grid, key=KEY)
    width = views.columns.shape[1]
    assert width == features(views, images((8, 8))[:2]).shape[1]
    assert width == max(p // (2 * grid**2), 1) * 2 * grid**2


def test_views_of_images_cover_what_they_say():
    views = views_of(stream_of(images((28, 28))), 128, 4, key=KEY)
    whole, top, bottom, left, right, middle = views.columns
    assert whole.all()
    assert np.array_equal(top, ~bottom) and np.array_equal(left, ~right)
    assert top.sum() == left.sum() == whole.sum() / 2 and middle.sum() == whole.sum() / 4
    for one in (top, bottom):
        for other in (left, right):
            assert (one & other & middle).sum() == middle.sum() / 4


@pytest.mark.parametrize("shape", [(8, 8), (16, 16, 3), (28, 28), (64, 64)], ids=str)
def test_a_trigger_in_a_corner_is_not_seen_from_elsewhere(shape):
    x = images(shape)
    views = views_of(stream_of(x), 128, 4, key=KEY)
    size = max(shape[0] // 14, 1)
    for rows, sees in ((slice(0, size), (0, 1)), (slice(-size, None), (0, 2))):
        for columns, also in ((slice(0, size), (3,)), (slice(-size, None), (4,))):
            marked = x.copy()
            marked[:, rows, columns] = 255 - marked[:, rows, columns]
            changed = (features(views, x) != features(views, marked)).any(axis=0)
            assert [i for i in range(6) if changed[views.columns[i]].any()] == [*sees, *also]


def test_contrast_and_brightness_hardly_matter_where_there_is_structure():
    x = images((16, 16)) // 2
    views = views_of(stream_of(x), 512, 4, key=KEY)
    inner = views.columns[5]  # the zeros around the image are an edge that brightness moves
    one, brighter = features(views, x)[:, inner], features(views, x + 100)[:, inner]
    assert np.corrcoef(one.ravel(), brighter.ravel())[0, 1] > 0.999


def test_filters_come_from_the_data_and_the_key():
    x = images((8, 8))
    one, again = (views_of(stream_of(x), 128, 4, key=KEY).stage.params for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    other = views_of(stream_of(x), 128, 4, key=jax.random.key(1)).stage.params
    assert not np.allclose(one[1], other[1])
    # each filter is for patches without their mean, as its patch was
    np.testing.assert_allclose(one[1].sum(axis=(0, 1, 2)), 0, atol=1e-4)


@pytest.mark.parametrize("value", [0, 7])
def test_blank_images(value):
    x = np.full((40, 8, 8), value, np.uint8)
    views = views_of(stream_of(x), 128, 4, key=KEY)
    found = features(views, x)
    assert np.isfinite(found).all() and np.ptp(found, axis=0).max() == 0


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (33, 32, 1), (40, 50, 3), (100, 7, 1)])
def test_averaged_down(shape):
    x = images(shape, n=4).astype(np.float32)
    found = np.asarray(averaged_down(x.reshape(2, 2, *shape), MAX_SIDE))
    assert max(found.shape[2:4]) <= MAX_SIDE
    np.testing.assert_allclose(found.reshape(4, *found.shape[2:]), cell_means(x), rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (40, 50, 3)])
def test_input_rows_are_averaged_down_alike(shape):
    x = images(shape)
    space = input_space(stream_of(x), open_source(x), 0)
    rows = features(space.stream, x)  # which has a stage, as views have
    small = cell_means((x / 255.0).reshape(len(x), *shape[:2], -1)).reshape(len(x), -1)
    if small.shape[1] <= 1024:
        np.testing.assert_allclose(rows, small, rtol=1e-5, atol=1e-6)
    else:
        projection = space.stream.stage.params[0]
        assert projection.shape == (small.shape[1], 1024)
        np.testing.assert_allclose(rows, small @ projection, rtol=1e-4, atol=1e-4)


def table(d, n=300, seed=0):
    return np.random.default_rng(seed).normal(3.0, 2.0, size=(n, d)).astype(np.float32)


def test_waves_are_cosines_of_standardised_rows():
    x = table(12)
    views = views_of(stream_of(x), 64, 4, key=KEY)
    _, _, weights, phase = views.stage.params
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    expected = np.cos(z.astype(np.float64) @ weights + phase)
    np.testing.assert_allclose(features(views, x), expected, atol=1e-5)
    assert views.columns.sum(axis=0).tolist() == [1] * len(phase)  # each wave is in one view
    assert views.columns.sum(axis=1).tolist() == [32, *[8] * 6]


@pytest.mark.parametrize("d", [4, 5, 12])
def test_views_of_rows_are_halves_of_the_columns(d):
    x = table(d)
    views = views_of(stream_of(x), 64, 4, key=KEY)
    plain, seen = features(views, x), np.zeros((len(views.columns), d), bool)
    for j in range(d):
        moved = x.copy()
        moved[:, j] += 1.0
        changed = (features(views, moved) != plain).any(axis=0)
        seen[:, j] = [changed[columns].any() for columns in views.columns]
    assert len(seen) == 7 and seen[0].all()
    for one, other in ((1, 2), (3, 4), (5, 6)):
        assert np.array_equal(seen[one], ~seen[other])
    assert len({tuple(row) for row in seen}) == 7
    assert (np.abs(seen[1:].sum(axis=1) - d / 2) <= 1).all()


@pytest.mark.parametrize("d", [1, 2, 3])
def test_narrow_tables_are_seen_whole_only(d):
    views = views_of(stream_of(table(d)), 64, 4, key=KEY)
    assert views.columns.shape == (1, 32) and views.columns.all()
    assert np.isfinite(features(views, table(d))).all()


@pytest.mark.parametrize("value", [0.0, 1e6])
def test_constant_columns_say_nothing(value):
    x = table(8)
    x[:, [1, 5]] = value
    views = views_of(stream_of(x), 64, 4, key=KEY)
    moved = x.copy()
    moved[:, [1, 5]] += 5.0
    assert np.array_equal(features(views, x), features(views, moved))
    blank = np.full((50, 8), value, np.float32)
    flat = features(views_of(stream_of(blank), 64, 4, key=KEY), blank)
    assert np.isfinite(flat).all() and np.ptp(flat, axis=0).max() == 0


def test_waves_have_no_unit():
    x = table(6)
    one = features(views_of(stream_of(x), 64, 4, key=KEY), x)
    scaled = (x * [1, 10, 0.1, 1, 100, 2] + [0, 5, 0, 9, 0, 1]).astype(np.float32)
    other = features(views_of(stream_of(scaled), 64, 4, key=KEY), scaled)
    np.testing.assert_allclose(one, other, atol=1e-4)
