"""Which rows of a class are like some known poison, by what all detectors say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxpoison._types import HostArray
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
_MOST_TAUGHT = 20_000  # rows that teach what holds in all classes


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
    own class. So columns become ranks within the class, and what tells known rows from the others
    in some classes is sought in the rest: no class with known rows is judged by what it taught.

    Args:
        columns: [n] each, what k detectors say.
        labels: [n] dense.
        known: [n] bool, of several classes.

    Returns:
        Odds of every row. The separation is 0 where fewer than ``MIN_TAUGHT`` classes have
        ``FEW_KNOWN`` known rows or known rows are more than half of these classes.

    **Cost**: ranks of [n, k], and 6 logistic regressions of [20,000, 3 k] at the most.

    **Assumes / fails on**: one trigger, or one way of being wrong, in all of these classes. Each
    class has a rank in every column, so classes of a few rows have blunt ones.

    Reference: as ``likeness``, with classes left out in place of rows.
    """
    num_classes = int(labels.max()) + 1
    taught = np.flatnonzero(np.bincount(labels[known], minlength=num_classes) >= FEW_KNOWN)
    teaching = np.isin(labels, taught)
    if len(taught) < MIN_TAUGHT or known[teaching].mean() > _MOST_KNOWN:
        return Likeness(np.where(known, 1.0, -1.0), 0.0)
    of_class = ClassRows(labels, num_classes)
    fold = np.full(num_classes, _NUM_FOLDS)  # classes that taught nothing are judged by all
    fold[taught] = np.arange(len(taught)) % min(_NUM_FOLDS, len(taught))
    rows = np.union1d(
        even_subset(np.flatnonzero(teaching & known), _MOST_TAUGHT // 4),
        even_subset(np.flatnonzero(teaching & ~known), _MOST_TAUGHT),
    )
    x = np.empty((len(rows), 3 * len(columns)))
    for c in taught:
        mine = labels[rows] == c
        x[mine] = _tails_of(columns, of_class[c])[np.searchsorted(of_class[c], rows[mine])]
    decision = np.zeros(len(labels))
    for k in np.unique(fold):
        some = fold[labels[rows]] != k
        model = _classifier().fit(x[some], known[rows[some]])
        for c in np.flatnonzero(fold == k):
            if len(of_class[c]):
                decision[of_class[c]] = model.decision_function(_tails_of(columns, of_class[c]))
    surely = known & (decision > 0)
    if surely.sum() < MIN_KNOWN:
        return Likeness(np.where(known, 1.0, -1.0), 0.0)
    odds, separation = two_normals(decision, surely, _WIDE)
    return Likeness(odds, float(separation))


def _tails_of(columns: list[HostArray], rows: HostArray) -> HostArray:
    return _tails(np.nan_to_num(np.stack([column[rows] for column in columns], axis=1)))


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
