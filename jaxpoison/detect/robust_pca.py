"""Low rank plus sparse: what is left of a row beyond the subspace of its class."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison._types import Array, Block, HostArray, Scores
from jaxpoison.detect._detector import Key, empty_scores, host_rng
from jaxpoison.detect.density import upper_tail
from jaxpoison.detect.neighbours import gathered
from jaxpoison.linalg import one_thread
from jaxpoison.stream import Stream

_EXACT = jax.lax.Precision.HIGHEST
_FULL = 96  # up to this smaller side a full decomposition is cheaper than a partial one
_GROWTH = 1.2  # of the penalty a step; at 1.5 it ends 1e-4 above the optimum, here 1e-8
_OVERSAMPLE = 8
_LEAST_RATIO = 4  # features a direction: a subspace of all features leaves no rest
_STEPS = 8  # of the iterated soft threshold
_SAMPLE_FLOATS = 1 << 27  # of the fitted rows of all classes
_FLOOR = 1e-2  # of the class's mean energy


class LowRankSparse(NamedTuple):
    """A matrix taken apart.

    Attributes:
        low_rank: [m, d] L.
        sparse: [m, d] S.
        rank: Of L.
        steps: Iterations.
        residual: ``|D - L - S| / |D|``, Frobenius.
    """

    low_rank: HostArray
    sparse: HostArray
    rank: int
    steps: int
    residual: float


@one_thread()
def principal_component_pursuit(
    x: HostArray,
    *,
    max_rank: int | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 100,
) -> LowRankSparse:
    """Minimises ``|L|_* + |S|_1 / sqrt(max(m, d))`` with ``L + S = x``, by the inexact ALM.

    Args:
        x: [m, d], finite.
        max_rank: Singular vectors kept in a step, or None for all that pass the threshold.
        tolerance: Relative residual at which it stops.
        max_steps: Iterations at the most.

    Returns:
        The two parts. A matrix of zeros is two matrices of zeros.

    **Cost**: about 40 partial singular value decompositions: the range of the last step, enlarged
    and moved by one power step, is where the next one looks; 6 m d k FLOP each.

    **Assumes / fails on**: columns and rows of L are spread out, S is sparse without a pattern.

    Reference: Candes, Li, Ma, Wright, 2011, arXiv:0912.3599; Lin, Chen, Ma, 2010, arXiv:1009.5055.
    """
    weight = 1.0 / np.sqrt(max(x.shape))
    norm = float(np.linalg.norm(x))
    if norm == 0:
        return LowRankSparse(np.zeros_like(x), np.zeros_like(x), 0, 0, 0.0)
    most = min(x.shape) if max_rank is None else min(max_rank, *x.shape)
    top = float(_leading(x, 1, None)[1][0])
    dual = x / max(top, float(np.abs(x).max()) / weight)
    penalty, ceiling = 1.25 / top, 1.25e7 / top
    sparse, rank, basis = np.zeros_like(x), 1, None
    steps, residual, low_rank = 0, 1.0, sparse
    while steps < max_steps and residual >= tolerance:
        target = x - sparse + dual / penalty
        left, values, basis = _above(target, 1.0 / penalty, min(rank + 1, most), most, basis)
        rank = len(values)
        low_rank = (left * values) @ basis
        rest = x - low_rank + dual / penalty
        sparse = np.sign(rest) * np.maximum(np.abs(rest) - weight / penalty, 0.0)
        gap = x - low_rank - sparse
        dual = dual + penalty * gap
        residual = float(np.linalg.norm(gap)) / norm
        penalty = min(penalty * _GROWTH, ceiling)
        steps += 1
    return LowRankSparse(low_rank, sparse, rank, steps, residual)


def _above(
    x: HostArray, threshold: float, guess: int, most: int, basis: HostArray | None
) -> tuple[HostArray, HostArray, HostArray]:
    """Singular triplets above a threshold, at most so many, their values less the threshold."""
    while True:
        left, values, right = _leading(x, guess, basis)
        kept = int((values > threshold).sum())
        if kept < guess or guess >= most or min(x.shape) <= _FULL:
            kept = min(kept, most)
            return left[:, :kept], values[:kept] - threshold, right[:kept]
        guess, basis = min(2 * guess, most), right


def _leading(
    x: HostArray, rank: int, basis: HostArray | None
) -> tuple[HostArray, HostArray, HostArray]:
    """Leading singular triplets; ``basis`` [r, d] is where to begin."""
    if min(x.shape) <= _FULL:
        left, values, right = np.linalg.svd(x, full_matrices=False)
        return left, values, right
    size = min(rank + _OVERSAMPLE, *x.shape)
    start = np.random.default_rng(0).standard_normal((size, x.shape[1])).astype(x.dtype)
    if basis is not None and len(basis):
        start[: min(len(basis), size)] = np.sqrt(x.shape[1]) * basis[:size]
    image = np.linalg.qr(x @ start.T)[0]
    image = np.linalg.qr(x @ (x.T @ image))[0]
    left, values, right = np.linalg.svd(image.T @ x, full_matrices=False)
    return (image @ left)[:, :rank], values[:rank], right[:rank]


class RobustPCAInfo(NamedTuple):
    """The split of each class.

    Attributes:
        rank: [c] of the low-rank part, 0 where a class was skipped.
        residual: [c] relative residual at the end of the pursuit.
        threshold: [c] size from which an entry counts as sparse.
        num_features: Inputs that were looked at.
    """

    rank: HostArray
    residual: HostArray
    threshold: HostArray
    num_features: int


@dataclass(frozen=True)
class RobustPCA:
    """Energy of a row's sparse part beyond the low-rank part of its class.

    The subspace V of a class is that of L in ``L + S``, the principal component pursuit of some of
    its rows about their median. For every row z (about the same median)
    ``min_{w, s} |z - V^T w - s|^2 / 2 + tau |s|_1`` by alternating ``w = V (z - s)`` and
    ``s = soft(z - V^T w, tau)``; tau is the share ``quantile`` of the entries of S. The score is
    ``log(|s|^2 / median)``. Inputs are used as they are: a patch is sparse in pixels, not in
    rotated coordinates.

    Attributes:
        num_fitted: Rows of a class that give its subspace.
        max_rank: Of the low-rank part.
        num_features: Inputs looked at; a fixed draw where there are more, which keeps sparsity.
        quantile: Share of the fitted entries below tau.
        min_rows: Smaller classes are skipped.

    **Cost**: a pursuit of num_fitted x d a class on the host; one pass of 8 steps of 4 n d k FLOP.

    **Assumes / fails on**: what is planted is sparse and in few rows: many rows with one patch are
    a low-rank part themselves, and are learnt. Blends and rotated features are not sparse. Inputs
    that are sparse anyway (textures, counts) hide it.

    Reference: Candes, Li, Ma, Wright, 2011, arXiv:0912.3599.
    """

    num_fitted: int = 400
    max_rank: int = 24
    num_features: int = 1024
    quantile: float = 0.8
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the class statistic is the upper tail of its scores (``upper_tail``)."""
        values, statistic, null = empty_scores(stream)
        judged = np.flatnonzero(stream.counts >= max(self.min_rows, 2))
        rank, residual = np.zeros(len(statistic), np.int64), np.full_like(statistic, np.nan)
        threshold = np.zeros(len(statistic), np.float32)
        if not judged.size:
            info = RobustPCAInfo(rank, residual, threshold, 0)
            return Scores(values, statistic, null, None, info)
        rng = host_rng(key)
        x, parts, used = self._sampled(stream, judged, rng)
        centre = np.zeros((len(statistic), len(used)), np.float32)
        most = max(min(self.max_rank, len(used) // _LEAST_RATIO), 1)
        basis = np.zeros((len(statistic), most, len(used)), np.float32)
        for c, part in zip(judged, parts, strict=True):
            centre[c] = np.median(x[part], axis=0)
            split = principal_component_pursuit(
                x[part] - centre[c], max_rank=most, tolerance=1e-4, max_steps=60
            )
            rank[c], residual[c] = split.rank, split.residual
            if rank[c]:
                basis[c, : rank[c]] = _leading(split.low_rank, int(rank[c]), None)[2][: rank[c]]
            threshold[c] = np.quantile(np.abs(split.sparse), self.quantile)
        energy = stream.map(_energy, centre, basis, threshold, used.astype(np.int32))
        for c in judged:
            mine = stream.labels == c
            values[mine] = _relative(energy[mine])
            statistic[c] = upper_tail(values[mine])
        info = RobustPCAInfo(rank, residual, threshold, len(used))
        return Scores(values, statistic, null, None, info)

    def _sampled(
        self, stream: Stream, judged: HostArray, rng: np.random.Generator
    ) -> tuple[HostArray, list[slice], HostArray]:
        """Rows of every class [r, d], where each class's are, and which inputs they show."""
        d = int(np.prod(gathered(stream, np.zeros(1, np.int64)).shape[1:]))
        used = np.sort(np.random.default_rng(0).permutation(d)[: self.num_features])
        most = max(min(self.num_fitted, _SAMPLE_FLOATS // (len(judged) * d)), 32)
        rows = [np.sort(rng.permutation(np.flatnonzero(stream.labels == c))[:most]) for c in judged]
        edges = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
        x = gathered(stream, np.concatenate(rows))[:, used]
        return x, [slice(a, b) for a, b in pairwise(edges)], used


def _relative(energy: HostArray) -> HostArray:
    floor = _FLOOR * float(energy.mean())
    if floor <= 0:
        return np.zeros(len(energy), np.float32)
    out: HostArray = np.log((energy + floor) / (np.median(energy) + floor))
    return out


def _energy(block: Block, centre: Array, basis: Array, threshold: Array, used: Array) -> Array:
    """Squared norm of the sparse part of each row."""

    def of_tile(inputs: tuple[Array, Array]) -> Array:
        x, label = inputs
        z = x.reshape(len(x), -1).astype(jnp.float32)[:, used] - centre[label]
        axes, least = basis[label], threshold[label]

        def step(_: Array, sparse: Array) -> Array:
            w = jnp.matmul(z - sparse, axes.T, precision=_EXACT)
            rest = z - jnp.matmul(w, axes, precision=_EXACT)
            return jnp.sign(rest) * jnp.maximum(jnp.abs(rest) - least, 0.0)

        sparse = jax.lax.fori_loop(0, _STEPS, step, jnp.zeros_like(z))
        return jnp.sum(sparse**2, axis=1)

    out: Array = jax.lax.map(of_tile, (block.x, block.label))
    return out
