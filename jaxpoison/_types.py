"""Every type that crosses a room's door, and the letters that name dimensions.

    n rows   b rows of a block   d features   c classes   k rank   m rows of a class   s starts
    p parameters   t rows of a tile   g groups (candidate sets)

Importing this loads numpy only; jax arrays fit wherever an array is said.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = Any  # jax or numpy, by the room
HostArray: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

DETECTOR_NAMES = ("spectral", "activation", "spectre", "mahalanobis", "mixture")
"""The detectors a scan can run, in the order it runs them."""


class Block(NamedTuple):
    """A fixed number of rows in class-pure tiles: the only currency between rooms.

    All rows of a tile have one class, so whatever is computed per class is a batched matrix
    product over tiles; no scatter, no gather. Short tiles and empty tiles are padded with zeros
    and masked.

    Attributes:
        x: [tiles, t, ...] inputs, or features [tiles, t, d] behind a stage.
        label: [tiles] int32 dense class of the tile (0 for an empty one).
        mask: [tiles, t] float32, 1 for a row and 0 for padding.
        ids: [tiles, t] int32 row number in the source (0 for padding).
    """

    x: Array
    label: Array
    mask: Array
    ids: Array


class Scores(NamedTuple):
    """What a detector says, before any threshold. Higher is always more suspicious.

    Attributes:
        values: [n] float32, one a row, comparable inside a class.
        statistic: [c] float64 evidence that the class holds a second population.
        null: [c, r] float64 the same statistic on data drawn from the fitted clean model, or
            [c, 0] where the detector has no such model.
        candidates: [n] bool, the rows the detector itself would set apart (a cluster, a mixture
            component), or None where it only ranks.
        info: NamedTuple of what happened on the way (iterations, assumptions that failed).
    """

    values: HostArray
    statistic: HostArray
    null: HostArray
    candidates: HostArray | None
    info: Any


class Exclusion(NamedTuple):
    """What one candidate group turned out to be.

    Attributes:
        num_rows: Rows of the group.
        agreement: Share that a classifier fitted without the group still gives its own label.
        expected: The same share among the rest of the class, out of fold.
        log10_p: Of so low an agreement if the group were like the rest of its class (binomial).
        diversity: Effective number of other classes the group is taken for, as a share of what
            rows drawn from all other classes would give: near 1 for rows of every class under one
            label, low for an odd corner of one class.
        transplant: Distance of the group's rows to the nearest row of another class once a common
            shift is taken out, in units of the usual distance inside those classes. About 1:
            these rows are ordinary members of other classes plus one shift.
        home: The same distance to the rest of the group's own class. Rows that belong elsewhere are
            farther from home than from the classes they came from.
        source: Dense class most of the group is taken for.
        source_share: Share of the group taken for it.
    """

    num_rows: int
    agreement: float
    expected: float
    log10_p: float
    diversity: float
    transplant: float
    home: float
    source: int
    source_share: float


class Refined(NamedTuple):
    """A group along its common shift.

    Attributes:
        rows: All row numbers of the class.
        log_odds: [len(rows)] of carrying the shift.
        separation: Of shifted and unshifted rows, in the larger of their deviations.
        overlap: Share of the given rows that are still in the group.
    """

    rows: HostArray
    log_odds: HostArray
    separation: float
    overlap: float
