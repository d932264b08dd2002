"""Randomised certificates, for comparison: bagging, label-flip smoothing, group privacy.

Each holds with a confidence below one and for a classifier that is itself an expectation, so they
have a type of their own and never mix with ``Certificates``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison.certify.votes import on_host

if TYPE_CHECKING:
    from jaxpoison.certify._types import Floats, Ints

_SLACK = 1e-9  # of a probability, against rounding: always to the disadvantage of the certificate


@dataclass(frozen=True, eq=False)
class ProbabilisticCertificates:
    """Predictions of a randomised classifier, with radii that hold with some confidence.

    Attributes:
        prediction: [v] class most often voted for.
        radius: [v] in units of ``costs``; -1 where nothing is claimed.
        confidence: Probability, over the members drawn, with which the claim holds: of each row
            for itself, or of all rows at once where ``simultaneous``.
        simultaneous: Whether the confidence covers all rows together.
        method: Which certificate.
        costs: Units of one change of each kind.
    """

    prediction: Ints
    radius: Ints
    confidence: float
    simultaneous: bool
    method: str
    costs: dict[str, int]

    def certified_accuracy(self, labels: Any, radii: Sequence[int] | Ints) -> Any:
        """Share of rows predicted rightly with at least each radius, at ``confidence``.

        Args:
            labels: [v] true classes.
            radii: In the units of ``costs``, at least 0.
        """
        truth = np.asarray(labels)
        if truth.shape != self.prediction.shape:
            raise UsageError(
                f"labels have shape {truth.shape}, but there are {len(self.prediction)} predictions"
            )
        right = np.where(truth == self.prediction, self.radius, -1)
        return (right[None] >= np.asarray(radii)[:, None]).mean(axis=1)


def certify_bagging(
    counts: Any, *, num_rows: int, draws: int, alpha: float = 1e-3, simultaneous: bool = False
) -> ProbabilisticCertificates:
    """Certificate of bagging: members trained on rows drawn with replacement.

    With p the probabilities of the two first classes, r changes are tolerated while for every
    size n' in [n - r, n + r] of the changed set

        ``(n'/n)^k - 2 ((max(n, n') - r) / n)^k + 1 < p_first - p_second``.

    Args:
        counts: [v, c] members that vote for each class.
        num_rows: n, training rows.
        draws: k, rows a member was trained on.
        alpha: One minus the confidence.
        simultaneous: For all rows at once (alpha is split over them), or for each.

    Returns:
        Radii in rows inserted, deleted or modified; each counts 1.

    Raises:
        UsageError: A size or alpha out of range.
        DataError: Counts that are none.

    **Cost**: O(v c + n).

    **Assumes / fails on**: members drawn independently, after the data was fixed. The claim is
        of the most probable class, which the vote only estimates.

    Reference: Jia et al. (2021), arXiv:2008.04495.
    """
    votes = _checked(counts, alpha)
    if num_rows < 1 or draws < 1:
        raise UsageError(f"num_rows is {num_rows} and draws {draws}; both are at least 1")
    first, second = _bounds(votes, alpha, simultaneous)
    radius = bagging_radius(first, second, num_rows, draws)
    costs = dict.fromkeys(("insert", "delete", "flip", "modify"), 1)
    return _made(votes, radius, alpha, simultaneous, "bagging", costs)


def certify_label_smoothing(
    counts: Any, *, flip_probability: float, alpha: float = 1e-3, simultaneous: bool = False
) -> ProbabilisticCertificates:
    """Certificate of members trained on labels that are flipped at random.

    Each label is replaced with probability q, by any other class alike. Among all classifiers
    with the same probability p of the first class, the one hurt most by r flips votes for it
    where the noise kept most of the r labels; the radius is the largest r for which even that one
    keeps more than one half (Neyman-Pearson, evaluated exactly, no Chernoff bound).

    Args:
        counts: [v, c] members that vote for each class.
        flip_probability: q, above 0 and below ``(c - 1) / c``.
        alpha: One minus the confidence.
        simultaneous: For all rows at once (alpha is split over them), or for each.

    Returns:
        Radii in flipped labels.

    Raises:
        UsageError: q or alpha out of range.
        DataError: Counts that are none.

    **Cost**: O(v c + R^2) for the largest radius R.

    **Assumes / fails on**: inputs trusted; noise drawn independently for each member.

    Reference: Rosenfeld et al. (2020), arXiv:2002.03018, with an analytic bound that is looser.
    """
    votes = _checked(counts, alpha)
    classes = votes.shape[1]
    if not 0 < flip_probability < (classes - 1) / classes:
        raise UsageError(
            f"flip_probability is {flip_probability}; with {classes} classes it is above 0 and"
            f" below {(classes - 1) / classes:.3f}, where labels would say nothing"
        )
    first, _ = _bounds(votes, alpha, simultaneous)
    radius = smoothing_radius(first, flip_probability, classes)
    return _made(votes, radius, alpha, simultaneous, "label-flip smoothing", {"flip": 1})


def certify_group_privacy(
    counts: Any,
    *,
    epsilon: float,
    delta: float = 0.0,
    replaces: bool = False,
    alpha: float = 1e-3,
    simultaneous: bool = False,
) -> ProbabilisticCertificates:
    """Certificate of members trained with differential privacy.

    After r changes the first class has at least ``exp(-r e) (p_first - d_r)`` and another at most
    ``exp(r e) p_second + d_r``, with ``d_r = delta (exp(r e) - 1) / (exp(e) - 1)``.

    Args:
        counts: [v, c] members that vote for each class.
        epsilon: e, of one change.
        delta: Of one change.
        replaces: Whether the privacy is of replaced rows; else of rows added or removed.
        alpha: One minus the confidence.
        simultaneous: For all rows at once (alpha is split over them), or for each.

    Returns:
        Radii in changes; a modification costs 2 where only rows come and go.

    Raises:
        UsageError: epsilon, delta or alpha out of range.
        DataError: Counts that are none.

    **Cost**: O(v R) for the largest radius R.

    **Assumes / fails on**: the privacy is that of the whole training, with its noise drawn anew for
        each member; an accountant's epsilon is taken on trust.

    Reference: Ma, Zhu & Hsu (2019), arXiv:1903.09860; Dwork & Roth (2014), group privacy.
    """
    votes = _checked(counts, alpha)
    if not (0 < epsilon < np.inf and 0 <= delta < 1):
        raise UsageError(f"epsilon is {epsilon} and delta {delta}; they are above 0, and in [0, 1)")
    first, second = _bounds(votes, alpha, simultaneous)
    radius = privacy_radius(first, second, epsilon, delta)
    gone = {"insert": 1, "delete": 1, "flip": 2, "modify": 2}
    costs = {"flip": 1, "modify": 1} if replaces else gone
    return _made(votes, radius, alpha, simultaneous, "group privacy", costs)


def bagging_radius(first: Floats, second: Floats, num_rows: int, draws: int) -> Ints:
    """[v] changes tolerated at given bounds of the two probabilities; see ``certify_bagging``."""
    r = np.arange(num_rows + 1)
    share = r / num_rows
    # The left side rises in n' up to one point, then falls: that point and the ends suffice.
    stretch = 1.0 if draws == 1 else -np.expm1(-np.log(2) / (draws - 1))
    peak = np.clip(r / stretch, num_rows, num_rows + r)
    worst = np.full(len(r), -np.inf)
    for size in (np.full(len(r), num_rows), np.floor(peak), np.ceil(peak), num_rows + r):
        x = size / num_rows
        worst = np.maximum(worst, x**draws - 2 * np.maximum(x - share, 0) ** draws + 1)
    worst = np.maximum.accumulate(worst)
    radius: Ints = np.searchsorted(worst, first - second - _SLACK, side="left") - 1
    return radius


def smoothing_radius(first: Floats, flip_probability: float, num_classes: int) -> Ints:
    """[v] flips tolerated at a lower bound of the first class; see ``certify_label_smoothing``."""
    other = flip_probability / (num_classes - 1)
    step = np.array([other, flip_probability - other, 1 - flip_probability])
    kept = np.ones(1)  # of (labels as they are) - (labels as the attacker has them), from -r to r
    needed: list[float] = []
    best = float(np.max(first, initial=0.0))
    while not needed or needed[-1] + _SLACK < best:
        clean, attacked = kept[::-1], kept  # from r down to -r: attacked is the mirror image
        before = np.concatenate([[0.0], np.cumsum(attacked)])
        last = min(int(np.searchsorted(before, 0.5, side="right")) - 1, len(kept) - 1)
        part = (0.5 - before[last]) / attacked[last]
        needed.append(float(clean[:last].sum() + part * clean[last]))
        kept = np.convolve(kept, step)
    thresholds = np.maximum.accumulate(needed) + _SLACK
    radius: Ints = np.searchsorted(thresholds, first, side="left") - 1
    return radius


def privacy_radius(first: Floats, second: Floats, epsilon: float, delta: float) -> Ints:
    """[v] changes tolerated at bounds of the two probabilities; see ``certify_group_privacy``."""
    radius = np.full(len(first), -1)
    going, r = np.ones(len(first), bool), 0
    while going.any():
        with np.errstate(over="ignore"):  # an infinite factor certifies nothing, as it should
            lost = delta * np.expm1(r * epsilon) / np.expm1(epsilon)
            least = np.exp(-r * epsilon) * (first - lost)
            most = np.exp(r * epsilon) * second + lost
        going &= least > np.minimum(most, 1 - least) + _SLACK
        radius[going] = r
        r += 1
    return radius


def clopper_pearson(counts: Ints, total: Ints, alpha: float) -> tuple[Floats, Floats]:
    """Exact bounds of binomial probabilities, each one-sided at ``alpha``.

    Args:
        counts: [...] successes.
        total: [...] trials.
        alpha: Chance that the lower bound is above the truth, and that the upper is below.

    Returns:
        Lower and upper bound.
    """
    from scipy.special import betaincinv

    rest = total - counts
    low = betaincinv(np.maximum(counts, 1), rest + 1, alpha)
    high = betaincinv(counts + 1, np.maximum(rest, 1), 1 - alpha)
    return np.where(counts == 0, 0.0, low), np.where(rest == 0, 1.0, high)


def _bounds(votes: Ints, alpha: float, simultaneous: bool) -> tuple[Floats, Floats]:
    """Lower bound of the first class, upper bound of any other.

    Which class comes first is drawn too, so both bounds of every class must hold.
    """
    rows, classes = votes.shape
    split = alpha / (2 * classes * (rows if simultaneous else 1))
    low, high = clopper_pearson(votes, votes.sum(axis=1, keepdims=True), split)
    first = np.argmax(votes, axis=1)[:, None]
    least = np.take_along_axis(low, first, axis=1)[:, 0]
    np.put_along_axis(high, first, 0.0, axis=1)
    return least, np.minimum(high.max(axis=1), 1 - least)


def _checked(counts: Any, alpha: float) -> Ints:
    votes = on_host(counts)
    if not 0 < alpha < 1:
        raise UsageError(f"alpha is {alpha}; one minus a confidence is between 0 and 1")
    if votes.ndim != 2 or votes.shape[1] < 2 or not len(votes):
        raise UsageError(f"counts have shape {votes.shape}, but [rows, classes] is meant")
    if votes.dtype.kind not in "iu" or votes.min() < 0 or not votes.sum(axis=1).all():
        raise DataError("counts must be integers from 0, with at least one vote a row")
    return votes.astype(np.int64)


def _made(
    votes: Ints,
    radius: Ints,
    alpha: float,
    simultaneous: bool,
    method: str,
    costs: dict[str, int],
) -> ProbabilisticCertificates:
    best = np.argmax(votes, axis=1)
    return ProbabilisticCertificates(best, radius, 1 - alpha, simultaneous, method, costs)
