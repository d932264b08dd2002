"""What holds for every kernel: padding, row order, vmap, tiny classes, compilations, errors."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxpoison import kernels
from jaxpoison.kernels._workloads import WORKLOADS, by_class, draw, small_workloads

KEY = jax.random.key(0)


def padded(x, rows, fill=0.0):
    out = np.full((rows, *x.shape[1:]), fill, x.dtype)
    out[: len(x)] = x
    return out


def ones(x):
    return np.ones(len(x), np.float32)


def run_all(x, mask):
    """Every public kernel on one class: a flat dict of arrays."""
    clusters = kernels.kmeans(x, mask, num_inits=4, key=KEY)
    fit = kernels.trimmed_gaussian(x, mask, keep=0.75)
    entropy = kernels.quantum_entropy_scores(x, mask, fit.mean, fit.whitening)
    scores = kernels.silhouette(x, clusters.labels, mask, block=32)
    return {
        **{f"kmeans.{k}": v for k, v in clusters._asdict().items()},
        **{f"trimmed.{k}": v for k, v in fit._asdict().items()},
        **{f"entropy.{k}": v for k, v in entropy._asdict().items()},
        "silhouette": scores,
    }


@pytest.mark.parametrize("garbage", [1e6, -3e38, np.inf, np.nan])
def test_padding_content_changes_no_bit(garbage):
    x = padded(draw(WORKLOADS[0]).x, 256)
    mask = padded(np.ones(240, np.float32), 256)
    want = run_all(x, mask)
    dirty = x.copy()
    dirty[240:] = garbage
    for name, value in run_all(dirty, mask).items():
        np.testing.assert_array_equal(value, want[name], err_msg=name)
    assert (np.asarray(want["kmeans.labels"])[240:] == -1).all()
    for name in ("trimmed.distance2", "entropy.scores", "silhouette"):
        assert not np.any(want[name][240:]), name


@pytest.mark.parametrize("where", ["amount", "place"])
def test_amount_and_place_of_padding_change_only_rounding(where):
    x = draw(WORKLOADS[0]).x
    want = run_all(x, ones(x))
    rows = np.arange(240)
    if where == "place":
        rows = np.sort(np.random.default_rng(0).permutation(300)[:240])
    wide, mask = np.full((300, 6), 7.0, np.float32), np.zeros(300, np.float32)
    wide[rows], mask[rows] = x, 1
    for name, value in run_all(wide, mask).items():
        value = np.asarray(value)
        value = value[rows] if value.shape[:1] == (300,) else value
        np.testing.assert_allclose(value, want[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_row_order_changes_only_rounding():
    x = draw(WORKLOADS[0]).x
    order = np.random.default_rng(9).permutation(len(x))
    want = run_all(x, ones(x))
    for name, value in run_all(x[order], ones(x)).items():
        expected = np.asarray(want[name])
        expected = expected[order] if expected.shape[:1] == (240,) else expected
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4, err_msg=name)


def test_the_starts_of_kmeans_do_not_depend_on_row_order():
    x = draw(WORKLOADS[0]).x
    for seed in range(4):
        one, two = (
            kernels.kmeans(rows, ones(x), num_inits=1, num_steps=0, key=jax.random.key(seed))
            for rows in (x, x[::-1].copy())
        )
        np.testing.assert_allclose(one.centres, two.centres, rtol=1e-6)


def test_vmap_and_map_equal_a_loop():
    x, mask = by_class(draw(WORKLOADS[1]), padding=5.0)
    mapped = jax.vmap(run_all)(x, mask)
    one_by_one = jax.lax.map(lambda pair: run_all(*pair), (x, mask))
    for c in range(len(x)):
        for name, value in run_all(x[c], mask[c]).items():
            for many in (mapped, one_by_one):
                np.testing.assert_allclose(
                    many[name][c], value, rtol=1e-3, atol=1e-4, err_msg=f"{name} of class {c}"
                )


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_classes_of_hardly_any_rows_are_finite(rows):
    x = padded(draw(WORKLOADS[0]).x[:rows], 8, fill=np.nan)
    got = run_all(x, padded(np.ones(rows, np.float32), 8))
    for name, value in got.items():
        assert np.isfinite(value).all(), name
    assert int(np.sum(got["kmeans.sizes"])) == rows
    assert float(got["kmeans.inertia"]) == 0


def test_the_second_call_compiles_nothing():
    jitted = (
        kernels.kmeans,
        kernels.silhouette,
        kernels.trimmed_gaussian,
        kernels.quantum_entropy_scores,
    )
    x = draw(WORKLOADS[0]).x
    run_all(x, ones(x))
    before = [f._cache_size() for f in jitted]
    assert min(before) > 0
    run_all(x[::-1].copy(), ones(x))
    kernels.trimmed_gaussian(x, ones(x), keep=0.6)  # the fraction is an operand
    assert [f._cache_size() for f in jitted] == before


def test_wrong_shapes_and_knobs_name_the_argument():
    x = np.zeros((5, 2), np.float32)
    with pytest.raises(ValueError, match=r"mask \[m\], got \(5, 2\) and \(4,\)"):
        kernels.kmeans(x, np.ones(4, np.float32), key=KEY)
    with pytest.raises(ValueError, match="num_clusters must be at least 1, got 0"):
        kernels.kmeans(x, ones(x), num_clusters=0, key=KEY)
    with pytest.raises(ValueError, match="block"):
        kernels.silhouette(x, np.zeros(5, np.int32), ones(x), block=0)
    with pytest.raises(ValueError, match="labels must be"):
        kernels.silhouette(x, np.zeros(4, np.int32), ones(x))
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        kernels.trimmed_gaussian(x, ones(x), keep=0.5, num_steps=0)
    with pytest.raises(ValueError, match="k = 2"):
        kernels.quantum_entropy_scores(x, ones(x), np.zeros(3), np.eye(3))


def test_workloads_have_unique_names_and_draw_the_same_arrays_twice():
    assert len({w.name for w in WORKLOADS}) == len(WORKLOADS)
    for workload in small_workloads():
        one, two = draw(workload), draw(workload)
        np.testing.assert_array_equal(one.x, two.x)
        assert one.x.dtype == np.float32 and one.x.shape == (workload.rows, workload.features)
        members = np.bincount(one.label)
        assert len(members) == workload.classes
        assert one.is_planted.sum() == round(workload.planted * members[0])
        assert not one.is_planted[one.label != 0].any()
