"""Wrong labels, from what classifiers on parts of the input say out of fold."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import label_data as given
from engine_data import auroc
from jaxpoison.detect import LabelViews, label_views
from jaxpoison.detect._discriminants import doubted_rows, usual_margins
from label_data import CLASSES, KEY, ROWS, SMALL, judge

# --- What is computed -----------------------------------------------------------------------


def test_features_are_centred_and_scaled():
    rng = np.random.default_rng(0)
    raw = (rng.normal(size=(300, 6)) * [1, 5, 0.2, 1, 1, 0] + 7).astype(np.float32)
    fitted = given.Fitted(
        raw.copy(), rng.integers(0, 3, 300), 3, np.arange(300) % 3, np.eye(6) > 0, 0.1
    )
    np.testing.assert_allclose(fitted.phi, (raw - fitted.mean) * fitted.scale, atol=1e-6)
    np.testing.assert_allclose(fitted.phi.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(fitted.phi[:, :5].std(axis=0), 1, rtol=0.03)  # all but the floor
    assert not fitted.phi[:, 5].any()
    gram = fitted.phi.astype(np.float64).T @ fitted.phi
    np.testing.assert_allclose(fitted.gram, gram, atol=1e-3)


@pytest.mark.parametrize("share_left_out", [0.0, 0.3])
def test_scores_are_those_of_ridge_classifiers_fitted_one_by_one(share_left_out):
    fitted = given.equations()
    left_out = np.random.default_rng(1).random(400) < share_left_out
    found = fitted.out_of_fold(fitted.solve(left_out))
    expected = given.ridge_scores(
        fitted.phi, fitted.labels, 4, fitted.fold, fitted.columns, 0.03, left_out
    )
    # float32 sums of some hundred rows, solved at a condition of some hundred
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(expected).max() > 0.5


def test_taking_rows_out_equals_never_having_had_them():
    fitted = given.equations()
    left_out = np.random.default_rng(2).random(400) < 0.4
    kept = given.Fitted(
        ((fitted.phi / fitted.scale) + fitted.mean)[~left_out],
        fitted.labels[~left_out],
        4,
        fitted.fold[~left_out],
        fitted.columns,
        0.03,
    )
    # the same units, or the ridge would be another
    kept.phi[:] = fitted.phi[~left_out]
    kept._full = [kept._moments(np.flatnonzero(kept.fold == k)) for k in range(3)]
    without, refitted = fitted.solve(left_out), kept.solve(np.zeros(len(kept.phi), bool))
    np.testing.assert_allclose(without, refitted, atol=2e-5)
    assert np.abs(without - fitted.solve(np.zeros(400, bool))).max() > 0.01


def test_rows_do_not_teach_their_own_fold():
    fitted = given.equations()
    nothing = np.zeros(400, bool)
    before = fitted.solve(nothing)
    fold_1 = fitted.fold == 1
    after = fitted.solve(fold_1)
    np.testing.assert_allclose(before[:, 1], after[:, 1], atol=2e-5)
    assert np.abs(before[:, 0] - after[:, 0]).max() > 0.01


@pytest.mark.parametrize("kind", ["table", "digits"])
@pytest.mark.parametrize("num_rounds", [1, 3])
def test_opinion_is_what_it_says(monkeypatch, kind, num_rounds):
    monkeypatch.setattr(label_views, "NormalEquations", given.Fitted)
    if kind == "table":
        x, labels, _ = given.flipped()
    else:
        x, labels, _ = (a[:700] for a in given.stamped())
    opinion = judge(x, labels, LabelViews(num_features=192, num_rounds=num_rounds))
    fitted = given.Fitted.last
    expected = given.opinion_of(
        fitted.phi, labels, fitted.num_classes, fitted.fold, fitted.columns, 0.03, num_rounds
    )
    # a whitening at a condition of some thousand between float32 scores and nats
    np.testing.assert_allclose(opinion.margins, expected[0], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(opinion.depth, expected[1], rtol=2e-3, atol=2e-3)
    assert np.array_equal(opinion.taken_for, expected[2])
    assert np.array_equal(opinion.doubted, expected[3])
    assert 0 < opinion.doubted.sum() < len(x) / 2
    assert (opinion.taken_for != labels).all()


def test_at_most_three_quarters_of_a_class_are_doubted():
    labels = np.repeat([0, 1, 2], [40, 40, 1])
    margins = np.r_[np.linspace(4, 8, 40), np.linspace(-5, 5, 40), 9.0]
    doubted = doubted_rows(margins, labels, 4)
    assert np.array_equal(np.flatnonzero(doubted[:40]), np.arange(10, 40))  # the most doubted
    assert np.array_equal(doubted[40:80], margins[40:80] > 3.0)
    assert not doubted[80]


def test_usual_margins_of_classes_nobody_knows_are_infinite():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3], [50, 50, 3, 20])
    logs = rng.normal(size=(123, 4)) + 5 * np.eye(4)[labels]
    logs[:, 3] = -np.inf  # trimmed below what a discriminant needs, though 20 rows are settled
    logs[labels == 1] -= 20 * np.eye(4)[1]  # no row of class 1 looks like it
    usual = usual_margins(logs, labels, np.ones(123, bool))
    expected = np.median(logs[:50, 0] - logs[:50, 1])
    assert np.isclose(usual[1, 0], expected) and 4 < expected < 6
    assert np.isinf(usual[:, 1:]).all() and np.isinf(usual[0, 0]) and np.isinf(usual[3, 0])


# --- More rows than are fitted ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["table", "digits"])
def test_rows_beyond_the_sample_are_judged_alike(kind):
    if kind == "table":
        x, labels, wrong = given.flipped(seed=3, n=1500)
    else:
        x, labels = (a.copy() for a in given.digits())
        wrong = np.random.default_rng(0).random(len(x)) < 0.1
        labels[wrong] = (labels[wrong] + 1 + np.arange(wrong.sum()) % 9) % 10
    small, whole = dataclasses.replace(SMALL, max_rows=900), judge(x, labels)
    part = judge(x, labels, small)
    assert len(part.space.rows) == len(part.space.phi) == 900
    assert (np.diff(part.space.rows) > 0).all()
    outside = np.setdiff1d(np.arange(len(x)), part.space.rows)
    for rows in (outside, part.space.rows):
        assert auroc(part.margins[rows], wrong[rows]) > 0.98
        assert auroc(part.depth[rows], wrong[rows]) > 0.95
        assert 0.8 < part.doubted[rows].mean() / part.doubted.mean() < 1.2
    right = ~wrong[outside]
    settled = [np.median(part.margins[rows][~wrong[rows]]) for rows in (outside, part.space.rows)]
    assert 0.7 < settled[0] / settled[1] < 1.4
    assert np.corrcoef(part.margins[outside], whole.margins[outside])[0, 1] > 0.9
    assert (part.taken_for != labels).all() and right.any()


def test_a_sample_of_all_rows_is_all_rows():
    x, labels, _ = given.flipped()
    one = judge(x, labels, dataclasses.replace(SMALL, max_rows=ROWS))
    for a, b in zip(one[:4], given.first()[:4], strict=True):
        assert np.array_equal(a, b)


def test_features_of_a_sample_are_let_go_and_come_back_equal(monkeypatch):
    monkeypatch.setattr("jaxpoison.stream._stream._LARGE_BYTES", 1)
    x, labels, _ = given.flipped(seed=3)
    detector = dataclasses.replace(SMALL, max_rows=600)
    stream = given.stream_of(x, labels)
    fitted = detector._fitted(stream, KEY)
    first = fitted.equations.phi.copy()
    space = detector.judge(stream, key=KEY).space
    assert fitted.equations._phi is None  # nothing is held between judging and seeking traits
    assert np.array_equal(space.phi, first) and space.phi is fitted.equations.phi
    np.testing.assert_allclose(first.T @ first, space.gram, atol=1e-3 * len(first))
    whole = SMALL._fitted(stream, KEY).equations
    held = whole.phi
    whole.let_go()  # a pass over all rows would bring these back: they stay
    assert whole.phi is held


def test_a_few_rows_known_to_be_poison_touch_the_opinion_of_their_class_alone():
    x, labels, wrong = given.flipped(seed=3, n=3000, num_classes=20)
    detector = dataclasses.replace(SMALL, max_rows=900)
    stream = given.stream_of(x, labels)
    before = detector.judge(stream, key=KEY)
    known = wrong & (labels == 7)
    after = detector.rejudge(stream, before, known, key=KEY)
    every = detector._opinion(stream, detector._fitted(stream, KEY), before.doubted, known)
    touched = (labels == 7) | (before.taken_for == 7)
    touched[before.space.rows] = True
    assert 0 < touched.sum() < len(x) / 2
    for name in ("margins", "depth", "taken_for", "worst"):
        mended, whole, was = (getattr(each, name) for each in (after, every, before))
        np.testing.assert_allclose(mended[touched], whole[touched], rtol=1e-4, atol=1e-3)
        assert np.array_equal(mended[~touched], was[~touched])
    assert not np.allclose(after.margins[labels == 7], before.margins[labels == 7], atol=1e-3)
    # what is left of it: nearly nothing
    assert np.abs(every.margins - before.margins)[~touched].mean() < 0.2 * before.margins.std()


def test_many_rows_known_to_be_poison_touch_all():
    x, labels, wrong = given.flipped(seed=3, n=1500)
    detector = dataclasses.replace(SMALL, max_rows=600)
    stream = given.stream_of(x, labels)
    before = detector.judge(stream, key=KEY)
    after = detector.rejudge(stream, before, wrong, key=KEY)
    every = detector._opinion(stream, detector._fitted(stream, KEY), before.doubted, wrong)
    for a, b in zip(after[:5], every[:5], strict=True):
        assert np.array_equal(a, b)


def test_judges_of_further_rows_are_the_mean_over_folds(monkeypatch):
    """What rows beyond the sample get equals the discriminants of the mean weights."""
    x, labels, _ = given.flipped(seed=3)
    detector = dataclasses.replace(SMALL, max_rows=600, num_rounds=1)
    monkeypatch.setattr(label_views, "NormalEquations", given.Fitted)
    stream = given.stream_of(x, labels)
    opinion = detector.judge(stream, key=KEY)
    fitted, space = given.Fitted.last, opinion.space
    seen = stream.through(detector._fitted(stream, KEY).views.stage).map(label_views._features)
    phi = (seen - fitted.mean) * fitted.scale
    np.testing.assert_allclose(phi[space.rows], space.phi, atol=1e-3)
    nothing = np.zeros(600, bool)
    weights = fitted.solve(nothing).astype(np.float64).mean(axis=1)
    known = fitted.out_of_fold(fitted.solve(nothing)).astype(np.float64)
    outside = np.setdiff1d(np.arange(len(x)), space.rows)
    every = []
    for view, scores in zip(weights, known, strict=True):
        further = phi[outside] @ view[:-1] + view[-1]
        together = np.concatenate([scores, further])
        both = np.concatenate([labels[space.rows], labels[outside]])
        teaching = np.arange(len(both)) < 600
        every.append(
            given.margins(given.discriminant_logs(together, both, CLASSES, teaching), both)[0][600:]
        )
    # logs of several hundred are differences of float32 products of that size
    expected = np.mean(every, axis=0)
    np.testing.assert_allclose(opinion.margins[outside], expected, rtol=5e-3, atol=2e-2)
    # rows of the sample keep what those folds say that never saw them
    known = given.opinion_of(
        fitted.phi, fitted.labels, CLASSES, fitted.fold, fitted.columns, fitted.ridge, 1
    )
    np.testing.assert_allclose(opinion.margins[space.rows], known[0], rtol=2e-3, atol=2e-3)
    assert np.array_equal(opinion.taken_for[space.rows], known[2])


# --- What is found ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_uniform_flips_in_digits(seed):
    x, y = given.digits()
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(y)) < 0.1
    labels = np.where(wrong, (y + rng.integers(1, 10, len(y))) % 10, y)
    opinion = judge(x, labels, LabelViews(num_features=512), key=jax.random.key(seed))
    assert auroc(opinion.margins, wrong) > 0.99
    assert auroc(opinion.depth, wrong) > 0.99
    assert (opinion.taken_for[wrong] == y[wrong]).mean() > 0.95
    assert 0.3 < (opinion.depth[wrong] > 1.0).mean() < 0.7  # half, by its definition
    assert (opinion.depth[~wrong] > 1.0).mean() < 0.002


@pytest.mark.parametrize("seed", [0, 1])
def test_a_patch_under_wrong_labels_in_digits(seed):
    """Views without the patch start it: a single round is misled where the whole input is asked."""
    x, labels, wrong = given.stamped(seed=seed)
    rounds = {
        count: judge(x, labels, LabelViews(num_features=512, num_rounds=count)) for count in (1, 3)
    }
    assert auroc(rounds[3].margins, wrong) > 0.98
    assert auroc(rounds[3].depth, wrong) > 0.99 and auroc(rounds[1].depth, wrong) < 0.95
    missed = {count: 1 - auroc(opinion.margins, wrong) for count, opinion in rounds.items()}
    assert missed[3] < 0.3 * missed[1]
    assert rounds[3].doubted[wrong].mean() > 0.9
    scores = LabelViews(num_features=512).score(given.stream_of(x, labels), key=KEY)
    assert scores.statistic.argmax() == 3


@pytest.mark.parametrize("seed", [0, 1])
def test_clean_digits_have_hardly_a_row_deep_inside_another_class(seed):
    x, y = given.digits()
    opinion = judge(x, y, LabelViews(num_features=512), key=jax.random.key(seed))
    assert (opinion.depth > 1.0).mean() < 0.002
