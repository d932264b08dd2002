"""Metrics against scikit-learn and against what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from jaxpoison._check import UsageError
from jaxpoison.evaluate.metrics import auroc, average_precision, interval, true_positive_rate


@st.composite
def rankings(draw):
    """Scores with many ties, and a truth of both kinds."""
    n = draw(st.integers(2, 60))
    scores = np.array(draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n)), np.float64)
    truth = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    truth[0], truth[-1] = True, False
    return scores, truth


@settings(max_examples=60, deadline=None)
@given(rankings())
def test_rankings_agree_with_scikit_learn(ranking):
    scores, truth = ranking
    assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    expected = average_precision_score(truth, scores)
    assert average_precision(scores, truth) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.3])
def test_the_rate_agrees_with_the_curve_where_nothing_ties(share):
    rng = np.random.default_rng(0)
    truth = rng.random(700) < 0.1
    scores = rng.normal(size=700) + 1.5 * truth
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert true_positive_rate(scores, truth, share) == pytest.approx(true[false <= share].max())


def test_ties_count_against_the_rate_and_half_for_the_area():
    truth = np.array([True, True, False, False])
    assert true_positive_rate(np.zeros(4), truth, 0.5) == 0.0
    assert auroc(np.zeros(4), truth) == 0.5
    assert average_precision(np.zeros(4), truth) == 0.5
    assert true_positive_rate(np.array([2.0, 1, 1, 0]), truth, 0.0) == 0.5


def test_a_reversed_ranking_is_its_own_complement():
    rng = np.random.default_rng(1)
    scores, truth = rng.integers(0, 5, 200).astype(float), rng.random(200) < 0.2
    assert auroc(scores, truth) + auroc(-scores, truth) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("scores", "truth", "word"),
    [
        ([1.0, 2.0], [True], "shape"),
        ([1.0, 2.0], [1, 0], "bool"),
        ([1.0, np.nan], [True, False], "row 1 is nan"),
        ([1.0, 2.0], [True, True], "2 of 2"),
        ([1.0, 2.0], [False, False], "0 of 2"),
    ],
)
@pytest.mark.parametrize("metric", [auroc, average_precision, true_positive_rate])
def test_what_cannot_be_ranked_is_refused(metric, scores, truth, word):
    with pytest.raises(UsageError, match=word):
        metric(np.array(scores), np.array(truth))


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(UsageError, match="false_positives"):
        true_positive_rate(np.array([1.0, 2.0]), np.array([True, False]), 1.0)


def test_the_interval_is_students():
    values = [0.7, 0.8, 0.75, 0.9]
    low, high = stats.t.interval(
        0.95, 3, loc=np.mean(values), scale=np.std(values, ddof=1) / np.sqrt(4)
    )
    cell = interval(values)
    assert (cell.low, cell.high) == pytest.approx((low, high)) and cell.n == 4
    cut = interval([0.5, 1.0], low=0.0, high=1.0)
    assert (cut.low, cut.high) == (0.0, 1.0)


def test_a_single_value_has_no_interval_and_none_has_no_mean():
    assert interval([0.25]) == (0.25, None, None, 1)
    assert interval([]) is None
