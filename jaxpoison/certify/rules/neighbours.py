"""Nearest neighbours as voters: certificates without training, in changes of single rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison.certify.certificates import Certificates
from jaxpoison.certify.rules._counting import count_votes, gaps, winners
from jaxpoison.certify.rules.plurality import first_two
from jaxpoison.certify.threats import General, Keys, Threat
from jaxpoison.certify.votes import on_host

if TYPE_CHECKING:
    from jaxpoison.certify._types import Ints


def certify_nearest_neighbours(
    labels: Any, *, num_classes: int, threat: Threat | None = None
) -> Certificates:
    """Certificates of the plurality among the k nearest training rows.

    One inserted, deleted, modified or relabelled row takes at most one of the k out and puts one
    in, so the gap moves by at most 2: ``floor((n_a - max_b (n_b + [b < a])) / 2)`` changes.

    Args:
        labels: [v, k] labels of the neighbours of each test row. Ties in distance must be decided
            by content, not by position.
        num_classes: c.
        threat: ``General`` (default) or ``LabelFlip``.

    Returns:
        Radii in changed rows; every change costs 1, a modification too.

    Raises:
        UsageError: Shapes, or a threat by keys.
        DataError: Labels out of range.

    **Cost**: O(v k).

    **Assumes / fails on**: features fixed in advance. Exact for relabelled and modified rows.

    Reference: Jia et al. (2022), arXiv:2012.03765.
    """
    claim = _allowed(threat)
    array = on_host(labels)
    if array.ndim != 2 or not array.size:
        raise UsageError(f"labels have shape {array.shape}, but [rows, neighbours] is meant")
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= num_classes:
        raise DataError(
            f"labels must be classes 0 to {num_classes - 1}; they are {array.dtype} from"
            f" {array.min()} to {array.max()}"
        )
    counts = count_votes(array.T, num_classes)
    best = winners(counts)
    radius = gaps(counts, best).min(axis=1) // 2
    costs = dict.fromkeys(("insert", "delete", "flip", "modify"), 1)
    return _certificates(counts, best, radius, "nearest neighbours", claim, costs)


def certify_radius_neighbours(counts: Any, *, threat: Threat | None = None) -> Certificates:
    """Certificates of the plurality among all training rows within a fixed distance.

    A row that comes or goes moves the gap by 1, a relabelled or modified one by 2:
    ``n_a - max_b (n_b + [b < a])`` rows may come or go.

    Args:
        counts: [v, c] rows of each class within the distance; 0 everywhere predicts class 0.
        threat: ``General`` (default) or ``LabelFlip``.

    Returns:
        Radii in rows that come or go; a flip and a modification cost 2.

    Raises:
        UsageError: Shapes, or a threat by keys.
        DataError: Counts that are none.

    **Cost**: O(v c).

    **Assumes / fails on**: features fixed in advance. Exact for insertions.

    Reference: Jia et al. (2022), arXiv:2012.03765.
    """
    claim = _allowed(threat)
    array = on_host(counts)
    if array.ndim != 2 or array.shape[1] < 2 or not len(array):
        raise UsageError(f"counts have shape {array.shape}, but [rows, classes] is meant")
    if array.dtype.kind not in "iu" or array.min() < 0:
        raise DataError(f"counts are {array.dtype} from {array.min()}; counts are integers from 0")
    array = array.astype(np.int64)
    best = winners(array)
    radius = gaps(array, best).min(axis=1)
    costs = {"insert": 1, "delete": 1, "flip": 2, "modify": 2}
    return _certificates(array, best, radius, "neighbours within a distance", claim, costs)


def _allowed(threat: Threat | None) -> Threat:
    if isinstance(threat, Keys):
        raise UsageError(
            "threat Keys has no meaning for neighbours: one key may hold all of them; claim"
            " General or LabelFlip"
        )
    return General() if threat is None else threat


def _certificates(
    counts: Ints, best: Ints, radius: Ints, rule: str, threat: Threat, costs: dict[str, int]
) -> Certificates:
    if not isinstance(threat, General):
        costs = {"flip": costs["flip"]}
    return Certificates(best, radius, *first_two(counts, best), rule, threat, costs)
