"""What every other room sees of a trained network: parameters, and pure functions of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float, Int

InputFn: TypeAlias = Callable[[Any, Array], Array]
"""``fn(params, x[b, ...]) -> [b, ...]``; static, so hashable and without arrays of its own."""
LossFn: TypeAlias = Callable[[Any, Array, Array], Array]


def cross_entropy(logits: Float[Array, "b c"], y: Int[Array, " b"]) -> Float[Array, " b"]:
    """``log sum_k exp(z_k) - z_y`` of each row, in nats, computed in float32.

    Args:
        logits: [b, c] scores z before the softmax.
        y: [b] classes 0..c-1.

    Returns:
        [b] float32, not negative.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    # A one-hot product instead of a gather: its gradient is then no scatter, slow on GPUs.
    chosen = jax.nn.one_hot(y, logits.shape[-1], dtype=jnp.bool_)
    return -jnp.sum(jnp.where(chosen, log_p, 0.0), axis=-1)


@dataclass(frozen=True)
class CrossEntropy:
    """The loss that follows from the logits; equal for equal ``logits``, so it recompiles nothing.

    Attributes:
        logits: ``fn(params, x) -> [b, c]``.
    """

    logits: InputFn

    def __call__(self, params: Any, x: Array, y: Int[Array, " b"]) -> Float[Array, " b"]:
        """Cross-entropy of each row."""
        return cross_entropy(self.logits(params, x), y)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params"],
    meta_fields=["features", "logits", "loss", "early_features", "name"],
)
@dataclass(frozen=True)
class Model:
    """A trained network as a pytree: ``params`` are operands, the functions are static.

    ``x`` is what a source yields, uint8 images [b, H, W] or [b, H, W, C] or float32 rows
    [b, d]; scaling is the functions' business. Called as ``model.features(model.params, x)``, so
    that other parameters of the same shape fit the same compiled function.

    Attributes:
        params: Pytree of arrays.
        features: ``fn(params, x) -> [b, d]``, the layer before the logits.
        logits: ``fn(params, x) -> [b, c]``.
        loss: ``fn(params, x, y[b]) -> [b]``, of each row.
        early_features: ``fn(params, x) -> [b, d2]``, a layer before that, or None.
        name: For messages and the report.
    """

    params: Any
    features: InputFn
    logits: InputFn
    loss: LossFn
    early_features: InputFn | None = None
    name: str = "model"
