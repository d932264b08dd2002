"""Every type that crosses a room's door, and the letters that name dimensions.

    n rows   b rows of a block   d features   c classes   k rank   m rows of a class   s starts
    p parameters   t rows of a tile   g groups (candidate sets)

Importing this loads nothing heavy; jax arrays fit wherever an array is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Array: TypeAlias = Any  # jax or numpy, by the room
HostArray: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

DETECTORS = {
    "spectral": "outlying projections on the top direction of a class",
    "activation": "two clusters in the activations of a class",
    "spectre": "excess variance after robust whitening",
    "mahalanobis": "robust distance from the bulk of a class",
    "mixture": "two populations in one class",
    "whitening": "two modes along the direction that only one class varies in",
    "duplicates": "groups of rows nearer to each other than honest rows are",
    "labels": "labels that classifiers on partial views contradict",
    "neighbours": "labels that the nearest rows contradict",
    "density": "rows that lie alone in their class",
    "early_loss": "rows learnt late, by their loss",
    "el2n": "rows learnt late, by the norm of their error",
    "aum": "rows whose own class never wins",
    "loss_drop": "rows whose loss falls unlike that of their class",
    "low_loss": "rows learnt at once",
    "clusters": "density clusters in a class",
    "split": "classes that two normal distributions explain better than one",
    "gram": "unusual correlations of features",
    "low_rank": "rows far from a low-rank plus sparse model of their class",
    "strip": "predictions that mixing with other rows does not change",
    "gradient_direction": "rows that pull a network's weights in one direction",
    "gradient_norm": "rows that would still move a network's weights",
    "self_influence": "rows that only themselves explain",
    "influence": "rows that the predictions of --target come from",
    "shapley": "rows that cost the --trusted ones their labels",
}
"""What each detector that a scan can run looks for, in the order it runs them."""

DETECTOR_NAMES = tuple(DETECTORS)
"""The detectors a scan can run."""

# dear, and they only rank
_ON_REQUEST = (
    "clusters", "split", "gram", "low_rank", "strip",
    "influence", "shapley",
)  # fmt: skip

DEFAULT_DETECTORS = tuple(name for name in DETECTORS if name not in _ON_REQUEST)
"""The detectors that run where none are named."""

OF_GRADIENTS = ("gradient_direction", "gradient_norm", "self_influence")
"""Those of them that run unnamed only where the scan trains a network itself."""

ALL_DETECTORS = "all"
"""What stands for all of ``DETECTOR_NAMES`` where detectors are named."""

NEEDS = {"influence": "--target", "shapley": "--trusted"}
"""What else a detector must be given; given that, it runs where none are named."""

USER_PREFIX = "user:"
"""What the name of an installed detector of another package begins with."""


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


class Dynamics(NamedTuple):
    """What a network said of the rows while it learned them and at the end.

    Attributes:
        logits: [n, c] float32 at the end.
        rows: [r] int64 rows trained on, ascending, or None where nothing was trained; so are all
            that follow.
        losses: [r, epochs] float32 cross-entropy of each row when its turn came in each epoch,
            before the step that used it.
        margins: [r, epochs] float32 logit of the own class less the largest other one, seen so.
        errors: [r, epochs] float32 ``|softmax(z) - onehot(y)|_2``, seen so.
    """

    logits: HostArray
    rows: HostArray | None = None
    losses: HostArray | None = None
    margins: HostArray | None = None
    errors: HostArray | None = None


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
        depth: How much nearer the group's rows lie to the means of the classes they are taken for
            than to that of their own, in squares and with a common shift taken out of each, as a
            share of what rows of those classes would gain: 1 for rows that belong there, 0 half
            way. Unlike distances to rows it does not fade where dimensions are many. NaN where
            they are all taken for one class, which a shift explains as well.
        mixture: Mean log likelihood, in nats a row, that the group's rows gain as rows of all
            other classes under one shift over rows of their own class; NaN where nothing tells.
        mixture_error: Its standard error.
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
    depth: float = float("nan")
    mixture: float = float("nan")
    mixture_error: float = float("nan")


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
