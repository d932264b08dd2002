"""What doubted rows of a class have in common: the trigger, in features that nothing learnt."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.detect.label_views import Opinion
from jaxpoison.detect.refine import two_normals
from jaxpoison.linalg import one_thread

_RIDGE = 0.02  # of the mean variance
_BETWEEN = 30.0  # weight of the class means' scatter: a trait must not be what tells classes apart
_SEEDS = 400  # doubted rows of a class that a shared direction is looked for in
_MIN_ROWS = 8
_STEPS = 5
_MAX_TRAITS = 3
_GO_ON = 3.5  # separation of a trait from which on another one is looked for
_NARROW, _WIDE = 1.3, 3.0  # most spread of the rows with the trait, in deviations of the others
_SURE = 8.0  # nats against, of a row that scores like the bulk
_LABEL_NATS = 6.0  # most that a row's label evidence weighs beside the trait
_COPIED = 1 << 12  # rows of a group at a time
_FLOATS = np.float32


class Trait(NamedTuple):
    """Rows of one class that share a shift against the classes they look like.

    Attributes:
        rows: [m] rows of the class among those looked at.
        log_odds: [m] of having the trait, label evidence included.
        separation: Of rows with and without it along its direction, in the larger deviation.
        depth: Median depth of its rows inside other classes (``Opinion.depth``).
    """

    rows: HostArray
    log_odds: HostArray
    separation: float
    depth: float


def traits(opinion: Opinion, labels: HostArray, num_classes: int) -> list[Trait]:
    """Up to three traits of each class that has doubted rows, and one of all classes together.

    Doubted rows less the mean of the class they are taken for leave residuals; whitened by the
    total covariance (class means weighed up), those that point the same way begin a group. Its
    mean residual d gives the scores ``d^T S^-1 phi`` of all rows of the class, each row of the
    group left out of its own d. Rows whose score lies with the group's are the next group. A
    found trait is taken away and the search repeated: triggers that differ from row to row have
    several.

    Args:
        opinion: From ``LabelViews``.
        labels: [n] dense.
        num_classes: c.

    Returns:
        Traits, found or not: honest ones have a small separation or no depth.

    **Cost**: r p^2 FLOP to whiten the rows once, p^3 / 3 for the factor, thin products after.

    **Assumes / fails on**: some of the rows are doubted by their labels, and the features see the
    trigger. Triggers that are different in every row leave no common direction.
    """
    space = opinion.space
    labels, doubted = labels[space.rows], opinion.doubted[space.rows]
    taken_for = opinion.taken_for[space.rows]
    evidence = np.clip(opinion.margins[space.rows], -_LABEL_NATS, _LABEL_NATS)
    white = _whitened(space.phi, space.gram, labels, doubted, num_classes)
    means = np.zeros((num_classes, white.shape[1]), _FLOATS)
    for c in range(num_classes):
        settled = (labels == c) & ~doubted
        if settled.any():
            means[c] = white[settled].mean(axis=0)
    out = []
    for c in range(num_classes):
        left = np.flatnonzero(labels == c)
        for _ in range(_MAX_TRAITS):
            found = _search(white, means, left, doubted, taken_for, evidence, opinion, space.rows)
            if found is None:
                break
            out.append(found[0])
            if found[0].separation < _GO_ON:
                break
            left = left[~found[1]]
    found = _search(
        white, means, np.arange(len(labels)), doubted, taken_for, evidence, opinion, space.rows
    )
    if found is not None and found[0].separation >= _GO_ON:
        out += _by_class(found[0], labels, num_classes, opinion)
    return out


def _by_class(found: Trait, labels: HostArray, c: int, opinion: Opinion) -> list[Trait]:
    """A trait that rows of several classes share, class by class."""
    out = []
    for k in range(c):
        mine = labels == k
        rows, odds = found.rows[mine], found.log_odds[mine]
        if (odds > 0).any():
            depth = float(np.median(opinion.depth[rows[odds > 0]]))
            out.append(Trait(rows, odds, found.separation, depth))
    return out


@one_thread()
def _whitened(
    phi: HostArray, gram: HostArray, labels: HostArray, doubted: HostArray, c: int
) -> HostArray:
    """Rows [r, p] in which total covariance, class means weighed up, is the identity."""
    from scipy.linalg import cholesky, solve_triangular

    cov = gram.astype(np.float64) / len(phi)
    ridge = _RIDGE * max(float(np.trace(cov)) / len(cov), 1e-12)  # equal rows have no trace
    known = [k for k in range(c) if ((labels == k) & ~doubted).any()]
    means = np.stack([phi[(labels == k) & ~doubted].mean(axis=0) for k in known])
    means = (means - means.mean(axis=0)).astype(np.float64)
    cov += _BETWEEN / len(known) * means.T @ means
    cov.flat[:: len(cov) + 1] += ridge
    lower = cholesky(cov, lower=True, overwrite_a=True, check_finite=False).astype(_FLOATS)
    out: HostArray = solve_triangular(lower, phi.T, lower=True, check_finite=False).T
    return np.ascontiguousarray(out)


@one_thread()
def _search(
    white: HostArray,
    means: HostArray,
    left: HostArray,
    doubted: HostArray,
    taken_for: HostArray,
    evidence: HostArray,
    opinion: Opinion,
    rows: HostArray,
) -> tuple[Trait, HostArray] | None:
    """The strongest trait among some rows of a class, and which of them have it."""
    seeds = left[doubted[left]]
    if len(seeds) < _MIN_ROWS:
        return None
    seeds = seeds[np.argsort(-evidence[seeds], kind="stable")[:_SEEDS]]
    x = white if len(left) == len(white) else white[left]
    group = np.isin(left, _coherent(white, means, seeds, taken_for), assume_unique=True)
    odds, separation = np.zeros(len(left)), 0.0
    for step in range(_STEPS):
        is_last = step == _STEPS - 1
        inside = left[group]
        shift = white[inside].mean(axis=0) - means[taken_for[inside]].mean(axis=0)
        scores = (x @ shift).astype(np.float64)
        own = _own_parts(white, means, inside, taken_for[inside])
        scores[group] = (len(inside) * scores[group] - own) / max(len(inside) - 1, 1)
        odds, separation = two_normals(scores, group, _WIDE if is_last else _NARROW)
        near = odds > -_SURE
        odds = odds + evidence[left] * (1.0 if is_last else 0.5)
        new = (odds > 0) & near
        if new.sum() < 3:
            return Trait(rows[left], odds, 0.0, 0.0), new
        group = new
    odds = np.where(near, odds, np.minimum(odds, -_SURE))
    depth = float(np.median(opinion.depth[rows[left[group]]]))
    return Trait(rows[left], odds, float(separation), depth), group


def _own_parts(
    white: HostArray, means: HostArray, rows: HostArray, taken_for: HostArray
) -> HostArray:
    """What each row adds to the sum of its own scores [m]; copied by parts."""
    out = np.empty(len(rows), white.dtype)
    for i in range(0, len(rows), _COPIED):
        x = white[rows[i : i + _COPIED]]
        out[i : i + _COPIED] = (x * (x - means[taken_for[i : i + _COPIED]])).sum(axis=1)
    return out


def _coherent(
    white: HostArray, means: HostArray, seeds: HostArray, taken_for: HostArray
) -> HostArray:
    """Those of the seeds whose residuals, scaled to length 1, point the same way."""
    residuals = (white[seeds] - means[taken_for[seeds]]).astype(np.float64)
    residuals /= np.maximum(np.linalg.norm(residuals, axis=1, keepdims=True), 1e-12)
    loading = np.linalg.eigh(residuals @ residuals.T)[1][:, -1]
    loading *= np.sign(loading[np.abs(loading).argmax()])
    chosen = loading >= 0.5 * loading.max()
    if chosen.sum() < 5:
        chosen = np.zeros(len(seeds), np.bool_)
        chosen[np.argsort(-loading, kind="stable")[:5]] = True
    out: HostArray = seeds[chosen]
    return out


def coherence(opinion: Opinion, labels: HostArray, rows: HostArray, source: int) -> float:
    """How various some rows are, of the class they are taken for.

    ``E |phi - mean|^2`` over the rows, divided by the same over settled rows of the class. Well
    below 1: they are one coherent part of it.

    Args:
        opinion: From ``LabelViews``.
        labels: [n] dense.
        rows: Row numbers.
        source: The class.

    Returns:
        The ratio, NaN where there are too few rows.
    """
    space = opinion.space
    mine = np.isin(space.rows, rows)
    settled = (labels[space.rows] == source) & ~opinion.doubted[space.rows]
    if mine.sum() < _MIN_ROWS or settled.sum() < _MIN_ROWS:
        return float("nan")
    phi = space.phi
    theirs = float(phi[settled].var(axis=0).sum())
    return float(phi[mine].var(axis=0).sum()) / max(theirs, 1e-12)
