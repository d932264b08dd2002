"""Attacks through a network: they lower what they say, and stay inside the ball."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attack_data as data
from jaxpoison import training
from jaxpoison._check import DataError, UsageError
from jaxpoison.attacks import ATTACKS, poison
from jaxpoison.models import from_function
from jaxpoison.sources import open_source

TARGETED = ("feature_collision", "bullseye_polytope", "gradient_matching")
EPSILON = {"images": 0.1, "rows": 0.5}


@pytest.fixture(scope="module")
def sets():
    """Images and rows, each with a network trained on them."""
    out = {}
    for kind, (x, y) in {"images": data.images(), "rows": data.rows()}.items():
        dense = np.searchsorted(data.LABELS, y)
        out[kind] = x, y, training.fit(open_source(x), dense, 4, epochs=4).model
    return out


def run(name, x, y, model, **options):
    options = {"rate": data.RATE[name], "steps": 20, **options}
    return ATTACKS[name].fn(x, y, key=jax.random.key(0), model=model, **options)


def layers(model, x):
    x = jnp.asarray(x, jnp.float32)
    return np.asarray(model.features(model.params, x)), np.asarray(model.logits(model.params, x))


def head_gradient(model, x, y):
    """Of the mean cross-entropy by the last layer, plainly."""
    features, logits = (part.astype(np.float64) for part in layers(model, x))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(p)), np.searchsorted(data.LABELS, y)] -= 1.0
    return (p.T @ np.c_[features, np.ones(len(features))]).ravel() / len(features)


@pytest.mark.parametrize("kind", ["images", "rows"])
@pytest.mark.parametrize("name", TARGETED)
def test_the_truth_of_targeted_attacks(sets, name, kind):
    x, y, model = sets[kind]
    before = x.copy()
    out = run(name, x, y, model, victims=2, epsilon=EPSILON[kind])
    assert np.array_equal(x, before)
    victims = out.params["victims"]
    assert len(victims) == 2 and len(out.y) == len(y) - 2
    assert not np.isin(victims, out.origin).any() and (y[victims] == out.source).all()
    assert np.array_equal(out.y, y[out.origin]) and np.array_equal(out.y_true, out.y)
    assert (out.y[out.mask] == out.target).all() and out.mask.sum() == round(0.05 * len(y))
    same = ~out.mask
    assert np.array_equal(out.x[same], x[out.origin[same]]) and out.x.dtype == x.dtype
    assert out.kind == "targeted" and out.trigger is None and out.wanted is None
    json.dumps(out.params)
    move = np.abs(out.x[out.mask].astype(float) - x[out.origin[out.mask]])
    radius = 25 if kind == "images" else 0.5 * x.std(axis=0) * (1 + 1e-4) + 1e-6
    assert (move <= radius).all() and move.max() > 0
    again = run(name, x, y, model, victims=2, epsilon=EPSILON[kind])
    assert again.x.tobytes() == out.x.tobytes()


@pytest.mark.parametrize("kind", ["images", "rows"])
def test_feature_collision_comes_nearer_to_the_victim(sets, kind):
    x, y, model = sets[kind]
    out = run("feature_collision", x, y, model, epsilon=EPSILON[kind], beta=0.0)
    goal, _ = layers(model, x[out.params["victims"]])
    before, _ = layers(model, x[out.origin[out.mask]])
    after, _ = layers(model, out.x[out.mask])
    gaps = [np.square(f - goal).sum(axis=1).mean() / np.square(goal).sum() for f in (before, after)]
    assert gaps[1] < 0.9 * gaps[0]
    assert gaps[0] == pytest.approx(out.params["before"], rel=1e-3)
    assert gaps[1] == pytest.approx(out.params["after"], rel=1e-3)


@pytest.mark.parametrize("kind", ["images", "rows"])
def test_the_polytope_closes_in_on_the_victims(sets, kind):
    x, y, model = sets[kind]
    out = run("bullseye_polytope", x, y, model, epsilon=EPSILON[kind], victims=2)
    goal = layers(model, x[out.params["victims"]])[0].mean(axis=0)
    before, _ = layers(model, x[out.origin[out.mask]])
    after, _ = layers(model, out.x[out.mask])
    gaps = [np.square(f.mean(axis=0) - goal).sum() / np.square(goal).sum() for f in (before, after)]
    assert gaps[1] < 0.9 * gaps[0]
    assert gaps[1] == pytest.approx(out.params["after"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("kind", ["images", "rows"])
def test_gradient_matching_raises_the_cosine(sets, kind):
    x, y, model = sets[kind]
    out = run("gradient_matching", x, y, model, epsilon=EPSILON[kind], layers="last")
    wanted = head_gradient(model, x[out.params["victims"]], np.array([out.target]))
    poison_y = out.y[out.mask]
    cosines = [
        wanted @ g / np.linalg.norm(wanted) / np.linalg.norm(g)
        for g in (
            head_gradient(model, x[out.origin[out.mask]], poison_y),
            head_gradient(model, out.x[out.mask], poison_y),
        )
    ]
    assert cosines[1] > cosines[0] + 0.02
    assert 1 - cosines[1] == pytest.approx(out.params["after"], abs=2e-3)


def test_gradient_matching_of_all_layers_raises_the_cosine(sets):
    out = run("gradient_matching", *sets["images"])
    assert out.params["after"] < out.params["before"] - 0.02
    with pytest.raises(UsageError, match="layers is 'first'"):
        run("gradient_matching", *sets["images"], layers="first")


def test_label_consistent_rows_are_hard_and_stamped(sets):
    x, y, model = sets["images"]
    out = run("label_consistent", x, y, model, target=7, rate=0.5, epsilon=0.2)
    assert out.kind == "clean_label" and np.array_equal(out.y, y)
    assert out.mask.sum() == round(0.5 * (y == 7).sum()) and (y[out.mask] == 7).all()
    assert out.params["after"] < out.params["before"]
    stamped = out.trigger(x)
    corners = (stamped != x).any(axis=0)
    assert np.array_equal(out.x[out.mask][:, corners], stamped[out.mask][:, corners])
    move = np.abs(out.x[out.mask].astype(int) - x[out.mask])[:, ~corners]
    assert 0 < move.max() <= 51
    assert out.wanted(y[:3]).tolist() == [7, 7, 7]


def test_victims_can_be_named(sets):
    x, y, model = sets["images"]
    some = np.flatnonzero(y == 3)[:2]
    out = run("bullseye_polytope", x, y, model, victims=some.tolist(), target=7)
    assert out.params["victims"] == some.tolist() and (out.source, out.target) == (3, 7)
    with pytest.raises(UsageError, match="target is 3"):
        run("bullseye_polytope", x, y, model, victims=some.tolist(), target=3)
    with pytest.raises(UsageError, match="not of the target"):
        run("bullseye_polytope", x, y, model, victims=some.tolist(), target=7, source=2)
    with pytest.raises(UsageError, match="victims is"):
        run("bullseye_polytope", x, y, model, victims=[len(y)])
    with pytest.raises(UsageError, match="victims is 0"):
        run("bullseye_polytope", x, y, model, victims=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.5}, "rate of at most 0"),
        ({"epsilon": 1.5}, "epsilon is 1.5"),
        ({"epsilon": 0.001}, "less than one step"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_what_cannot_be_done_is_refused(sets, options, message):
    with pytest.raises(UsageError, match=message):
        run("feature_collision", *sets["images"], **options)


def test_a_model_of_other_classes_or_none_is_refused(sets):
    x, y, model = sets["images"]
    with pytest.raises(UsageError, match="model has 4 outputs, y has 3 labels"):
        run("feature_collision", x, np.where(y == 2, 3, y), model)
    with pytest.raises(UsageError, match="model is NoneType"):
        run("feature_collision", x, y, None)


def _flat_features(params, x):
    return jnp.round(x).reshape(len(x), -1)[:, :6]


def _flat_logits(params, x):
    return _flat_features(params, x)[:, :4] * params


def test_a_model_without_a_gradient_is_refused(sets):
    x, y, _ = sets["images"]
    model = from_function(features=_flat_features, logits=_flat_logits, params=jnp.ones(()))
    with pytest.raises(DataError, match="has no gradient"):
        run("feature_collision", x, y, model)


def test_by_name_trains_the_network():
    x, y = data.rows()
    seen = []
    out = poison(
        "feature_collision", x, y, rate=0.05, steps=3, progress=lambda *a: seen.append(a[0])
    )
    assert out.kind == "targeted" and set(seen) == {"train"}
