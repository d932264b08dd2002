"""Run-off election: the two classes with most votes, then the one that more members prefer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison.certify.rules._counting import blocks, count_true, count_votes, leads
from jaxpoison.certify.rules._run_off_cells import spread_run_off

if TYPE_CHECKING:
    from jaxpoison.certify._types import Ints
    from jaxpoison.certify.votes import Votes

AT_ONCE = 255  # members: their count fits a byte
NEVER = np.iinfo(np.int64).max // 4  # cells that a case needs which cannot occur


def run_off(votes: Votes) -> tuple[Ints, Ints, Ints, Ints]:
    """Radius of the run-off election.

    With c the winner, s the other finalist, ``g(a, b) = n_a - n_b + [b > a]`` (a beats b while
    it is positive) and ``w(c, b)`` the members that prefer c to b less those that prefer b, c
    falls only if two classes pass it in the first round, which takes at least

        ``min over pairs of max(ceil(max(g1, g2) / 2), ceil((g1 + g2) / 3))``,  g_i = g(c, c_i)+

    cells, or if some b reaches the second round and wins it, which takes at least

        ``min over b of max(ceil(g(s, b)+ / 2), ceil((w(c, b) + [b > c])+ / 2))``.

    The radius is one less than the smaller. The first grows in both gaps, so the pair is that of
    the two smallest.

    Args:
        votes: With a ranking, members in the order of their ids.

    Returns:
        Prediction, radius in touched cells, first-round votes of the two finalists, the winner's
        first.

    Raises:
        UsageError: No ranking.

    **Cost**: O(m v c); with spread see ``spread_run_off``.

    **Assumes / fails on**: sound, not exact: the two rounds are bounded one by one, though an
        attack must win both with the same cells. Not uniformly better than the plurality.

    Reference: Rezaei et al., Run-Off Election (2023), arXiv:2302.02300.
    """
    if votes.ranking is None:
        raise UsageError(
            "rule 'run_off' needs votes with a ranking: make them from scores (votes_of, or"
            " rank_classes), or use 'plurality'"
        )
    counts = count_votes(votes.labels, votes.num_classes)
    winner, other, preferred = elect(votes.ranking, counts)
    if votes.design.spread == 1:
        room = 2 * preferred - len(votes.labels)
        radius = np.minimum(eliminated(counts, winner), outrun(counts, winner, other, room)) - 1
    else:
        radius = spread_run_off(votes, counts, winner, other, preferred)
    rows = np.arange(len(counts))
    return winner, radius, counts[rows, winner], counts[rows, other]


def elect(ranking: Ints, counts: Ints) -> tuple[Ints, Ints, Ints]:
    """Both rounds of the election.

    Args:
        ranking: [m, v, c].
        counts: [v, c] votes of the first round.

    Returns:
        [v] winner, [v] other finalist, [v, c] members that prefer the winner to each class.
    """
    rows = np.arange(len(counts))
    first = np.argmax(counts, axis=1)
    rest = counts.copy()
    rest[rows, first] = -1
    second = np.argmax(rest, axis=1)
    of_first, of_second = np.zeros_like(counts), np.zeros_like(counts)
    for block in blocks(len(counts), AT_ONCE * counts.shape[1]):
        for start in range(0, len(ranking), AT_ONCE):
            part = ranking[start : start + AT_ONCE, block].transpose(2, 0, 1).copy()
            # Classes first, so that whole rows of bytes are compared and added.
            for finalist, preferred in ((first, of_first), (second, of_second)):
                mine = _positions(part, finalist[block])
                for c, positions in enumerate(part):
                    preferred[block, c] += count_true(mine < positions)
    keeps = 2 * of_first[rows, second] - len(ranking) >= (second < first)
    winner, other = np.where(keeps, first, second), np.where(keeps, second, first)
    return winner, other, np.where(keeps[:, None], of_first, of_second)


def _positions(by_class: Ints, classes: Ints) -> Ints:
    """[m, rows] position of one class a row."""
    flat = by_class.transpose(1, 0, 2).reshape(by_class.shape[1], -1)
    columns: Ints = flat.take(classes * by_class.shape[2] + np.arange(len(classes)), axis=1)
    return columns


def eliminated(counts: Ints, winner: Ints) -> Ints:
    """[v] cells it takes at least for two classes to pass the winner in the first round."""
    if counts.shape[1] < 3:
        return np.full(len(counts), NEVER)
    lead = leads(counts, winner)
    np.put_along_axis(lead, winner[:, None], NEVER, axis=1)
    closest = np.maximum(np.partition(lead, 1, axis=1)[:, :2], 0)
    needed: Ints = np.maximum(-(-closest.max(axis=1) // 2), -(-closest.sum(axis=1) // 3))
    return needed


def outrun(counts: Ints, winner: Ints, other: Ints, room: Ints) -> Ints:
    """[v] cells it takes at least for a class to reach the second round and win it.

    Args:
        counts: [v, c] votes of the first round.
        winner: [v] class.
        other: [v] the other finalist.
        room: [v, c] members that prefer the winner less those that do not.
    """
    classes = np.arange(counts.shape[1])
    reach = np.maximum(leads(counts, other), 0)
    np.put_along_axis(reach, other[:, None], 0, axis=1)
    win = np.maximum(room + (classes > winner[:, None]), 0)
    needed = np.maximum(-(-reach // 2), -(-win // 2))
    np.put_along_axis(needed, winner[:, None], NEVER, axis=1)
    least: Ints = needed.min(axis=1)
    return least
