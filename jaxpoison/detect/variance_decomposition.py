"""SCAn: classes that two means fit better than one, rows seen in units of what classes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import folds
from jaxpoison._types import HostArray, Scores
from jaxpoison.detect._coordinates import by_class
from jaxpoison.detect._detector import Key, empty_scores, fill_rows
from jaxpoison.kernels import rows_product
from jaxpoison.linalg import one_thread, principal
from jaxpoison.stream import Stream

_FLOOR = 1e-6  # of the largest variance: directions below it are rounding
_EXACT = jax.lax.Precision.HIGHEST
_CUTS = (0.0, 1.5)  # where a start cuts a class, in standard deviations along a leading direction
_DIRECTIONS = 6  # leading directions that starts are taken along
_STEPS = 40


class Decomposition(NamedTuple):
    """Covariances of ``x = mu_y + e``.

    Attributes:
        between: [k, k] of the class means.
        within: [k, k] of the rows about them.
        num_steps: EM steps taken.
        converged: Whether the last one changed neither by more than the tolerance.
    """

    between: HostArray
    within: HostArray
    num_steps: int
    converged: bool


class VarianceDecompositionInfo(NamedTuple):
    """The fit and the split of each class.

    Attributes:
        share: [c] share of the smaller side, NaN where the class was skipped.
        num_steps: EM steps.
        converged: Whether EM converged.
        rank: Directions used.
    """

    share: HostArray
    num_steps: int
    converged: bool
    rank: int


@dataclass(frozen=True)
class VarianceDecomposition:
    """The SCAn statistic: likelihood ratio of two means against one, under a shared covariance.

    ``x = mu_y + e`` with ``mu_y ~ N(m, S_u)`` and ``e ~ N(0, S_e)``, both fitted by EM to all
    classes. Class c is then split in two by the plane that maximises

    ``J = sum_i |x_i - m_c|^2 - sum_i |x_i - m_side(i)|^2 = n_1 n_2 / n |m_1 - m_2|^2``

    with distances under ``S_e^-1``; ``score_i`` is the distance of the row to that plane, positive
    on the smaller side.

    Different from the paper's code: the M-step keeps the posterior covariance of the class means
    (without it EM does not climb the likelihood), it needs only counts, means and the pooled
    covariance, and the split starts from many planes instead of one.

    Attributes:
        rank: Leading directions of the total covariance used, where there are more features.
        max_steps: Of EM.
        tolerance: Relative change at which EM stops.
        min_rows: Smaller classes are skipped.

    **Cost**: three passes; a k x k eigenproblem an EM step, whatever the number of rows; 40 thin
    products of [m, k] and 24 planes a class.

    **Assumes / fails on**: classes differ only by their means. Honest classes of two kinds have a
    large J too, so it means something only among many classes; all-to-all poison, few classes,
    poison that is most of its class.

    Reference: Tang et al., 2021, arXiv:1908.00686; the fit after Chen et al., 2012, Bayesian face
    revisited: a joint formulation.
    """

    rank: int = 64
    max_steps: int = 200
    tolerance: float = 1e-6
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the class statistic is ``J / n_c``; candidates are the smaller sides."""
        values, statistic, null = empty_scores(stream)
        share = np.full(stream.num_classes, np.nan)
        candidates = np.zeros(len(stream), np.bool_)
        counts, mean, within = _pooled(stream)
        centred = mean - counts @ mean / max(counts.sum(), 1.0)
        basis = self._basis(counts, centred, within)
        fit = decompose(
            counts, centred @ basis.T, basis @ within @ basis.T, self.max_steps, self.tolerance
        )
        basis = _inverse_root(fit.within) @ basis
        y = folds.project(stream, np.repeat(basis[None], stream.num_classes, axis=0), mean)
        for group in by_class(stream, y, self.min_rows):
            margin, ratio, weight = stream.spread(_split, (group.x, group.mask))
            fill_rows(values, group.rows, group.mask, margin)
            fill_rows(candidates, group.rows, group.mask, margin > 0)
            statistic[group.classes], share[group.classes] = ratio, weight
        info = VarianceDecompositionInfo(share, fit.num_steps, fit.converged, len(basis))
        return Scores(values, statistic, null, candidates, info)

    def _basis(self, counts: HostArray, centred: HostArray, within: HostArray) -> HostArray:
        """All directions, or the leading ones of the total covariance [k, d]."""
        d = len(within)
        if d <= self.rank:
            return np.eye(d)
        weight = counts / max(counts.sum(), 1.0)
        total = within + np.einsum("c,ci,cj->ij", weight, centred, centred)
        return principal((total + total.T) / 2, self.rank)[1]


def _pooled(stream: Stream) -> tuple[HostArray, HostArray, HostArray]:
    """Counts [c], means [c, d] and the pooled within-class covariance [d, d]."""
    counts, mean = folds.class_means(stream)
    if folds.holds_grams(stream.num_classes, mean.shape[1]):
        moments = folds.class_moments(stream)
        if moments.within is not None:
            return moments.counts, moments.mean, moments.within
    return counts, mean, folds.pooled_within(stream)


@one_thread()
def decompose(
    counts: HostArray, mean: HostArray, within: HostArray, max_steps: int, tolerance: float
) -> Decomposition:
    """Maximum likelihood covariances of class means and rows, by EM from class moments.

    In the basis where ``S_e`` is I and ``S_u`` diagonal the posterior of each class mean is too:
    ``E = s / (s + 1/n_c) m_c`` and ``V = s / (n_c s + 1)``, so a step costs one eigenproblem.

    Args:
        counts: [c] rows; classes without any are left out.
        mean: [c, k] class means about the mean of all rows.
        within: [k, k] pooled covariance of the rows about their class means, divisor n.
        max_steps: Most steps.
        tolerance: Relative change of both covariances at which it stops.

    Returns:
        The covariances.
    """
    mean, n = mean[counts > 0], counts[counts > 0]
    total, k = n.sum(), len(within)
    floor = _FLOOR * max(float(np.trace(within)) / k, float((mean**2).mean()), 1e-30) * np.eye(k)
    inner = (within + within.T) / 2 + floor
    outer, both = mean.T @ mean / len(n) + floor, inner
    steps, converged = 0, False
    while steps < max_steps and not converged:
        steps += 1
        s, root = _joint_axes(outer, both)
        m = np.linalg.solve(root, mean.T).T
        gain = s / (s + 1.0 / n[:, None])
        expected, variance = gain * m, gain / n[:, None]
        rest = m - expected
        new_outer = (expected.T @ expected + np.diag(variance.sum(axis=0))) / len(n)
        spread = (rest.T * n) @ rest + np.diag(n @ variance)
        new_outer = root @ new_outer @ root.T + floor
        new_both = inner + root @ spread @ root.T / total
        converged = all(
            np.abs(new - old).max() <= tolerance * np.abs(old).max()
            for new, old in ((new_outer, outer), (new_both, both))
        )
        outer, both = new_outer, new_both
    return Decomposition(outer, both, steps, converged)


def _joint_axes(outer: HostArray, both: HostArray) -> tuple[HostArray, HostArray]:
    """``both = A A^T`` and ``outer = A diag(s) A^T``: s [k] and A [k, k]."""
    lower = np.linalg.cholesky((both + both.T) / 2)
    half = np.linalg.solve(lower, np.linalg.solve(lower, (outer + outer.T) / 2).T)
    s, axes = np.linalg.eigh((half + half.T) / 2)
    return np.maximum(s, 0.0), lower @ axes


@one_thread()
def _inverse_root(cov: HostArray) -> HostArray:
    values, axes = np.linalg.eigh((cov + cov.T) / 2)
    values = np.maximum(values, max(_FLOOR * values[-1], 1e-30))
    out: HostArray = (axes / np.sqrt(values)) @ axes.T
    return out


def _split(member: Any) -> tuple[Any, ...]:
    """The plane of the largest J: distances to it [m], J / n and the share of the smaller side."""
    x, mask = member
    n = jnp.maximum(mask.sum(), 1.0)
    x = (x - (x * mask[:, None]).sum(axis=0) / n) * mask[:, None]
    cov = rows_product(x, x) / n
    axes = jnp.linalg.eigh(cov)[1].T[-_DIRECTIONS:]
    along = jnp.matmul(axes, x.T, precision=_EXACT)
    scale = jnp.sqrt((along * along).sum(axis=1) / n)[:, None]
    starts = jnp.stack([sign * along > cut * scale for cut in _CUTS for sign in (1.0, -1.0)])
    sides = starts.reshape(-1, len(x)) * mask

    def parts(sides: Any) -> tuple[Any, ...]:
        size = sides.sum(axis=1)
        inside = jnp.clip(size, 1.0, jnp.maximum(n - 1.0, 1.0))[:, None]
        sums = jnp.matmul(sides, x, precision=_EXACT)
        mean, other = sums / inside, -sums / jnp.maximum(n - inside, 1.0)  # about the class mean
        delta = mean - other
        middle = 0.5 * ((mean + other) * delta).sum(axis=1)
        distance = jnp.matmul(delta, x.T, precision=_EXACT) - middle[:, None]
        length = jnp.sqrt((delta * delta).sum(axis=1))
        ratio = size * (n - size) / n * length**2
        return distance / jnp.maximum(length, 1e-12)[:, None], ratio / n, size

    def step(_: Any, sides: Any) -> Any:
        return (parts(sides)[0] > 0) * mask

    sides = jax.lax.fori_loop(0, _STEPS, step, sides)
    distance, ratio, size = parts(sides)
    top = jnp.argmax(ratio)
    flip = jnp.where(2 * size[top] > n, -1.0, 1.0)
    return flip * distance[top] * mask, ratio[top], jnp.minimum(size[top], n - size[top]) / n
