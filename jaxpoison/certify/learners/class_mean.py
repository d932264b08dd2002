"""Nearest class mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from jaxpoison import kernels
from jaxpoison._types import Array
from jaxpoison.stream import compiled

from ._learner import ClosedForm


@dataclass(frozen=True)
class ClassMean(ClosedForm):
    """The class whose mean is nearest: scores ``2 mu_c.t - |mu_c|^2``.

    A class that the subset lacks never wins.

    **Cost**: 2 r^2 f flop for a subset of r rows.

    Reference: Tibshirani et al., Diagnosis of multiple cancer types by shrunken centroids (2002),
    without the shrinking.
    """

    @property
    def gram(self) -> tuple[str, float]:
        """A linear kernel."""
        return "linear", 1.0

    def settings(self) -> dict[str, Any]:
        """None."""
        return {}

    def fit_group(self, x: Array, members: Array, mask: Array) -> tuple[Array, ...]:
        """Coefficients [g, r, c] and biases [g, c]."""
        coefficients, bias = _fit(x, members, mask)
        return coefficients, bias

    def score_group(
        self, gram: Array, models: tuple[Array, ...], rows: Array, mask: Array
    ) -> Array:
        """Coefficients times the members' rows of the Gram matrix, plus biases."""
        return _scores(gram, *models, rows)


def _fit_means(x: Array, members: Array, mask: Array) -> tuple[Array, Array]:
    means: tuple[Array, Array] = jax.vmap(kernels.class_means)(x, members, mask)
    return means


def _gathered(gram: Array, coefficients: Array, bias: Array, rows: Array) -> Array:
    def one(member: tuple[Array, Array, Array]) -> Array:
        coefficients, bias, rows = member
        return kernels.gathered_scores(gram, coefficients, rows) + bias[:, None]

    return jax.lax.map(one, (coefficients, bias, rows))


_fit = compiled(_fit_means)
_scores = compiled(_gathered)
