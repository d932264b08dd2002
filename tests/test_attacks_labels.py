"""Label attacks as properties of any labels, and the corner that is cut from a class."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attack_data as data
from jaxpoison._check import UsageError
from jaxpoison.attacks import ATTACKS

images, rows, run = data.images, data.rows, data.run

labels = st.lists(st.sampled_from([0, 1, 5, 40]), min_size=2, max_size=60).filter(
    lambda y: len(set(y)) > 1
)


@settings(max_examples=60, deadline=None)
@given(labels, st.floats(0.01, 1.0), st.sampled_from(["uniform", "pair", "targeted"]))
def test_flips_meet_the_rate_or_refuse(y, rate, which):
    y = np.array(y)
    x = np.arange(len(y), dtype=np.float32)[:, None]
    count = round(rate * len(y))
    name = f"flip_{which}"
    try:
        out = ATTACKS[name].fn(x, y, rate=rate, key=jax.random.key(0))
    except UsageError as error:
        assert str(error).startswith("rate is ")
        sizes = np.sort(np.unique(y, return_counts=True)[1])
        # what is left where the target that was drawn is the largest class
        possible = {"uniform": len(y), "pair": sizes[-2], "targeted": len(y) - sizes[-1]}
        assert count < 1 or count > possible[which]
        return
    assert out.mask.sum() == count and np.array_equal(out.x, x)
    assert np.array_equal(out.y != out.y_true, out.mask)
    assert np.isin(out.y, y).all()
    if which != "uniform":
        assert set(out.y[out.mask].tolist()) == {out.target}
    if which == "pair":
        assert set(out.y_true[out.mask].tolist()) == {out.source}


def test_uniform_labels_are_uniform_over_the_other_classes():
    y = np.repeat([0, 3, 9], 600)
    out = ATTACKS["flip_uniform"].fn(np.zeros((1800, 1)), y, rate=1.0, key=jax.random.key(0))
    table = np.array([[np.sum((y == a) & (out.y == b)) for b in (0, 3, 9)] for a in (0, 3, 9)])
    assert (np.diag(table) == 0).all()
    off = table[~np.eye(3, dtype=bool)]
    assert (abs(off - 300) < 5 * np.sqrt(150)).all()  # five deviations of a fair split


def test_flip_uniform_can_keep_to_one_class():
    out = run("flip_uniform", *rows(), source=7)
    assert (out.y_true[out.mask] == 7).all() and out.source == 7


def test_pair_of_the_same_class_is_refused():
    with pytest.raises(UsageError, match="target is 3"):
        run("flip_pair", *rows(), target=3, source=3)


def test_a_source_that_is_large_enough_is_drawn():
    y = np.array([0] * 50 + [1] * 50 + [2] * 3)
    x = np.zeros((len(y), 2))
    for seed in range(8):
        out = ATTACKS["flip_pair"].fn(x, y, rate=0.2, target=0, key=jax.random.key(seed))
        assert out.source == 1


def test_the_corner_is_coherent():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 300)
    x = rng.normal(size=(600, 5))
    x[:60] += 30.0  # a corner of class 0
    for seed in range(5):
        out = ATTACKS["flip_subpopulation"].fn(
            x, y, rate=0.05, target=1, num_clusters=2, key=jax.random.key(seed)
        )
        chosen = np.flatnonzero(out.mask)
        assert len(chosen) == 30 and ((chosen < 60).all() or (chosen >= 60).all())


def test_members_can_be_named():
    x, y = images()
    members = np.arange(len(y)) % 3 == 0
    out = run("flip_subpopulation", x, y, members=members, target=2, rate=0.05)
    assert members[out.mask].all() and (y[out.mask] != 2).all()
    numbered = run("flip_subpopulation", x, y, members=out.params["members"], target=2, rate=0.05)
    assert numbered.y.tobytes() == out.y.tobytes() and numbered.params == out.params
    with pytest.raises(UsageError, match="one bool"):
        run("flip_subpopulation", x, y, members=np.ones(3, bool))
    with pytest.raises(UsageError, match="members goes from 0 to 999"):
        run("flip_subpopulation", x, y, members=[0, 999])
    with pytest.raises(UsageError, match="num_clusters is 0"):
        run("flip_subpopulation", x, y, num_clusters=0)
    with pytest.raises(UsageError, match="fewer num_clusters"):
        run("flip_subpopulation", x, y, rate=0.2)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("flip_uniform", "target"),
        ("flip_targeted", "source"),
        ("noise", "target"),
        ("sig", "source"),
    ],
)
def test_an_argument_without_a_use_is_refused(name, argument):
    with pytest.raises(UsageError, match=f"{argument} is 3; {name} takes none"):
        run(name, *images(), **{argument: 3})


def test_noise_is_in_units_of_each_column():
    x, y = rows(n=2000)
    out = run("noise", x, y, rate=0.5, scale=0.5)
    moved = out.x[out.mask].astype(float) - x[out.mask]
    spread = x.std(axis=0)
    inside = np.delete(np.arange(9), 4)
    ratio = moved[:, inside].std(axis=0) / spread[inside]
    assert (abs(ratio - 0.5) < 0.05).all()  # clipping at the range costs a little
    assert (moved[:, 4] == 0).all()


def test_damage_is_what_it_says():
    x, y = images()
    dead = run("corrupt", x, y, damage="dead")
    columns = dead.params["columns"]
    assert (dead.x[dead.mask][:, :, columns] == 0).all()
    others = np.setdiff1d(np.arange(12), columns)
    assert np.array_equal(dead.x[:, :, others], x[:, :, others])
    clipped = run("corrupt", x, y, damage="clipped")
    assert clipped.x[clipped.mask].max() <= np.ceil(np.quantile(x, 0.7))
    salted = run("corrupt", x, y, damage="salt_pepper", extent=0.5)
    assert abs((salted.x[salted.mask] != x[salted.mask]).mean() - 0.5) < 0.1
    with pytest.raises(UsageError, match="damage is 'burnt'"):
        run("corrupt", x, y, damage="burnt")
    table, y = rows()
    dead = run("corrupt", table, y, damage="dead")
    columns = dead.params["columns"]
    assert np.array_equal(
        dead.x[dead.mask][:, columns],
        np.broadcast_to(table.min(axis=0)[columns], (dead.mask.sum(), len(columns))),
    )
