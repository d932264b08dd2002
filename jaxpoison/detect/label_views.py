"""Is a row's label wrong? Asked out of fold, of the whole input and of parts of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import Array, Block, HostArray, Scores
from jaxpoison.detect._detector import Key, class_rows, empty_scores, host_rng
from jaxpoison.detect._discriminants import doubted_rows
from jaxpoison.detect._label_judges import features_of, judge_block, judged_rows, judges_of
from jaxpoison.detect._label_rounds import Said, fit_rounds
from jaxpoison.detect._patches import Views, views_of
from jaxpoison.detect._ridge_views import NormalEquations
from jaxpoison.stream import Stream

_DEEP = 1.0
_FEW = 8  # rows touched by what is known are judged apart where they are an eighth at the most


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
        worst: [n] float32 largest margin over the views in the last round.
        space: The features in which doubted rows may share a trait.
        likelihoods: [n, 2, c] float32 log likelihoods of every class, each row's mean taken away:
            mean over rounds and views, and of the whole input in the last round. None where the
            classifiers were fitted to a sample of the rows.
    """

    margins: HostArray
    depth: HostArray
    taken_for: HostArray
    doubted: HostArray
    worst: HostArray
    space: TraitSpace
    likelihoods: HostArray | None = None


class TraitSpace(NamedTuple):
    """Features of the rows that the classifiers were fitted to.

    Attributes:
        rows: [r] int64.
        features: Gives ``phi`` [r, p] float32, centred, in units of each feature's deviation.
        gram: [p, p] float32 ``phi^T phi``.
    """

    rows: HostArray
    features: Callable[[], HostArray]
    gram: HostArray

    @property
    def phi(self) -> HostArray:
        """The features."""
        return self.features()


def _features(block: Block) -> Array:
    return block.x


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

    **Cost**: a pass, and beyond ``max_rows`` a second one, and where rows are many (256 MB) a read
    more to make the features again when traits are sought; r p^2 FLOP, and in each round v * folds
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
        """Judges rows anew by classifiers that some rows do not teach in any round.

        Beyond ``max_rows`` those of the classes of these rows, and rows taken for such a class;
        what was said of the others stays, unless an eighth of all rows are touched.

        Args:
            stream: As in ``judge``.
            before: From ``judge``; what it doubted does not teach in the first round either.
            without: [n] bool, rows known to be poison.
            key: As in ``judge``.
        """
        # classifiers of the other classes hardly change by rows of these few
        targets = np.unique(stream.labels[without])
        touched = np.isin(stream.labels, targets) | np.isin(before.taken_for, targets)
        fitted, n = self._fitted(stream, key), len(stream)
        if n <= self.max_rows or not targets.size or _FEW * touched.sum() > n:
            return self._opinion(stream, fitted, before.doubted, without)
        return self._mended(stream, fitted, before, without, np.flatnonzero(touched))

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
        some = partial(features_of, stream, views.stage, rows)
        phi = stream.through(views.stage).map(_features) if n <= self.max_rows else some()
        again = some if n > self.max_rows and stream.is_large else None
        fold = rng.permutation(np.arange(len(rows)) % self.num_folds)
        labels = stream.labels[rows]
        equations = NormalEquations(
            phi, labels, stream.num_classes, fold, views.columns, self.ridge, again
        )
        return _Fitted(rows, equations, views)

    def _opinion(
        self, stream: Stream, fitted: _Fitted, doubted: HostArray, without: HostArray
    ) -> Opinion:
        rows, equations, views = fitted
        n = len(stream)
        rounds = fit_rounds(equations, self.num_rounds, doubted[rows], without[rows])
        margins, taken_for = rounds.margins, rounds.taken_for
        if n > self.max_rows:
            equations.let_go()  # until traits are sought: what comes before needs the memory
            judged = stream.map(judge_block, judges_of(equations, rounds, views.stage))
            margins, taken_for = rounds.read(judged)
            margins[rows], taken_for[rows] = rounds.margins, rounds.taken_for
        said = rounds.said(margins, taken_for, stream.labels)
        return fitted.opinion(stream, said, rounds.likelihoods if n <= self.max_rows else None)

    def _mended(
        self,
        stream: Stream,
        fitted: _Fitted,
        before: Opinion,
        without: HostArray,
        touched: HostArray,
    ) -> Opinion:
        """An opinion with some rows, and those that were fitted, judged anew."""
        rows, equations, views = fitted
        rounds = fit_rounds(equations, self.num_rounds, before.doubted[rows], without[rows])
        anew = np.union1d(rows, touched)
        margins = np.zeros((len(anew), rounds.margins.shape[1]), np.float32)
        taken_for = np.zeros(len(anew), np.int32)
        at = np.searchsorted(anew, rows)
        margins[at], taken_for[at] = rounds.margins, rounds.taken_for
        unseen = np.setdiff1d(touched, rows, assume_unique=True)
        if unseen.size:
            at = np.searchsorted(anew, unseen)
            judges = judges_of(equations, rounds, views.stage)
            judged = judged_rows(stream, unseen, judges)
            margins[at], taken_for[at] = rounds.read(judged)
        said = rounds.said(margins, taken_for, stream.labels[anew])
        whole = Said(before.margins, before.depth, before.taken_for, before.worst)
        return fitted.opinion(stream, whole.replaced(anew, said), None)


def _place(detector: LabelViews, key: Key) -> tuple[Any, ...]:
    return ("labels", detector, np.asarray(jax.random.key_data(key)).tobytes())


class _Fitted(NamedTuple):
    """Which rows were sampled, and what was made of them."""

    rows: HostArray
    equations: NormalEquations
    views: Views

    def opinion(self, stream: Stream, said: Said, likelihoods: HostArray | None) -> Opinion:
        """What was said of every row, with what it was said by."""
        margins, depth, taken_for, worst = said
        doubted = doubted_rows(worst, stream.labels, stream.num_classes)
        of = self.equations
        space = TraitSpace(self.rows, lambda: of.phi, of.gram)
        return Opinion(margins, depth, taken_for, doubted, worst, space, likelihoods)


class LabelInfo(NamedTuple):
    """What was doubted.

    Attributes:
        num_doubted: Rows.
        num_fitted: Rows the classifiers were fitted to.
    """

    num_doubted: int
    num_fitted: int
