"""Plurality of the votes: disjoint partitions in closed form, Finite Aggregation over its cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxpoison.certify.rules._cells import cell_sums, histogram, least_cells
from jaxpoison.certify.rules._counting import blocks, count_votes, gaps, winners

if TYPE_CHECKING:
    from jaxpoison.certify._types import Design, Ints
    from jaxpoison.certify.votes import Votes

_ENTRIES = 1 << 20  # members times test rows of a block
_NO_RIVAL = np.iinfo(np.int64).max


def plurality(votes: Votes) -> tuple[Ints, Ints, Ints, Ints]:
    """Radius of the plurality vote.

    Disjoint: ``floor((n_c - max_b (n_b + [b < c])) / 2)``. With spread d, for every rival b the
    cells weigh ``sum_s (1 + [v_{h+s} = c] - [v_{h+s} = b])`` and the radius is the largest r for
    which the r heaviest weigh no more than ``n_c - n_b - [b < c]``; then the least over b.

    Args:
        votes: Members in the order of their ids.

    Returns:
        Prediction, radius in touched cells, votes of the prediction, votes of the runner-up.

    **Cost**: O(m v), and O(m v d) with spread; a rival is skipped where a bound from the winner's
        sums alone shows that it cannot be the closest.

    **Assumes / fails on**: exact for disjoint partitions; with spread sound, and loose where the
        cells of an attack share subsets, as a shared subset is counted for each.

    Reference: Levine & Feizi (2021), arXiv:2006.14768; Wang et al. (2022), arXiv:2202.02628.
    """
    counts = count_votes(votes.labels, votes.num_classes)
    best = winners(counts)
    ahead = gaps(counts, best)
    if votes.design.spread == 1:
        radius = ahead.min(axis=1) // 2
    else:
        radius = spread_radius(votes.labels, best, ahead, votes.design)
    return best, radius, *first_two(counts, best)


def first_two(counts: Ints, best: Ints) -> tuple[Ints, Ints]:
    """[v] votes of the prediction, and the most votes of another class."""
    rest = counts.copy()
    np.put_along_axis(rest, best[:, None], -1, axis=1)
    return np.take_along_axis(counts, best[:, None], axis=1)[:, 0], rest.max(axis=1)


def spread_radius(
    labels: Ints, best: Ints, ahead: Ints, design: Design, wild: int | None = None
) -> Ints:
    """Radius of a plurality whose cells touch d subsets each.

    Args:
        labels: [cells, v] classes voted for, in the order of the subset ids.
        best: [v] predictions.
        ahead: [v, c] from ``gaps``.
        design: The shifts.
        wild: Label of votes that count for whatever rival is looked at; None where there is none.

    Returns:
        [v] int64; -1 where a rival is ahead already.
    """
    radius = np.empty(len(best), np.int64)
    for block in blocks(len(best), len(labels), _ENTRIES):
        radius[block] = _of_block(labels[:, block], best[block], ahead[block], design, wild)
    return radius


def _of_block(labels: Ints, best: Ints, ahead: Ints, design: Design, wild: int | None) -> Ints:
    d = design.spread
    own = cell_sums(labels == best.astype(labels.dtype), design)
    rivals = np.argsort(ahead, axis=1, kind="stable")[:, :-1]
    room = np.take_along_axis(ahead, rivals, axis=1)
    # No cell weighs more than d + own: a bound for all rivals from one histogram.
    at_least = least_cells(histogram(own, d + 1)[:, None], room + 1, lift=d) - 1
    radius = np.full(len(best), _NO_RIVAL)
    for j in range(rivals.shape[1]):
        open_ = np.flatnonzero(at_least[:, j] < radius)
        if not len(open_):
            break  # later rivals are further behind
        all_open = len(open_) == len(best)
        columns = labels if all_open else labels[:, open_]
        hits = columns == rivals[open_, j].astype(labels.dtype)
        if wild is not None:
            hits |= columns == wild
        weights = (own if all_open else own[:, open_]) + own.dtype.type(d)
        weights -= cell_sums(hits, design)
        reach = least_cells(histogram(weights, 2 * d + 1), room[open_, j] + 1) - 1
        radius[open_] = np.minimum(radius[open_], reach)
    return radius
