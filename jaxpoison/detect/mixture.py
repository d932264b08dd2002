"""The class-gated two-component mixture with shared covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxpoison._types import HostArray, Scores
from jaxpoison.detect._coordinates import Basis, by_class, coordinates
from jaxpoison.detect._detector import Key, empty_scores, fill_rows
from jaxpoison.detect.mahalanobis import spread_with_null
from jaxpoison.kernels import shared_covariance_mixture
from jaxpoison.stream import Stream


class MixtureInfo(NamedTuple):
    """The fit of each class.

    Attributes:
        weight: [c] share of the smaller component.
        gain: [c] log likelihood above one component, nats.
        basis: Which directions the rows were seen in.
    """

    weight: HostArray
    gain: HostArray
    basis: str


@dataclass(frozen=True)
class SharedMixture:
    """Log odds that a row belongs to the smaller of two populations of its class.

    In the leading directions of the class, ``(1-w) N(a, S) + w N(b, S)`` is fitted by EM from many
    tail starts (``jaxpoison.kernels.shared_covariance_mixture``). With the "contrast" basis the
    directions are those in which the class varies and the *other* classes do not, which is how a
    trigger looks even when it is most of its class.

    Attributes:
        basis: "contrast", "principal", or "given" for rows that are coordinates already.
        rank: Directions.
        num_draws: Gaussian classes drawn for the null.
        min_rows: Smaller classes are skipped.

    **Cost**: the coordinates (shared); about 60 EM steps of two thin products a class.

    **Assumes / fails on**: planted rows are shifted alike by more than they spread. Sample-specific
    and warped triggers, and honest classes of two kinds: the statistic needs a gate, and what
    passes it a second opinion (``ExclusionCheck``).

    Reference: McLachlan and Peel, Finite Mixture Models (2000).
    """

    basis: Basis = "contrast"
    rank: int = 16
    num_draws: int = 16
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the class statistic is the separation of the means, in shared deviations."""
        values, statistic, null = empty_scores(stream, self.num_draws)
        weight, gain = np.full(stream.num_classes, np.nan), np.full(stream.num_classes, np.nan)
        y = coordinates(stream, self.basis, self.rank)
        for group in by_class(stream, y, self.min_rows):
            fit, drawn = spread_with_null(stream, _fit, group, key, self.num_draws)
            fill_rows(values, group.rows, group.mask, fit.log_ratio)
            statistic[group.classes], null[group.classes] = fit.separation, drawn.separation
            weight[group.classes], gain[group.classes] = fit.weight, fit.gain
        info = MixtureInfo(weight, gain, self.basis)
        return Scores(values, statistic, null, values > 0, info)


def _fit(member: Any) -> Any:
    x, mask = member
    return shared_covariance_mixture(x, mask)
