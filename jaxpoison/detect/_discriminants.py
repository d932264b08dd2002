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
_MIN_CLASS = 8  # rows of a class from which on others may be taken for it
_MOST_DOUBTED = 0.75  # of a class that may be set aside: something must stay to know it by


class Discriminant(NamedTuple):
    """Linear discriminants of c scores; log likelihood is ``z @ centre^T - |centre|^2 / 2``.

    Attributes:
        root: [c, c] whitens scores.
        centre: [c, c] class means, whitened.
        offset: [c] ``|centre|^2 / 2``, infinite for a class too small to know.
    """

    root: HostArray
    centre: HostArray
    offset: HostArray

    def log_likelihood(self, scores: HostArray) -> HostArray:
        """Log likelihoods [n, c] of scores [n, c], but for a constant of each row."""
        out: HostArray = scores @ self.root @ self.centre.T - self.offset
        return out


@one_thread()
def discriminant(scores: HostArray, labels: HostArray, c: int, teaching: HostArray) -> Discriminant:
    """Class means and pooled covariance of the scores [n, c] of settled rows."""
    scores = scores.astype(np.float64)
    keep = teaching
    for _ in range(_TRIMS):
        onehot = np.eye(c)[labels] * keep[:, None]
        counts = onehot.sum(axis=0)
        mean = onehot.T @ scores / np.maximum(counts, 1.0)[:, None]
        centred = (scores - mean[labels])[keep]
        cov = centred.T @ centred / max(len(centred), 1)
        cov += (_SHRINKAGE * np.trace(cov) / c + 1e-12) * np.eye(c)
        values, axes = np.linalg.eigh(cov)
        root = axes / np.sqrt(values)
        centre = mean @ root
        offset = np.where(counts < _MIN_CLASS, np.inf, 0.5 * (centre**2).sum(axis=1))
        out = Discriminant(root, centre, offset)
        keep = teaching & (margins_of(out.log_likelihood(scores), labels)[0] < DOUBT)
    return out


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
