"""What a detector is, and the few steps that all of them share."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison._types import Array, Block, HostArray, Scores
from jaxpoison.layout import ClassRows
from jaxpoison.stream import Stream

Key = jax.Array


class Detector(Protocol):
    """A frozen dataclass of hyper-parameters; no state, no threshold, no I/O.

    Attributes:
        min_rows: A class with fewer rows is skipped; its rows score 0 and the scan reports it.
    """

    @property
    def min_rows(self) -> int:
        """Rows a class needs."""

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores every row; higher is always more suspicious."""


def empty_scores(stream: Stream, num_draws: int = 0) -> tuple[HostArray, HostArray, HostArray]:
    """Values [n] of 0, statistics [c] of NaN and nulls [c, r] of NaN, to be filled."""
    c = stream.num_classes
    return (
        np.zeros(len(stream), np.float32),
        np.full(c, np.nan),
        np.full((c, num_draws), np.nan),
    )


def fill_rows(out: HostArray, rows: HostArray, mask: HostArray, values: Any) -> None:
    """Writes padded per-class results [g, m] back to their rows."""
    keep = mask > 0
    out[rows[keep]] = np.asarray(values)[keep]


def class_rows(stream: Stream) -> ClassRows:
    """The rows of each class of a stream, sorted once."""
    value: ClassRows = stream.memo(
        "class_rows", lambda: ClassRows(stream.labels, stream.num_classes)
    )
    return value


def flat_rows(block: Block) -> Array:
    """The rows of a block as vectors [tiles, t, d] float32, for ``Stream.map``."""
    return block.x.reshape(*block.mask.shape, -1).astype(jnp.float32)


def even_subset(rows: HostArray, most: int) -> HostArray:
    """Every k-th of the rows, with the smallest k that leaves at most so many."""
    out: HostArray = rows[:: max(1, -(-len(rows) // most))]
    return out


def evenly(rows: HostArray, most: int) -> HostArray:
    """So many of the rows, at even distances; all where they are no more."""
    if len(rows) <= most:
        return rows
    out: HostArray = rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
    return out


def host_rng(key: Key) -> np.random.Generator:
    """Numpy's stream of a key, for draws of any shape: XLA compiles for each shape anew."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
