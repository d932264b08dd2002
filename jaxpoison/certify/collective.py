"""How many test rows one attack can turn, all together: an upper bound without a solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison.certify.rules._cells import cell_sums
from jaxpoison.certify.rules._counting import blocks, count_votes, gaps
from jaxpoison.certify.rules.plurality import plurality
from jaxpoison.certify.threats import General, Threat
from jaxpoison.certify.votes import Votes

if TYPE_CHECKING:
    from jaxpoison.certify._types import Design, Ints

_ENTRIES = 1 << 18  # members times test rows of a block
_UNIT = 30  # bits of a share of one row, less where sums would leave 64 bits


@dataclass(frozen=True, eq=False)
class CollectiveCertificates:
    """What one attack can do to all test rows at once.

    Attributes:
        cells: [q] touched cells of one attack.
        turned: [q] most rows whose prediction it can change.
        rows: Test rows that were counted.
        of: All test rows.
        threat: What the attacker may do.
        costs: Cells touched by one change of each kind.
        design: Of the partition.
    """

    cells: Ints
    turned: Ints
    rows: int
    of: int
    threat: Threat
    costs: dict[str, int]
    design: Design

    @property
    def certified_accuracy(self) -> Any:
        """[q] share of rows still right after any one attack, where labels were given."""
        return (self.rows - self.turned) / self.of


def certify_together(
    votes: Votes, cells: Sequence[int], labels: Any = None, threat: Threat | None = None
) -> CollectiveCertificates:
    """Upper bound on the rows that one attack on r cells can turn, for the plurality.

    To turn row t towards b an attack must gather ``n_c - n_b - [b < c] + 1`` by its cells, each of
    which brings at most the weight it has in ``plurality``. So the shares
    ``x_th = max over b of weight / needed`` of its cells add up to one at least, and so do the
    shares ``1 / (radius_t + 1)``. For any set Z of rows, no more rows turn than

        ``|Z| + the r largest cells of sum over t not in Z of x_th``,

    rows with radius r or more left out. Z runs over the rows with the smallest radii. This is a
    value of the dual of the relaxed binary program, in integers, each share rounded up.

    Args:
        votes: Of one member a subset.
        cells: Sizes r of the attack.
        labels: [v] true classes: only rows predicted rightly are counted; None counts all.
        threat: ``General`` (default), ``LabelFlip`` or ``Keys``.

    Returns:
        One bound a size; never above the number of rows whose own radius is smaller.

    Raises:
        UsageError: Sizes, labels or threat that do not fit.

    **Cost**: O(m v c d) once, and O(m r) a size.

    **Assumes / fails on**: sound, not tight: shares of a cell are added for rows that the same
        attack would turn twice over, and rivals are not told apart.

    Reference: Chen et al., collective robustness of bagging (2022), arXiv:2205.13176, solve the
        binary program itself.
    """
    claim = General() if threat is None else threat
    costs, ordered = claim.costs(votes.design), votes.in_order()
    sizes = np.asarray(cells, np.int64)
    if sizes.ndim != 1 or not len(sizes) or (sizes < 0).any():
        raise UsageError(f"cells are {cells!r}; give a list of sizes, each 0 or more")
    best, radius, *_ = plurality(ordered)
    counted = np.ones(len(best), bool)
    if labels is not None:
        truth = np.asarray(labels)
        if truth.shape != best.shape:
            raise UsageError(f"labels have shape {truth.shape}, but there are {len(best)} rows")
        counted = truth == best
    sizes = np.minimum(sizes, votes.design.num_subsets)
    deepest = int(sizes.max())
    weak = np.flatnonzero(counted & (radius < deepest))
    unit = 1 << min(_UNIT, 62 - len(best).bit_length() - deepest.bit_length())
    shares = _shares_by_radius(ordered, best, radius, weak, deepest, unit)
    fallen = np.concatenate([[0], np.cumsum(np.bincount(radius[weak], minlength=deepest))])
    turned = np.array([_bound(shares, fallen, int(r), unit) for r in sizes])
    return CollectiveCertificates(
        np.asarray(cells, np.int64),
        turned,
        int(counted.sum()),
        len(best),
        claim,
        costs,
        votes.design,
    )


def _bound(shares: Ints, fallen: Ints, r: int, unit: int) -> int:
    """Least bound over the number of rows, weakest first, that are counted as turned.

    Args:
        shares: [radii + 1, cells] shares of the rows with a radius below the index.
        fallen: [radii + 1] how many those rows are.
        r: Size of the attack.
        unit: One row.
    """
    least = int(fallen[r])
    for j in range(r):
        if fallen[j] >= least:
            break  # the rows given up already are no fewer
        rest = shares[r] - shares[j]
        largest = np.partition(rest, len(rest) - r)[len(rest) - r :]
        least = min(least, int(fallen[j]) + int(largest.sum()) // unit)
    return least


def _shares_by_radius(
    votes: Votes, best: Ints, radius: Ints, weak: Ints, deepest: int, unit: int
) -> Ints:
    """[deepest + 1, cells] shares of every cell in the rows with a radius below the index."""
    total = np.zeros((deepest + 1, len(votes.labels)), np.int64)
    for block in blocks(len(weak), len(votes.labels), _ENTRIES):
        rows = weak[block]
        labels = votes.labels[:, rows]
        ahead = gaps(count_votes(labels, votes.num_classes), best[rows])
        shares = _shares(labels, best[rows], ahead, votes.design, unit)
        even = -(-unit // (radius[rows] + 1))
        shares = np.where(shares.sum(axis=0) <= even * len(labels), shares, even)
        np.add.at(total, radius[rows] + 1, shares.T)
    return np.cumsum(total, axis=0)


def _shares(labels: Ints, best: Ints, ahead: Ints, design: Design, unit: int) -> Ints:
    """[cells, rows] what each cell brings towards turning a row, at most one unit."""
    d, rows = design.spread, np.arange(len(best))
    own = cell_sums(labels == best.astype(labels.dtype), design)
    most = np.zeros(labels.shape, np.int64)
    weights = np.arange(2 * d + 1)
    for b in range(ahead.shape[1]):
        weight = own + own.dtype.type(d) - cell_sums(labels == b, design)
        needed = np.where(best == b, 1, ahead[:, b] + 1)
        share = np.minimum(-(-weights * unit // needed[:, None]), unit)
        share[best == b] = 0  # no rival of itself
        np.maximum(most, share[rows, weight], out=most)
    return most
