"""Redrawing a group's boundary along the shift its rows share."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxpoison import calibrate, detect, folds
from jaxpoison._types import Exclusion, Refined
from jaxpoison.calibrate.groups import displacement_limit, trait_group
from jaxpoison.scanning import evidence
from jaxpoison.scanning.spaces import input_space, layer_spaces, witness_stream
from jaxpoison.sources import open_source
from jaxpoison.stream import Stream
from jaxpoison.training import fit as fit_network


def planted(rows=40, shift=6.0, seed=0, d=30):
    """Four Gaussian classes; rows of the others, shifted alike, under label 0."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, 1600)
    x = rng.normal(size=(len(y), d)) + 4.0 * rng.normal(size=(4, d))[y] / np.sqrt(d) * 3
    moved = rng.choice(np.flatnonzero(y != 0), rows, replace=False)
    x[moved] += shift * np.eye(d)[0]
    y[moved] = 0
    truth = np.zeros(len(y), bool)
    truth[moved] = True
    return x.astype(np.float32), y, truth


class Passes:
    """The shared statistics, with a list of the passes that project all rows."""

    def __init__(self, passes):
        self.passes = passes

    def project(self, *args):
        self.passes.append(1)
        return folds.project(*args)

    def __getattr__(self, name):
        return getattr(folds, name)


def seen(x, y):
    source = open_source(x, y)
    raw = Stream(source, y.astype(np.int32), int(y.max()) + 1)
    stream = input_space(raw, source, 0).stream
    return stream, detect.ExclusionCheck().fit(stream, key=jax.random.key(0))


@pytest.fixture(scope="module")
def case():
    x, y, truth = planted()
    return (*seen(x, y), y, truth)


def test_half_of_a_group_is_completed(case):
    stream, fit, _, truth = case
    half = np.flatnonzero(truth)[::2]
    (found,) = detect.refine(stream, fit, [half])
    group = found.rows[found.log_odds > 0]
    assert truth[group].mean() >= 0.95
    assert truth[group].sum() >= 0.95 * truth.sum()
    assert found.separation > 4.0
    assert found.overlap >= 0.95


def test_classes_that_are_held_are_divided_as_in_a_pass(monkeypatch):
    rng = np.random.default_rng(2)
    y = rng.permutation(np.arange(3000) % 20)
    x = (rng.normal(size=(3000, 24)) + 2.0 * rng.normal(size=(20, 24))[y]).astype(np.float32)
    moved = np.sort(rng.permutation(np.flatnonzero(y != 4))[:30])
    x[moved, 0] += 12.0
    y[moved] = 4
    stream, fit = seen(x, y)
    mixed = np.union1d(moved, np.flatnonzero((y == 4) & fit.agrees)[:10])
    for is_mixed in (False, True):
        got, passes = [], []
        monkeypatch.setitem(detect.refine.__globals__, "folds", Passes(passes))
        for few in (8, len(x)):
            monkeypatch.setitem(detect.refine.__globals__, "_FEW", few)
            (found,) = detect.refine(stream, fit, [mixed], is_mixed=is_mixed)
            got.append((found, len(passes)))
        (held, none), (passed, four) = got
        assert (none, four) == (0, 4)
        assert np.isin(moved, held.rows[held.log_odds > 0]).mean() > 0.9
        np.testing.assert_allclose(held.log_odds, passed.log_odds, rtol=1e-3, atol=1e-3)
        assert held.separation == pytest.approx(passed.separation, rel=1e-3)


def test_mixed_rows_find_the_shift_that_some_share():
    x, y, truth = planted(rows=40, seed=3)
    wrong = np.flatnonzero(y == 3)[:40]  # plain label errors beside the poison
    y[wrong] = 0
    stream, fit = seen(x, y)
    mixed = np.sort(np.concatenate([np.flatnonzero(truth)[:25], wrong]))
    (found,) = detect.refine(stream, fit, [mixed], is_mixed=True)
    group = found.rows[found.log_odds > 0]
    assert truth[group].mean() >= 0.95
    assert truth[group].sum() >= 0.95 * truth.sum()


def test_all_rows_of_the_class_get_odds_and_no_others(case):
    stream, fit, y, truth = case
    (found,) = detect.refine(stream, fit, [np.flatnonzero(truth)])
    np.testing.assert_array_equal(found.rows, np.flatnonzero(y == 0))
    assert np.isfinite(found.log_odds).all()


def test_honest_rows_of_a_class_are_not_set_apart(case):
    stream, fit, y, truth = case
    honest = np.flatnonzero((y == 1) & ~truth)[:50]
    (found,) = detect.refine(stream, fit, [honest], is_mixed=True)
    assert not calibrate.shifted_groups(stream.labels, [found], 64)


def test_groups_of_several_classes_do_not_touch_each_other(case):
    stream, fit, y, truth = case
    mine, other = np.flatnonzero(truth), np.flatnonzero(y == 2)[:40]
    alone = detect.refine(stream, fit, [mine])[0]
    together = detect.refine(stream, fit, [other, mine])[1]
    np.testing.assert_allclose(alone.log_odds, together.log_odds, rtol=1e-4, atol=1e-3)


def test_no_groups_need_no_pass(case):
    stream, fit, _, _ = case
    assert detect.refine(stream, fit, []) == []


def test_disputed_rows_are_listed_class_by_class():
    labels = np.array([0] * 8 + [1] * 8 + [2] * 8)
    agrees = np.ones(24, bool)
    agrees[[1, 2, 3, 4, 5, 6]] = False
    agrees[[9, 10]] = False
    (only,) = evidence.disputed(labels, agrees)
    np.testing.assert_array_equal(only, [1, 2, 3, 4, 5, 6])


def test_equal_row_sets_are_verified_once():
    group = calibrate.Group("mixture", "input", 0, np.arange(100), None, 9.0, 0.0, 8)
    near = group._replace(space="layer1", rows=np.arange(1, 101))
    far = group._replace(space="layer2", rows=np.arange(50, 150))
    elsewhere = group._replace(target=1)
    sets, number = evidence.distinct([group, near, far, elsewhere])
    assert number == [0, 0, 1, 2]
    assert len(sets) == 3


def test_wide_rows_are_seen_along_what_tells_classes_apart():
    x, y, _ = planted(d=200)
    source = open_source(x, y)
    space = input_space(Stream(source, y.astype(np.int32), 4), source, 0)
    view = witness_stream(space, source)
    block_rows = np.asarray(view.stage.fn(view.stage.params, x[None]))[0]
    assert block_rows.shape == (len(y), 3)
    centred = block_rows - np.stack([block_rows[y == c].mean(axis=0) for c in range(4)])[y]
    np.testing.assert_allclose(centred.std(axis=0), 1.0, rtol=0.1)


def test_narrow_rows_are_seen_as_they_are():
    x, y, _ = planted()
    source = open_source(x, y)
    space = input_space(Stream(source, y.astype(np.int32), 4), source, 0)
    assert witness_stream(space, source) is space.stream


def shifted(separation, inside, rows=100):
    return Refined(np.arange(rows), np.where(np.arange(rows) < inside, 4.0, -9.0), separation, 0.5)


def test_disputed_rows_along_a_clear_shift_become_a_group():
    labels = np.zeros(100, np.int32)
    (found,) = calibrate.shifted_groups(labels, [None, shifted(1e3, 12)], 64)
    assert found.target == 0 and found.rows.tolist() == list(range(12))
    assert (found.log_odds == 4.0).all()


@pytest.mark.parametrize("found", [shifted(0.5, 12), shifted(1e3, 1), shifted(1e3, 100)])
def test_no_group_without_a_clear_shift_or_with_few_rows_or_all(found):
    assert calibrate.shifted_groups(np.zeros(100, np.int32), [found], 64) == []


def confirmed(rows=30):
    """A finding of rows 0..rows-1 in a class of 100."""
    group = calibrate.Group("mixture", "input", 0, np.arange(rows), np.full(rows, 5.0), 20.0, 0, 9)
    check = Exclusion(rows, 0.0, 0.9, -50.0, 1.0, 1.0, 2.0, 1, 0.2)
    (found,) = calibrate.find([group], [check], num_classes=5, fdr=0.05)
    return found


def test_displaced_disputed_rows_join_a_finding():
    rows, null = np.arange(20, 60), np.linspace(0.6, 1.2, 200)
    ratios = np.where(rows < 45, 1.8, 0.9)
    after = calibrate.extend(confirmed(), rows, ratios, null, 200)
    assert after.rows.tolist() == list(range(45))
    assert (after.log_odds > 0).all() and len(after.support) == len(after.rows)


def test_no_more_displaced_rows_than_elsewhere_change_nothing():
    found, null = confirmed(), np.linspace(0.6, 1.2, 200)
    rows = np.arange(30, 90)
    ratios = np.where(rows < 31, 1.8, 0.9)
    assert calibrate.extend(found, rows, ratios, null, 200) is found
    assert calibrate.extend(found, rows, np.full(60, 1.8), null[:3], 200) is found


def test_few_rows_must_be_displaced_farther():
    def limit(num_rows, num_features):
        rows, odds = np.arange(num_rows), np.ones(num_rows)
        return displacement_limit(trait_group(0, rows, odds, 9.0, 0.5, num_features))

    limits = [limit(n, 64) for n in (5, 9, 50, 5000)]
    assert limits == sorted(limits, reverse=True) and limits[-1] > 1.3
    assert limit(50, 18) > limit(50, 64)  # odd corners of tables are farther off


def test_displacement_of_rows_that_belong_elsewhere():
    x, labels, _ = planted(rows=1)
    wrong = np.flatnonzero(labels == 2)[:30]
    labels[wrong] = 1
    stream, fit = seen(x, labels)
    honest = np.flatnonzero((labels == 1) & fit.agrees)[:30]
    moved, settled = detect.displacement(stream, fit, [wrong, honest])
    assert np.median(moved) > 1.2 * np.median(settled)
    assert detect.displacement(stream, fit, []) == []


def test_layers_come_with_what_the_network_said_of_every_row():
    x, y, _ = planted()
    source = open_source(x, y)
    raw = Stream(source, y.astype(np.int32), 4)
    fitted = fit_network(source, y, 4, epochs=2)
    late, early = layer_spaces(raw, fitted.model, fitted)
    assert late.dynamics is early.dynamics
    assert late.dynamics.losses.shape == (len(y), 2)
    np.testing.assert_array_equal(late.dynamics.rows, np.arange(len(y)))
    expected = np.asarray(fitted.model.logits(fitted.model.params, x))
    np.testing.assert_allclose(late.dynamics.logits, expected, rtol=1e-4, atol=1e-4)
    features = np.asarray(fitted.model.features(fitted.model.params, x))
    held = late.stream.source.read(0, len(y))["x"]
    np.testing.assert_allclose(held, features, rtol=1e-4, atol=1e-4)
