"""SPECTRE: quantum entropy scores in a robustly whitened space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison._types import HostArray, Scores
from jaxpoison.detect._coordinates import by_class, coordinates
from jaxpoison.detect._detector import Key, empty_scores, fill_rows
from jaxpoison.detect.mahalanobis import spread_with_null
from jaxpoison.kernels import quantum_entropy_scores, trimmed_gaussian
from jaxpoison.stream import Stream


class SpectreInfo(NamedTuple):
    """Which rung of the ladder each class was whitened by.

    Attributes:
        keep: [c] share of the class that the whitening comes from.
        norm: [c] largest eigenvalue of the whitened second moment at that rung.
    """

    keep: HostArray
    norm: HostArray


@dataclass(frozen=True)
class Spectre:
    """Quantum entropy score of each row after robust whitening.

    ``y = S^(-1/2) (x - m)``; ``M = exp(alpha (Y - I) / (|Y| - 1))`` with Y the second moment of
    the class's y and exp the matrix exponential; ``score_i = y_i^T M y_i / tr M``.

    Where the paper filters down to a known poison rate, the rate is unknown here: the mean and
    covariance are trimmed on a ladder of shares, and each class takes the rung at which its
    statistic ``tr(Y M) / tr(M)`` most exceeds that of Gaussian rows.

    Attributes:
        rank: Leading directions of the class covariance.
        alpha: 0 is the squared norm, infinity the leading direction (the paper: 4).
        ladder: Shares kept.
        num_draws: Gaussian classes drawn for the null.
        min_rows: Smaller classes are skipped.

    **Cost**: the coordinates (shared); a trimmed fit and a k x k eigenproblem a rung and class.

    **Assumes / fails on**: some rung leaves out most of the poison; the hidden direction is among
    the leading ones. Clean-label poison.

    Reference: Hayase, Kong, Somani, Oh, 2021, arXiv:2104.11315; Dong, Hopkins, Li, 2019,
    arXiv:1906.11366 (quantum entropy).
    """

    rank: int = 20
    alpha: float = 4.0
    ladder: tuple[float, ...] = (0.5, 0.6, 0.75, 0.85, 0.95)
    num_draws: int = 16
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the class statistic is log ``tr(Y M) / tr(M)`` at the chosen rung."""
        values, statistic, null = empty_scores(stream, self.num_draws)
        kept, norms = np.full(stream.num_classes, np.nan), np.full(stream.num_classes, np.nan)
        y = coordinates(stream, "principal", self.rank)
        ladder = np.asarray(self.ladder, np.float32)
        for group in by_class(stream, y, self.min_rows):
            (scores, weighted, norm), (_, expected, _) = spread_with_null(
                stream, _rungs, group, key, self.num_draws, ladder, np.float32(self.alpha)
            )
            weighted, expected = np.log(weighted), np.log(expected)
            excess = weighted - expected.mean(axis=0)
            rung = excess.argmax(axis=1)
            each = np.arange(len(rung))
            fill_rows(values, group.rows, group.mask, scores[each, rung])
            statistic[group.classes] = excess[each, rung]
            null[group.classes] = (expected - expected.mean(axis=0)).max(axis=1)
            kept[group.classes], norms[group.classes] = ladder[rung], norm[each, rung]
        return Scores(values, statistic, null, None, SpectreInfo(kept, norms))


def _rungs(member: Any, ladder: Any, alpha: Any) -> tuple[Any, Any, Any]:
    x, mask = member

    def rung(keep: Any) -> tuple[Any, Any, Any]:
        fit = trimmed_gaussian(x, mask, keep=keep)
        out = quantum_entropy_scores(x, mask, fit.mean, fit.whitening, alpha=alpha)
        return out.scores * mask, out.trace_weighted, out.norm

    scores, weighted, norm = jax.lax.map(rung, ladder)
    return scores, jnp.maximum(weighted, 1e-12), norm
