"""White-box certificates against label flips, for models whose scores are linear in the labels.

``s_c = sum_j w_j [y_j = c]``: of a kernel ridge model, ``w = (K + lambda I)^-1 k`` depends on
inputs alone. When inputs are trusted, an attacker who flips labels can not change w, so how many
flips a vote stands is a count, and not all models cost one flip each: that is what a certificate
on votes alone must assume.

No floating-point comparison decides anything. Weights are rounded once to integers, the model *is*
the rounded one, and its votes, gaps and flips are exact integers. Whoever certifies the votes of
another computation of the same model (in float32, say) gives a bound on how far a score of the two
may lie apart, ``error``; twice that, rounded up, is granted to the attacker in every comparison.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpoison._check import DataError, UsageError

from .certificates import Certificates
from .votes import Votes

if TYPE_CHECKING:
    from ._types import Design, Floats, Ints
    from .ensemble import Ensemble
    from .learners import KernelRidge

NEVER = np.iinfo(np.int32).max // 4
"""Flips of what no number of flips can do; four of them can be added in int32."""

_BITS = 32
_MOST = 1 << 62
_ROWS = 1 << 20  # values of a block


@dataclass(frozen=True)
class WhiteBoxFlip:
    """Labels flipped, each to any class, by an attacker who knows every model; inputs trusted.

    The unit of a radius is a flip, not a touched cell.
    """

    name = "white-box label flip"

    def costs(self, design: Design) -> dict[str, int]:
        """``{"flip": 1}``: radii count flips.

        Args:
            design: Of the partition.

        Raises:
            UsageError: Labels decide the cell, so a flip would change inputs of two models.
        """
        if design.covers == "inputs and labels":
            raise UsageError(
                "the label decides the cell, so a flip moves a row to another subset and its model "
                "to other weights; partition with a key that leaves labels out, ContentHash()"
            )
        return {"flip": 1}

    def allowed(self, design: Design) -> None:
        """Raises UsageError where the design cannot carry the claim, as ``costs`` does."""
        self.costs(design)


@dataclass(frozen=True, eq=False)
class FlipCosts:
    """Of one model, what every vote costs.

    Attributes:
        rows: Of its subset.
        vote: [v] class it votes for.
        away: [v] int32 fewest flips after which it votes for another class: exact.
        to: [v, c] int32 flips after which it may vote for the class: exact with two classes, else
            never more than it takes; 0 for the class it votes for.
    """

    rows: int
    vote: Ints
    away: Ints
    to: Ints


@dataclass(frozen=True, eq=False)
class FlipCertificates(Certificates):
    """Certificates whose radius counts label flips, and says nothing of any other change."""


def ridge_weights(gram: Any, test_gram: Any, regularisation: float) -> Floats:
    """Weights of a kernel ridge model's rows in its scores, in float64.

    ``w = k (K + lambda I)^-1``; with targets ``[y_j = c] - 1 / C`` the scores are
    ``sum_j w_j [y_j = c]`` less a term that no class has more of than another.

    Args:
        gram: [s, s] kernel of the subset's rows with each other.
        test_gram: [v, s] kernel of test rows with the subset's rows.
        regularisation: lambda, above 0.

    Returns:
        [v, s].

    Raises:
        UsageError: Shapes that do not fit, or a matrix that is not positive definite.

    **Cost**: s^3 / 3 + 2 v s^2 flop.
    """
    from scipy import linalg

    kernel, queries = np.asarray(gram, np.float64), np.asarray(test_gram, np.float64)
    if kernel.ndim != 2 or queries.ndim != 2 or kernel.shape != (queries.shape[1],) * 2:
        raise UsageError(
            f"gram has shape {kernel.shape} and test_gram {queries.shape}; give [s, s] and [v, s]"
        )
    if not regularisation > 0:
        raise UsageError(f"regularisation is {regularisation}; give a number above 0")
    try:
        factor = linalg.cho_factor(kernel + regularisation * np.eye(len(kernel)))
    except (linalg.LinAlgError, ValueError) as error:
        raise UsageError(f"gram + regularisation: {error}; raise the regularisation") from error
    weights: Floats = linalg.cho_solve(factor, queries.T).T
    return weights


def quantised(weights: Any) -> Ints:
    """Weights as integers, ``round(2^32 w)``: from here on a model is exact.

    Args:
        weights: [v, s] of one model.

    Returns:
        [v, s] int64.

    Raises:
        DataError: Weights that are not finite, or too large to add up in 64 bits.
    """
    values = np.asarray(weights, np.float64)
    if values.ndim != 2:
        raise UsageError(f"weights have shape {values.shape}; give [v, s]")
    total = np.abs(values).sum(axis=1).max(initial=0.0)
    if not total < _MOST / 2 ** (_BITS + 1):
        raise DataError(f"weights of a row add up to {total}; scale the kernel or regularise more")
    rounded: Ints = np.rint(np.ldexp(values, _BITS)).astype(np.int64)
    return rounded


def flip_costs(weights: Any, labels: Any, num_classes: int, *, error: float = 0.0) -> FlipCosts:
    """Fewest label flips that change one model's votes.

    Class b beats a iff ``(s_b, -b) > (s_a, -a)``. A flip of row j to b, if ``w_j > 0``, or to a,
    if ``w_j < 0``, takes ``r_j = |w_j| + w_j ([y_j = a] - [y_j = b])`` off the gap ``s_a - s_b``;
    no other label takes off more. Rows add up independently, so q flips take off at most the q
    largest r_j and the greedy choice takes off as much: the least q for a pair is exact. A vote
    leaves a iff some b beats a, so the least over b is exact too. To vote for b, b must beat a:
    with more than two classes it may take more.

    Args:
        weights: [v, s] int64 from ``quantised``, or floats, which it is applied to.
        labels: [s] classes of the rows.
        num_classes: c.
        error: Bound on how far a score of the votes to certify may lie from the exact one, under
            any labels. 0 certifies the integer model.

    Returns:
        Vote and costs; of a subset without rows the vote is 0 for ever.

    **Cost**: c - 1 sorts of v s integers.
    """
    q = np.asarray(weights)
    q = quantised(q) if q.dtype.kind == "f" else q.astype(np.int64)
    y = _labels(labels, q.shape[1], num_classes)
    if not 0 <= error < 1 << 20:
        raise UsageError(f"error is {error}; give a small bound of at least 0")
    # of two scores, each off by the error and by half a unit for every weight that was rounded
    slack = int(np.ceil(np.ldexp(2.0 * float(error), _BITS))) + q.shape[1] if error else 0
    rows, size = q.shape
    vote, away = np.zeros(rows, np.int64), np.full(rows, NEVER, np.int32)
    to = np.full((rows, num_classes), NEVER, np.int32)
    step = max(1, _ROWS // max(1, size))
    for start in range(0, rows if size else 0, step):
        block = slice(start, start + step)
        vote[block], to[block] = _costs_of_block(q[block], y, num_classes, slack)
    others = np.arange(num_classes) != vote[:, None]
    away = np.minimum(away, np.where(others, to, NEVER).min(axis=1)).astype(np.int32)
    to[np.arange(rows), vote] = 0
    return FlipCosts(size, vote, away, to)


def _costs_of_block(q: Ints, y: Ints, num_classes: int, slack: int) -> tuple[Ints, Ints]:
    own = y[:, None] == np.arange(num_classes)
    scores = np.stack([q[:, own[:, c]].sum(axis=1) for c in range(num_classes)], axis=1)
    vote = scores.argmax(axis=1)  # the lowest of equal ones
    top = np.take_along_axis(scores, vote[:, None], axis=1)
    size = np.abs(q)
    # of the class voted for, +w; of the rival, -w; |w| in any case
    mine = np.where(y == vote[:, None], q, 0)
    to = np.empty((len(q), num_classes), np.int32)
    for b in range(num_classes):
        gains = size + mine - np.where(y == b, q, 0)
        gains = np.cumsum(-np.sort(-gains, axis=1), axis=1)
        need = top[:, 0] - scores[:, b] + (b > vote) - slack
        short = (gains < need[:, None]).sum(axis=1)
        to[:, b] = np.where(need <= 0, 0, np.where(short < q.shape[1], short + 1, NEVER))
    return vote, to


def certify_flips(costs: Iterable[FlipCosts], design: Design, num_classes: int) -> FlipCertificates:
    """Certificates of the plurality of models against label flips.

    For the prediction a and a rival b, an attacker must take ``n_a - n_b + [b > a]`` off the gap.
    A model that votes a gives 1 when it leaves a and 2 when it goes to b, one that votes for a
    third class gives 1 when it goes to b, each for its flips; the cheapest way is a
    multiple-choice knapsack, solved exactly over the integers. With spread d a flip may count in d
    models at once, so F flips buy at most d F of these.

    Args:
        costs: Of each subset's model, in the order of subset ids.
        design: Of the partition; labels must not decide cells.
        num_classes: c.

    Returns:
        Certificates, radius in flips. Never less than what counting votes alone gives.

    Raises:
        UsageError: A number of models that is not the design's, or labels that decide cells.

    **Cost**: v c k (n_a - n_b) integer operations: for ensembles of at most some hundred models;
    at many models of few rows a flip costs a vote, and counting votes gives the same.

    **Assumes / fails on**: inputs, features, subsets and hyper-parameters that no label enters.

    Reference: EnsembleCert (2026), arXiv:2604.11416.
    """
    threat = WhiteBoxFlip()
    threat.allowed(design)
    models = list(costs)
    if len(models) != design.num_subsets:
        raise UsageError(
            f"there are costs of {len(models)} models, but the design has {design.num_subsets} "
            "subsets; give one a subset, in the order of their ids"
        )
    votes = np.stack([model.vote for model in models])
    counts = np.stack([(votes == c).sum(axis=0) for c in range(num_classes)], axis=1)
    first = counts.argmax(axis=1)
    rows = np.arange(len(first))  # of the test set
    fewest = np.full(len(first), NEVER, np.int64)
    for b in range(num_classes):
        gap = counts[rows, first] - counts[:, b] + (b > first)
        fewest = np.minimum(fewest, np.where(b == first, NEVER, _cheapest(models, first, b, gap)))
    # Where nothing can be done, all rows may be flipped.
    everything = sum(model.rows for model in models) // design.spread
    radius = np.minimum((fewest - 1) // design.spread, everything)
    rivals = counts.copy()
    rivals[rows, first] = -1
    second = rivals.max(axis=1)
    return FlipCertificates(
        first,
        radius,
        counts[rows, first],
        second,
        "plurality, white box",
        threat,  # type: ignore[arg-type]  # a threat of its own: no rule on votes may claim it
        threat.costs(design),
        design,
    )


def _cheapest(models: list[FlipCosts], first: Ints, rival: int, gap: Ints) -> Ints:
    """[v] fewest flips that take ``gap`` off, by dynamic programming over what is taken off."""
    out = np.full(len(first), NEVER, np.int64)
    step = max(1, _ROWS // max(1, int(gap.max(initial=0)) + 1))
    for start in range(0, len(first), step):
        block = slice(start, start + step)
        wanted = gap[block]
        most = max(1, int(wanted.max()))
        # table[:, t]: fewest flips that take off t at least
        table = np.full((len(wanted), most + 1), NEVER, np.int32)
        table[:, 0] = 0
        for model in models:
            one, two = _offers(model, first[block], rival, block)
            new = table.copy()
            np.minimum(new[:, 1:], table[:, :-1] + one[:, None], out=new[:, 1:])
            new[:, 1] = np.minimum(new[:, 1], two)
            np.minimum(new[:, 2:], table[:, :-2] + two[:, None], out=new[:, 2:])
            table = np.minimum(new, NEVER)
        out[block] = table[np.arange(len(wanted)), wanted]
    return out


def _offers(model: FlipCosts, first: Ints, rival: int, block: slice) -> tuple[Ints, Ints]:
    """Flips after which one model has taken 1 off the gap, and 2."""
    vote, to = model.vote[block], model.to[block, rival]
    inside = vote == first
    third = ~inside & (vote != rival)
    one = np.where(inside, model.away[block], np.where(third, to, NEVER))
    return one.astype(np.int32), np.where(inside, to, NEVER).astype(np.int32)


def certify_kernel_ridge(
    ensemble: Ensemble, x_test: Any, *, error: float = 0.0
) -> FlipCertificates:
    """White-box certificates of an ensemble of ``KernelRidge`` or ``Ridge``.

    Args:
        ensemble: From ``fit``.
        x_test: [v, ...] rows.
        error: As in ``flip_costs``. 0: what is certified are the exact models in float64, rounded
            to integers; the ensemble's own votes in float32 are certified with a bound on their
            error.

    Returns:
        Certificates, radius in flips.

    Raises:
        UsageError: Another learner, or labels that decide the cell.

    **Cost**: of each subset of s rows, s^3 / 3 + 2 v s^2 flop and c - 1 sorts of v s integers,
    then ``certify_flips``.
    """
    from .learners import KernelRidge

    learner, parts = ensemble.learner, ensemble.partitions
    if not isinstance(learner, KernelRidge):
        raise UsageError(
            f"learner is {learner.name}; white-box flips need scores that are linear in the "
            "labels: KernelRidge or Ridge"
        )
    WhiteBoxFlip().allowed(parts.design)
    queries = learner.features(np.asarray(x_test)).astype(np.float64)
    costs = []
    for subset in range(parts.design.num_subsets):
        ids = parts.subset(subset)
        weights: Floats = np.zeros((len(queries), 0))
        if len(ids):
            rows = learner.features(parts.x[ids]).astype(np.float64)
            gram, test_gram = _kernel(rows, rows, learner), _kernel(queries, rows, learner)
            weights = ridge_weights(gram, test_gram, learner.regularisation)
        costs.append(flip_costs(weights, parts.y[ids], ensemble.num_classes, error=error))
    return certify_flips(costs, parts.design, ensemble.num_classes)


def _kernel(a: Floats, b: Floats, learner: KernelRidge) -> Floats:
    kernel, gamma = learner.gram
    products: Floats = a @ b.T
    if kernel == "linear":
        return 1 + products
    distance: Floats = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * products
    values = np.exp(-gamma * np.maximum(distance, 0))
    return np.asarray(values)


def votes_of_costs(costs: Iterable[FlipCosts], design: Design, num_classes: int) -> Votes:
    """The votes of the exact models, for ``certify`` and its rules."""
    kind = np.min_scalar_type(num_classes - 1)
    labels = np.stack([model.vote for model in costs]).astype(kind)
    return Votes(labels, np.arange(design.num_subsets), num_classes, design)


def _labels(labels: Any, rows: int, num_classes: int) -> Ints:
    y = np.asarray(labels)
    if num_classes < 2:
        raise UsageError(f"num_classes is {num_classes}; a vote needs at least 2 classes")
    if y.shape != (rows,) or y.dtype.kind not in "iu":
        raise DataError(
            f"labels have shape {y.shape} and dtype {y.dtype}, weights are of {rows} rows; give "
            "one integer a row"
        )
    if y.size and (y.min() < 0 or y.max() >= num_classes):
        raise DataError(f"labels reach from {y.min()} to {y.max()}; classes are 0 to c - 1")
    return y.astype(np.int64)
