"""Detectors run over spaces, their gates, and the groups that verification is asked about."""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import numpy as np

from jaxpoison import calibrate, detect
from jaxpoison._types import DETECTOR_NAMES, HostArray, Scores
from jaxpoison.calibrate.verdict import MIN_ROWS, Group
from jaxpoison.detect._coordinates import coordinates
from jaxpoison.detect._detector import Detector
from jaxpoison.scanning.spaces import JOINT_RANK, ProgressFn, Space, joint_space

_SAME = 0.95  # overlap from which two row sets are one
_TAIL_Q = 0.05  # rows of an open class that a detector without odds sets apart


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


def _detectors(name: str) -> list[tuple[str, Detector]]:
    """The detectors behind a name, with what to add to the name of the space."""
    if name == "mixture":
        return [
            (" (contrast)", detect.SharedMixture(basis="contrast")),
            (" (principal)", detect.SharedMixture(basis="principal")),
        ]
    single: dict[str, Detector] = {
        "spectral": detect.SpectralSignatures(),
        "activation": detect.ActivationClustering(),
        "spectre": detect.Spectre(),
        "mahalanobis": detect.RobustMahalanobis(),
    }
    return [("", single[name])]


def _spaces_of(name: str, spaces: list[Space]) -> list[Space]:
    """Methods made for activations look at activations, where there are any."""
    learned = [s for s in spaces if s.is_learned]
    return learned if name in ("spectral", "activation") and learned else spaces


def gather(
    spaces: list[Space], names: tuple[str, ...] | None, seed: int, progress: ProgressFn
) -> list[Evidence]:
    """Runs every detector asked for in every space it is made for."""
    names = names or DETECTOR_NAMES
    jobs = [
        (name, suffix, detector, space)
        for name in names
        for suffix, detector in _detectors(name)
        for space in _spaces_of(name, spaces)
    ]
    joint = joint_space(spaces) if "mixture" in names else None
    if joint is not None:
        jobs.append(("mixture", "", detect.SharedMixture(basis="given"), joint))
    out = []
    rows = len(spaces[0].stream)
    for i, (name, suffix, detector, space) in enumerate(jobs):
        started = time.perf_counter()
        # the key follows from the names, so that leaving a detector out changes no other
        key = jax.random.fold_in(jax.random.key(seed), _number(name + suffix + space.name))
        scores = detector.score(space.stream, key=key)
        stream = space.stream
        out.append(
            Evidence(
                detector=name,
                space=space.name + suffix,
                scores=scores,
                log10_p=calibrate.tail_log10_p(scores.values, stream.labels, stream.num_classes),
                gate=calibrate.gate(name, scores),
                seconds=time.perf_counter() - started,
                num_features=_width(space),
                min_rows=detector.min_rows,
            )
        )
        progress("score", (i + 1) * rows, len(jobs) * rows)
    return out


def _number(text: str) -> int:
    """A stable number for a name (``hash`` differs from run to run)."""
    import zlib

    return zlib.crc32(text.encode())


def _width(space: Space) -> int:
    return int(np.prod(space.stream.row_shape))


def groups_of(evidence: list[Evidence], labels: HostArray) -> list[Group]:
    """The rows that each open gate sets apart, class by class."""
    out = []
    for each in evidence:
        for target in np.flatnonzero(each.gate.open):
            mine = np.flatnonzero(labels == target)
            if each.scores.candidates is not None:
                rows = mine[each.scores.candidates[mine]]
            else:
                q = calibrate.benjamini_hochberg(10.0 ** each.log10_p[mine])
                rows = mine[q <= _TAIL_Q]
            if not MIN_ROWS <= len(rows) < len(mine):
                continue
            is_mixture = each.detector == "mixture"
            out.append(
                Group(
                    detector=each.detector,
                    space=each.space,
                    target=int(target),
                    rows=rows,
                    log_odds=each.scores.values[rows].astype(np.float64) if is_mixture else None,
                    separation=float(each.gate.statistic[target]) if is_mixture else float("nan"),
                    z=float(each.gate.z[target]),
                    num_features=each.num_features,
                )
            )
    return out


def disputed(labels: HostArray, agrees: HostArray) -> list[HostArray]:
    """The rows of each class that an out-of-fold classifier gives another label, if several."""
    rows = np.flatnonzero(~agrees)
    of = labels[rows]
    return [rows[of == c] for c in np.unique(of) if (of == c).sum() >= MIN_ROWS]


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
    stream = next(s.stream for s in spaces if s.name == name)
    return coordinates(stream, "contrast" if basis.startswith("contrast") else "principal", 16)
