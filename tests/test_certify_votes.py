"""Votes, threats and certificates as types: what they refuse and what they say of themselves."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from jaxpoison._check import DataError, UsageError
from jaxpoison.certify import General, Keys, LabelFlip, Votes, certify, votes_of
from jaxpoison.certify._types import Design
from jaxpoison.certify.ranking import margins_of, rank_classes
from jaxpoison.certify.votes import sum_scores
from vote_oracle import design


def some_votes(members=6, rows=4, classes=3, seed=0, **design_of):
    scores = np.random.default_rng(seed).normal(size=(members, rows, classes))
    return votes_of(scores=scores, subsets=np.arange(members), design=design(members, **design_of))


@pytest.mark.parametrize(
    ("subsets", "said"),
    [
        ([0, 1, 2, 2, 4, 5], "id 2 twice"),
        ([0, 1, 2, 3, 4], "lack id 5"),
        ([0, 1, 2, 3, 4, 6], "id 6"),
        ([-1, 1, 2, 3, 4, 5], "id -1"),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "integer id"),
        (None, "needs the id"),
    ],
)
def test_ids_name_every_subset_once(subsets, said):
    with pytest.raises(UsageError, match=said):
        votes_of(labels=np.zeros((6, 2), int), subsets=subsets, num_classes=2, design=design(6))


@pytest.mark.parametrize(
    ("labels", "error", "said"),
    [
        (np.full((6, 2), 3), DataError, "hold 3"),
        (np.full((6, 2), -1), DataError, "hold -1"),
        (np.zeros((6, 2)), DataError, "type float64"),
        (np.zeros((5, 2), int), UsageError, r"shape \(5, 2\)"),
        (np.zeros((6, 0), int), UsageError, "at least one test row"),
        (np.zeros(6, int), UsageError, "shape"),
    ],
)
def test_labels_are_classes_in_range(labels, error, said):
    with pytest.raises(error, match=said):
        votes_of(labels=labels, subsets=np.arange(6), num_classes=3, design=design(6))


def test_a_ranking_is_an_order_that_fits_its_labels():
    good = some_votes()
    ranking = good.ranking.copy()
    ranking[3, 1] = 0
    with pytest.raises(DataError, match="no order"):
        Votes(good.labels, good.subsets, 3, good.design, ranking)
    with pytest.raises(DataError, match="not the first"):
        Votes((good.labels + 1) % 3, good.subsets, 3, good.design, good.ranking)
    with pytest.raises(UsageError, match="ranking has shape"):
        Votes(good.labels, good.subsets, 3, good.design, good.ranking[:, :1])
    with pytest.raises(UsageError, match="margins have shape"):
        Votes(good.labels, good.subsets, 3, good.design, margins=np.zeros(3, np.float32))


@pytest.mark.parametrize("shifts", [(0, 0), (0, 6), (0,), (0, 1, 2)])
def test_a_design_has_as_many_distinct_shifts_as_its_spread(shifts):
    with pytest.raises(UsageError, match="shifts"):
        votes_of(
            labels=np.zeros((6, 1), int),
            subsets=np.arange(6),
            num_classes=2,
            design=Design(3, 2, shifts),
        )


def test_what_else_votes_refuse():
    with pytest.raises(UsageError, match="either labels or scores"):
        votes_of(subsets=np.arange(6), design=design(6))
    with pytest.raises(UsageError, match="num_classes is None"):
        votes_of(labels=np.zeros((6, 2), int), subsets=np.arange(6), design=design(6))
    with pytest.raises(UsageError, match="at least 2"):
        votes_of(
            labels=np.zeros((6, 2), int), subsets=np.arange(6), num_classes=1, design=design(6)
        )
    with pytest.raises(UsageError, match="num_classes is 4"):
        votes_of(scores=np.zeros((6, 2, 3)), subsets=np.arange(6), num_classes=4, design=design(6))
    with pytest.raises(DataError, match="not a number"):
        votes_of(scores=np.full((6, 2, 3), np.nan), subsets=np.arange(6), design=design(6))
    with pytest.raises(UsageError, match="shapes"):
        sum_scores([np.zeros((6, 2, 3)), np.zeros((6, 2, 4))])


def test_rules_and_threats_that_do_not_fit_are_refused():
    votes = some_votes()
    with pytest.raises(UsageError, match="rule is 'roe'"):
        certify(votes, rule="roe")
    with pytest.raises(UsageError, match="make Votes"):
        certify(votes.labels)
    bare = Votes(votes.labels, votes.subsets, 3, votes.design)
    with pytest.raises(UsageError, match="needs votes with a ranking"):
        certify(bare, rule="run_off")
    in_order = some_votes(covers="sorted position")
    with pytest.raises(UsageError, match="sorted position"):
        certify(in_order)
    assert certify(in_order, threat=LabelFlip()).costs == {"flip": 1}
    with pytest.raises(UsageError, match="key column"):
        certify(votes, threat=Keys())
    assert certify(some_votes(covers="key column"), threat=Keys()).costs == {"key": 1}


@pytest.mark.parametrize("covers", ["inputs", "inputs and labels", "key column"])
@pytest.mark.parametrize("threat", [General(), LabelFlip()])
def test_costs_are_the_cells_a_change_touches_at_most(covers, threat):
    """Rows of (input, label, key), each change of one row tried, symmetric difference of cells."""
    cell_of = {
        "inputs": lambda row: row[0],
        "inputs and labels": lambda row: 3 * row[0] + row[1],
        "key column": lambda row: row[2],
    }[covers]
    rows = [(x, y, key) for x in range(3) for y in range(3) for key in range(3)]
    seen = {"insert": 1, "delete": 1, "flip": 0, "modify": 0, "modify, same key": 0}
    for old in rows:
        for new in rows:
            if new != old:
                touched = len({cell_of(old), cell_of(new)})
                seen["modify"] = max(seen["modify"], touched)
                if new[::2] == old[::2]:
                    seen["flip"] = max(seen["flip"], touched)
                if new[2] == old[2]:
                    seen["modify, same key"] = max(seen["modify, same key"], touched)
    for change, cost in threat.costs(design(6, covers=covers)).items():
        assert cost == seen[change], change


def test_members_in_any_order_give_the_same_certificates():
    votes = some_votes(8, 50, 4, shifts=(0, 3))
    shuffled = np.random.default_rng(1).permutation(8)
    other = Votes(votes.labels[shuffled], shuffled, 4, votes.design, votes.ranking[shuffled])
    for rule in ("plurality", "run_off"):
        one, two = certify(votes, rule), certify(other, rule)
        for name in ("prediction", "radius", "first", "second"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("classes", [2, 3, 10, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8])
def test_ties_go_to_the_lower_class(classes, dtype):
    scores = np.random.default_rng(classes).integers(0, 4, (50, classes)).astype(dtype)
    for row, positions in zip(scores.tolist(), rank_classes(scores), strict=True):
        order = sorted(range(classes), key=lambda a: (-row[a], a))
        assert [order.index(a) for a in range(classes)] == positions.tolist()


def test_margins_never_exceed_the_difference_of_the_scores():
    scores = np.random.default_rng(0).normal(size=(200, 5)) * 1e3
    top = np.sort(scores, axis=1)
    margins = margins_of(scores)
    assert margins.dtype == np.float32
    assert (margins.astype(np.float64) <= top[:, -1] - top[:, -2]).all()
    assert np.isnan(margins_of(np.array([[np.inf, np.inf]])))[0]


def test_scores_of_seeds_add_up_to_one_member():
    scores = [np.random.default_rng(s).normal(size=(4, 3, 3)).astype(np.float32) for s in range(3)]
    total = sum_scores(scores)
    np.testing.assert_array_equal(total, sum(s.astype(np.float64) for s in scores))
    assert votes_of(scores=total, subsets=np.arange(4), design=design(4)).num_rows == 3


def test_accuracy_median_and_curve_by_their_definitions():
    votes = some_votes(9, 40, 3, seed=3)
    made = certify(votes)
    labels = np.random.default_rng(5).integers(0, 3, 40)
    labels[:25] = made.prediction[:25]
    right = [
        r if p == y else -1 for p, r, y in zip(made.prediction, made.radius, labels, strict=True)
    ]
    radii, curve = made.curve(labels)
    for r, share in zip(radii, curve, strict=True):
        assert share == sum(x >= r for x in right) / 40
    assert curve[-1] == 0
    assert made.median(labels) == max(
        r for r in range(-1, 10) if r == -1 or 2 * sum(x >= r for x in right) >= 40
    )
    np.testing.assert_array_equal(made.tolerates("modify"), made.radius // 2)
    with pytest.raises(UsageError, match="has \\['delete'"):
        made.tolerates("key")
    with pytest.raises(UsageError, match="radii hold -1"):
        made.certified_accuracy(labels, [-1])
    with pytest.raises(UsageError, match="40 predictions"):
        made.median(labels[:3])


def test_votes_of_torch_like_tensors():
    class Tensor:
        def __init__(self, values):
            self.values = values

        def detach(self):
            return self

        cpu = detach

        def numpy(self):
            return self.values

    scores = np.random.default_rng(0).normal(size=(4, 3, 3))
    made = votes_of(scores=Tensor(scores), subsets=np.arange(4), design=design(4))
    np.testing.assert_array_equal(made.labels, scores.argmax(axis=2))


def test_importing_loads_nothing_heavy():
    code = (
        "import sys; import jaxpoison.certify as c; c.certify, c.Votes, c.General, c.Certificates\n"
        "found = {'jax', 'sklearn', 'flax', 'scipy'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
