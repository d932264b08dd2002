"""Contrast whitening: the direction a class varies in and the others do not, and its two modes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import folds
from jaxpoison._check import UsageError
from jaxpoison._types import Array, Block, HostArray, Scores
from jaxpoison.detect._coordinates import (
    ClassGroup,
    between_directions,
    by_class,
    covariances,
    narrowed,
    with_ridge,
    without_class,
)
from jaxpoison.detect._detector import Key, class_rows, empty_scores, fill_rows, host_rng
from jaxpoison.kernels import rows_product, shared_covariance_mixture
from jaxpoison.linalg import one_thread, principal
from jaxpoison.stream import Additive, Stream

Scaling = Literal["none", "unit"]

_EXACT = jax.lax.Precision.HIGHEST
_FISHER_RANK = 8  # directions that tell the classes apart, in which groups are compared
_UNLIKE = 1.5  # ratio of two groups' spreads from which they are rows of unlike origin
# One mode where the other classes are and one far from them, in deviations of their rows: what is
# there is what no other class has, however alike its rows are (copies, a perturbed class).
_FAR, _FARTHER = 10.0, 8.0
_NULL_ROWS = 2048
_MOST_NULLS = 64  # classes that have draws of their own; more of them share
_SHARED_DRAWS = 4  # times the draws of one class
_NARROW_FLOATS = 1 << 24  # of second moments, where those of all features could not be held
_CENTRES = np.linspace(0.25, 0.75, 11)  # where a valley between modes at 0 and 1 is looked for
_WIDTH = 0.1  # half of a window


class ContrastInfo(NamedTuple):
    """What was found in each class; NaN where it was skipped.

    Attributes:
        gap: [c] ratio of the two leading eigenvalues.
        separation: [c] of the two modes, in their common deviation.
        depth: [c] log of the lower mode's density over the valley's.
        share: [c] of the suspicious mode, which may be most of the class.
        spread_ratio: [c] spread of the suspicious rows over that of the others in the directions
            that tell classes apart: about 1 for rows of one class and a shift.
    """

    gap: HostArray
    separation: HostArray
    depth: HostArray
    share: HostArray
    spread_ratio: HostArray


@dataclass(frozen=True)
class ContrastWhitening:
    """Log odds of the suspicious mode along the direction that only this class varies in.

    Rows of class c are whitened by the pooled covariance of the *other* classes,
    ``u = B_c^(-1/2) (x - mu_c)``, and scaled to unit length. Along the leading eigenvector v of
    their covariance two modes are fitted to ``z = v . u / |u|``; ``score_i`` is the log odds of
    the suspicious one. A trigger adds variance where the others have none, so it becomes v,
    however little of the input it is; as rows are scaled, heavy tails do not.

    Suspicious is the mode away from the means of the other classes, where the other one is among
    them; where that does not tell, the mode whose rows vary more in the directions that tell the
    classes apart (rows of many classes under one label), and where neither does, the farther one.
    Not the smaller one: poison may be half of its class, or most of it.

    Attributes:
        scaling: "unit", or "none" to leave the whitened rows as they are.
        ridge: Share of the mean variance added to B_c. What is below it stays invisible.
        num_draws: Resampled classes of the null.
        min_rows: Smaller classes are skipped.

    **Cost**: second moments (shared) and those of the whitened rows: 6 n d^2 FLOP in three
    passes; c Cholesky factors; 17 one-dimensional mixtures a class, or 1 and 64 in all of more
    than 64 classes. Beyond 2^26 moments the rows are first projected on as many random directions
    as have 2^24.

    **Assumes / fails on**: the trigger is a shift, alike for all rows that carry it, and few
    other classes vary along it. Triggers that roam, warp or follow the sample; label flips; a
    trigger where every class varies as much. Classes of two kinds of their own.

    Reference: contrast directions as in Abid et al., 2018, arXiv:1709.06716; clean-label
    sinusoids: Barni et al., 2019, arXiv:1902.11237.
    """

    scaling: Scaling = "unit"
    ridge: float = 1e-4
    num_draws: int = 16
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the class statistic is separation times depth of the valley, 0 without one.

        The null holds the same statistic of classes resampled from the projections of the other
        classes on *their* directions, to the size of this one; of those with the lower half of
        statistics, so that poison of several classes can not hide one another.

        Raises:
            UsageError: A scaling that is not known, or a ridge that is not above 0.
        """
        if self.scaling not in ("none", "unit") or not self.ridge > 0:
            raise UsageError(
                f"scaling is {self.scaling!r} and ridge {self.ridge}; "
                'give "none" or "unit", and a number above 0'
            )
        values, statistic, null = empty_scores(stream, self.num_draws)
        fields = ContrastInfo(*np.full((5, stream.num_classes), np.nan))
        suspects = np.zeros(len(stream), np.bool_)
        view = _view(stream, self)
        for group in by_class(stream, view.rows[:, :1], self.min_rows):
            fit = stream.spread(_modes, (group.x, group.mask))
            sign = np.ones(len(group.classes))
            for i, c in enumerate(group.classes):
                rows = group.rows[i, group.mask[i] > 0]
                is_small = fit.log_ratio[i, group.mask[i] > 0] > 0
                sign[i], ratio = _side(view.rows[rows, 1:], is_small, view.others[c])
                share = fit.weight[i] if sign[i] > 0 else 1.0 - fit.weight[i]
                facts = (view.gap[c], fit.separation[i], fit.depth[i], share, ratio)
                for field, fact in zip(fields, facts, strict=True):
                    field[c] = fact
            fill_rows(values, group.rows, group.mask, fit.log_ratio * sign[:, None])
            fill_rows(suspects, group.rows, group.mask, fit.log_ratio * sign[:, None] > 0)
            statistic[group.classes] = fit.separation * np.maximum(fit.depth, 0.0)
        null_of = self._null if stream.num_classes <= _MOST_NULLS else self._shared_null
        for group in by_class(stream, view.rows[:, :1], self.min_rows):
            null[group.classes] = null_of(stream, group, view.rows[:, 0], statistic, key)
        return Scores(values, statistic, null, suspects, fields)

    def _null(
        self, stream: Stream, group: ClassGroup, z: HostArray, statistic: HostArray, key: Key
    ) -> HostArray:
        """The statistic of honest classes of the size of each class of a group [g, draws]."""
        m = min(group.x.shape[1], _NULL_ROWS)
        x = np.zeros((len(group.classes), self.num_draws, m, 1), np.float32)
        mask = np.zeros(x.shape[:3], np.float32)
        scored = np.flatnonzero(np.isfinite(statistic))
        # sorted, so that what is drawn depends on the set of rows alone
        ranked = {c: np.sort(z[class_rows(stream)[c]]) for c in scored}
        for i, c in enumerate(group.classes):
            size = min(int(stream.counts[c]), m)
            others = scored[scored != c]
            others = others[np.argsort(statistic[others], kind="stable")][: -(-len(others) // 2)]
            rng = host_rng(jax.random.fold_in(key, int(c)))
            mask[i, :, :size] = 1.0
            for j, draw in enumerate(rng.random((self.num_draws, size))):
                if not others.size:
                    x[i, j, :size, 0] = rng.standard_normal(size)
                    continue
                given = ranked[others[j % len(others)]]
                x[i, j, :size, 0] = given[(draw * len(given)).astype(np.int64)]
        drawn = stream.spread(_modes, (x.reshape(-1, m, 1), mask.reshape(-1, m)))
        out: HostArray = drawn.separation * np.maximum(drawn.depth, 0.0)
        return out.reshape(mask.shape[:2])

    def _shared_null(
        self, stream: Stream, group: ClassGroup, z: HostArray, statistic: HostArray, key: Key
    ) -> HostArray:
        """The same for many classes: draws of the median size, of which each takes some."""
        m = min(group.x.shape[1], _NULL_ROWS)
        size = min(int(np.median(stream.counts[group.classes])), m)
        scored = np.flatnonzero(np.isfinite(statistic))
        calm = scored[np.argsort(statistic[scored], kind="stable")][: -(-len(scored) // 2)]
        rng = host_rng(jax.random.fold_in(key, m))
        count = _SHARED_DRAWS * self.num_draws
        x = np.zeros((count, m, 1), np.float32)
        mask = np.repeat((np.arange(m) < size)[None], count, axis=0).astype(np.float32)
        of_class = class_rows(stream)
        for j, given in enumerate(rng.permutation(np.resize(calm, count))):
            x[j, :size, 0] = rng.choice(np.sort(z[of_class[given]]), size)
        drawn = stream.spread(_modes, (x, mask))
        pool: HostArray = drawn.separation * np.maximum(drawn.depth, 0.0)
        some = rng.random((len(group.classes), count)).argsort(axis=1)[:, : self.num_draws]
        out: HostArray = pool[some]
        return out


class _View(NamedTuple):
    """Rows along the direction of their class.

    Attributes:
        rows: [n, 2 + k] scaled and plain projection, and coordinates in the Fisher directions.
        others: [c] plain projection of the other classes' means: their median.
        gap: [c] ratio of the two leading eigenvalues.
    """

    rows: HostArray
    others: HostArray
    gap: HostArray


def _view(stream: Stream, detector: ContrastWhitening) -> _View:
    def make() -> _View:
        inner = _narrow(stream)
        moments = folds.class_moments(inner)
        roots, which = _whitenings(moments, detector.ridge)
        fold = WhitenedMoments(
            roots, which, moments.mean.astype(np.float32), detector.scaling, stream.num_classes
        )
        counts, sums, grams = inner.fold(fold)
        c, d = moments.mean.shape
        vectors, gap, others = np.zeros((c, d)), np.full(c, np.nan), np.zeros(c)
        for k in np.flatnonzero(stream.counts >= max(detector.min_rows, 1)):
            mean = sums[k] / counts[k]
            spectrum, axes = principal(grams[k] / counts[k] - np.outer(mean, mean), min(2, d))
            vectors[k] = axes[0]
            gap[k] = spectrum[0] / max(spectrum[-1], 1e-12 * max(spectrum[0], 1e-30))
            along = roots[which[k]].astype(np.float64) @ axes[0]
            if c > _MOST_NULLS:
                away = (moments.mean @ along)[(stream.counts > 0) & (np.arange(c) != k)]
                away = away - moments.mean[k] @ along
            else:
                rest = np.delete(moments.mean, k, axis=0)[np.delete(stream.counts, k) > 0]
                away = (rest - moments.mean[k]) @ along
            others[k] = np.median(away) if len(away) else 0.0
        rank = max(min(c - 1, _FISHER_RANK), 1)
        fisher = between_directions(stream.counts, moments.mean, covariances(moments)[1], rank)
        rows = inner.map(_along, fold, vectors.astype(np.float32), fisher.astype(np.float32))
        return _View(rows, others, gap)

    view: _View = stream.memo(
        ("contrast_whitening", detector.scaling, detector.ridge, detector.min_rows),
        make,
        lasts=False,
    )
    return view


def _narrow(stream: Stream) -> Stream:
    """The rows, or random directions of them where their second moments could not be held."""
    c, d = folds.class_means(stream)[1].shape
    if folds.holds_grams(c, d):
        return stream
    return narrowed(stream, d, max(int(np.sqrt(_NARROW_FLOATS / c)), 2))


@one_thread()
def _whitenings(moments: folds.Moments, ridge: float) -> tuple[HostArray, HostArray]:
    """Matrices [w, d, d] with ``u = x @ root``, and the one of each class [c]."""
    from scipy.linalg import cholesky, solve_triangular

    within = covariances(moments)[1]
    pools, which = [within], np.zeros(len(moments.counts), np.int32)
    for k in range(len(which)):
        others = without_class(moments, k)
        if others is not None:
            which[k] = len(pools)
            pools.append(others)
    eye = np.eye(len(within))
    roots = np.empty((len(pools), *within.shape), np.float32)
    for i, pool in enumerate(pools):
        lower = cholesky(with_ridge(pool, within, ridge), lower=True, check_finite=False)
        roots[i] = solve_triangular(lower, eye, lower=True, check_finite=False).T
    return roots, which


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["roots", "which", "mean"],
    meta_fields=["scaling", "num_classes"],
)
@dataclass(frozen=True)
class WhitenedMoments(Additive):
    """Counts, sums and second moments of each class's whitened, scaled rows."""

    roots: Array  # [w, d, d]
    which: Array  # [c]
    mean: Array  # [c, d]
    scaling: Scaling
    num_classes: int

    def whitened(self, x: Array, label: Array) -> tuple[Array, Array]:
        """Rows [t, d] of one class whitened, and their lengths [t]."""
        u = jnp.matmul(x - self.mean[label], self.roots[self.which[label]], precision=_EXACT)
        if self.scaling == "none":
            return u, jnp.ones(len(u), u.dtype)
        return u, jnp.maximum(jnp.sqrt((u * u).sum(axis=1)), 1e-6)

    def update(self, block: Block) -> tuple[Array, Array, Array]:
        """Counts [c], sums [c, d] and grams [c, d, d] of a block."""

        def add(
            total: tuple[Array, Array, Array], tile: tuple[Array, ...]
        ) -> tuple[tuple[Array, Array, Array], None]:
            counts, sums, grams = total
            x, label, mask = tile
            u, length = self.whitened(x, label)
            u = jnp.where(mask[:, None] > 0, u / length[:, None], 0.0)
            gram = rows_product(u, u)
            counts = counts.at[label].add(mask.sum())
            return (counts, sums.at[label].add(u.sum(axis=0)), grams.at[label].add(gram)), None

        c, d = self.num_classes, block.x.shape[-1]
        zero = (jnp.zeros(c), jnp.zeros((c, d)), jnp.zeros((c, d, d)))
        return jax.lax.scan(add, zero, (block.x, block.label, block.mask))[0]


def _along(block: Block, fold: WhitenedMoments, vectors: Array, fisher: Array) -> Array:
    """Scaled and plain projection on the class's direction, and Fisher coordinates."""

    def tile(args: tuple[Array, Array]) -> Array:
        x, label = args
        u, length = fold.whitened(x, label)
        plain = jnp.matmul(u, vectors[label], precision=_EXACT)
        apart = jnp.matmul(x - fold.mean[label], fisher.T, precision=_EXACT)
        return jnp.concatenate([(plain / length)[:, None], plain[:, None], apart], axis=1)

    out: Array = jax.lax.map(tile, (block.x, block.label))
    return out


class _Modes(NamedTuple):
    """Two modes of one number a row.

    Attributes:
        log_ratio: [m] log odds of the smaller one.
        separation: In their common deviation.
        weight: Share of the smaller one.
        depth: Log of the lower mode's density over that of the valley between them.
    """

    log_ratio: Array
    separation: Array
    weight: Array
    depth: Array


def _modes(member: Any) -> _Modes:
    x, mask = member
    fit = shared_covariance_mixture(x, mask)
    z, second = x[:, 0], jax.nn.sigmoid(fit.log_ratio) * mask
    first = mask - second
    a = (first * z).sum() / jnp.maximum(first.sum(), 1e-6)
    b = (second * z).sum() / jnp.maximum(second.sum(), 1e-6)
    far = jnp.abs(b - a) > 0
    place = (z - a) / jnp.where(far, b - a, 1.0)

    def near(centre: Array) -> Array:
        return ((jnp.abs(place - centre) < _WIDTH) * mask).sum()

    # counted, not taken from the fit: a skewed class has a fit of two parts, but no valley
    valley = jax.vmap(near)(jnp.asarray(_CENTRES, jnp.float32)).min()
    modes = jnp.minimum(near(jnp.float32(0.0)), near(jnp.float32(1.0)))
    depth = jnp.where(far, jnp.log((modes + 1.0) / (valley + 1.0)), 0.0)
    return _Modes(fit.log_ratio, fit.separation, fit.weight, depth)


def _side(rows: HostArray, is_small: HostArray, others: float) -> tuple[float, float]:
    """1 if the smaller mode is the suspicious one or -1, and the ratio of the spreads.

    Args:
        rows: [m, 1 + k] plain projection and Fisher coordinates of a class.
        is_small: [m] bool.
        others: Plain projection of the other classes.
    """
    small, large = rows[is_small], rows[~is_small]
    if not len(small) or not len(large):
        return 1.0, np.nan
    spread = [float(part[:, 1:].var(axis=0, dtype=np.float64).sum()) for part in (small, large)]
    ratio = max(spread[0], 1e-12) / max(spread[1], 1e-12)
    away = [abs(float(part[:, 0].mean()) - others) for part in (small, large)]
    sign = 1.0 if away[0] > away[1] else -1.0
    is_plain = max(away) >= max(_FAR, _FARTHER * min(away))
    if not is_plain and not 1 / _UNLIKE <= ratio <= _UNLIKE:
        sign = 1.0 if ratio > 1 else -1.0
    return sign, ratio if sign > 0 else 1.0 / ratio
