"""What passes between the files of this room, and the letters that name dimensions.

n rows   v test rows   c classes   m members (models, one a subset)   k partitions   d spread
cells = k * d: the values of the hash; a row lies in one cell and in the d subsets it spreads to
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    Ints: TypeAlias = np.ndarray[Any, np.dtype[np.integer[Any]]]
    Floats: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

Covers = Literal["inputs", "inputs and labels", "key column", "sorted position"]
"""What decides the cell of a row: with it, what a change of the row can touch."""


@dataclass(frozen=True)
class Design:
    """How rows spread over subsets: all that a certificate needs to know of the partition.

    Attributes:
        k: Partitions in the sense of Levine and Feizi; ``cells = k * spread``.
        spread: d, the subsets each row lies in; 1 for disjoint partitions.
        shifts: d distinct integers in [0, cells): a row of cell h lies in the subsets
            ``(h + s) % cells``. ``(0,)`` for disjoint partitions.
        covers: What the cell of a row is computed from.
        rule: Name of the key rule and its parameters, for the manifest.
    """

    k: int
    spread: int = 1
    shifts: tuple[int, ...] = (0,)
    covers: Covers = "inputs"
    rule: dict[str, Any] = field(default_factory=dict)

    @property
    def num_subsets(self) -> int:
        """``k * spread``: the cells, and as many subsets and models."""
        return self.k * self.spread
