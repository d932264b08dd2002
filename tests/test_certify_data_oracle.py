"""No training set within a certified radius changes a prediction; wrong forms are found out."""

from __future__ import annotations

import numpy as np
import pytest

import data_oracle as oracle
from certify_data import NEAREST, RIDGE
from data_oracle import DEFENCES, HEAVY, MUTANTS, Defence, training_sets, violations
from jaxpoison._check import UsageError
from jaxpoison.certify import General, Keys, LabelFlip, certify, votes_of
from jaxpoison.certify.keys import Column, ContentHash
from jaxpoison.certify.partitions import partition


def check(defence, rows, sets, seed, distinct=False):
    tried = certified = 0
    for training in training_sets(sets, rows, seed, distinct):
        found, states, rows_certified = violations(defence, training)
        assert not found
        tried += states
        certified += rows_certified
    return tried, certified


@pytest.mark.parametrize("learner", [NEAREST, RIDGE], ids=lambda learner: learner.name)
@pytest.mark.parametrize("k", [3, 4, 5])
@pytest.mark.parametrize("name", DEFENCES)
def test_nothing_within_the_radius_changes_a_prediction(name, k, learner):
    distinct = name == "sorted position"
    sets = 3 if name == "finite aggregation" else 6
    defence = Defence(k, learner, **DEFENCES[name])
    tried, certified = check(defence, 8 if distinct else 9, sets, k, distinct)
    assert tried > 30 and certified > 5  # something was claimed, and much was tried


def test_run_off_holds_on_data_too():
    tried, certified = check(RunOff(5, RIDGE), 9, 4, 1)
    assert tried > 50 and certified > 5


class RunOff(Defence):
    def votes(self, training):
        order = self.rng.permutation(len(training))
        at = np.array(training)[order]
        x, y = oracle.INPUTS[at[:, 0]], at[:, 1]
        p = self.partition(x, y)
        blocks = self.learner.fit_scores(p, x, y, oracle.INPUTS, num_classes=oracle.CLASSES)
        scores = np.concatenate([np.round(s, 4) for _, s in blocks])
        return votes_of(scores=scores, subsets=np.arange(len(scores)), design=p.design)

    def certificates(self, training):
        return certify(self.votes(training), "run_off", self.threat)


def test_some_radius_is_tight():
    """One more touched cell than certified changes a prediction: the oracle does reach that far."""
    broken = 0
    for training in training_sets(3, 9, 2):
        defence = Defence(3)
        made = defence.certificates(training)
        for other, cost in oracle.reachable(training, made.costs, 2).items():
            if len(other) >= 3:
                changed = defence.prediction(other) != made.prediction
                broken += int((changed & (made.radius == cost - 1)).sum())
    assert broken > 0


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_forms_are_found_out(name):
    defence = MUTANTS[name]()
    rows = 12 if name == "sorted position against insertion" else 9
    for training in training_sets(40, rows, 7):
        if violations(defence, training, most=1)[0]:
            return
    pytest.fail(f"{name} passed the oracle")


def test_the_unchanged_defence_passes_where_mutants_fail():
    for k, learner in ((5, NEAREST), (5, RIDGE), (3, HEAVY)):
        for training in training_sets(20, 9, 7):
            assert not violations(Defence(k, learner), training, most=1)[0]


def test_a_position_carries_label_flips_only():
    training = next(training_sets(1, 8, 0, distinct=True))
    options = DEFENCES["sorted position"]
    with pytest.raises(UsageError, match="sorted position"):
        Defence(4, **{**options, "threat": General()}).certificates(training)
    made = Defence(4, **options).certificates(training)
    assert isinstance(made.threat, LabelFlip) and set(made.costs) == {"flip"}


def test_whole_clients_may_do_anything():
    """All rows of r clients replaced at will, by more rows or none."""
    rng = np.random.default_rng(3)
    clients = 12
    names = np.repeat(np.arange(clients), 3)
    at = rng.integers(0, 8, len(names))
    x, y = oracle.INPUTS[at], oracle.NATURAL[at]
    key = Column("client")

    def certificates(x, y, names):
        p = partition(x, y, k=5, key=key, column=names)
        blocks = NEAREST.fit_scores(p, x, y, oracle.INPUTS, num_classes=oracle.CLASSES)
        scores = np.concatenate([s for _, s in blocks])
        votes = votes_of(scores=scores, subsets=np.arange(5), design=p.design)
        return certify(votes, threat=Keys())

    made = certificates(x, y, names)
    assert made.radius.max() >= 1 and made.costs == {"key": 1}
    for _ in range(300):
        bad = rng.choice(clients, rng.integers(1, made.radius.max() + 1), replace=False)
        kept = ~np.isin(names, bad)
        count = int(rng.integers(0, 20))
        new = rng.integers(0, 8, count)
        after = certificates(
            np.concatenate([x[kept], oracle.INPUTS[new]]),
            np.concatenate([y[kept], rng.integers(0, oracle.CLASSES, count)]),
            np.concatenate([names[kept], rng.choice(bad, count)]),
        )
        held = made.radius >= len(bad)
        assert (after.prediction[held] == made.prediction[held]).all()


def test_every_input_of_the_universe_has_its_own_cell_often_enough():
    """Else the hashes would be tried on few subsets only."""
    cells = ContentHash().cells(oracle.INPUTS, oracle.NATURAL, 5)
    assert len(set(cells.tolist())) >= 4
