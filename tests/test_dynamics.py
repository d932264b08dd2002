"""Detectors of training dynamics, on records with known groups and on a real training."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats

import engine_data as data
from jaxpoison._check import UsageError
from jaxpoison._types import Dynamics
from jaxpoison.detect.dynamics import AUM, EL2N, EarlyLoss, LossDrop, LowLossIsolation
from jaxpoison.layout import Layout
from jaxpoison.sources import open_source
from jaxpoison.training import fit

KEY = jax.random.key(0)
N, C, EPOCHS = 1500, 5, 9
LABELS = np.random.default_rng(0).permutation(np.arange(N) % C)
TARGET = 2
LATE = [EarlyLoss(), EL2N(), AUM(), LossDrop()]
EARLY = [LowLossIsolation(), LossDrop()]
ALL = [EarlyLoss(), EL2N(), AUM(), LossDrop(), LowLossIsolation()]
every = pytest.mark.parametrize("detector", ALL, ids=lambda d: type(d).__name__)


def stream(labels=LABELS, num_classes=C):
    x = np.zeros((len(labels), 2), np.float32)
    return data.stream_of(x, labels, num_classes=num_classes)


def dynamics(is_late, seed=0, share=0.1, labels=LABELS):
    """A record in which some rows of one class are learnt late, or at once."""
    rng = np.random.default_rng(seed)
    mine = np.flatnonzero(labels == TARGET)
    odd = np.zeros(len(labels), np.bool_)
    odd[rng.permutation(mine)[: round(share * len(mine))]] = True
    shift = np.where(odd, 3 if is_late else -4, 0)[:, None]
    level = 0.5 * rng.normal(size=(len(labels), 1)) + shift
    curve = level - 0.3 * np.arange(EPOCHS) + 0.2 * rng.normal(size=(len(labels), EPOCHS))
    losses = np.exp(curve)
    p = np.exp(-losses)  # of the own class, the rest on one other
    record = (losses, np.log(p / (1 - p)), np.sqrt(2) * (1 - p))
    logits = np.zeros((len(labels), C), np.float32)
    out = Dynamics(logits, np.arange(len(labels)), *(a.astype(np.float32) for a in record))
    return out, odd


def run(detector, record, labels=LABELS, **options):
    return detector.score(stream(labels, **options), key=KEY, dynamics=record)


@pytest.mark.parametrize(
    ("detector", "is_late"),
    [(d, True) for d in LATE] + [(d, False) for d in EARLY],
    ids=lambda value: str(value) if isinstance(value, bool) else type(value).__name__,
)
def test_the_odd_rows_are_found_and_their_class_named(detector, is_late):
    record, odd = dynamics(is_late)
    scores = run(detector, record)
    mine = LABELS == TARGET
    assert data.auroc(scores.values[mine], odd[mine]) > 0.99
    assert scores.statistic.argmax() == TARGET
    assert (scores.candidates[mine] == odd[mine]).mean() > 0.95
    # skewed scores put a few honest rows of the tail into the group
    assert scores.info.weight[TARGET] == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("detector", LATE[:3] + EARLY[:1], ids=lambda d: type(d).__name__)
def test_groups_on_the_other_side_are_no_evidence(detector):
    """Rows learnt at once are no label errors, and those learnt late no backdoor."""
    record, odd = dynamics(is_late=isinstance(detector, LowLossIsolation))
    scores = run(detector, record)
    mine = LABELS == TARGET
    assert data.auroc(scores.values[mine], odd[mine]) < 0.01
    assert scores.statistic[TARGET] == 0 and not scores.candidates[odd].any()


@every
def test_shapes(detector):
    scores = run(detector, dynamics(True)[0])
    assert scores.values.shape == (N,) and scores.values.dtype == np.float32
    assert scores.statistic.shape == (C,) and scores.statistic.dtype == np.float64
    assert scores.null.shape == (C, 0) and scores.candidates.dtype == np.bool_
    assert np.isfinite(scores.values).all() and np.isfinite(scores.statistic).all()
    assert scores.info.num_seen == N and scores.info.epochs[1] < EPOCHS


def test_values_are_what_the_papers_say():
    record, _ = dynamics(True)
    early = slice(1, 4)  # a third of nine epochs, the first left out
    want = {
        "EarlyLoss": np.log(record.losses[:, early].astype(float).mean(1) + 1e-6),
        "EL2N": scipy.special.logit(
            np.clip(record.errors[:, early].astype(float).mean(1) / 2**0.5, 1e-6, 1 - 1e-6)
        ),
        "AUM": -record.margins.astype(float).mean(1),
        "LowLossIsolation": -np.log(record.losses[:, early].astype(float).mean(1) + 1e-6),
    }
    for detector in ALL:
        name, scores = type(detector).__name__, run(detector, record)
        if name in want:
            np.testing.assert_allclose(scores.values, want[name], rtol=1e-5, atol=1e-6)
    assert run(EarlyLoss(), record).info.epochs == (1, 3)
    assert run(replace(EL2N(), epochs=1), record).info.epochs == (1, 1)
    assert run(replace(EL2N(), epochs=99), record).info.epochs == (1, EPOCHS - 1)


def test_loss_drop_has_two_sides():
    (late, odd), (early, quick) = dynamics(True), dynamics(False, seed=1)
    losses = late.losses.copy()
    losses[quick & ~odd] = early.losses[quick & ~odd]
    scores = run(LossDrop(), late._replace(losses=losses))
    mine, strange = LABELS == TARGET, odd | quick
    assert data.auroc(scores.values[mine], strange[mine]) > 0.98


@every
def test_rows_that_were_not_trained_on_have_the_median_of_their_class(detector):
    record, _ = dynamics(True)
    rows = np.sort(np.random.default_rng(3).permutation(N)[:900])
    part = record._replace(
        rows=rows, losses=record.losses[rows], margins=record.margins[rows],
        errors=record.errors[rows],
    )  # fmt: skip
    scores = run(detector, part)
    unseen = np.ones(N, np.bool_)
    unseen[rows] = False
    assert scores.info.num_seen == 900 and not scores.candidates[unseen].any()
    for c in range(C):
        mine = c == LABELS
        middle = np.median(scores.values[mine & ~unseen])
        np.testing.assert_allclose(scores.values[mine & unseen], middle, rtol=1e-6)


@every
@pytest.mark.parametrize("change", ["order", "layout", "names"])
def test_what_must_not_matter(monkeypatch, detector, change):
    record, _ = dynamics(True)
    first, order, number = run(detector, record), np.arange(N), np.arange(C)
    if change == "order":
        order = np.random.default_rng(1).permutation(N)
    if change == "layout":
        monkeypatch.setattr(Layout, "of", classmethod(lambda cls, n, b, c: cls(256, 8, 37)))
    if change == "names":
        number = np.array([3, 0, 4, 1, 2])
    moved = Dynamics(record.logits, np.arange(N), *(a[order] for a in record[2:]))
    again = run(detector, moved, number[LABELS[order]])
    np.testing.assert_allclose(again.values, first.values[order], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(again.statistic[number], first.statistic, rtol=2e-2)
    mine = LABELS[order] == TARGET
    assert np.array_equal(again.candidates[mine], first.candidates[order][mine])


@every
def test_small_classes_and_classes_hardly_trained_on_are_skipped(detector):
    record, _ = dynamics(True)
    keep = np.ones(N, np.bool_)
    keep[np.flatnonzero(LABELS == 3)[39:]] = False
    keep[np.flatnonzero(LABELS == 1)[1:]] = False
    keep[LABELS == 4] = False
    trained = np.ones(keep.sum(), np.bool_)
    trained[np.flatnonzero(LABELS[keep] == 0)[10:]] = False  # many rows, ten of them seen
    part = Dynamics(record.logits, np.flatnonzero(trained), *(a[keep][trained] for a in record[2:]))
    scores = run(detector, part, LABELS[keep])
    skipped = LABELS[keep] != TARGET
    assert not scores.values[skipped].any() and not scores.candidates[skipped].any()
    assert np.isnan(scores.statistic[[0, 1, 3, 4]]).all()
    assert np.isfinite(scores.statistic[TARGET]) and scores.values[~skipped].any()
    assert np.isfinite(scores.values).all()
    tiny = run(detector, part._replace(
        rows=np.arange(3), losses=part.losses[:3], margins=part.margins[:3],
        errors=part.errors[:3],
    ), LABELS[keep])  # fmt: skip
    assert not tiny.values.any() and np.isnan(tiny.statistic).all()


@every
def test_records_without_any_spread(detector):
    flat = np.zeros((N, 4), np.float32)
    scores = run(detector, Dynamics(flat, np.arange(N), flat, flat, flat))
    assert np.isfinite(scores.values).all() and np.isfinite(scores.statistic).all()
    one = run(detector, Dynamics(flat, np.arange(N), flat[:, :1], flat[:, :1], flat[:, :1]))
    assert one.info.epochs == (0, 0) and np.isfinite(one.values).all()


@every
def test_second_run_compiles_nothing(detector):
    run(detector, dynamics(True)[0])
    before = data.num_compiled()
    run(detector, dynamics(False, seed=4)[0])
    assert data.num_compiled() == before


@every
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": None, "losses": None, "margins": None, "errors": None}, "dynamics has no"),
        ({"rows": np.arange(7)}, r"has shape \(1500, 9\); expected one line for each of the 7"),
        ({"rows": np.arange(N) + 9}, "goes from 9 to 1508, the data has 1500"),
    ],
)
def test_records_that_do_not_fit(detector, change, message):
    with pytest.raises(UsageError, match=message):
        run(detector, dynamics(True)[0]._replace(**change))


def test_bad_settings():
    with pytest.raises(UsageError, match="epochs is 0"):
        run(EarlyLoss(epochs=0), dynamics(True)[0])


def test_wrong_labels_of_real_data_are_found():
    source = open_source("sklearn:digits")
    y, rng = source.labels().astype(np.int64), np.random.default_rng(0)
    wrong = np.zeros(len(y), np.bool_)
    wrong[rng.permutation(len(y))[:90]] = True
    y[wrong] = (y[wrong] + rng.integers(1, 10, 90)) % 10
    fitted = fit(source, y, 10, epochs=10)
    record = Dynamics(
        np.zeros((len(y), 10)), fitted.rows, fitted.losses, fitted.margins, fitted.errors
    )
    for detector in LATE:
        values = run(detector, record, y, num_classes=10).values
        least = 0.8 if isinstance(detector, LossDrop) else 0.95
        assert np.mean([data.auroc(values[y == c], wrong[y == c]) for c in range(10)]) > least
    low = run(LowLossIsolation(), record, y, num_classes=10).values
    assert scipy.stats.spearmanr(low, -run(EarlyLoss(), record, y, num_classes=10).values)[0] > 0.99
