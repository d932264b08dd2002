"""Which rows of a class are like some known poison, by what all detectors say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.calibrate.null import SIGMA_SHARE
from jaxpoison.detect._detector import even_subset
from jaxpoison.detect.refine import two_normals
from jaxpoison.layout import ClassRows
from jaxpoison.linalg import one_thread

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

MIN_KNOWN = 8
"""Known rows, and others, from which on a class can be learnt."""

FEW_KNOWN = 5
"""Known rows of a class that teaches others."""

MIN_TAUGHT = 3
"""Classes with known rows from which on what is known of them says something of the others."""

_NUM_FOLDS = 5
_MAX_ROUNDS = 4
_MOST_KNOWN = 0.5  # of a class: beyond it, what is left is the odd part
_INVERSE_PENALTY = 0.05  # a few dozen columns that say much the same
_WIDE = 6.0  # most spread of the known rows, in deviations of the others
_MAX_STEPS = 300
_MOST_TAUGHT = 20_000  # known rows that teach what holds in all classes, and as many others
_FARTHEST = 8.0  # deviations of a class, beyond which all are alike


class Likeness(NamedTuple):
    """How like the known rows each row of a class is.

    Attributes:
        log_odds: [m] of being one of them.
        separation: Of the known rows and the others, in the larger of their deviations; 0 where
            too few are known, or more than half of the class.
    """

    log_odds: HostArray
    separation: float


@one_thread()
def likeness(columns: HostArray, known: HostArray, accept: float = 2.0) -> Likeness:
    """Log odds of being like the known rows, by a classifier that tells them from the others.

    The columns become ranks ``u`` and their tails ``-log(1 - u)`` and ``log u``. A logistic
    regression tells known rows from the other rows of the class, which hold unknown poison: where
    what is known is a fair sample, its odds rise with the odds of poison all the same. It judges
    every row out of fold. Two normals along its decision give odds; rows above ``accept`` count as
    known in the next round, for as long as the two move apart.

    Args:
        columns: [m, k] what k detectors say of the rows of one class.
        known: [m] bool.
        accept: Log odds from which on a row counts as known in the next round.

    Returns:
        Odds of every row in the best round.

    **Cost**: 20 logistic regressions of [m, 3 k] at the most.

    **Assumes / fails on**: known rows differ from honest ones in what detectors say, and unknown
    poison is like them. Rows under another trigger than the known ones stay unknown. The known
    rows must be poison: odd honest rows make rows like them suspect.

    Reference: Elkan and Noto, 2008, Learning classifiers from only positive and unlabeled data.
    """
    best = Likeness(np.where(known, 1.0, -1.0), 0.0)
    if min(known.sum(), (~known).sum()) < MIN_KNOWN or known.mean() > _MOST_KNOWN:
        return best
    x = _tails(columns[:, np.ptp(columns, axis=0) > 0])
    fold = _folds(known)
    group = known
    for _ in range(_MAX_ROUNDS):
        decision = _out_of_fold(x, group, fold)
        surely = group & (decision > 0)
        if surely.sum() < MIN_KNOWN:
            break
        odds, separation = two_normals(decision, surely, _WIDE)
        if separation <= best.separation:
            break
        best = Likeness(odds, float(separation))
        group = known | (odds > accept)
        if (~group).sum() < MIN_KNOWN:
            break
    return best


@one_thread()
def shared_likeness(columns: list[HostArray], labels: HostArray, known: HostArray) -> Likeness:
    """Log odds of being like the known rows of several classes, in every class.

    A trigger that goes from class to class looks the same to detectors that hold a row against its
    own class. So columns become ``z = (v - median) / (median - q16)`` of the class, within 8, and
    what tells known rows from the others in some classes is sought in the rest: no class with
    known rows is judged by what it taught. Ranks would not do: every class has top ranks, and its
    few oddest rows hold them in all columns alike.

    Args:
        columns: [n] each, what k detectors say.
        labels: [n] dense.
        known: [n] bool, of several classes.

    Returns:
        Odds of every row. The separation is 0 where fewer than ``MIN_TAUGHT`` classes have
        ``FEW_KNOWN`` known rows, known rows are more than half of these classes, or fewer than
        ``MIN_KNOWN`` of them are like those of the other classes.

    **Cost**: two selections of [n, k], 6 logistic regressions of [40,000, 3 k] at the most, which
    are held; beside them one column of a class at a time.

    **Assumes / fails on**: one trigger, or one way of being wrong, in all of these classes, and
    honest rows in units of their class alike: a class with a heavier tail than those that taught
    has more likely rows.

    Reference: as ``likeness``, with classes left out in place of rows.
    """
    num_classes = int(labels.max()) + 1
    nothing = Likeness(np.where(known, 1.0, -1.0), 0.0)
    taught = np.flatnonzero(np.bincount(labels[known], minlength=num_classes) >= FEW_KNOWN)
    if len(taught) < MIN_TAUGHT or known[np.isin(labels, taught)].mean() > _MOST_KNOWN:
        return nothing
    of_class = ClassRows(labels, num_classes)
    fold = np.full(num_classes, _NUM_FOLDS)  # classes that taught nothing are judged by all
    fold[taught] = np.arange(len(taught)) % min(_NUM_FOLDS, len(taught))
    places = {c: _sampled(known[of_class[c]], _MOST_TAUGHT // len(taught)) for c in taught}
    x = np.concatenate([_bent_rows(columns, of_class[c], places[c]) for c in taught])
    is_known = np.concatenate([known[of_class[c][places[c]]] for c in taught])
    taught_by = np.repeat(fold[taught], [len(places[c]) for c in taught])
    decision = np.zeros(len(labels))
    for k in np.unique(fold):
        some = taught_by != k
        if is_known[some].all() or not is_known[some].any():
            return nothing
        model = _classifier().fit(x[some], is_known[some])
        for c in np.flatnonzero(fold == k):
            rows = of_class[c]
            for j, column in enumerate(columns if len(rows) else []):
                decision[rows] += _bent(column[rows]) @ model.coef_[0, 3 * j : 3 * j + 3]
            decision[rows] += model.intercept_[0]
    surely = known & (decision > 0)
    if surely.sum() < MIN_KNOWN:
        return nothing
    odds, separation = two_normals(decision, surely, _WIDE)
    return Likeness(odds, float(separation))


def _sampled(known: HostArray, most: int) -> HostArray:
    """Places of known rows and of others, as many of either as are taken at the most."""
    most = max(most, FEW_KNOWN)
    parts = (even_subset(np.flatnonzero(each), most) for each in (known, ~known))
    return np.sort(np.concatenate(list(parts)))


def _bent_rows(columns: list[HostArray], rows: HostArray, places: HostArray) -> HostArray:
    return np.concatenate([_bent(column[rows])[places] for column in columns], axis=1)


def _bent(values: HostArray) -> HostArray:
    """Robust z of one column of a class and what of it lies beyond two deviations, [m, 3]."""
    v = np.nan_to_num(values.astype(np.float64))
    low, centre = np.quantile(v, [SIGMA_SHARE, 0.5])
    spread = centre - low
    if spread <= 0:  # more than half are alike
        spread = np.abs(v - centre).mean()
    z = np.clip((v - centre) / max(spread, 1e-30), -_FARTHEST, _FARTHEST)
    out: HostArray = np.stack([z, np.maximum(z - 2.0, 0.0), np.minimum(z + 2.0, 0.0)], axis=1)
    return out


def _tails(columns: HostArray) -> HostArray:
    """Standardised ranks and their tails, [m, 3 k]; 0 where a column does not vary."""
    from scipy.stats import rankdata

    u = rankdata(columns.astype(np.float64), axis=0) / (len(columns) + 1.0)
    x = np.concatenate([u, -np.log1p(-u), np.log(u)], axis=1)
    out: HostArray = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-12)
    return out


def _folds(known: HostArray) -> HostArray:
    """Folds with the same share of known rows; they follow from the order of the rows."""
    fold = np.zeros(len(known), np.int64)
    for part in (known, ~known):
        fold[part] = np.arange(int(part.sum())) % _NUM_FOLDS
    return fold


def _out_of_fold(x: HostArray, group: HostArray, fold: HostArray) -> HostArray:
    out = np.zeros(len(x))
    for k in range(_NUM_FOLDS):
        inside = fold == k
        model = _classifier().fit(x[~inside], group[~inside])
        out[inside] = model.decision_function(x[inside])
    return out


def _classifier() -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=_INVERSE_PENALTY, class_weight="balanced", max_iter=_MAX_STEPS)
