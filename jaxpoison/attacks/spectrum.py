"""A backdoor of an attacker who knows spectral detectors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray
from jaxpoison.detect._detector import Key
from jaxpoison.linalg import one_thread

from ._checks import float_rows, num_rows, share
from ._common import Always, Task, Trigger, begin, value_range
from ._types import Poisoned
from .overlays import add
from .tables import shift

_MIN_ROWS = 8
_MAX_FITTED = 8192
_SKETCH = 1024  # wider rows are decomposed through their Gram matrix of at most this many rows


class _Spectrum(NamedTuple):
    """Mean [d], leading directions [k, d] and deviations along them [k] of a class."""

    mean: HostArray
    directions: HostArray
    deviations: HostArray


def adaptive_spectrum(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    rank: int = 5,
    margin: float = 1.0,
    limit: float = 0.5,
) -> Poisoned:
    """Hides poison in the leading principal directions of the clean target class, all to one.

    With mean mu, directions v_i and deviations s_i of the clean target class, and mean m of the
    rows that could be poisoned, every poisoned row gets

        T = sum_i (v_i . (mu - m) + margin * e_i * s_i) v_i,    e_i random signs.

    So along each v_i the poison's mean lies only ``margin`` deviations from the target's. The rows
    are chosen so that they also spread as the target does: for each of as many clean target rows,
    moved by the margin, the nearest unused row that would land there.

    Args:
        x: [n, H, W], [n, H, W, C] or [n, d] inputs.
        y: [n] labels.
        rate: Share of all rows.
        target: Label of every poisoned row, None to draw one.
        source: Only rows of this class, None for all others.
        key: Of the draws.
        rank: Directions that are hidden in.
        margin: Distance along each direction that is left, in the target's deviations.
        limit: Largest change of a pixel as a share of the range in use; T is scaled down to it.
            Rows of numbers have none.

    Returns:
        Kind "backdoor"; params["scale"] says how much of T was left.

    Raises:
        UsageError: A rate that cannot be met, too few target rows, or a rank they cannot have.

    **Cost**: a copy of the data; one eigendecomposition of at most 1,024 rows or columns, and
    distances of poisoned to possible rows in ``rank`` dimensions.

    **Assumes / fails on**: the detector looks at leading directions of the space that the attacker
    sees. What the rows differ by outside these directions stays, so detectors of trailing
    directions, whitening ones, and those that read a network's layers may still find it. A scale
    below 1 leaves a part of the distance.

    Reference: the construction is this project's; the detectors are those of Tran, Li and Madry
    (2018), arXiv:1811.00636, and Hayase et al. (2021), arXiv:2104.11315.
    """
    task = begin("adaptive_spectrum", x, y, key)
    share(limit=limit)
    float_rows(task.name, task.x)
    if not 0 <= margin < np.inf:
        raise UsageError(f"margin is {margin}; give a number of at least 0")
    target = task.label("target", target, other_than=source)
    eligible = task.others(target)
    if source is not None:
        source = task.label("source", source, other_than=target)
        eligible = task.rows_of(source)
    count = num_rows(rate, len(task), "rows")
    task.choose(eligible, rate, "of the classes to poison")  # only for its check
    spectrum = _spectrum(task, task.rows_of(target), rank)
    candidates = _projected(task, eligible, spectrum)
    signs = np.where(task.rng.random(rank) < 0.5, -1.0, 1.0)
    steps = margin * signs - candidates.mean(axis=0)
    direction = (steps * spectrum.deviations) @ spectrum.directions
    scale, trigger = _trigger(task, direction, limit)
    landed = candidates + scale * steps
    clean = _projected(task, task.rows_of(target), spectrum) + margin * signs
    wanted = clean[task.rng.choice(len(clean), count, replace=count > len(clean))]
    rows = np.sort(eligible[_matched(landed, wanted)])
    return task.poisoned(
        rows, target, "backdoor", x_rows=trigger(task.x[rows]), trigger=trigger,
        wanted=Always(target), rate=rate, target=target, source=source, rank=rank, margin=margin,
        limit=limit, scale=scale,
    )  # fmt: skip


def _trigger(task: Task, direction: HostArray, limit: float) -> tuple[float, Trigger]:
    """How much of the direction is left, and the trigger that adds it."""
    shape = task.x.shape[1:]
    if task.x.ndim == 2:
        return 1.0, Trigger(shift, shape, {"direction": direction})
    low, high = value_range(task.x)
    largest = max(float(np.abs(direction).max()), 1e-12)
    scale = min(1.0, limit * (high - low) / largest)
    pattern = scale * direction.reshape(shape)
    return scale, Trigger(add, shape, {"pattern": pattern, "low": low, "high": high})


def _spectrum(task: Task, rows: HostArray, rank: int) -> _Spectrum:
    """The leading directions of a class, by whichever Gram matrix is smaller."""
    flat = task.x.reshape(len(task), -1)
    wide = flat.shape[1] > _SKETCH
    most = _SKETCH if wide else _MAX_FITTED
    if len(rows) > most:
        rows = np.sort(task.rng.choice(rows, most, replace=False))
    possible = min(len(rows) - 1, flat.shape[1])
    if len(rows) < _MIN_ROWS or not 1 <= rank <= possible:
        raise UsageError(
            f"rank is {rank}; the target class has {len(rows)} rows of {flat.shape[1]} values: it "
            f"needs {_MIN_ROWS} rows, and a rank of 1 to {max(possible, 1)}"
        )
    part = flat[rows].astype(np.float64)
    mean = part.mean(axis=0)
    part -= mean
    with one_thread():
        if wide:
            values, vectors = np.linalg.eigh(part @ part.T)
            vectors = part.T @ vectors[:, -rank:] / np.sqrt(np.maximum(values[-rank:], 1e-30))
        else:
            values, vectors = np.linalg.eigh(part.T @ part)
            vectors = vectors[:, -rank:]
    deviations = np.sqrt(np.maximum(values[-rank:], 0.0) / len(rows))
    if deviations[0] <= 1e-9 * max(deviations[-1], 1e-30):
        raise UsageError(
            f"rank is {rank}; the target class varies in fewer directions: give a lower rank"
        )
    # the sign of an eigenvector is the library's whim
    flip = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(rank)])
    return _Spectrum(mean, (vectors * flip).T[::-1], deviations[::-1])


def _projected(task: Task, rows: HostArray, spectrum: _Spectrum) -> HostArray:
    """[m, k] places of rows along the directions, in the target's deviations."""
    flat = task.x[rows].reshape(len(rows), -1).astype(np.float64) - spectrum.mean
    return flat @ spectrum.directions.T / spectrum.deviations


def _matched(landed: HostArray, wanted: HostArray) -> HostArray:
    """For each wanted place the nearest row that is not taken yet."""
    free = np.ones(len(landed), bool)
    chosen = np.empty(len(wanted), np.int64)
    for i, place in enumerate(wanted):
        distance = np.where(free, np.square(landed - place).sum(axis=1), np.inf)
        chosen[i] = distance.argmin()
        free[chosen[i]] = False
    return chosen
