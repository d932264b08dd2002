"""Gram features against the formula, and what their deviations see."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import engine_data as data
from jaxpoison._check import UsageError
from jaxpoison.detect import gram_powers
from jaxpoison.detect.gram_powers import GramPowers

KEY = jax.random.key(0)


def grams(maps, num_orders):
    """[r, orders * pairs] of maps [r, positions, channels] in float64: power, product, root."""
    upper = np.triu_indices(maps.shape[2])
    out = []
    for p in range(1, num_orders + 1):
        power = maps**p
        gram = np.matmul(np.swapaxes(power, 1, 2), power)
        out.append((np.sign(gram) * np.abs(gram) ** (1 / p))[:, upper[0], upper[1]])
    return np.concatenate(out, axis=1)


def deviations(gram, width):
    """Mean clipped overshoot beyond the bounds, in widths of the bound, of one class."""
    middle = np.median(gram, axis=0)
    mad = np.median(np.abs(gram - middle), axis=0)
    reach = width * np.maximum(mad, 0.05 * mad.mean())
    return np.clip(np.abs(gram - middle) / reach - 1, 0, 10).mean(axis=1)


def correlated(planted_rows, seed=0, n=600, positions=9, channels=4):
    """Maps of two classes; in the planted ones two channels fire at the same positions.

    Which positions fire, and how strongly, is as in honest rows: every channel by itself looks
    the same, and so does its mean.
    """
    rng = np.random.default_rng(seed)
    x = rng.gamma(2.0, size=(n, positions, channels))
    labels = np.arange(n) % 2
    x = np.sort(x, axis=1)
    for row in x:
        for channel in range(channels):
            row[:, channel] = rng.permutation(row[:, channel])
    rows = rng.permutation(np.flatnonzero(labels == 1))[:planted_rows]
    x[rows] = np.sort(x[rows], axis=1)
    mask = np.zeros(n, np.bool_)
    mask[rows] = True
    return x.reshape(n, -1).astype(np.float32), labels, mask


@pytest.mark.parametrize("num_orders", [1, 8])
def test_scores_of_maps_are_the_formula(num_orders):
    x, labels, _ = correlated(20)
    scores = GramPowers(channels=4, num_orders=num_orders).score(data.stream_of(x, labels), key=KEY)
    assert scores.info.orders == tuple(range(1, num_orders + 1)) and scores.info.pairs == 10
    maps = x.astype(np.float64).reshape(len(x), 9, 4)
    maps /= np.sqrt((x.astype(np.float64) ** 2).mean())
    for c in range(2):
        want = deviations(grams(maps[labels == c], num_orders), 3.0)
        np.testing.assert_allclose(scores.values[labels == c], want, rtol=1e-3, atol=1e-4)


def test_scores_of_plain_rows_are_the_formula():
    x, labels, _ = data.planted(n=400, d=7)
    scores = GramPowers().score(data.stream_of(x, labels), key=KEY)
    assert scores.info.orders == (1, 2)
    rows = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    rows /= np.sqrt((rows**2).mean())
    for c in range(5):
        want = deviations(grams(rows[labels == c][:, None], 2), 3.0)
        np.testing.assert_allclose(scores.values[labels == c], want, rtol=2e-3, atol=1e-3)


def test_all_orders_of_a_plain_row_are_the_first_two():
    """With one position the root undoes the power: eight orders carry two matrices."""
    row = np.random.default_rng(0).normal(size=(5, 1, 6))
    all_orders = grams(row, 8).reshape(5, 8, -1)
    for p in range(8):
        np.testing.assert_allclose(all_orders[:, p], all_orders[:, p % 2], rtol=1e-9)


def test_orders_differ_on_maps():
    """Were the power left out, as in one public version, all orders would be roots of one."""
    maps = np.random.default_rng(0).gamma(2.0, size=(40, 9, 4))
    gram = grams(maps, 3).reshape(40, 3, -1)
    assert not np.allclose(gram[:, 2], np.abs(gram[:, 0]) ** (1 / 3), rtol=0.1)
    assert np.abs(gram[:, 2] / gram[:, 0] - 1).mean() > 0.1


def test_channels_that_fire_together_are_seen():
    x, labels, mask = correlated(20, positions=49)
    mine = labels == 1
    scores = GramPowers(channels=4, width=1.0).score(data.stream_of(x, labels), key=KEY)
    assert data.auroc(scores.values[mine], mask[mine]) > 0.9
    assert scores.statistic[1] > scores.statistic[0]


def test_many_features_are_projected():
    x, labels, planted = data.planted(d=150)
    scores = GramPowers().score(data.stream_of(x, labels), key=KEY)
    assert scores.info.pairs == 64 * 65 // 2 and not scores.info.is_sampled
    mine = labels == data.TARGET
    assert data.auroc(scores.values[mine], planted[mine]) > 0.9


def test_many_channels_are_drawn_by_the_key():
    x, labels, _ = data.planted(n=300, d=160)
    stream = data.stream_of(x, labels)
    scores = GramPowers(channels=80).score(stream, key=KEY)
    assert scores.info.pairs == 64 * 65 // 2 and scores.info.is_sampled
    assert np.isfinite(scores.values).all()
    other = GramPowers(channels=80).score(stream, key=jax.random.key(1))
    assert not np.array_equal(scores.values, other.values)


def test_bounds_of_some_rows_are_near_those_of_all(monkeypatch):
    x, labels, _ = data.planted(n=2500)
    whole = GramPowers().score(data.stream_of(x, labels), key=KEY).values
    part = GramPowers(num_sampled=250).score(data.stream_of(x, labels), key=KEY).values
    assert not np.array_equal(whole, part)
    assert np.corrcoef(whole, part)[0, 1] > 0.98


def test_huge_features_do_not_overflow():
    x, labels, _ = data.planted(n=300)
    x[7] = 1e12
    for channels in (None, 6):
        scores = GramPowers(channels=channels).score(data.stream_of(x, labels), key=KEY)
        assert np.isfinite(scores.values).all()
    assert gram_powers._LARGEST ** (2 * GramPowers().num_orders) < np.finfo(np.float32).max / 1e6


def test_channels_must_divide_the_features():
    x, labels, _ = data.planted(n=100)
    with pytest.raises(UsageError, match="channels is 7, rows have 24 features; give a divisor"):
        GramPowers(channels=7).score(data.stream_of(x, labels), key=KEY)
