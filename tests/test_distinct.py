"""Rows whose labels were only changed are told from those that show something else."""

from __future__ import annotations

import numpy as np
import pytest

from jaxpoison.detect._detector import evenly
from jaxpoison.detect.distinct import FEWEST, Settled
from jaxpoison.detect.label_views import Opinion, TraitSpace

C = 4


def planted(shift, *, r=40, n=800, p=30, seed=0, own=0.0):
    """Rows of classes 1 to 3 under label 0, all moved by one shift, or each by one of its own."""
    rng = np.random.default_rng(seed)
    honest = rng.integers(1, C, n + r)
    honest[: n // C] = 0
    phi = 3.0 * rng.normal(size=(C, p))[honest] + rng.normal(size=(n + r, p))
    direction = rng.normal(size=p) / np.sqrt(p)
    phi[n:] += shift * direction + own * rng.normal(size=(r, p))
    labels = honest.copy()
    labels[n:] = 0
    return phi.astype(np.float32), labels, honest, np.arange(n, n + r)


def opinion_of(phi, taken_for, doubted, rows=None):
    rows = np.arange(len(taken_for)) if rows is None else rows
    zeros = np.zeros(len(taken_for), np.float32)
    space = TraitSpace(rows, lambda: phi, phi.T @ phi)
    return Opinion(zeros, zeros, taken_for.astype(np.int32), doubted, zeros, space)


def asked(phi, labels, honest, rows, known=None, sampled=None):
    doubted = labels != honest
    opinion = opinion_of(phi if sampled is None else phi[sampled], honest, doubted, sampled)
    known = doubted if known is None else known
    return Settled(opinion, labels, known).distinctness(rows)


def oracle(phi, labels, honest, rows):
    """Every pair compared, every fold fitted by deletion, in all the features."""
    settled = labels == honest
    group, others = [], []
    for c in np.unique(honest[rows]):
        theirs = np.flatnonzero(settled & (labels == c))
        mine = rows[honest[rows] == c]
        some = np.linspace(0, len(theirs) - 1, min(2 * len(mine), len(theirs))).round().astype(int)
        centre = phi[theirs].astype(float).mean(axis=0)
        group += [phi[row] - centre for row in mine]
        others += [phi[row] - centre for row in theirs[some]]
    a, b = np.array(group), np.array(others)
    of_a, of_b = np.arange(len(a)) % 5, np.arange(len(b)) % 5
    own, usual = np.zeros(len(a)), np.zeros(len(b))
    for fold in range(5):
        x, y = a[of_a != fold], b[of_b != fold]
        within = (np.cov(x.T, bias=True) + np.cov(y.T, bias=True)) / 2
        within += 0.01 * np.trace(within) / len(within) * np.eye(len(within))
        along = np.linalg.inv(within) @ (x.mean(axis=0) - y.mean(axis=0))
        own[of_a == fold] = a[of_a == fold] @ along / (y @ along).std()
        usual[of_b == fold] = b[of_b == fold] @ along / (y @ along).std()
    return np.mean((own[:, None] > usual) + 0.5 * (own[:, None] == usual))


@pytest.mark.parametrize("shape", [(40, 800, 30), (12, 200, 90), (20, 300, 500)])
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_against_the_definition(shape, shift):
    r, n, p = shape
    case = planted(shift, r=r, n=n, p=p)
    assert asked(*case) == pytest.approx(oracle(*case), abs=1e-9)


def test_rows_that_are_what_they_are_taken_for():
    values = [asked(*planted(0.0, seed=seed)) for seed in range(20)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.05) and max(values) < 0.72


def test_a_shift_that_all_share():
    values = [asked(*planted(shift)) for shift in (0.5, 1.5, 3.0, 6.0)]
    assert values == sorted(values) and values[-1] > 0.99


def test_shifts_of_their_own_are_no_trigger():
    values = [asked(*planted(0.0, own=1.0, seed=seed)) for seed in range(20)]
    assert np.mean(values) < 0.6


def test_known_rows_are_no_reference():
    phi, labels, honest, rows = planted(3.0)
    both = np.concatenate([phi, phi[rows] + 0.01])  # the same poison once more, not doubted
    labels, honest = (np.concatenate([each, honest[rows]]) for each in (labels, honest))
    again = np.arange(len(phi), len(both))
    known = labels != honest
    hidden = asked(both, labels, honest, rows, known)
    known[again] = True
    assert asked(both, labels, honest, rows, known) > hidden + 0.02


def test_a_sample_of_the_rows():
    phi, labels, honest, rows = planted(3.0, r=80, n=1600)
    sampled = np.arange(0, len(labels), 2)
    assert asked(phi, labels, honest, rows, sampled=sampled) > 0.9
    assert np.isnan(asked(phi, labels, honest, rows, sampled=np.setdiff1d(sampled, rows)))


def test_peers_are_of_the_classes_that_rows_are_taken_for():
    phi, labels, honest, rows = planted(0.0)
    doubted = labels != honest
    doubted[:100] = True
    for sampled in (None, np.arange(0, len(labels), 2)):  # all rows are at hand for them
        opinion = opinion_of(phi if sampled is None else phi[sampled], honest, doubted, sampled)
        settled = Settled(opinion, labels, labels != honest)
        others = settled.peers(rows)
        assert (np.diff(others) > 0).all() and not doubted[others].any()
        counts = np.bincount(honest[rows], minlength=C)
        assert (np.bincount(labels[others], minlength=C) == counts).all()
        assert len(settled.peers(rows[:0])) == 0
    few = labels != honest
    few[np.flatnonzero(labels == 1)[3:]] = True
    others = Settled(opinion_of(phi, honest, few), labels, few).peers(rows)
    assert (labels[others] == 1).sum() == 3  # all that there are


def test_evenly():
    rows = np.arange(10, 20)
    assert evenly(rows, 10) is rows and evenly(rows, 99) is rows
    assert evenly(rows, 2).tolist() == [10, 19] and evenly(rows, 0).tolist() == []
    for most in range(1, 10):
        assert len(np.unique(evenly(rows, most))) == most


def test_too_few_rows_say_nothing():
    phi, labels, honest, rows = planted(3.0)
    assert np.isnan(asked(phi, labels, honest, rows[: FEWEST - 1]))
    assert asked(phi, labels, honest, rows[:FEWEST]) > 0.5
    assert np.isnan(asked(phi, labels, honest, rows[:0]))
    known = np.ones(len(labels), bool)  # no class has references
    assert np.isnan(asked(phi, labels, honest, rows, known))


def test_equal_rows():
    phi, labels, honest, rows = planted(0.0)
    assert asked(np.ones_like(phi), labels, honest, rows) == 0.5


def test_many_rows_are_looked_at_in_part():
    case = planted(3.0, r=900, n=4000)
    assert asked(*case) > 0.9
