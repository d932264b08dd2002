"""Certificates against brute force over every profile of votes, and wrong rules that it catches."""

from __future__ import annotations

import numpy as np
import pytest

from jaxpoison.certify import Votes, certify
from jaxpoison.certify.rules._counting import count_votes, gaps, winners
from vote_oracle import (
    all_profiles,
    design,
    exact_plurality_radius,
    exact_radii,
    votes_of_profiles,
)


def profiles(members, classes, rankings=False, shifts=(0,)):
    states, choices = all_profiles(members, classes, rankings)
    return states, choices, votes_of_profiles(states, choices, classes, shifts)


def against_brute_force(rule, members, classes, shifts=(0,)):
    """Certified radii and exact ones of all profiles."""
    _, choices, votes = profiles(members, classes, rule == "run_off", shifts)
    made = certify(votes, rule)
    return made.radius, exact_radii(made.prediction, members, len(choices), shifts)


@pytest.mark.parametrize(
    ("members", "classes"), [(n, 3) for n in range(1, 8)] + [(4, 4), (5, 4), (9, 2), (5, 5)]
)
def test_plurality_is_exact(members, classes):
    radius, exact = against_brute_force("plurality", members, classes)
    np.testing.assert_array_equal(radius, exact)


@pytest.mark.parametrize(
    ("members", "classes", "shifts"),
    [(6, c, s) for c in (2, 3) for s in ((0, 1), (0, 2), (0, 3), (1, 2, 4))]
    + [(8, 3, (0, 1)), (8, 3, (0, 4)), (9, 2, (0, 1, 3))],
)
def test_finite_aggregation_is_sound(members, classes, shifts):
    radius, exact = against_brute_force("plurality", members, classes, shifts)
    assert (radius <= exact).all()
    assert (radius == exact).any() and radius.max() > 0


@pytest.mark.parametrize(
    ("members", "classes", "loose"),
    [(n, 3, 0) for n in range(1, 6)] + [(6, 3, 720), (7, 3, 5040), (4, 4, 864), (8, 2, 0)],
)
def test_run_off_is_sound_and_loose_where_known(members, classes, loose):
    """It bounds the two rounds one by one; 5040 of 279,936 profiles are 1.8 %."""
    radius, exact = against_brute_force("run_off", members, classes)
    assert (radius <= exact).all()
    assert (radius < exact).sum() == loose


@pytest.mark.parametrize("shifts", [(0, 1), (0, 2), (0, 3)])
@pytest.mark.parametrize("classes", [2, 3])
def test_run_off_over_cells_is_sound(classes, shifts):
    radius, exact = against_brute_force("run_off", 6, classes, shifts)
    assert (radius <= exact).all()
    assert (radius == exact).any() and radius.max() > 0


def test_run_off_over_cells_of_four_classes_is_sound():
    radius, exact = against_brute_force("run_off", 4, 4, (0, 1))
    assert (radius <= exact).all()


# Rules seen in public code or easily written, each of which promises too much.


def _radius(votes):
    return certify(votes, "plurality").radius


def loosens_with_the_attack(votes):
    """Certified at r iff the winner has at least n - 2 r votes."""
    first = count_votes(votes.labels, votes.num_classes).max(axis=1)
    exact_at = np.arange(len(votes.labels) + 1)
    certified = first[:, None] >= len(votes.labels) - 2 * exact_at
    return np.where(certified, exact_at, -1).max(axis=1)


def no_tie_rule(votes):
    counts = np.sort(count_votes(votes.labels, votes.num_classes), axis=1)
    return (counts[:, -1] - counts[:, -2]) // 2


def tie_rule_turned_round(votes):
    counts = count_votes(votes.labels, votes.num_classes)
    best = winners(counts)
    own = counts.max(axis=1, keepdims=True)
    ahead = own - counts - (np.arange(votes.num_classes) > best[:, None])
    np.put_along_axis(ahead, best[:, None], len(votes.labels), axis=1)
    return np.maximum(ahead.min(axis=1), 0) // 2


def rounded_up(votes):
    counts = count_votes(votes.labels, votes.num_classes)
    return -(-gaps(counts, winners(counts)).min(axis=1) // 2)


def gap_counted_in_votes(votes):
    """One subset moves the gap by two, not by one."""
    counts = count_votes(votes.labels, votes.num_classes)
    return gaps(counts, winners(counts)).min(axis=1)


def runner_up_of_the_clean_votes_only(votes):
    """The tie of a later runner-up hides an earlier class with as many votes."""
    counts = count_votes(votes.labels, votes.num_classes)
    best = winners(counts)
    rest = counts.copy()
    np.put_along_axis(rest, best[:, None], -1, axis=1)
    last = votes.num_classes - 1 - np.argmax(rest[:, ::-1], axis=1)
    rows = np.arange(len(best))
    return (counts[rows, best] - counts[rows, last] - (last < best)) // 2


def spread_forgotten(votes):
    return _radius(Votes(votes.labels, votes.subsets, votes.num_classes, design(len(votes.labels))))


@pytest.mark.parametrize(
    "wrong",
    [
        loosens_with_the_attack,
        no_tie_rule,
        tie_rule_turned_round,
        rounded_up,
        gap_counted_in_votes,
        runner_up_of_the_clean_votes_only,
    ],
)
def test_wrong_radii_of_a_plurality_are_caught(wrong):
    _, choices, votes = profiles(6, 3)
    exact = exact_radii(certify(votes).prediction, 6, len(choices))
    assert (certify(votes).radius <= exact).all()
    assert (wrong(votes) > exact).any()


def test_a_forgotten_spread_is_caught():
    _, choices, votes = profiles(6, 3, shifts=(0, 1))
    exact = exact_radii(certify(votes).prediction, 6, len(choices), (0, 1))
    assert (certify(votes).radius <= exact).all()
    assert (spread_forgotten(votes) > exact).any()


def test_members_in_the_order_of_a_directory_are_caught():
    """File names sort 0, 1, 10, 11, 2: the cells are then those of another spread."""
    shifts, members = (0, 1, 2, 3), 24
    labels = np.random.default_rng(0).choice(4, (members, 500), p=[0.5, 0.2, 0.15, 0.15])
    right = Votes(labels, np.arange(members), 4, design(members, shifts))
    listed = np.array(sorted(range(members), key=str))
    wrong = Votes(labels[listed], np.arange(members), 4, right.design)
    suspects = np.flatnonzero(_radius(wrong) > _radius(right))[:6]
    exact = [exact_plurality_radius(labels[:, t].tolist(), 4, shifts) for t in suspects]
    assert (_radius(right)[suspects] <= exact).all()
    assert (_radius(wrong)[suspects] > exact).any()
    with_ids = Votes(labels[listed], listed, 4, right.design)
    np.testing.assert_array_equal(_radius(with_ids), _radius(right))


def plurality_margin_called_run_off(votes, made):
    return _radius(votes)


def larger_of_both(votes, made):
    """Both rules agree now; after the attack they need not."""
    agree = certify(votes, "plurality").prediction == made.prediction
    return np.where(agree, np.maximum(made.radius, _radius(votes)), made.radius)


def second_round_only(votes, made):
    rank, rows = votes.ranking, np.arange(len(made.prediction))
    own = rank[:, rows, made.prediction][:, :, None]
    room = 2 * (own < rank).sum(axis=0) - len(rank)
    room = room + (np.arange(votes.num_classes) > made.prediction[:, None])
    room[rows, made.prediction] = 2 * len(rank) + 2
    return -(-room.min(axis=1) // 2) - 1


def first_round_only(votes, made):
    from jaxpoison.certify.rules.run_off import eliminated

    return eliminated(count_votes(votes.labels, votes.num_classes), made.prediction) - 1


def ties_of_the_second_round_forgotten(votes, made):
    from jaxpoison.certify.rules import run_off as r

    counts = count_votes(votes.labels, votes.num_classes)
    winner, other, preferred = r.elect(votes.ranking, counts)
    room = 2 * preferred - len(votes.labels) + 1
    return np.minimum(r.eliminated(counts, winner), r.outrun(counts, winner, other, room)) - 1


def third_class_forgotten(votes, made):
    """Only the two finalists are looked at."""
    rank, rows = votes.ranking, np.arange(len(made.prediction))
    counts = count_votes(votes.labels, votes.num_classes)
    from jaxpoison.certify.rules.run_off import elect

    winner, other, preferred = elect(rank, counts)
    room = 2 * preferred[rows, other] - len(rank) + (other > winner)
    return -(-room // 2) - 1


@pytest.mark.parametrize(
    "wrong",
    [
        plurality_margin_called_run_off,
        larger_of_both,
        second_round_only,
        first_round_only,
        ties_of_the_second_round_forgotten,
        third_class_forgotten,
    ],
)
def test_wrong_radii_of_a_run_off_are_caught(wrong):
    _, choices, votes = profiles(6, 3, rankings=True)
    made = certify(votes, "run_off")
    exact = exact_radii(made.prediction, 6, len(choices))
    assert (made.radius <= exact).all()
    assert (wrong(votes, made) > exact).any()


def test_averaged_scores_do_not_have_the_radius_of_votes():
    """One member with a large score outweighs all others."""
    vectors = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 9, 0)])
    states = np.indices((4,) * 4).reshape(4, -1).T
    soft = np.argmax(vectors[states].sum(axis=1), axis=1)
    first = np.argmax(vectors, axis=1)[states].T
    votes = Votes(first, np.arange(4), 3, design(4))
    exact = exact_radii(soft, 4, 4)
    agree = certify(votes).prediction == soft
    assert (certify(votes).radius[agree] > exact[agree]).any()


def test_ties_broken_at_random_have_no_radius_at_all():
    """Two runs over the same votes must be one function; a drawn tie is none."""
    _, _, votes = profiles(4, 2)
    counts = count_votes(votes.labels, 2)
    tied = counts[:, 0] == counts[:, 1]
    drawn = np.where(tied, 1, np.argmax(counts, axis=1))
    np.testing.assert_array_equal(certify(votes).prediction[tied], 0)
    assert (certify(votes).radius[drawn != certify(votes).prediction] >= 0).any()
