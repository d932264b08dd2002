"""Kernel ridge regression and its linear case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpoison import kernels
from jaxpoison._check import UsageError
from jaxpoison._types import Array
from jaxpoison.stream import compiled

from ._learner import ClosedForm


@dataclass(frozen=True)
class KernelRidge(ClosedForm):
    """One-against-all kernel ridge regression: ``(K + lambda I)^-1 (Y - 1/c)`` for each subset.

    ``K = exp(-gamma |a - b|^2)`` of features of length 1, so gamma needs no scale of the data. A
    unique minimiser: no seed, no epochs, linear in the labels.

    Attributes:
        gamma: Of the kernel; features of length 1 are at most 2 apart.
        regularisation: lambda.

    **Cost**: r^3 / 3 flop for a subset of r rows; subsets of more than some thousand rows want a
    gradient learner.

    Reference: Saunders, Gammerman and Vovk, Ridge regression learning algorithm in dual variables
    (1998).
    """

    gamma: float = 1.0
    regularisation: float = 0.003

    def __post_init__(self) -> None:
        for name in ("gamma", "regularisation"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} is {getattr(self, name)}; give a number above 0")

    @property
    def gram(self) -> tuple[str, float]:
        """A Gaussian kernel."""
        return "rbf", self.gamma

    def settings(self) -> dict[str, Any]:
        """Kernel width and lambda."""
        return {"gamma": self.gamma, "regularisation": self.regularisation}

    def fit_group(self, x: Array, members: Array, mask: Array) -> tuple[Array, ...]:
        """Dual coefficients [g, r, c]."""
        fit = _FITS[self.gram[0]]
        return (fit(x, members, mask, self.gram[1], self.regularisation),)

    def score_group(
        self, gram: Array, models: tuple[Array, ...], rows: Array, mask: Array
    ) -> Array:
        """Coefficients times the members' rows of the Gram matrix."""
        return _scores(gram, models[0], rows)


@dataclass(frozen=True)
class Ridge(KernelRidge):
    """One-against-all ridge regression with a bias: the kernel ``1 + a.b``.

    Solved in dual form, as subsets have fewer rows than features have values.

    Attributes:
        gamma: Unused; it stays at 1.
        regularisation: lambda.

    **Cost**: as ``KernelRidge``.
    """

    gamma: float = 1.0
    regularisation: float = 0.01

    @property
    def gram(self) -> tuple[str, float]:
        """A linear kernel."""
        return "linear", 1.0

    def settings(self) -> dict[str, Any]:
        """Lambda."""
        return {"regularisation": self.regularisation}


def _fit(
    x: Array, members: Array, mask: Array, gamma: Array, regularisation: Array, kernel: Any
) -> Array:
    def one(x: Array, members: Array, mask: Array) -> Array:
        targets = members - 1 / members.shape[1]
        return kernels.kernel_ridge(x, targets, mask, gamma, regularisation, kernel=kernel)

    return jax.vmap(one)(x, members, mask)


def _fit_rbf(x: Array, members: Array, mask: Array, gamma: Array, regularisation: Array) -> Array:
    return _fit(x, members, mask, gamma, regularisation, "rbf")


def _fit_linear(
    x: Array, members: Array, mask: Array, gamma: Array, regularisation: Array
) -> Array:
    return _fit(x, members, mask, gamma, regularisation, "linear")


def _gathered(gram: Array, coefficients: Array, rows: Array) -> Array:
    def one(member: tuple[Array, Array]) -> Array:
        return kernels.gathered_scores(gram, *member)

    # one member after the other: under vmap the gathered rows of all would be held at once
    return jnp.asarray(jax.lax.map(one, (coefficients, rows)))


_FITS = {"rbf": compiled(_fit_rbf), "linear": compiled(_fit_linear)}
_scores = compiled(_gathered)
