"""Top-k, guarded votes, medians and neighbours: against brute force and plain Python."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxpoison._check import DataError, UsageError
from jaxpoison.certify import (
    General,
    Guarded,
    Keys,
    LabelFlip,
    TopK,
    Votes,
    certify,
    certify_median,
    certify_nearest_neighbours,
    certify_radius_neighbours,
    votes_of,
)
from vote_oracle import (
    all_profiles,
    counts_of,
    design,
    elected,
    exact_radii,
    median_radius,
    top_k_radius,
    votes_of_profiles,
)

SHAPES = [(7, 3, (0,)), (30, 10, (0,)), (12, 4, (0, 5)), (24, 5, (3, 4, 11))]


def lopsided_labels(members, rows, classes, seed):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(classes, 0.5), rows)
    return np.stack([rng.choice(classes, members, p=p) for p in shares], axis=1)


def stays_in_top(states, choices, classes, k, a):
    """Whether class a is among the k first, for every profile; the lower index wins a tie."""
    counts = np.stack([(states == b).sum(axis=1) for b in range(classes)], axis=1)
    own = counts[:, [a]]
    before = (counts > own) | ((counts == own) & (np.arange(classes) < a))
    return before.sum(axis=1) < k


@pytest.mark.parametrize(
    ("members", "classes", "k", "shifts"),
    [(n, 3, k, (0,)) for n in range(1, 8) for k in (1, 2)]
    + [(5, 4, 2, (0,)), (5, 4, 3, (0,)), (6, 4, 2, (0,)), (6, 3, 2, (0, 1)), (6, 3, 2, (0, 3))],
)
def test_top_k_is_sound_and_exact_where_votes_suffice(members, classes, k, shifts):
    states, choices = all_profiles(members, classes, False)
    votes = votes_of_profiles(states, choices, classes, shifts)
    for a in range(classes):
        made = certify(votes, TopK(k, np.full(len(states), a)))
        inside = stays_in_top(states, choices, classes, k, a)
        exact = exact_radii(inside.astype(int), members, classes, shifts)
        np.testing.assert_array_equal(made.radius >= 0, inside)
        assert (made.radius <= exact)[inside].all()
        if shifts == (0,) and members >= k:  # with fewer votes than rivals, one must be robbed
            np.testing.assert_array_equal(made.radius[inside], exact[inside])


@pytest.mark.parametrize(("members", "classes", "shifts"), SHAPES)
@pytest.mark.parametrize("k", [1, 2])
def test_top_k_equals_plain_python(members, classes, shifts, k):
    labels = lopsided_labels(members, 60, classes, k)
    votes = Votes(labels, np.arange(members), classes, design(members, shifts))
    of = np.random.default_rng(1).integers(0, classes, 60)
    made = certify(votes, TopK(k, of))
    rows = zip(labels.T.tolist(), of.tolist(), strict=True)
    assert made.radius.tolist() == [top_k_radius(row, classes, k, a, shifts) for row, a in rows]
    if k == 1 and shifts == (0,):
        np.testing.assert_array_equal(certify(votes, TopK(1)).radius, certify(votes).radius)


def test_published_value_of_top_k():
    """Four votes for class 1, eight for 3, three for 6, of ten classes: 3 stays among two."""
    labels = np.array([1] * 4 + [3] * 8 + [6] * 3)[:, None]
    made = certify(Votes(labels, np.arange(15), 10, design(15)), TopK(2, np.array([3])))
    assert made.radius[0] == 3 and made.first[0] == 8 and made.second[0] == 3


def guarded_brute_force(members, classes, shifts=(0,)):
    """Every profile with every set of guarded members: certified and exact radii."""
    states, choices = all_profiles(members, classes, False)
    for guarded in itertools.product([False, True], repeat=members):
        margins = np.where(np.array(guarded), 0.4, 0.6)[:, None] + np.zeros(len(states))
        plain = votes_of_profiles(states, choices, classes, shifts)
        votes = Votes(plain.labels, plain.subsets, classes, plain.design, None, margins)
        made = certify(votes, Guarded(0.5))
        table = made.prediction.reshape((classes,) * members)
        exact = np.full(table.shape, members)
        for touched in itertools.product([False, True], repeat=members):
            cells = [h for h in range(members) if touched[h]]
            hit = {(h + s) % members for h in cells for s in shifts}
            axes = tuple(i for i in range(members) if guarded[i] or i in hit)
            if axes:
                low, high = table.min(axis=axes, keepdims=True), table.max(axis=axes, keepdims=True)
                falls = (low != table) | (high != table)
                exact = np.where(falls, np.minimum(exact, len(cells) - 1), exact)
        yield votes, made, exact.ravel()


@pytest.mark.parametrize(("members", "classes", "shifts"), [(5, 3, (0,)), (4, 3, (0, 1))])
def test_guarded_votes_may_change_at_will(members, classes, shifts):
    unguarded_is_wrong = False
    for votes, made, exact in guarded_brute_force(members, classes, shifts):
        assert (made.radius <= exact).all()
        if shifts == (0,):
            np.testing.assert_array_equal(made.radius, exact)
        unguarded_is_wrong |= bool((certify(votes).radius > exact).any())
    assert unguarded_is_wrong


def test_guarded_votes_equal_the_formula():
    rng = np.random.default_rng(0)
    labels = lopsided_labels(21, 50, 4, 0)
    margins = rng.random((21, 50)).astype(np.float32)
    margins[0], margins[1] = np.nan, -np.inf
    votes = Votes(labels, np.arange(21), 4, design(21), None, margins)
    for abstain in (False, True):
        made = certify(votes, Guarded(0.2, abstain))
        for t in range(50):
            firm = [x for x, g in zip(labels[:, t], margins[:, t], strict=True) if g > 0.2]
            c = elected(firm if abstain else labels[:, t].tolist(), 4)
            counts = counts_of(firm, 4)
            rival = max(counts[b] + (b < c) for b in range(4) if b != c)
            expected = max(-1, (counts[c] - rival - (21 - len(firm))) // 2)
            assert (made.prediction[t], made.radius[t]) == (c, expected)
            assert made.first[t] == counts[c]


def test_a_guard_without_members_below_it_changes_nothing():
    scores = np.random.default_rng(0).normal(size=(24, 40, 5))
    for shifts in ((0,), (0, 7)):
        votes = votes_of(scores=scores, subsets=np.arange(24), design=design(24, shifts))
        made = certify(votes, Guarded(1e-9))
        np.testing.assert_array_equal(made.radius, certify(votes).radius)
        assert made.rule == "plurality, guarded up to 1e-09"


def test_a_margin_of_tau_itself_is_guarded():
    """Three scores of (0, 1) that move by half are ties, which go to class 0."""
    scores = np.tile([0.0, 1.0], (3, 1, 1))
    votes = votes_of(scores=scores, subsets=np.arange(3), design=design(3))
    assert certify(votes, Guarded(1.0)).radius[0] == -1
    assert certify(votes, Guarded(0.99)).radius[0] == 1


@pytest.mark.parametrize(
    ("members", "shifts"),
    [(n, (0,)) for n in range(1, 7)] + [(4, (0, 1)), (6, (0, 1)), (6, (0, 2)), (6, (1, 2, 5))],
)
def test_median_stays_in_its_interval(members, shifts):
    states, _ = all_profiles(members, 4, False)
    for low, high in [(1, 2), (0, 2), (2, 2)]:
        made = certify_median(
            states.T.astype(float),
            subsets=np.arange(members),
            design=design(members, shifts),
            low=low,
            high=high,
        )
        inside = (made.prediction >= low) & (made.prediction <= high)
        exact = exact_radii(inside.astype(int), members, 4, shifts)
        assert (made.radius <= exact)[inside].all()
        if shifts == (0,) and low > 0:  # no profile has a value below 0
            np.testing.assert_array_equal(made.radius[inside], exact[inside])
        np.testing.assert_array_equal(made.radius >= 0, inside)


@pytest.mark.parametrize(
    ("members", "shifts"), [(9, (0,)), (16, (0,)), (12, (1, 5)), (30, (0, 2, 9))]
)
def test_median_equals_plain_python(members, shifts):
    values = np.random.default_rng(members).normal(size=(members, 40)).round(1)
    at = {"subsets": np.arange(members), "design": design(members, shifts)}
    made = certify_median(values, within=0.5, **at)
    for t, column in enumerate(values.T.tolist()):
        middle = sorted(column)[(members - 1) // 2]
        assert made.prediction[t] == middle
        expected = median_radius(column, middle - 0.5, middle + 0.5, shifts)
        assert made.radius[t] == expected
    shuffled = np.random.default_rng(0).permutation(members)
    at["subsets"] = shuffled
    np.testing.assert_array_equal(
        certify_median(values[shuffled], within=0.5, **at).radius, made.radius
    )


def nearest(rows, k, classes):
    """Counts of the k nearest to 0, ties by content."""
    order = sorted(rows, key=lambda row: (abs(row[0]), row))
    return [[y for _, y in order[:k]].count(a) for a in range(classes)]


def changed(rows, universe):
    """All training sets one change away, by kind."""
    rest = [(rows[:i] + rows[i + 1 :], rows[i]) for i in range(len(rows))]
    yield "insert", [(*rows, u) for u in universe]
    yield "delete", [less for less, _ in rest]
    yield "modify", [(*less, u) for less, _ in rest for u in universe]
    yield "flip", [(*less, (old[0], y)) for less, old in rest for y in range(3)]


@pytest.mark.parametrize("seed", range(12))
def test_neighbours_against_every_training_set_two_changes_away(seed):
    universe = [(x, y) for x in (-1, 0, 2, 3) for y in range(3)]
    rng = np.random.default_rng(seed)
    rows = tuple(universe[i] for i in rng.choice(12, 7, p=np.repeat([0.1, 0.1, 0.5, 0.3], 3) / 3))
    order = sorted(rows, key=lambda row: (abs(row[0]), row))
    by_k = certify_nearest_neighbours(np.array([[y for _, y in order[:5]]]), num_classes=3)
    within = [[y for x, y in rows if abs(x) <= 2].count(a) for a in range(3)]
    by_radius = certify_radius_neighbours(np.array([within]))
    frontier = {tuple(sorted(rows)): dict.fromkeys(("k", "radius"), 0)}
    for _ in range(2):
        following = {}
        for old, spent in frontier.items():
            for kind, sets in changed(old, universe):
                for new in sets:
                    key = tuple(sorted(new))
                    cost = {
                        "k": spent["k"] + by_k.costs[kind],
                        "radius": spent["radius"] + by_radius.costs[kind],
                    }
                    best = following.setdefault(key, cost)
                    following[key] = {n: min(best[n], cost[n]) for n in cost}
        for new, spent in following.items():
            if spent["k"] <= by_k.radius[0]:
                counts = nearest(new, 5, 3)
                assert counts.index(max(counts)) == by_k.prediction[0]
            if spent["radius"] <= by_radius.radius[0]:
                counts = [[y for x, y in new if abs(x) <= 2].count(a) for a in range(3)]
                assert counts.index(max(counts)) == by_radius.prediction[0]
        frontier = following


def test_neighbours_equal_their_formulas():
    labels = lopsided_labels(11, 50, 4, 0).T
    made = certify_nearest_neighbours(labels, num_classes=4, threat=LabelFlip())
    counts = np.array([counts_of(row, 4) for row in labels.tolist()])
    by_radius = certify_radius_neighbours(counts)
    for t, row in enumerate(counts.tolist()):
        a = row.index(max(row))
        closest = min(row[a] - row[b] + (a < b) for b in range(4) if b != a)
        assert made.radius[t] == -(-closest // 2) - 1
        assert by_radius.radius[t] == closest - 1
    assert made.costs == {"flip": 1} and made.design is None
    assert by_radius.costs["modify"] == 2


def test_what_these_rules_refuse():
    votes = Votes(np.zeros((4, 2), int), np.arange(4), 3, design(4))
    with pytest.raises(UsageError, match="needs votes with margins"):
        certify(votes, Guarded(0.1))
    with pytest.raises(UsageError, match="tau is 0"):
        Guarded(0)
    with pytest.raises(UsageError, match="k is 0"):
        TopK(0)
    with pytest.raises(UsageError, match="3 classes"):
        certify(votes, TopK(3))
    with pytest.raises(UsageError, match="2 test rows"):
        certify(votes, TopK(1, np.zeros(3, int)))
    with pytest.raises(DataError, match="classes 0 to 2"):
        certify(votes, TopK(1, np.array([0, 3])))
    at = {"subsets": np.arange(4), "design": design(4)}
    with pytest.raises(UsageError, match="either within"):
        certify_median(np.zeros((4, 2)), **at)
    with pytest.raises(UsageError, match="low is above high"):
        certify_median(np.zeros((4, 2)), low=1, high=0, **at)
    with pytest.raises(UsageError, match="within is -1"):
        certify_median(np.zeros((4, 2)), within=-1, **at)
    with pytest.raises(DataError, match="not a number"):
        certify_median(np.full((4, 2), np.nan), within=1, **at)
    with pytest.raises(UsageError, match="lack id 3"):
        certify_median(np.zeros((3, 2)), within=1, subsets=np.arange(3), design=design(4))
    with pytest.raises(UsageError, match="sorted position"):
        certify_median(
            np.zeros((4, 2)),
            within=1,
            subsets=np.arange(4),
            design=design(4, covers="sorted position"),
            threat=General(),
        )
    with pytest.raises(UsageError, match="Keys has no meaning"):
        certify_radius_neighbours(np.zeros((2, 2), int), threat=Keys())
    with pytest.raises(DataError, match="classes 0 to 1"):
        certify_nearest_neighbours(np.full((2, 2), 2), num_classes=2)
