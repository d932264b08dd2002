"""What every attack promises: an exact truth, repeatable bytes, clear refusals."""

from __future__ import annotations

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attack_data as data
from jaxpoison._check import DataError, UsageError
from jaxpoison.attacks import ATTACKS, poison, settings_of

CHEAP, LABELS, RATE = data.CHEAP, data.LABELS, data.RATE
images, inputs_for, rows, run = data.images, data.inputs_for, data.rows, data.run

DETERMINISTIC = ("patch", "patch_all_to_all", "patch_source_specific", "patch_roaming", "blend")
DETERMINISTIC += ("sig", "warp", "sample_specific", "tabular_trigger", "embedding_trigger")
DETERMINISTIC += ("adaptive_spectrum",)
ONE_LABEL = ("flip_pair", "flip_targeted", "flip_subpopulation", "patch", "patch_source_specific")
ONE_LABEL += ("patch_roaming", "blend", "warp", "sample_specific", "adaptive_blend")
ONE_LABEL += ("adaptive_patch", "tabular_trigger", "embedding_trigger", "adaptive_spectrum")
KEEPS_LABELS = ("noise", "corrupt", "sig")


def test_every_cheap_attack_is_in_one_of_the_tables_here():
    assert {*ONE_LABEL, *KEEPS_LABELS} | {
        "flip_uniform",
        "patch_all_to_all",
        "flood_duplicates",
    } == {*CHEAP}


@pytest.mark.parametrize("name", CHEAP)
def test_the_truth_is_exact(name):
    x, y = inputs_for(name)
    before = x.copy(), y.copy()
    out = run(name, x, y)
    assert np.array_equal(x, before[0]) and np.array_equal(y, before[1])
    assert out.x.dtype == x.dtype and out.x.shape[1:] == x.shape[1:]
    assert out.y.dtype == out.y_true.dtype == np.int64
    assert out.mask.dtype == out.cover.dtype == bool
    assert len({len(a) for a in out[:6]}) == 1
    assert not (out.mask & out.cover).any()
    same = ~(out.mask | out.cover)
    assert np.array_equal(out.x[same], x[out.origin[same]])
    assert np.array_equal(out.y_true, y[out.origin])
    assert np.array_equal(out.y[~out.mask], out.y_true[~out.mask])
    total = int((y == out.target).sum()) if name == "sig" else len(y)
    assert out.mask.sum() == round(RATE[name] * total)
    assert out.kind == ATTACKS[name].kind
    changed = (out.x != x[out.origin]).reshape(len(out.x), -1).any(axis=1)
    if not name.startswith("flip"):
        assert (changed | (out.y != out.y_true))[out.mask].all()
        assert changed[out.mask].mean() > 0.9  # a row may hold the trigger already
    else:
        assert not changed.any()


@pytest.mark.parametrize("name", CHEAP)
def test_labels_of_poisoned_rows(name):
    out = run(name, *inputs_for(name))
    labels, honest = out.y[out.mask], out.y_true[out.mask]
    assert np.isin(labels, LABELS).all()
    if name in ONE_LABEL or name == "flood_duplicates":
        assert (labels == out.target).all() and (honest != out.target).all()
    elif name in KEEPS_LABELS:
        assert np.array_equal(labels, honest)
    else:
        assert (labels != honest).all()
    if out.source is not None and out.kind != "availability":
        assert (honest == out.source).all()
    if out.wanted is not None and out.kind == "backdoor":
        assert np.array_equal(out.wanted(honest), labels)


@pytest.mark.parametrize("name", CHEAP)
def test_the_key_decides_every_byte(name):
    x, y = inputs_for(name)
    first, again, other = (run(name, x, y, seed=s) for s in (1, 1, 2))
    assert first.params == again.params and first.params != other.params
    for a, b in zip(first[:6], again[:6], strict=True):
        assert a.tobytes() == b.tobytes()
    assert first.x.tobytes() + first.y.tobytes() != other.x.tobytes() + other.y.tobytes()


@pytest.mark.parametrize("name", CHEAP)
def test_params_are_json_and_repeat_the_attack(name):
    x, y = inputs_for(name)
    out = run(name, x, y, seed=3)
    params = json.loads(json.dumps(out.params))
    assert (
        params["attack"] == name
        and params["key"] == np.asarray(jax.random.key_data(jax.random.key(3))).tolist()
    )
    known = {*settings_of(name), "rate"}
    known -= {"seeds"}  # drawn again by the same key
    options = {k: v for k, v in params.items() if k in known and v is not None}
    if "position" in options:
        options["position"] = tuple(options["position"])
    if name == "tabular_trigger":
        assert options["columns"] == params["columns"]
        options.pop("columns")
    key = jax.random.wrap_key_data(np.array(params["key"], np.uint32))
    again = ATTACKS[name].fn(x, y, key=key, **options)
    assert again.x.tobytes() == out.x.tobytes() and again.y.tobytes() == out.y.tobytes()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_trigger_gives_what_training_rows_carry(name):
    x, y = inputs_for(name)
    out = run(name, x, y)
    carriers = out.mask if name == "warp" else out.mask | out.cover
    assert np.array_equal(out.trigger(x[out.origin[carriers]]), out.x[carriers])
    assert np.array_equal(out.trigger(x)[5:6], out.trigger(x[5:6]))  # no row sees another
    assert np.array_equal(pickle.loads(pickle.dumps(out.trigger))(x), out.trigger(x))
    assert out.trigger(x).dtype == x.dtype and out.trigger(x[:0]).shape == (0, *x.shape[1:])
    with pytest.raises(UsageError, match="the trigger is for"):
        out.trigger(x[:, :5])


@pytest.mark.parametrize("name", [n for n in CHEAP if ATTACKS[n].needs != "rows"])
@pytest.mark.parametrize(("channels", "top"), [(3, 255), (None, 16), (1, 200)])
def test_images_stay_in_the_range_in_use(name, channels, top):
    x, y = images(channels=channels, top=top)
    out = run(name, x, y)
    assert out.x.dtype == np.uint8 and out.x.max() <= top
    if out.trigger is not None:
        assert out.trigger(x).max() <= top


@pytest.mark.parametrize("name", [n for n in CHEAP if ATTACKS[n].needs == "any"])
def test_attacks_on_anything_take_rows_and_float_images(name):
    for x, y in (rows(), (images()[0].astype(np.float32) / 255, images()[1])):
        out = run(name, x, y)
        assert out.x.dtype == np.float32 and np.isfinite(out.x).all()


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize(("rate", "message"), [(0.0, "share"), (1.5, "share"), (1e-6, "none")])
def test_a_rate_that_asks_for_nothing_is_refused(name, rate, message):
    with pytest.raises(UsageError, match=rf"rate is .*{message}"):
        run(name, *inputs_for(name), rate=rate)


@pytest.mark.parametrize("name", [n for n in CHEAP if n in ONE_LABEL])
def test_a_rate_that_cannot_be_met_says_what_is_possible(name):
    with pytest.raises(UsageError, match="rate of at most 0"):
        run(name, *inputs_for(name), rate=0.99)


@pytest.mark.parametrize("name", CHEAP)
def test_bad_inputs_are_refused_by_name(name):
    x, y = inputs_for(name)
    with pytest.raises(UsageError, match="y has shape"):
        run(name, x, y[:-1])
    with pytest.raises(UsageError, match="y has shape"):
        run(name, x, y - 5)
    with pytest.raises(UsageError, match="x has shape"):
        run(name, x.reshape(-1), y)
    with pytest.raises(UsageError, match=r"target is 999|target: None"):
        run(name, x, y, target=999)
    broken = x.astype(np.float32)
    broken[17].flat[3] = np.nan
    with pytest.raises(DataError, match="row 17"):
        run(name, broken, y)


NAN, INF = float("nan"), float("inf")
NONSENSE = [
    ("patch", "position", {}), ("patch", "position", [1]), ("patch", "position", [0.5, 1]),
    ("patch", "value", "white"), ("patch", "value", NAN), ("patch", "value", [1, 2]),
    ("patch_source_specific", "cover_ratio", INF), ("warp", "pixels", INF),
    ("adaptive_spectrum", "margin", INF), ("embedding_trigger", "strength", INF),
    ("tabular_trigger", "columns", "first"), ("tabular_trigger", "columns", NAN),
    ("tabular_trigger", "columns", [0.5]), ("flood_duplicates", "seeds", INF),
    ("flood_duplicates", "seeds", "few"), ("flood_duplicates", "jitter", INF),
]  # fmt: skip


@pytest.mark.parametrize(("name", "setting", "value"), NONSENSE)
def test_settings_without_a_meaning_are_refused(name, setting, value):
    with pytest.raises(UsageError, match=f"{setting} is "):
        run(name, *inputs_for(name), **{setting: value})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("embedding_trigger", {"strength": 1e39}),
        ("flood_duplicates", {"jitter": 1e39}),
        ("adaptive_spectrum", {"margin": 1e39}),
    ],
)
def test_values_beyond_the_type_are_refused(name, settings):
    with pytest.raises(UsageError, match="beyond float32"):
        poison(name, *rows(), rate=0.05, **settings)


@pytest.mark.parametrize("name", ["embedding_trigger", "adaptive_spectrum"])
def test_fractions_are_not_added_to_integers(name):
    x, y = rows()
    with pytest.raises(UsageError, match="type int16"):
        run(name, x.astype(np.int16), y)


def test_copies_of_integers_do_not_wrap_around():
    x = np.where(np.arange(60)[:, None] % 3, 255, 0).repeat(5, axis=1).astype(np.uint8)
    out = run("flood_duplicates", x, np.arange(60) % 2, rate=0.5, jitter=0.1)
    moved = np.abs(out.x[60:].astype(int) - x[out.origin[60:]])
    assert 0 < moved.max() <= 0.6 * x.std()


def test_columns_that_never_change_make_no_trigger():
    with pytest.raises(UsageError, match="all constant"):
        run("tabular_trigger", *rows(), columns=[4])


def test_one_class_or_two_where_more_are_needed():
    x, y = images()
    for name in ("patch", "flood_duplicates"):
        with pytest.raises(UsageError, match="one class"):
            run(name, x, np.zeros_like(y))
    with pytest.raises(UsageError, match="2 classes"):
        run("patch_source_specific", x, (y > 5).astype(int))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"name": None}, "unknown attack"),
        ({"rate": "a"}, "rate"),
        ({"rate": True}, "rate"),
        ({"target": [1]}, "target"),
        ({"target": True}, "target"),
        ({"seed": 1.5}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"x": [[1, 2], [3]]}, "one shape"),
        ({"y": np.full(240, 2**63, np.uint64)}, "63"),
    ],
)
def test_wrong_types_are_refused_by_name(arguments, word):
    x, y = images()
    given = {"name": "patch", "x": x, "y": y, **arguments}
    with pytest.raises(UsageError, match=word):
        poison(**given)


def test_numbers_of_numpy_and_jax_are_numbers():
    x, y = images()
    plain = poison("patch", x, y, rate=0.1, target=3, seed=2)
    for kind in (np.array, jnp.asarray):
        same = poison("patch", x, y, rate=kind(0.1), target=kind(3), seed=kind(2))
        assert np.array_equal(same.x, plain.x) and same.target == plain.target == 3


def test_inputs_of_the_wrong_kind_are_refused():
    with pytest.raises(UsageError, match="patch needs images"):
        run("patch", *rows())
    with pytest.raises(UsageError, match="embedding_trigger needs rows"):
        run("embedding_trigger", *images())


@pytest.mark.parametrize("name", ONE_LABEL)
def test_one_class_is_refused(name):
    x, y = inputs_for(name)
    with pytest.raises(UsageError, match=r"one class|only 0 are|at most 0"):
        run(name, x, np.full_like(y, 4))


def test_by_name():
    x, y = images()
    out = poison("patch", x, y, seed=4, target=7, size=4)
    assert out.target == 7 and out.params["size"] == 4 and out.mask.sum() == round(0.01 * len(y))
    with pytest.raises(UsageError, match="did you mean 'patch'"):
        poison("pacth", x, y)
    with pytest.raises(UsageError, match=r"no setting 'alpha'; it has size"):
        poison("patch", x, y, alpha=1)


def test_the_registry_agrees_with_the_functions():
    for name, attack in ATTACKS.items():
        assert attack.name == name == attack.fn.__name__
        assert 0 < attack.default_rate <= 1 and len(attack.about) < 70
        assert "Reference:" in attack.fn.__doc__ and "**Cost**" in attack.fn.__doc__
