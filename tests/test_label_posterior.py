import numpy as np
import pytest

from jaxpoison.calibrate import uniform_findings
from jaxpoison.detect.label_posterior import label_posterior

CLASSES, ROWS = 5, 4000


def noisy(rate, seed=0):
    """Likelihoods of classes of which the first two overlap, under uniformly wrong labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, ROWS)
    centre = 5.0 * np.eye(CLASSES)
    centre[1] = centre[0] + np.array([0, 1.5, 0, 0, 0])
    x = centre[y] + rng.normal(size=(ROWS, CLASSES))
    log = x @ centre.T - 0.5 * (centre**2).sum(axis=1)
    log -= log.mean(axis=1, keepdims=True)
    posterior = np.exp(log - log.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    wrong = rng.random(ROWS) < rate
    labels = np.where(wrong, (y + rng.integers(1, CLASSES, ROWS)) % CLASSES, y)
    return np.stack([log, log], axis=1), posterior, labels, wrong


def test_it_finds_the_probabilities_of_the_labels_as_given():
    rate = 0.2
    likelihoods, right, labels, _ = noisy(rate)
    found = label_posterior(likelihoods, right, labels)
    expected = (1 - rate) * right + rate / (CLASSES - 1) * (1 - right)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-9)
    assert np.abs(found - expected).mean() < 0.02


def test_overlap_is_not_doubted_and_wrong_labels_are():
    likelihoods, right, labels, wrong = noisy(0.1, seed=1)
    own = label_posterior(likelihoods, right, labels)[np.arange(ROWS), labels]
    between = ~wrong & (labels < 2)
    assert (own[between] < 0.1).mean() < 0.02
    assert (own[wrong] < 0.1).mean() > 0.75


def test_a_class_that_teaches_nothing_gets_nothing():
    likelihoods, right, labels, _ = noisy(0.0)
    labels = np.where(labels == 4, 3, labels)
    assert (label_posterior(likelihoods, right, labels)[:, 4] == 0).all()


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("fdr", [0.02, 0.1])
def test_flags_keep_the_false_discovery_rate(rate, fdr):
    likelihoods, right, labels, wrong = noisy(rate, seed=2)
    posterior = label_posterior(likelihoods, right, labels)
    found = uniform_findings(posterior, labels, fdr)
    flagged = np.concatenate([each.rows for each in found])
    assert len(np.unique(flagged)) == len(flagged)
    assert (~wrong[flagged]).mean() < 1.2 * fdr + 0.01  # of 400 to 1,200 rows
    assert wrong[flagged].sum() > 0.7 * wrong.sum()
    assert {each.kind for each in found} == {"label_flip"}
    assert all((labels[each.rows] == each.target).all() for each in found)


def test_nothing_doubtful_is_nothing_found():
    posterior = np.full((200, 4), 0.001 / 3)
    labels = np.arange(200) % 4
    posterior[np.arange(200), labels] = 0.999
    assert uniform_findings(posterior, labels, 0.05) == []
