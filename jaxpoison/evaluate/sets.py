"""Real data sets as training rows to poison and test rows that nobody touches."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import HostArray
from jaxpoison.detect._detector import even_subset
from jaxpoison.evaluate.suites import FASHION, SetSpec
from jaxpoison.sources import Source, open_source, require_labels
from jaxpoison.sources.bundled import FASHION_MNIST, PREFIXES, open_packaged
from jaxpoison.sources.inspect import inspect

_TEST_SHARE = 0.2
_MAX_TEST_ROWS = 4000
_LONGEST_TO_SHORTEST = 100.0
_NOISE_SHARE = 0.03
_PAIR_ROWS, _NEIGHBOURS = 2000, 5  # of the search for the most confusable pair


class Split(NamedTuple):
    """Rows to poison and rows to judge by.

    Attributes:
        x: [n, ...] inputs.
        y: [n] int64 dense labels.
        x_test: [m, ...] held out before anything is poisoned.
        y_test: [m] int64.
        kind: "images" or "rows".
        noise: [n] bool, labels that a preparation swapped, or None.
    """

    x: HostArray
    y: HostArray
    x_test: HostArray
    y_test: HostArray
    kind: str
    noise: HostArray | None = None


def check(spec: SetSpec) -> str:
    """Opens a set and reads no row; the kind of its rows.

    Raises:
        UsageError: It is not installed, or no such set.
        DataError: It can not be read or has no labels.
    """
    if spec.data == FASHION:
        if not Path(FASHION_MNIST).is_dir():
            raise UsageError(
                "fashion_mnist: comes with Debian's package dataset-fashion-mnist, which is not "
                "installed; install it, or leave this set out (--sets)"
            )
        return "images"
    source = _open(spec)
    require_labels(source)
    return source.schema.kind


def content(spec: SetSpec) -> str | None:
    """Digest of a user's data and labels; None of a packaged set, which its name tells.

    Raises:
        DataError: A row has values that are not finite.

    **Cost**: one pass over the rows.
    """
    if spec.data == FASHION or spec.data.partition(":")[0] in PREFIXES:
        return None
    seen = inspect(_open(spec))
    if len(seen.nonfinite):
        raise DataError(
            f"{spec.data}: row {int(seen.nonfinite[0])} holds NaN or infinity; repair it or leave "
            "it out"
        )
    return seen.fingerprint


def load(spec: SetSpec, *, seed: int, rows: int | None = None) -> Split:
    """Draws training and test rows by the seed, and prepares the training rows.

    Args:
        spec: The set.
        seed: Which rows are drawn; the test rows too, but for a set with a test file of its own.
        rows: Training rows at the most, in place of the spec's.

    Returns:
        The split: a fifth of the rows is the test, or 4,000 rows of the set's own test file.

    Raises:
        UsageError: As ``check``.
        DataError: Fewer than two classes, or a damaged file.
    """
    rng = np.random.default_rng([seed, 11])
    if spec.data == FASHION:
        check(spec)
        x, y = _all_rows(f"idx:{FASHION_MNIST}#train")
        x_test, y_test = _all_rows(f"idx:{FASHION_MNIST}#t10k")
        test = np.sort(rng.choice(len(y_test), min(_MAX_TEST_ROWS, len(y_test)), replace=False))
        x_test, y_test = x_test[test], y_test[test]
        kind, train = "images", rng.permutation(len(y))
    else:
        source = _open(spec)
        block = source.read(0, len(source))
        x, y, kind = block["x"], require_labels(source), source.schema.kind
        order = rng.permutation(len(y))
        held = min(max(1, round(_TEST_SHARE * len(y))), _MAX_TEST_ROWS)
        x_test, y_test, train = x[order[:held]], y[order[:held]], order[held:]
    if spec.prepare == "long_tail":
        train = train[_long_tail(y[train], rng)]
    train = np.sort(train[: rows or spec.rows or len(train)])
    x, y = x[train], y[train]
    classes, y = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"{spec.name}: its rows have {len(classes)} class; at least two are needed")
    known = np.isin(y_test, classes)
    x_test, y_test = x_test[known], np.searchsorted(classes, y_test[known])
    split = Split(x, y.astype(np.int64), x_test, y_test.astype(np.int64), kind)
    return _with_noise(split, rng) if spec.prepare == "honest_noise" else split


def thin(split: Split, target: int, share: float, *, seed: int) -> Split:
    """The split with only a share of one class's training rows (at least one)."""
    rng = np.random.default_rng([seed, 12])
    mine = np.flatnonzero(split.y == target)
    drop = rng.permutation(mine)[max(1, round(share * len(mine))) :]
    keep = np.setdiff1d(np.arange(len(split.y)), drop)
    noise = None if split.noise is None else split.noise[keep]
    return split._replace(x=split.x[keep], y=split.y[keep], noise=noise)


def _open(spec: SetSpec) -> Source:
    if spec.data.partition(":")[0] in PREFIXES:
        return open_packaged(spec.data, labelled=True)
    return open_source(spec.data, spec.labels)


def _all_rows(name: str) -> tuple[HostArray, HostArray]:
    source = open_source(name)
    block = source.read(0, len(source))
    return block["x"], block["y"]


def _long_tail(y: HostArray, rng: np.random.Generator) -> HostArray:
    """Positions kept, in order: class sizes fall geometrically to a hundredth of the first."""
    counts = np.bincount(y)
    order = rng.permutation(len(counts))
    steps = np.arange(len(counts)) / max(len(counts) - 1, 1)
    wanted = np.zeros(len(counts), np.int64)
    wanted[order] = np.maximum(1, counts.min() * _LONGEST_TO_SHORTEST**-steps)
    rank = np.empty(len(y), np.int64)
    for label, count in enumerate(counts):
        rank[y == label] = np.arange(count)
    kept: HostArray = np.flatnonzero(rank < wanted[y])
    return kept


def confusable_pair(x: HostArray, y: HostArray) -> tuple[int, int]:
    """The two classes whose rows are most often among each other's five nearest neighbours.

    Counted over at most 2,000 rows, as a share of the smaller class.
    """
    some = even_subset(np.arange(len(y)), _PAIR_ROWS)
    rows, labels = x[some].reshape(len(some), -1).astype(np.float64), y[some]
    rows = (rows - rows.mean(axis=0)) / max(float(rows.std()), 1e-12)
    square = (rows**2).sum(axis=1)
    distance = square[:, None] - 2.0 * rows @ rows.T + square
    np.fill_diagonal(distance, np.inf)
    near = np.argpartition(distance, min(_NEIGHBOURS, len(some) - 1), axis=1)[:, :_NEIGHBOURS]
    num_classes = int(y.max()) + 1
    mixed = np.zeros((num_classes, num_classes))
    np.add.at(mixed, (np.repeat(labels, near.shape[1]), labels[near].ravel()), 1.0)
    counts = np.maximum(np.bincount(labels, minlength=num_classes), 1)
    mixed = np.triu(mixed + mixed.T, 1) / np.minimum(counts[:, None], counts)
    a, b = np.unravel_index(int(mixed.argmax()), mixed.shape)
    return int(a), int(b)


def _with_noise(split: Split, rng: np.random.Generator) -> Split:
    """3 % of all labels swapped between the most confusable pair, as many each way."""
    pair = confusable_pair(split.x, split.y)
    y, noise = split.y.copy(), np.zeros(len(split.y), np.bool_)
    each = round(_NOISE_SHARE * len(y) / 2)
    for label, other in (pair, pair[::-1]):
        mine = np.flatnonzero(split.y == label)
        rows = rng.choice(mine, min(each, len(mine) // 3), replace=False)
        y[rows], noise[rows] = other, True
    return split._replace(y=y, noise=noise)
