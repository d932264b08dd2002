"""Training: learns, forgets nothing it should know, and knows nothing it should not."""

from __future__ import annotations

import hashlib

import jax
import numpy as np
import pytest

from device_processes import on_devices
from jaxpoison import training
from jaxpoison._check import DataError, NothingToScan, UsageError
from jaxpoison.sources import open_source
from jaxpoison.training import fit


def blobs(rows=200, columns=5, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    x = rng.normal(size=(rows, columns)) + 3 * rng.normal(size=(classes, columns))[y]
    return x.astype(np.float32), y


def features(fitted, x):
    return np.asarray(jax.jit(fitted.model.features)(fitted.model.params, x))


def leaves_equal(a, b):
    return all(
        np.array_equal(p, q) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize(
    "name, accuracy", [("digits", 0.97), ("breast_cancer", 0.93), ("wine", 0.93)]
)
def test_learns_real_data_in_the_default_budget(name, accuracy):
    source = open_source(f"sklearn:{name}")
    labels, told = source.labels(), []
    fitted = fit(source, labels, labels.max() + 1, progress=lambda *event: told.append(event))
    assert fitted.accuracy >= accuracy
    n = len(source)
    x = source.read(0, n)["x"]
    logits = jax.jit(fitted.model.logits)(fitted.model.params, x)
    assert np.mean(np.argmax(logits, 1) == labels) >= accuracy
    np.testing.assert_array_equal(fitted.rows, np.arange(n))
    assert fitted.losses.shape == (n, 40) and fitted.losses.dtype == np.float32
    assert np.isfinite(fitted.losses).all() and (fitted.losses >= 0).all()
    assert fitted.losses[:, -1].mean() < 0.2 * fitted.losses[:, 0].mean()
    assert 10 <= len(told) <= 21 and told[-1] == ("train", 40 * n, 40 * n)
    done = [event[1] for event in told]
    assert done == sorted(set(done))
    assert 0 < fitted.compile_seconds <= fitted.seconds


def test_same_seed_same_bits_and_another_seed_other_ones():
    x, y = blobs()
    source = open_source(x, y)
    one, two, other = (fit(source, y, 3, epochs=3, seed=seed) for seed in (5, 5, 6))
    assert leaves_equal(one.model.params, two.model.params)
    for a, b in zip(one[2:5], two[2:5], strict=True):  # losses, margins, errors
        np.testing.assert_array_equal(a, b)
    assert not leaves_equal(one.model.params, other.model.params)


DEVICES = """
import sys, jax, numpy as np
from jaxpoison.sources import open_source
from jaxpoison.training import fit
source = open_source("sklearn:digits")
fitted = fit(source, source.labels(), 10, epochs=3)
x = source.read(0, 300)["x"]
print(jax.device_count())
np.save(sys.argv[1], np.asarray(jax.jit(fitted.model.features)(fitted.model.params, x)))
"""


def test_the_number_of_devices_changes_nothing(tmp_path):
    found = []
    for count in (1, 8):
        path = tmp_path / f"{count}.npy"
        assert on_devices(count, DEVICES, path).strip() == str(count)
        found.append(np.load(path))
    assert found[0].std() > 0.1
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6)


def test_every_size_of_the_last_batch_compiles_nothing_more():
    jax.clear_caches()
    for rows in (1, 31, 32, 33, 100):
        x, y = blobs(rows)
        fitted = fit(open_source(x, y), y, 3, epochs=2, batch_rows=32)
        assert fitted.losses.shape == (rows, 2) and np.isfinite(fitted.losses).all()
    assert training._STEP._cache_size() == 1
    assert training._INIT._cache_size() == 1


def test_each_row_gets_its_own_loss():
    x, y = blobs(150)
    y[17] = (y[17] + 1) % 3  # mislabelled: it stays the hardest of all
    fitted = fit(open_source(x, y), y, 3, epochs=15, batch_rows=64)
    assert np.argmax(fitted.losses[:, -3:].mean(1)) == 17


def test_what_is_seen_of_each_row_follows_from_its_logits():
    """One step an epoch with a rate of nearly 0: what was seen is what the network still says."""
    x, y = blobs(90, classes=4)
    fitted = fit(open_source(x, y), y, 4, epochs=2, batch_rows=128, learning_rate=1e-9)
    z = np.asarray(jax.jit(fitted.model.logits)(fitted.model.params, x), np.float64)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    own = np.eye(4, dtype=bool)[y]
    margins = z[own] - np.where(own, -np.inf, z).max(axis=1)
    for seen, want in (
        (fitted.losses, -np.log(p[own])),
        (fitted.margins, margins),
        (fitted.errors, np.linalg.norm(p - own, axis=1)),
    ):
        assert seen.shape == (90, 2) and seen.dtype == np.float32
        np.testing.assert_allclose(seen, np.stack([want, want], axis=1), rtol=1e-4, atol=1e-4)
    assert fitted.accuracy == np.mean(margins > 0)


def test_excluded_rows_leave_no_trace():
    x, y = blobs(120)
    exclude = np.zeros(120, bool)
    exclude[[3, 50, 119]] = True
    one = fit(open_source(x, y), y, 3, epochs=2, exclude=exclude)
    x[exclude], y[exclude] = np.nan, -1
    two = fit(open_source(x), y, 3, epochs=2, exclude=exclude)
    assert leaves_equal(one.model.params, two.model.params)
    np.testing.assert_array_equal(one.losses, two.losses)
    np.testing.assert_array_equal(one.rows, np.flatnonzero(~exclude))


def test_more_rows_than_allowed_are_sampled():
    x, y = blobs(500)
    source = open_source(x, y)
    fitted = fit(source, y, 3, max_rows=200, epochs=2)
    assert len(fitted.rows) == 200 and (np.diff(fitted.rows) > 0).all()
    assert fitted.rows[-1] > 400 and fitted.losses.shape == (200, 2)
    fewer = fit(source, y, 3, max_bytes=100 * x[0].nbytes, epochs=2)
    assert len(fewer.rows) == 100
    again = fit(source, y, 3, max_rows=200, epochs=2)
    np.testing.assert_array_equal(fitted.rows, again.rows)


class CountingSource:
    """A source that hands out small blocks' worth of requests and counts the rows."""

    def __init__(self, x, y):
        self._inner = open_source(x, y)
        self.name, self.schema = "counted", self._inner.schema
        self.asked = []

    def __len__(self):
        return len(self._inner)

    def read(self, start, stop):
        self.asked.append((start, stop))
        return self._inner.read(start, stop)


def test_the_data_is_read_once_front_to_back():
    x = np.random.default_rng(0).normal(size=(900, 4000)).astype(np.float32)
    y = np.arange(900) % 2
    source = CountingSource(x, y)
    fit(source, y, 2, epochs=2, max_rows=300)
    assert len(source.asked) > 2
    assert source.asked[0][0] == 0 and source.asked[-1][1] == 900
    assert all(a[1] == b[0] for a, b in zip(source.asked, source.asked[1:], strict=False))


def test_large_images_are_kept_small_and_give_the_same_features():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (90, 96, 96, 3), np.uint8)
    y = np.arange(90) % 2
    x[y == 1, 40:60] //= 8
    fitted = fit(open_source(x, y), y, 2, epochs=6, batch_rows=32)
    assert fitted.accuracy > 0.9
    logits = jax.jit(fitted.model.logits)(fitted.model.params, x)
    assert np.mean(np.argmax(logits, 1) == y) > 0.9


def test_batches_of_one_class_and_a_single_class():
    x, _ = blobs(40)
    fitted = fit(open_source(x), np.zeros(40, int), 1, epochs=2)
    assert fitted.accuracy == 1.0 and not fitted.losses.any()
    assert not fitted.margins.any() and not fitted.errors.any()
    fitted = fit(open_source(x), np.repeat([0, 1], 20), 4, epochs=2, batch_rows=1)
    assert np.isfinite(fitted.losses).all() and np.isfinite(features(fitted, x)).all()


def test_constant_columns_and_constant_images():
    x, y = blobs(60)
    x[:, 2] = 1e6
    fitted = fit(open_source(x, y), y, 3, epochs=3)
    assert np.isfinite(fitted.losses).all() and np.isfinite(features(fitted, x)).all()
    black = np.zeros((20, 9, 9), np.uint8)
    fitted = fit(open_source(black), np.arange(20) % 2, 2, epochs=2)
    assert np.isfinite(fitted.losses).all()


def test_the_number_of_epochs_follows_from_the_rows():
    x = np.zeros((20_000, 1), np.float32)
    y = np.arange(20_000) % 2
    assert fit(open_source(x), y, 2, batch_rows=4096).losses.shape[1] == 5
    assert fit(open_source(x[:100]), y[:100], 2).losses.shape[1] == 40


def test_the_training_changes_neither_data_nor_labels():
    x, y = blobs(70)
    before = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    fit(open_source(x, y), y, 3, epochs=2)
    assert hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest() == before


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"labels": np.zeros(9, int)}, UsageError, r"labels has shape \(9,\).*each of the 30 rows"),
        ({"labels": np.zeros(30)}, UsageError, "type float64"),
        ({"labels": np.arange(30)}, UsageError, r"from 0 to 29; expected 0 to 2"),
        ({"labels": np.full(30, -1)}, UsageError, "from -1 to -1"),
        ({"epochs": 0}, UsageError, "epochs is 0"),
        ({"batch_rows": 0}, UsageError, "batch_rows is 0"),
        ({"max_rows": -1}, UsageError, "max_rows is -1"),
        ({"learning_rate": float("nan")}, UsageError, "learning_rate is nan"),
        ({"exclude": np.array([1, 2])}, UsageError, "exclude has shape .2,. and type int64"),
        ({"exclude": np.ones(30, bool)}, NothingToScan, "all 30 rows are excluded"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments(change, error, message):
    x, y = blobs(30)
    labels = change.pop("labels", y)
    with pytest.raises(error, match=message):
        fit(open_source(x), labels, 3, **change)


def test_rows_that_are_not_finite_are_named():
    x, y = blobs(30)
    x[21, 3] = np.inf
    with pytest.raises(DataError, match=r"row 21 has values that are not finite"):
        fit(open_source(x), y, 3)
