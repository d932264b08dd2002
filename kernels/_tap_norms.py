"""Squared gradient norms of each row from the taps of one layer, in the cheapest exact form."""

from __future__ import annotations

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from ._tap_layers import Layer, Tap, tap_inputs

HIGHEST = jax.lax.Precision.HIGHEST
Form: TypeAlias = Literal["outer", "gram", "direct", "shifts", "ids"]

_HELD = 1 << 26  # numbers that a direct product holds at a time on an accelerator: 256 MB
_GRAMS = 1 << 24  # numbers of an embedding's Gram that are held at a time: 64 MB
_ELEMENTWISE = 16  # flop of a matrix product in the time of one elementwise addition


def form_of(layer: Layer) -> Form:
    """The form with the least arithmetic, by shape alone.

    ==========  ================================================  =========================
    outer       T = 1: ``|a|^2 |d|^2``                            2 (i + o)
    gram        ``sum (A A^T) o (D D^T)``                         2 T^2 (i + o)
    direct      ``|A^T D|_F^2``                                   2 T i o
    shifts      gram, with the patches' A A^T as a sum over       2 S^2 c + k T^2 + 2 T^2 o
                kernel offsets of parts of one Gram of all S
                padded positions
    ids         gram, A A^T being 1 where two ids are equal       2 T^2 o
    ==========  ================================================  =========================

    For dense layers gram wins if T < i o / (i + o); its 2 T^2 numbers are then fewer than i o, and
    at most half as many as the taps have. For embeddings, which may be long and narrow, no more
    than 64 MB of a Gram are held at a time.
    """
    t, i, o = layer.num_positions, layer.num_inputs, layer.num_outputs
    if layer.kind == "embedding":
        return "ids"
    if layer.conv is None:
        if t == 1:
            return "outer"
        return "gram" if t * (i + o) < i * o else "direct"
    offsets = _size(layer.conv.kernel)
    samples = t // max(_size(layer.conv.output), 1)  # of one row, where it holds several images
    padded = samples * _size(_padded_shape(layer))
    costs: dict[Form, float] = {
        "direct": 2.0 * t * i * o,
        "gram": 2.0 * t * t * (i + o),
        "shifts": 2.0 * padded**2 * i / offsets + 2.0 * t * t * o + _ELEMENTWISE * offsets * t * t,
    }
    return min(costs, key=lambda form: costs[form])


def squared_norms(tap: Tap) -> tuple[Array, Array | None]:
    """``|dW_b|^2`` [b], and ``|dbias_b|^2`` [b] or None, in float32."""
    form = form_of(tap.layer)
    d = tap.cotangents
    if form == "outer":
        weight = _squares(tap.inputs) * _squares(d)
    elif form == "ids":
        weight = _ids_sum(tap.inputs, d)
    elif form == "gram":
        weight = jnp.sum(_gram(tap_inputs(tap)) * _gram(d), axis=(1, 2))
    elif form == "shifts":
        weight = jnp.sum(_patch_gram(tap) * _gram(d), axis=(1, 2))
    else:
        weight = _direct(tap)
    bias = None if tap.layer.bias is None else _squares(jnp.sum(d, axis=1, dtype=jnp.float32))
    return jnp.maximum(weight, 0.0), bias  # a sum of squares, but not in the Gram forms' rounding


def _squares(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return jnp.sum(x * x, axis=tuple(range(1, x.ndim)))


def _gram(x: Array) -> Array:
    return _inner_products(x, x)


def _inner_products(x: Array, y: Array) -> Array:
    """[b, T, S] float32 of [b, T, i] and [b, S, i]."""
    return jnp.einsum("bti,bsi->bts", x, y, precision=HIGHEST, preferred_element_type=jnp.float32)


def _ids_sum(ids: Array, d: Array) -> Array:
    """``sum_ts [id_t = id_s] (D D^T)_ts`` [b], some columns at a time where they are many."""
    b, t, o = d.shape

    def of_columns(ids_some: Array, d_some: Array) -> Array:
        same = (ids[:, :, None] == ids_some[:, None, :]) & (ids_some >= 0)[:, None, :]
        return jnp.sum(jnp.where(same, _inner_products(d, d_some), 0.0), axis=(1, 2))

    step = max(_GRAMS // max(b * t, 1), 1)
    if step >= t:
        return of_columns(ids, d)

    def add(total: Array, some: tuple[Array, Array]) -> tuple[Array, None]:
        return total + of_columns(*some), None

    ids_parts = jnp.pad(ids, ((0, 0), (0, -t % step)), constant_values=-1).reshape(b, -1, step)
    d_parts = jnp.pad(d, ((0, 0), (0, -t % step), (0, 0))).reshape(b, -1, step, o)
    parts = jnp.moveaxis(ids_parts, 1, 0), jnp.moveaxis(d_parts, 1, 0)
    total: Array = jax.lax.scan(add, jnp.zeros(b), parts)[0]
    return total


def _direct(tap: Tap) -> Array:
    layer = tap.layer
    held = layer.num_inputs * (layer.num_outputs + layer.num_positions * (layer.conv is not None))

    def of_row(row: Tap) -> Array:
        one = jax.tree.map(lambda x: x[None], row)
        a, d = tap_inputs(one)[0], one.cotangents[0]
        # the wider factor second: its rows are what a matrix product streams
        a, d = (d, a) if a.shape[1] > d.shape[1] else (a, d)
        product = jnp.matmul(a.T, d, precision=HIGHEST, preferred_element_type=jnp.float32)
        return jnp.sum(product * product)

    # On a CPU row by row: patches and product stay in the cache, two to three times as fast.
    rows = 1 if jax.default_backend() == "cpu" else max(_HELD // max(held, 1), 1)
    batch_size = None if rows == 1 else rows
    norms: Array = jax.lax.map(of_row, tap, batch_size=batch_size)
    return norms


def _patch_gram(tap: Tap) -> Array:
    """[b, T, T] of the patches: each kernel offset adds one part of the Gram of all positions."""
    geometry, t = tap.layer.conv, tap.layer.num_positions
    if geometry is None:
        return _gram(tap.inputs)
    x = geometry.padded(tap.inputs)
    b, samples, *space, channels = x.shape
    gram = _gram(x.reshape(b, -1, channels)).reshape(b, samples, *space, samples, *space)
    total = jnp.zeros((b, t, t), jnp.float32)
    for window in geometry.windows():
        one = (slice(None), *window)
        total += gram[(slice(None), *one, *one)].reshape(b, t, t)
    return total


def _padded_shape(layer: Layer) -> tuple[int, ...]:
    """An upper bound is enough: the positions that some output meets."""
    geometry = layer.conv
    if geometry is None:
        return ()
    return tuple(
        (k - 1) * dilation + (size - 1) * stride + 1
        for k, dilation, size, stride in zip(
            geometry.kernel,
            geometry.kernel_dilation,
            geometry.output,
            geometry.strides,
            strict=True,
        )
    )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
