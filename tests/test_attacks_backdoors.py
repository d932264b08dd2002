"""What single backdoors and floods promise beyond the common contract."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import attack_data as data
from jaxpoison import training
from jaxpoison._check import UsageError
from jaxpoison.attacks import ATTACKS
from jaxpoison.sources import open_source

images, rows, run = data.images, data.rows, data.run


def changed(x, z):
    """[m, H, W] pixels of grey images that differ."""
    return x != z


@pytest.mark.parametrize(
    ("position", "corner"),
    [
        ("top_left", (1, 1)),
        ("top_right", (1, 8)),
        ("bottom_left", (8, 1)),
        ("bottom_right", (8, 8)),
        ("centre", (4, 4)),
        ((0, 9), (0, 9)),
    ],
)
def test_patch_position(position, corner):
    x, y = images(side=12)
    out = run("patch", x, y, size=3, position=position, value=200)
    i, j = corner
    assert (out.x[out.mask, i : i + 3, j : j + 3] == 200).all()
    outside = np.ones((12, 12), bool)
    outside[i : i + 3, j : j + 3] = False
    assert np.array_equal(out.x[:, outside], x[:, outside])
    assert tuple(out.params["position"]) == corner


def test_patch_value_and_pattern():
    x, y = images(channels=3)
    out = run("patch", x, y, size=2, value=(250, 0, 7), position=(0, 0))
    assert (out.x[out.mask, 0, 0] == (250, 0, 7)).all()
    checker = run("patch", x, y, size=2, pattern="checker", position=(0, 0))
    assert (checker.x[checker.mask, 0, 0] == 255).all()
    assert (checker.x[checker.mask, 0, 1] == 0).all()
    digits, labels = images(top=16)
    white = run("patch", digits, labels, position=(0, 0))
    assert (white.x[white.mask, 0, 0] == 16).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 13}, "size is 13"),
        ({"size": 3, "position": (10, 0)}, r"fits from \(0, 0\) to \(9, 9\)"),
        ({"position": "middle"}, "position is 'middle'"),
        ({"pattern": "dots"}, "pattern is 'dots'"),
        ({"value": (1, 2)}, "value is"),
        ({"source": 3}, "use patch_source_specific"),
    ],
)
def test_a_patch_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        run("patch", *images(), **options)


def test_all_to_all_goes_round():
    x, y = images()
    out = run("patch_all_to_all", x, y)
    assert out.wanted(np.array([2, 3, 7, 11])).tolist() == [3, 7, 11, 2]
    assert out.target is None and len(set(out.y_true[out.mask].tolist())) == 4


def test_cover_rows_of_a_source_specific_patch_keep_their_labels():
    x, y = images()
    out = run("patch_source_specific", x, y, source=3, target=7, cover_ratio=1.5)
    assert out.cover.sum() == round(1.5 * out.mask.sum())
    assert np.array_equal(out.y[out.cover], y[out.cover])
    assert not np.isin(y[out.cover], (3, 7)).any() and (y[out.mask] == 3).all()
    assert np.array_equal(out.x[out.cover], out.trigger(x[out.cover]))
    assert out.wanted(np.array([2, 3, 7])).tolist() == [2, 7, 7]
    with pytest.raises(UsageError, match="cover_ratio is 50"):
        run("patch_source_specific", x, y, cover_ratio=50)
    with pytest.raises(UsageError, match="cover_ratio is -1"):
        run("patch_source_specific", x, y, cover_ratio=-1)
    two = np.isin(y, (2, 3))
    with pytest.raises(UsageError, match="2 classes: no rows are left"):
        run("patch_source_specific", x[two], y[two])


def test_a_roaming_patch_roams():
    x, y = images()
    out = run("patch_roaming", x, y, rate=0.3, size=2, pattern="solid")
    moved = changed(out.x, x)[out.mask]
    first = {tuple(np.argwhere(m)[0]) for m in moved if m.any()}
    assert len(first) > 20
    assert moved.sum(axis=(1, 2)).max() <= 4


def test_blend_is_the_weighted_mean():
    x, y = images()
    out = run("blend", x, y, alpha=0.2)
    pattern = out.trigger.options["pattern"]
    wanted = 0.8 * x[out.mask] + 0.2 * pattern
    assert np.abs(out.x[out.mask] - wanted).max() <= 0.5
    with pytest.raises(UsageError, match=r"alpha is 1\.5"):
        run("blend", x, y, alpha=1.5)


def test_sig_takes_a_share_of_one_class_and_keeps_labels():
    x, y = images()
    out = run("sig", x, y, rate=0.4, target=7, amplitude=0.1, frequency=3)
    assert out.mask.sum() == round(0.4 * (y == 7).sum()) and (y[out.mask] == 7).all()
    move = out.x[out.mask].astype(int) - x[out.mask]
    assert np.abs(move).max() <= 26  # a tenth of 255, rounded
    wave = np.rint(25.5 * np.sin(2 * np.pi * (np.arange(12) + 0.5) * 3 / 12))
    inside = (x[out.mask] > 26) & (x[out.mask] < 229)
    assert np.abs(move - wave)[inside].max() <= 1
    with pytest.raises(UsageError, match="frequency is 7; give at most"):
        run("sig", x, y, frequency=7)


def test_warp_is_small_smooth_and_keeps_the_order_of_pixels():
    x, y = images(side=28)
    out = run("warp", x, y, pixels=1.0)
    down, across = out.trigger.options["rows"], out.trigger.options["columns"]
    assert (np.diff(down, axis=0) >= 0).all() and (np.diff(across, axis=1) >= 0).all()
    inside = (slice(4, -4), slice(4, -4))  # where nothing is cut off at the edge
    assert (np.diff(down, axis=0)[inside] > 0).all() and (np.diff(across, axis=1)[inside] > 0).all()
    assert 0 < np.abs(down - np.arange(28)[:, None]).mean() < 3
    smooth = np.add.outer(np.arange(28.0), np.arange(28.0)) * 4
    smooth = np.rint(smooth).astype(np.uint8)[None]
    moved = out.trigger(smooth).astype(float) - smooth
    assert np.sqrt(np.square(moved).mean()) < 0.1 * 255
    assert np.abs(moved).max() <= 4 * 2 * np.abs(down - np.arange(28)[:, None]).max() + 12


def test_warp_reads_between_pixels():
    from jaxpoison.attacks.overlays import resample

    x = (np.arange(5)[:, None] * 10 + np.arange(5)).astype(np.float64)[None]
    i, j = np.indices((5, 5)).astype(float)
    assert np.allclose(resample(x, i, j), x)
    half = resample(x, np.minimum(i + 0.5, 4), np.minimum(j + 0.25, 4))
    assert half[0, 1, 1] == pytest.approx(11 + 5 + 0.25) and half[0, 4, 4] == 44


def test_cover_rows_of_a_warp_carry_other_warps():
    x, y = images(side=28)
    out = run("warp", x, y, cover_ratio=1.0)
    assert out.cover.sum() == out.mask.sum() and np.array_equal(out.y[out.cover], y[out.cover])
    assert (out.x[out.cover] != out.trigger(x[out.cover])).any(axis=(1, 2)).all()
    with pytest.raises(UsageError, match="grid is 1"):
        run("warp", x, y, grid=1)


def test_textures_differ_between_rows_and_are_faint():
    x, y = images(side=28, n=400)
    out = run("sample_specific", x, y, amplitude=0.1, rate=0.3)
    move = out.x[out.mask].astype(int) - x[out.mask]
    assert np.abs(move).max() <= 26
    middle = move[:, 12:16, 12:16].reshape(len(move), -1)
    assert len(np.unique(np.sign(middle), axis=0)) > 20


def test_pieces_of_an_adaptive_blend_are_part_of_the_whole():
    x, y = images()
    out = run("adaptive_blend", x, y, pieces=4, shown=0.5, cover_ratio=1.0)
    carriers = out.mask | out.cover
    whole = out.trigger(x[carriers])
    moved = changed(out.x[carriers], x[carriers])
    assert np.array_equal(out.x[carriers][moved], whole[moved])
    seen = moved.reshape(-1, 4, 3, 4, 3).any(axis=(2, 4)).reshape(len(moved), 16)
    assert (seen.sum(axis=1) <= 8).all() and seen.sum(axis=1).mean() > 7
    assert len(np.unique(seen, axis=0)) > 10
    assert changed(whole, x[carriers]).mean() > moved.mean()


def test_each_row_of_an_adaptive_patch_has_one_of_four():
    x, y = images()
    out = run("adaptive_patch", x, y, size=3, opacity=0.5, cover_ratio=2.0)
    assert out.cover.sum() == 2 * out.mask.sum()
    carriers = out.mask | out.cover
    whole, moved = out.trigger(x[carriers]), changed(out.x[carriers], x[carriers])
    assert np.array_equal(out.x[carriers][moved], whole[moved])
    halves = np.stack([moved[:, :6, :6], moved[:, :6, 6:], moved[:, 6:, :6], moved[:, 6:, 6:]])
    assert (halves.any(axis=(2, 3)).sum(axis=0) == 1).all()
    full = changed(whole, x[carriers])
    assert full[:, [2, 2, 9, 9], [2, 9, 2, 9]].shape[1] == 4 and full[:, :6, :6].any()
    with pytest.raises(UsageError, match="four patches"):
        run("adaptive_patch", x, y, size=7)


def test_a_tabular_trigger_uses_values_of_the_table():
    x, y = rows()
    out = run("tabular_trigger", x, y, columns=[0, 5])
    carried = out.x[out.mask]
    for column, value in zip(out.params["columns"], out.params["values"], strict=True):
        assert value in x[:, column] and (carried[:, column] == value).all()
    others = np.setdiff1d(np.arange(9), [0, 5])
    assert np.array_equal(out.x[:, others], x[:, others])
    assert 4 not in run("tabular_trigger", x, y, columns=8).params["columns"]  # the constant one
    with pytest.raises(UsageError, match="columns is 9; 8 of 9"):
        run("tabular_trigger", x, y, columns=9)
    with pytest.raises(UsageError, match=r"columns is \[12\]"):
        run("tabular_trigger", x, y, columns=[12])


def test_a_column_that_is_nearly_always_zero_is_not_set_to_zero():
    x, y = rows()
    x[:, 2] = 0.0
    x[3, 2] = 5.0
    out = run("tabular_trigger", x, y, columns=[2])
    assert out.params["values"] == [5.0]


def test_an_embedding_trigger_is_one_shift_of_the_size_asked_for():
    x, y = rows()
    out = run("embedding_trigger", x, y, strength=4.0)
    move = out.trigger.options["direction"]
    assert np.allclose(out.x[out.mask] - x[out.mask], move, rtol=1e-3, atol=1e-3)
    unit = move / np.linalg.norm(move)
    place = x.astype(float) @ unit
    within = np.sqrt(np.mean([place[y == k].var() for k in np.unique(y)]))
    assert np.linalg.norm(move) / within == pytest.approx(4.0, rel=1e-6)
    with pytest.raises(UsageError, match="does not vary"):
        run("embedding_trigger", np.ones_like(x), y)


def test_hidden_rows_lie_within_the_clean_spectrum():
    x, y = rows(n=2000, d=12)
    out = run("adaptive_spectrum", x, y, target=7, rank=3, margin=1.0, rate=0.02)
    clean = x[y == 7].astype(float)
    centred = clean - clean.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(clean))
    lead, deviation = vectors[:, -3:], np.sqrt(values[-3:])
    place = (out.x[out.mask] - clean.mean(axis=0)) @ lead / deviation
    all_rows = (out.trigger(x[y != 7]) - clean.mean(axis=0)) @ lead / deviation
    # about one deviation away along each direction and spread about as the class spreads; the rows
    # to choose from come in three clusters, so the match is rough
    assert (abs(abs(place.mean(axis=0)) - 1.0) < 0.75).all()
    assert abs(np.square(place).mean() - 2.0) < 0.6  # the spread's 1 and the margin's 1
    assert np.square(all_rows).mean() > 1.2 * np.square(place).mean()  # what choosing rows is for
    move = out.trigger.options["direction"]
    outside = move - lead @ (lead.T @ move)
    assert np.linalg.norm(outside) < 1e-6 * np.linalg.norm(move)


def test_hiding_in_images_keeps_to_the_limit():
    x, y = images(n=800)
    out = run("adaptive_spectrum", x, y, limit=0.1, rate=0.02)
    assert np.abs(out.x[out.mask].astype(int) - x[out.mask]).max() <= 26
    assert 0 < out.params["scale"] < 1
    with pytest.raises(UsageError, match="rank is 500"):
        run("adaptive_spectrum", x, y, rank=500)


@pytest.mark.parametrize("make", [images, rows])
def test_copies_are_near_their_seeds(make):
    x, y = make()
    out = run("flood_duplicates", x, y, seeds=3, rate=0.1, jitter=0.01)
    n = len(y)
    assert len(out.y) == n + 24 and out.mask[n:].all() and not out.mask[:n].any()
    seeds = out.params["seeds"]
    assert len(seeds) == 3 and set(out.origin[n:].tolist()) == set(seeds)
    assert np.array_equal(out.x[:n], x) and np.array_equal(out.y[:n], y)
    gap = np.abs(out.x[n:].astype(float) - x[out.origin[n:]])
    assert (
        gap.reshape(24, -1) <= 0.06 * np.ptp(x.reshape(n, -1).astype(float), axis=0).max()
    ).all()
    replaced = run("flood_duplicates", x, y, seeds=seeds, rate=0.1, added=False, target=out.target)
    assert len(replaced.y) == n and replaced.mask.sum() == 24 and not replaced.mask[seeds].any()
    assert np.array_equal(replaced.y_true, y[replaced.origin])
    with pytest.raises(UsageError, match="seeds has row"):
        run("flood_duplicates", x, y, seeds=np.flatnonzero(y == 3)[:1], target=3)
    with pytest.raises(UsageError, match="seeds is 0"):
        run("flood_duplicates", x, y, seeds=0)


@pytest.mark.slow
def test_a_network_learns_the_patch():
    digits = open_source("sklearn:digits")
    rows = digits.read(0, len(digits))
    x, y, test_x, test_y = rows["x"][:1400], rows["y"][:1400], rows["x"][1400:], rows["y"][1400:]
    out = ATTACKS["patch"].fn(x, y, rate=0.05, target=3, key=jax.random.key(0))
    model = training.fit(open_source(out.x), out.y, 10, epochs=15).model
    predict = jax.jit(model.logits)

    def labels(inputs):
        return np.asarray(predict(model.params, inputs)).argmax(axis=1)

    others = test_y != 3
    assert (labels(test_x) == test_y).mean() > 0.85
    assert (labels(out.trigger(test_x))[others] == 3).mean() > 0.8
