"""Detectors run over spaces, their gates, and the groups that verification is asked about."""

from __future__ import annotations

import time
import zlib
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxpoison import calibrate, detect
from jaxpoison._check import UsageError
from jaxpoison._types import NEEDS, OF_GRADIENTS, USER_PREFIX, HostArray, Scores
from jaxpoison.calibrate.groups import MAX_SHARE, MIN_ROWS, Group
from jaxpoison.detect import registry
from jaxpoison.detect._coordinates import coordinates
from jaxpoison.detect._detector import Detector
from jaxpoison.layout import ClassRows
from jaxpoison.models import Model
from jaxpoison.scanning.spaces import JOINT_RANK, ProgressFn, Space, joint_space
from jaxpoison.stream import Journal, Stream

_SAME = 0.95  # overlap from which two row sets are one
_TAIL_Q = 0.05  # rows of an open class that a detector without odds sets apart


Looks = Literal[
    "everywhere",  # at every space
    "learned",  # at the layers of a network, where there is one; else at every space
    "input",  # at the inputs, or features where they are all there is
    "both ends",  # at the inputs and at the last layer
    "last",  # at the last layer, else at the inputs
    "raw",  # at the rows as they were given
    "dynamics",  # at the record of a training
    "model",  # at what a network says of the rows as they were given
]


class Entry(NamedTuple):
    """How a scan runs a detector of a name.

    Attributes:
        looks: Where.
        detectors: The values behind the name, with what to add to the name of the space.
        joint: One more for all spaces side by side.
        has_odds: Whether its values are log odds of being one of the candidates.
        hint: What its groups are, if it knows.
    """

    looks: Looks
    detectors: tuple[tuple[str, Any], ...]
    joint: Detector | None = None
    has_odds: bool = False
    hint: str = ""


TABLE = {
    "spectral": Entry("learned", (("", detect.SpectralSignatures(shares_bases=True)),)),
    "activation": Entry("learned", (("", detect.ActivationClustering()),)),
    "spectre": Entry("everywhere", (("", detect.Spectre()),)),
    "mahalanobis": Entry("everywhere", (("", detect.RobustMahalanobis()),)),
    "mixture": Entry(
        "everywhere",
        (
            (" (contrast)", detect.SharedMixture(basis="contrast")),
            (" (principal)", detect.SharedMixture(basis="principal")),
        ),
        joint=detect.SharedMixture(basis="given"),
        has_odds=True,
    ),
    "whitening": Entry("input", (("", detect.ContrastWhitening()),), has_odds=True),
    "duplicates": Entry("input", (("", detect.NearDuplicates()),), hint="duplicates"),
    "labels": Entry("raw", (("", detect.LabelViews()),)),
    "neighbours": Entry("both ends", (("", detect.KNNDisagreement()),)),
    "density": Entry("input", (("", detect.LocalDensity()),)),
    "early_loss": Entry("dynamics", (("", detect.EarlyLoss()),)),
    "el2n": Entry("dynamics", (("", detect.EL2N()),)),
    "aum": Entry("dynamics", (("", detect.AUM()),)),
    "loss_drop": Entry("dynamics", (("", detect.LossDrop()),)),
    "low_loss": Entry("dynamics", (("", detect.LowLossIsolation()),)),
    "clusters": Entry("input", (("", detect.DensityClusters()),)),
    "split": Entry("both ends", (("", detect.VarianceDecomposition()),)),
    "gram": Entry("last", (("", detect.GramPowers()),)),
    "low_rank": Entry("input", (("", detect.RobustPCA()),)),
    "strip": Entry("model", (("", detect.Strip()),)),
    # the direction first: its pass gives the norms as well
    "gradient_direction": Entry("model", (("", detect.GradientDirection()),)),
    "gradient_norm": Entry("model", (("", detect.GradientNorm()),)),
    "self_influence": Entry("last", (("", detect.SelfInfluence()),)),
    "influence": Entry("last", (("", detect.TargetInfluence()),)),
    "shapley": Entry("both ends", (("", detect.KNNShapley()),)),
}
"""Every detector of ``DETECTOR_NAMES``: its values, and where they look."""


class Job(NamedTuple):
    """One detector over one stream.

    Attributes:
        name: Of the detector.
        space: Name of what it looks at.
        suffix: Added to it where a name stands for several detectors.
        detector: The value.
        stream: What it looks at.
        given: What else its ``score`` takes.
    """

    name: str
    space: str
    suffix: str
    detector: Any
    stream: Stream
    given: dict[str, Any]


class Evidence(NamedTuple):
    """One detector in one space.

    Attributes:
        detector: Name in the report.
        space: Name, with the basis where a detector has several.
        scores: What the detector said.
        log10_p: [n] row tails.
        gate: By class.
        seconds: Time taken.
        num_features: d of the space.
        min_rows: Rows a class needs.
    """

    detector: str
    space: str
    scores: Scores
    log10_p: HostArray
    gate: calibrate.Gate
    seconds: float
    num_features: int
    min_rows: int


def load_user_detectors(names: tuple[str, ...]) -> dict[str, Detector]:
    """The detectors of other packages among the names, imported before the long work begins.

    Raises:
        UsageError: One is not installed, or is no detector.
    """
    return {n: registry.load(n.removeprefix(USER_PREFIX)) for n in names if _is_user(n)}


def jobs_of(
    spaces: list[Space],
    raw: Stream,
    model: Model | None,
    names: tuple[str, ...],
    loaded: dict[str, Detector],
    told: dict[str, dict[str, Any]] | None = None,
    *,
    are_named: bool = True,
) -> tuple[list[Job], dict[str, str]]:
    """What to run, and why a detector asked for can not run.

    Args:
        spaces: Inputs first, then layers, the last one first.
        raw: The rows as given.
        model: A network over them, if there is one.
        names: Detectors asked for.
        loaded: Those of other packages.
        told: What else the detectors of ``NEEDS`` are given.
        are_named: Whether the user named them. A network that is given need not have gradients,
            and features may be many: unnamed, ``OF_GRADIENTS`` run where one was trained here.
    """
    jobs: list[Job] = []
    reasons = {}
    for name in names:
        entry = Entry("input", (("", loaded[name]),)) if name in loaded else TABLE[name]
        more = (told or {}).get(name, {})
        if name in NEEDS and not more:
            reasons[name] = f"{NEEDS[name]} was not given"
            continue
        if name in OF_GRADIENTS and not are_named and not _trained(spaces):
            reasons[name] = f"{_UNTRAINED}; name it to run it all the same"
            continue
        views, why = _views(entry.looks, spaces, raw, model)
        if why:
            reasons[name] = why
        jobs += [
            Job(name, space, suffix, detector, stream, {**given, **more})
            for suffix, detector in entry.detectors
            for space, stream, given in views
        ]
        joint = joint_space(spaces) if entry.joint is not None else None
        if joint is not None:
            jobs.append(Job(name, joint.name, "", entry.joint, joint.stream, {}))
    return jobs, reasons


_View = tuple[str, Stream, dict[str, Any]]

_UNTRAINED = "no network was trained in this scan"


def _views(
    looks: Looks, spaces: list[Space], raw: Stream, model: Model | None
) -> tuple[list[_View], str]:
    """What a detector looks at, or why it has nothing to look at."""
    if looks == "raw":
        return [("raw", raw, {})], ""
    if looks == "model":
        if model is None:
            return [], "no network was trained or given, only features"
        return [("raw", raw, {"model": model})], ""
    if looks == "dynamics":
        trained = _trained(spaces)
        if not trained:
            return [], _UNTRAINED
        return [("training", trained[0].stream, {"dynamics": trained[0].dynamics})], ""
    learned = [s for s in spaces if s.is_learned]
    chosen = {
        "everywhere": spaces,
        "learned": learned or spaces,
        "input": spaces[:1],
        "both ends": [spaces[0], *learned[:1]],
        "last": (learned or spaces)[:1],
    }[looks]
    return [(s.name, s.stream, {}) for s in chosen], ""


def _trained(spaces: list[Space]) -> list[Space]:
    """The layers of a network that the scan trained."""
    return [s for s in spaces if s.dynamics is not None and s.dynamics.rows is not None]


def gather(
    jobs: list[Job], seed: int, progress: ProgressFn, journal: Journal | None = None
) -> list[Evidence]:
    """Runs every detector over what it looks at.

    Args:
        jobs: What to run.
        seed: Of everything random.
        progress: Told behind each.
        journal: Has the scores of detectors that are done, and is given those of the others; or
            None.

    Raises:
        UsageError: A detector of another package fails, or returns what no detector does.
    """
    out = []
    for i, job in enumerate(jobs):
        started = time.perf_counter()
        stream = job.stream
        scores = _kept_score(job, seed, journal)
        out.append(
            Evidence(
                detector=job.name,
                space=job.space + job.suffix,
                scores=scores,
                log10_p=calibrate.tail_log10_p(scores.values, stream.labels, stream.num_classes),
                gate=calibrate.gate(job.name, scores),
                seconds=time.perf_counter() - started,
                num_features=int(np.prod(stream.row_shape)),
                min_rows=int(job.detector.min_rows),
            )
        )
        progress("score", (i + 1) * len(stream), len(jobs) * len(stream))
    return out


def _kept_score(job: Job, seed: int, journal: Journal | None) -> Scores:
    # foreign types can not be kept; the pass behind gradients is, and gives other detectors more
    if journal is None or _is_user(job.name) or job.name == "gradient_direction":
        return _score(job, key_of(job, seed))
    held: Scores | None = journal.load(name := f"scores-{job.name}{job.suffix}-{job.space}")
    if held is None:
        held = _score(job, key_of(job, seed))
        journal.save(name, held)
    return held


def _score(job: Job, key: jax.Array) -> Scores:
    if not _is_user(job.name):
        scores: Scores = job.detector.score(job.stream, key=key, **job.given)
        return scores
    try:
        said = job.detector.score(job.stream, key=key)
    except Exception as error:  # whatever foreign code raises
        raise UsageError(
            f"detector {job.name!r} failed: {type(error).__name__}: {error}; leave it out, or "
            "report this to the package that offers it"
        ) from error
    return registry.checked(said, len(job.stream), job.stream.num_classes, job.name)


def _is_user(name: str) -> bool:
    return name.startswith(USER_PREFIX)


def label_job(jobs: list[Job]) -> Job | None:
    """The one that asks for label errors, if it ran: it knows more of the rows than its scores."""
    return next((job for job in jobs if job.name == "labels"), None)


def key_of(job: Job, seed: int) -> jax.Array:
    """Follows from the names, so that leaving a detector out changes no other."""
    return jax.random.fold_in(jax.random.key(seed), _number(job.name + job.suffix + job.space))


def _number(text: str) -> int:
    """A stable number for a name (``hash`` differs from run to run)."""
    return zlib.crc32(text.encode())


def groups_of(evidence: list[Evidence], labels: HostArray, num_features: int) -> list[Group]:
    """The rows that each open gate sets apart, class by class.

    Layers of a network over few features inherit their modes: a group has at most as many
    features as the inputs, ``num_features``.
    """
    out = []
    of_class = ClassRows(labels, int(labels.max()) + 1)
    for each in evidence:
        for target in np.flatnonzero(each.gate.open):
            mine = of_class[target]
            if each.scores.candidates is not None:
                rows = mine[each.scores.candidates[mine]]
            else:
                q = calibrate.benjamini_hochberg(10.0 ** each.log10_p[mine])
                rows = mine[q <= _TAIL_Q]
            if MIN_ROWS <= len(rows) <= MAX_SHARE * len(mine):
                found = _group(each, int(target), rows)
                size = min(found.num_features, num_features)
                out.append(found._replace(num_features=size, share=len(rows) / len(mine)))
    return out


def _group(each: Evidence, target: int, rows: HostArray) -> Group:
    entry, info = TABLE[each.detector], each.scores.info
    # the statistic of some detectors is the separation itself
    separation = getattr(info, "separation", each.gate.statistic)
    ratio = getattr(info, "spread_ratio", None)
    return Group(
        detector=each.detector,
        space=each.space,
        target=target,
        rows=rows,
        log_odds=each.scores.values[rows].astype(np.float64) if entry.has_odds else None,
        separation=float(separation[target]) if entry.has_odds else float("nan"),
        z=float(each.gate.z[target]),
        num_features=each.num_features,
        hint=entry.hint,
        spread_ratio=float("nan") if ratio is None else float(ratio[target]),
    )


def disputed(labels: HostArray, agrees: HostArray) -> list[HostArray]:
    """The rows of each class that an out-of-fold classifier gives another label, if several."""
    rows = np.flatnonzero(~agrees)
    of = labels[rows]
    order = np.argsort(of, kind="stable")
    edges = np.flatnonzero(np.diff(of[order])) + 1
    return [part for part in np.split(rows[order], edges) if len(part) >= MIN_ROWS]


def distinct(groups: list[Group]) -> tuple[list[HostArray], list[int]]:
    """Row sets worth verifying: detectors that set the same rows apart share one verification.

    Returns:
        The row sets, and for each group the number of its set.
    """
    sets: list[HostArray] = []
    targets: list[int] = []
    number = []
    for group in groups:
        for i, (rows, target) in enumerate(zip(sets, targets, strict=True)):
            if target == group.target and _overlap(rows, group.rows) >= _SAME:
                number.append(i)
                break
        else:
            number.append(len(sets))
            sets.append(group.rows)
            targets.append(group.target)
    return sets, number


def _overlap(left: HostArray, right: HostArray) -> float:
    """Jaccard index of two ascending row sets."""
    both = len(np.intersect1d(left, right, assume_unique=True))
    return both / (len(left) + len(right) - both)


def seen_in(spaces: list[Space], each: Evidence) -> HostArray:
    """The coordinates [n, k] that a piece of evidence was found in, for pictures."""
    if each.space == "joint":
        parts = [coordinates(s.stream, "contrast", JOINT_RANK) for s in spaces]
        return np.concatenate(parts, axis=1)
    name, _, basis = each.space.partition(" (")
    # what is no space of its own is shown in the last layer, where there is one
    last = [s for s in spaces if s.is_learned] or spaces
    stream = next((s.stream for s in spaces if s.name == name), last[0].stream)
    return coordinates(stream, "contrast" if basis.startswith("contrast") else "principal", 16)
