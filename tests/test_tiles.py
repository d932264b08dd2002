"""Statistics of class-pure tiles against float64 numpy on the rows themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from engine_data import block_of
from jaxpoison.kernels import tile_grams, tile_project, tile_sketch, tile_sums
from jaxpoison.layout import Layout

# float32 products of a few hundred terms of size 1: about sqrt(n) roundings of 6e-8 each.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-4}


def sums(block, num_classes):
    return jax.jit(tile_sums, static_argnames="num_classes")(
        block.x, block.label, block.mask, num_classes=num_classes
    )


def grams(block, num_classes):
    return jax.jit(tile_grams, static_argnames="num_classes")(
        block.x, block.label, block.mask, num_classes=num_classes
    )


def sketch(block, basis, centre):
    return jax.jit(tile_sketch, static_argnames="num_classes")(
        block.x, block.label, block.mask, basis, centre, num_classes=len(basis)
    )


def table(seed=0, n=300, d=7, num_classes=4, tile=8, fill=0.0):
    """Rows, labels and their block; padding rows hold ``fill``."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    labels = rng.choice(num_classes, n, p=[0.5, 0.0, 0.1, 0.4][:num_classes])
    layout = Layout(n, tile, -(-n // tile) + num_classes)
    block = block_of(layout, x, labels)
    filled = np.where(block.mask[..., None] > 0, block.x, np.float32(fill))
    return x, labels, block._replace(x=filled)


def bases(num_classes, k, d, seed=9):
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(num_classes, k, d)).astype(np.float32)
    return basis, rng.normal(size=(num_classes, k)).astype(np.float32)


@pytest.mark.parametrize("tile", [1, 8, 64])
@pytest.mark.parametrize("d", [1, 7])
def test_sums_and_grams(tile, d):
    x, labels, block = table(d=d, tile=tile)
    counts, total, second = reference.class_sums(x.astype(np.float64), labels, 4)
    got_counts, got_total = sums(block, 4)
    np.testing.assert_array_equal(got_counts, counts)  # whole numbers below 2^24 are exact
    np.testing.assert_allclose(got_total, total, **TOLERANCE)
    np.testing.assert_allclose(grams(block, 4), second, **TOLERANCE)
    assert (counts == 0).any()  # class 1 holds no row; its sums are exact zeros
    assert not np.asarray(got_total)[1].any() and not np.asarray(grams(block, 4))[1].any()


def test_projection_uses_each_rows_own_class():
    x, labels, block = table()
    basis, centre = bases(4, 3, 7)
    got = np.asarray(jax.jit(tile_project)(block.x, block.label, basis, centre))
    want = np.einsum("nkd,nd->nk", basis[labels].astype(np.float64), x) - centre[labels]
    keep = block.mask > 0
    np.testing.assert_allclose(got[keep], want[block.ids[keep]], rtol=1e-5, atol=1e-5)


def test_sketch():
    x, labels, block = table()
    basis, centre = bases(4, 3, 7)
    products, totals = sketch(block, basis, centre)
    for c in range(4):
        rows = x[labels == c].astype(np.float64)
        scores = rows @ basis[c].T - centre[c]
        np.testing.assert_allclose(products[c], scores.T @ rows, **TOLERANCE)
        np.testing.assert_allclose(totals[c], scores.sum(axis=0), **TOLERANCE)


@pytest.mark.parametrize("fill", [1e30, np.inf, np.nan])
def test_content_of_padding_reaches_no_result(fill):
    _, _, plain = table()
    _, _, filled = table(fill=fill)
    basis, centre = bases(4, 3, 7)
    for one, two in zip(
        jax.tree.leaves((sums(plain, 4), grams(plain, 4), sketch(plain, basis, centre))),
        jax.tree.leaves((sums(filled, 4), grams(filled, 4), sketch(filled, basis, centre))),
        strict=True,
    ):
        assert np.array_equal(one, two)


def test_more_padding_changes_no_bit():
    x, labels, block = table()
    longer = block_of(Layout(300, 8, len(block.label) + 9), x, labels)
    basis, centre = bases(4, 3, 7)
    assert np.array_equal(grams(block, 4), grams(longer, 4))
    for one, two in zip(sketch(block, basis, centre), sketch(longer, basis, centre), strict=True):
        assert np.array_equal(one, two)


def test_order_of_tiles_only_changes_rounding():
    _, _, block = table()
    turned = type(block)(*(part[::-1] for part in block))
    np.testing.assert_allclose(sums(block, 4)[1], sums(turned, 4)[1], **TOLERANCE)
    np.testing.assert_allclose(grams(block, 4), grams(turned, 4), **TOLERANCE)


def test_integer_rows_are_exact():
    """Small whole numbers have exact float32 sums: a wrong mask or class shows at once."""
    rng = np.random.default_rng(3)
    x = rng.integers(-4, 5, (500, 5)).astype(np.float32)
    labels = rng.integers(0, 6, 500)
    block = block_of(Layout(512, 16, 40), x, labels)
    counts, total, second = reference.class_sums(x.astype(np.float64), labels, 6)
    got = sums(block, 6)
    assert np.array_equal(got[0], counts) and np.array_equal(got[1], total)
    assert np.array_equal(grams(block, 6), second)


def test_products_say_their_precision():
    """TF32 on an H100 would keep 10 bits of the mantissa of a covariance."""
    _, _, block = table()
    basis, centre = bases(4, 3, 7)
    jaxprs = [
        jax.make_jaxpr(lambda: tile_sums(*map(jnp.asarray, block[:3]), num_classes=4))(),
        jax.make_jaxpr(lambda: tile_grams(*map(jnp.asarray, block[:3]), num_classes=4))(),
        jax.make_jaxpr(
            lambda: tile_sketch(*map(jnp.asarray, (*block[:3], basis, centre)), num_classes=4)
        )(),
        jax.make_jaxpr(
            lambda: tile_project(*map(jnp.asarray, (block.x, block.label, basis, centre)))
        )(),
    ]
    for jaxpr in jaxprs:
        text = str(jaxpr)
        assert text.count("dot_general") == text.count("Precision.HIGHEST, Precision.HIGHEST")
        assert "dot_general" in text
