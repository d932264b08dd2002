"""The driver of EK-FAC: passes over batches, eigenvectors on the host, the damped inverse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import Array, HostArray
from jaxpoison.kernels import (
    EKFACInverse,
    EKFACSums,
    Layer,
    LayerBasis,
    LowRank,
    ekfac_eigenvalues,
    ekfac_moments,
    plan_taps,
    sample_labels,
)
from jaxpoison.linalg.threads import one_thread

_RELATIVE_DAMPING = 0.1


@dataclass(frozen=True, eq=False)
class RowBatches:
    """Rows in batches of one shape, the last one filled up and masked; may be iterated again.

    Attributes:
        rows: Pytree of host arrays [n, ...].
        batch_size: Rows of a batch; changes only speed and memory.
    """

    rows: Any
    batch_size: int = 1024

    def __iter__(self) -> Iterator[tuple[Any, HostArray]]:
        """Batches of ``batch_size`` rows (n if that is less) and their masks."""
        num_rows = len(jax.tree.leaves(self.rows)[0])
        size = min(self.batch_size, max(num_rows, 1))
        for start in range(0, num_rows, size):
            count = min(size, num_rows - start)
            # filled with real rows, which are sure to be computable
            index = np.minimum(np.arange(start, start + size), num_rows - 1)
            batch = self.rows
            if count < num_rows:
                pick: Any = index if count < size else slice(start, start + size)
                batch = jax.tree.map(lambda x, pick=pick: x[pick], batch)
            yield batch, (np.arange(size) < count).astype(np.float32)


@dataclass(frozen=True, eq=False)
class EKFACFit:
    """Eigenbasis and second moments of the gradients in it, of every layer.

    Attributes:
        layers: What was tapped.
        basis: Eigenvectors of each layer, float32.
        eigenvalues: Lambda [i', o] of each layer, float64 on the host: mean over the rows of the
            squared gradient in the eigenbasis.
        rest: Mean square of the gradient in each leaf that no tap reaches.
        rest_names: Paths of these leaves.
        num_rows: n, the rows that were averaged over.
        num_not_finite: Rows left out of all means because a tap was not finite.
        coverage: How each leaf is reached, as ``TapPlan.coverage`` has it.
    """

    layers: tuple[Layer, ...]
    basis: tuple[LayerBasis, ...]
    eigenvalues: tuple[HostArray, ...]
    rest: tuple[HostArray, ...]
    rest_names: tuple[str, ...]
    num_rows: int
    num_not_finite: int
    coverage: dict[str, str]


class EKFACDamped(NamedTuple):
    """The inverse, and what it does with each part of the parameters.

    Attributes:
        inverse: For ``kernels.ekfac_self_influence`` and ``kernels.ekfac_influence``.
        damping: {layer or leaf: lambda}; 0 for what is left out.
        treatment: {path of a leaf: "EK-FAC", "diagonal", "left out", "no gradient" (Lambda is 0
            everywhere and no damping was given), "frozen" or "unused"}.
        rank_error: {layer: largest relative error of an entry of the low-rank weights}; empty
            without a rank. No self-influence is off by a larger share, and no pair's part by more
            than that share of the geometric mean of the two rows' self-influences.
    """

    inverse: EKFACInverse
    damping: dict[str, float]
    treatment: dict[str, str]
    rank_error: dict[str, float]


def fit_ekfac(
    loss_fn: Callable[..., Array],
    params: Any,
    batches: Iterable[tuple[Any, Any]],
    *,
    logits_fn: Callable[[Any, Any], Array] | None = None,
    key: Array | None = None,
    chunk: int | None = None,
    trainable: Any = None,
) -> EKFACFit:
    """Fits EK-FAC in two passes: second moments and their eigenvectors, then Lambda.

    Args:
        loss_fn: See ``kernels.ekfac_moments``.
        params: Pytree of floating arrays.
        batches: Of (batch, mask or None), iterable twice with the same content, all of one shape;
            ``RowBatches`` makes them from arrays.
        logits_fn: None takes the labels as they are (the empirical Fisher matrix). Else the
            batches are tuples (inputs, labels, ...), and the labels are drawn from
            ``softmax(logits_fn(params, inputs))``; static.
        key: Typed key of the drawn labels, by row number; needed with logits_fn.
        chunk: Rows whose taps are held at a time.
        trainable: See ``kernels.plan_taps``.

    Returns:
        Basis, Lambda and what they cover.

    Raises:
        UsageError: logits_fn without a key, a key without it, batches that run out.
        DataError: No row at all with finite taps.

    **Cost**: two passes; ``ekfac_moments`` and ``ekfac_eigenvalues`` of each batch, then about
    9 (i'^3 + o^3) flop a layer on one host thread. Batches are summed on the host in float64.
    **Assumes / fails on**: eigenvectors of (nearly) equal eigenvalues are any basis of their
    space, and Lambda depends on which.

    Reference: George et al., 2018, arXiv:1806.03884; Grosse et al., 2023, arXiv:2308.03296.
    """
    if (logits_fn is None) != (key is None):
        raise UsageError("labels are drawn with both logits_fn and key, or not at all: give both")
    if iter(batches) is batches:
        raise UsageError("batches must be iterable twice, such as a list or RowBatches")

    drawn = partial(_drawn, params, batches, logits_fn, key)
    knobs: Any = {"chunk": chunk, "trainable": trainable}
    sums = _total(ekfac_moments(loss_fn, params, b, m, **knobs) for b, m in drawn())
    num_rows, lost = int(sums.num_rows), int(sums.num_not_finite)
    if num_rows == 0:
        raise DataError(f"no row has a finite loss and gradient ({lost} have not)")
    basis = tuple(
        LayerBasis(None if a is None else _eigenvectors(a), _eigenvectors(d))
        for a, d in sums.layers
    )
    total = _total(
        ekfac_eigenvalues(loss_fn, params, b, m, basis=basis, **knobs) for b, m in drawn()
    )
    if int(total.num_rows) != num_rows:
        raise UsageError(
            f"batches gave {num_rows} rows, then {int(total.num_rows)}: they must be iterable "
            "twice with the same content"
        )
    batch, _ = next(iter(batches))
    plan = plan_taps(loss_fn, params, batch, trainable=trainable)
    layers, rest = jax.tree.map(lambda x: x / num_rows, (total.layers, total.rest))
    return EKFACFit(
        plan.layers,
        basis,
        layers,
        rest,
        tuple(plan.names[n] for n in plan.rest),
        num_rows,
        lost,
        dict(plan.coverage),
    )


def invert_ekfac(
    fit: EKFACFit,
    *,
    damping: float | None = None,
    rank: int | None = None,
    rest: Literal["diagonal", "left out"] = "diagonal",
) -> EKFACDamped:
    """``1 / (Lambda + lambda)`` of each layer, in full or of low rank.

    Args:
        fit: From ``fit_ekfac``.
        damping: lambda > 0 in units of Lambda, the squared gradient of one row's loss, for all
            layers; None takes a tenth of each layer's mean Lambda.
        rank: Terms kept of the singular value decomposition of the weights of layers with T = 1,
            for ``ekfac_influence`` at 2 rank (i' + o) flop a pair; None keeps all of it.
        rest: What to do with leaves that no tap reaches: the diagonal of their Fisher matrix, or
            nothing.

    Returns:
        The inverse, and a report of damping, treatment and truncation.

    Raises:
        UsageError: damping that is not a positive number, a rank below 1, an unknown rest.

    **Cost**: one pass over Lambda; with a rank a decomposition of each [i', o].
    """
    if damping is not None and not 0 < damping < float("inf"):
        raise UsageError(f"damping must be a positive finite number, got {damping}")
    if rank is not None and rank < 1:
        raise UsageError(f"rank must be at least 1, got {rank}")
    if rest not in ("diagonal", "left out"):
        raise UsageError(f'rest must be "diagonal" or "left out", got {rest!r}')
    used: dict[str, float] = {}
    errors: dict[str, float] = {}
    weights: list[Any] = []
    for layer, values in zip(fit.layers, fit.eigenvalues, strict=True):
        full, used[layer.name] = _damped(values, damping)
        weight: Any = full.astype(np.float32)
        if rank is not None and layer.num_positions == 1 and rank < min(full.shape):
            weight, errors[layer.name] = _low_rank(full, rank)
        weights.append(weight)
    others: list[Any] = []
    for name, values in zip(fit.rest_names, fit.rest, strict=True):
        used[name] = 0.0
        if rest == "left out":
            others.append(None)
            continue
        full, used[name] = _damped(values, damping)
        others.append(full.astype(np.float32))
    inverse = EKFACInverse(fit.basis, tuple(weights), tuple(others), float(fit.num_rows))
    return EKFACDamped(jax.device_put(inverse), used, _treatment(fit, used, rest), errors)


def _drawn(
    params: Any,
    batches: Iterable[tuple[Any, Any]],
    logits_fn: Callable[[Any, Any], Array] | None,
    key: Array | None,
) -> Iterator[tuple[Any, Any]]:
    """The batches, with labels drawn from the model's probabilities if it has a ``logits_fn``."""
    if logits_fn is None:
        yield from batches
        return
    first = 0
    for (inputs, _, *others), mask in batches:
        labels = sample_labels(params, inputs, key, logits_fn=logits_fn, first_row=first)
        first += len(labels)
        yield (inputs, labels, *others), mask


def _treatment(fit: EKFACFit, damping: dict[str, float], rest: str) -> dict[str, str]:
    names = {n: name for n, name in enumerate(fit.coverage)}
    out = {}
    for name, how in fit.coverage.items():
        out[name] = {"vmap(grad)": rest, "frozen": how, "unused": how}.get(how, "EK-FAC")
    for layer in fit.layers:
        if damping[layer.name] == 0:
            out[layer.name] = "no gradient"
            if layer.bias is not None:
                out[names[layer.bias]] = "no gradient"
    for name in fit.rest_names:
        if rest == "diagonal" and damping[name] == 0:
            out[name] = "no gradient"
    return out


def _damped(values: HostArray, damping: float | None) -> tuple[HostArray, float]:
    """Weights, and the damping used: 0 and no weight where no row had any gradient."""
    amount = _RELATIVE_DAMPING * float(values.mean()) if damping is None else float(damping)
    if amount == 0:
        return np.zeros_like(values), 0.0
    return 1.0 / (values + amount), amount


@one_thread()
def _low_rank(weights: HostArray, rank: int) -> tuple[LowRank, float]:
    left, values, right = np.linalg.svd(weights, full_matrices=False)
    root = np.sqrt(values[:rank])
    factors = LowRank(
        jax.numpy.asarray((left[:, :rank] * root).T, np.float32),
        jax.numpy.asarray(right[:rank] * root[:, None], np.float32),
    )
    kept = (left[:, :rank] * values[:rank]) @ right[:rank]
    positive = np.where(weights > 0, weights, 1.0)
    return factors, float(np.max(np.abs(weights - kept) / positive))


@one_thread()
def _eigenvectors(moment: HostArray) -> Array:
    _, vectors = np.linalg.eigh((moment + moment.T) / 2)
    return jax.numpy.asarray(vectors, np.float32)


def _total(parts: Iterable[EKFACSums]) -> EKFACSums:
    """Sum of the sums of batches in float64."""
    total: Any = None
    for part in parts:
        host = jax.tree.map(lambda x: np.asarray(x, np.float64), part)
        total = host if total is None else jax.tree.map(np.add, total, host)
    if total is None:
        raise UsageError("batches are empty")
    out: EKFACSums = total
    return out
