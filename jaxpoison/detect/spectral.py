"""Spectral signatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxpoison import folds
from jaxpoison._types import HostArray, Scores
from jaxpoison.detect._detector import Key, empty_scores
from jaxpoison.linalg import orthonormal_rows, principal, rayleigh_ritz
from jaxpoison.stream import Stream

_GRAM_FEATURES = 192  # up to here one pass of second moments beats several thin passes


class SpectralInfo(NamedTuple):
    """How the leading directions were found.

    Attributes:
        method: "gram" or "range_finder".
        passes: Passes over the data.
        residual: [c] ``|Sigma v - lambda v| / lambda`` of the leading direction.
        converged: Whether every residual is below the tolerance.
    """

    method: str
    passes: int
    residual: HostArray
    converged: bool


@dataclass(frozen=True)
class SpectralSignatures:
    """Squared projection on the leading direction of the row's class.

    ``score_i = (v_c . (x_i - mu_c))^2`` with v_c the top right singular vector of the centred
    rows of class c. Both the direction and the projection are centred: four of five public ports
    project uncentred rows, which turns the ranking around.

    Attributes:
        oversample: Extra directions carried by the range finder.
        max_passes: Most passes of the range finder.
        tolerance: Relative residual at which it stops.
        min_rows: Smaller classes are skipped.

    **Cost**: second moments (2 n d^2 FLOP, two passes) for d <= 192; else a block range finder,
    4 n d (1 + oversample) FLOP a pass, c k d floats.

    **Assumes / fails on**: poison separates along the direction of largest variance. Low rates,
    clean-label and adaptive poison, balanced clusters; on clean data the tail is honest rows.

    Reference: Tran, Li, Madry, 2018, arXiv:1811.00636; range finder: Halko, Martinsson, Tropp,
    2011, arXiv:0909.4061.
    """

    oversample: int = 9
    max_passes: int = 12
    tolerance: float = 1e-3
    min_rows: int = 8

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the class statistic is the ratio of the two leading eigenvalues."""
        values, statistic, null = empty_scores(stream)
        _, mean = folds.class_means(stream)
        d = mean.shape[1]
        if d <= _GRAM_FEATURES and folds.holds_grams(stream.num_classes, d):
            vectors, spectrum, info = self._by_gram(stream)
        else:
            vectors, spectrum, info = self._by_range_finder(stream, key)
        projected = folds.project(stream, vectors[:, None, :], mean)[:, 0]
        large = stream.counts >= self.min_rows
        keep = large[stream.labels]
        values[keep] = projected[keep] ** 2
        floor = np.maximum(spectrum[:, 1], 1e-12 * np.maximum(spectrum[:, 0], 1e-30))
        statistic[large] = (spectrum[:, 0] / floor)[large]
        return Scores(values, statistic, null, None, info)

    def _by_gram(self, stream: Stream) -> tuple[HostArray, HostArray, SpectralInfo]:
        moments = folds.class_moments(stream)
        if moments.cov is None:
            raise ValueError("moments without covariances")
        c, d = moments.mean.shape
        vectors, spectrum = np.zeros((c, d)), np.ones((c, 2))
        for i in np.flatnonzero(stream.counts >= self.min_rows):
            values, rows = principal(moments.cov[i], min(2, d))
            vectors[i], spectrum[i, : len(values)] = rows[0], values
        return vectors, spectrum, SpectralInfo("gram", 2, np.zeros(c), True)

    def _by_range_finder(
        self, stream: Stream, key: Key
    ) -> tuple[HostArray, HostArray, SpectralInfo]:
        import jax

        counts, mean = folds.class_means(stream)
        c, d = mean.shape
        k = min(1 + self.oversample, d)
        start = np.asarray(jax.random.normal(key, (1, k, d)), np.float64)
        basis = orthonormal_rows(np.repeat(start, c, axis=0))
        large = stream.counts >= self.min_rows
        for done in range(1, self.max_passes + 1):
            product = folds.sketch(stream, basis, mean, counts)
            spectrum, ritz = rayleigh_ritz(basis, product)
            # the product of a Ritz vector is the same rotation of the product
            turned = np.einsum("ckd,cjd,cjm->ckm", ritz[:, :1], basis, product)[:, 0]
            scale = np.maximum(spectrum[:, 0], 1e-30)
            residual = np.linalg.norm(turned - spectrum[:, :1] * ritz[:, 0], axis=1) / scale
            if done == self.max_passes or residual[large].max(initial=0.0) <= self.tolerance:
                break
            basis = orthonormal_rows(product)
        top = (
            ritz[:, 0] * np.sign(ritz[np.arange(c), 0, np.abs(ritz[:, 0]).argmax(axis=1)])[:, None]
        )
        converged = bool(residual[large].max(initial=0.0) <= self.tolerance)
        padded = np.ones((c, 2))
        padded[:, : min(2, k)] = spectrum[:, :2]
        return top, padded, SpectralInfo("range_finder", done + 2, residual, converged)
