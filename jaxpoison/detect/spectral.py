"""Spectral signatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxpoison import folds
from jaxpoison._types import HostArray, Scores
from jaxpoison.detect._coordinates import narrowed, sketched_bases
from jaxpoison.detect._detector import Key, empty_scores, host_rng
from jaxpoison.linalg import new_directions, orthonormal_rows, principal, rayleigh_ritz
from jaxpoison.stream import Stream

_GRAM_FEATURES = 192  # up to here one pass of second moments beats several thin passes
_ROUNDING = 1e-4  # a residual below it that no longer halves is float32's rounding of the sums
_SPACE_FLOATS = 40 << 20  # of two blocks of all classes; beyond it rows are projected first
_HELD_FLOATS = 1 << 24  # of all bases: beyond it only the leading vectors are carried on


class SpectralInfo(NamedTuple):
    """How the leading directions were found.

    Attributes:
        method: "gram" or "range_finder".
        passes: Passes over the data.
        residual: [c] ``|Sigma v - lambda v| / lambda`` of the leading direction.
        converged: Whether every residual is below the tolerance, or down at the rounding.
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
        max_passes: Most passes of the range finder. A class without a leading direction (all
            eigenvalues alike) uses them up; any of its directions is then as good.
        tolerance: Relative residual at which it stops. The Krylov space gains two to three digits
            a pass, so float32's last digits cost one pass more than three digits would.
        min_rows: Smaller classes are skipped.
        shares_bases: Begin with the directions that ``coordinates`` found, where it finds them in
            passes of its own: detectors that run beside this one need them anyway.

    **Cost**: second moments (2 n d^2 FLOP, two passes) for d <= 192; else a block Krylov
    space, 4 n d (1 + oversample) FLOP a pass, at most 2^24 + 2 c d (1 + oversample) doubles held.
    Where the latter are more than 40 * 2^20, rows are first projected on fewer random directions.

    **Assumes / fails on**: poison separates along the direction of largest variance. Low rates,
    clean-label and adaptive poison, balanced clusters; on clean data the tail is honest rows.

    Reference: Tran, Li, Madry, 2018, arXiv:1811.00636; block Krylov: Musco and Musco, 2015,
    arXiv:1504.05477.
    """

    oversample: int = 7
    max_passes: int = 12
    tolerance: float = 3e-6
    min_rows: int = 8
    shares_bases: bool = False

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the class statistic is the ratio of the two leading eigenvalues."""
        values, statistic, null = empty_scores(stream)
        stream = self._thin(stream)
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

    def _thin(self, stream: Stream) -> Stream:
        """The rows, or random directions of them where the bases could not be held."""
        c, d = folds.class_means(stream)[1].shape
        most = max(_SPACE_FLOATS // (2 * c * (1 + self.oversample)), 2)
        return stream if d <= most else narrowed(stream, d, most)

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
        counts, mean = folds.class_means(stream)
        c, d = mean.shape
        k = min(1 + self.oversample, d)
        if self.shares_bases and not folds.holds_grams(c, d):
            block = orthonormal_rows(sketched_bases(stream)["principal"][:, :k])
        else:
            start = host_rng(key).standard_normal((1, k, d))
            block = np.repeat(orthonormal_rows(start), c, axis=0)
        room = min(d, k * self.max_passes, max(_HELD_FLOATS // (c * d), 2 * k))
        held, size = np.empty((2, c, room, d)), 0
        large = stream.counts >= self.min_rows
        passes, worst = 2, np.inf  # the means before, the projection after
        for _ in range(self.max_passes):
            passes += 1
            new = slice(size, size + block.shape[1])
            held[0][:, new], held[1][:, new] = block, folds.sketch(stream, block, mean, counts)
            size = new.stop
            basis, product = held[:, :, :size]
            spectrum, ritz, turned = rayleigh_ritz(basis, product, k)
            rest = turned - spectrum[:, :, None] * ritz
            scale = np.maximum(spectrum[:, 0], 1e-30)
            residual = np.linalg.norm(rest[:, 0], axis=1) / scale
            before, worst = worst, residual[large].max(initial=0.0)
            converged = bool(worst <= self.tolerance or before / 2 < worst <= _ROUNDING)
            if converged or size == d:
                break
            if size + min(k, d - size) > room:
                held[:, :, :k], size = (ritz, turned), k
            block = new_directions(held[0][:, :size], rest)
        largest = ritz[np.arange(c), 0, np.abs(ritz[:, 0]).argmax(axis=1)]
        top = ritz[:, 0] * np.sign(largest)[:, None]
        padded = np.ones((c, 2))
        padded[:, : min(2, k)] = spectrum[:, :2]
        return top, padded, SpectralInfo("range_finder", passes, residual, converged)
