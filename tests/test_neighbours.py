"""The neighbour search against a float64 oracle, and the label vote on flips and rare classes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

import engine_data as data
from jaxpoison import kernels
from jaxpoison.detect import neighbours
from jaxpoison.detect.neighbours import KNNDisagreement, class_nearest_rows, nearest_rows
from jaxpoison.kernels import neighbours as _kernel
from jaxpoison.kernels._workloads import draw, small_workloads
from jaxpoison.kernels.neighbours import _width

KEY = jax.random.key(0)
SMALL = [pytest.param(w, id=w.name) for w in small_workloads()]


def ids(x):
    return np.arange(len(x), dtype=np.int32)


def ones(x):
    return np.ones(len(x), np.float32)


def search(x, k, **knobs):
    found = kernels.nearest_neighbours(x, ids(x), x, ones(x), ids(x), num_neighbours=k, **knobs)
    return np.asarray(found.distance2), np.asarray(found.position)


def oracle(x, k):
    """Distances and rows of the k nearest other rows, by scikit-learn in float64."""
    found = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x.astype(np.float64))
    return found.kneighbors()


# The kernel


@pytest.mark.parametrize("workload", SMALL)
def test_the_nearest_rows_are_those_of_scikit_learn(workload):
    x = draw(workload).x
    k = min(16, len(x) - 1)
    distance2, position = search(x, k)
    want, rows = oracle(x, k)
    # a row less the mean is rounded in its last bit, which a difference of two rows shows
    np.testing.assert_allclose(np.sqrt(distance2), want, rtol=2e-6, atol=3e-7 * np.abs(x).max())
    assert (position == rows).mean() > 0.999  # two distances may agree to the last bit


@pytest.mark.parametrize("rows", [3, 64, 131, 1100])
@pytest.mark.parametrize("k", [1, 33])
def test_every_number_of_rows_and_neighbours(rows, k):
    """Strips, their padding and the switch to plain selection, at every size they change at."""
    x = np.random.default_rng(rows).normal(size=(rows, 5)).astype(np.float32)
    distance2, position = search(x, k)
    there = min(k, rows - 1)
    want, _ = oracle(x, there)
    np.testing.assert_allclose(np.sqrt(distance2[:, :there]), want, rtol=1e-5, atol=1e-6)
    assert np.isinf(distance2[:, there:]).all() and (position[:, there:] == -1).all()


def test_a_strip_is_chosen_for_what_is_left_to_look_through():
    for rows in (10, 100, 12_000, 65_536):
        for k in (1, 16, 50):
            width = _width(rows, k)
            assert width & (width - 1) == 0
            assert width == 1 or rows // width >= k  # else the strips hold too few minima


def test_neighbours_that_share_a_strip_are_all_found():
    """All sixteen copies of a row lie in one strip: one minimum stands for all of them."""
    rng = np.random.default_rng(0)
    x = 10 * rng.normal(size=(2048, 4)).astype(np.float32)
    strips = 2048 // _width(2048, 16)
    place = 5 + strips * np.arange(_width(2048, 16))
    x[place] = x[5] + 0.01 * rng.normal(size=(len(place), 4)).astype(np.float32)
    _, position = search(x, 16)
    _, rows = oracle(x, 16)
    assert (np.sort(position[place]) == np.sort(rows[place])).all()


def test_parts_of_the_reference_are_merged(monkeypatch):
    x = np.random.default_rng(1).normal(size=(700, 6)).astype(np.float32)
    whole = search(x, 9)
    monkeypatch.setattr(_kernel, "_REFERENCE_ROWS", 128)
    parts = search(x, 9, block=100)  # another block compiles anew, with the parts
    np.testing.assert_array_equal(whole[1], parts[1])
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-6)


def test_far_rows_do_not_blur_near_distances():
    """A mean of 1000 and copies 0.01 apart: squares of the norms alone would lose them."""
    rng = np.random.default_rng(2)
    x = (1000 + rng.normal(size=(300, 8))).astype(np.float32)
    x[1] = x[0] + np.float32(0.0078125)
    distance2, position = search(x, 1)
    assert position[0, 0] == 1 and position[1, 0] == 0
    np.testing.assert_allclose(distance2[0, 0], 8 * 0.0078125**2, rtol=1e-3)


@pytest.mark.parametrize("garbage", [1e6, np.inf, np.nan])
def test_padding_content_changes_no_bit(garbage):
    x = draw(small_workloads()[0]).x
    mask = (np.arange(len(x)) < 200).astype(np.float32)
    dirty = x.copy()
    dirty[200:] = garbage
    q, i = x[:50], np.full(50, -1, np.int32)
    clean = kernels.nearest_neighbours(q, i, x, mask, ids(x), num_neighbours=4)
    other = kernels.nearest_neighbours(q, i, dirty, mask, ids(x), num_neighbours=4)
    np.testing.assert_array_equal(clean.distance2, other.distance2)
    np.testing.assert_array_equal(clean.position, other.position)
    assert (np.asarray(clean.distance2)[:, 0] < 1e-9).all()  # nothing is left out: itself


def test_vmap_equals_a_loop():
    x = np.random.default_rng(3).normal(size=(3, 90, 4)).astype(np.float32)

    def one(rows):
        return kernels.nearest_neighbours(
            rows, ids(x[0]), rows, ones(x[0]), ids(x[0]), num_neighbours=5
        )

    many = jax.vmap(one)(x)
    for c in range(3):
        np.testing.assert_array_equal(many.position[c], one(x[c]).position)


def test_wrong_shapes_and_knobs_name_the_argument():
    x = np.zeros((5, 2), np.float32)
    with pytest.raises(ValueError, match="num_neighbours and block must be at least 1, got 0"):
        search(x, 0)
    with pytest.raises(ValueError, match=r"queries must be \[q, d\]"):
        kernels.nearest_neighbours(x[:, :1], ids(x), x, ones(x), ids(x), num_neighbours=1)
    with pytest.raises(ValueError, match="query_ids must be"):
        kernels.nearest_neighbours(x, ids(x)[:3], x, ones(x), ids(x), num_neighbours=1)
    with pytest.raises(ValueError, match=r"mask must be \[m\]"):
        kernels.nearest_neighbours(x, ids(x), x, ones(x)[:3], ids(x), num_neighbours=1)


# The shared searches


def test_the_search_of_a_stream_is_that_of_its_rows():
    x, labels, _ = data.planted(n=500)
    found = nearest_rows(data.stream_of(x, labels), 7)
    want, rows = oracle(x, 7)
    np.testing.assert_allclose(found.distance, want, rtol=1e-5)
    np.testing.assert_array_equal(found.rows, rows)


def test_the_search_within_classes():
    x, labels, _ = data.planted(n=500)
    (found,) = class_nearest_rows(data.stream_of(x, labels), 7, 2048, 3)
    for c in range(5):
        mine = np.flatnonzero(labels == c)
        want, rows = oracle(x[mine], 7)
        np.testing.assert_allclose(found.distance[mine], want, rtol=1e-5)
        np.testing.assert_array_equal(found.rows[mine], mine[rows])


def test_draws_of_large_classes_differ_and_are_fixed():
    x, labels, _ = data.planted(n=500)
    one = list(class_nearest_rows(data.stream_of(x, labels), 4, 32, 3))
    two = list(class_nearest_rows(data.stream_of(x, labels), 4, 32, 3))
    assert len(one) == 3
    assert not np.array_equal(one[0].rows, one[1].rows)
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first.rows, second.rows)
        used = [len(np.unique(first.rows[labels == c])) for c in range(5)]
        assert max(used) <= 32
        assert (labels[first.rows] == labels[:, None]).all()


def test_more_rows_than_the_bank_are_searched_in_a_draw(monkeypatch):
    monkeypatch.setattr(neighbours, "_BANK_ROWS", 200)
    monkeypatch.setattr(neighbours, "_CHUNK", 64)
    x, labels, _ = data.planted(n=500)
    found = nearest_rows(data.stream_of(x, labels), 3)
    bank = np.unique(found.rows)
    assert len(bank) <= 200
    distance = np.linalg.norm(x[:, None].astype(np.float64) - x[bank][None], axis=2)
    distance[bank, np.arange(len(bank))] = np.inf
    # rows of the bank that are nobody's neighbour are not among ``bank``, and do not matter
    np.testing.assert_allclose(found.distance, np.sort(distance, axis=1)[:, :3], rtol=1e-4)


def test_many_features_are_projected(monkeypatch):
    x, labels, _ = data.planted(n=400, d=300)
    want = nearest_rows(data.stream_of(x, labels), 5).distance
    monkeypatch.setattr(neighbours, "_MAX_FEATURES", 256)
    got = nearest_rows(data.stream_of(x, labels), 5).distance
    assert not np.array_equal(got, want)
    assert abs(np.median(got / want) - 1) < 0.1


def test_detectors_share_one_search():
    x, labels, _ = data.planted(n=500)
    stream = data.stream_of(x, labels)
    KNNDisagreement().score(stream, key=KEY)
    calls = []
    stream.map = lambda *args: calls.append(args)
    nearest_rows(stream, 16)
    nearest_rows(stream, 3)
    assert not calls


# The vote


def vote(x, labels, i, k):
    """The docstring's formula of one row, with sorted float64 distances."""
    distance = np.linalg.norm(x.astype(np.float64) - x[i], axis=1)
    distance[i] = np.inf
    rows = np.argsort(distance)[:k]
    weight = np.exp(-((distance[rows] / distance[rows].max()) ** 2))
    weight *= k / weight.sum()
    total = np.array([weight[labels[rows] == c].sum() for c in range(labels.max() + 1)])
    density = (total + 2) / (k * np.bincount(labels) / len(labels) + 2)
    others = np.arange(len(total)) != labels[i]
    plain = total[others].max() / (total[labels[i]] + total[others].max())
    seen = others & (total > 0)
    other = density[seen].max() if seen.any() else 0.0
    return min(plain, other / (density[labels[i]] + other))


def test_the_vote_is_the_formula():
    x, labels, _ = data.planted(n=300, d=4, shift=0.0)
    labels = np.where(np.random.default_rng(0).random(300) < 0.2, (labels + 1) % 5, labels)
    values = KNNDisagreement(num_neighbours=8).score(data.stream_of(x, labels), key=KEY).values
    want = [vote(x, labels, i, 8) for i in range(300)]
    np.testing.assert_allclose(values, want, atol=1e-5)


def test_flipped_digits_are_contradicted():
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    flipped = np.zeros(len(y), np.bool_)
    flipped[rng.permutation(len(y))[:90]] = True
    labels = np.where(flipped, (y + rng.integers(1, 10, len(y))) % 10, y)
    x = (x / 16).astype(np.float32)
    clean = KNNDisagreement().score(data.stream_of(x, y), key=KEY)
    scores = KNNDisagreement().score(data.stream_of(x, labels), key=KEY)
    assert data.auroc(scores.values, flipped) > 0.99
    assert clean.statistic.max() <= 0 < np.median(scores.statistic)
    assert clean.info.deep.max() < 0.02 < scores.info.deep.min()


def test_a_rare_class_is_not_suspect_for_being_rare():
    """Rows of a class of one in a hundred, spread thinly through a common one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4040, 3)).astype(np.float32)
    labels = np.repeat([0, 1], [4000, 40])
    values = KNNDisagreement().score(data.stream_of(x, labels), key=KEY).values
    assert (values[labels == 1] < 0.6).all()
    assert np.quantile(values[labels == 0], 0.99) < 0.5
