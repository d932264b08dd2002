"""What the groups that detectors set apart, and doubted labels, turn out to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxpoison import calibrate, detect
from jaxpoison._types import Exclusion, HostArray
from jaxpoison.calibrate.labels import Flow, LabelAttack
from jaxpoison.detect._detector import even_subset
from jaxpoison.detect.label_posterior import MAX_CLASSES, label_posterior, neighbour_shares
from jaxpoison.detect.label_views import Opinion
from jaxpoison.detect.trait import Trait, coherence, traits
from jaxpoison.scanning import evidence as gathering
from jaxpoison.scanning.plan import ScanPlan
from jaxpoison.scanning.spaces import ProgressFn
from jaxpoison.stream import Stream

_DISPUTED_ROWS = 2000  # of a class whose displacement is looked at
_MOST_SHIFTS = 64  # classes whose disputed rows are searched for a shift


class Verified(NamedTuple):
    """The outcome.

    Attributes:
        checks: One a group.
        findings: Confirmed ones first.
        open_labels: [c] bool, classes whose labels are wrong beyond honest confusion, or None
            where label evidence did not run.
        opinion: Of the labels in the end, or None.
        doubt: [n] ``-log p(label | row)`` where labels are wrong all over, else None.
    """

    checks: list[Exclusion]
    findings: list[calibrate.Finding]
    open_labels: HostArray | None
    opinion: Opinion | None
    doubt: HostArray | None


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


class _Checks:
    """Verifications, one a set of rows: groups of the same rows share it, asked again or not."""

    def __init__(self, witness: Stream, seed: int) -> None:
        self._check, self._witness = detect.ExclusionCheck(), witness
        key = jax.random.fold_in(jax.random.key(seed), 1)
        self.fitted = self._check.fit(witness, key=key)
        self._judged: dict[bytes, Exclusion] = {}

    def of(self, groups: list[calibrate.Group]) -> list[Exclusion]:
        """One a group."""
        sets, number = gathering.distinct(groups)
        names = [rows.tobytes() for rows in sets]
        new = {
            name: rows for name, rows in zip(names, sets, strict=True) if name not in self._judged
        }
        judged = self._check.check(self._witness, self.fitted, list(new.values()))
        self._judged.update(zip(new, judged, strict=True))
        return [self._judged[names[i]] for i in number]


def verify(
    plan: ScanPlan,
    witness: Stream,
    groups: list[calibrate.Group],
    labels: LabelEvidence | None,
    num_features: int,
    own_units: bool,
    progress: ProgressFn,
) -> Verified:
    """Asks of every group where its rows belong, and redraws the boundary of what is confirmed.

    Groups come from the detectors' gates; from rows that a classifier gives another label out of
    fold, where some of those share a shift; and from traits that doubted rows share. What is left
    of wrong labels beyond honest confusion is a finding of its own.

    Args:
        plan: For the seed and the false discovery rate.
        witness: The inputs as verification sees them.
        groups: From open gates; more are appended.
        labels: Evidence about the labels, or None where it did not run.
        num_features: Of an input.
        own_units: Whether each of them was given a unit of its own.
        progress: Told at the beginning and at the end.
    """
    progress("verify", 0, len(witness))
    checked, fdr = _Checks(witness, plan.method.seed), plan.method.fdr
    fitted = checked.fitted
    disputed = gathering.disputed(witness.labels, fitted.agrees)
    shifted = detect.refine(witness, fitted, _most_disputed(witness, disputed), is_mixed=True)
    groups += calibrate.shifted_groups(witness.labels, shifted, num_features)
    groups[:] = [group._replace(own_units=own_units) for group in groups]
    num_given, shared = len(groups), _traits(witness, labels, num_features, own_units)
    groups += [group for group, _ in shared]
    checks = checked.of(groups)
    findings = calibrate.find(groups, checks, num_classes=witness.num_classes, fdr=fdr)
    known = np.zeros(len(witness), np.bool_)
    for found in findings:
        known[found.rows] |= found.confirmed and found.kind == "backdoor"
    if labels is not None and known.any() and labels.attack.uniform <= 0:
        # what is left of the poison was hidden by what these rows taught
        labels = labels.again(known)
        shared = [*shared, *_traits(witness, labels, num_features, own_units)]
        groups[num_given:] = [group for group, _ in shared]
        checks = checked.of(groups)
        findings = calibrate.find(groups, checks, num_classes=witness.num_classes, fdr=fdr)
    if labels is not None:
        labels, findings = _unmasked(labels, findings, known, witness.labels)
    confirmed = [found for found in findings if found.confirmed]
    shifts = [found for found in confirmed if found.kind == "backdoor"]
    drawn = detect.refine(witness, fitted, [found.rows for found in shifts])
    anew = [
        found if new is None else calibrate.redraw(found, new, fdr)
        for found, new in zip(shifts, drawn, strict=True)
    ]
    redrawn = {each.target for each, found in zip(anew, shifts, strict=True) if each is not found}
    anew = _extended(witness, fitted, disputed, anew)
    anew += [found for found in confirmed if found.kind != "backdoor"]
    anew = [_surrounded(found, groups, shared) for found in anew]
    rest = [found for found in findings if not found.confirmed]
    open_labels = doubt = None
    if labels is not None:
        is_drawn = [
            found.target in redrawn or any(_has_boundary(groups[i]) for i in found.groups)
            for found in anew
        ]
        anew, open_labels, doubt = _labelled(anew, is_drawn, labels, witness, fdr)
        named = {found.target for found in anew}
        rest = [found for found in rest if found.target not in named]
    progress("verify", len(witness), len(witness))
    opinion = None if labels is None else labels.opinion
    return Verified(checks, [*anew, *rest], open_labels, opinion, doubt)


def _unmasked(
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


def _most_disputed(witness: Stream, disputed: list[HostArray]) -> list[HostArray]:
    """The disputed rows of the classes with the largest shares of them, of not too many."""
    if len(disputed) <= _MOST_SHIFTS:
        return disputed
    share = [len(rows) / witness.counts[witness.labels[rows[0]]] for rows in disputed]
    most = np.argsort(-np.array(share), kind="stable")[:_MOST_SHIFTS]
    return [disputed[i] for i in np.sort(most)]


def _traits(
    witness: Stream, labels: LabelEvidence | None, num_features: int, own_units: bool
) -> list[tuple[calibrate.Group, Trait]]:
    """Traits that are worth verifying, as groups."""
    if labels is None:
        return []
    out = []
    for found in traits(labels.opinion, witness.labels, witness.num_classes):
        target = int(witness.labels[found.rows[0]])
        group = calibrate.trait_group(
            target,
            found.rows,
            found.log_odds,
            found.separation,
            found.depth,
            num_features,
        )._replace(own_units=own_units)
        if calibrate.is_worth_verifying(group):
            out.append((group, found))
    return out


def _surrounded(
    found: calibrate.Finding,
    groups: list[calibrate.Group],
    shared: list[tuple[calibrate.Group, Trait]],
) -> calibrate.Finding:
    """A finding with the odds that its traits give to the other rows of its class."""
    behind = [groups[i] for i in found.groups]
    mine = [trait for group, trait in shared if any(group is each for each in behind)]
    if not mine:
        return found
    rows = np.unique(np.concatenate([trait.rows for trait in mine]))
    odds = np.full(len(rows), -np.inf)
    for trait in mine:
        at = np.searchsorted(rows, trait.rows)
        odds[at] = np.maximum(odds[at], trait.log_odds)
    return calibrate.surround(found, rows, odds)


def _has_boundary(group: calibrate.Group) -> bool:
    return group.log_odds is not None or bool(group.hint)


def _labelled(
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


def _extended(
    witness: Stream,
    fitted: detect.exclusion.Fit,
    disputed: list[HostArray],
    findings: list[calibrate.Finding],
) -> list[calibrate.Finding]:
    """Findings joined by the disputed rows of their classes that are displaced by themselves."""
    if not findings:
        return findings
    targets = {found.target for found in findings}
    named = [rows for rows in disputed if int(witness.labels[rows[0]]) in targets]
    rest = [rows for rows in disputed if int(witness.labels[rows[0]]) not in targets]
    some = [even_subset(rows, _DISPUTED_ROWS) for rows in [*named, *_most_disputed(witness, rest)]]
    ratios = detect.displacement(witness, fitted, some)
    of = [int(witness.labels[rows[0]]) for rows in some]
    elsewhere = [r for r, target in zip(ratios, of, strict=True) if target not in targets]
    null = np.concatenate(elsewhere) if elsewhere else np.zeros(0)
    mine = dict(zip(of, zip(some, ratios, strict=True), strict=True))
    nothing = (np.zeros(0, np.int64), np.zeros(0))
    return [
        calibrate.extend(
            found, *mine.get(found.target, nothing), null, int(witness.counts[found.target])
        )
        for found in findings
    ]
