"""Whether a class stays among the k with most votes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison.certify.rules._cells import cell_sums
from jaxpoison.certify.rules._counting import blocks, count_votes, gaps, winners

if TYPE_CHECKING:
    from jaxpoison.certify._types import Ints
    from jaxpoison.certify.votes import Votes

_ENTRIES = 1 << 20  # members times test rows of a block


@dataclass(frozen=True, eq=False)
class TopK:
    """The class stays among the k with most votes; the lower index wins a tie.

    Class a leaves only if k rivals b pass it, each ``need_b = (n_a - n_b + [b > a])+`` behind.
    With r cells an attack rewrites at most t(r) members, q(r) of them voters of a. A lost vote of
    a helps all rivals, and each rewritten member votes for one of them, so a stays as long as
    ``sum over the k closest of (need_b - q(r))+ > t(r)``. Disjoint: t = r, q = min(r, n_a). With
    spread d: t = d r, and q the r largest cell sums of a.

    Attributes:
        k: At least 1, below the number of classes.
        labels: [v] class to certify on each row, such as the true one; None for the plurality
            winner. Its radius is -1 where it is not among the k.

    **Cost**: O(m v + v k log m), and a sort of the cell sums with spread.

    **Assumes / fails on**: sound; with spread loose, as the cells that lose a most votes need
        not be those that give the rivals most.

    Reference: Hammoudeh & Lowd, Feature partition aggregation (2024), arXiv:2302.11628, has the
        disjoint case.
    """

    k: int
    labels: Ints | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"k is {self.k}; TopK needs at least 1")

    @property
    def name(self) -> str:
        """For reports."""
        return f"top {self.k}"

    def radii(self, votes: Votes) -> tuple[Ints, Ints, Ints, Ints]:
        """Class, radius in touched cells, its votes, votes of the rival it must stay before.

        Args:
            votes: Members in the order of their ids.

        Raises:
            UsageError: k not below the classes, or labels of another length.
            DataError: A label out of range.
        """
        if self.k >= votes.num_classes:
            raise UsageError(
                f"TopK has k {self.k}, but there are {votes.num_classes} classes: all of them are"
                " among the first; use a smaller k"
            )
        counts = count_votes(votes.labels, votes.num_classes)
        of = winners(counts) if self.labels is None else self._checked(votes)
        needs = np.maximum(np.partition(gaps(counts, of), self.k - 1, axis=1)[:, : self.k] + 1, 0)
        radius = np.empty(len(of), np.int64)
        own = np.take_along_axis(counts, of[:, None], axis=1)[:, 0]
        for block in blocks(len(of), len(votes.labels), _ENTRIES):
            lost = None if votes.design.spread == 1 else _lost_votes(votes, of[block], block)
            radius[block] = _largest(needs[block], own[block], votes, lost)
        rest = counts.copy()
        np.put_along_axis(rest, of[:, None], -1, axis=1)
        return of, radius, own, -np.partition(-rest, self.k - 1, axis=1)[:, self.k - 1]

    def _checked(self, votes: Votes) -> Ints:
        labels = np.asarray(self.labels)
        if labels.shape != (votes.num_rows,):
            raise UsageError(
                f"TopK has labels of shape {labels.shape}, but there are {votes.num_rows} test rows"
            )
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= votes.num_classes:
            raise DataError(
                f"TopK labels must be classes 0 to {votes.num_classes - 1}; they are"
                f" {labels.dtype} from {labels.min()} to {labels.max()}"
            )
        return labels.astype(np.int64)


def _lost_votes(votes: Votes, of: Ints, block: slice) -> Ints:
    """[cells + 1, rows] votes of the class that r cells hold at most."""
    hits = votes.labels[:, block] == of.astype(votes.labels.dtype)
    sums = np.sort(cell_sums(hits, votes.design), axis=0)[::-1]
    lost = np.zeros((len(sums) + 1, len(of)), np.int64)
    np.cumsum(sums, axis=0, out=lost[1:])
    return lost


def _largest(needs: Ints, own: Ints, votes: Votes, lost: Ints | None) -> Ints:
    """[rows] most cells that cannot push the class out, by bisection: more cells do more."""
    cells, spread = len(votes.labels), votes.design.spread
    stays, falls = np.full(len(own), -1), np.full(len(own), cells + 1)
    rows = np.arange(len(own))
    while (falls - stays > 1).any():
        r = np.minimum((stays + falls) // 2, cells)  # decided rows are looked at once more
        q = np.minimum(r if lost is None else lost[r, rows], own)
        left = np.maximum(needs - q[:, None], 0).sum(axis=1)
        out = (left <= np.minimum(spread * r, cells)) & (r > stays)
        falls = np.where(out, np.minimum(falls, r), falls)
        stays = np.where(out, stays, np.maximum(stays, r))
    return stays
