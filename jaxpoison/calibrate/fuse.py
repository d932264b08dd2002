"""One suspicion a row out of many detectors in several spaces."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.calibrate.null import benjamini_hochberg

_NEAR = 20.0  # nats below even at which a row beside a verified group loses its lift
_OPEN_LABELS = 1.0  # decades that rows of a class with wrong labels rise
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
            they are combined by Fisher's sum. They alone rank well ungated.
        open_labels: [c] bool, classes whose labels are wrong beyond honest confusion: their rows
            rise by a decade.

    Returns:
        The fused ranking.
    """
    n = len(labels)
    limit = float(np.log10(max(n, 10)))
    best = np.full(n, -np.inf)
    for each, gates in zip(log10_p, open_gates, strict=True):
        cap = np.where(gates[labels], limit, _CLOSED_SHARE * limit)
        best = np.maximum(best, cap * -np.expm1(each / cap))
    best -= np.log10(max(len(log10_p), 1))
    if votes is not None:
        by_label = _rank_log10_p(np.sum([_rank_log10_p(vote) for vote in votes], axis=0))
        if open_labels is not None:
            by_label = by_label + np.where(open_labels[labels], _OPEN_LABELS, 0.0)
        best = np.maximum(best, np.minimum(by_label, limit))
    rise = np.logaddexp(0.0, np.where(flagged, log_odds, 0.0)) / np.log(10.0)
    near = limit + np.maximum(np.where(np.isfinite(log_odds), log_odds, -np.inf), -_NEAR) / _NEAR
    best = np.where(np.isfinite(log_odds), np.maximum(best, near), best)
    suspicion = np.where(flagged, limit + np.log10(max(n, 10)) + rise, best)
    p = np.minimum(10.0 ** -np.clip(suspicion, 0.0, 300.0), 1.0)
    return Fused(suspicion, p, benjamini_hochberg(p))


def _rank_log10_p(scores: HostArray) -> HostArray:
    """-log10 of the share of rows that score at least as high, ties shared."""
    from scipy.stats import rankdata

    out: HostArray = -np.log10((len(scores) + 1.0 - rankdata(scores)) / len(scores))
    return out
