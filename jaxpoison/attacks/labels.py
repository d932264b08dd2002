"""Attacks on labels only: inputs stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray
from jaxpoison.detect._detector import Key
from jaxpoison.linalg import one_thread

from ._checks import num_rows, refuse
from ._common import Task, begin
from ._types import Poisoned

_PCA_RANK = 32
_CLUSTER_ROWS = 4096  # enough to place the centres; every row is then assigned


def flip_uniform(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
) -> Poisoned:
    """Gives rows drawn at random a label drawn from the other classes.

    Args:
        x: [n, ...] inputs.
        y: [n] labels.
        rate: Share of all rows.
        target: Must be None; see ``flip_targeted``.
        source: Flip rows of this class only.
        key: Of the draws.

    Returns:
        Kind "label_flip".

    Raises:
        UsageError: A rate that cannot be met, or a target.

    **Cost**: a copy of the data.

    **Assumes / fails on**: nothing; networks withstand it well up to high rates, so it is the
    mildest poison per row.

    Reference: Angluin and Laird (1988), random classification noise.
    """
    task = begin("flip_uniform", x, y, key)
    refuse(task.name, ", or use flip_targeted", target=target)
    if task.classes.size < 2:
        task.label("source", None, other_than=int(task.classes[0]))
    eligible = np.arange(len(task))
    if source is not None:
        source = task.label("source", source)
        eligible = task.rows_of(source)
    rows = task.choose(eligible, rate, "of the source class")
    place = np.searchsorted(task.classes, task.y[rows])
    step = task.rng.integers(1, task.classes.size, len(rows))
    labels = task.classes[(place + step) % task.classes.size]
    return task.poisoned(rows, labels, "label_flip", rate=rate, source=source)


def flip_pair(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
) -> Poisoned:
    """Gives rows of one class the label of another.

    Args:
        x: [n, ...] inputs.
        y: [n] labels.
        rate: Share of all rows.
        target: New label, None to draw one.
        source: Class of the rows, None to draw one that is large enough.
        key: Of the draws.

    Returns:
        Kind "label_flip".

    Raises:
        UsageError: A rate that cannot be met, or a class that is not there.

    **Cost**: a copy of the data.

    **Assumes / fails on**: the source class holds ``rate * n`` rows.

    Reference: Tolpegin et al. (2020), arXiv:2007.08432.
    """
    task = begin("flip_pair", x, y, key)
    target = task.label("target", target, other_than=source)
    source = task.source_for(source, target, rate)
    rows = task.choose(task.rows_of(source), rate, f"of the source class {source}")
    return task.poisoned(rows, target, "label_flip", rate=rate, target=target, source=source)


def flip_targeted(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
) -> Poisoned:
    """Gives rows of all other classes the target's label.

    Args:
        x: [n, ...] inputs.
        y: [n] labels.
        rate: Share of all rows.
        target: New label, None to draw one.
        source: Must be None; see ``flip_pair``.
        key: Of the draws.

    Returns:
        Kind "label_flip".

    Raises:
        UsageError: A rate that cannot be met, a class that is not there, or a source.

    **Cost**: a copy of the data.

    **Assumes / fails on**: two classes at least.

    Reference: Biggio, Nelson and Laskov (2011), label flips against SVMs.
    """
    task = begin("flip_targeted", x, y, key)
    refuse(task.name, ", or use flip_pair", source=source)
    target = task.label("target", target)
    rows = task.choose(task.others(target), rate, "outside the target class")
    return task.poisoned(rows, target, "label_flip", rate=rate, target=target)


def flip_subpopulation(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    members: HostArray | Sequence[int] | None = None,
    num_clusters: int = 8,
) -> Poisoned:
    """Gives one coherent corner of a class another label: harm to a few, accuracy kept.

    Without ``members`` the source class is cut into clusters by k-means on its leading 32
    principal directions; one that is large enough is drawn, and its rows nearest to the centre are
    flipped.

    Args:
        x: [n, ...] inputs.
        y: [n] labels.
        rate: Share of all rows.
        target: New label, None to draw one.
        source: Class to cut, None to draw one. With ``members`` its rows of this class only.
        key: Of the draws.
        members: The subpopulation, [n] bool or row numbers; None finds one.
        num_clusters: Clusters of the source class.

    Returns:
        Kind "subpopulation".

    Raises:
        UsageError: A rate that cannot be met, a mask of the wrong shape or type.

    **Cost**: a copy of the data; k-means on one class.

    **Assumes / fails on**: that the class has corners. Every class can be cut, so a cluster need
    not be a population that means anything.

    Reference: Jagielski et al. (2021), arXiv:2006.14026 (which adds rows; here labels change).
    """
    task = begin("flip_subpopulation", x, y, key)
    target = task.label("target", target, other_than=source)
    named: HostArray | None = None
    if members is not None:
        mask = _as_mask(task, members)
        named, fits = np.flatnonzero(mask), mask & (task.y != target)
        if source is not None:
            source = task.label("source", source, other_than=target)
            fits &= task.y == source
        rows = task.choose(np.flatnonzero(fits), rate, "members outside the target class")
    else:
        source = task.source_for(source, target, rate)
        rows = _corner(task, task.rows_of(source), rate, num_clusters)
    return task.poisoned(
        rows, target, "subpopulation", rate=rate, target=target, source=source,
        num_clusters=num_clusters, members=named,
    )  # fmt: skip


def _as_mask(task: Task, members: HostArray | Sequence[int]) -> HostArray:
    """Members [n] bool, from that or from row numbers."""
    members = np.asarray(members)
    if members.ndim == 1 and members.dtype.kind in "iu" and members.size:
        if members.min() < 0 or members.max() >= len(task):
            raise UsageError(
                f"members goes from {members.min()} to {members.max()}; give row numbers from 0 to "
                f"{len(task) - 1}"
            )
        mask = np.zeros(len(task), bool)
        mask[members] = True
        return mask
    if members.shape != (len(task),) or members.dtype != np.bool_:
        raise UsageError(
            f"members has shape {members.shape} and type {members.dtype}; give row numbers, or one "
            f"bool for each of the {len(task)} rows"
        )
    return members


def _corner(task: Task, rows: HostArray, rate: float, num_clusters: int) -> HostArray:
    """Rows of one cluster nearest to its centre, ascending."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    count = num_rows(rate, len(task), "rows")
    if not 1 <= num_clusters <= len(rows):
        raise UsageError(
            f"num_clusters is {num_clusters}; give 1 to {len(rows)}, the rows of the source class"
        )
    flat = task.x[rows].reshape(len(rows), -1).astype(np.float64)
    seed = int(task.rng.integers(2**31))
    sample = task.rng.choice(len(flat), min(_CLUSTER_ROWS, len(flat)), replace=False)
    sample.sort()
    if num_clusters > len(sample):
        raise UsageError(f"num_clusters is {num_clusters}; give at most {len(sample)}")
    with one_thread():
        if flat.shape[1] > _PCA_RANK < len(sample):
            pca = PCA(_PCA_RANK, svd_solver="randomized", random_state=seed).fit(flat[sample])
            flat = pca.transform(flat)
        kmeans = KMeans(num_clusters, n_init=4, random_state=seed).fit(flat[sample])
        distance = kmeans.transform(flat)
    nearest = distance.argmin(axis=1)
    sizes = np.bincount(nearest, minlength=num_clusters)
    large = np.flatnonzero(sizes >= count)
    if not large.size:
        raise UsageError(
            f"rate is {rate}: {count} of {len(task)} rows, but the largest of the {num_clusters} "
            f"clusters has {sizes.max()}; give a rate of at most {sizes.max() / len(task):.4g}, or "
            "fewer num_clusters"
        )
    chosen = int(task.rng.choice(large))
    inside = np.flatnonzero(nearest == chosen)
    order = np.argsort(distance[inside, chosen], kind="stable")[:count]
    return np.sort(rows[inside[order]])
