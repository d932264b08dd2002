"""One shift of many rows is told from many shifts of one row each, and findings are named by it."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxpoison import attacks
from jaxpoison.calibrate import kind_of_shift
from jaxpoison.detect.common_shift import FEWEST, common_shift
from jaxpoison.evaluate.retrain import train
from scan_data import digits

LENGTH = 12.0


def rows_with(share, *, r=30, s=400, d=40, seed=0):
    """Normal rows; of the squared shift of the first r, this share is the same for all of them."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) / np.sqrt(d) + np.eye(d)
    x = rng.normal(size=(r + s, d)) @ mixing

    def unit(n):
        drawn = rng.normal(size=(n, d))
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    x[:r] += LENGTH * (np.sqrt(share) * unit(1) + np.sqrt(1 - share) * unit(r)) @ mixing
    return x[:r], x[r:]


def ridge(cov, share=1e-3):
    return share * np.trace(cov) / len(cov)


def places(x, others, kept, share, num_folds):
    """Where all rows lie along directions fitted to the kept ones of the other folds."""
    out = np.zeros(len(x)), np.zeros(len(others))
    for fold in range(num_folds):
        a, b = (
            rows[keep & (np.arange(len(rows)) % num_folds != fold)]
            for rows, keep in zip((x, others), kept, strict=True)
        )
        cov = (np.cov(a, rowvar=False, bias=True) + np.cov(b, rowvar=False, bias=True)) / 2
        along = np.linalg.inv(cov + ridge(cov, share) * np.eye(len(cov)))
        along = along @ (a.mean(axis=0) - b.mean(axis=0))
        start, end = b.mean(axis=0) @ along, a.mean(axis=0) @ along
        for rows, found in zip((x, others), out, strict=True):
            found[fold::num_folds] = (rows[fold::num_folds] @ along - start) / (end - start)
    return out


def oracle(x, others):
    """Both figures from the definitions: every fold's rows deleted, no rotation, no moments."""
    d = x.shape[1]
    kept = np.ones(len(x), bool), np.ones(len(others), bool)
    for _ in range(6):
        own, usual = places(x, others, kept, 0.1, 5)
        kept = own > 0.5, usual <= 0.5
        if min(side.mean() for side in kept) < 0.8:
            kept = np.ones(len(x), bool), np.ones(len(others), bool)
            break
    x, others = x[kept[0]], others[kept[1]]

    m = e = noise = 0.0
    for parity in (0, 1):
        seen, held = others[parity::2], others[1 - parity :: 2]
        cov = np.cov(seen, rowvar=False)
        values, vectors = np.linalg.eigh(cov)
        limit = max(values[int(2 / 3 * d) - 1], 1e-9 * values[-1])
        white = [
            v / np.sqrt(w + ridge(cov))
            for w, v in zip(values, vectors.T, strict=True)
            if w <= limit
        ]
        project = sum(np.outer(v, v) for v in white)
        shift = x.mean(axis=0) - held.mean(axis=0)
        own = np.trace(project @ np.cov(x, rowvar=False))
        usual = np.trace(project @ np.cov(held, rowvar=False))
        m += shift @ project @ shift - own / len(x) - usual / len(held)
        e += own - usual
        by_direction = [
            v @ np.cov(x, rowvar=False) @ v / len(x)
            + v @ np.cov(held, rowvar=False) @ v / len(held)
            for v in white
        ]
        noise += np.sqrt(2 * np.sum(np.square(by_direction)))
    every = np.ones(len(x), bool), np.ones(len(others), bool)
    own, _ = places(x, others, every, 1e-3, 10)
    return m / (m + max(e, 0)) if m > 3 * noise else 0.0, own.std(ddof=1) / own.mean()


@pytest.mark.parametrize("shape", [(30, 400, 40), (30, 45, 120), (12, 30, 200), (300, 20, 16)])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_against_the_definitions(shape, share):
    r, s, d = shape
    x, others = rows_with(share, r=r, s=s, d=d)
    assert np.array(common_shift(x, others)) == pytest.approx(np.array(oracle(x, others)), rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_the_share_is_what_was_planted(share):
    found = [common_shift(*rows_with(share, seed=seed)) for seed in range(5)]
    assert np.mean([each.share for each in found]) == pytest.approx(share, abs=0.04)


def test_the_spread_grows_as_less_is_shared():
    spreads = [common_shift(*rows_with(share)).spread for share in (1.0, 0.8, 0.5, 0.2)]
    assert spreads == sorted(spreads) and spreads[0] < 0.2 < spreads[-1]


@pytest.mark.parametrize(("share", "d"), [(0.3, 40), (1.0, 40), (1.0, 300)])
def test_a_few_missed_or_false_rows_do_not_count(share, d):
    x, others = rows_with(share, r=60, d=d)
    clean = common_shift(x[6:], others[6:])
    mixed = common_shift(np.concatenate([x[6:], others[:6]]), np.concatenate([others[6:], x[:6]]))
    assert np.array(mixed) == pytest.approx(np.array(clean), rel=0.1)


def test_rows_like_the_others_share_nothing():
    rng = np.random.default_rng(3)
    for _ in range(40):
        x, others = rng.normal(size=(60, 12)), rng.normal(size=(300, 12))
        found = common_shift(0.5 * x, others)  # of less variance: no extra one to compare with
        assert found.share == 0 and found.spread > 1  # no direction tells them


@pytest.mark.parametrize("d", [40, 500])
def test_rotation_shift_and_unit_change_nothing(d):
    x, others = rows_with(0.7, s=200, d=d)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(d, d)))[0]
    before = np.array(common_shift(x, others))
    after = np.array(common_shift(*(1e3 * rows @ turn + 50 for rows in (x, others))))
    assert after == pytest.approx(before, rel=1e-5)


def test_odd_features():
    x, others = rows_with(1.0)
    fixed = [np.hstack([rows, np.full((len(rows), 3), 9.0)]) for rows in (x, others)]
    assert np.isfinite(common_shift(*fixed)).all()
    same = common_shift(np.ones((10, 4)), np.ones((10, 4)))
    assert same.share == 0 and same.spread == np.inf
    apart = common_shift(np.ones((10, 4)), np.zeros((10, 4)))
    assert apart.share == pytest.approx(1) and apart.spread == pytest.approx(0)
    one = common_shift(others[:30, :1] + 9.0, others[30:, :1])
    assert one.share > 0.9 and one.spread < 0.3


def test_too_few_rows():
    x, others = rows_with(1.0)
    for few in ((x[: FEWEST - 1], others), (x, others[: FEWEST - 1])):
        with pytest.raises(ValueError, match=f"at least {FEWEST}"):
            common_shift(*few)


def planted(attack, model, **options):
    """Digits with a clean-label attack on one of their classes."""
    x, y = digits()
    if model is not None:
        options["model"] = model
    return attack(x, y, key=jax.random.key(4), target=4, **options)


@pytest.fixture(scope="module")
def surrogate():
    return train(*digits(), 10, seed=7).model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["feature_collision", "bullseye_polytope", "gradient_matching"])
def test_targeted_attacks_on_digits(surrogate, name):
    made = planted(attacks.ATTACKS[name].fn, surrogate, rate=0.02, source=9)
    x = made.x.reshape(len(made.x), -1)
    mine = made.y == 4
    found = common_shift(x[made.mask], x[mine & ~made.mask])
    assert kind_of_shift(*found) == made.kind == "targeted"


@pytest.mark.slow
def test_clean_label_backdoors_on_digits(surrogate):
    for made in (
        planted(attacks.ATTACKS["sig"].fn, None, rate=0.5),
        planted(attacks.ATTACKS["label_consistent"].fn, surrogate, rate=0.5),
    ):
        x = made.x.reshape(len(made.x), -1)
        mine = made.y == 4
        found = common_shift(x[made.mask], x[mine & ~made.mask])
        assert kind_of_shift(*found) == made.kind == "clean_label"
