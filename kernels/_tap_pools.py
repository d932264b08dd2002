"""Maximum pooling in a form whose gradient is cheap."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def is_plain_pool(eqn: Any) -> bool:
    """Whether an equation is the maximum over windows that neither overlap nor have padding.

    The gradient of ``reduce_window_max`` scatters, which on a CPU takes as long as a convolution
    of 32 channels (jaxlib 0.10.2).
    """
    if eqn.primitive.name != "reduce_window_max":
        return False
    params, shape = eqn.params, eqn.invars[0].aval.shape
    window = tuple(params["window_dimensions"])
    ones = (1,) * len(window)
    return bool(
        window == tuple(params["window_strides"])
        and all(tuple(pair) == (0, 0) for pair in params["padding"])
        and tuple(params["base_dilation"]) == tuple(params["window_dilation"]) == ones
        and all(n >= k for n, k in zip(shape, window, strict=True))
        and jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.floating)
    )


def pooled(x: Array, window: tuple[int, ...]) -> Array:
    """The same maximum by comparisons of pairs; equal values give the gradient to the first.

    Args:
        x: Any array.
        window: Sizes of the windows, one an axis; what does not fill a window is left out.
    """
    for axis, k in reversed(list(enumerate(window))):  # the last axis first: ties are row-major
        if k == 1:
            continue
        stop = x.shape[axis] // k * k
        parts = [jax.lax.slice_in_dim(x, n, stop, k, axis) for n in range(k)]
        while len(parts) > 1:  # neighbours first, so that the order of a tie is kept
            pairs = zip(parts[::2], parts[1::2], strict=False)
            parts = [_first_of(*pair) for pair in pairs] + parts[len(parts) // 2 * 2 :]
        x = parts[0]
    return x


def _first_of(a: Array, b: Array) -> Array:
    return jnp.where((a >= b) | jnp.isnan(a), a, b)
