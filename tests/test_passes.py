"""Which passes are kept, and how often rows are taken."""

from __future__ import annotations

import numpy as np
import pytest

from jaxpoison import folds
from jaxpoison.sources import open_source
from jaxpoison.stream import LocalEngine, Stage, Stream, make_mesh
from jaxpoison.stream._keys import key_of_pass

KNOWN = folds.out_of_fold_agrees


def stream_of(x, y, **options):
    return Stream(open_source(x, role="features"), y, 2, make_mesh(1), **options)


def test_a_pass_is_known_by_all_that_decides_its_bits():
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    y = (np.arange(40) % 2).astype(np.int32)
    one = key_of_pass(stream_of(x, y), "map", KNOWN, (np.float32(2),))
    assert one == key_of_pass(stream_of(x.copy(), y), "map", KNOWN, (np.float32(2),))
    assert one == key_of_pass(
        stream_of(x, y, engine=LocalEngine(make_mesh(1))), "map", KNOWN, (np.float32(2),)
    )
    others = [
        key_of_pass(stream_of(x, y), "map", KNOWN, (np.float32(3),)),
        key_of_pass(stream_of(x, y), "map", KNOWN, (np.float64(2),)),
        key_of_pass(stream_of(x, y), "fold", KNOWN, (np.float32(2),)),
        key_of_pass(stream_of(x, y), "map", folds.class_means, (np.float32(2),)),
        key_of_pass(stream_of(x, 1 - y), "map", KNOWN, (np.float32(2),)),
        key_of_pass(stream_of(x + 1, y), "map", KNOWN, (np.float32(2),)),
        key_of_pass(stream_of(x, y, identity="a"), "map", KNOWN, (np.float32(2),)),
    ]
    assert len({one, *others}) == len(others) + 1


def scaled(scale):
    def fn(block):
        return block.x * scale

    return fn


class Scaler:
    def __init__(self, scale):
        self.scale = scale

    def of(self, block):
        return block.x * self.scale


@pytest.mark.parametrize("make", [scaled, lambda scale: Scaler(scale).of])
def test_what_no_name_tells_is_not_kept(make):
    """Two closures of one name, two methods of unlike objects: one must not have the other's."""

    class Kept(dict):
        every = 0.0

        def load(self, name):
            return self.get(name)

        def save(self, name, tree):
            self[name] = tree

    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    y = (np.arange(40) % 2).astype(np.int32)
    journal = Kept()
    stream = stream_of(x, y, journal=journal)
    for scale in (1.0, 2.0):
        assert np.array_equal(stream.map(make(scale)), x * np.float32(scale))
    assert not journal
    folds.class_means(stream)
    assert len(journal) == 1


def test_rows_are_taken_once_whatever_is_made_of_them():
    taken = []

    class Engine(LocalEngine):
        def feed(self, rows, budget_bytes):
            taken.append(rows)
            return super().feed(rows, budget_bytes)

    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    y = (np.arange(40) % 2).astype(np.int32)
    stream = stream_of(x, y, engine=Engine(make_mesh(1)))
    other = stream.through(Stage(plain, ()))
    folds.class_means(stream)
    folds.class_means(other)
    folds.class_means(other.behind(None))
    assert len(taken) == 1
    folds.class_means(stream.of(open_source(x + 1, role="features")))
    assert len(taken) == 2


def plain(params, x):
    return x


@pytest.mark.parametrize("matrix", [None, 3])
def test_what_a_stream_is_told_of_its_means_is_what_a_pass_finds(matrix):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(300, 5)).astype(np.float32), rng.integers(0, 4, 300)
    linear = None if matrix is None else rng.normal(size=(5, matrix)).astype(np.float32)
    rows = x if linear is None else x @ linear
    plain, told, asked = (
        Stream(open_source(each, role="features"), labels, 4) for each in (x, rows, rows)
    )
    counts, mean = folds.class_means(plain)
    folds.tell_means(told, counts, mean, folds.pooled_within(plain), linear)
    np.testing.assert_allclose(folds.class_means(told)[1], folds.class_means(asked)[1], atol=1e-5)
    alone = folds.pooled_alone(asked)
    np.testing.assert_allclose(folds.pooled_within(told), alone, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(folds.pooled_within(asked), alone, rtol=1e-4, atol=1e-4)
