"""Clusters that make the honest rest of their class look mislabelled."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from group_data import finding
from jaxpoison.calibrate.labels import LabelAttack
from jaxpoison.scanning.labelling import LabelEvidence, unmasked

CLASSES, ROWS = 4, 40


def attack(*, targets=(), pairs=(), uniform=0.0):
    """Open labels."""
    target, pair = np.zeros(CLASSES, np.bool_), np.zeros((CLASSES, CLASSES), np.bool_)
    target[list(targets)] = True
    for a, b in pairs:
        pair[a, b] = True
    return LabelAttack(uniform, target, pair)


cluster = partial(finding, kind="clean_label", confirmed=False)  # of a class
LABELS = np.arange(ROWS) % CLASSES


def evidence(of, without=None, kept=1.0):
    """Label evidence; asked again it must be without just these rows.

    ``kept`` of the rows keep their label then, of each class.
    """
    margins = np.where(np.arange(ROWS) // CLASSES < kept * (ROWS // CLASSES), -1.0, 1.0)

    def again(known):
        assert without is not None, "asked again for nothing"
        np.testing.assert_array_equal(np.flatnonzero(known), np.sort(without[0]))
        return evidence(without[1], kept=kept)

    opinion = SimpleNamespace(margins=margins)
    return LabelEvidence(opinion, None, of, 0.8, again, lambda: None)


def known(*rows):
    return np.isin(np.arange(ROWS), rows)


@pytest.mark.parametrize("seen", [{"targets": [1]}, {"pairs": [(1, 0), (1, 2)]}])
def test_a_cluster_that_hid_the_class_is_confirmed(seen):
    before, after = attack(**seen), attack()
    labels, found = unmasked(
        evidence(before, ([2, 3, 9], after)), [cluster(1, [2, 3])], known(9), LABELS
    )
    assert labels.attack is after
    assert [each.confirmed for each in found] == [True] and found[0].kind == "clean_label"
    assert found[0].confidence > 0.5


def test_wrong_labels_stay_wrong_whatever_else_is_in_their_class():
    before = attack(targets=[1])
    given = [cluster(1, [2, 3])]
    labels, found = unmasked(
        evidence(before, ([2, 3], attack(targets=[1]))), given, known(), LABELS
    )
    assert labels.attack is before and found == given


def test_only_the_cluster_that_hid_its_class_is_confirmed():
    before, after = attack(targets=[1], pairs=[(2, 0)]), attack(pairs=[(2, 0)])
    given = [cluster(1, [2, 3]), cluster(2, [5, 6]), cluster(3, [7, 8])]
    _, found = unmasked(evidence(before, ([2, 3, 5, 6], after)), given, known(), LABELS)
    assert [each.confirmed for each in found] == [True, False, False]


@pytest.mark.parametrize(
    ("of", "given"),
    [
        (attack(targets=[2]), [cluster(1, [2, 3])]),  # of another class
        (attack(targets=[1]), [cluster(1, [2, 3], confirmed=True)]),
        (attack(targets=[1], uniform=0.1), [cluster(1, [2, 3])]),
        (attack(targets=[1]), []),
    ],
)
def test_labels_are_not_asked_again_for_nothing(of, given):
    asked = evidence(of)
    labels, found = unmasked(asked, given, known(), LABELS)
    assert labels is asked and found == given


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        (np.arange(1, ROWS, CLASSES)[:7], 1.0),  # three rows of ten are left to teach the class
        (np.arange(1, ROWS, CLASSES)[:5], 0.0),  # the label shuts, but nobody keeps it
    ],
)
def test_a_label_that_shuts_for_want_of_rows_or_knowledge_confirms_nothing(rows, kept):
    before = attack(targets=[1])
    given = [cluster(1, rows)]
    asked = evidence(before, (rows, attack()), kept)
    asked = asked._replace(opinion=None)
    if kept == 0.0:  # elsewhere labels are kept
        again = asked.again
        margins = np.where(LABELS == 1, 1.0, -1.0)
        asked = asked._replace(
            again=lambda w: again(w)._replace(opinion=SimpleNamespace(margins=margins))
        )
    labels, found = unmasked(asked, given, known(), LABELS)
    assert labels.attack is before and found == given
