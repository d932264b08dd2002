"""The bound on rows turned by one attack, against every attack."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxpoison._check import UsageError
from jaxpoison.certify import Keys, Votes, certify
from jaxpoison.certify.collective import certify_together
from vote_oracle import counts_of, design, elected


def votes_of(members, rows, classes, shifts, seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random((members, rows)) < rng.uniform(0.2, 0.7, rows)) * rng.integers(
        1, classes, (members, rows)
    )
    return Votes(labels, np.arange(members), classes, design(members, shifts))


def most_turned(votes, r, shifts, rows):
    """Rows that the best set of r cells turns, each subset rewritten for each row alone."""
    m, best = len(votes.labels), 0
    for touched in itertools.combinations(range(m), r):
        subsets = {(h + s) % m for h in touched for s in shifts}
        turned = 0
        for t in rows:
            column = votes.labels[:, t].tolist()
            c, counts = elected(column, votes.num_classes), counts_of(column, votes.num_classes)
            turned += any(
                sum(1 + (column[i] == c) - (column[i] == b) for i in subsets)
                > counts[c] - counts[b] - (b < c)
                for b in range(votes.num_classes)
                if b != c
            )
        best = max(best, turned)
    return best


@pytest.mark.parametrize("shifts", [(0,), (0, 1), (0, 3)])
@pytest.mark.parametrize("seed", range(6))
def test_no_attack_turns_more_rows(shifts, seed):
    votes = votes_of(8, 10, 3, shifts, seed)
    made = certify_together(votes, [0, 1, 2, 3])
    truth = [most_turned(votes, r, shifts, range(10)) for r in range(4)]
    assert (made.turned >= truth).all()
    alone = [(certify(votes).radius < r).sum() for r in range(4)]
    assert (made.turned <= alone).all()


def test_it_says_more_than_the_radii_alone():
    """Rows that hang on different members cannot all be turned by one attack."""
    better = 0
    for seed in range(6):
        votes = votes_of(9, 12, 2, (0,), seed)
        made = certify_together(votes, [1, 2, 3])
        alone = np.array([(certify(votes).radius < r).sum() for r in (1, 2, 3)])
        better += (made.turned < alone).any()
    assert better >= 2


def test_one_cell_and_rows_that_lean_on_one_member_each():
    """Row t has five votes to four and its own five: one cell turns what it is shared by."""
    labels = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    votes = Votes(labels, np.arange(3), 2, design(3))
    made = certify_together(votes, [1])
    assert (certify(votes).radius == 0).all()
    assert made.turned[0] == most_turned(votes, 1, (0,), range(3)) == 2


def test_only_rows_predicted_rightly_are_counted_where_labels_are_given():
    votes = votes_of(9, 12, 3, (0,), 0)
    labels = certify(votes).prediction.copy()
    labels[:4] = (labels[:4] + 1) % 3
    made = certify_together(votes, [0, 1, 9, 50], labels)
    assert made.rows == 8 and made.of == 12
    assert made.turned[1] >= most_turned(votes, 1, (0,), range(4, 12))
    np.testing.assert_array_equal(made.turned[[0, 2, 3]], [0, 8, 8])
    np.testing.assert_allclose(made.certified_accuracy[[0, 2]], [8 / 12, 0])


def test_a_share_forgotten_is_caught(monkeypatch):
    """Votes of other classes bring something as well; without them the bound is too low."""
    from jaxpoison.certify import collective

    right = collective._shares

    def wrong(labels, best, ahead, design, unit):
        return np.where(labels == best, right(labels, best, ahead, design, unit), 0)

    monkeypatch.setattr(collective, "_shares", wrong)
    low = False
    for seed in range(8):
        votes = votes_of(8, 10, 3, (0,), seed)
        made = certify_together(votes, [1, 2, 3])
        low |= any(made.turned[i] < most_turned(votes, i + 1, (0,), range(10)) for i in range(3))
    assert low


def test_what_it_refuses():
    votes = votes_of(4, 3, 2, (0,), 0)
    with pytest.raises(UsageError, match="each 0 or more"):
        certify_together(votes, [-1])
    with pytest.raises(UsageError, match="3 rows"):
        certify_together(votes, [1], labels=[0])
    with pytest.raises(UsageError, match="key column"):
        certify_together(votes, [1], threat=Keys())
