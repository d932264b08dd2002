"""Ridge classifiers on several views of the same rows, out of fold, from one set of moments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.linalg import one_thread

_COLUMNS = 256  # features of all rows copied at a time
_ROWS = 1 << 13  # rows copied at a time

MOST_SCORES = 128
"""Classes up to which each has a score of its own; more are told apart in so many codes."""


class NormalEquations:
    """Normal equations of one-hot regression, by fold, and what is taken out of them.

    Attributes:
        phi: [r, p] float32, centred, in units of each feature's deviation.
        mean: [p] and
        scale: [p], with which ``phi = (given - mean) * scale``.
        gram: [p, p] ``phi^T phi``.
        labels: [r] dense.
        num_classes: c.
        num_folds: Folds.
        columns: [v, p] bool, the features of each view.
        is_coded: Whether there are k = 128 scores for more classes, else k is c.
    """

    def __init__(
        self,
        phi: HostArray,
        labels: HostArray,
        num_classes: int,
        fold: HostArray,
        columns: HostArray,
        ridge: float,
        again: Callable[[], HostArray] | None = None,
    ) -> None:
        """Centres and scales the features, in place, and adds up the moments of each fold.

        Args:
            phi: [r, p] float32.
            labels: [r] dense.
            num_classes: c.
            fold: [r] int.
            columns: [v, p] bool, the features of each view.
            ridge: Share of the mean diagonal added to the equations; (p / r)^2 of it where rows
                are fewer than features.
            again: Makes ``phi`` anew, so that it need not be held between uses; or None.
        """
        self.mean = phi.mean(axis=0)
        deviation = phi.std(axis=0)
        floor = 1e-3 * max(float(deviation.max()), 1e-30)
        self.scale = (1.0 / (deviation + floor)).astype(np.float32)
        self._phi: HostArray | None = self._scaled(phi)
        self._again = again
        self.labels, self.num_classes = labels, num_classes
        self._fold, self.columns = fold, columns
        # fewer rows than features could fit any labels, wrong ones too
        self._ridge = ridge * max(phi.shape[1] / max(len(phi), 1), 1.0) ** 2
        self.num_folds = int(fold.max()) + 1
        self.is_coded = num_classes > MOST_SCORES
        self._codes: HostArray | None = None
        self._full = [self._moments(np.flatnonzero(fold == k)) for k in range(self.num_folds)]
        self.gram: HostArray = np.sum([part[0][:-1, :-1] for part in self._full], axis=0)
        if self.is_coded:
            self._code()

    @property
    def phi(self) -> HostArray:
        """Features of the rows, made anew where they were let go."""
        if self._phi is None:
            assert self._again is not None
            self._phi = self._scaled(self._again())
        return self._phi

    def let_go(self) -> None:
        """Drops the features if they can be made anew: nothing here is as large."""
        if self._again is not None:
            self._phi = None

    def _scaled(self, phi: HostArray) -> HostArray:
        phi -= self.mean
        phi *= self.scale
        return phi

    @one_thread()
    def _moments(self, rows: HostArray) -> tuple[HostArray, HostArray]:
        """Gram [p + 1, p + 1] and targets [p + 1, c] of some rows, a constant 1 as last column."""
        phi = self._with_constant(rows)
        return phi.T @ phi, self._targets(phi, self.labels[rows])

    def _with_constant(self, rows: HostArray) -> HostArray:
        """Features of some rows [r, p + 1], copied once: they are as large as anything here."""
        out = np.ones((len(rows), self.phi.shape[1] + 1), np.float32)
        for i in range(0, len(rows), _ROWS):
            out[i : i + _ROWS, :-1] = self.phi[rows[i : i + _ROWS]]
        return out

    def _targets(self, phi: HostArray, labels: HostArray) -> HostArray:
        if self._codes is not None:
            return phi.T @ self._codes[labels]
        if self.is_coded:
            return np.zeros((phi.shape[1], 0), np.float32)  # the codes come from the grams
        return phi.T @ np.eye(self.num_classes, dtype=np.float32)[labels]

    @one_thread()
    def _code(self) -> None:
        """Codes [c, k] in place of a score a class: the class means' leading directions.

        With G the moments and ``B = D^(-1/2) Y^T Phi`` the class means by the root of their rows,
        the rows of ``D^(-1/2) V`` for the leading left vectors V of ``B G^(-1/2)``: the k best
        linear combinations of class indicators to be regressed on (Hastie et al., 1994, optimal
        scoring).
        """
        from scipy.linalg import cholesky, solve_triangular

        at = np.flatnonzero(self.columns[0])  # the whole input
        order = np.argsort(self.labels, kind="stable")
        counts = np.bincount(self.labels, minlength=self.num_classes)
        filled, root = counts > 0, np.sqrt(np.maximum(counts, 1))[:, None]
        means = np.zeros((self.num_classes, len(at)))
        first = (np.cumsum(counts) - counts)[filled]
        for i in range(0, len(at), _COLUMNS):
            some = self.phi[:, at[i : i + _COLUMNS]][order]
            means[filled, i : i + _COLUMNS] = np.add.reduceat(some, first, axis=0) / root[filled]
        gram = self.gram[np.ix_(at, at)].astype(np.float64)
        gram.flat[:: len(gram) + 1] += self._ridge * max(float(np.trace(gram)) / len(gram), 1e-12)
        lower = cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
        white = solve_triangular(lower, means.T, lower=True, check_finite=False)
        values, axes = np.linalg.eigh(white @ white.T)
        size = min(MOST_SCORES, len(at))
        lead = axes[:, ::-1][:, :size] / np.sqrt(np.maximum(values[::-1][:size], 1e-12))
        self._codes = ((white.T @ lead) / root).astype(np.float32) * np.sqrt(len(self.labels))
        for k in range(self.num_folds):
            rows = np.flatnonzero(self._fold == k)
            gram_k, _ = self._full[k]
            self._full[k] = gram_k, self._targets(self._with_constant(rows), self.labels[rows])

    def solve(self, left_out: HostArray) -> HostArray:
        """Weights [v, folds, p + 1, k] fitted to the other folds without some rows."""
        parts = []
        for k, (gram, target) in enumerate(self._full):
            rows = np.flatnonzero(left_out & (self._fold == k))
            less = self._moments(rows) if len(rows) else (0.0, 0.0)
            parts.append((gram - less[0], target - less[1]))
        gram = np.sum([p[0] for p in parts], axis=0)
        target = np.sum([p[1] for p in parts], axis=0)
        v, p = self.columns.shape
        out = np.zeros((v, self.num_folds, p + 1, target.shape[1]), np.float32)
        for i, columns in enumerate(self.columns):
            at = np.append(np.flatnonzero(columns), p)
            for k, part in enumerate(parts):
                kept = (gram - part[0])[np.ix_(at, at)]
                out[i, k, at] = _ridge(kept, (target - part[1])[at], self._ridge)
        return out

    @one_thread()
    def out_of_fold(self, weights: HostArray) -> HostArray:
        """Scores [v, r, k] of each row by the weights that never saw its fold."""
        v, _, _, c = weights.shape
        out = np.empty((v, len(self.phi), c), np.float32)
        for k in range(self.num_folds):
            every = np.flatnonzero(self._fold == k)
            for rows in np.split(every, range(_ROWS, len(every), _ROWS)):
                phi = self.phi[rows]
                for i, columns in enumerate(self.columns):
                    at = np.flatnonzero(columns)
                    out[i, rows] = phi[:, at] @ weights[i, k, at] + weights[i, k, -1]
        return out


@one_thread()
def _ridge(gram: HostArray, target: HostArray, share: float) -> HostArray:
    from scipy.linalg import cho_factor, cho_solve

    diagonal = max(float(np.trace(gram)) / len(gram), 1e-12)  # equal rows have none
    gram.flat[:: len(gram) + 1] += share * diagonal
    factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
    out: HostArray = cho_solve(factor, target, check_finite=False)
    return out
