"""How probable is each label for a row? Calibrated on the suspect labels themselves."""

from __future__ import annotations

import warnings

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.detect.neighbours import NUM_NEIGHBOURS, nearest_rows, neighbour_weights
from jaxpoison.linalg import one_thread
from jaxpoison.stream import Stream

MAX_CLASSES = 50
"""Beyond so many classes the classifier is not fitted: it has 3 c^2 weights."""

_MAX_TEACHING = 20_000
_NUM_FOLDS = 5
_MAX_STEPS = 200
_SPARE = 0.02  # share given to classes that no neighbour has


def neighbour_shares(stream: Stream) -> HostArray:
    """Shares [n, c] of the labels of the nearest rows, the nearer the more.

    ``w_ij = exp(-d_ij^2 / d_ik^2)`` over the k nearest, scaled to sum to 1.

    **Cost**: one neighbour search, shared with ``KNNDisagreement``.
    """
    found = nearest_rows(stream, min(NUM_NEIGHBOURS, len(stream) - 1))
    weight = neighbour_weights(found)
    shares = np.zeros((len(stream), stream.num_classes))
    at = np.arange(len(stream))
    for j in range(weight.shape[1]):
        shares[at, stream.labels[np.maximum(found.rows[:, j], 0)]] += weight[:, j]
    out: HostArray = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-30)
    return out


@one_thread()
def label_posterior(likelihoods: HostArray, neighbours: HostArray, labels: HostArray) -> HostArray:
    """Probability of every label of a row, by what judged it without its own label.

    ``p(y | x) = softmax(W [l_mean, l_last, log(w + .02)] + b)_y`` with the mean and last log
    likelihoods of ``LabelViews`` and the shares w of the neighbours' labels. A multinomial
    logistic regression learns W from the labels as given, in folds, so that classes which honest
    rows lie between have wide boundaries and others narrow ones. What wrong labels add is a floor
    that is equal everywhere if they are uniform.

    Args:
        likelihoods: [n, 2, c].
        neighbours: [n, c] shares, each row's sum 1.
        labels: [n] dense, as given.

    Returns:
        [n, c] float64 probabilities; 0 for a class that does not teach a fold.

    **Cost**: 5 logistic regressions of [20,000, 3 c] at the most.

    **Assumes / fails on**: wrong labels do not depend on the row. Where one class is mistaken for
    another on purpose, that is learnt as a boundary between the two.

    Reference: Wolpert, 1992, Stacked generalization.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    n, c = neighbours.shape
    x = np.concatenate(
        [likelihoods[:, 0], likelihoods[:, 1], np.log(neighbours + _SPARE)], axis=1
    ).astype(np.float64)
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-12)
    order = np.random.default_rng(0).permutation(n)
    fold = np.empty(n, np.int64)
    fold[order] = np.arange(n) % _NUM_FOLDS
    out = np.zeros((n, c))
    for k in range(_NUM_FOLDS):
        teaching = order[fold[order] != k][:_MAX_TEACHING]
        inside = np.flatnonzero(fold == k)
        if len(np.unique(labels[teaching])) < 2:
            out[inside, labels[teaching[:1]]] = 1.0
            continue
        model = LogisticRegression(max_iter=_MAX_STEPS)
        with warnings.catch_warnings():  # the last digits of the weights decide nothing
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x[teaching], labels[teaching])
        out[np.ix_(inside, model.classes_)] = model.predict_proba(x[inside])
    return out
