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


def class_sums(x, labels, num_classes):
    """Rows [c], sums [c, d] and second moments [c, d, d] of each class."""
    parts = [x[labels == c] for c in range(num_classes)]
    counts = np.array([len(part) for part in parts], np.float64)
    return counts, np.stack([p.sum(axis=0) for p in parts]), np.stack([p.T @ p for p in parts])


def shared_mixture_fit(x, shares):
    """Weight, two means and the shared covariance that given responsibilities lead to."""
    weight = shares.mean()
    first = (1 - shares) @ x / (1 - shares).sum()
    second = shares @ x / shares.sum()
    from_first, from_second = x - first, x - second
    cov = (from_first.T * (1 - shares)) @ from_first + (from_second.T * shares) @ from_second
    return weight, first, second, cov / len(x)


def shared_mixture_logs(x, weight, first, second, cov):
    """log (1-w) N(x; a, S) and log w N(x; b, S) of each row."""
    return (
        np.log1p(-weight) + scipy.stats.multivariate_normal(first, cov).logpdf(x),
        np.log(weight) + scipy.stats.multivariate_normal(second, cov).logpdf(x),
    )


def shared_mixture(x, shares, num_steps=300):
    """EM from given responsibilities: log ratio, gain, separation and weight of component two."""
    for _ in range(num_steps):
        fit = shared_mixture_fit(x, shares)
        one, two = shared_mixture_logs(x, *fit)
        shares = 1 / (1 + np.exp(np.clip(one - two, -700, 700)))
    weight, first, second, cov = fit
    alone = scipy.stats.multivariate_normal(x.mean(axis=0), covariance(x)).logpdf(x)
    gain = (np.logaddexp(one, two) - alone).sum()
    separation = np.sqrt((second - first) @ np.linalg.solve(cov, second - first))
    return two - one, gain, separation, weight


def spectral_scores(x, labels):
    """Squared projection of each row on the top right singular vector of its centred class."""
    scores = np.zeros(len(x))
    for c in np.unique(labels):
        centred = x[labels == c] - x[labels == c].mean(axis=0)
        top = np.linalg.svd(centred, full_matrices=False)[2][0]
        scores[labels == c] = (centred @ top) ** 2
    return scores


def principal_coordinates(x, rank):
    """Centred rows in the leading eigenvectors of their covariance [m, k]."""
    centred = x - x.mean(axis=0)
    return centred @ np.linalg.eigh(covariance(x))[1][:, ::-1][:, :rank]


def ridge_opinion(phi, labels, num_classes, ridge, rows):
    """What one-hot ridge regression on all rows but some says of these, [len(rows), c]."""
    rest = np.ones(len(phi), np.bool_)
    rest[rows] = False
    gram = phi[rest].T @ phi[rest] + ridge * np.eye(phi.shape[1])
    weights = np.linalg.solve(gram, phi[rest].T @ np.eye(num_classes)[labels[rest]])
    return phi[rows] @ weights


def false_discovery(p):
    """Benjamini-Hochberg q-values from the definition: the best rank at or after each row's."""
    n = len(p)
    q = np.ones(n)
    for i, value in enumerate(p):
        for other in p[p >= value]:
            q[i] = min(q[i], other * n / (p <= other).sum())
    return q
