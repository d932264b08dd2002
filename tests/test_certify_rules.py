"""Radii against plain Python on random votes, known values, and relations between the rules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpoison.certify import Votes, certify, votes_of
from jaxpoison.certify.rules import _cells, _counting, _run_off_cells, plurality
from jaxpoison.certify.rules.run_off import eliminated
from vote_oracle import (
    design,
    elected,
    plurality_radius,
    run_off_radius,
    run_off_winner,
    spread_run_off_radius,
    table,
)

examples = settings(max_examples=30, deadline=None, derandomize=True)
SHAPES = [(7, 3, (0,)), (40, 10, (0,)), (12, 3, (0, 5)), (24, 5, (3, 4, 11)), (32, 10, (0, 7))]


def lopsided(members, rows, classes, seed):
    """Scores of few values, so with ties, whose classes differ in how often they lead."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (members, rows, classes))
    return scores + (rng.random((members, rows, classes)) < rng.dirichlet(np.ones(classes) / 2))


def random_votes(members, classes, shifts, seed, rows=60):
    scores = lopsided(members, rows, classes, seed)
    return votes_of(scores=scores, subsets=np.arange(members), design=design(members, shifts))


def orders(votes):
    """[rows][members] orders of the classes as lists, best first."""
    return np.argsort(votes.ranking, axis=2).transpose(1, 0, 2).tolist()


@pytest.mark.parametrize(("members", "classes", "shifts"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_plurality_and_spread_equal_plain_python(members, classes, shifts, seed):
    votes = random_votes(members, classes, shifts, seed)
    made = certify(votes)
    rows = votes.labels.T.tolist()
    assert made.prediction.tolist() == [elected(row, classes) for row in rows]
    assert made.radius.tolist() == [plurality_radius(row, classes, shifts) for row in rows]
    assert made.first.tolist() == [row.count(elected(row, classes)) for row in rows]
    assert made.radius.dtype == np.int64


@pytest.mark.parametrize(("members", "classes", "shifts"), [*SHAPES, (9, 2, (0,)), (8, 2, (1, 4))])
@pytest.mark.parametrize("seed", range(3))
def test_run_off_equals_plain_python(members, classes, shifts, seed):
    votes = random_votes(members, classes, shifts, seed)
    made = certify(votes, "run_off")
    for t, order in enumerate(orders(votes)):
        winner, other = run_off_winner(order, classes)
        if len(shifts) == 1:
            expected = run_off_radius(order, classes)
        else:
            expected = spread_run_off_radius(order, classes, shifts)
        assert (made.prediction[t], made.radius[t]) == (winner, expected)
        labels = [o[0] for o in order]
        assert made.first[t] == labels.count(winner) and made.second[t] == labels.count(other)


@pytest.mark.parametrize("rule", ["plurality", "run_off"])
@pytest.mark.parametrize("shifts", [(0,), (0, 3, 4)])
def test_blocks_do_not_show(rule, shifts, monkeypatch):
    votes = random_votes(300, 4, shifts, 0, rows=37)
    whole = certify(votes, rule)
    for module in (plurality, _run_off_cells):
        monkeypatch.setattr(module, "_ENTRIES", 300 * 5)
    monkeypatch.setattr(_counting, "_ENTRIES", 300 * 5)
    parts = certify(votes, rule)
    np.testing.assert_array_equal(whole.radius, parts.radius)
    np.testing.assert_array_equal(whole.prediction, parts.prediction)


def test_counts_beyond_a_byte_and_labels_beyond_one():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 300, (1000, 5))
    votes = Votes(labels, np.arange(1000), 300, design(1000))
    assert votes.labels.dtype == np.uint16
    expected = [[row.count(a) for a in range(300)] for row in labels.T.tolist()]
    assert _counting.count_votes(votes.labels, 300).tolist() == expected
    hits = rng.random((1000, 7)) < 0.9
    np.testing.assert_array_equal(_counting.count_true(hits), hits.sum(axis=0))


def test_sums_over_a_wide_spread_do_not_wrap():
    shifts = tuple(range(120))
    votes = Votes(np.zeros((240, 2), int), np.arange(240), 2, design(240, shifts))
    expected = plurality_radius([0] * 240, 2, shifts)
    assert certify(votes).radius.tolist() == [expected, expected]
    sums = _cells.cell_sums(np.ones((240, 2), bool), votes.design)
    assert sums.dtype == np.uint16 and (sums == 120).all()


def test_published_values_of_the_first_round():
    """Votes that push a class out, for pairs of gaps: from the published table."""
    for gaps, expected in {(10, 10): 7, (0, 10): 5, (2, 2): 2, (7, 10): 6}.items():
        assert table(*gaps) == expected
    for g1, g2 in itertools.product(range(1, 60), repeat=2):
        counts = np.array([[70 - g1, 70 - g2, 70]])  # the last class loses ties: lead = gap
        assert eliminated(counts, np.array([2]))[0] == table(g1, g2)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.sampled_from([(0,), (0, 1)]))
@examples
def test_run_off_of_two_classes_is_the_plurality(seed, half, shifts):
    votes = random_votes(2 * half, 2, shifts, seed, rows=20)
    one, two = certify(votes), certify(votes, "run_off")
    np.testing.assert_array_equal(one.radius, two.radius)
    np.testing.assert_array_equal(one.prediction, two.prediction)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 6))
@examples
def test_a_spread_of_one_cell_is_the_disjoint_case(seed, members, classes):
    votes = random_votes(members, classes, (0,), seed, rows=20)
    best = certify(votes)
    ahead = _counting.gaps(_counting.count_votes(votes.labels, classes), best.prediction)
    over_cells = plurality.spread_radius(votes.labels, best.prediction, ahead, votes.design)
    np.testing.assert_array_equal(over_cells, best.radius)


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(3, 5))
@examples
def test_run_off_over_single_cells_is_no_looser_than_the_closed_form(seed, members, classes):
    votes = random_votes(members, classes, (0,), seed, rows=10)
    made = certify(votes, "run_off").radius
    for radius, order in zip(made, orders(votes), strict=True):
        assert spread_run_off_radius(order, classes, (0,)) >= radius


@given(st.integers(0, 2**32 - 1))
@examples
def test_one_more_vote_for_the_winner_never_lowers_the_radius(seed):
    votes = random_votes(15, 4, (0,), seed, rows=20)
    made = certify(votes)
    labels = votes.labels.copy()
    loser = np.argmax(labels != made.prediction, axis=0)
    labels[loser, np.arange(20)] = made.prediction
    more = certify(Votes(labels, votes.subsets, 4, votes.design))
    assert (more.radius >= made.radius).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([(0,), (0, 3)]))
@examples
def test_renamed_classes_keep_their_radii_where_nothing_is_tied(seed, shifts):
    """Names decide ties alone, so a radius moves by one at most, and only near a tie."""
    votes = random_votes(30, 4, shifts, seed, rows=30)
    name = np.random.default_rng(seed).permutation(4)
    other = Votes(
        name[votes.labels], votes.subsets, 4, votes.design, votes.ranking[:, :, np.argsort(name)]
    )
    counts = np.sort(_counting.count_votes(votes.labels, 4), axis=1)
    clear = counts[:, -1] - counts[:, -2] >= 2
    one, two = certify(votes), certify(other)
    assert (name[one.prediction[clear]] == two.prediction[clear]).all()
    assert (np.abs(one.radius - two.radius)[clear] <= 1).all()
    even = clear & ((counts[:, -1] - counts[:, -2]) % 2 == 1)
    if shifts == (0,):  # an odd gap leaves a vote over, which is what a tie can cost
        np.testing.assert_array_equal(one.radius[even], two.radius[even])


@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.integers(2, 5))
@examples
def test_a_greedy_adversary_breaks_every_row_with_one_member_more(seed, members, classes):
    """Disjoint plurality: the radius is exact, so r + 1 rewritten members suffice, r do not."""
    votes = random_votes(members, classes, (0,), seed, rows=20)
    made = certify(votes)
    for t in range(20):
        c, fell = made.prediction[t], {}
        for extra in (0, 1):
            fell[extra] = False
            for b in set(range(classes)) - {int(c)}:
                labels = votes.labels[:, t].tolist()
                worth = sorted(range(members), key=lambda i: (labels[i] == b, labels[i] != c))
                for i in worth[: made.radius[t] + extra]:
                    labels[i] = b
                fell[extra] |= elected(labels, classes) != c
        assert fell == {0: False, 1: True}


def rewritten(order, classes, c, rivals, touched):
    """Every touched member puts one of the rivals first, in turn, and c last."""
    rest = [a for a in range(classes) if a != c]
    for turn, i in enumerate(sorted(touched)):
        first = rivals[turn % len(rivals)]
        order[i] = [first, *[a for a in rest if a != first], c]
    return order


@pytest.mark.parametrize("shifts", [(0,), (0, 7), (0, 1, 2), (3, 4, 11)])
def test_no_attack_at_the_radius_turns_a_run_off(shifts):
    """Random and greedy cells, each rewritten for one rival or for two in turn."""
    rng, members, classes = np.random.default_rng(0), 24, 4
    votes = random_votes(members, classes, shifts, 5, rows=40)
    made, turned = certify(votes, "run_off"), 0
    for c, radius, order in zip(made.prediction, made.radius, orders(votes), strict=True):
        held = [sum(order[(h + s) % members].index(c) == 0 for s in shifts) for h in range(members)]
        greedy = sorted(range(members), key=lambda h, held=held: -held[h])
        rivals = [a for a in range(classes) if a != c]
        plans = [[b] for b in rivals] + [list(p) for p in itertools.combinations(rivals, 2)]
        for cells in (greedy, *(rng.permutation(members).tolist() for _ in range(5))):
            for extra, plan in itertools.product((0, 2), plans):
                hit = {(h + s) % members for h in cells[: radius + extra] for s in shifts}
                after = rewritten([list(o) for o in order], classes, int(c), plan, hit)
                fell = run_off_winner(after, classes)[0] != c
                assert extra or not fell
                turned += fell
    assert turned  # two cells more and some rows do fall: the attack is not idle
