"""White-box label flips against every labelling there is, and the knapsack against every choice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxpoison._check import DataError, UsageError
from jaxpoison.certify import LabelFlip, certify
from jaxpoison.certify._types import Design
from jaxpoison.certify.flips import (
    NEVER,
    FlipCosts,
    certify_flips,
    certify_kernel_ridge,
    flip_costs,
    quantised,
    ridge_weights,
    votes_of_costs,
)
from vote_oracle import design


def winner(weights, labels, classes):
    scores = [sum(w for w, y in zip(weights, labels, strict=True) if y == c) for c in classes]
    return max(classes, key=lambda c: (scores[c], -c))


def every_cost(weights, labels, num_classes):
    """Fewest flips for each vote, over all labellings, in Python's integers."""
    weights, labels = [int(w) for w in weights], labels.tolist()
    found = {}
    for other in itertools.product(range(num_classes), repeat=len(labels)):
        flips = sum(a != b for a, b in zip(labels, other, strict=True))
        vote = winner(weights, other, range(num_classes))
        found[vote] = min(flips, found.get(vote, NEVER))
    return found


@pytest.mark.parametrize(("rows", "num_classes"), [(1, 2), (2, 3), (5, 4), (6, 3), (7, 3), (12, 2)])
def test_costs_are_those_of_all_labellings(rows, num_classes):
    rng = np.random.default_rng(rows)
    for spread in (3, 1 << 20):  # few values, so ties; and many
        weights = rng.integers(-spread, 2 * spread, (8, rows))
        weights[0] = 0
        labels = rng.integers(0, num_classes, rows)
        costs = flip_costs(weights, labels, num_classes)
        for t in range(len(weights)):
            found = every_cost(weights[t], labels, num_classes)
            vote = next(c for c, flips in found.items() if flips == 0)
            others = {c: flips for c, flips in found.items() if c != vote}
            assert costs.vote[t] == vote
            assert costs.away[t] == min(others.values(), default=NEVER)
            for c in range(num_classes):
                assert costs.to[t, c] <= found.get(c, NEVER)
                if num_classes == 2:
                    assert costs.to[t, c] == found.get(c, NEVER)


def test_an_error_bound_only_helps_the_attacker():
    rng = np.random.default_rng(0)
    weights, labels = rng.normal(size=(50, 9)), rng.integers(0, 3, 9)
    exact = flip_costs(weights, labels, 3)
    near = flip_costs(weights, labels, 3, error=0.2)
    assert (near.away <= exact.away).all() and (near.away < exact.away).any()
    for _ in range(20):  # votes of scores that are off by as much, under any labels
        other = rng.integers(0, 3, 9)
        scores = np.stack([weights[:, other == c].sum(axis=1) for c in range(3)], axis=1)
        scores += rng.uniform(-0.2, 0.2, scores.shape)
        moved = scores.argmax(axis=1) != exact.vote
        assert ((labels != other).sum() >= near.away[moved]).all()


def test_weights_are_those_of_a_solve_and_rounding_is_of_one_part_in_2_to_32():
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(10, 30)), rng.normal(size=(4, 30))
    gram, cross = x @ x.T, t @ x.T
    weights = ridge_weights(gram, cross, 0.5)
    onehot = np.eye(3)[rng.integers(0, 3, 10)]
    scores = cross @ np.linalg.solve(gram + 0.5 * np.eye(10), onehot - 1 / 3)
    ours = weights @ onehot - weights.sum(axis=1, keepdims=True) / 3
    np.testing.assert_allclose(ours, scores, atol=1e-12)
    assert np.abs(quantised(weights) / 2.0**32 - weights).max() <= 2.0**-33


def all_choices(costs, first, rival, gap, t):
    """Fewest flips over every choice of no change, leaving, or going to the rival."""
    best = NEVER
    for choice in itertools.product(range(3), repeat=len(costs)):
        taken = flips = 0
        for model, way in zip(costs, choice, strict=True):
            vote = int(model.vote[t])
            if way == 0 or vote == rival or (way == 1 and vote != first):
                continue
            inside = vote == first
            taken += 2 if inside and way == 2 else 1
            flips += int(model.away[t] if way == 1 else model.to[t, rival])
        if taken >= gap:
            best = min(best, flips)
    return best


@pytest.mark.parametrize("shifts", [(0,), (0, 2)])
def test_the_knapsack_is_that_of_all_choices(shifts):
    rng = np.random.default_rng(2)
    num_models, num_classes, rows = 6, 3, 40
    costs = []
    for _ in range(num_models):
        vote = rng.choice(num_classes, rows, p=[0.5, 0.3, 0.2])
        to = rng.integers(1, 9, (rows, num_classes)).astype(np.int32)
        to[np.arange(rows), vote] = NEVER
        away = to.min(axis=1)
        to[np.arange(rows), vote] = 0
        costs.append(FlipCosts(20, vote, away, to))
    spread = design(num_models, shifts)
    found = certify_flips(costs, spread, num_classes)
    for t in range(rows):
        counts = [sum(int(m.vote[t]) == c for m in costs) for c in range(num_classes)]
        first = max(range(num_classes), key=lambda c: (counts[c], -c))
        fewest = NEVER
        for b in set(range(num_classes)) - {first}:
            gap = counts[first] - counts[b] + (b > first)
            fewest = min(fewest, all_choices(costs, first, b, gap, t))
        assert found.prediction[t] == first
        assert found.radius[t] == (fewest - 1) // len(shifts)


def test_certificates_hold_under_every_attack_and_are_no_worse_than_votes():
    rng = np.random.default_rng(3)
    models = [(rng.integers(-4, 9, (12, 3)), rng.integers(0, 2, 3)) for _ in range(3)]
    three = design(3, (0,))
    costs = [flip_costs(w, y, 2) for w, y in models]
    found = certify_flips(costs, three, 2)
    counted = certify(votes_of_costs(costs, three, 2), threat=LabelFlip())
    assert (found.prediction == counted.prediction).all()
    assert (found.radius >= counted.radius).all()
    reached = np.full(12, 9)  # nine rows: no attack has more
    for flips in itertools.product((0, 1), repeat=9):
        mask = np.array(flips).reshape(3, 3)
        votes = [flip_costs(w, y ^ m, 2).vote for (w, y), m in zip(models, mask, strict=True)]
        lost = (np.sum(votes, axis=0) > 1) != found.prediction
        reached[lost] = np.minimum(reached[lost], sum(flips) - 1)
    # with two classes nothing is given away: the radius is that of the best attack
    assert (found.radius == reached).all()


def test_the_ensemble_entry_agrees_with_refits_under_flips():
    from sklearn.datasets import load_digits

    from jaxpoison.certify.ensemble import fit
    from jaxpoison.certify.features import Pixels
    from jaxpoison.certify.learners import KernelRidge

    digits = load_digits()
    x, y = digits.images[:120].astype(np.uint8), digits.target[:120] % 3
    ensemble = fit(x, y, k=6, learner=KernelRidge(features=Pixels()), num_classes=3)
    test = digits.images[200:240].astype(np.uint8)
    certificates = certify_kernel_ridge(ensemble, test)
    votes = ensemble.votes(test)
    counted = certify(votes, threat=LabelFlip())
    assert (certificates.prediction == counted.prediction).mean() > 0.95
    assert (certificates.radius >= 0).all() and certificates.radius.max() > counted.radius.max()
    rng = np.random.default_rng(0)
    for budget in (1, 3, 8):
        other = y.copy()
        rows = rng.choice(120, budget, replace=False)
        other[rows] = (other[rows] + 1) % 3
        again = certify_kernel_ridge(
            fit(x, other, k=6, learner=ensemble.learner, num_classes=3), test
        )
        kept = certificates.radius >= budget
        assert (again.prediction == certificates.prediction)[kept].all()


def test_bad_input_is_named():
    good = np.zeros((2, 3), np.int64)
    with pytest.raises(DataError, match="one integer a row"):
        flip_costs(good, np.zeros(2, np.int64), 2)
    with pytest.raises(DataError, match="reach from 0 to 2"):
        flip_costs(good, np.array([0, 1, 2]), 2)
    with pytest.raises(UsageError, match="at least 2 classes"):
        flip_costs(good, np.zeros(3, np.int64), 1)
    with pytest.raises(DataError, match="add up to"):
        quantised(np.full((1, 2), 1e9))
    with pytest.raises(DataError, match="add up to"):
        quantised(np.array([[np.nan]]))
    with pytest.raises(UsageError, match="above 0"):
        ridge_weights(np.eye(2), np.ones((1, 2)), 0.0)
    with pytest.raises(UsageError, match="raise the regularisation"):
        ridge_weights(-np.eye(2), np.ones((1, 2)), 0.5)
    model = flip_costs(good, np.zeros(3, np.int64), 2)
    with pytest.raises(UsageError, match="1 models"):
        certify_flips([model], design(2, (0,)), 2)
    with pytest.raises(UsageError, match="label decides the cell"):
        certify_flips([model], Design(1, covers="inputs and labels"), 2)


def test_models_without_rows_never_change():
    empty = flip_costs(np.zeros((4, 0)), np.zeros(0, np.int64), 3)
    found = certify_flips([empty] * 3, design(3, (0,)), 3)
    assert (found.prediction == 0).all() and (found.radius == 0).all()  # there are no labels at all
