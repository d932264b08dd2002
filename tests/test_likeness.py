import numpy as np
import pytest

from group_data import finding
from jaxpoison import calibrate
from jaxpoison.detect import likeness
from jaxpoison.detect.likeness import MIN_KNOWN

FDR = 0.05


def planted(seed=0, honest=400, poison=80, columns=6, shift=1.6):
    """Columns of weak detectors: each sees a little of the poison, together they see all of it."""
    rng = np.random.default_rng(seed)
    is_poison = np.zeros(honest + poison, bool)
    is_poison[rng.permutation(honest + poison)[:poison]] = True
    table = rng.normal(size=(len(is_poison), columns)) + shift * is_poison[:, None]
    return table, is_poison


def auroc(scores, truth):
    order = np.argsort(np.argsort(scores)) + 1.0
    count, rest = truth.sum(), (~truth).sum()
    return (order[truth].sum() - count * (count + 1) / 2) / (count * rest)


def test_half_of_the_poison_finds_the_other_half():
    table, is_poison = planted()
    known = is_poison & (np.cumsum(is_poison) % 2 == 0)
    found = likeness(table, known)
    rest = ~known
    assert found.separation > 2.5
    assert auroc(found.log_odds[rest], is_poison[rest]) > 0.99
    assert (found.log_odds[is_poison & rest] > 0).mean() > 0.8
    assert (found.log_odds[~is_poison] > 0).mean() < 0.03


def test_no_single_column_does_as_well():
    table, is_poison = planted(1)
    known = is_poison & (np.cumsum(is_poison) % 2 == 0)
    rest = ~known
    alone = max(auroc(column[rest], is_poison[rest]) for column in table.T)
    assert auroc(likeness(table, known).log_odds[rest], is_poison[rest]) > alone + 0.05


def test_columns_count_by_rank_only():
    table, is_poison = planted(2)
    known = is_poison & (np.cumsum(is_poison) % 3 > 0)
    plain, bent = likeness(table, known), likeness(np.exp(3 * table), known)
    np.testing.assert_allclose(plain.log_odds, bent.log_odds)


def test_known_rows_that_are_like_any_others_are_not_told_apart():
    rng = np.random.default_rng(3)
    table, known = rng.normal(size=(500, 6)), np.zeros(500, bool)
    known[rng.permutation(500)[:60]] = True
    assert likeness(table, known).separation < 1.5


@pytest.mark.parametrize("count", [0, 1, MIN_KNOWN - 1, 500])
def test_too_few_on_either_side_say_nothing(count):
    known = np.arange(500) < count
    found = likeness(np.random.default_rng(0).normal(size=(500, 3)), known)
    assert found.separation == 0.0 and np.isfinite(found.log_odds).all()


def test_known_rows_that_are_most_of_a_class_do_not_grow():
    table, is_poison = planted(5, honest=100, poison=200)
    assert likeness(table, is_poison).separation == 0.0


def test_constant_columns_are_harmless():
    table, is_poison = planted(4)
    known = is_poison & (np.cumsum(is_poison) % 2 == 0)
    more = np.concatenate([table, np.zeros((len(table), 2))], axis=1)
    np.testing.assert_allclose(likeness(more, known).log_odds, likeness(table, known).log_odds)


def test_growing_keeps_own_rows_and_adds_likely_ones():
    rows = np.arange(10, 20)
    odds = np.array([-9.0, -9, 8, 8, -1, -9, 8, -9, -9, -9])
    grown = calibrate.grow(finding(3, [10, 12]), rows, odds, 4.0, FDR)
    assert grown.rows.tolist() == [10, 12, 13, 16]
    assert grown.log_odds[0] == 4.0 and grown.log_odds[1] == 8.0
    assert grown.support.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert sorted(grown.near.tolist()) == [11, 14, 15, 17, 18, 19]
    assert (grown.near_odds <= 0).all()


def test_nothing_grows_without_separation():
    found = finding(3, [10, 12])
    assert calibrate.grow(found, np.arange(10, 20), np.full(10, 9.0), 1.0, FDR) is found


def test_odds_from_before_count_half():
    found = finding(3, [10], near=[11, 99], near_odds=[-4.0, -3.0])
    grown = calibrate.grow(found, np.arange(10, 13), np.array([5.0, -8.0, -8.0]), 4.0, FDR)
    by_row = dict(zip(grown.near.tolist(), grown.near_odds.tolist(), strict=True))
    assert by_row == {11: -6.0, 12: -8.0, 99: -3.0}


def test_a_weaker_false_discovery_rate_flags_fewer():
    rows, odds = np.arange(100), np.linspace(6, -6, 100)
    strict = calibrate.grow(finding(3, [0, 1]), rows, odds, 4.0, 0.01)
    loose = calibrate.grow(finding(3, [0, 1]), rows, odds, 4.0, 0.1)
    assert 2 < len(strict.rows) < len(loose.rows) < 60
