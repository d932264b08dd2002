"""Rows of many classes under one shift scatter like the class means; rows of one class do not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import engine_data as data
from jaxpoison.detect import _class_mixture
from jaxpoison.detect._class_mixture import ClassMixture

CLASSES, FEATURES = 30, 20
SHIFT = 8.0 * np.eye(FEATURES)[3]


def made(seed=0, per=80, spread=1.2):
    rng = np.random.default_rng(seed)
    means = spread * rng.normal(size=(CLASSES, FEATURES))
    labels = rng.permutation(np.arange(per * CLASSES) % CLASSES)
    x = means[labels] + rng.normal(size=(len(labels), FEATURES))
    return x.astype(np.float32), labels, means, rng


def tools(x, labels):
    return ClassMixture.of(data.stream_of(x, labels))


def test_gain_of_rows_of_all_classes_under_a_shift():
    x, labels, means, rng = made()
    classes = tools(x, labels)
    other = rng.integers(1, CLASSES, 60)
    planted = means[other] + rng.normal(size=(60, FEATURES)) + SHIFT
    honest = means[0] + 1.3 * rng.normal(size=(60, FEATURES)) + SHIFT
    rest = x[labels == 0]
    gain, error = classes.gain(planted, rest, 0)
    assert gain > 4 * error > 0
    none, error = classes.gain(honest, rest, 0)
    assert none < -4 * error < 0


def test_gain_is_its_definition():
    x, labels, means, rng = made(seed=1)
    classes = tools(x, labels)
    rows = means[rng.integers(1, CLASSES, 50)] + rng.normal(size=(50, FEATURES)) + SHIFT
    rest = x[labels == 0].astype(np.float64)
    got, error = classes.gain(rows, rest, 0)
    axes = classes.axes.astype(np.float64)
    y = (rows - rows.mean(axis=0)) @ axes.T * np.sqrt(50 / 49)
    spread = ((rest - rest.mean(axis=0)) @ axes.T).var(axis=0)
    spread = (spread * len(rest) + 10) / (len(rest) - 1 + 10)
    share = np.bincount(labels)[1:] / (labels > 0).sum()
    centres = np.array([x[labels == c].mean(axis=0, dtype=np.float64) for c in range(1, CLASSES)])
    centres = centres @ axes.T
    centres -= share @ centres
    best = []
    for places, weights in ((centres, share), (np.zeros((1, y.shape[1])), np.ones(1))):
        each = [
            logsumexp(
                [
                    np.log(w) + multivariate_normal(p, np.diag(scale * spread)).logpdf(y)
                    for p, w in zip(places, weights, strict=True)
                ],
                axis=0,
            )
            for scale in np.geomspace(0.25, 8.0, 13)
        ]
        best.append(max(each, key=np.mean))
    want = best[0] - best[1]
    assert got == pytest.approx(want.mean(), rel=1e-3, abs=1e-3)
    assert error == pytest.approx(want.std(ddof=1) / np.sqrt(50), rel=1e-2)


def test_a_shift_of_the_group_and_of_the_data_changes_nothing():
    x, labels, means, rng = made(seed=2)
    rows = (means[rng.integers(1, CLASSES, 40)] + rng.normal(size=(40, FEATURES))).astype(
        np.float32
    )
    classes, rest = tools(x, labels), x[labels == 0]
    first = classes.gain(rows, rest, 0)
    assert classes.gain(rows + SHIFT, rest, 0) == pytest.approx(first, rel=1e-4)
    moved = tools(x + 5.0, labels)
    assert moved.gain(rows + 5.0, rest + 5.0, 0) == pytest.approx(first, rel=1e-2, abs=1e-2)


def test_where_nothing_can_be_told():
    x, labels, _, _ = made()
    classes, rest = tools(x, labels), x[labels == 0]
    for rows, others in ((rest[:1], rest), (rest[:9], rest[:3])):
        assert np.isnan(classes.gain(rows, others, 0)).all()
    two = labels % 2
    assert np.isnan(tools(x, two).gain(x[:9], x[two == 0], 0)).all()


def test_of_large_groups_an_even_subset_speaks(monkeypatch):
    x, labels, means, rng = made()
    rows = means[rng.integers(1, CLASSES, 400)] + rng.normal(size=(400, FEATURES))
    classes, rest = tools(x, labels), x[labels == 0]
    monkeypatch.setattr(_class_mixture, "_MOST_ROWS", 100)
    assert classes.gain(rows, rest, 0) == classes.gain(rows[::4], rest, 0)
