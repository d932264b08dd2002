"""Detectors of gradients and self-influence against float64 oracles on a tiny network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine_data as data
from device_processes import on_devices
from jaxpoison._check import UsageError
from jaxpoison.detect import _gradients, _head
from jaxpoison.detect._gradients import gradients, trained_leaves
from jaxpoison.detect.gradient_direction import GradientDirection
from jaxpoison.detect.gradient_norm import _FLOOR, GradientNorm
from jaxpoison.detect.self_influence import SelfInfluence
from jaxpoison.kernels import collect_taps, random_project, tap_inputs
from jaxpoison.layout import Layout
from jaxpoison.models import from_function
from jaxpoison.models.networks import Architecture, NetworkFn
from jaxpoison.sources import open_source
from jaxpoison.stream import Stage, Stream, make_mesh

KEY, C, D, HIDDEN = jax.random.key(0), 4, 6, 5
DETECTORS = [GradientDirection(), GradientNorm(), SelfInfluence()]
every = pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: type(d).__name__)


def _features(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"])


def _logits(params, x):
    return _features(params, x) * params["scale"] @ params["w2"] + params["b2"]


def _identity(params, x):
    return x


def weights_of(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (D, HIDDEN), "b1": (HIDDEN,), "scale": (HIDDEN,), "w2": (HIDDEN, C), "b2": (C,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def model_of(seed=0):
    return from_function(params=weights_of(seed), features=_features, logits=_logits)


def rows_of(n=240, seed=0):
    """Rows whose label is the one the network gives them, but for a tenth of class 1."""
    rng = np.random.default_rng(seed)
    x = (2.0 * rng.normal(size=(60 * n, D))).astype(np.float32)
    said = np.asarray(_logits(weights_of(), jnp.asarray(x))).argmax(axis=1)
    keep = np.concatenate([np.flatnonzero(said == c)[: n // C] for c in range(C)])
    keep = rng.permutation(keep)
    x, y = x[keep], said[keep].astype(np.int32)
    wrong = np.flatnonzero(y == 2)[: n // C // 8]
    y[wrong] = 1
    return x, y, np.isin(np.arange(len(y)), wrong)


X, Y, WRONG = rows_of()


def stream_of(x=X, y=Y, num_devices=1):
    return Stream(open_source(x), np.asarray(y, np.int32), C, make_mesh(num_devices))


def run(detector, x=X, y=Y, model=None, num_devices=1, key=KEY):
    stream = stream_of(x, y, num_devices)
    if isinstance(detector, SelfInfluence):
        return detector.score(stream, key=key)
    return detector.score(stream, key=key, model=model or model_of())


def oracle_gradients(x, y, params):
    """Gradients [n, p] of the cross-entropy in float64, by hand."""
    p = {name: value.astype(np.float64) for name, value in params.items()}
    out = []
    for row, label in zip(x.astype(np.float64), y, strict=True):
        h = np.tanh(row @ p["w1"] + p["b1"])
        z = (h * p["scale"]) @ p["w2"] + p["b2"]
        error = np.exp(z - z.max())
        error /= error.sum()
        error[label] -= 1.0
        back = p["w2"] @ error
        inner = back * p["scale"] * (1.0 - h * h)
        parts = [inner, error, back * h, np.outer(row, inner), np.outer(h * p["scale"], error)]
        out.append(np.concatenate([part.ravel() for part in parts]))
    return np.array(out)


def medians_kept(values, y, lost):
    for c in np.unique(y[lost]):
        mine = y == c
        np.testing.assert_allclose(values[mine & lost], np.median(values[mine & ~lost]), rtol=1e-5)


def test_gradient_norms():
    want = np.linalg.norm(oracle_gradients(X, Y, weights_of()), axis=1)
    scores = run(GradientNorm(min_rows=2))
    np.testing.assert_allclose(scores.values, np.log(want + _FLOOR), rtol=1e-3, atol=2e-3)
    assert scores.info.num_nonfinite == 0


def test_projections_keep_inner_products():
    """With many directions the sketch has the Gram matrix of the whole gradients."""
    want = oracle_gradients(X[:40], Y[:40], weights_of())
    found = gradients(stream_of(X[:40], Y[:40]), model_of(), KEY, num_inputs=96, num_outputs=96)
    gram, product = want @ want.T, found.sketch.astype(np.float64) @ found.sketch.T
    size = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    assert np.abs(gram - product).max() < 0.2 * size.max()
    assert np.abs((gram - product) / size).mean() < 0.05
    np.testing.assert_allclose(found.norms, np.linalg.norm(want, axis=1), rtol=1e-4, atol=1e-6)


def _conv_loss(params, x, y):
    z = jax.lax.conv_general_dilated(
        x, params["w"], (2, 1), "SAME", rhs_dilation=(1, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return jnp.sum(jnp.sin(z) * y[:, None, None, None], axis=(1, 2, 3))


def test_convolutions_are_projected_without_patches():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 7, 6, 3)).astype(np.float32)
    params = {"w": rng.normal(size=(3, 2, 3, 4)).astype(np.float32)}
    taps = collect_taps(_conv_loss, params, (x, np.arange(5.0, dtype=np.float32)))
    (tap,) = taps.layers
    assert tap.layer.kind == "conv"
    signs = np.asarray(random_project(jnp.eye(18), num_features=8, key=KEY), np.float64)
    want = np.asarray(tap_inputs(tap), np.float64) @ signs
    found = np.asarray(_gradients._projected_inputs(tap, 8, KEY))
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_gradient_direction_is_the_leading_one_of_each_class():
    detector = GradientDirection()
    found = gradients(stream_of(), model_of(), KEY, num_inputs=16, num_outputs=8)
    sketch = found.sketch.astype(np.float64)
    sketch /= np.sqrt(np.square(sketch).sum(axis=1).mean())
    scores = run(detector)
    for c in range(C):
        mine = sketch[c == Y] - sketch[c == Y].mean(axis=0)
        _, values, right = np.linalg.svd(mine, full_matrices=False)
        np.testing.assert_allclose(
            scores.values[c == Y], np.square(mine @ right[0]), rtol=2e-3, atol=1e-4
        )
        np.testing.assert_allclose(scores.statistic[c], (values[0] / values[1]) ** 2, rtol=1e-3)


def test_the_projection_hardly_moves_the_direction():
    """Scores of whole gradients and of 2,304 features of them go together where one leads."""
    whole = oracle_gradients(X, Y, weights_of())
    parts = [np.linalg.svd(whole[c == Y] - whole[c == Y].mean(axis=0)) for c in range(C)]
    c = int(np.argmax([values[0] / values[1] for _, values, _ in parts]))
    left, values, _ = parts[c]
    scores = run(GradientDirection(num_inputs=48, num_outputs=48)).values[c == Y]
    assert np.corrcoef(np.square(values[0] * left[:, 0]), scores)[0, 1] > 0.95


def head_oracle(x, y, damping):
    """Features in their units, and the head at its minimum by full Newton steps, float64."""
    rows = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    rows = np.column_stack([rows / np.sqrt(np.mean((rows**2).sum(axis=1))), np.ones(len(x))])
    n, d = rows.shape
    w = np.zeros((C, d))
    for _ in range(40):
        p, hessian = _curvature(rows, w, damping)
        gradient = (p - np.eye(C)[y]).T @ rows / n + damping * w
        w -= np.linalg.solve(hessian, gradient.ravel()).reshape(C, d)
    return rows, w


def _curvature(rows, w, damping):
    z = rows @ w.T
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    spread = np.einsum("nk,kl->nkl", p, np.eye(C)) - np.einsum("nk,nl->nkl", p, p)
    hessian = np.einsum("nkl,ni,nj->kilj", spread, rows, rows) / len(rows)
    size = w.size
    return p, hessian.reshape(size, size) + damping * np.eye(size)


def test_self_influence_is_a_newton_step_without_the_row():
    damping = 1e-2
    rows, w = head_oracle(X, Y, damping)
    n = len(rows)
    p, hessian = _curvature(rows, w, damping)
    want = np.zeros(n)
    for i in range(n):
        row, spread = rows[i], np.diag(p[i]) - np.outer(p[i], p[i])
        own = np.kron(spread, np.outer(row, row)) / n
        gradient = np.outer(p[i] - np.eye(C)[Y[i]], row).ravel() / n
        moved = w + np.linalg.solve(hessian - own, gradient).reshape(w.shape)
        before, after = (z - z[Y[i]] for z in (w @ row, moved @ row))
        want[i] = np.log(np.exp(after).sum()) - np.log(np.exp(before).sum())
    scores = run(SelfInfluence(damping=damping, min_rows=2))
    assert scores.info.form == "exact" and scores.info.gradient < 1e-4
    np.testing.assert_allclose(np.exp(scores.values), want, rtol=2e-2, atol=1e-6)


def test_self_influence_by_factors(monkeypatch):
    damping = 1e-2
    rows, w = head_oracle(X, Y, damping)
    p, _ = _curvature(rows, w, damping)
    of_inputs = np.linalg.eigh(rows.T @ rows)[1]
    of_outputs = np.linalg.eigh(np.diag(p.sum(axis=0)) - p.T @ p)[1]
    want = np.zeros(len(rows))
    for a in range(rows.shape[1]):
        for b in range(C):
            u, v = of_inputs[:, a], of_outputs[:, b]
            spread = p @ v**2 - (p @ v) ** 2
            curved = np.mean((rows @ u) ** 2 * spread)
            along = (rows @ u) * ((p - np.eye(C)[Y]) @ v)
            want += along**2 / (curved + damping) / len(rows)
    monkeypatch.setattr(_head, "MAX_CORRECTED", 0)
    scores = run(SelfInfluence(damping=damping, min_rows=2))
    assert scores.info.form == "kronecker"
    np.testing.assert_allclose(np.exp(scores.values), want, rtol=1e-2, atol=1e-7)


@every
def test_wrong_labels_are_found(detector):
    scores = run(detector)
    mine = Y == 1
    assert data.auroc(scores.values[mine], WRONG[mine]) > 0.85
    assert scores.values.dtype == np.float32 and scores.statistic.dtype == np.float64
    assert scores.values.shape == (len(X),) and scores.null.shape == (C, 0)
    assert np.isfinite(scores.values).all() and np.isfinite(scores.statistic).all()


@every
@pytest.mark.parametrize("change", ["order", "layout", "held"])
def test_what_must_not_matter(monkeypatch, detector, change):
    first = run(detector)
    x, y, order = X, Y, np.arange(len(X))
    if change == "order":
        order = np.random.default_rng(1).permutation(len(X))
        x, y = X[order], Y[order]
    if change == "layout":
        monkeypatch.setattr(Layout, "of", classmethod(lambda cls, n, b, c: cls(64, 8, 8 + c)))
    if change == "held":
        monkeypatch.setattr(_gradients, "_HELD_FLOATS", 1)  # blocks of eight rows
    again = run(detector, x, y)
    scale = np.abs(first.values).max()
    np.testing.assert_allclose(again.values, first.values[order], rtol=2e-3, atol=2e-3 * scale)
    np.testing.assert_allclose(again.statistic, first.statistic, rtol=2e-2)


@every
def test_same_key_same_bits(detector):
    one, two = run(detector), run(detector)
    assert np.array_equal(one.values, two.values)
    assert np.array_equal(one.statistic, two.statistic)


@every
def test_small_and_empty_classes(detector):
    keep = np.ones(len(X), np.bool_)
    keep[np.flatnonzero(Y == 3)[detector.min_rows - 1 :]] = False
    keep[Y == 0] = False
    scores = run(detector, X[keep], Y[keep])
    assert not scores.values[Y[keep] == 3].any()
    assert np.isnan(scores.statistic[[0, 3]]).all() and np.isfinite(scores.statistic[[1, 2]]).all()
    assert np.isfinite(scores.values).all()
    tiny = run(detector, X[:6], np.arange(6) % C)
    assert not tiny.values.any() and np.isnan(tiny.statistic).all()


@every
def test_a_single_class_and_equal_rows(detector):
    alone = run(detector, X[Y == 1], Y[Y == 1])
    assert np.isfinite(alone.values).all()
    same = run(detector, np.full_like(X, 0.5), Y)
    assert np.isfinite(same.values).all() and np.isfinite(same.statistic).all()
    for c in range(C):
        assert np.ptp(same.values[c == Y]) < 1e-3


@every
def test_rows_without_a_finite_gradient_have_the_median_of_their_class(detector):
    x = X.copy()
    lost = np.zeros(len(x), np.bool_)
    lost[[3, 50, 51, 200]] = True
    x[lost, 2] = np.nan
    scores = run(detector, x)
    assert scores.info.num_nonfinite == 4 and np.isfinite(scores.values).all()
    medians_kept(scores.values, Y, lost)
    assert np.isfinite(scores.statistic).all()


def test_norms_come_with_the_directions(monkeypatch):
    stream, model = stream_of(), model_of()
    GradientDirection().score(stream, key=KEY, model=model)
    alone = run(GradientNorm())
    monkeypatch.setattr(_gradients, "gradients", None)  # no further pass
    shared = GradientNorm().score(stream, key=KEY, model=model)
    np.testing.assert_allclose(shared.values, alone.values, rtol=1e-3, atol=1e-3)


@every
def test_second_run_compiles_nothing(detector):
    run(detector)
    before = data.num_compiled()
    x, y, _ = rows_of(seed=3)
    run(detector, x, y, model=model_of(seed=4), key=jax.random.key(2))
    assert data.num_compiled() == before


def test_which_leaves_are_trained():
    assert all(jax.tree.leaves(trained_leaves(model_of())))
    own = NetworkFn(Architecture("rows", (D,), C), "logits")
    assert trained_leaves(from_function(params=(1, 2), features=own, logits=own)) == (True, False)
    linen = {"params": {"w": np.ones(2)}, "batch_stats": {"mean": np.ones(2)}}
    said = trained_leaves(from_function(params=linen, features=_features, logits=_logits))
    assert said == {"params": {"w": True}, "batch_stats": {"mean": False}}
    steps = {"w": np.ones(2, np.float32), "steps": np.int32(3)}
    said = trained_leaves(from_function(params=steps, features=_features, logits=_logits))
    assert said == {"w": True, "steps": False}


def test_which_leaves_of_an_nnx_module_are_trained():
    nnx = pytest.importorskip("flax.nnx")
    module = nnx.Sequential(nnx.Linear(D, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    params = nnx.split(module)[1]
    said = trained_leaves(from_function(params=params, features=_features, logits=_logits))
    assert sum(jax.tree.leaves(said)) == 4  # kernel, bias, scale, shift; not mean and variance
    assert len(jax.tree.leaves(said)) == 6


def test_what_they_can_not_work_with():
    staged = stream_of().through(Stage(_identity, None))
    for detector in DETECTORS[:2]:
        with pytest.raises(UsageError, match="raw inputs"):
            detector.score(staged, key=KEY, model=model_of())
        nothing = from_function(params={"n": np.int32(1)}, features=_features, logits=_logits)
        with pytest.raises(UsageError, match="no gradients of single rows"):
            detector.score(stream_of(), key=KEY, model=nothing)
    with pytest.raises(UsageError, match="num_inputs is 0"):
        run(GradientDirection(num_inputs=0))
    with pytest.raises(UsageError, match="damping is 0"):
        run(SelfInfluence(damping=0.0))


DEVICES = """
    import hashlib
    import jax
    import numpy as np
    from jaxpoison.detect import _gradients
    from test_gradient_detectors import DETECTORS, X, Y, run

    _gradients._HELD_FLOATS = 1 << 12  # many blocks out of little data
    state = hashlib.blake2b(digest_size=16)
    for detector in DETECTORS:
        scores = run(detector, X[:201], Y[:201], num_devices=len(jax.devices()))
        state.update(scores.values.tobytes() + scores.statistic.tobytes())
    print(len(jax.devices()), state.hexdigest())
"""


@pytest.mark.slow
def test_any_number_of_devices_gives_the_same_bits():
    seen = {}
    for count in (1, 8):
        number, seen[count] = on_devices(count, DEVICES).split()
        assert int(number) == count
    assert seen[1] == seen[8]
