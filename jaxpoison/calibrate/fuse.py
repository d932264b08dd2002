"""One suspicion a row out of many detectors in several spaces."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.calibrate.null import benjamini_hochberg

APART = frozenset({"influence", "shapley"})
"""Detectors whose scores have a column of their own and touch neither ranking nor verdict.

What holds an honest prediction up is honest, and what is made with a look at the trusted rows would
take from the p-values what they guarantee: suspicion must be made without one.
"""

_NEAR = 20.0  # nats below even from which on rows beside a verified group are all alike
_NEAR_DECADE = (5.0, 20.0)  # nats below even that cost a decade, where findings are many or few
_FEW = 2.0  # over the share of the rows that lie beside findings: nats a decade
_MOST_OPEN = 1.0  # decades at the most that rows of classes with wrong labels rise
_BEHIND = 0.5  # decades that other families count less than votes on labels
_CLOSED_SHARE = 0.5  # how far behind a closed gate a row can rise, of what an open gate allows


class Fused(NamedTuple):
    """The ranking.

    Attributes:
        suspicion: [n] comparable across classes; -log10 of p before p is cut at 1.
        p: [n] min-p over the evidence, Bonferroni corrected.
        q: [n] Benjamini-Hochberg.
    """

    suspicion: HostArray
    p: HostArray
    q: HostArray


def fuse(
    log10_p: list[HostArray],
    open_gates: list[HostArray],
    labels: HostArray,
    log_odds: HostArray,
    flagged: HostArray,
    votes: list[HostArray] | None = None,
    open_labels: HostArray | None = None,
    families: list[HostArray] | None = None,
) -> Fused:
    """The smallest p over all evidence, corrected for their number; never an average of ranks.

    A tail alone is weak: honest classes have heavy ones, and an ungated minimum ranks them above
    the poison. So ``-log10 p`` of a row saturates at log10 n behind an open gate and at half of
    that behind a closed one; only rows of verified groups rise beyond, by their odds.

    Args:
        log10_p: [n] each, from ``tail_log10_p``.
        open_gates: [c] bool each; behind a gate that opened on rows which verification did not
            confirm, a tail says as little as behind a closed one.
        labels: [n] dense.
        log_odds: [n] of verified groups and their surroundings, -inf elsewhere.
        flagged: [n] bool, rows of verified groups.
        votes: [n] each, of families that doubt labels out of fold, or None. Ranks over all rows
            are their p-values, and as all of them ask the same question of independent views
            they are combined by Fisher's sum; the first may speak for itself, as near rows are no
            witnesses where poison is near poison. They alone rank well ungated.
        open_labels: [c] bool, classes whose labels are wrong beyond honest confusion: their rows
            rise by as much as they are fewer than all rows, a decade at the most.
        families: [n] each, what other families of detectors say of a row within its class, or
            None. Ranks of these count too, a weighted Bonferroni correction behind label votes:
            where nothing is confirmed they are all there is against poison under honest labels.

    Returns:
        The fused ranking.
    """
    n = len(labels)
    limit = float(np.log10(max(n, 10)))
    best = np.full(n, -np.inf if log10_p or votes is not None else 0.0)
    for each, gates in zip(log10_p, open_gates, strict=True):
        cap = np.where(gates[labels], limit, _CLOSED_SHARE * limit)
        best = np.maximum(best, cap * -np.expm1(each / cap))
    best -= np.log10(max(len(log10_p), 1))
    share = -float(np.log10(1.0 + len(families or ()) * 10.0**-_BEHIND))
    for family in families or ():
        best = np.maximum(best, rank_log10_p(family) - _BEHIND + share)
    if votes is not None:
        ranks = [rank_log10_p(vote) for vote in votes]
        by_label = rank_log10_p(np.maximum(rank_log10_p(np.sum(ranks, axis=0)), ranks[0]))
        if open_labels is not None:
            is_open = open_labels[labels]
            rise = min(-np.log10(max(float(is_open.mean()), 1.0 / n)), _MOST_OPEN)
            by_label = by_label + np.where(is_open, rise, 0.0)
        best = np.maximum(best, np.minimum(by_label, limit) + share)
    rise = np.logaddexp(0.0, np.where(flagged, log_odds, 0.0)) / np.log(10.0)
    beside = np.isfinite(log_odds)
    # one poisoned class of many may stand above all others; where most are, rows compete
    decade = np.clip(_FEW / max(float(beside.mean()), 1.0 / n), *_NEAR_DECADE)
    near = limit + np.maximum(log_odds, -_NEAR) / decade
    best = np.where(beside, np.maximum(best, near), best)
    suspicion = np.where(flagged, limit + np.log10(max(n, 10)) + rise, best)
    p = np.minimum(10.0 ** -np.clip(suspicion, 0.0, 300.0), 1.0)
    return Fused(suspicion, p, benjamini_hochberg(p))


def rank_log10_p(scores: HostArray) -> HostArray:
    """-log10 of the share of rows that score at least as high, ties shared."""
    from scipy.stats import rankdata

    out: HostArray = -np.log10((len(scores) + 1.0 - rankdata(scores)) / len(scores))
    return out
