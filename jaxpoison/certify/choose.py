"""Which k: the radius profile to expect, from few models, before an ensemble is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import HostArray

from ._canonical import as_labels
from .keys import KeyRule
from .partitions import partition

_CONCENTRATIONS = np.geomspace(0.1, 300, 60)
_DRAWS = 20
_LEVELS = (np.arange(1000) + 0.5) / 1000
_ROUNDING = 1e-6  # k times (votes / k) is not always votes
_FEWEST_MEMBERS = 8


@dataclass(frozen=True, eq=False)
class Forecast:
    """What an ensemble of k models is expected to certify.

    Attributes:
        k: Partitions.
        base_accuracy: Of one model alone; None where this k was not measured.
        margins: [1000] quantiles of ``(votes for the true class - most of another) / (2 k)`` over
            rows, ties counted: k times this, rounded down, is the radius where it is not negative.
    """

    k: int
    base_accuracy: float | None
    margins: HostArray

    @property
    def clean_accuracy(self) -> float:
        """Share of rows that the ensemble is expected to get right."""
        return float((self.margins >= 0).mean())

    @property
    def median(self) -> int:
        """Largest radius that half of the rows are expected to be certified at, or -1."""
        return max(-1, int(np.floor(self.k * self.margins[len(self.margins) // 2] + _ROUNDING)))

    def certified_accuracy(self, radii: Sequence[int] | HostArray) -> HostArray:
        """Expected share of rows certified at each radius."""
        certified = self.k * self.margins + _ROUNDING
        return np.array([(certified >= max(r, 0)).mean() for r in np.atleast_1d(radii).tolist()])


@dataclass(frozen=True)
class HeldOut:
    """A measured k, predicted from the other measured ones alone."""

    k: int
    clean_accuracy: float
    clean_accuracy_predicted: float
    median: int
    median_predicted: int


@dataclass(frozen=True)
class Choice:
    """Forecasts of all k asked for, ascending, and how good such forecasts were.

    Attributes:
        forecasts: One a k.
        held_out: One a measured k that has measured ones on both sides.
        members: Models fitted for the smallest k, at most.
        rows: Validation rows.
    """

    forecasts: tuple[Forecast, ...]
    held_out: tuple[HeldOut, ...]
    members: int
    rows: int

    def best(self, radius: int | None = None, *, least_clean: float = 0.0) -> int:
        """The k with the most rows certified at ``radius``, or with the largest median.

        Args:
            radius: In touched cells; None for the median.
            least_clean: Clean accuracy below which a k is not considered.

        Raises:
            UsageError: No k is as accurate as that.
        """
        able = [f for f in self.forecasts if f.clean_accuracy >= least_clean]
        if not able:
            best = max(f.clean_accuracy for f in self.forecasts)
            raise UsageError(f"least_clean is {least_clean}, but the best k reaches {best:.3f}")
        if radius is None:
            return max(able, key=lambda f: (f.median, -f.k)).k
        return max(able, key=lambda f: (f.certified_accuracy([radius])[0], -f.k)).k


def choose_k(
    x: HostArray,
    y: HostArray,
    learner: Any,
    *,
    ks: Sequence[int],
    num_classes: int | None = None,
    measure: int = 4,
    members: int = 48,
    num_validation: int = 500,
    key: KeyRule | None = None,
    column: HostArray | None = None,
    seed: int = 0,
) -> Choice:
    """Predicts clean accuracy and radii for each k from few models of few k.

    The sampled models' votes on a row are draws from its chances ``p ~ Dirichlet(a m)``, with mean
    m and concentration a of its class (empirical Bayes). Then k votes are ``N ~ Multinomial(k, p)``
    with p from the posterior, and ``radius = floor((N_c - max (N_c' + [c' < c])) / 2)``.
    Between measured k the quantiles of ``radius / k`` are interpolated in log k.

    Args:
        x: [n, ...] inputs.
        y: [n] integer labels from 0.
        learner: With ``fit_scores``.
        ks: Candidates.
        num_classes: c; the largest label plus one where None.
        measure: How many of ks to fit models for, the smallest and largest among them.
        members: Models fitted for the smallest k, at least 8 (all where k is smaller); of another k
            ``sqrt(k / smallest)`` times as many.
        num_validation: Rows taken out of training to vote on.
        key: As for ``partition``.
        column: As for ``partition``.
        seed: Of the split and of the sampled subsets.

    Returns:
        Forecasts of all ks and the error of forecasts at held-out k.

    Raises:
        UsageError: Candidates that make no sense, or too few rows for them.

    **Cost**: a few hundred small fits: of each measured k about ``members * sqrt(k / smallest)``.

    **Assumes / fails on**: votes as independent draws of alike models. A k chosen on data that an
    attacker may have touched depends on that data, and no certificate covers this: choose on
    trusted rows, or fix k beforehand.

    Reference: Wang et al. (2022), Lethal Dose Conjecture, arXiv:2208.03309 (accuracy against the
    number of rows decides what can be certified).
    """
    candidates = _candidates(ks, len(x), measure, members, num_validation)
    labels = as_labels("y", y, len(x))
    if labels.dtype.kind == "f" or labels.min(initial=0) < 0:
        raise DataError(f"y has dtype {np.asarray(y).dtype}; choose_k needs classes from 0")
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    rng = np.random.default_rng(seed)
    aside = np.sort(rng.choice(len(x), num_validation, replace=False))
    rest = np.setdiff1d(np.arange(len(x)), aside)
    x_rest, y_rest, x_aside = np.asarray(x)[rest], np.asarray(y)[rest], np.asarray(x)[aside]
    keyed = None if column is None else np.asarray(column)[rest]
    at = np.linspace(0, len(candidates) - 1, min(measure, len(candidates))).round().astype(int)
    measured: dict[int, Forecast] = {}
    for k in sorted({candidates[i] for i in at}):
        parts = partition(x_rest, y_rest, k=k, key=key, column=keyed)
        filled = np.flatnonzero(parts.sizes)
        # Subsets shrink and votes split as k grows: more models are needed, and each costs less.
        count = min(len(filled), round(members * np.sqrt(k / candidates[0])))
        drawn = np.sort(rng.choice(filled, count, replace=False))
        votes = _votes(learner, parts.only(drawn), x_rest, y_rest, x_aside, classes, drawn)
        measured[k] = _forecast(k, votes, labels[aside], classes, rng)
    forecasts = tuple(measured[k] if k in measured else _between(k, measured) for k in candidates)
    return Choice(forecasts, _held_out(measured), members, num_validation)


def _candidates(
    ks: Sequence[int], rows: int, measure: int, members: int, num_validation: int
) -> list[int]:
    if measure < 2 or members < _FEWEST_MEMBERS or num_validation < 1:
        raise UsageError(
            f"measure is {measure}, members {members}, num_validation {num_validation}; give at "
            f"least 2, {_FEWEST_MEMBERS} and 1"
        )
    found = sorted({int(k) for k in ks})
    if not found or found[0] < 1:
        raise UsageError(f"ks is {list(ks)!r}; give candidates of at least 1")
    if found[-1] > rows - num_validation:
        raise UsageError(
            f"ks has {found[-1]}, but {rows} rows less {num_validation} for validation leave "
            f"{rows - num_validation}; give smaller k or fewer validation rows"
        )
    return found


def _votes(
    learner: Any,
    parts: Any,
    x: HostArray,
    y: HostArray,
    x_test: HostArray,
    num_classes: int,
    drawn: HostArray,
) -> HostArray:
    """[members, v] classes voted for by the drawn subsets."""
    found: dict[int, HostArray] = {}
    for subsets, scores in learner.fit_scores(parts, x, y, x_test, num_classes=num_classes):
        best = np.argmax(np.asarray(scores), axis=2)
        found.update(zip(np.asarray(subsets).tolist(), best, strict=True))
    return np.stack([found[int(i)] for i in drawn])


def _forecast(
    k: int, votes: HostArray, truth: HostArray, num_classes: int, rng: np.random.Generator
) -> Forecast:
    base = float((votes == truth).mean())
    counts = np.stack([(votes == c).sum(axis=0) for c in range(num_classes)], axis=1)
    if len(votes) < k:  # else these are all votes and nothing is left to draw
        chances, truth = _posterior(counts, truth, rng)
        counts = rng.multinomial(k, chances)
    own = np.take_along_axis(counts, truth[:, None], 1)[:, 0]
    # A tie goes to the lower class: such a rival is half a vote ahead.
    rivals = counts + (np.arange(num_classes) < truth[:, None])
    np.put_along_axis(rivals, truth[:, None], -1, 1)
    margins = (own - rivals.max(axis=1)) / (2 * k)
    return Forecast(k, base, np.quantile(margins, _LEVELS, method="nearest"))


def _posterior(
    counts: HostArray, truth: HostArray, rng: np.random.Generator
) -> tuple[HostArray, HostArray]:
    """Draws of every row's chances of votes, [v * draws, c], and the class of each.

    Rows of a class share a Dirichlet prior with their mean and the likeliest concentration: so
    few models neither make rivals look too strong (the largest of noisy counts) nor too weak.
    """
    chances, classes = [], []
    for c in np.unique(truth):
        rows = counts[truth == c].astype(np.float64)
        total = rows.sum(axis=1)[:, None]
        mean = (rows.sum(axis=0) + 0.5) / (rows.sum() + 0.5 * rows.shape[1])
        prior = _CONCENTRATIONS[:, None] * mean
        log_like = (gammaln(rows[:, None] + prior) - gammaln(prior)).sum(axis=(0, 2))
        sums = gammaln(_CONCENTRATIONS) - gammaln(_CONCENTRATIONS + total)
        best = prior[np.argmax(log_like + sums.sum(axis=0))]
        gammas = rng.standard_gamma(rows + best, (_DRAWS, *rows.shape)) + 1e-12
        chances.append((gammas / gammas.sum(axis=2, keepdims=True)).reshape(-1, rows.shape[1]))
        classes.append(np.full(len(chances[-1]), c))
    return np.concatenate(chances), np.concatenate(classes)


def _between(k: int, measured: dict[int, Forecast]) -> Forecast:
    low = max(m for m in measured if m < k)
    high = min(m for m in measured if m > k)
    part = np.log(k / low) / np.log(high / low)
    margins = (1 - part) * measured[low].margins + part * measured[high].margins
    return Forecast(k, None, margins)


def _held_out(measured: dict[int, Forecast]) -> tuple[HeldOut, ...]:
    found = []
    for k in sorted(measured)[1:-1]:
        guess = _between(k, {m: f for m, f in measured.items() if m != k})
        true = measured[k]
        found.append(
            HeldOut(k, true.clean_accuracy, guess.clean_accuracy, true.median, guess.median)
        )
    return tuple(found)
