"""Votes of the members of an ensemble, each tied to the subset its member was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison.certify.ranking import margins_of, rank_classes

if TYPE_CHECKING:
    from jaxpoison.certify._types import Design, Floats, Ints

_BITS = 32  # classes up to which one word holds a position each
_CHECKED_AT_ONCE = 1 << 20  # entries of a ranking, so that temporaries stay small


@dataclass(frozen=True, eq=False)
class Votes:
    """What every member says about every test row, and which subset made the member.

    Attributes:
        labels: [m, v] class voted for, unsigned.
        subsets: [m] id of the subset of each member: every id of the design once.
        num_classes: c, at least 2.
        design: How rows spread over subsets.
        ranking: [m, v, c] position of each class in a member's order, 0 the best; from
            ``rank_classes``. Only the run-off needs it.
        margins: [m, v] best score minus second best. Only guarded votes need it; a member that
            abstains has margin ``-inf``.

    Raises:
        UsageError: Shapes, ids or design do not fit each other.
        DataError: A label out of range, or a ranking that is none.
    """

    labels: Ints
    subsets: Ints
    num_classes: int
    design: Design
    ranking: Ints | None = None
    margins: Floats | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise UsageError(f"num_classes is {self.num_classes}; a vote needs at least 2 classes")
        check_design(self.design)
        members = check_subsets(self.subsets, self.design)
        labels = _checked_labels(self.labels, members, self.num_classes)
        object.__setattr__(self, "subsets", np.asarray(self.subsets).astype(np.int64))
        object.__setattr__(self, "labels", labels)
        if self.ranking is not None:
            ranking = _checked_ranking(self.ranking, labels, self.num_classes)
            object.__setattr__(self, "ranking", ranking)
        if self.margins is not None:
            margins = np.asarray(self.margins)
            if margins.shape != labels.shape:
                raise UsageError(
                    f"margins have shape {margins.shape}, but labels {labels.shape}; give one"
                    " margin a vote"
                )
            object.__setattr__(self, "margins", margins)

    @property
    def num_rows(self) -> int:
        """Test rows."""
        return int(self.labels.shape[1])

    def in_order(self) -> Votes:
        """The same votes with members sorted by subset id; itself where they are already."""
        if np.array_equal(self.subsets, np.arange(len(self.subsets))):
            return self
        order = np.argsort(self.subsets)
        sorted_votes = object.__new__(Votes)  # checked already; the checks cost a pass
        for name in ("num_classes", "design"):
            object.__setattr__(sorted_votes, name, getattr(self, name))
        for name in ("labels", "subsets", "ranking", "margins"):
            array = getattr(self, name)
            object.__setattr__(sorted_votes, name, None if array is None else array[order])
        return sorted_votes


def votes_of(
    *,
    subsets: Any,
    design: Design,
    labels: Any = None,
    scores: Any = None,
    num_classes: int | None = None,
) -> Votes:
    """Votes from the predictions or scores of any models.

    Args:
        subsets: [m] id of the subset each model was trained on.
        design: How rows spread over subsets.
        labels: [m, v] predicted classes; or
        scores: [m, v, c] logits, probabilities or distances turned round: higher is better. They
            also give the ranking and the margins.
        num_classes: c; needed with labels.

    Returns:
        The votes. Equal scores go to the lower class.

    Raises:
        UsageError: Neither or both of labels and scores, or no ids.
        DataError: Scores that are not numbers.

    **Cost**: c^2 comparisons a vote with scores.
    """
    if (labels is None) == (scores is None):
        raise UsageError("give either labels or scores, not both and not neither")
    if subsets is None:
        raise UsageError("subsets is None: a vote needs the id of the subset its model was made of")
    ids = on_host(subsets)
    if labels is not None:
        if num_classes is None:
            raise UsageError("num_classes is None: labels alone do not tell it; pass num_classes")
        return Votes(on_host(labels), ids, num_classes, design)
    values = on_host(scores)
    if values.ndim != 3:
        raise UsageError(f"scores have shape {values.shape}, but [members, rows, classes] is meant")
    if num_classes is not None and num_classes != values.shape[2]:
        raise UsageError(
            f"num_classes is {num_classes}, but scores have {values.shape[2]} classes; drop one"
        )
    ranking = rank_classes(values)
    first = np.argmin(ranking, axis=2)
    return Votes(first, ids, values.shape[2], design, ranking, margins_of(values))


def sum_scores(scores: Sequence[Any]) -> Floats:
    """Scores of several seeds of the same members, as those of one member each (DPA*).

    The sum is a function of one subset, so any rule certifies it as it does a single model.

    Args:
        scores: One [m, v, c] array a seed, members in the same order.

    Returns:
        [m, v, c] float64 sum, in the order of the seeds.

    Raises:
        UsageError: No scores, or of unequal shapes.

    Reference: Rezaei et al., Run-Off Election (2023), arXiv:2302.02300.
    """
    if not len(scores):
        raise UsageError("scores is empty; give one array a seed")
    arrays = [on_host(s) for s in scores]
    shapes = {a.shape for a in arrays}
    if len(shapes) > 1:
        raise UsageError(f"scores of the seeds have shapes {sorted(shapes)}; they must be equal")
    total: Floats = np.zeros(arrays[0].shape, np.float64)
    for array in arrays:
        total += array
    return total


def on_host(array: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """A numpy array of what numpy, torch, jax or a list holds."""
    if hasattr(array, "detach"):  # a torch tensor that may require gradients or lie elsewhere
        array = array.detach().cpu().numpy()
    return np.asarray(array)


def check_design(design: Design) -> None:
    """Raises UsageError for a design whose shifts are not ``spread`` distinct residues."""
    cells = design.num_subsets
    if design.k < 1 or design.spread < 1:
        raise UsageError(f"design has k {design.k} and spread {design.spread}; both must be >= 1")
    if len({s % cells for s in design.shifts}) != design.spread or len(design.shifts) != (
        design.spread
    ):
        raise UsageError(
            f"design has spread {design.spread} but shifts {design.shifts[:8]}; they must be"
            f" {design.spread} distinct residues modulo {cells}"
        )


def check_subsets(subsets: Any, design: Design) -> int:
    """Members, where every subset of the design has exactly one; else a UsageError that names it.

    Args:
        subsets: [m] ids.
        design: Whose subsets are meant.

    Returns:
        m.

    Raises:
        UsageError: Ids missing, twice, out of range, or not integers.
    """
    ids = np.asarray(subsets)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UsageError(
            f"subsets have shape {ids.shape} and type {ids.dtype}; give one integer id a member"
        )
    expected = design.num_subsets
    wrong = ids[(ids < 0) | (ids >= expected)]
    if len(wrong):
        raise UsageError(f"subsets hold id {wrong[0]}, but the design has ids 0 to {expected - 1}")
    times = np.bincount(ids.astype(np.int64), minlength=expected)
    if (times > 1).any():
        raise UsageError(
            f"subsets hold id {int(np.argmax(times > 1))} twice; a subset has one vote: add the"
            " scores of its seeds with sum_scores"
        )
    if not times.all():
        raise UsageError(
            f"subsets lack id {int(np.argmin(times))} ({int((times == 0).sum())} of {expected}"
            " missing); an empty subset votes too, for a constant class"
        )
    return expected


def _checked_labels(labels: Any, members: int, num_classes: int) -> Ints:
    array = np.asarray(labels)
    if array.ndim != 2 or len(array) != members or not array.shape[1]:
        raise UsageError(
            f"labels have shape {array.shape}, but [{members}, rows] is meant: one line a member,"
            " at least one test row"
        )
    if array.dtype.kind not in "iu":
        raise DataError(f"labels have type {array.dtype}; classes are integers from 0")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"labels hold {low if low < 0 else high}, but classes are 0 to {num_classes - 1};"
            " number the classes from 0"
        )
    return array.astype(np.min_scalar_type(num_classes - 1), copy=False)


def _checked_ranking(ranking: Any, labels: Ints, num_classes: int) -> Ints:
    array = np.asarray(ranking)
    if array.shape != (*labels.shape, num_classes):
        raise UsageError(
            f"ranking has shape {array.shape}, but {(*labels.shape, num_classes)} is meant:"
            " [members, rows, classes]"
        )
    if array.dtype.kind not in "iu":
        raise DataError(f"ranking has type {array.dtype}; positions are integers from 0")
    step = max(1, _CHECKED_AT_ONCE // max(1, array[0].size))
    for start in range(0, len(array), step):
        block = array[start : start + step]
        if not _are_orders(block):
            raise DataError(
                f"ranking of a member in {start} to {start + len(block) - 1} is no order of the"
                f" {num_classes} classes; make it with rank_classes"
            )
        own = labels[start : start + step]
        if not all(np.array_equal(block[..., c] == 0, own == c) for c in range(num_classes)):
            raise DataError(
                f"labels of a member in {start} to {start + len(block) - 1} are not the first of"
                " its ranking; make both from the same scores"
            )
    return array.astype(np.min_scalar_type(num_classes - 1), copy=False)


def _are_orders(block: Ints) -> bool:
    """Whether every last axis holds each of its positions once."""
    classes = block.shape[-1]
    if classes > _BITS:
        return bool((np.sort(block, axis=-1) == np.arange(classes)).all())
    if block.min() < 0 or block.max() >= classes:
        return False
    bit = np.left_shift(np.uint32(1), np.arange(classes, dtype=np.uint32))
    seen = bit[block[..., 0]]
    for c in range(1, classes):
        seen |= bit[block[..., c]]
    return bool((seen == bit.sum(dtype=np.uint32)).all())
