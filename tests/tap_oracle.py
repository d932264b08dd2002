"""Models for the tests of taps and gradients, and the naive float64 answer."""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx


def naive_gradients(loss_fn, params, batch):
    """``vmap(grad)`` in float64: a pytree like params of numpy [b, *leaf]."""

    def wide(x):
        x = np.asarray(x)
        return jnp.asarray(x, jnp.float64) if x.dtype.kind == "f" else jnp.asarray(x)

    def one(params, row):
        return jnp.sum(loss_fn(params, *jax.tree.map(lambda x: x[None], row)))

    rows = batch if type(batch) is tuple else (batch,)
    with jax.enable_x64(True):
        wide_params, wide_rows = jax.tree.map(wide, (params, rows))
        every = jax.jit(jax.vmap(jax.grad(one), in_axes=(None, 0)))  # one compilation
        gradients = every(wide_params, wide_rows)
        return jax.tree.map(np.asarray, gradients)


def naive_norms(loss_fn, params, batch):
    return np.linalg.norm(flat(naive_gradients(loss_fn, params, batch)), axis=1)


@functools.cache
def solved(name, seed=0):
    """A case and its naive gradients, computed once."""
    case = CASES[name](seed)
    return *case, naive_gradients(*case)


def flat(gradients):
    """[b, P] of a pytree of [b, *leaf]."""
    leaves = jax.tree.leaves(gradients)
    return np.concatenate([np.asarray(x).reshape(len(x), -1) for x in leaves], axis=1)


def cross_entropy(logits, labels):
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype) * log_p, axis=-1)


def normal(seed, *shape, scale=0.5):
    return scale * np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


# Losses: plain functions of (params, x, y)


def mlp_loss(params, x, y):
    h = jnp.tanh(x @ params["w"] + params["b"])
    return cross_entropy(h @ params["v"] + params["c"], y)


def mlp_case(seed=0, rows=6, sizes=(5, 7, 3)):
    i, h, c = sizes
    params = {"w": normal(seed, i, h), "b": normal(seed, h), "v": normal(seed, h, c)}
    params["c"] = normal(seed + 1, c)
    labels = np.random.default_rng(seed).integers(0, c, rows)
    return mlp_loss, params, (normal(seed, rows, i, scale=1.0), labels)


def nested_loss(params, x, y):
    """Layers inside jit, remat, and both."""
    layer = jax.checkpoint(lambda w, b, x: jnp.tanh(jax.jit(lambda x: x @ w)(x) + b))
    return jax.jit(mlp_loss)(params, layer(params["inner"], params["shift"], x), y)


def nested_case(seed=0):
    _, params, batch = mlp_case(seed)
    return nested_loss, {**params, "inner": normal(seed, 5, 5), "shift": normal(seed, 5)}, batch


def shared_loss(params, x, y):
    """One weight twice in one layout, one in two layouts, and a bias twice."""
    h = jnp.tanh(x @ params["twice"] + params["b"])
    h = jnp.tanh(h @ params["twice"] + params["b"])
    return cross_entropy(jnp.tanh(h @ params["tied"]) @ params["tied"].T, y)


def shared_case(seed=0):
    params = {"twice": normal(seed, 4, 4), "b": normal(seed, 4), "tied": normal(seed, 4, 6)}
    return shared_loss, params, (normal(seed, 6, 4), np.arange(6) % 4)


def odd_loss(params, x, y):
    """What only vmap(grad) reaches: scales, an outer product, a loop, a batched product, a rule."""
    h = jnp.einsum("bgi,gio->bgo", x.reshape(len(x), 2, -1), params["grouped"]).reshape(len(x), -1)
    h = h * params["scale"] + jnp.sin(params["offset"])
    h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, params["loop"])
    return cross_entropy(h @ (params["left"] @ params["right"]) + _halved(h, params["rule"]), y)


@jax.custom_vjp
def _halved(x, w):
    return x @ w


_halved.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, d: (d @ kept[1].T, kept[0].T @ d / 2))


def odd_case(seed=0):
    params = {"grouped": normal(seed, 2, 3, 2), "scale": normal(seed, 4), "offset": normal(seed, 4)}
    params |= {
        "loop": normal(seed, 3, 4, 4),
        "left": normal(seed, 4, 2),
        "right": normal(seed, 2, 3),
    }
    params["rule"] = normal(seed, 4, 3)
    return odd_loss, params, (normal(seed, 5, 6), np.arange(5) % 3)


class _Sequence(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 6, rngs=rngs)
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, 8, rngs=rngs, decode=False)
        self.conv = nnx.Conv(8, 4, (3,), strides=2, rngs=rngs)
        self.head = nnx.Linear(4, 3, use_bias=False, rngs=rngs)

    def __call__(self, ids):
        h = self.norm(jax.nn.gelu(self.first(self.embed(ids))))
        return self.head(jax.nn.relu(self.conv(h + self.attention(h))).mean(axis=1))


def drawn(seed, shapes):
    """Arrays in the place of shapes: no initialiser is compiled."""
    return jax.tree.map(lambda a: jnp.asarray(normal(seed, *a.shape)), shapes)


@functools.cache
def nnx_case(seed=0, rows=4, length=9):
    net = nnx.eval_shape(lambda: _Sequence(nnx.Rngs(0)))
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    params = drawn(seed, params)

    def loss(params, ids, y):
        return cross_entropy(nnx.merge(graph, params, rest)(ids), y)

    rng = np.random.default_rng(seed)
    return loss, params, (rng.integers(0, 7, (rows, length)), rng.integers(0, 3, rows))


class _Pictures(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(4, (3, 3))(x))
        x = linen.relu(linen.Conv(6, (2, 3), strides=(2, 1), padding="VALID")(x))
        x = linen.GroupNorm(num_groups=2)(x)
        x = linen.Conv(6, (3, 3), feature_group_count=2)(x)
        return linen.Dense(3)(x.reshape(len(x), -1))


@functools.cache
def linen_case(seed=0, rows=4):
    net, x = _Pictures(), normal(seed, rows, 8, 7, 2, scale=1.0)
    params = drawn(seed, jax.eval_shape(net.init, jax.random.key(0), x))

    def loss(params, batch):
        return cross_entropy(net.apply(params, batch["x"]), batch["y"])

    return loss, params, {"x": x, "y": np.arange(rows) % 3}


CASES = {
    "mlp": mlp_case,
    "nested": nested_case,
    "shared": shared_case,
    "odd": odd_case,
    "nnx": nnx_case,
    "linen": linen_case,
}


@contextlib.contextmanager
def counted(loss_fn):
    """The loss, and a list that grows by one whenever its Python code runs."""
    runs = []

    def wrapped(*arguments):
        runs.append(None)
        return loss_fn(*arguments)

    yield wrapped, runs
