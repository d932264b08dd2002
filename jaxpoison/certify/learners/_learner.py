"""What a learner is, and how a closed-form one is put together."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import Array, HostArray

from ..features import Chain, Deskew, FeatureMap, Scattering
from ..partitions import Partitions

if TYPE_CHECKING:
    from jax.sharding import Mesh

Scores: TypeAlias = tuple[HostArray, HostArray]
"""Subset ids [m] and their members' scores [m, v, c] float32."""

_BLOCK_BYTES = 256 << 20


@runtime_checkable
class Learner(Protocol):
    """Makes a model of each subset: a function of that subset's rows, in every bit.

    Two runs give the same bits; the order of subsets, their number, and the content of others
    change none. ``jaxpoison.certify.verify`` tests it.
    """

    @property
    def name(self) -> str:
        """What reports call it."""

    def digest(self) -> str:
        """Of everything that decides its models, for the manifest."""

    def to_json(self) -> dict[str, Any]:
        """Settings, as values that JSON can hold."""

    def fit_scores(
        self,
        partitions: Partitions,
        x: HostArray,
        y: HostArray,
        x_test: HostArray,
        *,
        num_classes: int,
        mesh: Mesh | None = None,
    ) -> Iterator[Scores]:
        """Scores of every subset's model on all test rows, a few subsets at a time.

        Args:
            partitions: Which rows lie in which subset.
            x: [n, ...] inputs by row id.
            y: [n] classes 0..c-1 by row id.
            x_test: [v, ...] rows to predict.
            num_classes: c.
            mesh: Devices; all where None.

        Yields:
            Subset ids [m] and scores [m, v, c] float32, each subset once. An empty subset has
            equal scores: it votes for class 0.
        """


@dataclass(frozen=True)
class ClosedForm(ABC):
    """A learner whose model is coefficients of its rows: scores are sums over a Gram matrix.

    Attributes:
        features: Fixed features of one row.
    """

    features: FeatureMap = field(default=Chain((Deskew(), Scattering())), kw_only=True)

    @property
    def name(self) -> str:
        """Of the learner."""
        return type(self).__name__

    @property
    @abstractmethod
    def gram(self) -> tuple[str, float]:
        """Kernel and gamma of the Gram matrix that its members share."""

    @abstractmethod
    def fit_group(self, x: Array, members: Array, mask: Array) -> tuple[Array, ...]:
        """Models of a group of padded subsets.

        Args:
            x: [g, r, f] features.
            members: [g, r, c] 1 where a row has a class, else 0.
            mask: [g, r] 1 for a row, 0 for padding.

        Returns:
            Arrays stacked over the group.
        """

    @abstractmethod
    def score_group(
        self, gram: Array, models: tuple[Array, ...], rows: Array, mask: Array
    ) -> Array:
        """[g, c, b] scores from ``gram`` [n, b], each member's ``rows`` [g, r] and ``mask``."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Hyper-parameters besides the features."""

    def to_json(self) -> dict[str, Any]:
        """Settings, as values that JSON can hold."""
        return {"name": self.name, **self.settings(), "features": self.features.to_json()}

    def digest(self) -> str:
        """Of the settings."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def fit_scores(
        self,
        partitions: Partitions,
        x: HostArray,
        y: HostArray,
        x_test: HostArray,
        *,
        num_classes: int,
        mesh: Mesh | None = None,
    ) -> Iterator[Scores]:
        """As ``Learner.fit_scores``.

        **Cost**: the Gram matrix of the rows of the subsets at hand with all test rows.
        """
        from ..features.rows import FeatureRows
        from ._members import fit_members, score_members

        check_labels(y, num_classes)
        check_test_rows(x_test, x)
        queries, v = self.features(x_test), len(x_test)
        step = max(1, _BLOCK_BYTES // max(1, v * num_classes * 4))
        for start in range(0, partitions.design.num_subsets, step):
            ids = np.arange(start, min(start + step, partitions.design.num_subsets))
            scores = np.zeros((len(ids), v, num_classes), np.float32)
            held = [partitions.subset(i) for i in ids.tolist()]
            used = np.unique(np.concatenate(held))
            if used.size:
                rows = FeatureRows(self.features(x[used]))
                held = [np.searchsorted(used, each) for each in held]
                models = fit_members(self, rows, held, y[used], num_classes, mesh)
                for test, members, block in score_members(self, rows, held, models, queries, mesh):
                    scores[members, test] = np.moveaxis(np.asarray(block), 1, 2)
            yield ids, scores


def check_labels(y: HostArray, num_classes: int) -> None:
    """Raises where a label is no class."""
    labels = np.asarray(y)
    if num_classes < 2:
        raise UsageError(f"num_classes is {num_classes}; a vote needs at least 2 classes")
    if labels.dtype.kind not in "iu":
        raise DataError(f"y has dtype {labels.dtype}; number the classes from 0")
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(
            f"y has label {wrong}, but classes are 0 to {num_classes - 1}; number them from 0, or "
            "give num_classes"
        )


def check_test_rows(x_test: HostArray, x: HostArray) -> None:
    """Raises where test rows have another shape than training rows."""
    if x_test.ndim != x.ndim or x_test.shape[1:] != x.shape[1:] or not len(x_test):
        raise DataError(
            f"x_test has shape {x_test.shape}; give at least one row of shape {x.shape[1:]}, as "
            "the training rows have"
        )
