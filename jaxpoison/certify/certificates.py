"""From votes, a rule and a threat to certificates: exact integers, nothing drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison.certify.rules.plurality import plurality
from jaxpoison.certify.rules.run_off import run_off
from jaxpoison.certify.threats import General, Threat
from jaxpoison.certify.votes import Votes

if TYPE_CHECKING:
    from jaxpoison.certify._types import Design, Ints

_RULES = {"plurality": plurality, "run_off": run_off}


class Rule(Protocol):
    """What ``certify`` takes beside the names of the two plain rules."""

    @property
    def name(self) -> str:
        """For reports."""
        ...

    def radii(self, votes: Votes) -> tuple[Ints, Ints, Ints, Ints]:
        """Prediction, radius, votes of the prediction, votes of the runner-up, each [v]."""
        ...


@dataclass(frozen=True, eq=False)
class Certificates:
    """Predictions and how much of the training set may change before one of them can.

    Every radius is for its own row against an attack of its own: that all rows with radius r
    stand under one attack of size r is true, that no more than the others fall is all it says of
    them (``collective`` bounds those).

    Attributes:
        prediction: [v] class.
        radius: [v] cells of the partition that may be touched, in any way, without changing the
            prediction. 0 promises nothing beyond the clean prediction, -1 not even that.
        first: [v] votes of the prediction.
        second: [v] votes of the runner-up.
        rule: Name of the rule.
        threat: What the attacker may do.
        costs: Cells touched by one change of each kind.
        design: Of the partition; None where the voters are neighbours and the unit is a change.
    """

    prediction: Ints
    radius: Ints
    first: Ints
    second: Ints
    rule: str
    threat: Threat
    costs: dict[str, int]
    design: Design | None = None

    def tolerates(self, change: str) -> Ints:
        """How many changes of one kind leave the prediction as it is.

        Args:
            change: A key of ``costs``: "insert", "delete", "flip", "modify", "key".

        Returns:
            [v] ``radius // costs[change]``.

        Raises:
            UsageError: The threat has no such change.
        """
        if change not in self.costs:
            raise UsageError(
                f"change is {change!r}, but threat {self.threat.name!r} has {sorted(self.costs)}"
            )
        return self.radius // self.costs[change]

    def certified_accuracy(self, labels: Any, radii: Sequence[int] | Ints) -> Any:
        """Share of rows predicted rightly with at least each radius.

        Args:
            labels: [v] true classes.
            radii: In touched cells, at least 0.

        Returns:
            [len(radii)] float64; never less under an attack of that size.
        """
        right = np.sort(self._right(labels))
        wanted = np.asarray(radii, np.int64)
        if (wanted < 0).any():
            raise UsageError(f"radii hold {int(wanted.min())}; a radius is 0 or more")
        return (len(right) - np.searchsorted(right, wanted, side="left")) / len(right)

    def median(self, labels: Any) -> int:
        """Largest radius at which at least half of the rows are certified right; -1 if none is.

        The code published with the first such certificate counts the radii from 0 up, which
        prints one more than this.

        Args:
            labels: [v] true classes.
        """
        right = np.sort(self._right(labels))[::-1]
        return int(right[(len(right) + 1) // 2 - 1])

    def curve(self, labels: Any) -> tuple[Ints, Any]:
        """Certified accuracy at every radius, from 0 to the first at which it is 0.

        Args:
            labels: [v] true classes.

        Returns:
            Radii and accuracies.
        """
        radii = np.arange(int(self._right(labels).max()) + 2)
        return radii, self.certified_accuracy(labels, radii)

    def _right(self, labels: Any) -> Ints:
        """Radii, -1 where the prediction is wrong."""
        truth = np.asarray(labels)
        if truth.shape != self.prediction.shape:
            raise UsageError(
                f"labels have shape {truth.shape}, but there are {len(self.prediction)} predictions"
            )
        radii: Ints = np.where(truth == self.prediction, self.radius, -1)
        return radii


def certify(
    votes: Votes, rule: str | Rule = "plurality", threat: Threat | None = None
) -> Certificates:
    """Certificates of all test rows.

    Args:
        votes: Of one member a subset.
        rule: "plurality" (with spread: Finite Aggregation), "run_off", ``TopK``, ``Guarded``.
        threat: ``General`` (default), ``LabelFlip`` or ``Keys``.

    Returns:
        Prediction and radius a row, in touched cells.

    Raises:
        UsageError: A rule that does not exist or lacks what it needs, or a threat that the
            partition does not allow.

    **Cost**: that of the rule; memory is that of the votes and blocks of a few MB.

    **Assumes / fails on**: every member is a function of the rows of its own subset alone, and
        the same function each time. No certificate can see whether that is so.
    """
    if not isinstance(votes, Votes):
        raise UsageError(f"votes are {type(votes).__name__}; make Votes, which carry subset ids")
    claim = General() if threat is None else threat
    costs = claim.costs(votes.design)
    ordered = votes.in_order()
    if isinstance(rule, str):
        if rule not in _RULES:
            raise UsageError(f"rule is {rule!r}; use one of {sorted(_RULES)}, TopK or Guarded")
        name, found = rule, _RULES[rule](ordered)
    else:
        name, found = rule.name, rule.radii(ordered)
    return Certificates(*found, rule=name, threat=claim, costs=costs, design=votes.design)
