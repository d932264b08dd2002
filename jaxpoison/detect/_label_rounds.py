"""Rounds of fitting classifiers on partial views, each without what the one before doubted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.detect._discriminants import (
    Discriminant,
    class_sums,
    coded_margins,
    discriminant,
    doubted_rows,
    margins_by_parts,
    margins_of,
    relative,
    usual_margins,
)
from jaxpoison.detect._ridge_views import NormalEquations


class Said(NamedTuple):
    """What all rounds and views make of some rows.

    Attributes:
        margins: [r] mean over rounds and views.
        depth: [r] margin of the whole input in the last round, in units of the usual one.
        taken_for: [r] best other class, by the same.
        worst: [r] largest margin over the views in the last round.
    """

    margins: HostArray
    depth: HostArray
    taken_for: HostArray
    worst: HostArray

    def replaced(self, rows: HostArray, new: Said) -> Said:
        """The same with some rows as another one has them."""
        whole = Said(*(each.copy() for each in self))
        for each, values in zip(whole, new, strict=True):
            each[rows] = values
        return whole


class Rounds(NamedTuple):
    """All rounds, or the last one where classes are many."""

    margins: HostArray  # [r, q * v] float32, by round and view
    taken_for: HostArray
    usual: Callable[[HostArray, HostArray], HostArray]  # labels and other classes -> margins
    weights: HostArray  # [q, v, p + 1, k]
    judges: list[list[Discriminant]]  # by round and view
    num_views: int
    likelihoods: HostArray | None  # [r, 2, c], mean and last

    def read(self, judged: HostArray) -> tuple[HostArray, HostArray]:
        """Margins, by view and then by round as judges say them, by round and view; and classes."""
        order = np.arange(judged.shape[1] - 1).reshape(self.num_views, -1).T.ravel()
        return judged[:, order], judged[:, -1].astype(np.int32)

    def said(self, margins: HostArray, taken_for: HostArray, labels: HostArray) -> Said:
        """What margins [r, q * v] of rows of some labels come to."""
        last = margins[:, -self.num_views :]
        depth = (last[:, 0] / self.usual(labels, taken_for)).astype(np.float32)
        return Said(margins.mean(axis=1), depth, taken_for, last.max(axis=1))


def fit_rounds(
    equations: NormalEquations, count: int, doubted: HostArray, without: HostArray
) -> Rounds:
    """Fits and judges, each time without the rows doubted before and those never to teach."""
    labels, c = equations.labels, equations.num_classes
    if equations.is_coded:
        return _coded_rounds(equations, count, doubted, without)
    doubted = doubted | without
    margins, weights, judges = [], [], []
    total = np.zeros((len(labels), c))
    for _ in range(count):
        solved = equations.solve(doubted)
        scores = equations.out_of_fold(solved)
        judge = [discriminant(s, labels, c, ~doubted) for s in scores]
        first = judge[0].log_likelihood(scores[0])  # the others are not held beside it
        opinions = [margins_of(first, labels)]
        total += relative(first)
        for one, some in zip(judge[1:], scores[1:], strict=True):
            log = one.log_likelihood(some)
            opinions.append(margins_of(log, labels))
            total += relative(log)
        margins += [opinion[0].astype(np.float32) for opinion in opinions]
        weights.append(solved.mean(axis=1))
        judges.append(judge)
        taken_for = opinions[0][1]
        usual = usual_margins(first, labels, ~doubted)
        doubted = doubted_rows(np.max([o[0] for o in opinions], axis=0), labels, c) | without
    likelihoods = np.stack([total / len(margins), relative(first)], axis=1).astype(np.float32)
    return Rounds(
        np.stack(margins, axis=1),
        taken_for,
        lambda own, other: usual[own, other],
        np.stack(weights),
        judges,
        len(scores),
        likelihoods,
    )


def _coded_rounds(
    equations: NormalEquations, count: int, doubted: HostArray, without: HostArray
) -> Rounds:
    """The last round, of many classes: [r, c] is never held."""
    labels, c = equations.labels, equations.num_classes
    doubted = doubted | without
    for _ in range(count):
        solved = equations.solve(doubted)
        scores = equations.out_of_fold(solved)
        judge = [discriminant(s, labels, c, ~doubted) for s in scores]
        opinions = [margins_by_parts(j, s, labels) for s, j in zip(scores, judge, strict=True)]
        usual = partial(
            coded_margins, judge[0], class_sums(scores[0], labels, c, np.ones(len(labels)))
        )
        doubted = doubted_rows(np.max([o[0] for o in opinions], axis=0), labels, c) | without
    return Rounds(
        np.stack([opinion[0].astype(np.float32) for opinion in opinions], axis=1),
        opinions[0][1],
        usual,
        solved.mean(axis=1)[None],
        [judge],
        len(scores),
        None,
    )
