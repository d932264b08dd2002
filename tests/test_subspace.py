"""Bases that grow: orthonormal whatever is added, and of the span that was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from jaxpoison.linalg import fisher, in_span, new_directions, orthonormal_rows, ridge_of


def bases(c=5, m=6, d=20, seed=0):
    return orthonormal_rows(np.random.default_rng(seed).normal(size=(c, m, d)))


def assert_extends(basis, new):
    both = np.concatenate([basis, new], axis=1)
    want = np.broadcast_to(np.eye(both.shape[1]), (len(both), *[both.shape[1]] * 2))
    np.testing.assert_allclose(both @ both.swapaxes(1, 2), want, atol=1e-12)


def projector(rows):
    """Onto the span of rows that need not be orthogonal, in float64."""
    return np.linalg.pinv(rows) @ rows


@pytest.mark.parametrize("inside", [0.0, 1.0, 1e6])
def test_what_a_block_adds(inside):
    """The span is that of basis and block, however little of the block is new."""
    basis, rng = bases(), np.random.default_rng(1)
    block = inside * rng.normal(size=(5, 4, 6)) @ basis + rng.normal(size=(5, 4, 20))
    new = new_directions(basis, block)
    assert_extends(basis, new)
    for b, given, found in zip(basis, block, new, strict=True):
        outside = given - given @ b.T @ b
        np.testing.assert_allclose(projector(found), projector(outside), atol=1e-8)


@pytest.mark.parametrize("change", ["zero", "inside", "twice", "tiny"])
def test_rows_that_add_nothing_become_others(change):
    basis, rng = bases(), np.random.default_rng(2)
    block = rng.normal(size=(5, 4, 20))
    if change == "zero":
        block[1:3, :2] = 0.0
    elif change == "inside":
        block[1:3] = rng.normal(size=(2, 4, 6)) @ basis[1:3]
    elif change == "twice":
        block[:, 1] = block[:, 0]
    else:
        block[2] *= 1e-280
    new = new_directions(basis, block)
    assert new.shape == (5, 4, 20) and np.isfinite(new).all()
    assert_extends(basis, new)


def test_no_more_directions_than_there_are():
    basis = bases(m=18)
    new = new_directions(basis, np.random.default_rng(3).normal(size=(5, 4, 20)))
    assert new.shape == (5, 2, 20)
    assert_extends(basis, new)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (5, 5)])
def test_rows_in_their_span_keep_their_inner_products(shape):
    rows = np.random.default_rng(3).normal(size=shape)
    seen = in_span(rows)
    assert seen.shape == (shape[0], min(shape))
    assert seen @ seen.T == pytest.approx(rows @ rows.T)


def test_the_direction_that_tells_two_groups():
    rng = np.random.default_rng(4)
    root, shift = rng.normal(size=(9, 7)), rng.normal(size=7)
    within = root.T @ root
    ridge = 0.1 * np.trace(within) / 20
    assert ridge_of(within, 0.1, 20) == pytest.approx(ridge)
    along = fisher(within, shift, 0.1, 20)
    assert (within + ridge * np.eye(7)) @ along == pytest.approx(shift)
    assert fisher(np.zeros((7, 7)), shift, 0.1, 20) == pytest.approx(shift)  # nothing varies
