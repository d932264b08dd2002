"""STRIP: the entropy of each prediction, not of each class over the predictions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import engine_data as data
from jaxpoison._check import UsageError
from jaxpoison.detect.strip import Strip, overlay_rows
from jaxpoison.layout import Layout
from jaxpoison.models import from_function
from jaxpoison.sources import open_source
from jaxpoison.stream import Stage, Stream, make_mesh

KEY, C, TARGET = jax.random.key(0), 4, 1


def _logits(params, x):
    """A template a class, and a trigger in the corner that decides for class 1."""
    x = x.astype(jnp.float32)
    corner = x.reshape(len(x), -1)[:, 0]
    flat = x.reshape(len(x), -1) @ params
    return flat.at[:, TARGET].add(jnp.where(corner > 90.0, 40.0, 0.0))


def _identity(params, x):
    return x


def model_of(side=6, seed=0):
    weights = 0.02 * np.random.default_rng(seed).normal(size=(side * side, C))
    weights[0] = 0.0
    return from_function(params=weights.astype(np.float32), features=_logits, logits=_logits)


def images(n=600, side=6, share=0.1, seed=0):
    """Images whose class is their brightest quadrant; some of class 1 carry a trigger."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % C)
    x = rng.integers(0, 90, (n, side, side))
    half = side // 2
    for c in range(C):
        down, right = (c // 2) * half, (c % 2) * half
        x[y == c, down : down + half, right : right + half] += 60
    x[:, 0, 0] = 0
    mine = np.flatnonzero(y == TARGET)
    planted = np.zeros(n, np.bool_)
    planted[rng.permutation(mine)[: round(share * len(mine))]] = True
    x[planted, 0, 0] = 255
    return x.astype(np.uint8), y, planted


X, Y, PLANTED = images()


def stream_of(x=X, y=Y, num_classes=C):
    return Stream(open_source(x), np.asarray(y, np.int32), num_classes, make_mesh(1))


def oracle(x, y, model, rows):
    """Mean entropy of each row over the overlays of its class, one pair at a time."""
    out = np.zeros(len(x))
    for i, image in enumerate(x):
        for other in rows[y[i]]:
            mixed = (image.astype(float) + x[other].astype(float)) / 2
            if x.dtype == np.uint8:
                mixed = np.round(mixed)  # to even, as jax does
            logits = np.asarray(_logits(model.params, jnp.asarray(mixed[None], x.dtype)), float)[0]
            p = np.exp(logits - logits.max())
            p /= p.sum()
            out[i] -= sum(q * np.log(q) for q in p if q > 0) / len(rows[y[i]])
    return out


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_entropy_is_over_classes_and_then_averaged(dtype):
    x = X[:80].astype(dtype) if dtype is np.uint8 else X[:80].reshape(80, -1).astype(dtype)
    y, model, stream = Y[:80], model_of(), stream_of(x, Y[:80])
    scores = Strip(num_overlays=5, min_rows=2).score(stream, key=KEY, model=model)
    want = oracle(x, y, model, overlay_rows(stream, 5, KEY))
    np.testing.assert_allclose(scores.values, -np.log(want + 1e-6), rtol=1e-4, atol=1e-4)


def test_overlays_are_of_other_classes_in_turn():
    y = np.repeat([0, 1, 3], [300, 9, 40])
    rows = overlay_rows(stream_of(X[: len(y)], y), 6, KEY)
    for c in range(C):
        others = y[rows[c]]
        assert c not in others
        assert np.ptp(np.bincount(others, minlength=C)[np.unique(others)]) <= 0
    assert not np.array_equal(rows, overlay_rows(stream_of(X[: len(y)], y), 6, jax.random.key(1)))


def test_triggered_rows_are_found():
    scores = Strip().score(stream_of(), key=KEY, model=model_of())
    mine = Y == TARGET
    assert data.auroc(scores.values[mine], PLANTED[mine]) > 0.99
    assert (scores.candidates[mine] == PLANTED[mine]).mean() > 0.98
    assert scores.statistic.argmax() == TARGET
    assert scores.values.shape == (600,) and scores.values.dtype == np.float32
    assert scores.null.shape == (C, 0) and scores.statistic.dtype == np.float64
    assert np.isfinite(scores.values).all() and np.isfinite(scores.statistic).all()


@pytest.mark.parametrize("change", ["order", "layout", "devices"])
def test_what_must_not_matter(monkeypatch, change):
    detector, model = Strip(num_overlays=6), model_of()
    first = detector.score(stream_of(), key=KEY, model=model)
    x, y, order = X, Y, np.arange(600)
    if change == "order":
        order = np.random.default_rng(1).permutation(600)
        x, y = X[order], Y[order]
    if change == "layout":
        monkeypatch.setattr(Layout, "of", classmethod(lambda cls, n, b, c: cls(128, 8, 20)))
    again = detector.score(stream_of(x, y), key=KEY, model=model)
    np.testing.assert_allclose(again.values, first.values[order], rtol=1e-4, atol=1e-4)
    mine = y == TARGET
    np.testing.assert_array_equal(again.candidates[mine], first.candidates[order][mine])


def test_same_key_same_bits_and_another_key_much_the_same_ranking():
    model = model_of()
    one, two, other = (
        Strip().score(stream_of(), key=key, model=model) for key in (KEY, KEY, jax.random.key(5))
    )
    np.testing.assert_array_equal(one.values, two.values)
    mine = Y == TARGET
    assert not np.array_equal(one.values, other.values)
    assert scipy.stats.spearmanr(one.values[mine], other.values[mine])[0] > 0.7
    assert data.auroc(other.values[mine], PLANTED[mine]) > 0.99


def test_small_and_empty_classes_and_a_single_one():
    y = Y.copy()
    keep = np.ones(600, np.bool_)
    keep[np.flatnonzero(Y == 3)[5:]] = False
    keep[Y == 0] = False
    scores = Strip().score(stream_of(X[keep], y[keep]), key=KEY, model=model_of())
    assert not scores.values[y[keep] == 3].any() and np.isnan(scores.statistic[[0, 3]]).all()
    mine = y[keep] == TARGET
    assert data.auroc(scores.values[mine], PLANTED[keep][mine]) > 0.95
    alone = Strip().score(stream_of(X[Y == 1], Y[Y == 1]), key=KEY, model=model_of())
    assert not alone.values.any() and np.isnan(alone.statistic).all()
    assert not alone.candidates.any()


def test_rows_all_equal():
    scores = Strip().score(stream_of(np.full_like(X, 7)), key=KEY, model=model_of())
    assert np.isfinite(scores.values).all() and np.isfinite(scores.statistic).all()
    assert not scores.candidates.all()


def test_second_run_compiles_nothing():
    model = model_of()
    Strip().score(stream_of(), key=KEY, model=model)
    before = data.num_compiled()
    x, y, _ = images(seed=3)
    Strip().score(stream_of(x, y), key=jax.random.key(2), model=model_of(seed=4))
    assert data.num_compiled() == before


def test_what_it_can_not_work_with():
    staged = stream_of().through(Stage(_identity, None))
    with pytest.raises(UsageError, match="raw inputs"):
        Strip().score(staged, key=KEY, model=model_of())
    with pytest.raises(UsageError, match="num_overlays is 0"):
        Strip(num_overlays=0).score(stream_of(), key=KEY, model=model_of())
