"""Kernels of the gradients of a network: taps, norms, products, EK-FAC, Hessian products."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpoison import kernels
from jaxpoison.bench._case import NEVER, STEPS, Builder, Size, Work, normal

_HIGHEST = jax.lax.Precision.HIGHEST
_RATES = (0.1, 0.05)  # of two checkpoints
_DAMPING = 1e-2
_PICTURE = (32, 32, 16)  # height, width, channels


def logits_fn(params: Any, x: Any) -> Array:
    """A network of two layers, its products in float32 at the highest precision."""
    hidden = jax.nn.relu(jnp.matmul(x, params["w"], precision=_HIGHEST) + params["b"])
    out: Array = jnp.matmul(hidden, params["v"], precision=_HIGHEST) + params["c"]
    return out


def loss_fn(params: Any, x: Any, y: Any) -> Array:
    """Cross-entropy of each row."""
    log_p = jax.nn.log_softmax(logits_fn(params, x))
    return -jnp.sum(jax.nn.one_hot(y, log_p.shape[-1]) * log_p, axis=-1)


class _Net:
    """The network of a size, and the cost of one row in each of its parts."""

    def __init__(self, size: Size) -> None:
        i, h, c = size.widths
        self.params = {
            "w": normal(0, i, h, scale=i**-0.5), "b": normal(1, h, scale=0.1),
            "v": normal(2, h, c, scale=h**-0.5), "c": normal(3, c, scale=0.1),
        }  # fmt: skip
        self.size = size
        self.forward = 2 * (i * h + h * c)
        self.taps = self.forward + 2 * h * c  # only the head's inputs need a gradient
        self.norms = 2 * (i + h) + 2 * (h + c) + 2 * (h + c)  # weights, then biases
        self.formed = self.forward
        self.dot = self.norms  # of a pair of rows
        wide = ((i + 1, h), (h + 1, c))
        self.moments = sum(2 * (a * a + d * d) for a, d in wide)
        self.squares = sum(2 * a * d for a, d in wide)
        # of a row and vector: each layer's products with its weights, their tangents, transposed
        self.hessian = 4 * i * h + 12 * h * c
        self.gauss_newton = 4 * i * h + 8 * h * c
        self.tangent = 2 * i * h + 4 * h * c
        self.gradient = 4 * i * h + 6 * h * c

    def batch(self, rows: int, seed: int = 7) -> tuple[Any, Any]:
        """Inputs and labels of so many rows."""
        i, _, c = self.size.widths
        labels = np.random.default_rng(seed).integers(0, c, rows).astype(np.int32)
        return normal(seed, rows, i), labels


def _gradient_norms(size: Size) -> Work:
    net, b = _Net(size), size.batch
    call = partial(kernels.gradient_norms, loss_fn)
    return Work(call, (net.params, net.batch(b)), b, b * (net.taps + net.norms))


def _collect_taps(size: Size) -> Work:
    net, b = _Net(size), size.batch
    call = partial(kernels.collect_taps, loss_fn)
    return Work(call, (net.params, net.batch(b)), b, b * net.taps)


def _taps(net: _Net, rows: int, seed: int = 7) -> Any:
    return kernels.collect_taps(loss_fn, net.params, net.batch(rows, seed))


def _picture_loss(params: Any, x: Any) -> Array:
    """A convolution alone, for its patches."""
    y = jax.lax.conv_general_dilated(
        x, params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.sum(y, axis=(1, 2, 3))


def _tap_inputs(size: Size) -> Work:
    b = max(size.batch // 16, 1)
    pictures = normal(0, b, *_PICTURE)
    weight = normal(1, 3, 3, _PICTURE[-1], 2)
    (tap,) = kernels.collect_taps(_picture_loss, weight, pictures).layers
    return Work(kernels.tap_inputs, (tap,), b, 0.0)


def _layer_squared_norms(size: Size) -> Work:
    net, b = _Net(size), size.batch
    return Work(kernels.layer_squared_norms, (_taps(net, b),), b, b * net.norms)


def _per_sample_gradients(size: Size) -> Work:
    net, b = _Net(size), size.formed
    call = partial(kernels.per_sample_gradients, loss_fn)
    return Work(call, (net.params, net.batch(b)), b, b * (net.taps + net.formed))


def _gradients_of(size: Size) -> Work:
    net, b = _Net(size), size.formed
    return Work(kernels.gradients_of, (_taps(net, b), net.params), b, b * net.formed)


def _taps_dot(size: Size) -> Work:
    net, n, m = _Net(size), size.batch, size.others
    return Work(kernels.taps_dot, (_taps(net, n), _taps(net, m, 8)), n, n * m * net.dot)


def _grad_dot(size: Size) -> Work:
    net, n, m = _Net(size), size.batch, size.others
    call = partial(kernels.grad_dot, loss_fn)
    flops = (n + m) * net.taps + n * m * net.dot
    return Work(call, (net.params, net.batch(n), net.batch(m, 8)), n, flops)


def _tracin(size: Size) -> Work:
    net, n, m = _Net(size), size.batch, size.others
    call = partial(kernels.tracin, loss_fn, learning_rates=_RATES)
    flops = len(_RATES) * ((n + m) * net.taps + n * m * net.dot)
    args = ((net.params,) * len(_RATES), net.batch(n), net.batch(m, 8))
    return Work(call, args, n, flops)


def _tracin_self(size: Size) -> Work:
    net, b = _Net(size), size.batch
    call = partial(kernels.tracin_self, loss_fn, learning_rates=_RATES)
    args = ((net.params,) * len(_RATES), net.batch(b))
    return Work(call, args, b, len(_RATES) * b * (net.taps + net.norms))


def _basis(size: Size) -> tuple[Any, ...]:
    """Random orthonormal vectors in the place of eigenvectors."""
    i, h, c = size.widths

    def turned(n: int) -> Any:
        return np.linalg.qr(normal(n, n, n))[0]

    return tuple(kernels.LayerBasis(turned(a + 1), turned(d)) for a, d in ((i, h), (h, c)))


def _inverse(size: Size) -> Any:
    i, h, c = size.widths
    weights: Any = tuple(np.ones((a + 1, d), np.float32) for a, d in ((i, h), (h, c)))
    rows: Any = np.float32(size.batch)
    return kernels.EKFACInverse(_basis(size), weights, (), rows)


def _ekfac_moments(size: Size) -> Work:
    net, b = _Net(size), size.batch
    call = partial(kernels.ekfac_moments, loss_fn)
    return Work(call, (net.params, net.batch(b)), b, b * (net.taps + net.moments))


def _ekfac_eigenvalues(size: Size) -> Work:
    net, b = _Net(size), size.batch

    def call(params: Any, batch: Any, basis: Any) -> Any:
        return kernels.ekfac_eigenvalues(loss_fn, params, batch, basis=basis)

    flops = b * (net.taps + net.moments + net.squares)
    return Work(call, (net.params, net.batch(b), _basis(size)), b, flops)


def _ekfac_self_influence(size: Size) -> Work:
    net, b = _Net(size), size.batch

    def call(params: Any, batch: Any, inverse: Any) -> Any:
        return kernels.ekfac_self_influence(loss_fn, params, batch, inverse=inverse)

    flops = b * (net.taps + net.moments + net.squares)
    return Work(call, (net.params, net.batch(b), _inverse(size)), b, flops)


def _ekfac_influence(size: Size) -> Work:
    net, n, q = _Net(size), size.batch, size.others

    def call(params: Any, batch: Any, queries: Any, inverse: Any) -> Any:
        return kernels.ekfac_influence(loss_fn, params, batch, queries, inverse=inverse)

    flops = (n + q) * (net.taps + net.moments) + float(n) * q * net.squares
    args = (net.params, net.batch(n), net.batch(q, 8), _inverse(size))
    return Work(call, args, n, flops)


def _sample_labels(size: Size) -> Work:
    net, b = _Net(size), size.batch
    call = partial(kernels.sample_labels, logits_fn=logits_fn)
    return Work(call, (net.params, net.batch(b)[0], jax.random.key(0)), b, b * net.forward)


def _vectors(size: Size) -> Any:
    return normal(9, size.vectors, size.num_weights, scale=size.num_weights**-0.5)


def _hessian_vector_products(size: Size) -> Work:
    net, b = _Net(size), size.batch
    loss = kernels.WeightedLoss(loss_fn)
    call = partial(kernels.hessian_vector_products, loss_fn=loss)
    args = (net.params, (net.batch(b), np.full(b, 1 / b, np.float32)), _vectors(size))
    return Work(call, args, b, b * (net.gradient + size.vectors * net.hessian))


def _ggn_vector_products(size: Size) -> Work:
    net, b = _Net(size), size.batch
    call = partial(kernels.ggn_vector_products, logits_fn=logits_fn)
    args = (net.params, net.batch(b)[0], np.full(b, 1 / b, np.float32), _vectors(size))
    return Work(call, args, b, b * (net.forward + size.vectors * net.gauss_newton))


def _gradient_products(size: Size) -> Work:
    net, b = _Net(size), size.batch
    call = partial(kernels.gradient_products, row_loss_fn=loss_fn)
    args = (net.params, net.batch(b), np.ones(b, np.float32), _vectors(size))
    return Work(call, args, b, b * (net.forward + size.vectors * net.tangent))


def _influence(size: Size) -> Work:
    net, b, q = _Net(size), size.batch, size.vectors
    call = partial(
        kernels.influence, row_loss_fn=loss_fn, logits_fn=logits_fn, damping=_DAMPING,
        tolerance=NEVER, max_steps=STEPS,
    )  # fmt: skip
    args = (net.params, net.batch(b), np.ones(b, np.float32), net.batch(q, 8))
    solves = (STEPS + 1) * b * q * net.gauss_newton
    flops = solves + 2 * b * net.forward + b * q * net.tangent + q * net.gradient
    sweeps = (STEPS + 1) * 4 * q * size.num_weights
    return Work(call, args, b, flops, sweeps, (1, STEPS))


CASES: dict[str, Builder] = {
    "collect_taps": _collect_taps,
    "tap_inputs": _tap_inputs,
    "layer_squared_norms": _layer_squared_norms,
    "gradient_norms": _gradient_norms,
    "gradients_of": _gradients_of,
    "per_sample_gradients": _per_sample_gradients,
    "taps_dot": _taps_dot,
    "grad_dot": _grad_dot,
    "tracin": _tracin,
    "tracin_self": _tracin_self,
    "ekfac_moments": _ekfac_moments,
    "ekfac_eigenvalues": _ekfac_eigenvalues,
    "ekfac_self_influence": _ekfac_self_influence,
    "ekfac_influence": _ekfac_influence,
    "sample_labels": _sample_labels,
    "hessian_vector_products": _hessian_vector_products,
    "ggn_vector_products": _ggn_vector_products,
    "gradient_products": _gradient_products,
    "influence": _influence,
}
"""Of the gradients of a network."""
