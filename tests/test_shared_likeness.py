"""A trigger that goes from class to class: learnt in some classes, found in the others."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from group_data import finding
from jaxpoison import calibrate
from jaxpoison.detect import shared_likeness
from jaxpoison.detect.likeness import FEW_KNOWN, MIN_TAUGHT

module = importlib.import_module("jaxpoison.detect.likeness")  # not the function of that name
FDR, CLASSES, ROWS, POISON = 0.05, 6, 150, 15


def planted(seed=0, *, of_class=0.0, shift=2.2, columns=6, common=0.0, poisoned=range(CLASSES)):
    """Columns that see the same poison in every class; classes have units of their own.

    ``common`` is the share of the variance of honest rows that all columns agree on.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(CLASSES * ROWS) % CLASSES)
    is_poison = np.zeros(len(labels), bool)
    for c in poisoned:
        is_poison[np.flatnonzero(labels == c)[:POISON]] = True
    odd = rng.normal(size=(len(labels), 1))
    table = np.sqrt(common) * odd + np.sqrt(1 - common) * rng.normal(size=(len(labels), columns))
    table += shift * is_poison[:, None]
    table = table * (1 + of_class * labels[:, None]) + 10 * of_class * labels[:, None]
    return list(table.T), labels, is_poison


def of(labels, is_poison, classes):
    return is_poison & np.isin(labels, classes)


@pytest.mark.parametrize("of_class", [0.0, 3.0])
def test_what_some_classes_teach_finds_the_poison_of_the_others(of_class):
    columns, labels, is_poison = planted(of_class=of_class)
    found = shared_likeness(columns, labels, of(labels, is_poison, [0, 1, 2]))
    assert found.separation > 3.0
    rest = labels > 2
    assert (found.log_odds[is_poison & rest] > 0).mean() > 0.8
    assert (found.log_odds[~is_poison & rest] > 0).mean() < 0.02


def test_a_class_is_not_judged_by_what_it_taught():
    """Rows that are odd in one class only, in a column of its own, are no poison to others."""
    columns, labels, is_poison = planted()
    odd = np.flatnonzero((labels == 2) & ~is_poison)[:20]
    columns[-1][labels == 2] = np.random.default_rng(3).normal(size=ROWS)
    columns.append(
        np.random.default_rng(4).normal(size=len(labels))
        + 9.0 * np.isin(np.arange(len(labels)), odd)
    )
    known = of(labels, is_poison, [0, 1, 3])
    known[odd] = True
    assert (shared_likeness(columns, labels, known).log_odds[odd] > 0).mean() < 0.1


@pytest.mark.parametrize("common", [0.3, 0.5])
def test_classes_without_poison_have_no_likely_rows(common):
    """Detectors agree about the oddest rows of honest classes: these are no poison."""
    columns, labels, is_poison = planted(common=common, shift=5.0, columns=10, poisoned=range(3))
    found = shared_likeness(columns, labels, is_poison)
    assert found.separation > 3.0
    honest = found.log_odds[labels > 2]
    assert (honest > 0).sum() <= 2 and (found.log_odds[is_poison] > 0).mean() > 0.8


def test_order_of_rows_and_units_of_columns_do_not_count():
    columns, labels, is_poison = planted(1)
    known = of(labels, is_poison, [1, 3, 4])
    plain = shared_likeness(columns, labels, known)
    bent = shared_likeness([3.0 * column - 2.0 for column in columns], labels, known)
    np.testing.assert_allclose(plain.log_odds, bent.log_odds)
    turned = np.random.default_rng(2).permutation(len(labels))
    moved = shared_likeness([c[turned] for c in columns], labels[turned], known[turned])
    np.testing.assert_allclose(moved.log_odds, plain.log_odds[turned], rtol=1e-3, atol=1e-3)


def test_every_class_teaches_by_its_share_of_a_sample(monkeypatch):
    """Also where rows are sorted, or in turns, and one class is nearly all of them."""
    monkeypatch.setattr(module, "_MOST_TAUGHT", 30)
    columns, labels, is_poison = planted()
    for order in (np.argsort(labels, kind="stable"), np.argsort(is_poison, kind="stable")):
        found = shared_likeness([c[order] for c in columns], labels[order], is_poison[order])
        assert found.separation > 3.0 and (found.log_odds[is_poison[order]] > 0).mean() > 0.8
    few = (labels < 1) | (np.cumsum(labels == 1) + np.cumsum(labels == 2) <= 60)
    found = shared_likeness([c[few] for c in columns], labels[few], is_poison[few])
    assert np.isfinite(found.log_odds).all()


def test_constant_columns_are_harmless():
    columns, labels, is_poison = planted()
    more = [*columns, np.zeros(len(labels)), np.full(len(labels), np.nan)]
    plain, with_them = (shared_likeness(c, labels, is_poison) for c in (columns, more))
    np.testing.assert_allclose(with_them.log_odds, plain.log_odds, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("classes", [[], [0], list(range(MIN_TAUGHT - 1))])
def test_too_few_classes_teach_nothing(classes):
    columns, labels, is_poison = planted()
    found = shared_likeness(columns, labels, of(labels, is_poison, classes))
    assert found.separation == 0.0 and len(found.log_odds) == len(labels)


def test_classes_with_few_known_rows_teach_nothing():
    columns, labels, is_poison = planted()
    known = of(labels, is_poison, [0, 1])
    known[np.flatnonzero(of(labels, is_poison, [2]))[: FEW_KNOWN - 1]] = True
    assert shared_likeness(columns, labels, known).separation == 0.0


def test_known_rows_that_are_like_any_others_are_not_told_apart():
    columns, labels, is_poison = planted(shift=0.0)
    assert shared_likeness(columns, labels, is_poison).separation < 2.0


def carried(findings, likely, separation=4.0, unlike=-9.0):
    """Findings carried over 4 classes of 20 rows each, beside a fifth that holds a backdoor."""
    labels, odds = np.repeat(np.arange(5), 20), np.full(100, unlike)
    odds[[*likely, *range(80, 90)]] = 6.0
    found = calibrate.carry([*findings, finding(4, range(80, 90))], labels, odds, separation, FDR)
    return None if found is None else {each.target: each for each in found if each.target < 4}


def test_a_class_without_a_finding_gets_one():
    found = carried(
        [finding(0, range(6)), finding(1, range(20, 26), confidence=0.7)], range(65, 72)
    )
    assert sorted(found) == [0, 1, 3]
    new = found[3]
    assert new.rows.tolist() == list(range(65, 72)) and new.kind == "backdoor" and new.confirmed
    assert new.confidence == 0.7 and new.source is None and new.groups == ()
    assert sorted([*new.rows, *new.near]) == list(range(60, 80)) and (new.near_odds <= 0).all()


def test_a_finding_keeps_what_most_of_its_groups_hold():
    [surely, hardly] = (
        carried([finding(0, range(6), support=s)], range(3, 9))[0] for s in (1.0, 0.2)
    )
    assert surely.rows.tolist() == list(range(9)) and hardly.rows.tolist() == list(range(3, 9))


def test_rows_that_few_groups_hold_leave_only_if_they_are_clearly_unlike():
    one = finding(0, range(8), support=0.3)
    assert carried([one], range(2, 9))[0].rows.tolist() == list(range(2, 9))
    assert carried([one], range(2, 9), unlike=-1.0)[0].rows.tolist() == list(range(9))


def test_findings_of_labels_alone_carry_nothing():
    flips = finding(0, range(6), "subpopulation")._replace(groups=())
    assert carried([flips], range(65, 72)) is None
    assert carried([finding(0, range(6), "duplicates")], range(65, 72)) is None
    weak = finding(1, range(20, 26), "clean_label", confidence=0.05)
    found = carried([finding(0, range(6)), weak], range(65, 72))
    assert found[3].confidence == 0.9


def test_three_labels_with_a_source_each_tell_of_a_trigger():
    flips = [
        finding(c, range(20 * c, 20 * c + 6), "label_flip")._replace(groups=(), source=c + 1)
        for c in range(3)
    ]
    assert [f.target for f in calibrate.carried_by(flips)] == [0, 1, 2]
    assert calibrate.carried_by(flips[:2]) == []
    assert calibrate.carried_by([f._replace(source=None) for f in flips]) == []
    found = carried(flips, [*range(6), *range(20, 26), *range(40, 46), *range(65, 72)])
    assert found[3].rows.tolist() == list(range(65, 72)) and found[0].kind == "backdoor"


def test_few_likely_rows_change_nothing():
    one = finding(0, range(6))
    assert carried([one], range(65, 69)) == {0: one}


def test_what_was_found_in_another_way_stays():
    flips, copies = finding(1, range(20, 26), "label_flip"), finding(2, range(40, 46), "duplicates")
    lone = finding(3, range(60, 64), "clean_label", confirmed=False)
    found = carried(
        [finding(0, range(6)), flips, copies, lone], [*range(6), *range(22, 32), *range(41, 55)]
    )
    assert found[2] is copies and found[3] is lone
    assert found[1].rows.tolist() == list(range(20, 32)) and found[1].kind == "backdoor"
    unlike = carried([finding(0, range(6)), flips], [*range(6), *range(26, 36)])[1]
    assert unlike.rows.tolist() == list(range(20, 36)) and unlike.kind == "label_flip"


def test_nothing_is_carried_without_separation():
    assert carried([finding(0, range(6))], range(65, 72), separation=2.0) is None
