"""Run-off election over cells that touch several subsets each."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison.certify.rules._cells import cell_sums, histogram, least_cells
from jaxpoison.certify.rules._counting import blocks, leads

if TYPE_CHECKING:
    from jaxpoison.certify._types import Design, Ints
    from jaxpoison.certify.votes import Votes

_ENTRIES = 1 << 20  # members times test rows of a block
_NEVER = np.iinfo(np.int64).max // 4


def spread_run_off(votes: Votes, counts: Ints, winner: Ints, other: Ints, preferred: Ints) -> Ints:
    """Radius of the run-off election whose cells touch d subsets each.

    As ``run_off``, each quotient replaced by the fewest cells whose weights reach the gap, the
    heaviest first. Weights: ``sum_s (1 + [v = a] - [v = b])`` for g(a, b);
    ``sum_s (1 + 2 [v = c] - [v = c1] - [v = c2])`` for the sum of two gaps of c; twice the members
    of the cell that prefer c, for the second round. The sum of the gaps is taken with its sign:
    where one class is ahead of c already, its slack can be spent.

    Args:
        votes: With a ranking, members in the order of their ids.
        counts: [v, c] votes of the first round.
        winner: [v] class.
        other: [v] the other finalist.
        preferred: [v, c] members that prefer the winner to each class.

    Returns:
        [v] int64 radius in touched cells.

    **Cost**: O(m v d) a rival or pair of rivals that a bound from the winner's sums leaves open.

    Reference: Rezaei et al., Run-Off Election (2023), arXiv:2302.02300.
    """
    radius = np.empty(len(winner), np.int64)
    for block in blocks(len(winner), len(votes.labels), _ENTRIES):
        parts = (a[block] for a in (counts, winner, other, preferred))
        radius[block] = _Block(votes, block, *parts).needed() - 1
    return radius


class _Block:
    """A block of test rows: lower bounds of every way to fall, made exact while they matter."""

    def __init__(
        self,
        votes: Votes,
        block: slice,
        counts: Ints,
        winner: Ints,
        other: Ints,
        preferred: Ints,
    ) -> None:
        self.design: Design = votes.design
        self.labels = votes.labels[:, block]
        ranking = votes.ranking
        if ranking is None:
            raise UsageError("the run-off needs votes with a ranking")
        self.classes = counts.shape[1]
        self.positions = ranking[:, block].reshape(len(self.labels), -1)
        self.winner, self.other = winner, other
        self.own = self.sums(winner, np.arange(len(winner)))
        self.own_counts = histogram(self.own, self.design.spread + 1)
        self.lead = leads(counts, winner)
        self.reach = leads(counts, other)
        self.win = 2 * preferred - len(self.labels) + (np.arange(self.classes) > winner[:, None])
        self.least = np.full(len(winner), _NEVER)

    def sums(self, classes: Ints, rows: Ints) -> Ints:
        """[cells, rows] members of each cell that vote for one class a row."""
        whole = len(rows) == self.labels.shape[1]
        columns = self.labels if whole else self.labels[:, rows]
        return cell_sums(columns == classes.astype(columns.dtype), self.design)

    def needed(self) -> Ints:
        """[rows] fewest cells that may let another class win."""
        self._outrun()
        if self.classes > 2:
            self._eliminated()
        return self.least

    def _outrun(self) -> None:
        d, rows = self.design.spread, np.arange(len(self.winner))
        self.reach[rows, self.other] = 0
        behind = histogram(self.sums(self.other, rows), d + 1)
        bound = least_cells(behind[:, None], self.reach, lift=d)
        bound = np.maximum(bound, -(-self.win // (2 * d)))
        bound[rows, self.winner] = _NEVER
        order = np.argsort(bound, axis=1, kind="stable")
        for j in range(self.classes - 1):
            rival = order[:, j]
            open_ = np.flatnonzero(bound[rows, rival] < self.least)
            if not len(open_):
                return
            needed = self._second_round(rival[open_], open_)
            climbs = (rival[open_] != self.other[open_]) & (needed < self.least[open_])
            some = open_[climbs]
            if len(some):
                first = self._pass(
                    self.other[some], rival[some], self.reach[some, rival[some]], some
                )
                needed[climbs] = np.maximum(needed[climbs], first)
            self.least[open_] = np.minimum(self.least[open_], needed)

    def _second_round(self, rival: Ints, rows: Ints) -> Ints:
        """Fewest cells that make more members prefer the rival to the winner."""
        start = rows * self.classes
        mine = np.take(self.positions, start + self.winner[rows], axis=1)
        theirs = np.take(self.positions, start + rival, axis=1)
        prefer = cell_sums(mine < theirs, self.design)
        counts = histogram(prefer, self.design.spread + 1)
        return least_cells(counts, self.win[rows, rival], scale=2)

    def _pass(self, a: Ints, b: Ints, gap: Ints, rows: Ints) -> Ints:
        """Fewest cells that let b pass a in the first round."""
        d = self.design.spread
        weights = self.sums(a, rows) - self.sums(b, rows) + self.own.dtype.type(d)
        return least_cells(histogram(weights, 2 * d + 1), gap)

    def _eliminated(self) -> None:
        d, rows = self.design.spread, np.arange(len(self.winner))
        single = least_cells(self.own_counts[:, None], self.lead, lift=d)
        single[rows, self.winner] = _NEVER
        pairs = np.array(list(combinations(range(self.classes), 2)))
        together = self.lead[:, pairs].sum(axis=2)
        bound = least_cells(self.own_counts[:, None], together, lift=d, scale=2)
        for b in range(self.classes):
            of_b = (pairs == b).any(axis=1)
            open_ = np.maximum(single[:, pairs[of_b]].max(axis=2), bound[:, of_b]).min(axis=1)
            some = np.flatnonzero((open_ < self.least) & (self.lead[:, b] > 0))
            if len(some):
                rival = np.full(len(some), b)
                single[some, b] = self._pass(self.winner[some], rival, self.lead[some, b], some)
        bound = np.maximum(bound, single[:, pairs].max(axis=2))
        order = np.argsort(bound, axis=1, kind="stable")
        for j in range(len(pairs)):
            pair = order[:, j]
            some = np.flatnonzero(bound[rows, pair] < self.least)
            if not len(some):
                return
            both = self._pass_together(pairs[pair[some]], together[some, pair[some]], some)
            needed = np.maximum(both, bound[some, pair[some]])
            self.least[some] = np.minimum(self.least[some], needed)

    def _pass_together(self, pair: Ints, gap: Ints, rows: Ints) -> Ints:
        """Fewest cells that bring the sum of the winner's leads over two classes to zero."""
        d = self.design.spread
        own = self.own if len(rows) == self.own.shape[1] else self.own[:, rows]
        weights = 2 * own + self.own.dtype.type(d)
        weights -= self.sums(pair[:, 0], rows)
        weights -= self.sums(pair[:, 1], rows)
        return least_cells(histogram(weights, 3 * d + 1), gap)
