"""Any Flax module as a learner; flax is imported only when one is handed over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxpoison._check import UsageError

from .gradient import GradientLearner


def flax_learner(
    module: Any, optimiser: Any, *, preprocess: Callable[[Array], Array] | None = None,
    **settings: Any,
) -> GradientLearner:  # fmt: skip
    """A learner from a Flax module, on the mean cross-entropy of its logits.

    Args:
        module: A Linen module, or for NNX a function ``module(rngs) -> nnx.Module``, such as
            ``functools.partial(Net, num_classes=10)`` whose last argument is ``rngs``: every
            member draws weights of its own.
        optimiser: An optax gradient transformation.
        preprocess: Static ``fn(x) -> x`` from rows to what the module takes, each row by itself;
            None passes float32.
        **settings: Of ``GradientLearner``: epochs, batch_size, seed, features, strategy, chunk.

    Returns:
        The learner.

    Raises:
        UsageError: Neither kind of module, no optax optimiser, or (when first used) a module that
            keeps statistics of batches: they would let padding and other rows change a vote.

    **Assumes / fails on**: evaluation mode throughout (no dropout). The digest covers public
    attributes of a Linen module and the code of an NNX one, not what that code imports.
    """
    from flax import linen, nnx

    if not callable(getattr(optimiser, "init", None)) or not callable(
        getattr(optimiser, "update", None)
    ):
        raise UsageError(
            f"optimiser is {type(optimiser).__name__}; give an optax transformation, "
            "such as optax.adam(1e-3)"
        )
    if isinstance(module, nnx.Module):
        raise UsageError(
            f"module is an instance of {type(module).__name__}, whose weights are drawn already; "
            "give a function of rngs that makes one, so that each member draws its own"
        )
    network: Any
    if isinstance(module, linen.Module):
        network = _Linen(module, optimiser, preprocess)
    elif callable(module):
        network = _Nnx(module, optimiser, preprocess)
    else:
        raise UsageError(
            f"module is {type(module).__name__}; give a flax Linen module or a function of rngs "
            "that makes an NNX one"
        )
    settings = {"name": f"flax:{_title(module)}", **settings}
    return GradientLearner(network.init, network.step, network.apply, **settings)


def _title(module: Any) -> str:
    inner = module.func if isinstance(module, partial) else module
    return str(getattr(inner, "__name__", type(inner).__name__))


@dataclass(frozen=True, eq=False)
class _Network(ABC):
    module: Any
    optimiser: Any
    preprocess: Callable[[Array], Array] | None

    def step(self, state: Any, x: Array, y: Array, mask: Array) -> Any:
        params, kept, moments = state

        def objective(params: Any) -> Array:
            logits = self.logits(params, kept, self.prepared(x))
            own = jnp.sum(logits * jax.nn.one_hot(y, logits.shape[-1]), axis=-1)
            losses = jnp.where(mask, jax.nn.logsumexp(logits, axis=-1) - own, 0.0)
            return jnp.sum(losses) / jnp.maximum(jnp.sum(mask), 1)

        updates, moments = self.optimiser.update(jax.grad(objective)(params), moments, params)
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
        return params, kept, moments

    def apply(self, state: Any, x: Array) -> Array:
        params, kept, _ = state
        return self.logits(params, kept, self.prepared(x))

    def prepared(self, x: Array) -> Array:
        return x.astype(jnp.float32) if self.preprocess is None else self.preprocess(x)

    @abstractmethod
    def logits(self, params: Any, kept: Any, x: Array) -> Array:
        """Of prepared rows."""


class _Linen(_Network):
    def init(self, key: Array, x: Array, num_classes: int) -> Any:
        variables = self.module.init(key, self.prepared(x))
        more = sorted(set(variables) - {"params"})
        if more:
            raise _keeps_statistics(_title(self.module), more)
        params = variables["params"]
        return params, (), self.optimiser.init(params)

    def logits(self, params: Any, kept: Any, x: Array) -> Array:
        out: Array = self.module.apply({"params": params}, x)
        return out


class _Nnx(_Network):
    def _parts(self, key: Array) -> Any:
        from flax import nnx

        made: Any = self.module(nnx.Rngs(key))
        if not isinstance(made, nnx.Module):
            raise UsageError(
                f"module(rngs) gives {type(made).__name__}, not a flax nnx.Module; return one"
            )
        module: Any = made
        module.eval()  # no dropout
        if jax.tree.leaves(nnx.state(module, nnx.BatchStat)):
            raise _keeps_statistics(type(module).__name__, ["nnx.BatchStat"])
        parts: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return parts

    def init(self, key: Array, x: Array, num_classes: int) -> Any:
        _, params, _, kept = self._parts(key)
        return params, kept, self.optimiser.init(params)

    def logits(self, params: Any, kept: Any, x: Array) -> Array:
        from flax import nnx

        # the structure, and the streams of random numbers, which evaluation leaves alone
        graphdef, _, streams, _ = self._parts(jax.random.key(0))
        out: Array = nnx.merge(graphdef, params, streams, kept)(x)
        return out


def _keeps_statistics(name: str, kinds: list[str]) -> UsageError:
    return UsageError(
        f"module {name} keeps {', '.join(kinds)} besides its parameters: statistics of batches "
        "would depend on padding; use LayerNorm or GroupNorm"
    )
