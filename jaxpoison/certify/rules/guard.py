"""Plurality in which members without a clear margin count as adversarial already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison.certify.rules._counting import count_votes, gaps, winners
from jaxpoison.certify.rules.plurality import first_two, spread_radius

if TYPE_CHECKING:
    from jaxpoison.certify._types import Ints
    from jaxpoison.certify.votes import Votes


@dataclass(frozen=True)
class Guarded:
    """Votes whose margin is at most tau may change at will, beside those of the touched cells.

    With u such votes, all counted for the rival: ``floor((n_c - max_b (n_b + [b < c]) - u) / 2)``
    over the firm votes; over cells as Finite Aggregation, a guarded vote being the rival's.

    Two uses: members that are not bit-reproducible (a rerun moves a score by at most tau / 2), and
    members that abstain (margin ``-inf``), such as those that an evasion certificate does not
    cover.

    Attributes:
        tau: Margin above which a vote is firm; above 0. At tau itself a rerun could make a tie.
        abstain: Guarded votes are left out of the prediction as well. Where the radius is 0 or
            more both predictions agree.

    **Cost**: as the plurality.

    **Assumes / fails on**: exact for disjoint partitions; -1 where the guarded votes alone could
        change the prediction.

    Reference: Zhang et al., PECAN (2023), arXiv:2301.11824.
    """

    tau: float
    abstain: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.tau < np.inf:
            raise UsageError(f"tau is {self.tau}; a margin to demand is above 0 and finite")

    @property
    def name(self) -> str:
        """For reports."""
        return f"plurality, {'abstaining' if self.abstain else 'guarded'} up to {self.tau:g}"

    def radii(self, votes: Votes) -> tuple[Ints, Ints, Ints, Ints]:
        """Prediction, radius in touched cells, firm votes of it, firm votes of the runner-up.

        Args:
            votes: With margins, members in the order of their ids.

        Raises:
            UsageError: No margins.
        """
        if votes.margins is None:
            raise UsageError(
                "rule Guarded needs votes with margins: make them from scores (votes_of, or"
                " margins_of)"
            )
        wild = votes.num_classes
        guarded = ~(votes.margins > self.tau)  # a margin that is no number is guarded too
        labels = np.where(guarded, wild, votes.labels.astype(np.min_scalar_type(wild)))
        counts = count_votes(labels, wild + 1)
        firm, loose = counts[:, :wild], counts[:, wild]
        best = winners(firm if self.abstain else count_votes(votes.labels, wild))
        ahead = gaps(firm, best)
        rival = np.arange(wild) != best[:, None]
        ahead = np.where(rival, ahead - loose[:, None], ahead)
        if votes.design.spread == 1:
            radius = np.maximum(ahead.min(axis=1) // 2, -1)
        else:
            radius = spread_radius(labels, best, ahead, votes.design, wild)
        return best, radius, *first_two(firm, best)
