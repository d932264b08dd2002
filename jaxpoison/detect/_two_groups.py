"""Whether one number a row falls into two groups in each class; shared by detectors of one score.

A detector that reads losses or entropies has one number a row. The rows of a class are one
population or two along it: a two-component mixture says how far apart the two are, and which rows
belong to the suspicious one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.detect._coordinates import by_class
from jaxpoison.kernels import shared_covariance_mixture
from jaxpoison.stream import Stream


class TwoGroups(NamedTuple):
    """The two groups of each class.

    Attributes:
        values: [n] float32, rows that were not seen at the median of their class, 0 in classes
            that were skipped.
        statistic: [c] separation of the two means in their common deviation, 0 where the smaller
            group is not the suspicious one, NaN where the class was skipped.
        candidates: [n] bool, rows of a smaller group of high values.
        weight: [c] share of the smaller group, NaN where the class was skipped.
    """

    values: HostArray
    statistic: HostArray
    candidates: HostArray
    weight: HostArray


def two_groups(
    stream: Stream, values: HostArray, min_rows: int, seen: HostArray | None = None
) -> TwoGroups:
    """Splits every class along one value a row.

    Args:
        stream: Gives the labels and the devices.
        values: [n], higher is more suspicious; anything where ``seen`` is False.
        min_rows: Classes with fewer rows that were seen are skipped.
        seen: [n] bool, rows whose value is known; None is all.

    Returns:
        Values, statistics and groups.

    **Cost**: 50 EM steps on [12, m] numbers a class.
    """
    seen = np.ones(len(stream), np.bool_) if seen is None else seen
    known = np.where(seen, values, 0.0).astype(np.float32)
    out = np.zeros(len(stream), np.float32)
    candidates = np.zeros(len(stream), np.bool_)
    statistic, weight = np.full((2, stream.num_classes), np.nan)
    for group in by_class(stream, known[:, None], min_rows):
        mask = group.mask * seen[group.rows]
        fit = stream.spread(_split, (group.x, mask))
        for i, c in enumerate(group.classes):
            if mask[i].sum() < max(min_rows, 1):
                continue
            real, used = group.rows[i, group.mask[i] > 0], mask[i] > 0
            mine = group.rows[i, used]
            out[real] = np.median(known[mine])
            out[mine] = known[mine]
            is_high, separation, weight[c], odds = (part[i] for part in fit)
            statistic[c] = separation if is_high else 0.0
            candidates[mine] = (odds[used] > 0) & is_high
    return TwoGroups(out, statistic, candidates, weight)


def _split(member: Any) -> tuple[Any, ...]:
    x, mask = member
    fit = shared_covariance_mixture(x, mask)
    # the log odds are linear in the value: their covariance says on which side the group lies
    count = jnp.maximum(mask.sum(), 1.0)
    centred = (x[:, 0] - (x[:, 0] * mask).sum() / count) * mask
    is_high = (centred * fit.log_ratio).sum() > 0
    return is_high, fit.separation, fit.weight, fit.log_ratio
