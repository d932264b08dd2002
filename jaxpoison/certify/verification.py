"""Does a learner keep the promise that certificates rest on: subset in, the same bits out?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import HostArray

from .partitions import Partitions

_PROBES = 32
_FEWEST = 3
_OTHERS = 4
_CHECKS = ("two fits", "other subsets replaced", "other subsets grown", "rows renumbered")


@dataclass(frozen=True)
class Verification:
    """What was checked and held; anything that did not hold raised instead.

    Attributes:
        subsets: Ids of the subsets that were refitted.
        probes: Rows whose scores were compared, bit by bit.
        checks: What was compared.
    """

    subsets: tuple[int, ...]
    probes: int
    checks: tuple[str, ...]


def verify(
    ensemble: Any, x: HostArray, y: HostArray, fraction: float = 0.05, *, seed: int = 0
) -> Verification:
    """Refits sampled subsets and compares with what the ensemble says.

    Args:
        ensemble: With ``partitions``, ``learner``, ``num_classes`` and ``votes(x_test)``.
        x: [n, ...] the rows the ensemble was fitted on, by id.
        y: [n] their labels.
        fraction: Share of the subsets to refit, of which at least three.
        seed: Of the sample; draw another one each time.

    Raises:
        UsageError: The learner is not deterministic, looks outside its subset, or the ensemble's
            votes are not those of its learner.
        DataError: Other rows than the ensemble was fitted on.

    **Cost**: six fits of the share of subsets, and the whole ensemble's votes on 32 rows.

    **Assumes / fails on**: a sample. A learner that misbehaves on few subsets may pass; run it
    with fraction 1 to be sure of this data set.
    """
    partitions: Partitions = ensemble.partitions
    x, y = np.asarray(x), np.asarray(y)
    held = (partitions.x, partitions.y) if partitions.store is not None else (x, y)
    for name, given, kept in (("x", x, held[0]), ("y", y, held[1])):
        if given.shape != kept.shape or not np.array_equal(given, kept):
            raise DataError(f"{name} is not what the ensemble was fitted on; give those rows")
    subsets = _sample(partitions, fraction, seed)
    done = verify_learner(
        ensemble.learner, partitions, x, y, num_classes=ensemble.num_classes, subsets=subsets
    )
    probes = _probes(partitions, x)
    votes = ensemble.votes(probes).in_order().labels[subsets]
    again = _scores(ensemble.learner, partitions, x, y, probes, ensemble.num_classes, subsets)
    expected = np.argmax(again, axis=2)
    if not np.array_equal(votes, expected):
        wrong = subsets[(votes != expected).any(axis=1)][0]
        raise UsageError(
            f"the ensemble's votes for subset {wrong} are not those of a refit of "
            f"{ensemble.learner.name}; it was changed after fitting, or fitted elsewhere: fit anew"
        )
    return replace(done, checks=(*done.checks, "votes of the ensemble"))


def verify_learner(
    learner: Any,
    partitions: Partitions,
    x: HostArray,
    y: HostArray,
    *,
    num_classes: int,
    subsets: HostArray | None = None,
    seed: int = 0,
) -> Verification:
    """Checks that scores of a subset are a function of its rows, in every bit.

    Args:
        learner: With ``name`` and ``fit_scores``.
        partitions: Of the rows.
        x: [n, ...] inputs by id.
        y: [n] labels by id.
        num_classes: c.
        subsets: Ids to refit; three where None.
        seed: Of the disturbance.

    Raises:
        UsageError: Two fits differ (the learner is not deterministic), or the scores of a subset
            change when rows of others are replaced, added or removed, the data set grows, or rows
            get other ids (the learner looks outside its subset).

    **Cost**: six fits of the given subsets, two of them with four others.
    """
    ids = _sample(partitions, 0.0, seed) if subsets is None else np.unique(subsets)
    probes = _probes(partitions, x)
    rng = np.random.default_rng(seed)
    others = np.setdiff1d(np.flatnonzero(partitions.sizes), ids)
    # Where no other subset has rows, one half of the given ones is the others of the other half.
    groups = [ids] if others.size or len(ids) < 2 else [ids[::2], ids[1::2]]
    for group in groups:
        others = np.setdiff1d(np.flatnonzero(partitions.sizes), group)
        others = rng.permutation(others)[:_OTHERS]

        def scores(
            p: Partitions, inputs: HostArray, labels: HostArray, group: HostArray = group
        ) -> HostArray:
            return _scores(learner, p, inputs, labels, probes, num_classes, group)

        first = scores(partitions.only(group), x, y)
        wrong = _differ(first, scores(partitions.only(group), x, y), group)
        if wrong is not None:
            raise UsageError(
                f"learner {learner.name} is not deterministic: two fits of subset {wrong} differ. "
                "Fix its seeds and the device's flags, or certify with Guarded(tau)"
            )
        for what, disturbed in _disturbances(partitions, x, y, group, others, num_classes, rng):
            wrong = _differ(first, scores(*disturbed), group)
            if wrong is not None:
                raise UsageError(
                    f"learner {learner.name} looks outside its subset: scores of subset {wrong} "
                    f"change when {what}. Its statistics, seeds and shapes must come from the "
                    "subset alone; no certificate holds"
                )
    return Verification(tuple(int(i) for i in ids), len(probes), _CHECKS)


def _disturbances(
    partitions: Partitions,
    x: HostArray,
    y: HostArray,
    ids: HostArray,
    others: HostArray,
    num_classes: int,
    rng: np.random.Generator,
) -> list[tuple[str, tuple[Partitions, HostArray, HostArray]]]:
    """Data sets that agree on the rows of the given subsets and on nothing else."""
    alone = partitions.only(ids)
    some = partitions.only(np.union1d(ids, others))
    inside = np.zeros(len(y), bool)
    inside[alone.rows] = True
    other_x, other_y = np.array(x), np.array(y)
    outside = np.flatnonzero(~inside)
    other_x[outside] = _unlike(x, outside, rng)
    other_y[outside] = rng.integers(0, num_classes, len(outside))
    more_x, more_y = other_x[: 1 + len(y) // 3], other_y[: 1 + len(y) // 3]
    order = rng.permutation(len(y))
    back = np.argsort(order)
    return [
        ("rows of other subsets are replaced", (some, other_x, other_y)),
        ("other subsets grow", (_grown(some, others), x, y)),
        ("the data set grows", (alone, np.concatenate([x, more_x]), np.concatenate([y, more_y]))),
        (
            "rows get other ids",
            (replace(alone, rows=back[alone.rows], store=None), x[order], y[order]),
        ),
    ]


def _unlike(x: HostArray, rows: HostArray, rng: np.random.Generator) -> HostArray:
    """Other values for rows, beyond the range of the data where the dtype has room for them."""
    shape = (len(rows), *x.shape[1:])
    if x.dtype.kind == "b":
        return np.asarray(rng.integers(0, 2, shape), bool)
    top = np.abs(x.astype(np.float64)).max(initial=0.0)
    if x.dtype.kind == "f":
        return np.asarray(rng.normal(size=shape) * (3 * top + 7), x.dtype)
    limit = min(int(3 * top + 7), int(np.iinfo(x.dtype).max) - 1)
    return rng.integers(0, limit, shape, endpoint=True).astype(x.dtype)


def _grown(partitions: Partitions, others: HostArray) -> Partitions:
    """The others with their rows repeated beyond the largest subset.

    Any capacity, mean or count that is taken over all subsets changes with it.
    """
    times = 3 * int(partitions.sizes.max())
    parts = [partitions.subset(i) for i in range(partitions.design.num_subsets)]
    for i in others.tolist():
        parts[i] = np.repeat(parts[i], 1 + times // max(1, len(parts[i])))
    sizes = np.array([len(p) for p in parts], np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    return replace(partitions, rows=np.concatenate(parts), offsets=offsets, store=None)


def _sample(partitions: Partitions, fraction: float, seed: int) -> HostArray:
    if not 0 <= fraction <= 1:
        raise UsageError(f"fraction is {fraction}; give a share of the subsets from 0 to 1")
    filled = np.flatnonzero(partitions.sizes)
    if not filled.size:
        raise DataError("all subsets are empty; there is nothing to refit")
    count = min(len(filled), max(_FEWEST, int(np.ceil(fraction * len(filled)))))
    drawn = np.random.default_rng(seed).choice(filled, count, replace=False)
    return np.sort(drawn)


def _probes(partitions: Partitions, x: HostArray) -> HostArray:
    ids = partitions.ids
    return np.array(x[ids[:: max(1, len(ids) // _PROBES)][:_PROBES]])


def _scores(
    learner: Any,
    partitions: Partitions,
    x: HostArray,
    y: HostArray,
    probes: HostArray,
    num_classes: int,
    ids: HostArray,
) -> HostArray:
    """[len(ids), v, c] scores of the given subsets, whatever order the learner yields them in."""
    found: dict[int, HostArray] = {}
    wanted = set(ids.tolist())
    for subsets, block in learner.fit_scores(partitions, x, y, probes, num_classes=num_classes):
        values = np.asarray(block)
        for position, subset in enumerate(np.asarray(subsets).tolist()):
            if subset in wanted:
                found[subset] = np.array(values[position])
    missing = sorted(wanted - set(found))
    if missing:
        raise UsageError(f"learner {learner.name} yields no scores for subset {missing[0]}")
    return np.stack([found[int(i)] for i in ids])


def _differ(one: HostArray, other: HostArray, ids: HostArray) -> int | None:
    """Id of the first subset whose scores are not equal bit by bit."""
    bits = f"u{one.dtype.itemsize}"
    if one.shape != other.shape or one.dtype != other.dtype:
        return int(ids[0])
    unequal = (one.view(bits) != other.view(bits)).reshape(len(ids), -1).any(axis=1)
    return int(ids[unequal.argmax()]) if unequal.any() else None
