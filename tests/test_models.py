"""Models: pure functions of any input shape, and adapters that give what the module gives."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpoison._check import UsageError
from jaxpoison.models import CrossEntropy, Model, from_function, from_linen, from_nnx
from jaxpoison.models.networks import (
    MAX_PIXELS,
    Architecture,
    num_weights,
    scaling,
    shrink_images,
    shrunk_shape,
)
from jaxpoison.models.optimise import init, step, to_model

SHAPES = [(8, 8), (28, 28), (28, 28, 1), (32, 32, 3), (64, 48, 3), (96, 96, 3), (1, 5), (70, 9)]
EARLY = {(8, 8): 512, (28, 28): 512, (32, 32, 3): 768, (96, 96, 3): 768, (1, 5): 96}


INIT = jax.jit(init, static_argnums=0)
STEP = jax.jit(step)


def start(architecture, x, seed=0, steps=10):
    noise = np.random.default_rng(seed).standard_normal(num_weights(architecture), np.float32)
    return INIT(architecture, noise, *scaling(x), np.float32(1e-2), np.float32(steps))


def images(shape, rows=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape), np.uint8)


def features(model, x):
    return np.asarray(jax.jit(model.features)(model.params, x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_image_shapes(shape):
    x = images(shape)
    model = to_model(start(Architecture("images", shape, 5), x))
    outputs = jax.eval_shape(lambda m: (m.features(m.params, x), m.logits(m.params, x)), model)
    assert [o.shape for o in outputs] == [(6, 96), (6, 5)]
    early = jax.eval_shape(model.early_features, model.params, x)
    assert early.shape == (6, EARLY.get(shape, early.shape[1]))
    assert early.shape[1] <= 768
    values = jax.jit(model.loss)(model.params, x, np.arange(6) % 5)
    assert values.shape == (6,) and values.dtype == jnp.float32 and np.isfinite(values).all()


def test_rows_shapes():
    x = np.random.default_rng(0).normal(size=(7, 13)).astype(np.float32)
    model = to_model(start(Architecture("rows", (13,), 3), x))
    assert features(model, x).shape == (7, 64)
    assert model.early_features(model.params, x).shape == (7, 128)
    assert model.logits(model.params, x).shape == (7, 3)


def test_a_row_does_not_depend_on_its_batch():
    x = images((8, 8), rows=5)
    model = to_model(start(Architecture("images", (8, 8), 3), x))
    alone = np.concatenate([features(model, x[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(features(model, x), alone, rtol=1e-5, atol=1e-5)


def test_weights_have_the_size_that_keeps_activations():
    architecture = Architecture("rows", (400,), 3)
    x = np.random.default_rng(1).normal(size=(300, 400)).astype(np.float32)
    state = start(architecture, x)
    kernel = np.asarray(state.params["first"]["kernel"][...])
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / 400), rel=0.02)
    # He: the mean square of a ReLU layer stays that of its input.
    early = np.asarray(to_model(state).early_features((state.params, state.constants), x))
    assert np.mean(early**2) == pytest.approx(1.0, rel=0.1)


def test_residual_branches_start_at_zero_and_then_learn():
    x, y = images((8, 8), rows=16), np.arange(16, dtype=np.int32) % 2
    state = start(Architecture("images", (8, 8), 2), x)
    assert not np.any(state.params["narrow_block"]["last"]["kernel"][...])
    state, _ = STEP(state, x, y, np.ones(16, bool))
    assert np.any(state.params["narrow_block"]["last"]["kernel"][...])


def test_scaling_matches_float64_and_hides_constant_columns():
    x = np.random.default_rng(0).normal(3.0, 2.0, (5000, 4)).astype(np.float32)
    x[:, 1], x[:, 2] = 7.1, 0.0
    mean, inverse = scaling(x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-6)
    assert inverse[1] == inverse[2] == 0.0
    np.testing.assert_allclose(inverse[[0, 3]], 1 / wide.std(0)[[0, 3]], rtol=1e-6)
    colours = images((5, 4, 3), rows=1500)
    mean, inverse = scaling(colours)
    np.testing.assert_allclose(mean, colours.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(inverse, 1 / colours.std((0, 1, 2)), rtol=1e-6)


def test_extreme_and_constant_columns_give_finite_features():
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    x[:, 0], x[0, 1], x[:, 2] = 5.0, 3e38, 1e-42
    model = to_model(start(Architecture("rows", (4,), 2), x))
    assert np.isfinite(features(model, x)).all()


@pytest.mark.parametrize("shape", [(96, 96, 3), (65, 64), (200, 30, 3), (129, 65)], ids=str)
def test_shrinking_averages_exactly_and_only_once(shape):
    x = images(shape, rows=3)
    small = np.asarray(shrink_images(x))
    assert small.shape[1:] == shrunk_shape(shape) and max(small.shape[1:3]) <= MAX_PIXELS
    down, across = (-(-side // MAX_PIXELS) for side in shape[:2])
    corner = x[:, :down, :across].astype(np.float64).mean((1, 2))
    np.testing.assert_array_equal(small[:, 0, 0], np.floor(corner + 0.5))
    np.testing.assert_array_equal(shrink_images(small), small)


def test_padding_has_no_influence():
    x, y = images((8, 8), rows=8), np.arange(8, dtype=np.int32) % 3
    mask = np.arange(8) < 5
    first = start(Architecture("images", (8, 8), 3), x)
    results = []
    for fill, label in ((0, 0), (255, 2), (77, -9)):
        padded, labels = x.copy(), y.copy()
        padded[5:], labels[5:] = fill, label
        results.append(STEP(first, padded, labels, mask))
    for result in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, results[0], result)
    losses = results[0][1].losses
    assert not np.any(losses[5:]) and np.all(losses[:5] > 0)


def test_padding_of_rows_may_be_infinite():
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    state = start(Architecture("rows", (3,), 2), x)
    x[2:] = [[np.inf] * 3, [np.nan] * 3]
    after, (losses, *_) = STEP(state, x, np.zeros(4, np.int32), np.arange(4) < 2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after.params, losses)))


def test_the_step_follows_the_gradient_of_the_mean_loss():
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    y, mask = np.arange(6, dtype=np.int32) % 2, np.arange(6) < 4
    state = start(Architecture("rows", (3,), 2), x)
    model = to_model(state)
    grads = jax.grad(lambda p: jnp.mean(model.loss((p, state.constants), x[:4], y[:4])))(
        state.params
    )
    after, (losses, *_) = STEP(state, x, y, mask)
    np.testing.assert_allclose(losses[:4], model.loss(model.params, x[:4], y[:4]), rtol=1e-5)

    def check(before, after, grad):  # Adam's first step is the learning rate times the sign
        moved = np.abs(grad) > 1e-5
        np.testing.assert_allclose(
            np.asarray(before - after)[moved], 1e-2 * np.sign(grad)[moved], rtol=5e-3
        )

    jax.tree.map(check, state.params, after.params, grads)


def test_a_model_is_a_pytree_with_static_functions():
    x = images((8, 8))
    architecture = Architecture("images", (8, 8), 3)
    traces = []

    @jax.jit
    def run(model, x):
        traces.append(1)
        return model.logits(model.params, x)

    one, two = (to_model(start(Architecture("images", (8, 8), 3), x, seed)) for seed in (0, 1))
    assert not np.array_equal(run(one, x), run(two, x))
    assert len(traces) == 1
    assert one.features == two.features and one.loss == CrossEntropy(one.logits)
    assert one.features.architecture == architecture


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.squash(self.norm(self.drop(self.dense(x))))

    def squash(self, x):
        return jnp.tanh(x)


class Classifier(nnx.Module):
    def __init__(self, rngs):
        self.encoder = Encoder(rngs)
        self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 6, rngs=rngs)])
        self.head = nnx.Linear(6, 3, rngs=rngs)
        self.unused = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x):
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_nnx_gives_what_the_module_gives():
    module = Classifier(nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    model = from_nnx(module, features="blocks.1", early_features="encoder")
    same = from_nnx(Classifier(nnx.Rngs(1)), features="blocks.1", early_features="encoder")
    got = features(model, x)
    assert not module.encoder.drop.deterministic  # the copy was set to evaluation, not ours
    module.eval()
    encoded = module.encoder(x)
    hidden = module.blocks[1](module.blocks[0](encoded))
    np.testing.assert_allclose(got, hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.early_features(model.params, x), encoded, rtol=1e-5)
    np.testing.assert_allclose(model.logits(model.params, x), module(x), rtol=1e-5, atol=1e-6)
    assert model.name == "Classifier"
    assert model.features == same.features  # equal structure compiles once
    by_method = from_nnx(module, features="encoder.squash")
    np.testing.assert_allclose(features(by_method, x), encoded, rtol=1e-5, atol=1e-6)


def test_nnx_preprocess_flattens_and_scales():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
            self.head = nnx.Linear(32, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(self.conv(x).reshape(len(x), -1))

    net, x = Net(nnx.Rngs(0)), images((4, 4))

    def prepare(x):
        return x[..., None].astype(jnp.float32) / 255

    model = from_nnx(net, features="conv", preprocess=prepare)
    np.testing.assert_allclose(
        features(model, x), net.conv(prepare(x)).reshape(6, -1), rtol=1e-5, atol=1e-6
    )


def test_nnx_errors_name_the_submodules():
    module = Classifier(nnx.Rngs(0))
    with pytest.raises(UsageError, match=r"features='enc': no such submodule.*blocks\.0.*encoder"):
        from_nnx(module, features="enc")
    with pytest.raises(UsageError, match=r"early_features='blocks\.7'.*choose one of"):
        from_nnx(module, features="head", early_features="blocks.7")
    with pytest.raises(UsageError, match=r"not a flax nnx\.Module; use from_linen"):
        from_nnx(lambda x: x, features="head")
    model = from_nnx(module, features="unused")
    with pytest.raises(UsageError, match=r"'unused' has no output.*blocks\.0"):
        model.features(model.params, np.ones((2, 4), np.float32))


class LinenNet(nn.Module):
    widths: list[int]

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.relu(nn.Dense(self.widths[0], name="encoder")(x))
        return nn.Dense(self.widths[1], name="head")(x)


def test_linen_gives_what_the_module_gives():
    module = LinenNet([5, 3])
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    variables = module.init(jax.random.key(0), x, train=False)
    model = from_linen(
        module, variables, features="encoder", early_features="norm", options={"train": False}
    )
    dense = variables["params"]["encoder"]
    normed = x / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(
        features(model, x), normed @ dense["kernel"] + dense["bias"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(model.early_features(model.params, x), normed, rtol=1e-5)
    np.testing.assert_allclose(
        model.logits(variables, x), module.apply(variables, x, train=False), rtol=1e-6
    )
    wrong = from_linen(module, variables, features="enc", options={"train": False})
    with pytest.raises(UsageError, match=r"'enc' has no output.*encoder, head, norm"):
        wrong.features(variables, x)
    with pytest.raises(UsageError, match=r"not a flax linen\.Module; use from_nnx"):
        from_linen(Classifier(nnx.Rngs(0)), {}, features="head")


def hidden(params, x):
    return jnp.tanh(x @ params["a"])


def scores(params, x):
    return hidden(params, x) @ params["b"]


def test_plain_functions():
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(4, 6)), "b": rng.normal(size=(6, 3))}
    params = jax.tree.map(jnp.float32, params)
    x, y = rng.normal(size=(5, 4)).astype(np.float32), np.array([0, 1, 2, 0, 1])
    model = from_function(params=params, features=hidden, logits=scores)
    assert isinstance(model, Model) and model.early_features is None
    np.testing.assert_allclose(features(model, x), np.tanh(x @ params["a"]), rtol=1e-5)
    logits = np.asarray(scores(params, x), np.float64)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(5), y]
    np.testing.assert_allclose(model.loss(params, x, y), expected, rtol=1e-5)
    with pytest.raises(UsageError, match="logits is NoneType, not a function"):
        from_function(params=params, features=hidden, logits=None)
