"""Nearest neighbours within a subset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from jaxpoison import kernels
from jaxpoison._check import UsageError
from jaxpoison._types import Array
from jaxpoison.stream import compiled

from ._learner import ClosedForm


@dataclass(frozen=True)
class Neighbours(ClosedForm):
    """The class that most of the k nearest rows of the subset have.

    Scores are counts; equal counts go to the lower class, equal distances to the row that comes
    first in canonical order.

    Attributes:
        k: Neighbours; a smaller subset has all of its rows vote.

    **Cost**: nothing to fit; k passes over the Gram matrix.
    """

    k: int = 1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"k is {self.k}; give an integer of at least 1")

    @property
    def gram(self) -> tuple[str, float]:
        """Squared distances."""
        return "distance", 1.0

    def settings(self) -> dict[str, Any]:
        """Number of neighbours."""
        return {"k": self.k}

    def fit_group(self, x: Array, members: Array, mask: Array) -> tuple[Array, ...]:
        """The classes of the rows."""
        return (members,)

    def score_group(
        self, gram: Array, models: tuple[Array, ...], rows: Array, mask: Array
    ) -> Array:
        """Counts of classes among the nearest."""
        return _scores(gram, models[0], rows, mask, num_neighbours=self.k)


def _counted(gram: Array, members: Array, rows: Array, mask: Array, num_neighbours: int) -> Array:
    def one(member: tuple[Array, Array, Array]) -> Array:
        return kernels.neighbour_counts(gram, *member, num_neighbours=num_neighbours)

    return jax.lax.map(one, (members, rows, mask))


_scores = compiled(_counted, static=("num_neighbours",))
