"""Is a row's label wrong? Asked out of fold, of the whole input and of parts of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import chunks
from jaxpoison._check import UsageError
from jaxpoison._types import Array, Block, HostArray, Scores
from jaxpoison.detect._detector import Key, class_rows, empty_scores, host_rng
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
from jaxpoison.detect._patches import Views, views_of
from jaxpoison.detect._ridge_views import NormalEquations
from jaxpoison.kernels._elementwise import largest
from jaxpoison.stream import Stage, Stream, compiled

_DEEP = 1.0
_BATCH = 512


class Opinion(NamedTuple):
    """What classifiers that never saw a row's label say of it.

    Attributes:
        margins: [n] float32 log likelihood ratio of the best other class against the own one, mean
            over rounds and views.
        depth: [n] float32 how far into that other class a row lies, in the last round and the
            whole input: its margin over the median one that settled rows of that class have
            against its own; 0 where the two can not be told apart. Half of the rows of that class
            under a wrong label are above 1; honest rows between two classes are near 0, settled
            ones below.
        taken_for: [n] int32 the best other class, by the whole input in the last round.
        doubted: [n] bool, rows that the last round was fitted without, or would have been.
        space: The features in which doubted rows may share a trait.
        likelihoods: [n, 2, c] float32 log likelihoods of every class, each row's mean taken away:
            mean over rounds and views, and of the whole input in the last round. None where the
            classifiers were fitted to a sample of the rows.
    """

    margins: HostArray
    depth: HostArray
    taken_for: HostArray
    doubted: HostArray
    space: TraitSpace
    likelihoods: HostArray | None = None


class TraitSpace(NamedTuple):
    """Features of the rows that the classifiers were fitted to.

    Attributes:
        rows: [r] int64.
        phi: [r, p] float32, centred, in units of each feature's deviation.
        gram: [p, p] float64 ``phi^T phi``.
        views: The stage that makes them.
        mean: [p] and
        scale: [p], with which ``phi = (stage(x) - mean) * scale``.
    """

    rows: HostArray
    phi: HostArray
    gram: HostArray
    views: Views
    mean: HostArray
    scale: HostArray


def _features(block: Block) -> Array:
    return block.x


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["columns", "weights", "bias", "head", "offset"],
    meta_fields=[],
)
@dataclass(frozen=True)
class _Judge:
    """What one view says of rows that nothing was fitted to.

    Attributes:
        columns: [w] features that the view sees.
        weights: [q, w, k] and
        bias: [q, k] of the classifiers of q rounds.
        head: [q, k, c] from scores to log likelihoods.
        offset: [q, c], taken away from these.
    """

    columns: Array
    weights: Array
    bias: Array
    head: Array
    offset: Array

    def margins(self, phi: Array, label: Array) -> tuple[Array, Array]:
        """Margins and best other classes [..., q] of rows [..., p] of some labels."""
        exact = jax.lax.Precision.HIGHEST
        phi = phi[..., self.columns]
        margins, best = [], []
        for q in range(len(self.weights)):
            scores = jnp.matmul(phi, self.weights[q], precision=exact) + self.bias[q]
            log = jnp.matmul(scores, self.head[q], precision=exact) - self.offset[q]
            is_own = jnp.arange(log.shape[-1]) == label[..., None]
            own = jnp.take_along_axis(log, label[..., None], axis=-1)[..., 0]
            top, other = largest(jnp.where(is_own, -jnp.inf, log))
            known = jnp.isfinite(own) & jnp.isfinite(top)
            margins.append(jnp.where(known, top - own, 0.0))
            best.append(other)
        return jnp.stack(margins, axis=-1), jnp.stack(best, axis=-1)


def _judge(block: Block, stage: Stage, mean: Array, scale: Array, judges: Any) -> Array:
    """Margin and best other class [tiles, t, 2, views * q], a view's rounds side by side."""

    def part(block: Block) -> Array:
        phi = (stage.fn(stage.params, block.x) - mean) * scale
        label = jnp.broadcast_to(block.label[:, None], block.mask.shape)
        said = [judge.margins(phi, label) for judge in judges]
        both = (jnp.concatenate(each, axis=-1) for each in zip(*said, strict=True))
        return jnp.stack([each.astype(jnp.float32) for each in both], axis=2)

    return chunks.map_parts(part, block)


@dataclass(frozen=True)
class LabelViews:
    """Label errors by ridge classifiers on partial views, judged out of fold.

    A row whose label was changed under a trigger is a plain label error in any view of the input
    that does not show the trigger. Features are responses to whitened patches of the data, pooled
    over a grid (images), or random waves (rows); each view uses a part of them. One set of normal
    equations a fold serves all views. In the c scores of a view the classes are told apart by
    linear discriminants with a pooled covariance, which turns scores into log likelihood ratios.
    Rows that any view doubts are taken out of the equations (exactly: ``A - Phi_S^T Phi_S``) and
    the rest is fitted again, so that in the last round little has learnt the trigger and even the
    whole input gives it away. ``score_i`` is the mean over rounds and views of the margin
    ``max_(b != y_i) log p(s_i | b) - log p(s_i | y_i)``.

    Attributes:
        num_features: p.
        grid: Cells along each side of an image.
        num_folds: Folds.
        num_rounds: Fits; each leaves out what the one before doubted.
        ridge: Share of the mean diagonal added to the normal equations, times ``(p / r)^2`` where
            rows are fewer than features.
        max_rows: Classifiers are fitted to a random sample of this size where there are more rows.
        min_rows: For a class with fewer rows nothing is known: its rows score 0.

    **Cost**: a pass, and a second one beyond ``max_rows``; r p^2 FLOP, and in each round v * folds
    solves of p^3 / 3 at the most; r p floats held.

    **Assumes / fails on**: some view tells the classes apart without the trigger. Honest rows
    between two classes have positive margins, so ``depth`` says how far they go. Clean labels
    under a trigger are not seen.

    Reference: views are ours; discriminants in score space follow SCAn (Tang et al., 2021,
    arXiv:1908.00686); out-of-fold disagreement: Northcutt et al., 2021, arXiv:1911.00068.
    """

    num_features: int = 2048
    grid: int = 4
    num_folds: int = 3
    num_rounds: int = 3
    ridge: float = 0.03
    max_rows: int = 50_000
    min_rows: int = 8

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the class statistic is the share of rows deep inside another class."""
        opinion = self.judge(stream, key=key)
        _, statistic, null = empty_scores(stream)
        of_class = class_rows(stream)
        for c in np.flatnonzero(stream.counts >= self.min_rows):
            statistic[c] = (opinion.depth[of_class[c]] > _DEEP).mean()
        info = LabelInfo(int(opinion.doubted.sum()), len(opinion.space.rows))
        return Scores(opinion.margins, statistic, null, None, info)

    def judge(self, stream: Stream, *, key: Key) -> Opinion:
        """Judges every row, once a stream and key.

        Args:
            stream: Raw inputs, without a stage.
            key: Of patches, folds and the sample.
        """
        fitted = self._fitted(stream, key)
        nothing = np.zeros(len(stream), np.bool_)
        place = (*_place(self, key), "opinion")
        value: Opinion = stream.memo(place, lambda: self._opinion(stream, fitted, nothing, nothing))
        return value

    def rejudge(self, stream: Stream, before: Opinion, without: HostArray, *, key: Key) -> Opinion:
        """Judges every row anew by classifiers that some rows do not teach in any round.

        Args:
            stream: As in ``judge``.
            before: From ``judge``; what it doubted does not teach in the first round either.
            without: [n] bool, rows known to be poison.
            key: As in ``judge``.
        """
        return self._opinion(stream, self._fitted(stream, key), before.doubted, without)

    def _fitted(self, stream: Stream, key: Key) -> _Fitted:
        """Normal equations of the sampled rows, once a stream and key."""
        value: _Fitted = stream.memo(_place(self, key), lambda: self._fit(stream, key))
        return value

    def _fit(self, stream: Stream, key: Key) -> _Fitted:
        if self.num_folds < 2:
            raise UsageError(f"num_folds is {self.num_folds}; give at least 2")
        views_key, rows_key = jax.random.split(key)
        views = views_of(stream, self.num_features, self.grid, key=views_key)
        n, rng = len(stream), host_rng(rows_key)
        rows = np.arange(n) if n <= self.max_rows else np.sort(rng.permutation(n)[: self.max_rows])
        seen = stream.through(views.stage)
        phi = seen.map(_features) if n <= self.max_rows else _rows_of(stream, views, rows)
        fold = rng.permutation(np.arange(len(rows)) % self.num_folds)
        labels = stream.labels[rows]
        equations = NormalEquations(
            phi, labels, stream.num_classes, fold, views.columns, self.ridge
        )
        return _Fitted(rows, equations, views)

    def _opinion(
        self, stream: Stream, fitted: _Fitted, doubted: HostArray, without: HostArray
    ) -> Opinion:
        rows, equations, views = fitted
        n = len(stream)
        rounds = _rounds(equations, self.num_rounds, doubted[rows], without[rows])
        margins, taken_for = rounds.margins, rounds.taken_for
        if n > self.max_rows:
            judges = tuple(_view_judge(equations, rounds, i) for i in range(rounds.num_views))
            judged = stream.map(_judge, views.stage, equations.mean, equations.scale, judges)
            # by view, then by round, as the judges say it; wanted by round, then by view
            order = np.arange(judged.shape[2]).reshape(rounds.num_views, -1).T.ravel()
            margins = judged[:, 0][:, order]
            taken_for = judged[:, 1, order[-rounds.num_views]].astype(np.int32)
            margins[rows], taken_for[rows] = rounds.margins, rounds.taken_for
        last = margins[:, -rounds.num_views :]
        depth = last[:, 0] / rounds.usual(stream.labels, taken_for)
        doubted = doubted_rows(last.max(axis=1), stream.labels, stream.num_classes)
        space = TraitSpace(
            rows, equations.phi, equations.gram, views, equations.mean, equations.scale
        )
        known = rounds.likelihoods if n <= self.max_rows else None
        return Opinion(
            margins.mean(axis=1), depth.astype(np.float32), taken_for, doubted, space, known
        )


def _place(detector: LabelViews, key: Key) -> tuple[Any, ...]:
    return ("labels", detector, np.asarray(jax.random.key_data(key)).tobytes())


class _Fitted(NamedTuple):
    """Which rows were sampled, and what was made of them."""

    rows: HostArray
    equations: NormalEquations
    views: Views


class LabelInfo(NamedTuple):
    """What was doubted.

    Attributes:
        num_doubted: Rows.
        num_fitted: Rows the classifiers were fitted to.
    """

    num_doubted: int
    num_fitted: int


class _Rounds(NamedTuple):
    """All rounds, or the last one where classes are many."""

    margins: HostArray  # [r, q * v] float32, by round and view
    taken_for: HostArray
    usual: Callable[[HostArray, HostArray], HostArray]  # labels and other classes -> margins
    weights: HostArray  # [q, v, p + 1, k]
    judges: list[list[Discriminant]]  # by round and view
    num_views: int
    likelihoods: HostArray | None  # [r, 2, c], mean and last


def _rounds(
    equations: NormalEquations, count: int, doubted: HostArray, without: HostArray
) -> _Rounds:
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
        logs = [j.log_likelihood(s) for s, j in zip(scores, judge, strict=True)]
        opinions = [margins_of(log, labels) for log in logs]
        total += sum(relative(log) for log in logs)
        margins += [opinion[0].astype(np.float32) for opinion in opinions]
        weights.append(solved.mean(axis=1))
        judges.append(judge)
        taken_for = opinions[0][1]
        usual = usual_margins(logs[0], labels, ~doubted)
        doubted = doubted_rows(np.max([o[0] for o in opinions], axis=0), labels, c) | without
    likelihoods = np.stack([total / len(margins), relative(logs[0])], axis=1).astype(np.float32)
    return _Rounds(
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
) -> _Rounds:
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
    return _Rounds(
        np.stack([opinion[0].astype(np.float32) for opinion in opinions], axis=1),
        opinions[0][1],
        usual,
        solved.mean(axis=1)[None],
        [judge],
        len(scores),
        None,
    )


def _view_judge(equations: NormalEquations, rounds: _Rounds, view: int) -> _Judge:
    columns = np.flatnonzero(equations.columns[view])
    weights = rounds.weights[:, view].astype(np.float64)
    judges = [each[view] for each in rounds.judges]
    head = np.stack([judge.root @ judge.centre.T for judge in judges])
    kept, bias = weights[:, columns], weights[:, -1]
    if head.shape[2] <= head.shape[1]:  # as many scores as classes: one product does for both
        kept, bias = kept @ head, (bias[:, None] @ head)[:, 0]
        head = np.broadcast_to(np.eye(head.shape[2]), head.shape)
    offset = np.stack([judge.offset for judge in judges])
    single = (a.astype(np.float32) for a in (kept, bias, head, offset))
    return _Judge(columns.astype(np.int32), *single)


def _rows_of(stream: Stream, views: Views, rows: HostArray) -> HostArray:
    """Features of some rows, a fixed number at a time: one compilation."""
    x = stream.take(rows)
    out: HostArray | None = None
    for start in range(0, len(x), _BATCH):
        part = np.resize(x[start : start + _BATCH], (_BATCH, *x.shape[1:]))
        seen = np.asarray(_stage(views.stage, part[None]))[0][: len(x) - start]
        if out is None:
            out = np.empty((len(x), seen.shape[1]), seen.dtype)
        out[start : start + len(seen)] = seen
    if out is None:
        raise ValueError("no rows to fit classifiers to")
    return out


def _run_stage(stage: Any, x: Array) -> Array:
    out: Array = stage.fn(stage.params, x)
    return out


_stage = compiled(_run_stage)
