"""Linear discriminants of classifier scores: how far is a row from its own class?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.linalg import one_thread

DOUBT = 3.0
"""Margin (nats) from which on a row does not teach in the next round."""

_SHRINKAGE = 1e-3  # of the score covariance towards its mean diagonal
_TRIMS = 2
_PART_FLOATS = 1 << 21  # of log likelihoods held at a time where they are not kept
_MIN_CLASS = 8  # rows of a class from which on others may be taken for it
_MOST_DOUBTED = 0.75  # of a class that may be set aside: something must stay to know it by


class Discriminant(NamedTuple):
    """Linear discriminants of k scores; log likelihood is ``z @ centre^T - |centre|^2 / 2``.

    Attributes:
        root: [k, k] whitens scores.
        centre: [c, k] class means, whitened.
        offset: [c] ``|centre|^2 / 2``, infinite for a class too small to know.
    """

    root: HostArray
    centre: HostArray
    offset: HostArray

    def log_likelihood(self, scores: HostArray) -> HostArray:
        """Log likelihoods [n, c] of scores [n, k], but for a constant of each row."""
        out: HostArray = scores @ self.root @ self.centre.T - self.offset
        return out


@one_thread()
def discriminant(scores: HostArray, labels: HostArray, c: int, teaching: HostArray) -> Discriminant:
    """Class means and pooled covariance of the scores [n, k] of settled rows."""
    k = scores.shape[1]
    if k == c:  # else as they are: codes of many classes are judged in float32, at half the cost
        scores = scores.astype(np.float64)
    keep = teaching
    for _ in range(_TRIMS):
        counts, sums = class_sums(scores, labels, c, keep)
        mean = sums / np.maximum(counts, 1.0)[:, None]
        centred = (scores - mean.astype(scores.dtype)[labels])[keep]
        cov = (centred.T @ centred).astype(np.float64) / max(len(centred), 1)
        cov += (_SHRINKAGE * np.trace(cov) / k + 1e-12) * np.eye(k)
        values, axes = np.linalg.eigh(cov)
        root = axes / np.sqrt(values)
        centre = mean @ root
        offset = np.where(counts < _MIN_CLASS, np.inf, 0.5 * (centre**2).sum(axis=1))
        out = Discriminant(*(a.astype(scores.dtype) for a in (root, centre, offset)))
        if k != c:
            return out
        keep = teaching & (margins_by_parts(out, scores, labels)[0] < DOUBT)
    return out


def class_sums(
    scores: HostArray, labels: HostArray, c: int, keep: HostArray
) -> tuple[HostArray, HostArray]:
    """Rows [c] and sums of scores [c, k] of the kept rows of each class."""
    if scores.shape[1] >= c:
        onehot = np.eye(c)[labels] * keep[:, None]
        return onehot.sum(axis=0), onehot.T @ scores
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=c)
    filled, first = counts > 0, np.cumsum(counts) - counts
    sums = np.zeros((c, scores.shape[1]))
    kept = scores * np.asarray(keep, scores.dtype)[:, None]
    sums[filled] = np.add.reduceat(kept[order], first[filled], axis=0)
    return np.bincount(labels, weights=keep, minlength=c), sums


@one_thread()
def margins_by_parts(
    judge: Discriminant, scores: HostArray, labels: HostArray
) -> tuple[HostArray, HostArray]:
    """``margins_of`` the log likelihoods, of so many rows at a time that all classes fit."""
    if scores.shape[1] == len(judge.offset):
        return margins_of(judge.log_likelihood(scores), labels)
    step, head = max(_PART_FLOATS // len(judge.offset), 1), judge.root @ judge.centre.T
    parts = [
        margins_of(scores[i : i + step] @ head - judge.offset, labels[i : i + step])
        for i in range(0, len(scores), step)
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def coded_margins(
    judge: Discriminant, all_rows: tuple[HostArray, HostArray], own: HostArray, other: HostArray
) -> HostArray:
    """What ``usual_margins`` says of pairs of classes, by class means in place of medians.

    Args:
        judge: Of settled rows.
        all_rows: Counts [c] and sums of scores [c, k] of all rows.
        own: [n] classes by label.
        other: [n] classes that these rows are taken for.

    Returns:
        [n] margin of the other class's mean against the own class, infinite where the two are not
        told apart.
    """
    counts, sums = all_rows
    every = (sums / np.maximum(counts, 1.0)[:, None]) @ judge.root

    def part(own: HostArray, other: HostArray) -> HostArray:
        with np.errstate(invalid="ignore"):
            step = judge.centre[other] - judge.centre[own]
            offset = judge.offset[other] - judge.offset[own]
            apart = np.einsum("nk,nk->n", every[other], step) - offset >= DOUBT
            margin = np.einsum("nk,nk->n", judge.centre[other], step) - offset
        out: HostArray = np.where(apart & (margin >= DOUBT), margin, np.inf)
        return out

    rows = max(_PART_FLOATS // every.shape[1], 1)
    parts = [part(own[i : i + rows], other[i : i + rows]) for i in range(0, len(own), rows)]
    return np.concatenate(parts) if parts else np.zeros(0)


def margins_of(log: HostArray, labels: HostArray) -> tuple[HostArray, HostArray]:
    """Best other class against the own one, and which it is; 0 for a class too small to know."""
    at = np.arange(len(labels))
    own = log[at, labels]
    others = log.copy()
    others[at, labels] = -np.inf
    best = others.argmax(axis=1)
    known = np.isfinite(own) & np.isfinite(others[at, best])
    margin = np.where(known, others[at, best], 0.0) - np.where(known, own, 0.0)
    return margin, best.astype(np.int32)


def relative(log: HostArray) -> HostArray:
    """Log likelihoods less the row's mean over the classes; 0 for a class too small to know."""
    known = np.isfinite(log)
    held = np.where(known, log, 0.0)
    mean = held.sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    out: HostArray = np.where(known, held - mean, 0.0)
    return out


def doubted_rows(margins: HostArray, labels: HostArray, c: int) -> HostArray:
    """The doubted rows, of each class at most a share: the most doubted first."""
    doubted = margins > DOUBT
    for k in np.flatnonzero(np.bincount(labels[doubted], minlength=c)):
        mine = np.flatnonzero(labels == k)
        most = int(_MOST_DOUBTED * len(mine))
        if doubted[mine].sum() > most:
            doubted[mine] = False
            doubted[mine[np.argsort(-margins[mine], kind="stable")[:most]]] = True
    return doubted


def usual_margins(log: HostArray, labels: HostArray, settled: HostArray) -> HostArray:
    """Median margin [c, c] of settled rows of class b (second axis) against class a (first).

    Infinite where the median of *all* rows of class b shows no such margin: settled rows lie far
    from other classes even where labels mean nothing, as they were chosen so.
    """
    c = log.shape[1]
    usual = np.full((c, c), np.inf)
    for b in range(c):
        every, some = log[labels == b], log[settled & (labels == b)]
        if len(some) < _MIN_CLASS or not np.isfinite(every[:, b]).all():
            continue
        apart = np.median(every[:, b, None] - every, axis=0) >= DOUBT
        margin = np.median(some[:, b, None] - some, axis=0)
        usual[:, b] = np.where(apart, margin, np.inf)
    usual[~np.isfinite(usual) | (usual < DOUBT)] = np.inf
    return usual
