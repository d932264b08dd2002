"""Verification of groups: exact exclusion, and what it says of planted and of honest rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import engine_data as data
import reference
from jaxpoison._check import UsageError
from jaxpoison.detect import ExclusionCheck, exclusion
from jaxpoison.stream import Stage

KEY = jax.random.key(0)
DIGITS = load_digits()
X, Y = DIGITS.data.astype(np.float32), DIGITS.target
TARGET = 3


def planted(source=None, n=80, seed=0):
    """Digits of all other classes (or of one) relabelled, with a bright corner."""
    rng = np.random.default_rng(seed)
    wanted = Y != TARGET if source is None else source == Y
    rows = np.sort(rng.permutation(np.flatnonzero(wanted))[:n])
    x, y = X.copy(), Y.copy()
    x[np.ix_(rows, [0, 1, 8, 9])] = 16.0
    y[rows] = TARGET
    return x, y, rows


def check(x, y, groups, **options):
    stream = data.stream_of(x, y)
    detector = ExclusionCheck(**options)
    return detector.check(stream, detector.fit(stream, key=KEY), groups)


@pytest.fixture(scope="module")
def fitted():
    """The planted digits, fitted once."""
    x, y, rows = planted()
    stream = data.stream_of(x, y)
    return stream, ExclusionCheck().fit(stream, key=KEY), rows


@pytest.fixture(scope="module")
def honest():
    """The digits as they are, fitted once."""
    stream = data.stream_of(X, Y)
    return stream, ExclusionCheck().fit(stream, key=KEY)


def test_exclusion_equals_a_refit_without_the_group(fitted):
    stream, fit, rows = fitted
    phi = fit.features.host(stream.take(np.arange(len(stream))))
    own = np.zeros(len(stream), np.bool_)
    own[rows] = True
    want = reference.ridge_opinion(phi, stream.labels, 10, fit.ridge, rows)
    target = fit.target.copy()
    target[:, TARGET] -= phi[rows].sum(axis=0)
    weights = exclusion._solve(fit.gram - phi[rows].T @ phi[rows], target, fit.ridge)
    # the sums over all rows are float32 (1e-7 of the largest eigenvalue, which is 1e3 ridges)
    np.testing.assert_allclose(phi[rows] @ weights, want, atol=1e-3)
    found = ExclusionCheck().check(stream, fit, [rows])[0]
    assert found.agreement == (want.argmax(axis=1) == TARGET).mean()
    want[:, TARGET] = -np.inf
    counts = np.bincount(want.argmax(axis=1), minlength=10)
    assert found.source == counts.argmax() and found.source_share == counts.max() / len(rows)


def test_a_share_of_each_class_teaches_where_rows_are_many(monkeypatch):
    monkeypatch.setattr(exclusion, "_TEACHING_ROWS", 600)
    x, y, rows = planted()
    stream = data.stream_of(x, y)
    fit = ExclusionCheck().fit(stream, key=KEY)
    share = fit.taught.mean()
    assert 0.25 < share < 0.6
    for c in range(10):
        assert 0.2 < fit.taught[stream.labels == c].mean() < 0.8
    # the equations are those of these rows, and a group is taken out of them exactly
    phi = fit.features.host(stream.take(np.arange(len(stream))))
    taught = phi[fit.taught]
    np.testing.assert_allclose(fit.gram, taught.T @ taught, rtol=1e-4, atol=1e-3)
    found = ExclusionCheck().check(stream, fit, [rows])[0]
    inside = np.concatenate([rows, np.setdiff1d(np.flatnonzero(fit.taught), rows)])
    want = reference.ridge_opinion(
        phi[inside], stream.labels[inside], 10, fit.ridge, np.arange(len(rows))
    )
    assert found.agreement == pytest.approx((want.argmax(axis=1) == TARGET).mean(), abs=0.02)
    assert found.agreement < 0.2 < 0.8 < found.expected and found.num_rows == 80
    # the others are judged by what never saw them
    settled = np.setdiff1d(np.arange(len(y)), rows)
    agreed = [fit.agrees[settled][fit.taught[settled] == seen].mean() for seen in (True, False)]
    assert min(agreed) > 0.85 and abs(agreed[0] - agreed[1]) < 0.05


def test_a_group_that_does_not_teach_is_judged_too(monkeypatch):
    monkeypatch.setattr(exclusion, "_TEACHING_ROWS", 600)
    x, y, rows = planted()
    stream = data.stream_of(x, y)
    fit = ExclusionCheck().fit(stream, key=KEY)
    unseen = rows[~fit.taught[rows]]
    found = ExclusionCheck().check(stream, fit, [unseen])[0]
    # nothing is taken out of the equations: what they say of these rows stands
    phi = fit.features.host(stream.take(unseen))
    said = phi @ exclusion._solve(fit.gram, fit.target, fit.ridge)
    assert found.agreement == (said.argmax(axis=1) == TARGET).mean()


def test_a_large_group_is_taken_out_by_many_of_the_rows_it_taught(monkeypatch):
    monkeypatch.setattr(exclusion, "_TEACHING_ROWS", 600)
    x, y, rows = planted(n=300)
    stream = data.stream_of(x, y)
    fit = ExclusionCheck(num_features=64).fit(stream, key=KEY)
    whole = ExclusionCheck().check(stream, fit, [rows])[0]
    monkeypatch.setattr(exclusion, "_GROUP_ROWS", 100)
    part = ExclusionCheck().check(stream, fit, [rows])[0]
    taught = rows[fit.taught[rows]]
    assert 60 < len(taught) <= 150 and part.num_rows == whole.num_rows == 300
    assert part.agreement == pytest.approx(whole.agreement, abs=0.06)
    assert part.diversity == pytest.approx(whole.diversity, abs=0.25)


def test_up_to_so_many_rows_all_of_them_teach(monkeypatch):
    x, y, _ = planted()
    stream = data.stream_of(x, y)
    for most, share in ((len(x), 1.0), (len(x) - 1, None)):
        monkeypatch.setattr(exclusion, "_TEACHING_ROWS", most)
        taught = ExclusionCheck(num_features=64).fit(stream, key=KEY).taught.mean()
        assert taught == share if share else taught < 1.0


def test_exclusion_in_float64_is_exact(fitted):
    """The algebra itself, without the rounding of the device's sums."""
    stream, fit, rows = fitted
    phi = fit.features.host(stream.take(np.arange(len(stream))))
    onehot = np.eye(10)[stream.labels]
    gram = phi.T @ phi - phi[rows].T @ phi[rows]
    target = phi.T @ onehot - phi[rows].T @ onehot[rows]
    weights = exclusion._solve(gram, target, fit.ridge)
    want = reference.ridge_opinion(phi, stream.labels, 10, fit.ridge, rows)
    np.testing.assert_allclose(phi[rows] @ weights, want, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(fit.gram, phi.T @ phi, rtol=1e-4, atol=1e-3)


def test_planted_rows_go_home(fitted):
    stream, fit, rows = fitted
    found = ExclusionCheck().check(stream, fit, [rows])[0]
    assert found.num_rows == 80
    assert found.agreement < 0.2 < 0.8 < found.expected
    assert found.log10_p < -20
    assert 0.75 < found.transplant < 1.25 < found.home / found.transplant
    assert 0.7 < found.diversity < 1.3  # rows of every class


def test_depth_does_not_fade_where_classes_are_many():
    """120 classes in 128 dimensions: home is hardly farther than another class, but the mean is."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(9600) % 120)
    x = 0.7 * rng.normal(size=(120, 128))[y] + rng.normal(size=(9600, 128))
    rows = np.sort(rng.permutation(np.flatnonzero(y != 5))[:60])
    x[rows] += 0.3 * rng.normal(size=128)
    y[rows] = 5
    honest = np.flatnonzero(y == 7)[:60]
    moved, own = check(x.astype(np.float32), y, [rows, honest])
    assert moved.home < 1.36 * moved.transplant and moved.agreement < 0.1 < 0.5 < moved.expected
    assert 0.5 < moved.depth < 1.1
    assert own.depth < 0.0


def test_depth_by_hand():
    """Rows at the means gain all their scatter, rows half way none; rows at one point lose it."""
    means = np.random.default_rng(1).normal(size=(9, 4))
    for share, depth in ((1.0, 1.0), (0.5, 0.0), (0.0, -1.0)):
        np.testing.assert_allclose(exclusion._depth(3.0 + share * means, means), depth, atol=1e-12)


def test_rows_of_one_source():
    x, y, rows = planted(source=2)
    found = check(x, y, [rows], num_features=512)[0]
    assert found.agreement < 0.2 * found.expected and found.log10_p < -20
    # the trigger is new to the classifier and sends some rows elsewhere: no large majority
    assert found.source == 2 and found.source_share > 0.35
    assert found.diversity < 0.65 and found.home > 1.3 * found.transplant


@pytest.mark.parametrize("label", [0, TARGET, 8])
def test_honest_subset_keeps_its_label(honest, label):
    mine = np.flatnonzero(label == Y)
    rows = np.sort(np.random.default_rng(1).permutation(mine)[:60])
    stream, fit = honest
    found = ExclusionCheck().check(stream, fit, [rows])[0]
    assert abs(found.agreement - found.expected) < 0.1
    assert found.log10_p > -3
    assert found.expected > 0.8
    assert found.home < 1.3 * found.transplant


def test_groups_do_not_touch_each_other(fitted):
    stream, fit, rows = fitted
    honest = np.flatnonzero(stream.labels == 5)[::3]
    together = ExclusionCheck().check(stream, fit, [rows, honest, rows[:20]])
    alone = [ExclusionCheck().check(stream, fit, [g])[0] for g in (rows, honest, rows[:20])]
    assert together == alone
    assert ExclusionCheck().check(stream, fit, []) == []


def test_out_of_fold_opinion(fitted):
    """Every row is judged by folds that never held its own tile."""
    stream, fit, rows = fitted
    honest = np.ones(len(stream), np.bool_)
    honest[rows] = False
    assert fit.agrees.dtype == np.bool_ and 0.9 < fit.agrees[honest].mean() < 1.0


def test_a_stage_is_seen(fitted):
    x, y, rows = planted()
    images = x.reshape(-1, 8, 8).astype(np.uint8)
    stream = data.stream_of(images, y).through(Stage(_rows, np.float32(1.0)))
    detector = ExclusionCheck()
    staged = detector.check(stream, detector.fit(stream, key=KEY), [rows])[0]
    plain = detector.check(*fitted[:2], [rows])[0]
    assert staged.agreement == plain.agreement and staged.num_rows == plain.num_rows
    np.testing.assert_allclose(staged.transplant, plain.transplant, rtol=1e-3)


def _rows(params, x):
    return x.reshape(*x.shape[:2], -1).astype(jnp.float32) * params


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_a_large_mean_changes_nothing(fitted, offset):
    """Squared norms of 1e4 in float32 hold no trace of distances of 10."""
    x, y, rows = planted()
    stream, fit, _ = fitted
    found = check((x + offset).astype(np.float32), y, [rows])[0]
    plain = ExclusionCheck().check(stream, fit, [rows])[0]
    np.testing.assert_allclose(found.transplant, plain.transplant, rtol=1e-2)
    np.testing.assert_allclose(found.home, plain.home, rtol=1e-2)
    assert abs(found.agreement - plain.agreement) <= 0.05


def test_large_groups_are_judged_by_a_subset(monkeypatch, fitted):
    stream, fit, _ = fitted
    monkeypatch.setattr(exclusion, "_GROUP_ROWS", 30)
    rows = np.flatnonzero(stream.labels == TARGET)
    found = ExclusionCheck().check(stream, fit, [rows])[0]
    assert found.num_rows == len(rows) and np.isfinite(found.agreement)


def test_scaled_up_subset_of_a_far_group(monkeypatch):
    """A subset's weight scaled up can exceed what all rows hold along some direction."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 40)).astype(np.float32)
    x[:800] *= 3.0  # the group alone spans most of the features it is seen by
    labels = np.r_[np.zeros(800, int), 1 + np.arange(400) % 2]
    monkeypatch.setattr(exclusion, "_GROUP_ROWS", 100)
    found = check(x, labels, [np.arange(700)])[0]
    assert found.num_rows == 700
    assert np.isfinite([found.agreement, found.expected, found.diversity]).all()


def test_a_whole_class_and_a_single_row(fitted):
    stream, fit, _ = fitted
    whole, one = ExclusionCheck().check(
        stream, fit, [np.flatnonzero(stream.labels == 1), np.flatnonzero(stream.labels == 4)[:1]]
    )
    assert whole.agreement == 0.0 and whole.expected == 0.5  # nothing is left to compare with
    assert whole.home == float("inf") and one.num_rows == 1 and one.agreement in (0.0, 1.0)


def test_rows_all_equal():
    x, y = np.full((200, 6), 2.0, np.float32), np.arange(200) % 4
    found = check(x, y, [np.flatnonzero(y == 1)[:20]])[0]
    assert not np.isnan([*found._replace(depth=0.0)]).any() and np.isnan(found.depth)


def test_same_key_same_opinion():
    x, y, rows = planted()
    small = {"num_features": 64}
    assert check(x, y, [rows], **small) == check(x, y, [rows], **small)


@pytest.mark.parametrize("options", [{"num_folds": 1}, {"ridge": 0.0}, {"bandwidth": -1.0}])
def test_what_no_opinion_can_come_from_is_refused(options):
    stream = data.stream_of(np.eye(4, dtype=np.float32), np.arange(4) % 2)
    with pytest.raises(UsageError, match="at least 2 folds"):
        ExclusionCheck(**options).fit(stream, key=KEY)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_rows_and_equal_rows_have_a_fit(n):
    x = np.ones((n, 4), np.float32)
    fit = ExclusionCheck(num_features=16).fit(
        data.stream_of(x, np.arange(n) % 2, num_classes=2), key=KEY
    )
    assert fit.agrees.shape == (n,) and np.isfinite(fit.gram).all()
