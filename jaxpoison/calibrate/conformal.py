"""p-values, false discovery rates and flags against rows that are known to be honest."""

from __future__ import annotations

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.calibrate.fuse import Fused
from jaxpoison.calibrate.groups import Finding
from jaxpoison.calibrate.null import benjamini_hochberg
from jaxpoison.calibrate.verdict import Verdict, decide

MIN_TRUSTED = 20
"""Trusted rows from which on a set of them, or a class, has a null of its own."""

_FEW = 2  # trusted rows in a finding below which it is not doubted: one may be trusted wrongly
_MOST = 0.5  # of a finding that trusted rows show to be honest, beyond which it is dropped
_UNNAMED = 0.5  # confidence that unusual rows without a finding are poison


def conformal_p(suspicion: HostArray, labels: HostArray, trusted: HostArray) -> HostArray:
    """How often an honest row is as suspicious as each row.

    ``p_i = (1 + #{j trusted, of the class of i, j != i: s_j >= s_i}) / (1 + m_i)`` with m_i the
    number of rows j that are compared. A class with fewer than ``MIN_TRUSTED`` of them is compared
    with the trusted rows of all classes. Ties count against the row being unusual.

    Args:
        suspicion: [n], higher is more suspicious, made without a look at ``trusted``.
        labels: [n] dense.
        trusted: [n] bool.

    Returns:
        [n] float64, at least ``1 / (1 + m_i)``: few trusted rows can not make small ones.

    **Guarantee**: for an honest row that is not trusted, ``P(p <= a) <= a`` for every a, on
    average over the draw of the trusted rows.

    **Assumes / fails on**: trusted rows are drawn at random from the honest rows of their class;
    hand-picked easy ones make honest hard rows look unusual. Where classes are pooled,
    suspicion is comparable between them.

    Reference: Vovk et al., 2003 (Mondrian p-values); Bates et al., 2023, arXiv:2104.08279.
    """
    p = np.ones(len(suspicion))
    pooled = np.sort(suspicion[trusted])
    for c in np.unique(labels):
        mine = np.flatnonzero(labels == c)
        known = np.sort(suspicion[mine[trusted[mine]]])
        if len(known) < MIN_TRUSTED:
            known = pooled
        as_high = len(known) - np.searchsorted(known, suspicion[mine], side="left")
        itself = trusted[mine].astype(np.int64)  # a trusted row is among those it is compared with
        p[mine] = (1 + as_high - itself) / (1 + len(known) - itself)
    return p


def conformal_q(p: HostArray, trusted: HostArray) -> HostArray:
    """Benjamini-Hochberg over the rows in question; a trusted row is no question and has 1.

    **Guarantee**: calling the rows with ``q <= a`` makes at most a share a of false calls, on
    average over draws of the trusted rows. The p-values share these, which makes them positively
    dependent (PRDS): it is proven for scores that are the same function of every row, whether
    trusted or not, and for classes with trusted rows of their own. Where classes are pooled it is
    not proven.

    Args:
        p: [n] from ``conformal_p``.
        trusted: [n] bool.

    Reference: Bates et al., 2023, arXiv:2104.08279; for scores made from all rows together,
    Marandon et al., 2022, arXiv:2208.06685.
    """
    q = np.ones(len(p))
    q[~trusted] = benjamini_hochberg(p[~trusted])
    return q


def against_trusted(
    verdict: Verdict, fused: Fused, labels: HostArray, trusted: HostArray, fdr: float
) -> tuple[Verdict, Fused]:
    """The verdict and the p-values once honest rows are known.

    Flagged are the rows of the findings, and every other row with ``q <= fdr``. A trusted row is
    never flagged; it keeps its place in the ranking, so that one that looks like poison is seen.
    A finding is dropped where the share of its class's trusted rows that it holds says that most
    of it is honest.

    Args:
        verdict: Made without a look at ``trusted``, as is the ranking: only so are trusted and
            other honest rows alike.
        fused: The ranking.
        labels: [n] dense.
        trusted: [n] bool.
        fdr: Share of false alarms allowed among the rows flagged by their q-value.

    Returns:
        Both, the suspicion as it was.
    """
    p = conformal_p(fused.suspicion, labels, trusted)
    q = conformal_q(p, trusted)
    left = [f for f in verdict.findings if not _is_contradicted(f, labels, trusted)]
    decided = decide([_without(f, trusted) for f in left], len(labels))
    more = (q <= fdr) & ~decided.flagged
    if more.any():
        decided = _with_more(decided, more, fdr)
    return decided, Fused(fused.suspicion, p, q)


def _is_contradicted(found: Finding, labels: HostArray, trusted: HostArray) -> bool:
    """Whether a finding has no row in question, or most of those it has are honest."""
    mine, inside = labels == found.target, int(trusted[found.rows].sum())
    asked = len(found.rows) - inside
    if inside < _FEW or not asked:
        return not asked
    share = inside / trusted[mine].sum()  # of the honest rows of its class that it takes in
    return bool(share * (mine & ~trusted).sum() > _MOST * asked)


def _without(found: Finding, trusted: HostArray) -> Finding:
    rows, near = ~trusted[found.rows], ~trusted[found.near]
    return found._replace(
        rows=found.rows[rows],
        log_odds=found.log_odds[rows],
        support=found.support[rows],
        near=found.near[near],
        near_odds=found.near_odds[near],
    )


def _with_more(verdict: Verdict, more: HostArray, fdr: float) -> Verdict:
    """A verdict with rows flagged by their q-value, which alone are suspicious, not proven."""
    before, new = int(verdict.flagged.sum()), int(more.sum())
    return verdict._replace(
        verdict="suspicious" if verdict.verdict == "clean" else verdict.verdict,
        p_poisoned=1.0 - (1.0 - verdict.p_poisoned) * (1.0 - _UNNAMED),
        estimated_rate=verdict.estimated_rate + (1.0 - fdr) * _UNNAMED * new / len(more),
        flagged=verdict.flagged | more,
        expected_fdr=(before * verdict.expected_fdr + new * fdr) / (before + new),
    )
