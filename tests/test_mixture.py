"""The shared-covariance mixture against EM done in the naive way in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import reference
from jaxpoison.kernels import shared_covariance_mixture as mixture
from jaxpoison.kernels.mixture import whiten


def two_groups(seed=0, n=400, k=6, share=0.1, apart=7.0):
    """A class with a shifted group, in coordinates of unlike scale; and which rows are in it."""
    rng = np.random.default_rng(seed)
    is_second = np.arange(n) < round(share * n)
    rng.shuffle(is_second)
    direction = rng.normal(size=k)
    x = rng.normal(size=(n, k)) + is_second[:, None] * apart * direction / np.linalg.norm(direction)
    mixing = np.diag(np.geomspace(0.3, 5.0, k)) + 0.2 * rng.normal(size=(k, k))
    return (x @ mixing).astype(np.float32), is_second


def fit(x, rows=None):
    """The kernel on all rows, padded to ``rows``."""
    rows = rows or len(x)
    padded = np.zeros((rows, x.shape[1]), np.float32)
    padded[: len(x)] = x
    return mixture(padded, (np.arange(rows) < len(x)).astype(np.float32))


def equal_bits(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3, 0.45])
def test_against_naive_em(share):
    x, is_second = two_groups(seed=int(100 * share), share=share)
    found = fit(x)
    ratio, gain, separation, weight = reference.shared_mixture(
        x.astype(np.float64), is_second * 0.98 + 0.01
    )
    # both are at the same optimum; float32 sums of 400 terms of size 10 leave 1e-4
    np.testing.assert_allclose(found.gain, gain, rtol=1e-3)
    np.testing.assert_allclose(found.separation, separation, rtol=1e-3)
    np.testing.assert_allclose(found.weight, weight, rtol=1e-3)
    assert np.corrcoef(found.log_ratio, ratio)[0, 1] > 0.9999
    assert np.abs(np.asarray(found.log_ratio) - ratio).max() < 1e-2 * np.abs(ratio).max()
    assert ((np.asarray(found.log_ratio) > 0) == is_second).mean() > 0.99


def test_gain_is_the_likelihood_of_scipys_normals():
    x, _ = two_groups(seed=5, apart=5.0)
    found = fit(x)
    wide = x.astype(np.float64)
    shares = 1 / (1 + np.exp(-np.asarray(found.log_ratio, np.float64)))
    one, two = reference.shared_mixture_logs(wide, *reference.shared_mixture_fit(wide, shares))
    alone = scipy.stats.multivariate_normal(wide.mean(axis=0), reference.covariance(wide))
    gain = np.logaddexp(one, two).sum() - alone.logpdf(wide).sum()
    np.testing.assert_allclose(found.gain, gain, rtol=1e-3)
    np.testing.assert_allclose(found.weight, shares.mean(), rtol=1e-4)


def test_affine_maps_change_nothing():
    x, _ = two_groups()
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(6, 6)) + 3 * np.eye(6)
    moved = (x.astype(np.float64) @ mixing * 40 + 100).astype(np.float32)
    one, two = fit(x), fit(moved)
    # the offset costs float32 two digits before the rows are centred
    for name in ("gain", "separation", "weight"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=2e-3)
    assert np.corrcoef(one.log_ratio, two.log_ratio)[0, 1] > 0.9999


def test_scale_of_one_column_changes_nothing():
    """Columns of 1e-4 and 1e4 side by side: the floor of the whitening must not eat the small."""
    x, _ = two_groups()
    scaled = x * np.geomspace(1e-4, 1e4, 6).astype(np.float32)
    one, two = fit(x), fit(scaled)
    np.testing.assert_allclose(one.separation, two.separation, rtol=1e-3)
    assert np.corrcoef(one.log_ratio, two.log_ratio)[0, 1] > 0.9999


def test_order_of_rows():
    x, _ = two_groups()
    order = np.random.default_rng(2).permutation(len(x))
    one, two = fit(x), fit(x[order])
    np.testing.assert_allclose(one.gain, two.gain, rtol=1e-4)  # sums in another order
    np.testing.assert_allclose(
        np.asarray(one.log_ratio)[order], two.log_ratio, rtol=1e-3, atol=1e-2
    )


def test_content_of_padding_changes_no_bit():
    x, _ = two_groups(n=300)
    mask = (np.arange(384) < 300).astype(np.float32)
    results = []
    for fill in (0.0, 1e30, np.nan):
        padded = np.full((384, 6), fill, np.float32)
        padded[:300] = x
        results.append(mixture(padded, mask))
    assert equal_bits(results[0], results[1]) and equal_bits(results[0], results[2])
    assert not np.asarray(results[0].log_ratio)[300:].any()


def test_more_padding_only_changes_rounding():
    """Another length splits the sums over rows elsewhere; the optimum is the same."""
    x, _ = two_groups(n=300)
    one, two = fit(x), fit(x, 512)
    np.testing.assert_allclose(one.gain, two.gain, rtol=1e-4)
    np.testing.assert_allclose(one.log_ratio, two.log_ratio[:300], rtol=1e-3, atol=1e-2)


def test_vmap_is_a_loop():
    tables = [two_groups(seed=s)[0] for s in range(3)]
    ones = np.ones((3, 400), np.float32)
    together = jax.vmap(mixture)(np.stack(tables), ones)
    for i, x in enumerate(tables):
        alone = fit(x)
        np.testing.assert_allclose(together.gain[i], alone.gain, rtol=1e-4)  # batched matmuls
        np.testing.assert_allclose(together.log_ratio[i], alone.log_ratio, rtol=1e-3, atol=1e-2)


def test_fewer_rows_than_a_component_needs():
    """Three far rows of 200 can not be a component of min_rows 5; they may join one that is."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    x[:3] += 40.0
    assert fit(x).weight * 200 >= 5 - 1e-3
    allowed = mixture(x, np.ones(200, np.float32), min_rows=2.0)
    np.testing.assert_allclose(allowed.weight, 3 / 200, rtol=1e-3)
    assert set(np.flatnonzero(np.asarray(allowed.log_ratio) > 0)) == {0, 1, 2}


@pytest.mark.parametrize("n", [1, 2, 9])
def test_classes_too_small_for_two_components(n):
    x = np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32)
    found = fit(x, 16)
    assert all(np.isfinite(part).all() for part in found)
    assert found.gain == 0 and found.separation == 0 and found.weight == 0
    assert (np.asarray(found.log_ratio)[:n] < 0).all()  # no row is set apart


@pytest.mark.parametrize("value", [0.0, 1e4, -3.0])
def test_rows_all_equal(value):
    found = fit(np.full((50, 4), value, np.float32), 64)
    assert all(np.isfinite(part).all() for part in found)
    assert not (np.asarray(found.log_ratio) > 0).any()


def test_columns_without_spread_are_ignored():
    x, is_second = two_groups()
    wide = np.concatenate([x, np.full((len(x), 2), 7.0, np.float32), x[:, :1]], axis=1)
    found = fit(wide)  # two constant columns, and one twice
    assert ((np.asarray(found.log_ratio) > 0) == is_second).mean() > 0.99
    np.testing.assert_allclose(found.separation, fit(x).separation, rtol=0.02)


def test_no_row_at_all():
    found = mixture(np.full((32, 3), np.nan, np.float32), np.zeros(32, np.float32))
    assert all(np.isfinite(part).all() for part in found)
    assert not np.asarray(found.log_ratio).any()


def test_one_population_gains_little():
    x = np.random.default_rng(8).normal(size=(600, 6)).astype(np.float32)
    planted, _ = two_groups(n=600)
    assert 0 <= fit(x).gain < 60 < fit(planted).gain


def test_whitened_rows():
    x, _ = two_groups()
    y = np.asarray(whiten(jnp.asarray(x + 100), jnp.ones(len(x))), np.float64)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(reference.covariance(y), np.eye(6), atol=1e-4)


def test_one_compile_for_all_values():
    x, _ = two_groups(n=333)
    fit(x)
    before = mixture._cache_size()
    fit(two_groups(seed=1, n=333)[0])
    fit(x[:300], 333)
    assert mixture._cache_size() == before


@pytest.mark.parametrize("every", [1, 2, 3])
def test_starts_of_large_classes_are_screened_on_some_rows(every, monkeypatch):
    x, is_second = two_groups(seed=7, n=6000, share=0.04)
    whole = fit(x)
    monkeypatch.setattr("jaxpoison.kernels.mixture._SCREENED", len(x) // every)
    ones = np.ones(len(x), np.float32)

    def anew(x, mask):  # a function of its own, so that nothing traced before is used again
        return mixture.__wrapped__(x, mask)

    some = jax.jit(anew)(x, ones)
    for a, b in zip(some, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=0.05)  # the same optimum, 50 steps on
    assert ((np.asarray(some.log_ratio) > 0) == is_second).mean() > 0.99
    text = str(jax.make_jaxpr(anew)(x, ones))
    assert (f"f32[96,{len(x)}]" in text) == (every == 1)  # starts are held for screened rows alone
