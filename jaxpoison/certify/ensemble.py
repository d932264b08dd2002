"""An ensemble: one model a subset, its votes, and rows that come and go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import Array, HostArray
from jaxpoison.stream import compiled

from .features.rows import FeatureRows
from .keys import KeyRule
from .learners import ClosedForm, KernelRidge, Learner
from .learners._learner import check_labels, check_test_rows
from .learners._members import Model, fit_members, score_members
from .manifest import manifest_of
from .partitions import Partitions, partition
from .ranking import margins_of, rank_classes
from .votes import Votes

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from ._types import Ints

Progress = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """One model a subset of the training rows.

    A closed-form learner's models are held. Those of any other learner are trained when votes are
    asked for and dropped at once: they may be many and large.

    Attributes:
        partitions: Which rows lie in which subset, and the rows.
        learner: What made the models.
        num_classes: c.
        mesh: Devices; all where None. No result depends on it.
    """

    partitions: Partitions
    learner: Learner
    num_classes: int
    mesh: Mesh | None = field(default=None, repr=False)
    _features: FeatureRows | None = field(default=None, repr=False)
    _models: list[Model] = field(default_factory=list, repr=False)

    def votes(
        self,
        x_test: HostArray,
        *,
        ranking: bool = False,
        margins: bool = False,
        progress: Progress | None = None,
    ) -> Votes:
        """What every model says about every test row.

        The votes on a row have the same bits whatever other rows are asked about with it, where
        the learner is a closed-form one.

        Args:
            x_test: [v, ...] rows of the shape of the training rows.
            ranking: Also the order of all classes, which run-off elections need.
            margins: Also best score minus second best, which guarded votes need.
            progress: Called with the number of (test row, member) pairs done so far.

        Returns:
            Members in the order of their subsets. An empty subset votes for class 0.

        Raises:
            DataError: Test rows of another shape, or values that are not finite.

        **Cost**: with a closed-form learner one Gram matrix, 2 n v f flop, whatever k and spread;
        m v bytes of labels, m v c of a ranking, 4 m v of margins. With another learner a training
        of every model.
        """
        x_test = np.asarray(x_test)
        check_test_rows(x_test, self.partitions.x)
        ballot = _Ballot.empty(
            self.partitions.design.num_subsets, len(x_test), self.num_classes, ranking, margins
        )
        if isinstance(self.learner, ClosedForm):
            self._count_held(self.learner, x_test, ballot, progress)
        else:
            self._count_trained(x_test, ballot, progress)
        design = self.partitions.design
        ids = np.arange(design.num_subsets)
        return Votes(ballot.labels, ids, self.num_classes, design, ballot.ranking, ballot.margins)

    def insert(self, x: HostArray, y: HostArray, *, column: HostArray | None = None) -> Ensemble:
        """Adds rows and refits the models they touch; self stays as it is.

        Every bit is that of an ensemble fitted on all the rows at once.

        Args:
            x: [m, ...] inputs.
            y: [m] classes.
            column: [m] key values where the key reads a column.

        Raises:
            UsageError: A key by position, under which every model would change.
            DataError: Rows unlike those held, or a label that is no class.

        **Cost**: d models a row; O(n d) copied integers.
        """
        check_labels(np.asarray(y), self.num_classes)
        parts, touched = self.partitions.insert(x, y, column=column)
        features = self._features
        if isinstance(self.learner, ClosedForm) and features is not None:
            features = features.append(self.learner.features(parts.x[len(features) :]))
        return self._refitted(parts, touched, features)

    def delete(self, ids: HostArray) -> Ensemble:
        """Removes rows and refits the models they touched: certified unlearning.

        Every bit of every model is that of an ensemble that never saw the rows.

        Args:
            ids: Of rows that are there: their number in the order of fitting and inserting.

        Raises:
            UsageError: A key by position, or ids that are not there.

        **Cost**: d models a row; O(n d) copied integers.
        **Assumes / fails on**: inputs and features of the rows stay in memory, unused; fit anew on
        ``partitions.ids`` where they themselves must go.
        """
        parts, touched = self.partitions.delete(ids)
        return self._refitted(parts, touched, self._features)

    def manifest(self) -> dict[str, Any]:
        """What the votes depend on, as values that JSON can hold."""
        return {**manifest_of(self.partitions, self.learner), "num_classes": self.num_classes}

    def _refitted(
        self, parts: Partitions, touched: HostArray, features: FeatureRows | None
    ) -> Ensemble:
        models = list(self._models)
        if isinstance(self.learner, ClosedForm) and features is not None:
            new = _fitted(self.learner, features, parts, touched, self.num_classes, self.mesh)
            for subset, model in zip(touched.tolist(), new, strict=True):
                models[subset] = model
        return replace(self, partitions=parts, _features=features, _models=models)

    def _count_held(
        self, learner: ClosedForm, x_test: HostArray, ballot: _Ballot, progress: Progress | None
    ) -> None:
        if self._features is None:
            raise TypeError("this ensemble was not made by fit: make it with fit(x, y, ...)")
        subsets = [self.partitions.subset(i) for i in range(self.partitions.design.num_subsets)]
        queries = learner.features(x_test)
        waiting: list[tuple[slice, HostArray, Array]] = []
        scored = score_members(learner, self._features, subsets, self._models, queries, self.mesh)
        done = 0
        for test, members, scores in scored:
            done += len(members) * (test.stop - test.start)
            if ballot.labels_only:
                waiting.append((test, members, _winners(scores)))
                if len(waiting) > _IN_FLIGHT:
                    ballot.note(*waiting.pop(0))
            else:
                ballot.count(test, members, np.moveaxis(np.asarray(scores), 1, 2))
            if progress is not None:
                progress(done)
        for each in waiting:
            ballot.note(*each)

    def _count_trained(self, x_test: HostArray, ballot: _Ballot, progress: Progress | None) -> None:
        parts, done = self.partitions, 0
        # a learner of another's making may know nothing of devices
        where = {} if self.mesh is None else {"mesh": self.mesh}
        scored: Iterator[tuple[HostArray, HostArray]] = self.learner.fit_scores(
            parts, parts.x, parts.y, x_test, num_classes=self.num_classes, **where
        )
        for subsets, scores in scored:
            ballot.count(slice(0, len(x_test)), np.asarray(subsets), np.asarray(scores))
            done += len(subsets) * len(x_test)
            if progress is not None:
                progress(done)


def fit(
    x: HostArray,
    y: HostArray,
    *,
    k: int,
    spread: int = 1,
    key: KeyRule | None = None,
    column: HostArray | None = None,
    learner: Learner | None = None,
    num_classes: int | None = None,
    mesh: Mesh | None = None,
) -> Ensemble:
    """Spreads rows over subsets and makes a model of each.

    Args:
        x: [n, ...] inputs.
        y: [n] classes 0..c-1.
        k: Partitions; a subset has about n / k rows.
        spread: d, the subsets each row lies in; 1 for Deep Partition Aggregation, more for Finite
            Aggregation.
        key: What gives a row its cell; ``ContentHash()`` where None.
        column: [n] values where the key reads a column.
        learner: ``KernelRidge()`` where None, which takes images.
        num_classes: c. Taken from the labels where None, and then part of what is trusted: a
            certificate does not cover rows of a class that was not there.
        mesh: Devices; all where None.

    Returns:
        The ensemble.

    Raises:
        UsageError: k or spread that make no sense, floats without a rounding rule.
        DataError: Rows that cannot be a row, or labels that are no classes.

    **Cost**: features once; with a closed-form learner k d small solves of n / k rows.

    Reference: Levine and Feizi (2021), arXiv:2006.14768; Wang, Levine and Feizi (2022),
    arXiv:2202.02628.
    """
    learner = KernelRidge() if learner is None else learner
    labels = np.asarray(y)
    if num_classes is None and labels.dtype.kind in "iu" and labels.size:
        num_classes = max(2, int(labels.max()) + 1)
    check_labels(labels, 2 if num_classes is None else num_classes)
    parts = partition(x, y, k=k, spread=spread, key=key, column=column)
    classes = 2 if num_classes is None else int(num_classes)
    return fit_partitions(parts, learner, num_classes=classes, mesh=mesh)


def fit_partitions(
    partitions: Partitions,
    learner: Learner,
    *,
    num_classes: int,
    features: HostArray | None = None,
    mesh: Mesh | None = None,
) -> Ensemble:
    """An ensemble on partitions that are there already, such as a reference's.

    Args:
        partitions: With the rows they are of (``store``).
        learner: What makes the models.
        num_classes: c.
        features: [n, f] ``learner.features`` of the rows, where they are at hand: several k can
            share them. Kept, not copied; made here where None.
        mesh: Devices; all where None.

    Returns:
        The ensemble.

    Raises:
        UsageError: Partitions that hold no rows, or features of other rows.
        DataError: Labels that are no classes.
    """
    check_labels(partitions.y, num_classes)
    if not isinstance(learner, ClosedForm):
        return Ensemble(partitions, learner, num_classes, mesh)
    made = learner.features(partitions.x) if features is None else np.asarray(features)
    if made.ndim != 2 or len(made) != len(partitions.y) or made.dtype != np.float32:
        raise UsageError(
            f"features have shape {made.shape} and dtype {made.dtype}; give float32 features of "
            f"all {len(partitions.y)} rows"
        )
    held = FeatureRows(made)
    every = np.arange(partitions.design.num_subsets)
    models = _fitted(learner, held, partitions, every, num_classes, mesh)
    return Ensemble(partitions, learner, num_classes, mesh, held, models)


_IN_FLIGHT = 64  # groups whose votes wait on a device at a time


@dataclass(frozen=True)
class _Ballot:
    labels: Ints
    ranking: Ints | None
    margins: HostArray | None

    @classmethod
    def empty(
        cls, members: int, rows: int, num_classes: int, ranking: bool, margins: bool
    ) -> _Ballot:
        """As members vote that say nothing: for class 0, classes in order, no margin."""
        kind = np.min_scalar_type(num_classes - 1)
        order = None
        if ranking:
            order = np.empty((members, rows, num_classes), kind)
            order[...] = np.arange(num_classes, dtype=kind)
        none = np.zeros((members, rows), np.float32) if margins else None
        return cls(np.zeros((members, rows), kind), order, none)

    @property
    def labels_only(self) -> bool:
        return self.ranking is None and self.margins is None

    def note(self, test: slice, members: HostArray, winners: Array) -> None:
        self.labels[members, test] = np.asarray(winners)

    def count(self, test: slice, members: HostArray, scores: HostArray) -> None:
        """Scores are [g, rows, c]."""
        ranking = rank_classes(scores)
        self.labels[members, test] = np.argmin(ranking, axis=2)
        if self.ranking is not None:
            self.ranking[members, test] = ranking
        if self.margins is not None:
            self.margins[members, test] = margins_of(scores)


def _fitted(
    learner: ClosedForm,
    features: FeatureRows,
    partitions: Partitions,
    subsets: HostArray,
    num_classes: int,
    mesh: Mesh | None,
) -> list[Model]:
    held = [partitions.subset(i) for i in subsets.tolist()]
    return fit_members(learner, features, held, partitions.y, num_classes, mesh)


def _first_of_best(scores: Array) -> Array:
    return jax.lax.argmax(scores, 1, jnp.int32)


_winners = compiled(_first_of_best)
