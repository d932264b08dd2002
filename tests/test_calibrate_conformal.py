"""p-values against trusted rows: what they promise is measured, and what they flag."""

from __future__ import annotations

import numpy as np
import pytest

from group_data import finding
from jaxpoison.calibrate import (
    MIN_TRUSTED,
    Fused,
    against_trusted,
    conformal_p,
    conformal_q,
    decide,
)

CLASSES = 4


def mix(seed, rate, n=4000, share_trusted=0.5, shift=3.5):
    """Suspicion of honest and shifted rows, each class on its own scale; labels, trust, truth."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    bad = rng.random(n) < rate
    trusted = ~bad & (rng.random(n) < share_trusted)
    suspicion = (rng.normal(size=n) + shift * bad) * (1 + labels) + 5 * labels
    return suspicion, labels, trusted, bad


def slow_p(suspicion, labels, trusted):
    """The definition, row by row."""
    p = []
    for i, s in enumerate(suspicion):
        known = trusted & (labels == labels[i])
        known = known if known.sum() >= MIN_TRUSTED else trusted
        known = known & (np.arange(len(labels)) != i)
        p.append((1 + (suspicion[known] >= s).sum()) / (1 + known.sum()))
    return np.array(p)


@pytest.mark.parametrize("is_tied", [False, True])
def test_p_is_its_definition(is_tied):
    suspicion, labels, trusted, _ = mix(0, 0.1, n=300)
    labels[labels == 3] = np.where(np.arange((labels == 3).sum()) < 30, 3, 2)  # class 3 is pooled
    assert 0 < (trusted & (labels == 3)).sum() < MIN_TRUSTED
    if is_tied:
        suspicion = np.round(suspicion / 4)
    np.testing.assert_array_equal(
        conformal_p(suspicion, labels, trusted), slow_p(suspicion, labels, trusted)
    )


def test_honest_p_values_are_not_too_small():
    below = {0.01: [], 0.05: [], 0.2: []}
    for seed in range(40):
        suspicion, labels, trusted, _ = mix(seed, 0.0)
        p = conformal_p(suspicion, labels, trusted)
        for level, shares in below.items():
            shares.append((p[~trusted] <= level).mean())
            # a trusted row is left out of its own comparison: it is like any other honest row
            assert (p[trusted] <= level).mean() <= level
    for level, shares in below.items():
        noise = 4 * np.std(shares) / np.sqrt(len(shares))
        assert np.mean(shares) <= level + noise
        assert np.mean(shares) >= 0.7 * level  # and not idle


@pytest.mark.parametrize("fdr", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_a_requested_rate_of_false_alarms_is_kept(rate, fdr):
    false, found = [], []
    for seed in range(50):
        suspicion, labels, trusted, bad = mix(seed, rate)
        called = conformal_q(conformal_p(suspicion, labels, trusted), trusted) <= fdr
        assert not called[trusted].any()
        false.append((called & ~bad).sum() / max(called.sum(), 1))
        found.append(called[bad].mean())
    assert np.mean(false) <= fdr
    assert np.mean(found) > (0.3 if rate == 0.05 else 0.7)  # by calling rows, not by silence


def test_nothing_planted_is_rarely_called():
    calls = []
    for seed in range(50):
        suspicion, labels, trusted, _ = mix(seed, 0.0)
        calls.append((conformal_q(conformal_p(suspicion, labels, trusted), trusted) <= 0.1).any())
    assert np.mean(calls) <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 50)  # binomial, three deviations


def judged(findings, suspicion, labels, trusted, fdr=0.05):
    fused = Fused(suspicion, np.ones(len(labels)), np.ones(len(labels)))
    return against_trusted(decide(findings, len(labels)), fused, labels, trusted, fdr)


@pytest.fixture
def rows():
    """400 rows of two classes, every fourth trusted, suspicion without meaning."""
    n = 400
    labels = np.repeat([0, 1], n // 2)
    suspicion = np.random.default_rng(0).random(n)
    return suspicion, labels, np.arange(n) % 4 == 0


def test_trusted_rows_are_never_flagged(rows):
    suspicion, labels, trusted = rows
    suspicion[:8] = 50.0 + np.arange(8)
    inside = [0, 4, *np.flatnonzero(~trusted)[:30]]  # two trusted rows that look like the rest
    planted = finding(0, np.sort(inside), near=range(40, 60))
    verdict, fused = judged([planted], suspicion, labels, trusted)
    (found,) = verdict.findings
    assert not trusted[found.rows].any() and not trusted[found.near].any()
    assert len(found.rows) == len(found.log_odds) == len(found.support) == 30
    assert len(found.near) == len(found.near_odds) == 15
    assert np.array_equal(np.flatnonzero(verdict.flagged), found.rows)
    assert verdict.verdict == "poisoned"
    assert np.array_equal(fused.suspicion, suspicion)  # the ranking stays
    assert (fused.q[trusted] == 1).all()


def test_a_finding_that_trusted_rows_contradict_is_dropped(rows):
    suspicion, labels, trusted = rows
    honest = finding(0, range(100))  # takes in half of the trusted rows of its class
    poison = finding(1, [*range(201, 300, 4), *range(202, 300, 4), 204])  # one of them
    verdict, _ = judged([honest, poison], suspicion, labels, trusted)
    assert [f.target for f in verdict.findings] == [1]
    assert verdict.flagged.sum() == 50 and not verdict.flagged[:200].any()
    verdict, _ = judged([honest], suspicion, labels, trusted)
    assert verdict.verdict == "clean" and verdict.p_poisoned == 0
    verdict, _ = judged([finding(0, range(0, 200, 4))], suspicion, labels, trusted)
    assert verdict.findings == ()  # of trusted rows only


def test_rows_beyond_all_trusted_ones_are_suspicious():
    suspicion, labels, trusted, bad = mix(3, 0.2, shift=9.0)
    verdict, fused = judged([], suspicion, labels, trusted)
    assert verdict.verdict == "suspicious" and verdict.findings == ()
    assert np.array_equal(verdict.flagged, fused.q <= 0.05)
    assert verdict.flagged[bad].mean() > 0.9
    assert 0 < verdict.p_poisoned <= 1 and 0 < verdict.estimated_rate <= 1
    assert 0 < verdict.expected_fdr <= 0.05
    mine = np.flatnonzero(bad & (labels == 0))
    both, _ = judged([finding(0, mine)], suspicion, labels, trusted)
    assert both.verdict == "poisoned" and (both.flagged >= verdict.flagged).all()
    assert both.p_poisoned > verdict.p_poisoned


def test_a_class_without_trusted_rows_and_one_of_a_row():
    labels = np.r_[np.zeros(100, int), np.ones(50, int), [2]]
    trusted = np.arange(151) < 60
    suspicion = np.r_[np.zeros(100), np.full(50, 9.0), [1.0]]
    p = conformal_p(suspicion, labels, trusted)
    assert (p[100:] == 1 / 61).all() and (p[:100] == 1).all()
    assert np.isfinite(conformal_q(p, trusted)).all()
