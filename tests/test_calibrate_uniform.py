"""Wrong labels where classes overlap: how many, told by the least probable ones."""

import numpy as np
import pytest

from jaxpoison.calibrate import rate_by_ranks, uniform_findings

CLASSES, ROWS = 10, 8000


def overlapping(rate=0.0, seed=0, *, c=CLASSES, wrong=None):
    """Posteriors of classes on a ring, of which a row's neighbours are probable too.

    Args:
        rate: Share of rows under a wrong label.
        seed: Of all draws.
        c: Classes.
        wrong: Labels of those rows by their class; None for any other class, evenly.
    """
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, ROWS)
    gap = np.abs(np.arange(c)[None] - np.arange(c)[:, None])
    gap = np.minimum(gap, c - gap)
    right = np.exp(-rng.uniform(0.6, 3.0, (ROWS, 1)) * gap[y])
    right /= right.sum(axis=1, keepdims=True)
    honest = (rng.random((ROWS, 1)) > right.cumsum(axis=1)).sum(axis=1)
    rows = rng.permutation(ROWS)[: round(rate * ROWS)]
    any_other = (honest + rng.integers(1, c, ROWS)) % c
    labels = honest.copy()
    labels[rows] = (any_other if wrong is None else wrong(y))[rows]
    if wrong is None:
        right = (1 - rate) * right + rate / (c - 1) * (1 - right)
    return right, labels, np.isin(np.arange(ROWS), rows)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_share_of_wrong_labels_is_told_where_classes_overlap(rate, seed):
    posterior, labels, _ = overlapping(rate, seed)
    assert (posterior.argmax(axis=1) == labels).mean() < 0.75  # or nothing is shown
    assert rate_by_ranks(posterior, labels) == pytest.approx(rate, rel=0.3)


@pytest.mark.parametrize("seed", range(4))
def test_honest_confusion_is_no_attack(seed):
    posterior, labels, _ = overlapping(0.0, seed)
    assert (posterior.argmax(axis=1) != labels).mean() > 0.2
    assert rate_by_ranks(posterior, labels) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [lambda y: np.full(len(y), 3), lambda y: (y + 1) % CLASSES, lambda y: (y + 5) % CLASSES],
)
def test_rows_of_a_trigger_are_not_wrong_all_over(wrong):
    """All under one label, or each class under the one that follows, or that is least like it."""
    posterior, labels, _ = overlapping(0.1, wrong=wrong)
    assert rate_by_ranks(posterior, labels) == 0.0


def test_few_wrong_labels_and_few_classes_say_nothing():
    assert rate_by_ranks(*overlapping(0.01)[:2]) == 0.0
    assert rate_by_ranks(*overlapping(0.2, c=4)[:2]) == 0.0
    assert rate_by_ranks(np.full((200, CLASSES), 1 / CLASSES), np.arange(200) % CLASSES) == 0.0


@pytest.mark.parametrize("rate", [0.1, 0.2])
@pytest.mark.parametrize("seed", [2, 3])
def test_flags_keep_near_the_rate_asked_for_where_classes_overlap(rate, seed):
    posterior, labels, wrong = overlapping(rate, seed)
    flagged = np.concatenate(
        [each.rows for each in uniform_findings(posterior, labels, 0.05, overlap=True)]
    )
    assert (~wrong[flagged]).mean() < 0.1
    assert wrong[flagged].sum() >= 50  # the surest ones: most lie where honest rows do
