"""Which label errors are an attack: honest ones thin out towards the other class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.calibrate.groups import MIN_ROWS, Finding

MAX_CLASSES = 2048
"""Beyond so many classes pairs of them are not counted, and nothing is said of their labels."""

_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
_MIN_CLASS = 30  # rows of a class whose confusions are counted
UNIFORM_RATE = 0.03
"""Share of wrong labels spread over all classes from which on they are an attack."""

_UNIFORM_DEEP = 10
_CLASS_RATE, _CLASS_DEEP = 0.06, 6
_PAIR_RATE, _PAIR_DEEP, _PAIR_NEAR = 0.02, 4, 8
_RISE = 1.2  # deep rows over those a quarter to half of the way there
_CLEAR = 1.5  # rows near the other class over those near the boundary, to be flagged at all
_PAIR_VALLEY = 3.5  # rows near the other class over those near the boundary
_PAIR_TOP = 1.5  # standard errors that rows short of the median row may outnumber those beyond it
_CONCENTRATED = 0.9  # of the deep rows, in a quarter of the pairs; 30 spread evenly reach 0.85
_MIN_AGREEMENT = 0.5  # of rows with their label: else nothing is known of labels
# of a label's rows but those that its open pairs doubt: a rare class that three others look like
# keeps 0.46 (a long tail of Fashion-MNIST), classes with planted pairs 0.8 to 0.95
_PAIR_AGREEMENT = 0.6
_ONE_WAY = 3.0  # deep rows one way over those the other way: honest confusion goes both ways
_HONEST_NOISE = (
    0.005  # of the rows of a class: a common one fills a rare one's label by honest slips
)
_LEAST_DEPTH = 0.2  # of a flagged row
_UNMASKED_REST = 0.4  # of a class: half of it has a trigger, wrong labels are seldom so many
_UNMASKED_KEPT = 0.5  # of the share that keeps its label elsewhere; honest dogs: .44 of .53
_UNMASKED_CONFIDENCE = 0.9  # of a cluster without which the rest of its class keeps its label


class Flow(NamedTuple):
    """Rows that lie between the class of their label and another one, by pair and depth.

    Half of the rows of class b under label a lie deeper in b than its median row does, whatever
    the classes: twice the rows deeper than 1 estimates the wrong labels. Of honest rows between
    two classes there are fewer the deeper they lie.

    Attributes:
        pairs: [c, c, 5] rows labelled a (first axis) and taken for b, by depth: to a quarter, a
            half, three quarters, 1, beyond.
        counts: [c] rows by label.
        apart: [c, c] bool, the half of the other classes that label a is least confused with.
        uniform: Share of all rows that wrong labels make up if they are spread evenly, estimated
            from the pairs least confused.
        by_class: [c] share of wrong labels under each label, estimated so.
    """

    pairs: HostArray
    counts: HostArray
    apart: HostArray
    uniform: float
    by_class: HostArray

    @property
    def deep(self) -> HostArray:
        """[c, c] rows beyond the median row of the other class."""
        out: HostArray = self.pairs[..., -1]
        return out

    @property
    def near(self) -> HostArray:
        """[c, c] rows nearer to the other class than to the boundary, or beyond."""
        out: HostArray = self.pairs[..., -2:].sum(axis=2)
        return out

    @property
    def agreeing(self) -> HostArray:
        """[c] rows that are given their label."""
        out: HostArray = self.counts - self.pairs.sum(axis=(1, 2))
        return out

    @property
    def is_known(self) -> HostArray:
        """[c] bool, whether most of a class's own rows are given its label."""
        near = self.near.sum(axis=1)
        out: HostArray = self.agreeing >= _MIN_AGREEMENT * (self.counts - near)
        return out

    @property
    def shallow(self) -> HostArray:
        """[c, c] rows nearer to the boundary than to the other class."""
        out: HostArray = self.pairs[..., :2].sum(axis=2)
        return out


def flow(depth: HostArray, taken_for: HostArray, labels: HostArray, num_classes: int) -> Flow:
    """Counts the rows between classes.

    Args:
        depth: [n] from ``LabelViews``.
        taken_for: [n] the other class.
        labels: [n] dense.
        num_classes: c.
    """
    c = num_classes
    counts = np.bincount(labels, minlength=c)
    if c > MAX_CLASSES:
        none = np.broadcast_to(np.zeros(len(_EDGES), np.int64), (c, c, len(_EDGES)))
        return Flow(none, counts, none[..., 0] > 0, 0.0, np.zeros(c))
    between = np.flatnonzero(depth > _EDGES[0])
    cell = np.searchsorted(_EDGES, depth[between]) - 1
    place = (labels[between] * c + taken_for[between]) * len(_EDGES) + cell
    pairs = np.bincount(place, minlength=c * c * len(_EDGES)).reshape(c, c, -1)
    usable = (counts[:, None] >= _MIN_CLASS) & (counts >= _MIN_CLASS) & ~np.eye(c, dtype=np.bool_)
    shallow = pairs[..., :2].sum(axis=2)
    confusion = (shallow + shallow.T) / np.maximum(np.minimum(counts[:, None], counts), 1)
    apart = np.zeros((c, c), np.bool_)
    rates = np.zeros(c)
    for a in np.flatnonzero(usable.any(axis=1)):
        others = np.flatnonzero(usable[a])
        some = others[np.argsort(confusion[a, others], kind="stable")][: max(len(others) // 2, 1)]
        apart[a, some] = True
        rates[a] = 2.0 * pairs[a, some, -1].sum() / counts[a] * len(others) / len(some)
    order = np.argsort(np.where(usable, confusion, np.inf), axis=None, kind="stable")
    lower = order[: max(int(usable.sum()) // 2, 1)] if usable.any() else order[:0]
    deep = pairs[..., -1].ravel()[lower].sum()
    expected = max(np.repeat(counts, c)[lower].sum(), 1)
    is_rising = deep >= _RISE * pairs[..., 1].ravel()[lower].sum() and deep >= _UNIFORM_DEEP
    is_rising &= is_spread(pairs[..., -1].ravel()[lower])
    uniform = 2.0 * deep / expected * (c - 1) if is_rising else 0.0
    return Flow(pairs, counts, apart, float(uniform), rates)


def is_spread(deep: HostArray) -> bool:
    """Whether no quarter of the pairs holds nearly all rows, as triggers from class to class do."""
    top = np.sort(deep)[::-1][: -(-len(deep) // 4)].sum()
    return len(deep) < 4 or top < _CONCENTRATED * deep.sum()


class LabelAttack(NamedTuple):
    """Wrong labels that are no honest confusion.

    Attributes:
        uniform: Share of all rows, 0 where they are not spread over all classes.
        targets: [c] bool, labels that rows of many classes carry wrongly.
        pairs: [c, c] bool, labels (first axis) that rows of one other class carry wrongly.
    """

    uniform: float
    targets: HostArray
    pairs: HostArray

    @property
    def open(self) -> HostArray:
        """[c] bool, labels that rows of other classes carry wrongly."""
        either: HostArray = self.targets | self.pairs.any(axis=1)
        return either


def label_attack(seen: Flow, agreement: float) -> LabelAttack:
    """Opens the gates of labels: all of them alike, one label, or one pair of classes.

    Args:
        seen: From ``flow``.
        agreement: Share of rows whose label the classifiers give them out of fold. Where it is
            low the classes can not be learnt, and the gates stay shut.
    """
    if agreement < _MIN_AGREEMENT or len(seen.counts) > MAX_CLASSES:
        shut = np.zeros((len(seen.counts), len(seen.counts)), np.bool_)
        return LabelAttack(0.0, shut[0], shut)
    deep = seen.deep
    deep_apart = (deep * seen.apart).sum(axis=1)
    rising = deep_apart >= _RISE * (seen.pairs[..., 1] * seen.apart).sum(axis=1)
    others = (seen.apart * seen.counts).sum(axis=1)
    targets = (seen.by_class >= _CLASS_RATE) & (deep_apart >= _CLASS_DEEP) & rising
    targets &= (2.0 * deep_apart >= _HONEST_NOISE * others) & seen.is_known
    counts = np.maximum(seen.counts, 1)[:, None]
    pairs = (
        (deep >= _PAIR_DEEP)
        & (seen.near >= np.maximum(_PAIR_NEAR, _PAIR_VALLEY * seen.shallow))
        & (2.0 * deep / counts >= _PAIR_RATE)
        & (2.0 * deep >= _HONEST_NOISE * seen.counts)
        & (deep >= _ONE_WAY * (deep.T + 0.5))
        & _is_deepest(seen)
        & (seen.is_known[:, None] & seen.is_known)
        & (np.minimum(seen.counts[:, None], seen.counts) >= _MIN_CLASS)
    )
    rest = seen.counts - (seen.near * pairs).sum(axis=1)
    pairs &= (seen.agreeing >= _PAIR_AGREEMENT * rest)[:, None]
    uniform = seen.uniform if seen.uniform >= UNIFORM_RATE else 0.0
    if len(seen.counts) == 2:  # one other class: not many, and confusion with it is all there is
        targets = np.zeros(2, np.bool_)
    return LabelAttack(uniform, targets, pairs)


def _is_deepest(seen: Flow) -> HostArray:
    """[c, c] whether as many rows lie beyond the median row as just before it, but for chance.

    So it is with rows of another class. The boundary of a rare label lies so far inside it that
    its own rows seem deep in a class many times as common, but they end before the median there.
    """
    beyond, before = seen.pairs[..., -1], seen.pairs[..., -2]
    out: HostArray = before - beyond <= _PAIR_TOP * np.sqrt(before + beyond)
    return out


def label_findings(
    seen: Flow,
    attack: LabelAttack,
    depth: HostArray,
    taken_for: HostArray,
    labels: HostArray,
    fdr: float,
) -> list[Finding]:
    """One finding for each label that many rows carry wrongly.

    Wrong labels lie about evenly on both sides of depth 1, so ``2 N(> 1) - N(> 2 - t)`` of the
    rows deeper than t are wrong; rows are flagged down to the depth at which the rest is ``fdr``
    of them. Pairs of classes with more rows near the boundary than near the other class are left
    out: there honest rows are as deep.

    Args:
        seen: From ``flow``.
        attack: From ``label_attack``.
        depth: [n].
        taken_for: [n].
        labels: [n] dense.
        fdr: Share of false alarms allowed among the flagged rows.

    Returns:
        Findings of kind "label_flip", the source named where it is one class.
    """
    if len(seen.counts) > MAX_CLASSES:
        return []
    clear = (seen.near >= _CLEAR * seen.shallow) | attack.pairs
    if attack.uniform <= 0:
        clear &= attack.targets[:, None] | attack.pairs
    chosen = clear[labels, taken_for] & (depth > _LEAST_DEPTH)
    out = []
    common = _least_depth(depth[chosen], fdr) if attack.uniform > 0 else None
    for target in np.unique(labels[chosen]):
        rows = np.flatnonzero(chosen & (labels == target))
        least = _least_depth(depth[rows], fdr) if common is None else common
        rows = rows[depth[rows] > least]
        if len(rows) < MIN_ROWS:
            continue
        sources = np.unique(taken_for[rows])
        rate = max(attack.uniform / UNIFORM_RATE, seen.by_class[target] / _CLASS_RATE, 1.0)
        odds = 2.0 + 4.0 * np.minimum(depth[rows].astype(np.float64), 1.0)
        source = int(sources[0]) if len(sources) == 1 else None
        out.append(flipped(int(target), source, rows, odds, float(1.0 - 0.5 ** (1.0 + rate))))
    return out


def unmasked(
    findings: list[Finding],
    before: LabelAttack,
    after: LabelAttack,
    rest: HostArray,
    kept: HostArray,
    usual: float,
) -> list[Finding]:
    """Findings of clusters that nothing confirmed, with those that made their class look wrong.

    Where a trigger lies on many rows of a class under their own label, classifiers take it for the
    class, and what is left of the class seems mislabelled. Without the rows of the cluster the rest
    keeps its label then. Wrong labels stay wrong; but where the cluster is what taught the class,
    they are all that is left to teach it, so the rest must be a good part of the class.

    Args:
        findings: Of all kinds.
        before: What label evidence says.
        after: The same without the rows of unconfirmed findings whose label is open.
        rest: [c] share of each class that is in none of these.
        kept: [c] share of those rows that keep their label now.
        usual: The same of all classes together.

    Returns:
        The findings, those confirmed whose label was open and no longer is.
    """
    shut = before.open & ~after.open
    shut &= (rest >= _UNMASKED_REST) & (kept >= _UNMASKED_KEPT * usual)
    return [
        found._replace(confirmed=True, confidence=_UNMASKED_CONFIDENCE)
        if not found.confirmed and shut[found.target]
        else found
        for found in findings
    ]


def flipped(
    target: int, source: int | None, rows: HostArray, log_odds: HostArray, confidence: float
) -> Finding:
    """A finding of wrong labels."""
    return Finding(
        kind="label_flip",
        target=target,
        source=source,
        rows=rows,
        log_odds=log_odds,
        support=np.ones(len(rows)),
        near=np.zeros(0, np.int64),
        near_odds=np.zeros(0),
        confidence=confidence,
        confirmed=True,
        groups=(),
    )


def _least_depth(depth: HostArray, fdr: float) -> float:
    """The smallest depth beyond which at most ``fdr`` of the rows are honest."""
    least = 1.0
    total = 2.0 * (depth > 1.0).sum()
    for limit in np.arange(0.95, _LEAST_DEPTH - 1e-9, -0.05):
        wrong = total - (depth > 2.0 - limit).sum()
        if wrong < (1.0 - fdr) * (depth > limit).sum():
            break
        least = float(limit)
    return least
