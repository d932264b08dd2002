"""What a scan's classifiers say of its labels, and what that makes of findings."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxpoison import calibrate
from jaxpoison._types import HostArray
from jaxpoison.calibrate.labels import Flow, LabelAttack
from jaxpoison.detect.label_posterior import MAX_CLASSES, label_posterior, neighbour_shares
from jaxpoison.detect.label_views import Opinion
from jaxpoison.detect.trait import coherence
from jaxpoison.scanning import evidence as gathering
from jaxpoison.stream import Stream


class LabelEvidence(NamedTuple):
    """What label evidence says, and how to ask it again without some rows.

    Attributes:
        opinion: Of every row.
        flow: How rows lie between the classes.
        attack: What of that is an attack on labels.
        agreement: Share of rows that are given their label.
        again: [n] bool of rows known to be poison -> the same without them.
        posterior: -> [n, c] probability of every label, or None where it can not be fitted.
    """

    opinion: Opinion
    flow: Flow
    attack: LabelAttack
    agreement: float
    again: Callable[[HostArray], LabelEvidence]
    posterior: Callable[[], HostArray | None]


def label_evidence(jobs: list[gathering.Job], seed: int) -> LabelEvidence | None:
    """The evidence about labels of a scan, or None where it was not asked for."""
    job = gathering.label_job(jobs)
    if job is None:
        return None
    key = gathering.key_of(job, seed)
    opinion = job.detector.judge(job.stream, key=key)

    def again(known: HostArray) -> LabelEvidence:
        return evidence(job.detector.rejudge(job.stream, opinion, known, key=key))

    def evidence(of: Opinion) -> LabelEvidence:
        labels, c = job.stream.labels, job.stream.num_classes
        seen = calibrate.flow(of.depth, of.taken_for, labels, c)
        agreement = float((of.margins < 0).mean())
        attack = calibrate.label_attack(seen, agreement)
        return LabelEvidence(of, seen, attack, agreement, again, lambda: _posterior(job.stream, of))

    return evidence(opinion)


def _posterior(stream: Stream, opinion: Opinion) -> HostArray | None:
    if opinion.likelihoods is None or stream.num_classes > MAX_CLASSES:
        return None
    return label_posterior(opinion.likelihoods, neighbour_shares(stream), stream.labels)


def unmasked(
    evidence: LabelEvidence,
    findings: list[calibrate.Finding],
    known: HostArray,
    labels: HostArray,
) -> tuple[LabelEvidence, list[calibrate.Finding]]:
    """Label evidence without clusters that hide what their class is, and these confirmed.

    ``known`` is the poison that teaches ``evidence`` no more.
    """
    lone = [found for found in findings if not found.confirmed]
    hiding = [found for found in lone if evidence.attack.open[found.target]]
    if not hiding or evidence.attack.uniform > 0:
        return evidence, findings
    without = known.copy()
    for found in hiding:
        without[found.rows] = True
    again = evidence.again(without)
    keeps = ~without & (again.opinion.margins < 0)
    c = len(evidence.attack.targets)
    every = np.bincount(labels, minlength=c)
    taught, kept = (np.bincount(labels[rows], minlength=c) for rows in (~without, keeps))
    anew = calibrate.unmasked(
        findings,
        evidence.attack,
        again.attack,
        taught / np.maximum(every, 1),
        kept / np.maximum(taught, 1),
        float(kept.sum() / max(taught.sum(), 1)),
    )
    is_better = any(new is not old for new, old in zip(anew, findings, strict=True))
    return (again, anew) if is_better else (evidence, findings)


def labelled(
    findings: list[calibrate.Finding],
    drawn: list[bool],
    evidence: LabelEvidence,
    witness: Stream,
    fdr: float,
) -> tuple[list[calibrate.Finding], HostArray, HostArray | None]:
    """Findings with those that labels alone give, and what kind they are of.

    Also the open classes, and the doubt of every label where wrong ones are spread evenly.
    ``drawn`` says of each finding whether a group behind it has a boundary of its own.
    """
    labels, opinion, doubt = witness.labels, evidence.opinion, None
    attack, posterior = _wrong_all_over(evidence, labels)
    if posterior is None:
        found = calibrate.label_findings(
            evidence.flow, attack, opinion.depth, opinion.taken_for, labels, fdr
        )
    else:
        overlap = evidence.attack.uniform <= 0
        found = calibrate.uniform_findings(posterior, labels, fdr, overlap=overlap)
        doubt = -np.log(np.maximum(posterior[np.arange(len(labels)), labels], 1e-300))
    findings = [
        _by_labels(each, is_drawn, opinion, labels, attack)
        for each, is_drawn in zip(findings, drawn, strict=True)
    ]
    named = {each.target: each for each in findings}
    for each in found:
        other = named.get(each.target)
        if other is None:
            findings.append(_of_part(each, opinion, labels))
        elif other.kind == "label_flip":
            # what sets single groups apart says nothing of how many labels are wrong
            findings = [each if kept is other else kept for kept in findings]
    open_labels = attack.open
    open_labels[[each.target for each in findings if each.kind == "backdoor"]] = True
    if attack.uniform > 0:
        open_labels[:] = False  # all alike: none is to be preferred
    return findings, open_labels, doubt


def _wrong_all_over(
    evidence: LabelEvidence, labels: HostArray
) -> tuple[LabelAttack, HostArray | None]:
    """The attack on labels, and the posterior of every label where wrong ones are spread evenly.

    Where classes overlap it is the posterior that tells.
    """
    attack = evidence.attack
    if attack.uniform > 0:
        return attack, evidence.posterior()
    are_many = len(evidence.flow.counts) >= calibrate.FEWEST_CLASSES
    overlap = are_many and evidence.agreement < calibrate.OVERLAP
    posterior = evidence.posterior() if overlap else None
    rate = 0.0 if posterior is None else calibrate.rate_by_ranks(posterior, labels)
    return (attack._replace(uniform=rate), posterior) if rate > 0 else (attack, None)


def _by_labels(
    found: calibrate.Finding,
    is_drawn: bool,
    opinion: Opinion,
    labels: HostArray,
    attack: LabelAttack,
) -> calibrate.Finding:
    """A dirty-label finding that wrong labels all over explain, or one part of a class.

    A cut through the farthest rows takes as many as it takes, wrong labels or not.
    """
    if found.kind != "backdoor":
        return found
    if attack.uniform > 0:
        wrong = attack.uniform * (labels == found.target).sum()
        if not is_drawn or len(found.rows) <= 2.0 * wrong:
            return found._replace(kind="label_flip", source=None)
    return _of_part(found, opinion, labels)


def _of_part(found: calibrate.Finding, opinion: Opinion, labels: HostArray) -> calibrate.Finding:
    """Rows that are one coherent part of a class are those of a subpopulation."""
    if found.source is None:
        return found
    spread = coherence(opinion, labels, found.rows, found.source)
    return found._replace(kind=calibrate.kind_of_part(spread, found.kind))
