"""Copies are seen, honest rows and honest ties are not."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import sklearn.datasets
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

import engine_data as data
from jaxpoison.detect.duplicates import NearDuplicates

KEY = jax.random.key(0)


def table(name):
    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    scale = np.where(x.std(axis=0) > 0, x.std(axis=0), 1.0)
    x = x / 16 if name == "digits" else (x - x.mean(axis=0)) / scale
    return x.astype(np.float32), y


def score(x, labels, **knobs):
    return NearDuplicates(**knobs).score(data.stream_of(x, labels), key=KEY)


def with_copies(copies, originals, jitter, labels_too=None, seed=0):
    """Digits with jittered copies of a few of one class; which rows are copies or originals."""
    x, y = table("digits")
    rng = np.random.default_rng(seed)
    few = rng.permutation(np.flatnonzero(y == 2))[:originals]
    rows = np.resize(few, copies)
    new = x[rows] + jitter * rng.normal(size=(copies, x.shape[1]))
    label = y[rows] if labels_too is None else np.resize(labels_too, copies)
    mask = np.zeros(len(x) + copies, np.bool_)
    mask[len(x) :] = True
    mask[few] = True
    return np.concatenate([x, new]).astype(np.float32), np.concatenate([y, label]), mask


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "wine"])
def test_clean_tables_are_left_alone(name):
    x, y = table(name)
    scores = score(x, y)
    assert not scores.candidates.any() and not scores.statistic.any()
    assert not scores.info.sizes.size and (scores.info.group == -1).all()


@pytest.mark.parametrize(
    ("copies", "originals", "jitter"), [(20, 2, 0.02), (60, 5, 0.03), (60, 1, 0.0), (12, 2, 0.0)]
)
def test_copies_are_found(copies, originals, jitter):
    x, labels, mask = with_copies(copies, originals, jitter)
    scores = score(x, labels)
    np.testing.assert_array_equal(scores.candidates, mask)
    assert data.auroc(scores.values, mask) == 1.0
    assert scores.statistic.argmax() == 2
    assert scores.statistic[2] == np.log2(1 + mask.sum())
    assert sorted(scores.info.sizes) == sorted(np.full(originals, 1 + copies // originals))
    assert not scores.statistic[np.arange(10) != 2].any()


def test_groups_are_numbered_as_their_sizes():
    x, labels, _ = with_copies(60, 1, 0.01)
    more = with_copies(12, 1, 0.01, seed=4)
    x, labels = np.concatenate([x, more[0][-12:]]), np.concatenate([labels, more[1][-12:]])
    info = score(x, labels).info
    assert list(info.sizes) == [61, 13]
    assert list(np.bincount(info.group[info.group >= 0])) == [61, 13]


def test_copies_under_another_label_are_one_group():
    x, labels, mask = with_copies(20, 1, 0.01, labels_too=[7])
    scores = score(x, labels)
    np.testing.assert_array_equal(scores.candidates, mask)
    assert list(scores.info.sizes) == [21]
    assert scores.statistic[7] == np.log2(21) and scores.statistic[2] == 1.0


def test_the_score_is_the_formula():
    x, labels, _ = with_copies(20, 2, 0.02)
    values = score(x, labels).values
    distance = cdist(x.astype(np.float64), x.astype(np.float64))
    np.fill_diagonal(distance, np.inf)
    nearest, reach, want = distance.min(axis=1), np.zeros(len(x)), np.zeros(len(x))
    for c in range(10):
        mine = labels == c
        middle, upper = np.quantile(nearest[mine], [0.5, 0.75])
        spread = max(np.log(upper / middle), 0.1)
        want[mine] = np.maximum(np.log(middle / nearest[mine]) / spread, 0)
        reach[mine] = middle * np.exp(-5 * spread)
    joined = distance <= np.minimum(reach[:, None], reach)
    _, group = connected_components(joined, directed=False)
    want += np.log2(np.bincount(group)[group])
    np.testing.assert_allclose(values, want, atol=1e-3)


def test_few_copies_are_no_candidates():
    x, labels, mask = with_copies(3, 1, 0.01)
    scores = score(x, labels)
    assert not scores.candidates.any()
    assert scores.values[mask].min() > np.quantile(scores.values, 0.99)
    assert score(x, labels, least_rows=3).candidates.sum() == 4


def discrete(rows, levels, seed=0):
    """A table of a few small integers in two classes: honest rows that are equal."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, levels, (rows, 6)).astype(np.float32)
    return x, (x[:, 0] + rng.integers(0, 2, rows) > levels / 2).astype(np.int64)


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_honest_ties_are_left_alone(levels):
    x, labels = discrete(1000, levels)
    scores = score(x, labels)
    assert not scores.candidates.any() and not scores.statistic.any()
    assert np.isfinite(scores.values).all()


def test_a_class_of_ties_says_so_and_scores_nothing():
    x, labels = discrete(1000, 2)
    scores = score(x, labels)
    assert scores.info.is_tied.all() and not scores.values.any()


def test_a_large_group_stands_out_of_honest_ties():
    """In a table with a tie structure a group has to be larger than its ties are."""
    x, labels = discrete(1000, 4)
    mine = np.flatnonzero(labels == 1)
    x[mine[:80]] = x[mine[0]]
    scores = score(x, labels)
    assert scores.info.least_rows[1] > 5
    assert scores.candidates[mine[:80]].all() and scores.candidates.sum() <= 90
    assert scores.statistic[1] > 6 and scores.statistic[0] == 0


def test_exact_copies_beyond_the_neighbours_hang_together():
    """80 equal rows and 16 neighbours each: all point at the same few, one group."""
    x, labels, mask = with_copies(80, 1, 0.0)
    scores = score(x, labels, num_neighbours=4)
    assert list(scores.info.sizes) == [81]
    np.testing.assert_array_equal(scores.candidates, mask)
