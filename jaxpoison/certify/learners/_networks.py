"""Small networks as pure functions: a perceptron, and a convolutional one in several forms.

No batch normalisation: a statistic of a batch would need a mask under padding, and a running one
would make the votes on a row depend on other rows. Rows are standardised one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

_NO_SPREAD = 1e-3  # of a constant row, in units of its values
_KERNEL = 3
_WINDOW = 4  # pixels that the 2 x 2 outputs of one pool see

Form = Literal["direct", "patches", "shifts"]


@dataclass(frozen=True)
class Perceptron:
    """Dense layers with ReLU on standardised rows, by momentum on the cross-entropy.

    Attributes:
        widths: Of the hidden layers.
        learning_rate: Of every step.
        momentum: Of Nesterov's form.
    """

    widths: tuple[int, ...]
    learning_rate: float
    momentum: float

    def init(self, key: Array, x: Array, num_classes: int) -> Any:
        """Weights drawn for ReLU (He), biases and velocities 0."""
        sizes = [int(np.prod(x.shape[1:])), *self.widths, num_classes]
        keys = jax.random.split(key, len(sizes) - 1)
        layers = [_dense(keys[i], sizes[i], sizes[i + 1]) for i in range(len(keys))]
        return layers, jax.tree.map(jnp.zeros_like, layers)

    def step(self, state: Any, x: Array, y: Int[Array, " b"], mask: Bool[Array, " b"]) -> Any:
        """One step on the mean loss of the rows that count."""
        return _descend(self._logits, state, x, y, mask, self.learning_rate, self.momentum)

    def apply(self, state: Any, x: Array) -> Float[Array, "b c"]:
        """Logits."""
        return self._logits(state[0], x)

    def _logits(self, layers: Any, x: Array) -> Float[Array, "b c"]:
        x = standardised(x).reshape(len(x), -1)
        for weights, bias in layers[:-1]:
            x = jax.nn.relu(x @ weights + bias)
        weights, bias = layers[-1]
        return jnp.asarray(x @ weights + bias)


@dataclass(frozen=True)
class SmallCNN:
    """Two 3 x 3 convolutions, each with ReLU and a 2 x 2 maximum, and a dense layer.

    The first convolution and its pool are one matrix product: of the 4 x 4 pixels that a pooled
    output sees with the kernel laid at its four places. It has one row a pooled output instead of
    nine values a pixel, and needs no gradient of its input. ``form`` says how the second one is
    computed: all forms are equal but for rounding.

    Attributes:
        channels: Of the two convolutions.
        learning_rate: Of every step.
        momentum: Of Nesterov's form.
        form: "direct" (the backend's convolution), "patches" or "shifts" (``conv_gemm``).
    """

    channels: tuple[int, int]
    learning_rate: float
    momentum: float
    form: Form = "direct"

    def init(self, key: Array, x: Array, num_classes: int) -> Any:
        """Weights drawn for ReLU (He), biases and velocities 0."""
        images = _images(x)
        height, width, colours = images.shape[1:]
        first, second = self.channels
        keys = jax.random.split(key, 3)
        layers = [
            _kernel(keys[0], colours, first),
            _kernel(keys[1], first, second),
            _dense(keys[2], (height // 4) * (width // 4) * second, num_classes, gain=1.0),
        ]
        return layers, jax.tree.map(jnp.zeros_like, layers)

    def step(self, state: Any, x: Array, y: Int[Array, " b"], mask: Bool[Array, " b"]) -> Any:
        """One step on the mean loss of the rows that count."""
        return _descend(self._logits, state, x, y, mask, self.learning_rate, self.momentum)

    def apply(self, state: Any, x: Array) -> Float[Array, "b c"]:
        """Logits."""
        return self._logits(state[0], x)

    def _logits(self, layers: Any, x: Array) -> Float[Array, "b c"]:
        (first, bias1), (second, bias2), (dense, bias3) = layers
        x = jax.nn.relu(conv_pool(standardised(_images(x)), first) + bias1)
        x = convolve(x, second, self.form)
        x = jax.nn.relu(max_pool(x) + bias2)
        return jnp.asarray(x.reshape(len(x), -1) @ dense + bias3)


def standardised(x: Array) -> Float[Array, "b ..."]:
    """Each row less its own mean, over its own spread; a constant row gives zeros."""
    x = x.astype(jnp.float32)
    axes = tuple(range(1, x.ndim))
    x = x - jnp.mean(x, axes, keepdims=True)
    spread = jnp.sqrt(jnp.mean(jnp.square(x), axes, keepdims=True))
    return x / jnp.maximum(spread, _NO_SPREAD)


def conv_gemm(
    x: Float[Array, "b h w k"], kernel: Float[Array, "3 3 k o"], *, by: str = "patches"
) -> Float[Array, "b h w o"]:
    """A 3 x 3 convolution with zeros around the image, as matrix products.

    ``out[p] = sum_t x[p + t] K[t]``. Under vmap over kernels it stays a batched matrix product,
    where a convolution would become a grouped one, which the CPU backend runs slowly.

    Args:
        x: [b, h, w, k] images.
        kernel: [3, 3, k, o].
        by: "patches" copies the nine neighbours of a pixel side by side, for one product;
            "shifts" adds up nine products.

    Returns:
        [b, h, w, o].

    **Cost**: 18 b h w k o flop; patches hold 9 b h w k values.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = [(i, j) for i in range(_KERNEL) for j in range(_KERNEL)]
    shifted = [padded[:, i : i + height, j : j + width] for i, j in places]
    if by == "patches":
        flat = kernel.reshape(-1, kernel.shape[-1])
        patches = jnp.concatenate(shifted, axis=-1).reshape(-1, len(flat))
        return (patches @ flat).reshape(*x.shape[:3], -1)
    products = [part @ kernel[i, j] for part, (i, j) in zip(shifted, places, strict=True)]
    return jnp.asarray(sum(products[1:], products[0]))


def convolve(x: Array, kernel: Array, form: Form) -> Float[Array, "b h w o"]:
    """A 3 x 3 convolution with zeros around the image, in the form asked for."""
    if form != "direct":
        return conv_gemm(x, kernel, by=form)
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)


def conv_pool(x: Float[Array, "b h w k"], kernel: Array) -> Float[Array, "b h2 w2 o"]:
    """Maximum over 2 x 2 squares of a 3 x 3 convolution, as one matrix product.

    Args:
        x: [b, h, w, k]; an odd last line or column gives no output, as in ``max_pool``.
        kernel: [3, 3, k, o].

    Returns:
        [b, h // 2, w // 2, o].

    **Cost**: 128 k o flop an output, 16 k values copied for it.
    """
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = [
        padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
        for i in range(_WINDOW)
        for j in range(_WINDOW)
    ]
    spread = jnp.einsum("pqt,tko->pkqo", _PLACES, kernel.reshape(_KERNEL**2, *kernel.shape[2:]))
    flat = spread.reshape(-1, 4 * kernel.shape[-1])
    # As a matrix: XLA's CPU backend takes five times as long for the gradient of four axes.
    windows = jnp.concatenate(seen, axis=-1).reshape(-1, len(flat))
    top = _largest(*jnp.split(windows @ flat, 4, axis=-1))
    return top.reshape(*seen[0].shape[:3], -1)


def _places() -> HostArray:
    """[16, 4, 9]: 1 where pixel p of a window meets tap t of the kernel at place q."""
    places = np.zeros((_WINDOW**2, 4, _KERNEL**2), np.float32)
    for q in range(4):
        for t in range(_KERNEL**2):
            down, across = q // 2 + t // _KERNEL, q % 2 + t % _KERNEL
            places[down * _WINDOW + across, q, t] = 1
    return places


_PLACES = _places()


def max_pool(x: Float[Array, "b h w k"]) -> Float[Array, "b h2 w2 k"]:
    """Maximum over 2 x 2 squares; an odd last line or column is left out."""
    rows, columns = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return _largest(*(x[:, i:rows:2, j:columns:2] for i in range(2) for j in range(2)))


@jax.custom_vjp
def _largest(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Maximum of four arrays; of equal entries the first gets all of the gradient."""
    return _largest_forward(a, b, c, d)[0]


def _largest_forward(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, Array]:
    top = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
    third = jnp.where(c == top, 2, 3)
    which = jnp.where(a == top, 0, jnp.where(b == top, 1, third))
    return top, which.astype(jnp.int8)


def _largest_backward(which: Array, gradient: Array) -> tuple[Array, ...]:
    return tuple(jnp.where(which == i, gradient, 0.0) for i in range(4))


_largest.defvjp(_largest_forward, _largest_backward)


def _descend(
    logits_fn: Any, state: Any, x: Array, y: Array, mask: Array, rate: float, momentum: float
) -> Any:
    """Nesterov's momentum on the mean cross-entropy of the rows that count."""
    layers, velocity = state

    def objective(layers: Any) -> Array:
        logits = logits_fn(layers, x)
        # A one-hot product instead of a gather: its gradient is no scatter.
        own = jnp.sum(logits * jax.nn.one_hot(y, logits.shape[-1]), axis=-1)
        losses = jnp.where(mask, jax.nn.logsumexp(logits, axis=-1) - own, 0.0)
        return jnp.sum(losses) / jnp.maximum(jnp.sum(mask), 1)

    gradient = jax.grad(objective)(layers)
    velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
    layers = jax.tree.map(lambda p, g, v: p - rate * (g + momentum * v), layers, gradient, velocity)
    return layers, velocity


def _images(x: Array) -> Array:
    if x.ndim not in (3, 4) or min(x.shape[1:3]) < 4:
        raise UsageError(
            f"rows have shape {x.shape[1:]}, but small_cnn takes images [h, w] or [h, w, colours] "
            "of at least 4 x 4 pixels; use mlp() for other rows"
        )
    return x[..., None] if x.ndim == 3 else x


def _dense(key: Array, num_in: int, num_out: int, gain: float = 2.0) -> tuple[Array, Array]:
    scale = np.sqrt(gain / num_in).astype(np.float32)
    return jax.random.normal(key, (num_in, num_out)) * scale, jnp.zeros(num_out)


def _kernel(key: Array, num_in: int, num_out: int) -> tuple[Array, Array]:
    scale = np.sqrt(2.0 / (_KERNEL**2 * num_in)).astype(np.float32)
    shape = (_KERNEL, _KERNEL, num_in, num_out)
    return jax.random.normal(key, shape) * scale, jnp.zeros(num_out)
