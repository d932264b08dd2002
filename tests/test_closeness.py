"""Copies lie closer to each other than honest rows do."""

from __future__ import annotations

import numpy as np
import pytest

from jaxpoison.detect.closeness import FEWEST, closeness


def oracle(x, others):
    def nearest(rows):
        apart = np.linalg.norm(rows[:, None].astype(float) - rows[None], axis=2)
        np.fill_diagonal(apart, np.inf)
        return np.median(apart.min(axis=1))

    return nearest(x) / nearest(others)


def rows(n, seed=0, offset=0.0):
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32) + np.float32(offset)


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_against_the_definition(offset):
    x, others = 0.3 * rows(40, 1) + offset, rows(50, 2, offset)
    assert closeness(x, others) == pytest.approx(oracle(x, others), rel=1e-6)


def test_rows_like_the_others_and_copies():
    assert closeness(rows(200, 1), rows(200, 2)) == pytest.approx(1.0, abs=0.1)
    copies = np.repeat(rows(5, 3), 20, axis=0)
    assert closeness(copies, rows(100)) == pytest.approx(0.0, abs=1e-6)
    assert closeness(copies + 0.01 * rows(100, 4), rows(100)) < 0.1


def test_where_nothing_can_be_said():
    assert np.isnan(closeness(rows(FEWEST - 1), rows(50)))
    assert np.isnan(closeness(rows(50), rows(FEWEST - 1)))
    assert np.isnan(closeness(rows(50), np.ones((50, 6))))
