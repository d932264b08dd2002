"""The named workloads that tests and benchmarks share, and the arrays they stand for."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

HostArray: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


class Workload(NamedTuple):
    """A table of features with classes, made of low rank plus noise.

    Attributes:
        name: what tests and benchmarks print.
        rows: n of all classes together.
        features: d.
        classes: c.
        rank: directions of large variance of each class.
        seed: of the numpy generator.
        planted: fraction of class 0 that is moved away along one direction.
        is_benchmark: too large for the tests.
    """

    name: str
    rows: int
    features: int
    classes: int
    rank: int
    seed: int
    planted: float = 0.1
    is_benchmark: bool = False


class Drawn(NamedTuple):
    """The arrays of a workload.

    Attributes:
        x: [n, d] float32 features.
        label: [n] int64 class of each row.
        is_planted: [n] bool, the rows that were moved.
    """

    x: HostArray
    label: HostArray
    is_planted: HostArray


WORKLOADS = (
    # Small: one class, several classes, fewer rows than features, one feature, hardly any rows.
    Workload("one-class", 240, 6, 1, 2, seed=1),
    Workload("three-classes", 300, 8, 3, 3, seed=2, planted=0.2),
    Workload("wide", 30, 48, 1, 4, seed=3),
    Workload("one-feature", 90, 1, 1, 1, seed=4),
    Workload("five-rows", 5, 3, 1, 1, seed=5, planted=0.2),
    Workload("unplanted", 400, 10, 2, 4, seed=6, planted=0.0),
    # Whole tables.
    Workload("4k-256-10", 4_000, 256, 10, 16, seed=24, is_benchmark=True),
    Workload("20k-512-10", 20_000, 512, 10, 16, seed=20, is_benchmark=True),
    Workload("200k-512-10", 200_000, 512, 10, 16, seed=21, is_benchmark=True),
    Workload("60k-512-200", 60_000, 512, 200, 16, seed=22, is_benchmark=True),
    Workload("20k-2048-10", 20_000, 2048, 10, 16, seed=23, is_benchmark=True),
    # One class after projection: m x k.
    Workload("class-300-10", 300, 10, 1, 4, seed=30, is_benchmark=True),
    Workload("class-2k-32", 2_000, 32, 1, 8, seed=31, is_benchmark=True),
    Workload("class-6k-10", 6_000, 10, 1, 4, seed=32, is_benchmark=True),
    Workload("class-6k-64", 6_000, 64, 1, 8, seed=33, is_benchmark=True),
    Workload("class-20k-100", 20_000, 100, 1, 16, seed=34, is_benchmark=True),
)


def small_workloads() -> tuple[Workload, ...]:
    """Those that tests run."""
    return tuple(w for w in WORKLOADS if not w.is_benchmark)


def benchmark_workloads() -> tuple[Workload, ...]:
    """Those that benchmarks run."""
    return tuple(w for w in WORKLOADS if w.is_benchmark)


def draw(workload: Workload) -> Drawn:
    """Draw a workload's arrays; the same ones each time.

    A row of class c is mean_c + z B_c + 0.5 e with z of `rank` dimensions; B_c's directions have
    standard deviations 3, 3/2, 3/3 ... Planted rows are moved by 8 standard deviations of the
    noise along a direction of their own. Rows of the classes are interleaved.

    Args:
        workload: one of WORKLOADS, or another.

    Returns:
        Rows, labels, and which rows were planted.

    **Cost**: one class at a time besides the table itself, 4 n d bytes.
    """
    rng = np.random.default_rng(workload.seed)
    label = np.arange(workload.rows, dtype=np.int64) % workload.classes
    x = np.empty((workload.rows, workload.features), np.float32)
    is_planted = np.zeros(workload.rows, np.bool_)
    spread = (3.0 / np.arange(1, workload.rank + 1)).astype(np.float32)
    for c in range(workload.classes):
        member = np.flatnonzero(label == c)
        basis = rng.standard_normal((workload.rank, workload.features), np.float32)
        basis *= (spread / np.linalg.norm(basis, axis=1))[:, None]
        rows = 0.5 * rng.standard_normal((len(member), workload.features), np.float32)
        rows += rng.standard_normal((len(member), workload.rank), np.float32) @ basis
        rows += 2 * rng.standard_normal(workload.features, np.float32)
        if c == 0:
            direction = rng.standard_normal(workload.features, np.float32)
            chosen = rng.permutation(len(member))[: round(workload.planted * len(member))]
            rows[chosen] += 4 * direction / np.linalg.norm(direction)
            is_planted[member[chosen]] = True
        x[member] = rows
    return Drawn(x, label, is_planted)


def by_class(drawn: Drawn, *, padding: float = 0.0) -> tuple[HostArray, HostArray]:
    """The rows of each class together, padded to the largest class.

    Args:
        drawn: arrays of a workload.
        padding: what padding rows hold.

    Returns:
        Rows [c, m, d] float32 and mask [c, m] float32.
    """
    counts = np.bincount(drawn.label)
    x = np.full((len(counts), counts.max(), drawn.x.shape[1]), padding, np.float32)
    mask = (np.arange(counts.max()) < counts[:, None]).astype(np.float32)
    for c, count in enumerate(counts):
        x[c, :count] = drawn.x[drawn.label == c]
    return x, mask
