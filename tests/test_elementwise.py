"""Functions written anew for the CPU: as exact as the library's, and the same at the edges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison.kernels._elementwise import cosine, largest


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e3, 1e4])
def test_cosine(size):
    rng = np.random.default_rng(0)
    angle = np.r_[rng.uniform(-size, size, 20000), np.linspace(-size, size, 999)].astype(np.float32)
    want = np.cos(angle.astype(np.float64))
    np.testing.assert_allclose(np.asarray(jax.jit(cosine)(angle)), want, atol=1e-6)


def test_cosine_of_angles_that_are_all_rounding():
    values = np.asarray(cosine(jnp.asarray([1e9, -3e15, 3e38], jnp.float32)))
    assert (np.abs(values) <= 1.000001).all()


def test_cosine_has_a_gradient():
    slope = jax.vmap(jax.grad(lambda a: cosine(a)))(jnp.linspace(-9.0, 9.0, 101))
    np.testing.assert_allclose(slope, -np.sin(np.linspace(-9.0, 9.0, 101)), atol=2e-5)


@pytest.mark.parametrize("kind", ["drawn", "ties", "equal", "infinite"])
def test_largest_is_max_and_argmax(kind):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(7, 50, 33)).astype(np.float32)
    if kind == "ties":
        x = np.round(x)
    elif kind == "equal":
        x[...] = 2.0
    elif kind == "infinite":
        x[:, ::2] = -np.inf
        x[:, 1::4, 5] = np.inf
    top, first = jax.jit(largest)(x)
    np.testing.assert_array_equal(top, x.max(axis=-1))
    np.testing.assert_array_equal(first, x.argmax(axis=-1))
