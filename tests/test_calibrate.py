"""Tails, false discovery rates, gates and fusion on hand-made evidence."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from jaxpoison._types import DETECTOR_NAMES, Scores
from jaxpoison.calibrate import benjamini_hochberg, fuse, gate, tail_log10_p
from jaxpoison.calibrate import gates as gating

# Row tails


@pytest.mark.parametrize("seed", range(5))
def test_tail_of_a_normal_is_uniform(seed):
    values = np.random.default_rng(seed).normal(size=8000) * 3 + 7
    p = 10.0 ** tail_log10_p(values, np.zeros(8000, int), 1)
    # centre and sigma come from quantiles of the same 8000 rows: off by about 0.02 at the most
    assert scipy.stats.kstest(p, "uniform").statistic < 0.03
    assert ((p > 0) & (p <= 1)).all()


@pytest.mark.parametrize("df", [5, 20])
def test_tail_of_squared_lengths_is_nearly_uniform(df):
    values = np.random.default_rng(df).chisquare(df, 8000)
    p = 10.0 ** tail_log10_p(values, np.zeros(8000, int), 1)
    assert scipy.stats.kstest(p, "uniform").statistic < 0.04  # the cube root is approximate
    assert (np.argsort(p) == np.argsort(-values)).all()


def test_poison_does_not_widen_its_own_null():
    values = np.random.default_rng(0).normal(size=5000)
    clean = tail_log10_p(values, np.zeros(5000, int), 1)
    dirty = np.r_[values, np.random.default_rng(1).normal(30, 5, 1000)]
    found = tail_log10_p(dirty, np.zeros(6000, int), 1)
    assert np.median(found[5000:]) < -20  # a mean and deviation of all rows would give -1
    p, q = 10.0**clean, 10.0 ** found[:5000]
    assert np.abs(p - q).max() < 0.2 and np.corrcoef(p, q)[0, 1] > 0.99


def test_each_class_has_its_own_tail():
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=3000), np.arange(3000) % 3
    alone = tail_log10_p(values, labels, 3)
    moved = tail_log10_p(values * [1, 50, 0.01][1] + labels * 1e3, labels, 3)
    np.testing.assert_allclose(alone, moved, atol=1e-6)
    assert tail_log10_p(values, labels + 1, 5).shape == (3000,)  # empty classes are passed over


@pytest.mark.parametrize("value", [0.0, -2.5, 7.0])
def test_constant_class_has_no_tail(value):
    values = np.full(50, value, np.float32)
    log10_p = tail_log10_p(values, np.zeros(50, int), 1)
    assert np.ptp(log10_p) == 0 and np.log10(0.5) - 1e-9 <= log10_p[0] <= 0  # no evidence


@pytest.mark.parametrize("values", [[], [1.0], [1e30, -1e30, 0.0], [0, 0, 0, 5.0]])
def test_odd_scores_have_finite_tails(values):
    values = np.array(values, np.float32)
    log10_p = tail_log10_p(values, np.zeros(len(values), int), 1)
    assert np.isfinite(log10_p).all() and (log10_p <= 0).all()


# False discovery rates

p_values = st.lists(st.sampled_from([0.0, 1e-9, 0.001, 0.01, 0.2, 0.5, 0.5000001, 1.0]) |
                    st.floats(0, 1), min_size=1, max_size=40).map(np.array)  # fmt: skip


@settings(max_examples=100, deadline=None, derandomize=True)
@given(p_values)
def test_q_values(p):
    q = benjamini_hochberg(p)
    np.testing.assert_allclose(q, reference.false_discovery(p), rtol=1e-12)
    np.testing.assert_allclose(q, scipy.stats.false_discovery_control(p), rtol=1e-12)
    assert (q >= p * (1 - 1e-12)).all() and (q <= 1).all()  # p n / n rounds
    order = np.argsort(p, kind="stable")
    assert (np.diff(q[order]) >= 0).all()


def test_no_p_values():
    assert benjamini_hochberg(np.zeros(0)).shape == (0,)


# Gates


def scores_of(statistic, null=None):
    statistic = np.asarray(statistic, float)
    null = np.zeros((len(statistic), 0)) if null is None else np.asarray(null, float)
    return Scores(np.zeros(1, np.float32), statistic, null, None, None)


def null_of(count, mean=2.0, spread=0.1, draws=16):
    return mean + spread * np.random.default_rng(0).normal(size=(count, draws))


GATED = [name for name, rule in gating.RULES.items() if 0 < rule.effect < np.inf]
COMPARED = [name for name in GATED if gating.RULES[name].across < np.inf]


@pytest.mark.parametrize("detector", GATED)
def test_absolute_gate(detector):
    effect = gating.RULES[detector].effect
    null = null_of(3, mean=0.1 * effect, spread=0.01 * effect)
    found = gate(detector, scores_of([0.9 * effect, 1.1 * effect, np.nan], null))
    assert found.absolute.tolist() == [False, True, False]  # an effect that counts is needed
    assert not found.across.any() and not found.z.any()  # three classes say nothing across
    wide = null_of(2, mean=2 * effect, spread=0.5 * effect)
    found = gate(detector, scores_of([2.5 * effect, 12 * effect], wide))
    assert found.absolute.tolist() == [False, True]  # and significance
    assert (found.open == found.absolute | found.across).all()


@pytest.mark.parametrize("detector", COMPARED)
def test_gate_across_classes(detector):
    effect = gating.RULES[detector].effect
    usual = effect * np.exp(0.05 * np.random.default_rng(0).normal(size=9))
    found = gate(detector, scores_of([*usual, 20 * effect, np.nan]))
    assert np.flatnonzero(found.across).tolist() == [9] == np.flatnonzero(found.open).tolist()
    assert found.z[9] > gating.RULES[detector].across and found.z[10] == 0
    assert np.isinf(found.threshold).all() and not found.absolute.any()  # it has no null
    tiny = gate(detector, scores_of(np.array([*usual, 20 * effect]) * 1e-3))
    assert not tiny.open.any()  # stands out, but by nothing that counts
    few = gate(detector, scores_of([*usual[:3], 20 * effect, np.nan, np.nan]))
    assert not few.across.any()


def test_equal_classes_are_no_infinite_z():
    found = gate("spectral", scores_of([8.0] * 9 + [8.4]))
    assert np.isfinite(found.z).all() and not found.across.any()


@pytest.mark.parametrize("statistic", [[np.nan] * 6, [0.0] * 6, [-1.0] * 6, []])
def test_gate_of_nothing(statistic):
    null = np.full((len(statistic), 16), np.nan)
    null[np.isfinite(statistic)] = 1.0
    found = gate("mixture", scores_of(statistic, null))
    assert not found.open.any() and len(found.open) == len(statistic)


def test_where_anything_found_is_enough():
    found = gate("duplicates", scores_of([0.0, 2.6, np.nan, 0.0, 0.0, 0.0]))
    assert found.open.tolist() == [False, True, False, False, False, False]
    assert found.threshold[[0, 1]].tolist() == [0.0, 0.0] and not found.z.any()


@pytest.mark.parametrize("detector", sorted(set(gating.RULES) - set(GATED) - {"duplicates"}))
def test_what_only_ranks_opens_no_gate(detector):
    for null in (None, null_of(8), np.full((8, 4), np.nan)):
        found = gate(detector, scores_of([0.0, -1.0, *np.full(5, 1.0), 1e30], null))
        assert not found.open.any() and not found.z.any()
    assert gating.rule_of("user:mine").is_ranking_only
    assert not gate("user:mine", scores_of(np.full(6, 1e30))).open.any()


def test_a_statistic_of_zero_is_usual_for_whitening():
    found = gate("whitening", scores_of([0.0] * 9 + [6.0], null_of(10, 1.0)))
    assert not found.open.any() and not found.z.any()


def test_every_detector_has_a_rule():
    assert set(gating.RULES) == set(DETECTOR_NAMES)


# Fusion


def fused(seed=0, n=400, verified=()):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    log10_p = [np.log10(rng.uniform(1e-6, 1, n)) for _ in range(3)]
    log10_p[0][:5] = -250.0
    log10_p[1][5] = -1e9
    gates = [rng.random(4) < 0.5 for _ in range(3)]
    log_odds = np.full(n, -np.inf)
    log_odds[list(verified)] = np.linspace(-3, 2000, len(verified))
    flagged = np.isfinite(log_odds)
    return log10_p, gates, labels, log_odds, fuse(log10_p, gates, labels, log_odds, flagged)


@pytest.mark.parametrize("seed", range(4))
def test_fused_ranking(seed):
    verified = [7, 100, 250, 399]
    *_, labels, _, out = fused(seed, verified=verified)
    others = np.setdiff1d(np.arange(len(labels)), verified)
    assert out.suspicion[verified].min() > out.suspicion[others].max()
    assert (np.diff(out.suspicion[verified]) > 0).all()  # by their odds
    assert np.isfinite(out.suspicion).all()
    assert ((out.p > 0) & (out.p <= 1)).all() and ((out.q > 0) & (out.q <= 1)).all()
    order = np.argsort(out.p, kind="stable")
    assert (np.diff(out.q[order]) >= 0).all()
    order = np.argsort(-out.suspicion, kind="stable")
    assert (np.diff(out.p[order]) >= 0).all()
    np.testing.assert_allclose(out.q, benjamini_hochberg(out.p))


def test_a_smaller_tail_is_never_less_suspicious():
    log10_p, gates, labels, log_odds, before = fused()
    for i in range(3):
        more = [each.copy() for each in log10_p]
        more[i] = more[i] - 2.0
        after = fuse(more, gates, labels, log_odds, np.zeros(len(labels), np.bool_))
        assert (after.suspicion >= before.suspicion).all()


def test_a_closed_gate_lets_a_row_rise_less_far():
    log10_p, labels = [np.full(2, -30.0)], np.array([0, 1])
    none = np.zeros(2, np.bool_)
    out = fuse(log10_p, [np.array([True, False])], labels, np.full(2, -np.inf), none)
    assert out.suspicion[0] > out.suspicion[1] > 0


def test_more_detectors_without_evidence_cost_a_factor():
    tail, none = np.array([-3.0, -1.0]), np.zeros(2)
    closed, rest = np.array([False]), (np.zeros(2, int), np.full(2, -np.inf), none > 0)
    alone = fuse([tail], [closed], *rest).suspicion
    three = fuse([tail, none, none], [closed] * 3, *rest).suspicion
    np.testing.assert_allclose(alone - three, np.log10(3))


def test_rows_beside_a_verified_group_stay_behind_it():
    tails, odds = [np.full(5, -0.1)], np.array([9.0, -0.1, -2.0, -500.0, -np.inf])
    flagged = np.arange(5) == 0
    out = fuse(tails, [np.array([False])], np.zeros(5, int), odds, flagged)
    assert (np.diff(out.suspicion[:4]) < 0).all()
    assert out.suspicion[3] == out.suspicion[4]  # too far off to be lifted
