"""Spectral signatures of gradients: what the rows of a class would do to the network together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray, Scores
from jaxpoison.detect._detector import Key
from jaxpoison.detect._gradients import Gradients, gradients, keep_norms
from jaxpoison.detect.spectral import SpectralInfo, SpectralSignatures
from jaxpoison.models import Model
from jaxpoison.sources import open_source
from jaxpoison.stream import Stream


class GradientDirectionInfo(NamedTuple):
    """How the directions were found.

    Attributes:
        num_nonfinite: Rows whose loss or gradient is not finite; they have the median of their
            class.
        spectral: Of the projected gradients.
    """

    num_nonfinite: int
    spectral: SpectralInfo


@dataclass(frozen=True)
class GradientDirection:
    """Squared projection of a row's gradient on the leading direction of its class.

    ``score_i = (v_c . (P g_i - mean_c))^2`` with g_i the gradient of the row's loss in all trained
    leaves, P a random projection of ``num_inputs * num_outputs`` features that keeps inner
    products up to ``1 / sqrt(k)``, and v_c the top right singular vector of the centred rows of
    the class. Each layer is projected by a Kronecker product of random signs, so that its
    gradients are never formed. What follows is ``SpectralSignatures``.

    Attributes:
        num_inputs: Random directions of the inputs of a layer.
        num_outputs: Random directions of its outputs.
        min_rows: Smaller classes are skipped.

    **Cost**: the pass of ``GradientNorm`` (which then needs none) with 2 T (i k_i + o k_o) FLOP a
    row and layer more, k floats a row held, and ``SpectralSignatures`` on them.

    **Assumes / fails on**: planted rows pull the weights one way. At the end of a training the
    gradients of rows that were learnt are near zero, so the leading direction is of the rows that
    were not: wrong labels and hard honest rows, rather than a backdoor.

    Reference: Tran, Li, Madry, 2018, arXiv:1811.00636, in the space of gradients; projection:
    Choe et al., 2024, arXiv:2405.13954.
    """

    num_inputs: int = 16
    num_outputs: int = 8
    min_rows: int = 8

    def score(self, stream: Stream, *, key: Key, model: Model) -> Scores:
        """Scores [n]; the class statistic is the ratio of the two leading eigenvalues.

        Args:
            stream: Raw inputs as the model takes them, without a stage.
            key: Of the projection.
            model: Its loss is differentiated in all that it trains.

        Raises:
            UsageError: The stream has a stage, the model has no gradients of single rows, or a
                number of directions is below 1.
        """
        for name in ("num_inputs", "num_outputs"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give 1 or more")
        found = gradients(
            stream, model, key, num_inputs=self.num_inputs, num_outputs=self.num_outputs
        )
        keep_norms(stream, model, found)
        inner = stream.of(open_source(_filled(stream, found), role="features"))
        scores = SpectralSignatures(min_rows=self.min_rows).score(inner, key=key)
        values = scores.values
        lost = ~found.is_finite
        for c in np.unique(stream.labels[lost]):
            mine = stream.labels == c
            if (mine & found.is_finite).any():
                values[mine & lost] = np.median(values[mine & found.is_finite])
        info = GradientDirectionInfo(int(lost.sum()), scores.info)
        return scores._replace(info=info)


def _filled(stream: Stream, found: Gradients) -> HostArray:
    """Projected gradients in units of their mean size, rows that have none at the class mean."""
    rows = found.sketch.astype(np.float64)
    squares = float(np.square(rows).sum()) / max(int(found.is_finite.sum()), 1)
    rows /= max(squares**0.5, float(np.finfo(np.float32).tiny))
    for c in np.unique(stream.labels[~found.is_finite]):
        mine = stream.labels == c
        good = mine & found.is_finite
        rows[mine & ~found.is_finite] = rows[good].mean(axis=0) if good.any() else 0.0
    return rows.astype(np.float32)
