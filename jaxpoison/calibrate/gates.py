"""Which classes hold a second population: an absolute null and one across classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison._types import HostArray, Scores

_SIGMAS = 6.0  # above the bootstrap null; 16 draws estimate a spread, not a tail
_MIN_CLASSES = 5  # fewer can not say what is usual across classes
_MIN_SPREAD = 0.1  # of the log statistic over classes, so that equal classes are no infinite z


class Rule(NamedTuple):
    """When a detector's class statistic counts.

    Attributes:
        effect: Smallest statistic that counts, whatever its significance. Honest classes are
            never one Gaussian, so significance alone would open every gate. Infinite for a
            detector that only ranks rows.
        across: Robust z of the log statistic over the classes; infinite where the statistic is no
            positive number that varies smoothly from class to class.
        is_enough: Whether an effect counts without a null to compare it with.
    """

    effect: float
    across: float
    is_enough: bool = False

    @property
    def is_ranking_only(self) -> bool:
        """Whether no statistic opens the gate."""
        return bool(np.isinf(self.effect))


_RANKING_ONLY = Rule(effect=np.inf, across=np.inf)

RULES = {
    "spectral": Rule(effect=4.0, across=5.0),
    "activation": Rule(effect=0.4, across=4.0),
    "spectre": Rule(effect=6.0, across=4.0),
    "mahalanobis": Rule(effect=6.0, across=4.0),
    "mixture": Rule(effect=8.0, across=4.0),
    "whitening": Rule(effect=12.0, across=np.inf),
    "duplicates": Rule(effect=0.0, across=np.inf, is_enough=True),
    **dict.fromkeys(
        ("labels", "neighbours", "density", "early_loss", "el2n", "aum", "loss_drop", "low_loss",
         "clusters", "split", "gram", "low_rank", "strip", "gradient_direction",
         "gradient_norm", "self_influence", "influence", "shapley"),
        _RANKING_ONLY,
    ),
}  # fmt: skip


def rule_of(detector: str) -> Rule:
    """The rule of a detector; one of another package only ranks rows."""
    return RULES.get(detector, _RANKING_ONLY)


class Gate(NamedTuple):
    """The gate of one detector in one space, by class.

    Attributes:
        statistic: [c] NaN where the class was skipped.
        threshold: [c] of the absolute gate.
        absolute: [c] bool, above the bootstrap null by an effect that counts.
        z: [c] robust z across classes, 0 where there are too few classes.
        across: [c] bool.
    """

    statistic: HostArray
    threshold: HostArray
    absolute: HostArray
    z: HostArray
    across: HostArray

    @property
    def open(self) -> HostArray:
        """[c] bool, either gate."""
        either: HostArray = self.absolute | self.across
        return either


def gate(detector: str, scores: Scores) -> Gate:
    """Opens the gate of each class that stands out absolutely or among the classes.

    The absolute null is a parametric bootstrap of the one-population model (the detector's own
    statistic on classes drawn from it); a detector without one has no absolute gate, unless its
    rule says that the effect is enough. Across classes the log statistic is compared by median and
    MAD, which all-to-all poison defeats: therefore the union of both.

    Args:
        detector: Name in ``RULES``; another one only ranks rows.
        scores: Of one detector in one space.

    Returns:
        The gates by class.
    """
    rule = rule_of(detector)
    statistic = scores.statistic
    seen = np.isfinite(statistic)
    threshold = np.full(len(statistic), np.inf)
    if rule.is_enough:
        threshold[seen] = rule.effect
    elif scores.null.shape[1] and not rule.is_ranking_only:
        null = scores.null[seen]
        threshold[seen] = np.maximum(null.mean(axis=1) + _SIGMAS * null.std(axis=1), rule.effect)
    absolute = seen & (np.nan_to_num(statistic) > threshold)
    z = _across(statistic, seen) if np.isfinite(rule.across) else np.zeros(len(statistic))
    across = seen & (z > rule.across) & (np.nan_to_num(statistic) > rule.effect / 2)
    return Gate(statistic, threshold, absolute, z, across)


def _across(statistic: HostArray, seen: HostArray) -> HostArray:
    """Robust z of the log statistic over the classes, 0 where there are too few."""
    z = np.zeros(len(statistic))
    if seen.sum() >= _MIN_CLASSES:
        logs = np.log(np.maximum(statistic[seen], 1e-6))
        centre = np.median(logs)
        spread = max(1.4826 * float(np.median(np.abs(logs - centre))), _MIN_SPREAD)
        z[seen] = (logs - centre) / spread
    return z
