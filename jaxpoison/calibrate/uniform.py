"""Wrong labels spread over all classes: how many there are, and which rows carry them."""

from __future__ import annotations

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.calibrate.groups import MIN_ROWS, Finding
from jaxpoison.calibrate.labels import UNIFORM_RATE, flipped, is_spread

OVERLAP = 0.7
"""Share of rows whose label classifiers give them out of fold, below which classes overlap so much
that no depth tells wrong labels from honest confusion."""

_MOST_UNIFORM = 0.45  # share of wrong labels that can be reckoned with
_SURE_SHARE = 0.6  # of wrong labels, the least probable, beside which hardly a right one lies
_CLEAR = 0.7  # of the largest probabilities, from which on the likeliest class is clear
_LARGEST = 0.99  # their quantile: with e wrong labels no class is more probable than 1 - e
FEWEST_CLASSES = 6
"""Fewer have no class that honest rows are never taken for, so that ranks say nothing."""

_LEAST_RATE, _ERRORS = 0.015, 2.0  # less so many standard errors
_FEWEST_ROWS = 50  # that tell how many labels are wrong where classes overlap


def rate_by_ranks(posterior: HostArray, labels: HostArray) -> float:
    """Share of labels that are wrong, told by those that are the least probable of all.

    Where classes overlap, right labels often come second or third, and no depth tells wrong ones
    from them. But they hardly ever come last of c, and a wrong label that may be any does so in one
    of ``c - 1``: of the N rows whose likeliest class is clear, ``e = (c - 1) N_last / N``. The
    label with the most such rows is left out, and few pairs of classes must not hold them: rows of
    a trigger have one label, or labels that follow from their classes.

    Args:
        posterior: [n, c] of the labels as given, from ``detect.label_posterior``.
        labels: [n] dense.

    Returns:
        e; 0 where it is below 3 %, or below 1.5 % once two standard errors are taken off, or not
        of all classes; where c is below 6 or fewer than 50 rows are clear; and of 20 classes and
        more where fewer than some thousand rows are, as few rows of many pairs look like few pairs.
    """
    n, c = posterior.shape
    likeliest = posterior.argmax(axis=1)
    largest = posterior[np.arange(n), likeliest]
    clear = np.flatnonzero(largest > _CLEAR * np.quantile(largest, _LARGEST))
    if c < FEWEST_CLASSES or len(clear) < _FEWEST_ROWS:
        return 0.0
    own = posterior[clear, labels[clear]]
    rank = (posterior[clear] > own[:, None]).sum(axis=1)
    late = clear[2 * rank >= c]
    pairs = np.bincount(likeliest[late] * c + labels[late], minlength=c * c).reshape(c, c)
    last = np.bincount(labels[clear[rank == c - 1]], minlength=c)
    count = float(last.sum() - last.max()) * c / (c - 1)
    share, error = ((c - 1) * each / len(clear) for each in (count, np.sqrt(count)))
    is_high = share >= UNIFORM_RATE and share - _ERRORS * error >= _LEAST_RATE
    if not is_high or not is_spread(pairs[~np.eye(c, dtype=np.bool_)]):
        return 0.0
    return float(share)


def uniform_findings(
    posterior: HostArray, labels: HostArray, fdr: float, *, overlap: bool = False
) -> list[Finding]:
    """One finding for each label of rows whose label is wrong, where wrong ones are spread evenly.

    A wrong label is then any but the right one, so what ``p_y'`` is over all rows and all labels
    y' but the most probable one is how ``p_y`` of wrong labels is distributed: F. The rows below
    the 0.6 quantile of F are nearly all wrong, and 0.6 of the wrong ones: their number w follows.
    Of the ``N(t)`` rows with ``p_y <= t``, ``1 - w F(t) / N(t)`` are right, taking a standard
    error off w. Or, row by row: with a share e = w / n of wrong labels ``p_y = (1 - e) q_y +
    e (1 - q_y) / (c - 1)`` where q is of the right labels, and a label is right with
    ``(1 - e) q_y / p_y``. Rows are flagged up to the largest t where either share is at most
    ``fdr``; the first is sharper, the second serves where few rows are wrong.

    Args:
        posterior: [n, c] of the labels as given, from ``detect.label_posterior``.
        labels: [n] dense.
        fdr: Share of false alarms allowed among the flagged rows.
        overlap: Whether classes overlap, so that many right labels are as improbable as wrong ones.
            Then w is the least ``N(t) / F(t)`` from 50 rows on, and only the first count serves.

    Returns:
        Findings of kind "label_flip".
    """
    n, c = posterior.shape
    own = posterior[np.arange(n), labels]
    other = np.arange(c) != posterior.argmax(axis=1)[:, None]
    if_wrong = np.sort(posterior[other])
    order = np.argsort(own, kind="stable")
    share = np.searchsorted(if_wrong, own[order], side="right") / len(if_wrong)
    count = np.arange(1, n + 1)
    if overlap:
        num_wrong = float(np.min((count / np.maximum(share, 1e-12))[_FEWEST_ROWS - 1 :], initial=n))
        right = 1.0 - num_wrong * share / count
    else:
        surely = int(np.searchsorted(share, _SURE_SHARE))
        num_wrong = surely / _SURE_SHARE
        counted = 1.0 - (num_wrong - np.sqrt(surely) / _SURE_SHARE) * share / count
        modelled = _right(own[order], min(num_wrong / n, _MOST_UNIFORM), c)
        right = np.minimum(counted, np.cumsum(modelled) / count)
    below = np.flatnonzero(right <= fdr)
    chosen = order[: below[-1] + 1] if len(below) else order[:0]
    certainty = np.clip(np.maximum.accumulate(right), 1e-4, 0.5)
    odds = np.empty(n)
    odds[order] = np.log(1.0 / certainty - 1.0)
    confidence = float(1.0 - 0.5 ** (1.0 + max(num_wrong / n / UNIFORM_RATE, 1.0)))
    out = []
    for target in np.unique(labels[chosen]):
        rows = np.sort(chosen[labels[chosen] == target])
        if len(rows) >= MIN_ROWS:
            out.append(flipped(int(target), None, rows, odds[rows], confidence))
    return out


def _right(own: HostArray, rate: float, c: int) -> HostArray:
    """How probably a label is right that has the given probability among noisy ones."""
    floor = rate / (c - 1)
    q = np.clip((own - floor) / (1.0 - rate - floor), 1e-6, 1.0)
    out: HostArray = (1.0 - rate) * q / np.maximum((1.0 - rate - floor) * q + floor, 1e-300)
    return out
