"""Plain float64 numpy oracles of the kernels, straight from the formulas; slow on purpose."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.stats


def order_statistic(values, q):
    """The value of rank ceil(q n), at least 1; q comes as float32 and means a round number."""
    rank = max(1, int(np.ceil(round(float(q) * len(values), 4))))
    return np.sort(values, axis=0)[rank - 1]


def covariance(x):
    centred = x - x.mean(axis=0)
    return centred.T @ centred / len(x)


def squared_distances(x, y):
    return ((x[:, None, :] - y[None]) ** 2).sum(axis=2)


def inertia(x, centres):
    return squared_distances(x, centres).min(axis=1).sum()


def silhouette(x, labels):
    distance = np.sqrt(squared_distances(x, x))
    scores = np.zeros(len(x))
    for i, own in enumerate(labels):
        others = [c for c in np.unique(labels) if c != own]
        fellows = (labels == own) & (np.arange(len(x)) != i)
        if not others or not fellows.any():
            continue
        a = distance[i, fellows].mean()
        b = min(distance[i, labels == c].mean() for c in others)
        scores[i] = (b - a) / max(a, b) if max(a, b) > 0 else 0.0
    return scores


def consistency_factor(keep, num_features):
    if keep >= 1:
        return 1.0
    limit = scipy.stats.chi2.ppf(keep, num_features)
    return keep / scipy.stats.chi2.cdf(limit, num_features + 2)


def _mahalanobis2(x, mean, cov):
    y = x - mean
    return np.einsum("mi,ij,mj->m", y, np.linalg.inv(cov), y)


def trimmed_gaussian(x, keep, num_steps=10):
    """Mean, covariance and squared distances; the same start, steps, factor and ridge."""
    size = x.shape[1]
    median = order_statistic(x, 0.5)
    mad = 1.4826 * order_statistic(np.abs(x - median), 0.5)
    plain = np.sqrt(((x - median) ** 2).mean(axis=0))
    scale = np.where(mad > 0, mad, plain)
    scale = np.where(scale > 0, scale, 1.0)
    distance2 = (((x - median) / scale) ** 2).sum(axis=1)
    for _ in range(num_steps):
        kept = distance2 <= order_statistic(distance2, keep)
        mean = x[kept].mean(axis=0)
        cov = consistency_factor(keep, size) * covariance(x[kept])
        trace = np.trace(cov)
        cov += (1e-6 * trace / size if trace > 0 else 1.0) * np.eye(size)
        distance2 = _mahalanobis2(x, mean, cov)
    return mean, cov, distance2


def quantum_entropy(x, mean, whitening, alpha=4.0):
    """Scores, spectral norm and tr(S M) / tr(M), by scipy's matrix exponential."""
    y = (x - mean) @ whitening.T
    moment = y.T @ y / len(x)
    norm = np.linalg.norm(moment, 2)
    identity = np.eye(len(moment))
    exponent = alpha * (moment - identity) / (norm - 1) if norm > 1 + 1e-6 else 0 * identity
    weight = scipy.linalg.expm(exponent)
    scores = np.einsum("mi,ij,mj->m", y, weight, y) / np.trace(weight)
    return scores, norm, np.trace(moment @ weight) / np.trace(weight)
