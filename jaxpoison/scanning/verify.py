"""What the groups that detectors set apart, and doubted labels, turn out to be."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from jaxpoison import calibrate, detect
from jaxpoison._types import Exclusion, HostArray
from jaxpoison.detect._detector import even_subset
from jaxpoison.detect.label_views import Opinion
from jaxpoison.detect.trait import Trait, traits
from jaxpoison.scanning import evidence as gathering
from jaxpoison.scanning.labelling import LabelEvidence, labelled, unmasked
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


class _Checks:
    """Verifications, one a set of rows: groups of the same rows share it, asked again or not."""

    def __init__(self, witness: Stream, seed: int) -> None:
        self._check, self.witness = detect.ExclusionCheck(), witness
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
        judged = self._check.check(self.witness, self.fitted, list(new.values()))
        self._judged.update(zip(new, judged, strict=True))
        return [self._judged[names[i]] for i in number]

    def find(
        self, groups: list[calibrate.Group], fdr: float
    ) -> tuple[list[Exclusion], list[calibrate.Finding]]:
        """Verifications, and what follows from them."""
        checks, num_classes = self.of(groups), self.witness.num_classes
        return checks, calibrate.find(groups, checks, num_classes=num_classes, fdr=fdr)


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
    checks, findings, labels, shared = _found(checked, groups, labels, num_features, own_units, fdr)
    anew, redrawn = _redrawn(witness, fitted, disputed, findings, fdr)
    anew = [_surrounded(found, groups, shared) for found in anew]
    rest = [found for found in findings if not found.confirmed]
    open_labels = doubt = None
    if labels is not None:
        is_drawn = [
            found.target in redrawn or any(_has_boundary(groups[i]) for i in found.groups)
            for found in anew
        ]
        anew, open_labels, doubt = labelled(anew, is_drawn, labels, witness, fdr)
        named = {found.target for found in anew}
        rest = [found for found in rest if found.target not in named]
    progress("verify", len(witness), len(witness))
    opinion = None if labels is None else labels.opinion
    return Verified(checks, [*anew, *rest], open_labels, opinion, doubt)


def _found(
    checked: _Checks,
    groups: list[calibrate.Group],
    labels: LabelEvidence | None,
    num_features: int,
    own_units: bool,
    fdr: float,
) -> tuple[
    list[Exclusion],
    list[calibrate.Finding],
    LabelEvidence | None,
    list[tuple[calibrate.Group, Trait]],
]:
    """Checks, findings, the labels and the traits; where poison is known, asked again without it.

    Groups of traits are appended to ``groups``.
    """
    witness, num_given = checked.witness, len(groups)
    shared = _traits(witness, labels, num_features, own_units)
    groups += [group for group, _ in shared]
    checks, findings = checked.find(groups, fdr)
    known = np.zeros(len(witness), np.bool_)
    for found in findings:
        known[found.rows] |= found.confirmed and found.kind == "backdoor"
    if labels is not None and known.any() and labels.attack.uniform <= 0:
        # what is left of the poison was hidden by what these rows taught
        labels = labels.again(known)
        shared = [*shared, *_traits(witness, labels, num_features, own_units)]
        groups[num_given:] = [group for group, _ in shared]
        checks, findings = checked.find(groups, fdr)
    if labels is not None:
        labels, findings = unmasked(labels, findings, known, witness.labels)
    return checks, findings, labels, shared


def _redrawn(
    witness: Stream,
    fitted: detect.exclusion.Fit,
    disputed: list[HostArray],
    findings: list[calibrate.Finding],
    fdr: float,
) -> tuple[list[calibrate.Finding], set[int]]:
    """Confirmed findings, backdoors with new boundaries; the classes where these are of a shift."""
    confirmed = [found for found in findings if found.confirmed]
    shifts = [found for found in confirmed if found.kind == "backdoor"]
    drawn = detect.refine(witness, fitted, [found.rows for found in shifts])
    anew = [
        found if new is None else calibrate.redraw(found, new, fdr)
        for found, new in zip(shifts, drawn, strict=True)
    ]
    redrawn = {each.target for each, found in zip(anew, shifts, strict=True) if each is not found}
    anew = _extended(witness, fitted, disputed, anew)
    return [*anew, *(found for found in confirmed if found.kind != "backdoor")], redrawn


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
