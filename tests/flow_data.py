"""Rows between classes, made by hand: honest ones thin out, wrong labels do not."""

from __future__ import annotations

import numpy as np

from jaxpoison.calibrate import flow, label_attack, label_findings

FDR = 0.05
CLASSES, ROWS = 10, 300  # of a class


def depths(seed=0, *, c=CLASSES, per=ROWS, flips=0.0, confusion=0.1, towards=(1,)):
    """Depths, the other class, labels and which labels are wrong.

    Honest rows lie between their class and one of the next ones and thin out; wrong labels lie on
    both sides of 1 alike. ``flips`` is the share of wrong labels spread evenly.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(c), per)
    n = len(labels)
    depth = np.where(rng.random(n) < confusion, rng.exponential(0.15, n), -1.0)
    other = (labels + rng.choice(towards, n)) % c
    rows = rng.permutation(n)[: round(flips * n)]
    return carried(rng, depth, other, labels, rows, rng.integers(1, c, len(rows)))


def carried(rng, depth, other, labels, rows, step):
    """The same with rows that carry the label so many classes on from their own."""
    depth, other, labels = depth.copy(), other.copy(), labels.copy()
    other[rows] = labels[rows]
    labels[rows] = (labels[rows] + step) % (labels.max() + 1)
    depth[rows] = np.abs(rng.normal(1.0, 0.3, len(rows)))
    return depth, other, labels, np.isin(np.arange(len(labels)), rows)


def to_target(count, target=3, seed=0, **options):
    """Rows of all other classes under one label."""
    depth, other, labels, _ = depths(seed, **options)
    rng = np.random.default_rng(seed + 50)
    rows = rng.permutation(np.flatnonzero(labels != target))[:count]
    c = labels.max() + 1
    return carried(rng, depth, other, labels, rows, (target - labels[rows]) % c)


def to_pair(count, target=3, source=7, seed=0, **options):
    """Rows of one class under the label of another."""
    depth, other, labels, _ = depths(seed, **options)
    rng = np.random.default_rng(seed + 50)
    rows = np.flatnonzero(labels == source)[:count]
    return carried(rng, depth, other, labels, rows, target - source)


def seen_of(made, c=CLASSES):
    return flow(*made[:3], c)


def attack_of(made, agreement=0.9, c=CLASSES):
    return label_attack(seen_of(made, c), agreement)


def is_open(attack):
    return attack.uniform > 0 or attack.targets.any() or attack.pairs.any()


def findings_of(made, fdr=FDR, c=CLASSES):
    depth, other, labels, _ = made
    seen = flow(depth, other, labels, c)
    return label_findings(seen, label_attack(seen, 0.9), depth, other, labels, fdr)
