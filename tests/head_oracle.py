"""Softmax heads in float64 for the tests: losses, the dense Hessian, the exact minimum."""

from __future__ import annotations

import numpy as np


def ones(x):
    """A mask that keeps every row."""
    return np.ones(len(x), np.float32)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def losses_of(x, y, weights):
    z = x @ weights.T
    top = z.max(1)
    return np.log(np.exp(z - top[:, None]).sum(1)) + top - z[np.arange(len(y)), y]


def dense_hessian(x, p, total, damping):
    """[c d, c d] float64 Hessian of ``sum l / total + damping |W|^2 / 2``."""
    (_, d), c = x.shape, p.shape[1]
    out = np.zeros((c, d, c, d))
    for a in range(c):
        for b in range(a + 1):
            entry = p[:, a] * ((a == b) - p[:, b]) / total
            out[a, :, b] = out[b, :, a] = (x * entry[:, None]).T @ x
    return out.reshape(c * d, c * d) + damping * np.eye(c * d)


def minimum(x, y, total, start, damping):
    """The weights of least objective to rounding, by Newton steps from ``start``."""
    weights = start
    for _ in range(60):
        p = softmax(x @ weights.T)
        gradient = (p - np.eye(len(weights))[y]).T @ x / total + damping * weights
        if np.abs(gradient).max() < 1e-11:
            return weights
        step = np.linalg.solve(dense_hessian(x, p, total, damping), gradient.ravel())
        weights = weights - step.reshape(weights.shape)
    raise AssertionError("Newton's method did not converge")


def left_out(rows, x, y, weights, damping, asked, own):
    """How the losses change when one row is left out and the head is fitted anew.

    Returns:
        Changes [len(rows), q] of the losses of ``asked`` at labels ``own``, and [len(rows)] of the
        row's own loss.
    """
    before, own_before = losses_of(asked, own, weights), losses_of(x, y, weights)
    changes, own_changes = [], []
    for i in rows:
        kept = np.arange(len(x)) != i
        without = minimum(x[kept], y[kept], len(x), weights, damping)
        changes.append(losses_of(asked, own, without) - before)
        own_changes.append(losses_of(x, y, without)[i] - own_before[i])
    return np.array(changes), np.array(own_changes)


def compared(predicted, exact):
    """Pearson correlation and the slope of the exact values on the predicted ones."""
    predicted, exact = np.ravel(predicted).astype(np.float64), np.ravel(exact)
    return np.corrcoef(predicted, exact)[0, 1], np.polyfit(predicted, exact, 1)[0]
