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


@pytest.mark.parametrize(("bases", "times"), [(400, 5), (2, 1000)])
def test_copies_are_found_among_many_rows(bases, times):
    """Each row has few copies; those that are asked are held against all rows."""
    rng = np.random.default_rng(7)
    copies = rng.permutation(np.repeat(rows(bases, 3), times, axis=0))
    copies = copies + 0.01 * rows(len(copies), 4)
    assert closeness(copies, rows(len(copies), 5)) < 0.2


def test_where_nothing_can_be_said():
    assert np.isnan(closeness(rows(FEWEST - 1), rows(50)))
    assert np.isnan(closeness(rows(50), rows(FEWEST - 1)))
    assert np.isnan(closeness(rows(50), np.ones((50, 6))))
