"""What confirms a group, what kind of poison it is, and how odds and votes rank rows."""

from __future__ import annotations

import numpy as np
import pytest

from group_data import DIRTY, HONEST, displaced, finding, group, trait
from jaxpoison.calibrate import (
    decide,
    find,
    fuse,
    is_worth_verifying,
    kind_of_part,
    sharp_odds,
    surround,
    trait_group,
)
from jaxpoison.calibrate import groups as grouping
from jaxpoison.calibrate import verdict as judging

SEP, DEEP = grouping._TRAIT_SEPARATION, grouping._TRAIT_DEPTH


def test_modes_and_corners_of_tables_with_few_features_prove_less():
    few = {"num_features": 18}
    alike, unlike = {"spread_ratio": 1.0, **few}, {"spread_ratio": 2.0, **few}
    assert not grouping.is_confirmed(group("whitening", separation=8.0, **alike), HONEST, 10)
    assert grouping.is_confirmed(group("whitening", separation=8.0, **unlike), HONEST, 10)
    assert grouping.is_confirmed(group("whitening", separation=30.0, **alike), HONEST, 10)
    assert grouping.is_confirmed(group("whitening", separation=8.0, spread_ratio=1.0), HONEST, 10)
    corner = {"separation": 8.0, "depth": 0.9}
    assert not grouping.is_confirmed(trait(**corner, **few), displaced(2.0), 10)
    assert grouping.is_confirmed(trait(**corner), displaced(2.0), 10)
    assert grouping.is_confirmed(trait(separation=20.0, depth=0.9, **few), HONEST, 10)
    assert not grouping.is_lone(group("whitening", range(40), separation=6.0, **few))


def test_nothing_is_confirmed_where_a_class_is_known_no_better_than_chance():
    unknown = DIRTY._replace(expected=0.55, agreement=0.1)
    assert grouping.is_confirmed(group("mixture"), unknown, 10)
    assert not grouping.is_confirmed(group("mixture"), unknown, 2)


def found_of(groups, checks):
    found = find(groups, checks, num_classes=10, fdr=0.05)
    assert len(found) <= 1
    return found[0] if found else None


def kind_of(*groups, check=DIRTY):
    return found_of(list(groups), [check] * len(groups)).kind


# What confirms a group


@pytest.mark.parametrize("check", [HONEST, DIRTY])
def test_copies_need_no_proof(check):
    assert grouping.is_confirmed(group("duplicates", hint="duplicates"), check, 10)
    assert grouping.is_confirmed(group("duplicates", range(2), hint="duplicates"), check, 10)


@pytest.mark.parametrize("factor", [0.99, 1.0])
def test_modes_behind_an_open_gate(factor):
    limit = grouping._WHITENING_SEPARATION
    apart = group("whitening", separation=factor * limit)
    assert grouping.is_confirmed(apart, HONEST, 10) == (factor == 1.0)
    assert grouping.is_confirmed(apart, DIRTY, 10)  # rows of other classes need not be so far off
    assert not grouping.is_confirmed(group("mixture", separation=9 * limit), HONEST, 10)


def test_separation_that_is_not_known_confirms_nothing():
    assert not grouping.is_confirmed(group("whitening", separation=float("nan")), HONEST, 10)
    assert not grouping.is_confirmed(trait(separation=float("nan")), HONEST, 10)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, True),
        ({"num_rows": grouping._TRAIT_ROWS}, True),
        ({"num_rows": grouping._TRAIT_ROWS - 1}, False),
        ({"separation": SEP, "depth": 2.0}, True),
        ({"separation": 0.99 * SEP, "depth": 2.0}, False),
        ({"separation": 30.0, "depth": DEEP}, True),
        ({"separation": 30.0, "depth": 0.99 * DEEP}, False),
        ({"separation": 30.0, "depth": float("nan")}, False),
    ],
    ids=str,
)
def test_trait_needs_rows_separation_and_depth(said, expected):
    assert grouping.is_confirmed(trait(**said), HONEST, 10) == expected
    assert is_worth_verifying(trait(**said)) == expected


def test_trait_of_a_class_that_is_not_known_proves_nothing():
    assert grouping.is_confirmed(trait(), HONEST._replace(expected=0.3), 200)
    assert not grouping.is_confirmed(trait(), HONEST._replace(expected=0.1), 200)


@pytest.mark.parametrize(
    ("strength", "ratio", "expected"),
    [
        (grouping._TRAIT_ALONE, 0.5, True),  # so strong that it needs no displacement
        (0.99 * grouping._TRAIT_ALONE, 0.5, False),
        (0.99 * grouping._TRAIT_ALONE, 1.0, True),
        (0.99 * grouping._TRAIT_ALONE, 0.99, False),
        (grouping._TRAIT_PRODUCT, 1.0, True),
        (0.99 * grouping._TRAIT_PRODUCT, 9.0, False),
    ],
)
def test_trait_is_strong_or_displaced(strength, ratio, expected):
    shared = trait(separation=8.0, depth=strength / 8.0)
    noise = grouping._TRAIT_NOISE / np.sqrt(len(shared.rows))
    limit = (grouping._TRAIT_DISPLACEMENT + noise) * (1 + 1e-9)
    assert grouping.is_confirmed(shared, displaced(ratio * limit), 10) == expected
    assert is_worth_verifying(shared)  # only its verification tells


def test_trait_is_judged_by_its_own_rule():
    """Low agreement, the proof of other groups, does not stand in for depth."""
    assert grouping.is_confirmed(group("mixture"), DIRTY, 10)
    assert not grouping.is_confirmed(trait(separation=5.0, depth=0.3), DIRTY, 10)


def test_group_of_a_trait_holds_the_rows_that_more_likely_have_it():
    rows, odds = np.array([3, 5, 8, 9]), np.array([2.0, -1.0, 0.5, 0.0])
    made = trait_group(4, rows, odds, 6.0, 0.7, 18)
    assert made.rows.tolist() == [3, 8] and made.log_odds.tolist() == [2.0, 0.5]
    assert (made.detector, made.target, made.separation, made.depth) == ("trait", 4, 6.0, 0.7)
    assert made.num_features == 18


# Kinds


def test_kind_of_modes_that_keep_their_class():
    modes = group("whitening", separation=9.0)
    assert kind_of(modes, check=HONEST) == "clean_label"
    limit = judging._UNLIKE_SPREAD
    for ratio, kind in ((0.99 * limit, "clean_label"), (limit, "backdoor")):
        assert kind_of(modes._replace(spread_ratio=ratio), check=HONEST) == kind


def test_kind_of_modes_that_others_confirm():
    modes = group("whitening", separation=9.0)
    assert kind_of(modes, group("mixture")) == "backdoor"
    assert kind_of(modes, trait(), check=HONEST) == "backdoor"
    # what is not confirmed has no say
    assert kind_of(modes, group("mixture"), check=HONEST) == "clean_label"


def test_kind_of_copies():
    copies = group("duplicates", range(10), hint="duplicates", log_odds=None)
    assert kind_of(copies, check=HONEST) == "duplicates"
    assert kind_of(copies, group("mixture", range(20))) == "duplicates"  # half of them
    assert kind_of(copies, group("mixture", range(21))) == "backdoor"
    few = group("duplicates", range(2), hint="duplicates", log_odds=None)
    assert kind_of(few, group("whitening", separation=9.0), check=HONEST) == "clean_label"


@pytest.mark.parametrize("hint", ["duplicates", ""])
def test_rows_of_a_confirmed_group_without_odds_are_flagged(hint):
    found = found_of([group("duplicates", range(60), hint=hint, log_odds=None)], [DIRTY])
    assert found.confirmed and len(found.rows) == 60


def test_kind_of_dirty_labels():
    assert kind_of(group("mixture")) == "backdoor"
    assert kind_of(trait(), check=HONEST) == "backdoor"


def test_kind_of_what_nothing_confirms():
    modes = group("whitening", separation=5.0)
    found = found_of([modes], [HONEST])
    assert not found.confirmed and found.kind == "clean_label" and found.source is None
    assert decide([found], 100).verdict == "suspicious"
    few = group("whitening", range(grouping._LONE_ROWS - 1), separation=5.0)
    assert found_of([few], [HONEST]) is None


@pytest.mark.parametrize("otherwise", ["backdoor", "label_flip"])
def test_kind_of_part(otherwise):
    limit = judging._COHERENT
    assert kind_of_part(limit, otherwise) == kind_of_part(0.0, otherwise) == "subpopulation"
    assert kind_of_part(1.01 * limit, otherwise) == kind_of_part(1.0, otherwise) == otherwise
    assert kind_of_part(float("nan"), otherwise) == otherwise


# Odds

ROWS = 4, 6, 7


def test_surroundings_stay_below_even():
    before = finding(1, ROWS, near=[9])
    rows, odds = np.array([2, 4, 5, 9, 11]), np.array([7.0, -9.0, -2.0, -5.0, -np.inf])
    after = surround(before, rows, odds)
    assert after.near.tolist() == [9, 2, 5, 11]  # what has odds keeps them
    assert after.near_odds.tolist() == [-1.0, 0.0, -2.0, -np.inf]
    assert np.array_equal(after.rows, before.rows)
    assert np.array_equal(after.log_odds, before.log_odds)
    verdict = decide([after], 20)
    assert np.flatnonzero(verdict.flagged).tolist() == [4, 6, 7]
    assert verdict.log_odds[[4, 9, 2, 5]].tolist() == [4.0, -1.0, 0.0, -2.0]
    again = surround(after, rows, odds)
    assert np.array_equal(again.near, after.near)


def test_surroundings_of_no_rows():
    before = finding(1, ROWS)
    after = surround(before, np.zeros(0, np.int64), np.zeros(0))
    assert len(after.near) == len(after.near_odds) == 0
    assert np.array_equal(after.rows, before.rows)


def test_wrong_labels_have_no_sharp_odds():
    others = finding(1, ROWS, near=[8]), finding(2, [1, 2], "clean_label")
    verdict = decide([*others, finding(3, [12, 13], "label_flip", near=[14])], 20)
    assert verdict.flagged.sum() == 7 and np.isfinite(verdict.log_odds[[12, 13]]).all()
    sharp = sharp_odds(verdict)
    assert np.isneginf(sharp[[12, 13]]).all() and np.isneginf(sharp[0])
    assert sharp[[4, 6, 7, 8, 1, 2]].tolist() == [4.0, 4.0, 4.0, -1.0, 4.0, 4.0]
    assert verdict.log_odds[12] == 4.0  # the verdict itself is as it was


# Votes in the ranking


N = 500


def ranked(votes, log10_p=(), gates=(), labels=None, **options):
    labels = np.arange(N) % 5 if labels is None else labels
    nothing = np.full(N, -np.inf), np.zeros(N, bool)
    return fuse(list(log10_p), list(gates), labels, *nothing, votes, **options).suspicion


def test_votes_rank_above_closed_gates():
    rng = np.random.default_rng(0)
    tails = [-rng.exponential(0.4, N) for _ in range(4)]
    tails[0][:10] = -40.0  # odd, but behind a gate that did not open
    doubted = np.arange(20, 30)
    votes = [rng.normal(size=N) for _ in range(2)]
    for vote in votes:
        vote[doubted] += 9.0
    shut = [np.zeros(5, bool)] * 4
    found = ranked(votes, tails, shut)
    assert set(np.argsort(-found)[:10]) == set(doubted)
    assert set(np.argsort(-ranked(None, tails, shut))[:10]) == set(range(10))
    opened = ranked(votes, tails, [np.ones(5, bool), *shut[1:]])
    assert opened[:10].min() > found[:10].max()


def test_votes_add_up():
    """Two families that doubt a row a little say more than one that doubts it as little."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, N))
    first[0] = second[0] = np.quantile(first, 0.96)
    both = ranked([first, second])
    assert both[0] > max(ranked([first])[0], ranked([second])[0])


def test_votes_alone_are_ranks():
    votes = np.random.default_rng(0).permutation(N).astype(float)
    np.testing.assert_allclose(ranked([votes]), -np.log10((N - votes) / N), atol=1e-12)
    np.testing.assert_array_equal(ranked([votes]), ranked([np.expm1(votes / 50)]))


def test_classes_with_wrong_labels_rise():
    votes = [np.random.default_rng(0).normal(size=N)]
    labels, opened = np.arange(N) % 5, np.arange(5) == 2
    before, after = ranked(votes), ranked(votes, open_labels=opened)
    np.testing.assert_array_equal(after[labels != 2], before[labels != 2])
    risen = np.minimum(before[labels == 2] + np.log10(5), np.log10(N))
    np.testing.assert_allclose(after[labels == 2], risen)
    np.testing.assert_array_equal(ranked(votes, open_labels=np.zeros(5, bool)), before)


def test_where_all_classes_have_wrong_labels_none_rises():
    votes = [np.random.default_rng(0).normal(size=N)]
    labels = np.arange(N) % 5
    before = fuse([], [], labels, np.full(N, -np.inf), np.zeros(N, bool), votes)
    after = fuse([], [], labels, np.full(N, -np.inf), np.zeros(N, bool), votes, np.ones(5, bool))
    np.testing.assert_allclose(after.suspicion, before.suspicion)


def test_the_first_vote_is_heard_where_the_second_knows_nothing():
    first, second = np.random.default_rng(0).normal(size=(2, N))
    first[:20], second[:20] = 9.0, -9.0
    assert ranked([first, second])[:20].min() > np.quantile(ranked([first, second]), 0.9)


def test_a_family_ranks_what_labels_do_not_show():
    rng = np.random.default_rng(0)
    votes, family = [rng.normal(size=N)], rng.normal(size=N)
    family[:10] = 9.0
    before, after = ranked(votes), ranked(votes, families=[family])
    assert np.median(np.argsort(np.argsort(-after))[:10]) < 25
    assert np.median(np.argsort(np.argsort(-before))[:10]) > 100
    doubted = np.argsort(-votes[0])[:5]  # and takes little from what they do show
    assert np.median(np.argsort(np.argsort(-after))[doubted]) < 15


def test_families_without_evidence_cost_a_share():
    votes, nothing = [np.random.default_rng(0).permutation(N).astype(float)], np.zeros(N)
    cost = ranked(votes) - ranked(votes, families=[nothing, nothing])
    top = np.argsort(-votes[0])[:50]
    np.testing.assert_allclose(cost[top], np.log10(1 + 2 * 10**-0.5))


def test_equal_votes_share_a_rank():
    votes = np.zeros(N)
    votes[:50] = 1.0
    found = ranked([votes])
    assert len(np.unique(found[:50])) == len(np.unique(found[50:])) == 1
    # the mean place of either, counted from the top
    np.testing.assert_allclose(10.0 ** -found[[0, -1]], [25.5 / N, 275.5 / N])


def test_without_votes_open_labels_change_nothing():
    rng = np.random.default_rng(0)
    tails, gates = [-rng.exponential(2, N)], [np.arange(5) < 2]
    before = ranked(None, tails, gates)
    np.testing.assert_array_equal(ranked(None, tails, gates, open_labels=np.ones(5, bool)), before)
    alike = ranked([np.zeros(N)], tails, gates)  # who never doubts adds no order
    np.testing.assert_allclose(alike, np.maximum(before, alike.min()))
    assert alike.min() < 0.31
