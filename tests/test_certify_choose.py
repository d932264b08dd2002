"""Forecasts from few models are near what whole ensembles certify, and say how near."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from certify_data import NEAREST, RIDGE, PerSubset
from jaxpoison._check import DataError, UsageError
from jaxpoison.certify import certify, votes_of
from jaxpoison.certify.choose import Choice, Forecast, choose_k
from jaxpoison.certify.keys import Column
from jaxpoison.certify.partitions import partition

X, Y = load_digits(return_X_y=True)
X = X.astype(np.uint8)


def whole_ensemble(learner, k, aside, seed=0):
    """Certificates of all k models, on the rows that ``choose_k`` holds out."""
    rng = np.random.default_rng(seed)
    test = np.sort(rng.choice(len(X), aside, replace=False))
    rest = np.setdiff1d(np.arange(len(X)), test)
    p = partition(X[rest], Y[rest], k=k)
    blocks = learner.fit_scores(p, X[rest], Y[rest], X[test], num_classes=10)
    scores = np.concatenate([s for _, s in blocks])
    return certify(votes_of(scores=scores, subsets=np.arange(k), design=p.design)), Y[test]


@pytest.mark.parametrize("learner", [NEAREST, RIDGE], ids=lambda learner: learner.name)
def test_forecasts_come_near_whole_ensembles(learner):
    choice = choose_k(X, Y, learner, ks=[150, 50, 100], measure=2, num_validation=300)
    assert [f.k for f in choice.forecasts] == [50, 100, 150]
    for forecast in choice.forecasts:
        made, labels = whole_ensemble(learner, forecast.k, 300)
        radii = [0, 5, 10, 20]
        error = forecast.certified_accuracy(radii) - made.certified_accuracy(labels, radii)
        # 48 votes tell a share to about .07; between measured k the profile is interpolated.
        assert np.abs(error).max() < (0.1 if forecast.base_accuracy else 0.25)
        assert abs(forecast.clean_accuracy - made.certified_accuracy(labels, [0])[0]) < 0.06
        assert abs(forecast.median - made.median(labels)) <= max(3, 0.35 * made.median(labels))


def test_all_votes_known_is_no_forecast():
    choice = choose_k(X, Y, NEAREST, ks=[7, 20], measure=2, num_validation=300)
    for forecast in choice.forecasts:
        made, labels = whole_ensemble(NEAREST, forecast.k, 300)
        radii = np.arange(12)
        want = made.certified_accuracy(labels, radii)
        np.testing.assert_allclose(forecast.certified_accuracy(radii), want, atol=0.004)
        assert forecast.median == made.median(labels)


def test_held_out_k_are_compared_and_the_best_is_named():
    choice = choose_k(X, Y, NEAREST, ks=[10, 30, 90, 270], num_validation=300)
    assert [h.k for h in choice.held_out] == [30, 90]
    for held in choice.held_out:
        assert abs(held.clean_accuracy - held.clean_accuracy_predicted) < 0.1
        assert abs(held.median - held.median_predicted) <= max(4, held.median // 2)
    assert choice.best() in (90, 270) and choice.best(1, least_clean=0.9) in (10, 30, 90)
    assert choice.members == 48 and choice.rows == 300
    with pytest.raises(UsageError, match="least_clean is"):
        choice.best(least_clean=1.1)


def test_models_at_chance_promise_nothing_and_perfect_ones_half_of_k():
    chance = PerSubset(
        lambda x, y, t, c: np.random.default_rng(len(x)).normal(size=(len(t), c)), "chance"
    )
    bad = choose_k(X, Y, chance, ks=[100, 200], num_validation=300)
    assert bad.forecasts[-1].median == -1 and bad.forecasts[-1].clean_accuracy < 0.3
    known = {row.tobytes(): label for row, label in zip(X, Y, strict=True)}
    oracle = PerSubset(lambda x, y, t, c: np.eye(c)[[known[row.tobytes()] for row in t]], "oracle")
    good = choose_k(X, Y, oracle, ks=[100, 200], num_validation=300)
    assert good.forecasts[0].base_accuracy == 1 and good.forecasts[0].clean_accuracy == 1
    assert 90 <= good.forecasts[1].median <= 100


def test_same_seed_same_choice_and_a_key_column_works():
    clients = np.arange(len(X)) // 2
    options = {"ks": [20, 60], "num_validation": 100, "key": Column("client"), "column": clients}
    one, two = (choose_k(X, Y, NEAREST, **options) for _ in range(2))
    for a, b in zip(one.forecasts, two.forecasts, strict=True):
        assert (a.margins == b.margins).all()
    other = choose_k(X, Y, NEAREST, **options, seed=1)
    assert (other.forecasts[0].margins != one.forecasts[0].margins).any()


def test_certified_accuracy_counts_ties_and_whole_votes():
    forecast = Forecast(10, 0.5, np.array([-0.05, 0.0, 0.05, 0.1, 0.3]))
    assert forecast.clean_accuracy == 0.8 and forecast.median == 0
    assert forecast.certified_accuracy([0, 1, 2, 3, 4]).tolist() == [0.8, 0.4, 0.2, 0.2, 0]
    assert Choice((forecast,), (), 8, 1).best() == 10


@pytest.mark.parametrize(
    "options,match",
    [
        ({"ks": []}, "ks is"),
        ({"ks": [0, 5]}, "ks is"),
        ({"ks": [1700]}, "leave 1497"),
        ({"ks": [5], "measure": 1}, "measure is 1"),
        ({"ks": [5], "members": 2}, "members 2"),
    ],
)
def test_candidates_that_make_no_sense_are_named(options, match):
    with pytest.raises(UsageError, match=match):
        choose_k(X, Y, NEAREST, **{"num_validation": 300, **options})


def test_labels_that_are_no_classes_are_refused():
    with pytest.raises(DataError, match="needs classes"):
        choose_k(X, Y / 2, NEAREST, ks=[5], num_validation=300)
