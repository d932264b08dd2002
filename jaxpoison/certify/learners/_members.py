"""Fits and scores many small closed-form models; a model never sees another.

Everything runs at a shape that its own subset decides: a subset is padded to the first rung of the
declared ladder that holds it, and so many members of a rung make a group, filled up with empty
ones. So the compiled program, and with it every bit, depends neither on the other subsets nor on
how many there are, nor on the number of devices: a group runs on one device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import kernels
from jaxpoison._check import UsageError
from jaxpoison._types import Array, HostArray
from jaxpoison.layout import aligned_empty
from jaxpoison.linalg.threads import one_thread
from jaxpoison.stream import compiled, make_mesh, mesh_of_solvers, place

from ..features.rows import FeatureRows
from ..partitions import rungs

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from ._learner import ClosedForm

QUERIES = 1024
"""Test rows of a block, always so many: a prediction has the same bits alone and among others."""

_FIT_ROWS = 64
_SCORE_ROWS = 2048
_IN_FLIGHT = 16  # groups whose rows wait on a device at a time

Model: TypeAlias = "tuple[HostArray, ...] | None"
"""Arrays of one member at the capacity of its rung; None for an empty subset."""

Scored: TypeAlias = tuple[slice, HostArray, Array]
"""Test rows, members [g] and their scores [g, c, rows]."""


@dataclass(frozen=True)
class _Group:
    members: HostArray  # [g'] positions among the subsets, g' at most the group's size
    rows: HostArray  # [g, r] int32 positions of rows; a member's first for padding
    mask: HostArray  # [g, r] float32


@one_thread()  # LAPACK's bits depend on its number of threads; a model's may not
def fit_members(
    learner: ClosedForm,
    features: FeatureRows,
    subsets: Sequence[HostArray],
    y: HostArray,
    num_classes: int,
    mesh: Mesh | None = None,
) -> list[Model]:
    """A model of each subset.

    Args:
        learner: What makes them.
        features: Of all rows.
        subsets: Row positions, in canonical order.
        y: [n] classes by position.
        num_classes: c.
        mesh: Devices; all where None.

    Raises:
        UsageError: No subset has finite coefficients: the regularisation is too small.

    **Cost**: one call a group.
    """
    mesh = mesh_of_solvers(make_mesh() if mesh is None else mesh)
    identity = np.eye(num_classes, dtype=np.float32)
    models: list[Model] = [None] * len(subsets)
    waiting: list[tuple[_Group, Any]] = []
    for number, group in enumerate(_groups(subsets, _FIT_ROWS)):
        size, capacity = group.rows.shape
        # aligned memory goes to a CPU device without a copy; it is new each time, as jax keeps it
        x = aligned_empty((size, capacity, features.width), np.dtype(np.float32))
        x[len(group.members) :] = 0
        members = np.zeros((size, capacity, num_classes), np.float32)
        for position, member in enumerate(group.members.tolist()):
            ids = subsets[member]
            features.copy_to(x[position], ids)
            x[position, len(ids) :], members[position, : len(ids)] = 0, identity[y[ids]]
        operands = place((x, members, group.mask), mesh, number)
        waiting.append((group, learner.fit_group(*operands)))
        if len(waiting) > _IN_FLIGHT:
            _collect(models, *waiting.pop(0))
    for done in waiting:
        _collect(models, *done)
    # An attacker's rows may leave a subset without a finite model: it votes for class 0, as a
    # subset without rows does, and the run goes on.
    fitted = [i for i, model in enumerate(models) if model is not None]
    lost = [i for i in fitted if not all(np.isfinite(leaf).all() for leaf in models[i] or ())]
    if lost and len(lost) == len(fitted):
        raise UsageError(
            f"{learner.name} found no finite model of any subset; raise its regularisation"
        )
    for i in lost:
        models[i] = tuple(np.zeros_like(leaf) for leaf in models[i] or ())
    return models


def _collect(models: list[Model], group: _Group, leaves: Any) -> None:
    host = [np.asarray(leaf) for leaf in jax.device_get(leaves)]
    for position, member in enumerate(group.members.tolist()):
        models[member] = tuple(leaf[position] for leaf in host)


def score_members(
    learner: ClosedForm,
    features: FeatureRows,
    subsets: Sequence[HostArray],
    models: Sequence[Model],
    queries: HostArray,
    mesh: Mesh | None = None,
) -> Iterator[Scored]:
    """Scores of every member that has rows on all test rows, by block of test rows.

    The Gram matrix of all rows with a block of test rows is computed once; each member takes the
    rows that are its own.

    Args:
        learner: What made the models.
        features: Of all rows.
        subsets: Row positions of each member.
        models: From ``fit_members``.
        queries: [v, f] features of the test rows.
        mesh: Devices; all where None. A block of test rows runs on one of them.

    Yields:
        A slice of test rows, members [g], scores [g, c, rows] on the device.

    **Cost**: 2 n v f flop for the Gram matrix, 4 n * 1024 bytes of memory a device, and 2 c flop
    for each entry of it that a member takes.
    """
    mesh = make_mesh() if mesh is None else mesh
    kernel, gamma = learner.gram
    groups = [(group, _stacked(group, models)) for group in _groups(subsets, _SCORE_ROWS)]
    chunks = features.chunks
    placed: dict[int, Any] = {}
    for number, start in enumerate(range(0, len(queries), QUERIES)):
        stop = min(start + QUERIES, len(queries))
        block = aligned_empty((QUERIES, queries.shape[1]), np.dtype(np.float32))
        block[: stop - start] = queries[start:stop]
        block[stop - start :] = 0
        device = number % mesh.size
        if device not in placed:
            operands = [(g.rows, g.mask, leaves) for g, leaves in groups]
            placed[device] = place(([rows for _, rows in chunks], operands), mesh, device)
        rows, operands = placed[device]
        tests = place(block, mesh, device)
        parts = [kernels.gram_block(part, tests, gamma, kernel=kernel) for part in rows]
        gram = _joined(parts)
        del parts
        for (group, _), (own, mask, leaves) in zip(groups, operands, strict=True):
            scores = learner.score_group(gram, leaves, own, mask)
            yield slice(start, stop), group.members, scores[: len(group.members), :, : stop - start]


def _joined_rows(parts: list[Array]) -> Array:
    return jnp.concatenate(parts)


_joined = compiled(_joined_rows)


def _groups(subsets: Sequence[HostArray], rows: int) -> list[_Group]:
    """Members of one rung, so many that they hold ``rows`` rows; the last group is filled up."""
    capacities = rungs(np.array([len(ids) for ids in subsets], np.int64))
    out = []
    for capacity in np.unique(capacities[capacities > 0]).tolist():
        members = np.flatnonzero(capacities == capacity)
        size = max(1, rows // capacity)
        for start in range(0, len(members), size):
            some = members[start : start + size]
            own = np.zeros((size, capacity), np.int32)
            mask = np.zeros((size, capacity), np.float32)
            for position, member in enumerate(some.tolist()):
                # padding points at a row of the member's own: 0 times what another's row holds
                # would be 0 only where that is finite
                own[position] = subsets[member][0]
                own[position, : len(subsets[member])] = subsets[member]
                mask[position, : len(subsets[member])] = 1
            out.append(_Group(some, own, mask))
    return out


def _stacked(group: _Group, models: Sequence[Model]) -> tuple[HostArray, ...]:
    """Each array of the members' models, stacked and filled up with zeros."""
    given = [models[member] for member in group.members.tolist()]
    present = [model for model in given if model is not None]
    out = []
    for leaf in range(len(present[0])):
        first = present[0][leaf]
        stack = np.zeros((len(group.rows), *first.shape), first.dtype)
        stack[: len(present)] = [model[leaf] for model in present]
        out.append(stack)
    return tuple(out)
