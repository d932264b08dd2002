"""Kernels of softmax heads, of linear operators and their inverses."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpoison import kernels
from jaxpoison.bench._case import CLASSES, NEVER, STEPS, Builder, Size, Work, drawn, normal, table

_HIGHEST = jax.lax.Precision.HIGHEST
_DAMPING = 1e-2
_SAMPLES = 4  # operators that LiSSA draws from
_POWER_STEPS = 20
_HALVINGS = 12
_MOST_PRODUCTS = 200  # of a Newton step


def gram_products(x: Any, vectors: Any) -> Array:
    """``X^T X v / n`` of each row of vectors, in float32 at the highest precision."""
    inner = jnp.matmul(vectors, x.T, precision=_HIGHEST) / len(x)
    return jnp.matmul(inner, x, precision=_HIGHEST)


def _conjugate_gradients(size: Size) -> Work:
    x, _, _ = table(size)
    b = normal(0, size.vectors, x.shape[1])
    call = partial(
        kernels.conjugate_gradients, gram_products, damping=_DAMPING, tolerance=NEVER,
        max_steps=STEPS,
    )  # fmt: skip
    products = STEPS + 1  # the last one is for the true residual
    flops = products * 4.0 * x.size * len(b)
    return Work(call, (x, b), len(x), flops, products * x.nbytes, (1, STEPS))


def _largest_eigenvalue(size: Size) -> Work:
    x, _, _ = table(size)
    call = partial(_power, size=x.shape[1])
    flops = _POWER_STEPS * 4.0 * x.size
    return Work(call, (x, jax.random.key(0)), len(x), flops, _POWER_STEPS * x.nbytes)


def _power(x: Any, key: Any, *, size: int) -> Array:
    out: Array = kernels.largest_eigenvalue(
        gram_products, x, size=size, num_steps=_POWER_STEPS, key=key
    )
    return out


def _basis_of(find: Any, size: Size) -> Work:
    x, _, _ = table(size)
    d = x.shape[1]
    k = min(size.krylov, d)

    def call(x: Any, start: Any, key: Any) -> Any:
        return find(gram_products, x, start, num_vectors=k, key=key)

    flops = k * 4.0 * x.size + 8 * k**2 * d
    return Work(call, (x, normal(0, d), jax.random.key(0)), len(x), flops, k * x.nbytes)


def _lissa(size: Size) -> Work:
    x, _, _ = table(size)
    rows = len(x) // _SAMPLES
    samples = x[: rows * _SAMPLES].reshape(_SAMPLES, rows, -1)
    b = normal(0, size.vectors, x.shape[1])

    def call(samples: Any, b: Any, key: Any) -> Any:
        return kernels.lissa(
            gram_products, samples, b, damping=_DAMPING, num_steps=_POWER_STEPS, key=key
        )

    each = samples[0]
    products = _POWER_STEPS * _SAMPLES + len(b) * (_POWER_STEPS + _SAMPLES)
    reads = _POWER_STEPS * _SAMPLES + _POWER_STEPS + _SAMPLES
    flops = products * 4.0 * each.size
    return Work(call, (samples, b, jax.random.key(0)), len(x), flops, reads * each.nbytes)


def _low_rank_inverse(size: Size) -> Work:
    m, p, q = size.krylov, size.flat, size.vectors
    vectors = normal(0, min(m, p), p, scale=p**-0.5)  # nearly orthonormal
    args = (np.linspace(1, 2, len(vectors), dtype=np.float32), vectors, normal(1, q, p))
    call = partial(kernels.low_rank_inverse, damping=_DAMPING)
    return Work(call, args, q, 4.0 * len(vectors) * p * q)


def _low_rank_influence(size: Size) -> Work:
    m, n, q = size.krylov, size.table.rows, size.others
    args = (normal(0, m, q), normal(1, m, n), normal(2, q, n), np.ones(m, np.float32))
    call = partial(kernels.low_rank_influence, num_rows=n, damping=_DAMPING)
    return Work(call, args, n, 2.0 * m * q * n)


def _low_rank_self_influence(size: Size) -> Work:
    m, n = size.krylov, size.table.rows
    args = (normal(0, m, n), np.full(n, 2 * m, np.float32), np.ones(m, np.float32))
    call = partial(kernels.low_rank_self_influence, num_rows=n, damping=_DAMPING)
    return Work(call, args, n, 3.0 * m * n)


class _Head:
    """A softmax head on the rows of a size: n rows, d features, c classes."""

    def __init__(self, size: Size) -> None:
        x, label, _ = drawn(size.head)
        self.x: Any = x
        self.labels: Any = label.astype(np.int32)
        self.n, self.d = x.shape
        self.c = CLASSES
        self.mask: Any = np.ones(self.n, np.float32)
        self.weights = normal(0, self.c, self.d, scale=0.1)
        self.size = float(self.n * self.d * self.c)

    def residuals(self) -> Any:
        """``p - y`` of the rows, [n, c]."""
        return np.asarray(kernels.softmax_errors(self.x @ self.weights.T, self.labels))


def _softmax_hessian_products(size: Size) -> Work:
    head, q = _Head(size), size.vectors
    p = np.full((head.n, head.c), 1 / head.c, np.float32)
    weight = np.full(head.n, 1 / head.n, np.float32)
    args = (head.x, p, weight, normal(1, q, head.c, head.d))
    return Work(kernels.softmax_hessian_products, args, head.n, 4 * head.size * q)


def _fit_softmax_head(size: Size) -> Work:
    """One Newton step from zero; how many products its solve takes, the same solve alone tells."""
    head = _Head(size)
    zero: Any = np.zeros((head.c, head.d), np.float32)
    gradient = (1 / head.c - np.eye(head.c, dtype=np.float32)[head.labels]).T @ head.x / head.n
    exact = min(1e-2, float(np.linalg.norm(gradient)))
    found = kernels.solve_head(
        head.x, head.mask, zero, gradient[None], damping=_DAMPING, tolerance=exact,
        max_steps=_MOST_PRODUCTS,
    )  # fmt: skip
    steps = int(found.steps[0])
    call = partial(
        kernels.fit_softmax_head, num_classes=head.c, damping=_DAMPING, tolerance=NEVER,
        max_steps=1,
    )  # fmt: skip
    # beside the solve: three times the logits and twice the gradient
    flops = (4 * (steps + 1) + 10) * head.size + _HALVINGS * 6 * head.n * head.c
    traffic = (steps + 6) * head.x.nbytes
    return Work(call, (head.x, head.labels, head.mask), head.n, flops, traffic, (1, 1, steps))


def _head_gradients(size: Size) -> Work:
    head = _Head(size)
    args = (head.x, head.labels, head.weights)
    return Work(kernels.head_gradients, args, head.n, 3 * head.size)


def _solve_head(size: Size) -> Work:
    head, q = _Head(size), size.vectors
    call = partial(kernels.solve_head, damping=_DAMPING, tolerance=NEVER, max_steps=STEPS)
    args = (head.x, head.mask, head.weights, normal(1, q, head.c, head.d))
    flops = (2 + (STEPS + 1) * 4 * q) * head.size
    return Work(call, args, head.n, flops, (STEPS + 2) * head.x.nbytes, (1, STEPS))


def _head_influence(size: Size) -> Work:
    head, q = _Head(size), size.others
    solutions = normal(1, q, head.c * head.d)
    args = (head.x, head.mask, head.weights, head.residuals(), solutions)
    return Work(kernels.head_influence, args, head.n, 2 * head.size * q)


def _head_loss_influence(size: Size) -> Work:
    head, q = _Head(size), size.vectors
    call = partial(kernels.head_loss_influence, damping=_DAMPING, tolerance=NEVER, max_steps=STEPS)
    args = (
        head.x, head.mask, head.weights, head.residuals(), head.x[:q], head.labels[:q],
    )  # fmt: skip
    solves = q * (head.c - 1)
    flops = (2 + solves * (4 * (STEPS + 1) + 2)) * head.size
    return Work(call, args, head.n, flops, (STEPS + 3) * head.x.nbytes, (1, STEPS))


def _head_self_influence(size: Size) -> Work:
    head = _Head(size)
    n, c, d = head.n, head.c, head.d
    call = partial(kernels.head_self_influence, damping=_DAMPING)
    each = 2.0 * c**2 * d**2 + 2 * c**3 * d + 2 * c**3  # U through L^-1, M, its solve
    flops = n * (each + c * (c + 1) * d**2) + 4 / 3 * (c * d) ** 3  # each pair of classes once
    return Work(call, (head.x, head.labels, head.mask, head.weights), n, flops)


def _logits(size: Size) -> tuple[Any, Any, Any]:
    """Features [n, d], logits [n, c] and labels [n] of the table."""
    x, labels, _ = table(size)
    return x, normal(1, len(x), size.table.classes), labels


def _el2n(size: Size) -> Work:
    _, logits, labels = _logits(size)
    return Work(kernels.el2n, (logits, labels), len(logits))


def _grand_last_layer(size: Size) -> Work:
    x, logits, labels = _logits(size)
    return Work(kernels.grand_last_layer, (x, logits, labels), len(x))


def _softmax_errors(size: Size) -> Work:
    _, logits, labels = _logits(size)
    return Work(kernels.softmax_errors, (logits, labels), len(logits))


def _tracin_last_layer(size: Size) -> Work:
    x, errors, _ = _logits(size)
    m = size.others
    args = (x, errors, x[:m], errors[:m])
    flops = 2.0 * len(x) * m * (x.shape[1] + errors.shape[1])
    return Work(kernels.tracin_last_layer, args, len(x), flops)


CASES: dict[str, Builder] = {
    "softmax_errors": _softmax_errors,
    "el2n": _el2n,
    "grand_last_layer": _grand_last_layer,
    "tracin_last_layer": _tracin_last_layer,
    "head_gradients": _head_gradients,
    "softmax_hessian_products": _softmax_hessian_products,
    "fit_softmax_head": _fit_softmax_head,
    "solve_head": _solve_head,
    "head_influence": _head_influence,
    "head_loss_influence": _head_loss_influence,
    "head_self_influence": _head_self_influence,
    "conjugate_gradients": _conjugate_gradients,
    "lissa": _lissa,
    "largest_eigenvalue": _largest_eigenvalue,
    "arnoldi": partial(_basis_of, kernels.arnoldi),
    "lanczos": partial(_basis_of, kernels.lanczos),
    "low_rank_inverse": _low_rank_inverse,
    "low_rank_influence": _low_rank_influence,
    "low_rank_self_influence": _low_rank_self_influence,
}
"""Of softmax heads, of operators and of their inverses."""
