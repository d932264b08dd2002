"""Votes piece by piece, each certified and dropped as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.certify.certificates import certify
from jaxpoison.certify.learners import ClosedForm
from jaxpoison.certify.ranking import rank_classes
from jaxpoison.certify.rules._counting import count_votes
from jaxpoison.certify.votes import Votes
from jaxpoison.stream import LocalEngine, make_mesh

if TYPE_CHECKING:
    from jaxpoison.certify.ensemble import Ensemble
    from jaxpoison.certify.threats import Threat
    from jaxpoison.stream import Engine
    from jaxpoison.work import Work

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
    ensemble: Ensemble,
    x_test: HostArray,
    count: Count,
    work: Work | None,
    tell: Tell,
    engine: Engine | None = None,
) -> Iterator[Piece]:
    """Certificates of all test rows, in order.

    Args:
        ensemble: What votes.
        x_test: [v, ...] rows.
        count: How votes are counted.
        work: Where votes are kept, or None.
        tell: Called with the votes cast so far.
        engine: Where members are trained and asked; None for this process.

    Yields:
        Rows that follow each other, with their certificates.
    """
    if not isinstance(ensemble.learner, ClosedForm):
        yield _certified(_trained(ensemble, x_test, count, work, tell, engine), count, 0)
        return
    members, done = ensemble.partitions.design.num_subsets, 0
    step = rows_of_a_piece(members, ensemble.num_classes, count.rule)
    starts = range(0, len(x_test), step)
    wants = count.rule == "run_off"
    parts = [(start, min(start + step, len(x_test))) for start in starts]
    engine = engine or LocalEngine(make_mesh())
    said = tell if isinstance(engine, LocalEngine) else None  # votes cast elsewhere come in pieces
    found = _computed(_ask, (ensemble, x_test, wants, said), parts, work, engine)
    for (start, stop), held in zip(parts, found, strict=True):
        done += members * (stop - start)
        tell(done)
        votes = _votes(ensemble, held["labels"], held.get("ranking"))
        yield _certified(votes, count, start)


def _computed(
    fn: Callable[..., dict[str, HostArray]],
    shared: Any,
    items: Sequence[Any],
    work: Work | None,
    engine: Engine,
) -> Iterator[dict[str, HostArray]]:
    """``fn(shared, item)`` of each item in order: what is kept is taken, the rest is computed."""
    held = [work is not None and work.holds(_name(number)) for number in range(len(items))]
    missing = [item for item, is_held in zip(items, held, strict=True) if not is_held]
    fresh = engine.tasks(fn, engine.put(shared), missing) if missing else iter(())
    for number, (item, is_held) in enumerate(zip(items, held, strict=True)):
        known = work.load(_name(number)) if is_held and work is not None else next(fresh)
        if known is None:  # it was there a moment ago
            known = fn(shared, item)
        if not is_held and work is not None:
            work.save(_name(number), known)
        yield known


def rows_of_a_piece(members: int, num_classes: int, rule: str) -> int:
    """Test rows whose votes are held at a time, in whole blocks."""
    each = members * (1 + (num_classes if rule == "run_off" else 0))
    return max(_BLOCK, min(ROWS, _PIECE_BYTES // each // _BLOCK * _BLOCK))


def _ask(
    shared: tuple[Ensemble, HostArray, bool, Tell | None], part: tuple[int, int]
) -> dict[str, HostArray]:
    """Votes of all members on some rows."""
    ensemble, x_test, wants, tell = shared
    cast = part[0] * ensemble.partitions.design.num_subsets
    told = None if tell is None else lambda more: tell(cast + more)
    votes = ensemble.votes(x_test[slice(*part)], ranking=wants, progress=told)
    return _arrays(votes.labels, votes.ranking)


def _trained(
    ensemble: Ensemble,
    x_test: HostArray,
    count: Count,
    work: Work | None,
    tell: Tell,
    engine: Engine | None,
) -> Votes:
    """Votes of members that are trained, some at a time, and dropped."""
    wants = count.rule == "run_off"
    members, c = ensemble.partitions.design.num_subsets, ensemble.num_classes
    kind = np.min_scalar_type(c - 1)
    labels = np.zeros((members, len(x_test)), kind)
    ranking = np.zeros((members, len(x_test), c), kind) if wants else None
    parts = [
        np.arange(start, min(start + MEMBERS, members)) for start in range(0, members, MEMBERS)
    ]
    engine = engine or LocalEngine(make_mesh())
    found = _computed(_train, (ensemble, x_test, wants), parts, work, engine)
    for ids, held in zip(parts, found, strict=True):
        labels[ids] = held["labels"]
        if ranking is not None:
            ranking[ids] = held["ranking"]
        tell((int(ids[-1]) + 1) * len(x_test))
    return _votes(ensemble, labels, ranking)


def _train(shared: tuple[Ensemble, HostArray, bool], ids: HostArray) -> dict[str, HostArray]:
    """Votes of some members on all rows, trained for it."""
    ensemble, x_test, wants_ranking = shared
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
    return _arrays(labels, ranking if wants_ranking else None)


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


def _name(number: int) -> str:
    return f"piece-{number:06}"
