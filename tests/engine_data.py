"""Planted data, and what the tests of the engine need around it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from jaxpoison.sources import open_source
from jaxpoison.stream import Stream, make_mesh
from jaxpoison.stream._steps import pass_step, spread_step

TARGET, SHARE = 2, 0.08


def planted(seed=0, n=1500, d=24, num_classes=5, shift=8.0, share=SHARE, offset=0.0):
    """Gaussian classes, one of which holds a group shifted in a direction of its own.

    Returns:
        Rows [n, d] float32, labels [n], and which rows were planted [n].
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % num_classes)
    mixing = 0.3 * rng.normal(size=(d, d)) / np.sqrt(d) + np.eye(d)
    means = 2.0 * rng.normal(size=(num_classes, d))
    x = means[labels] + rng.normal(size=(n, d)) @ mixing
    is_planted = np.zeros(n, np.bool_)
    mine = np.flatnonzero(labels == TARGET)
    is_planted[rng.permutation(mine)[: round(share * len(mine))]] = True
    direction = rng.normal(size=d)
    x[is_planted] += shift * direction / np.linalg.norm(direction)
    return (x + offset).astype(np.float32), labels, is_planted


def block_of(layout, x, labels, start=0):
    """The rows of a shard as the block that a pass makes of them."""
    plan = layout.plan(labels, start)
    rows = np.full((layout.tiles * layout.tile, *x.shape[1:]), 77, x.dtype)  # as memory comes
    plan.clear(rows)
    half = len(x) // 2
    for piece in (slice(half, len(x)), slice(0, half)):
        plan.put(x[piece], piece, rows)
    return plan.block(rows)


def with_small_classes(labels):
    """Which rows to keep [n] so that class 0 has none, class 1 has one and class 3 has 39."""
    keep = labels != 0
    keep[np.flatnonzero(labels == 1)[1:]] = False
    keep[np.flatnonzero(labels == 3)[39:]] = False
    return keep


def odd_features(x):
    """Parameters of a test: features that tell little, and planted ones beside useless ones."""
    constant = np.full((len(x), 3), 9.0, np.float32)
    return [
        pytest.param(np.full_like(x, 3.5), id="equal rows"),
        pytest.param(x[:, :1], id="one feature"),
        pytest.param(np.hstack([x, constant, x[:, :4]]), id="constant and repeated features"),
    ]


def stream_of(x, labels, *, num_devices=1, num_classes=None, budget_bytes=1 << 30):
    """A stream as a scan makes one: rows through ``open_source``, dense int32 labels."""
    c = num_classes or int(np.max(labels)) + 1
    labels = np.asarray(labels, np.int32)
    mesh = make_mesh(num_devices)
    return Stream(open_source(x, role="features"), labels, c, mesh, None, budget_bytes)


def num_compiled():
    """Entries in the caches of the three functions that the engine compiles."""
    return [step._cache_size() for step in (pass_step, spread_step)]


def auroc(scores, is_positive):
    """Probability that a positive row scores above another, ties counted half."""
    ranks = scipy.stats.rankdata(scores)
    good, bad = is_positive.sum(), (~is_positive).sum()
    return (ranks[is_positive].sum() - good * (good + 1) / 2) / (good * bad)


def rotation(d, seed=0):
    """A random orthogonal matrix [d, d]."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))
    return q * np.sign(np.diag(r))
