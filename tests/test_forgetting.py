"""Scans of many rows forget what only detectors share: nothing of the outcome may change by it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

import jaxpoison
from jaxpoison.stream import Stream


def poisoned(is_table):
    x, y = load_digits(return_X_y=True)
    x, y = x[:700].astype(np.float32), y[:700].copy()
    rows = np.flatnonzero(y != 3)[:40]
    x[rows[:, None], [0, 1, 8]] = 16.0
    y[rows] = 3
    return (x if is_table else (15 * x).astype(np.uint8).reshape(-1, 8, 8)), y


@pytest.mark.slow
@pytest.mark.parametrize("is_table", [True, False])
def test_forgetting_changes_no_bit_and_makes_nothing_again(is_table, monkeypatch):
    x, y = poisoned(is_table)
    fold, passes, reports = Stream.fold, [], []

    def counted(stream, of):
        passes[-1][type(of).__name__] += 1
        return fold(stream, of)

    monkeypatch.setattr(Stream, "fold", counted)
    for many in (False, True):
        if many:
            monkeypatch.setattr("jaxpoison.stream._stream._LARGE_BYTES", 1)
        passes.append(Counter())
        reports.append(jaxpoison.scan(x, y, seed=0))
    one, other = reports
    assert one.verdict == other.verdict == "poisoned"
    assert np.array_equal(one.suspicion, other.suspicion)
    assert np.array_equal(one.flagged_indices(), other.flagged_indices())
    for name, values in one.scores.items():
        assert np.array_equal(values, other.scores[name], equal_nan=True), name
    assert passes[0] == passes[1] and passes[0]["ClassGrams"] > 0
