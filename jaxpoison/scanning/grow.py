"""Confirmed findings joined by the rows of their class that are like theirs."""

from __future__ import annotations

import numpy as np

from jaxpoison import calibrate, detect
from jaxpoison._types import OF_GRADIENTS, HostArray
from jaxpoison.detect._detector import even_subset
from jaxpoison.detect.label_views import Opinion
from jaxpoison.scanning.evidence import Evidence

_KINDS = ("backdoor",)  # whose rows share a trigger
_MAX_ROWS = 20_000  # of a class


def grown(
    findings: list[calibrate.Finding],
    evidence: list[Evidence],
    opinion: Opinion | None,
    labels: HostArray,
    fdr: float,
) -> list[calibrate.Finding]:
    """Findings with the rows that a classifier taught by theirs gives to them.

    Single detectors find the part of the poison that their view shows. What all of them together
    say of that part is learnt, and sought in the rest of the class; where several classes hold
    poison, in all classes.

    Args:
        findings: Of all kinds; confirmed backdoors are grown, or carried to other classes.
        evidence: Of every detector.
        opinion: Of the labels, or None.
        labels: [n] dense.
        fdr: Share of false alarms allowed among the flagged rows.
    """
    # what growth finds and what it raises falsely was measured without gradient families
    columns = [each.scores.values for each in evidence if each.detector not in OF_GRADIENTS]
    if opinion is not None:
        columns += [opinion.margins, opinion.depth]
    if not columns:
        return findings
    shared = _shared(findings, columns, labels, fdr)
    if shared is not None:
        return shared
    return [
        _grown(found, columns, labels, fdr) if found.confirmed and found.kind in _KINDS else found
        for found in findings
    ]


def _shared(
    findings: list[calibrate.Finding], columns: list[HostArray], labels: HostArray, fdr: float
) -> list[calibrate.Finding] | None:
    """Findings of a trigger that goes from class to class, None where they tell of no such one."""
    known = np.zeros(len(labels), np.bool_)
    for found in calibrate.carried_by(findings):
        known[found.rows] = True
    like = detect.shared_likeness(columns, labels, known)
    return calibrate.carry(findings, labels, like.log_odds, like.separation, fdr)


def _grown(
    found: calibrate.Finding, columns: list[HostArray], labels: HostArray, fdr: float
) -> calibrate.Finding:
    mine = np.flatnonzero(labels == found.target)
    if len(mine) > _MAX_ROWS:
        rest = np.setdiff1d(mine, found.rows, assume_unique=True)
        mine = np.union1d(found.rows, even_subset(rest, _MAX_ROWS))
    table = np.stack([column[mine] for column in columns], axis=1)
    known = np.isin(mine, found.rows, assume_unique=True)
    like = detect.likeness(np.nan_to_num(table), known)
    return calibrate.grow(found, mine, like.log_odds, like.separation, fdr)
