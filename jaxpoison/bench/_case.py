"""What is timed: a kernel, its arguments at a size, and what it has to compute and to move."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxpoison.kernels._workloads import WORKLOADS, Drawn, Workload, draw

STEPS = 5
"""Of every solver: with a tolerance that nothing reaches, so that the work is known."""
NEVER = 1e-30
"""That tolerance."""
CLASSES = 10
"""Of the heads."""
_FORMED_FLOATS = 1 << 26  # of per-row gradients that are held: 256 MB
_LONGEST = 1 << 20  # of a vector of parameters


class Work(NamedTuple):
    """One kernel at one size.

    Attributes:
        call: Pure function of ``args``; static knobs are bound.
        args: Pytrees of host arrays.
        rows: Rows of data that one call handles.
        flops: By formula, a product and a sum each counted; None leaves it to XLA's own count,
            which is right only where nothing loops.
        traffic: Bytes moved at least; None for every argument and every result once.
        trips: Steps of the loops whose end depends on the data, outermost first.
    """

    call: Callable[..., Any]
    args: tuple[Any, ...]
    rows: int
    flops: float | None = None
    traffic: float | None = None
    trips: tuple[int, ...] = ()


class Size(NamedTuple):
    """The workloads and shapes that a size stands for.

    Attributes:
        name: small, medium, large; tiny is for tests.
        table: Rows of several classes.
        one_class: Rows of one class after projection.
        queries: Rows that are searched for.
        shapley: Queries of Shapley values.
        batch: Rows through the network.
        widths: Inputs, hidden units and classes of the network.
        others: Rows that gradients are multiplied with.
        vectors: Right-hand sides of solvers.
        krylov: Vectors of a basis.
        features: k of random projections.
        subset: Rows of one subset of a partition.
        tile: Rows of a class-pure tile.
    """

    name: str
    table: Workload
    one_class: Workload
    queries: int
    shapley: int
    batch: int
    widths: tuple[int, int, int]
    others: int
    vectors: int
    krylov: int
    features: int
    subset: int
    tile: int

    @property
    def head(self) -> Workload:
        """Rows of several classes after projection, for softmax heads."""
        return self.one_class._replace(classes=CLASSES)

    @property
    def num_weights(self) -> int:
        """P of the network, biases too."""
        i, h, c = self.widths
        return i * h + h + h * c + c

    @property
    def formed(self) -> int:
        """Rows whose whole gradients are formed."""
        return max(min(self.batch, _FORMED_FLOATS // self.num_weights), 1)

    @property
    def flat(self) -> int:
        """Length of a vector of parameters."""
        return min(self.num_weights, _LONGEST)


Builder: TypeAlias = Callable[[Size], Work]


def _named(name: str) -> Workload:
    return next(workload for workload in WORKLOADS if workload.name == name)


SIZES = {
    size.name: size
    for size in (
        Size("tiny", _named("three-classes"), _named("one-class"), 6, 6, 12, (8, 12, 3), 5, 3, 4,
             8, 20, 32),
        Size("small", _named("4k-256-10"), _named("class-2k-32"), 256, 16, 256, (256, 256, 10), 32,
             4, 16, 128, 256, 256),
        Size("medium", _named("20k-512-10"), _named("class-6k-64"), 2048, 64, 1024, (784, 512, 10),
             128, 8, 32, 512, 1024, 256),
        Size("large", _named("200k-512-10"), _named("class-20k-100"), 8192, 256, 8192,
             (2048, 2048, 100), 512, 16, 64, 2048, 4096, 256),
    )
}  # fmt: skip


@lru_cache(maxsize=3)
def drawn(workload: Workload) -> Drawn:
    """The arrays of a workload, kept for the kernels that come next."""
    return draw(workload)


def one_class(size: Size) -> tuple[Any, Any]:
    """Rows [m, k] of one class and their mask."""
    x = drawn(size.one_class).x
    return x, np.ones(len(x), np.float32)


def table(size: Size) -> tuple[Any, Any, Any]:
    """Rows [n, d], int32 labels and mask of the table."""
    x, label, _ = drawn(size.table)
    return x, label.astype(np.int32), np.ones(len(x), np.float32)


def normal(seed: int, *shape: int, scale: float = 1.0) -> Any:
    """Float32 normal numbers."""
    return np.float32(scale) * np.random.default_rng(seed).standard_normal(shape, np.float32)
