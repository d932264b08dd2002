"""The table of everything that is timed, and of every public name that is not, with the reason."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from types import ModuleType

from jaxpoison import kernels
from jaxpoison._check import UsageError
from jaxpoison.bench import _classes, _networks, _rows, _solvers
from jaxpoison.bench._case import SIZES as SIZES
from jaxpoison.bench._case import Builder
from jaxpoison.bench._case import Size as Size
from jaxpoison.bench._case import Work as Work

TABLE_VERSION = 1
"""Raised when what a size stands for changes, for figures are then of something else."""

CASES: dict[str, Builder] = {
    **_classes.CASES,
    **_rows.CASES,
    **_solvers.CASES,
    **_networks.CASES,
}
"""How to make each kernel's work at a size."""

_WHY: dict[str, tuple[str, ...]] = {
    "a result type": (
        "AfterKernel", "ClassMeans", "EKFACSums", "GradientNorms", "HeadLossInfluence",
        "HeadSelfInfluence", "Influence", "KMeans", "Krylov", "Mixture", "Neighbours",
        "QuantumEntropy", "Scored", "SoftmaxFit", "Solution", "SolveStatus", "Taps",
        "TrimmedGaussian",
    ),
    "an argument type": ("ConvGeometry", "EKFACInverse", "Layer", "LayerBasis", "LowRank", "Tap"),
    "a loss made of another, timed inside hessian_vector_products": ("WeightedLoss",),
    "traces the loss on the host, once for its shapes": (
        "TapPlan", "plan_explicit_taps", "plan_taps",
    ),
    "moves axes, computes nothing": ("leaf_to_matrix", "matrix_to_leaf"),
}  # fmt: skip

NOT_TIMED: dict[str, str] = {name: why for why, names in _WHY.items() for name in names}
"""Every other public name, and why there is nothing to time."""


def public_names() -> set[str]:
    """What ``jaxpoison.kernels`` offers, types included."""
    return {
        name
        for name, value in vars(kernels).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and getattr(value, "__module__", "").startswith(f"{kernels.__name__}.")
    }


def select(names: Sequence[str] | None) -> tuple[str, ...]:
    """The kernels to time, in the order of the table.

    Args:
        names: of ``--only``; None for all.

    Returns:
        Names of CASES.

    Raises:
        UsageError: if a name is no kernel that is timed.
    """
    if names is None:
        return tuple(CASES)
    for name in names:
        if name in CASES:
            continue
        if name in NOT_TIMED:
            raise UsageError(f"only: {name} is not timed: {NOT_TIMED[name]}")
        close = difflib.get_close_matches(name, CASES, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"only: no kernel {name!r}; {hint}known: {', '.join(sorted(CASES))}")
    return tuple(name for name in CASES if name in names)
