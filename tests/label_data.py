"""Wrong labels to look for, and plain float64 versions of what looks for them."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np
import scipy.stats
from sklearn.datasets import load_digits

import engine_data as data
from jaxpoison.detect import LabelViews
from jaxpoison.detect._ridge_views import NormalEquations
from jaxpoison.sources import open_source
from jaxpoison.stream import Stream, make_mesh

KEY = jax.random.key(0)
SMALL = LabelViews(num_features=256)
ROWS, CLASSES = 900, 5


def ridge_scores(phi, labels, c, fold, columns, share, left_out):
    """Scores [v, n, c] of ridge classifiers fitted to the rows that may teach, one by one."""
    out = np.zeros((len(columns), len(phi), c))
    for i, view in enumerate(columns):
        design = np.concatenate([phi[:, view].astype(np.float64), np.ones((len(phi), 1))], axis=1)
        for k in np.unique(fold):
            rows = (fold != k) & ~left_out
            gram = design[rows].T @ design[rows]
            gram += share * np.trace(gram) / len(gram) * np.eye(len(gram))
            weights = np.linalg.solve(gram, design[rows].T @ np.eye(c)[labels[rows]])
            out[i, fold == k] = design[fold == k] @ weights
    return out


def discriminant_logs(scores, labels, c, teaching):
    """Log densities [n, c] of normals with a pooled covariance, fitted twice."""
    keep = teaching
    for _ in range(2):
        groups = {k: scores[keep & (labels == k)] for k in range(c)}
        means = {k: g.mean(axis=0) for k, g in groups.items() if len(g)}
        cov = sum((g - means[k]).T @ (g - means[k]) for k, g in groups.items() if len(g))
        cov = cov / keep.sum()
        cov = cov + (1e-3 * np.trace(cov) / c + 1e-12) * np.eye(c)
        logs = np.full((len(scores), c), -np.inf)
        for k, group in groups.items():
            if len(group) >= 8:
                logs[:, k] = scipy.stats.multivariate_normal(means[k], cov).logpdf(scores)
        keep = teaching & (margins(logs, labels)[0] < 3.0)
    return logs


def margins(logs, labels):
    best, out = np.zeros(len(labels), int), np.zeros(len(labels))
    for i, own in enumerate(labels):
        others = np.where(np.arange(logs.shape[1]) == own, -np.inf, logs[i])
        best[i] = others.argmax()
        if np.isfinite(logs[i, own]) and np.isfinite(others[best[i]]):
            out[i] = others[best[i]] - logs[i, own]
    return out, best


def opinion_of(phi, labels, c, fold, columns, share, num_rounds):
    """Mean margins, depth, the other class and the doubted rows, from the definitions."""
    doubted, every = np.zeros(len(phi), bool), []
    for _ in range(num_rounds):
        scores = ridge_scores(phi, labels, c, fold, columns, share, doubted)
        logs = [discriminant_logs(s, labels, c, ~doubted) for s in scores]
        found = [margins(log, labels) for log in logs]
        settled = ~doubted
        every += [margin for margin, _ in found]
        most = np.max([margin for margin, _ in found], axis=0)
        doubted = most > 3.0
        for k in range(c):
            mine = np.flatnonzero(labels == k)
            limit = int(0.75 * len(mine))
            if doubted[mine].sum() > limit:
                doubted[mine] = False
                doubted[mine[np.argsort(-most[mine], kind="stable")[:limit]]] = True
    margin, other = found[0]
    depth = np.zeros(len(phi))
    for i in range(len(phi)):
        fellows = settled & (labels == other[i])
        gaps = logs[0][fellows, other[i]] - logs[0][fellows, labels[i]]
        usual = np.median(gaps) if len(gaps) >= 8 else np.inf
        depth[i] = margin[i] / usual if 0 < usual < np.inf else 0.0
    return np.mean(every, axis=0), depth, other, doubted


@cache
def flipped(seed=0, share=0.1, num_classes=CLASSES, n=ROWS):
    """Gaussian classes, some rows of which carry another label: rows, labels, which."""
    x, labels, _ = data.planted(seed, n=n, d=12, num_classes=num_classes, shift=0.0)
    rng = np.random.default_rng(seed + 100)
    rows = rng.permutation(n)[: round(share * n)]
    labels = labels.astype(np.int32)
    labels[rows] = (labels[rows] + rng.integers(1, num_classes, len(rows))) % num_classes
    return x, labels, np.isin(np.arange(n), rows)


def stream_of(x, labels, *, num_classes=None, num_devices=1):
    c = num_classes or int(np.max(labels)) + 1
    source = open_source(x, role="features") if x.ndim == 2 else open_source(x)
    return Stream(source, np.asarray(labels, np.int32), c, make_mesh(num_devices))


def judge(x, labels, detector=SMALL, *, key=KEY, num_classes=None):
    return detector.judge(stream_of(x, labels, num_classes=num_classes), key=key)


@cache
def first():
    x, labels, _ = flipped()
    return judge(x, labels)


@cache
def digits():
    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target.astype(np.int32)


def stamped(share=0.05, target=3, seed=0):
    """Digits of other classes with a bright 2x2 patch, under one label: images, labels, which."""
    x, y = (a.copy() for a in digits())
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(y != target))[: round(share * len(y))]
    x[rows, 6:, 6:] = 16
    y[rows] = target
    return x, y, np.isin(np.arange(len(y)), rows)


class Fitted(NormalEquations):
    """Normal equations that show what they were given."""

    def __init__(self, phi, labels, num_classes, fold, columns, ridge, again=None):
        super().__init__(phi, labels, num_classes, fold, columns, ridge, again)
        self.fold, self.columns, self.ridge = fold, columns, ridge
        Fitted.last = self


def equations(seed=0, n=400, p=30, c=4, num_views=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n)
    phi = (2 * rng.normal(size=(c, p))[labels] + 3 * rng.normal(size=(n, p)) + 5).astype(np.float32)
    columns = rng.random((num_views, p)) < 0.6
    columns[0] = True
    return Fitted(phi, labels, c, rng.permutation(np.arange(n) % 3), columns, 0.03)
