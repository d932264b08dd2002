"""Votes piece by piece, each certified and dropped as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.certify.certificates import certify
from jaxpoison.certify.learners import ClosedForm
from jaxpoison.certify.ranking import rank_classes
from jaxpoison.certify.rules._counting import count_votes
from jaxpoison.certify.votes import Votes

if TYPE_CHECKING:
    from jaxpoison.certify.ensemble import Ensemble
    from jaxpoison.certify.threats import Threat
    from jaxpoison.certifying.storing import Work

ROWS = 2048
"""Test rows of a piece, where every member is held: two blocks of the Gram matrix."""

MEMBERS = 32
"""Members of a piece, where each is trained and dropped."""

_PIECE_BYTES = 512 << 20
_BLOCK = 1024

Tell = Callable[[int], None]


class Piece(NamedTuple):
    """Test rows with their certificates.

    Attributes:
        rows: Which of the test rows.
        prediction: [b] class.
        radius: [b] touched cells.
        first: [b] votes of the prediction.
        second: [b] votes of the runner-up.
        runner_up: [b] the other class with most votes.
        right: Of all members' votes on rows with a known label, those that are right.
    """

    rows: slice
    prediction: HostArray
    radius: HostArray
    first: HostArray
    second: HostArray
    runner_up: HostArray
    right: int


@dataclass(frozen=True)
class Count:
    """How votes are counted.

    Attributes:
        rule: As ``certify`` takes it.
        threat: What the attacker may do.
        labels: [v] true classes, or None.
    """

    rule: str
    threat: Threat
    labels: HostArray | None


def pieces(
    ensemble: Ensemble, x_test: HostArray, count: Count, work: Work | None, tell: Tell
) -> Iterator[Piece]:
    """Certificates of all test rows, in order.

    Args:
        ensemble: What votes.
        x_test: [v, ...] rows.
        count: How votes are counted.
        work: Where votes are kept, or None.
        tell: Called with the votes cast so far.

    Yields:
        Rows that follow each other, with their certificates.
    """
    if not isinstance(ensemble.learner, ClosedForm):
        yield _certified(_trained(ensemble, x_test, count, work, tell), count, 0)
        return
    members, done = ensemble.partitions.design.num_subsets, 0
    step = rows_of_a_piece(members, ensemble.num_classes, count.rule)
    for number, start in enumerate(range(0, len(x_test), step)):
        rows = x_test[start : start + step]
        held = None if work is None else work.load(number)
        if held is None:
            votes = ensemble.votes(
                rows, ranking=count.rule == "run_off", progress=_from(tell, done)
            )
            if work is not None:
                work.save(number, **_arrays(votes.labels, votes.ranking))
        else:
            votes = _votes(ensemble, held["labels"], held.get("ranking"))
        done += members * len(rows)
        tell(done)
        yield _certified(votes, count, start)


def rows_of_a_piece(members: int, num_classes: int, rule: str) -> int:
    """Test rows whose votes are held at a time, in whole blocks."""
    each = members * (1 + (num_classes if rule == "run_off" else 0))
    return max(_BLOCK, min(ROWS, _PIECE_BYTES // each // _BLOCK * _BLOCK))


def _trained(
    ensemble: Ensemble, x_test: HostArray, count: Count, work: Work | None, tell: Tell
) -> Votes:
    """Votes of members that are trained, some at a time, and dropped."""
    parts, wants = ensemble.partitions, count.rule == "run_off"
    members, c = parts.design.num_subsets, ensemble.num_classes
    kind = np.min_scalar_type(c - 1)
    labels = np.zeros((members, len(x_test)), kind)
    ranking = np.zeros((members, len(x_test), c), kind) if wants else None
    for number, start in enumerate(range(0, members, MEMBERS)):
        ids = np.arange(start, min(start + MEMBERS, members))
        held = None if work is None else work.load(number)
        if held is None:
            held = _arrays(*_train(ensemble, x_test, ids, wants))
            if work is not None:
                work.save(number, **held)
        labels[ids] = held["labels"]
        if ranking is not None:
            ranking[ids] = held["ranking"]
        tell((int(ids[-1]) + 1) * len(x_test))
    return _votes(ensemble, labels, ranking)


def _train(
    ensemble: Ensemble, x_test: HostArray, ids: HostArray, wants_ranking: bool
) -> tuple[HostArray, HostArray | None]:
    parts, c = ensemble.partitions, ensemble.num_classes
    kind = np.min_scalar_type(c - 1)
    ranking = np.zeros((len(ids), len(x_test), c), kind)
    ranking[...] = np.arange(c)  # as a subset that says nothing votes: for the first class
    scored = ensemble.learner.fit_scores(parts.only(ids), parts.x, parts.y, x_test, num_classes=c)
    for subsets, scores in scored:
        inside = np.isin(subsets, ids)
        if inside.any():
            places = np.searchsorted(ids, subsets[inside])
            ranking[places] = rank_classes(np.asarray(scores)[inside])
    labels = np.argmin(ranking, axis=2).astype(kind)
    return labels, ranking if wants_ranking else None


def _certified(votes: Votes, count: Count, start: int) -> Piece:
    found = certify(votes, count.rule, count.threat)
    rows = slice(start, start + votes.num_rows)
    counts = count_votes(votes.labels, votes.num_classes).astype(np.int64)
    np.put_along_axis(counts, found.prediction[:, None].astype(np.int64), -1, 1)
    right = 0
    if count.labels is not None:
        right = int((votes.labels == count.labels[rows]).sum())
    return Piece(
        rows, found.prediction, found.radius, found.first, found.second, counts.argmax(axis=1),
        right,
    )  # fmt: skip


def _votes(ensemble: Ensemble, labels: HostArray, ranking: HostArray | None) -> Votes:
    design = ensemble.partitions.design
    ids = np.arange(design.num_subsets)
    return Votes(labels, ids, ensemble.num_classes, design, ranking)


def _arrays(labels: HostArray, ranking: HostArray | None) -> dict[str, HostArray]:
    return {"labels": labels} if ranking is None else {"labels": labels, "ranking": ranking}


def _from(tell: Tell, done: int) -> Tell:
    return lambda more: tell(done + more)
