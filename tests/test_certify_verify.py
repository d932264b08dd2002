"""Learners that break the promise are named; the manifest says what a certificate binds to."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from certify_data import NEAREST, RIDGE, PerSubset, flat, ridge_scores
from jaxpoison._check import DataError, UsageError
from jaxpoison.certify import certify, votes_of
from jaxpoison.certify.keys import ContentHash
from jaxpoison.certify.manifest import fingerprint, manifest_digest, manifest_of
from jaxpoison.certify.partitions import LADDER, partition
from jaxpoison.certify.verification import verify, verify_learner

X, Y = load_digits(return_X_y=True)
X = X[:600].astype(np.uint8).reshape(-1, 8, 8)
Y = Y[:600]


@dataclass
class Members:
    """The least that ``verify`` asks of an ensemble."""

    partitions: Any
    learner: Any
    num_classes: int = 10

    def votes(self, x_test):
        p = self.partitions
        blocks = self.learner.fit_scores(p, X, Y, x_test, num_classes=10)
        scores = np.concatenate([s for _, s in blocks])
        return votes_of(scores=scores, subsets=np.arange(len(scores)), design=p.design)


def members(learner, k=12, **options):
    return Members(partition(X, Y, k=k, **options), learner)


@pytest.mark.parametrize("learner", [RIDGE, NEAREST], ids=lambda learner: learner.name)
@pytest.mark.parametrize("options", [{}, {"spread": 3}, {"k": 2}, {"k": 1}], ids=str)
def test_good_learners_pass(learner, options):
    made = members(learner, **options)
    done = verify(made, X, Y, 0.2)
    assert len(done.subsets) == min(made.partitions.design.num_subsets, max(3, len(done.subsets)))
    assert "votes of the ensemble" in done.checks and done.probes == 32


class Whole(PerSubset):
    """Hands ``scores_fn`` the whole data set and the subset's rows."""

    def fit_scores(self, partitions, x, y, x_test, *, num_classes):
        for subset in range(partitions.design.num_subsets):
            rows = partitions.subset(subset)
            scores = np.zeros((1, len(x_test), num_classes), np.float32)
            if len(rows):
                scores[0] = self.scores_fn(partitions, rows, x, y, x_test, num_classes)
            yield np.array([subset]), scores


def standardised(partitions, rows, x, y, x_test, num_classes):
    mean, deviation = flat(x).mean(axis=0), flat(x).std(axis=0) + 1
    inputs, tests = ((flat(v) - mean) / deviation for v in (x[rows], x_test))
    return ridge_scores(inputs, y[rows], tests, num_classes)


def scaled_by_the_largest(partitions, rows, x, y, x_test, num_classes):
    return ridge_scores(x[rows] / x.max(), y[rows], x_test / x.max(), num_classes)


def class_weights(partitions, rows, x, y, x_test, num_classes):
    weights = np.bincount(y, minlength=num_classes)
    return ridge_scores(x[rows], y[rows], x_test, num_classes) / np.maximum(weights, 1)


def padded(partitions, rows, x, y, x_test, num_classes):
    capacity = partitions.sizes.max()
    inputs = np.pad(flat(x[rows]), ((0, capacity - len(rows)), (0, 0)))
    return ridge_scores(inputs, np.pad(y[rows], (0, capacity - len(rows))), x_test, num_classes)


def damped_by_the_size(partitions, rows, x, y, x_test, num_classes):
    return ridge_scores(x[rows], y[rows], x_test, num_classes, damping=100 / len(x))


def normalised_by_the_batch(partitions, rows, x, y, x_test, num_classes):
    """As a batch norm does whose axis is that of the members trained side by side."""
    centre = flat(x[partitions.rows]).mean(axis=0)
    return ridge_scores(flat(x[rows]) - centre, y[rows], flat(x_test) - centre, num_classes)


def seeded_by_row(partitions, rows, x, y, x_test, num_classes):
    noise = np.random.default_rng(rows).normal(size=(len(x_test), num_classes))
    return ridge_scores(x[rows], y[rows], x_test, num_classes) + 1e-6 * noise


def counts_subsets(partitions, rows, x, y, x_test, num_classes):
    return ridge_scores(x[rows], y[rows], x_test, num_classes) + (partitions.sizes > 0).sum()


@pytest.mark.parametrize(
    "leak",
    [
        standardised,
        scaled_by_the_largest,
        class_weights,
        padded,
        damped_by_the_size,
        normalised_by_the_batch,
        seeded_by_row,
        counts_subsets,
    ],
)
@pytest.mark.parametrize("k", [2, 12])
def test_learners_that_look_outside_are_named(leak, k):
    with pytest.raises(UsageError, match=f"{leak.__name__} looks outside its subset"):
        verify(members(Whole(leak, leak.__name__), k), X, Y)


def test_learners_with_moods_are_named():
    count = itertools.count()

    def moody(x, y, x_test, num_classes):
        return ridge_scores(x, y, x_test, num_classes) * (1 + 1e-6 * next(count))

    with pytest.raises(UsageError, match="moody is not deterministic: two fits of subset"):
        verify(members(PerSubset(moody, "moody")), X, Y)


def test_signs_of_zero_and_nan_are_bits_too():
    count = itertools.count()

    def zeros(x, y, x_test, num_classes):
        scores = np.zeros((len(x_test), num_classes))
        return -scores if next(count) % 2 else scores

    with pytest.raises(UsageError, match="not deterministic"):
        verify(members(PerSubset(zeros, "zeros"), 5), X, Y)
    for dtype in (np.float32, np.bool_, np.int64):
        typed = X.astype(dtype)
        key = ContentHash(decimals=2)
        p = partition(typed, Y, k=5, key=key)
        assert verify_learner(RIDGE, p, typed, Y, num_classes=10).subsets
    nan = PerSubset(lambda x, y, t, c: np.full((len(t), c), np.nan), "nan")
    assert verify_learner(nan, partition(X, Y, k=5), X, Y, num_classes=10).probes == 32


def test_changed_votes_and_other_data_are_found():
    made = members(RIDGE)
    with pytest.raises(DataError, match="x is not what the ensemble was fitted on"):
        verify(made, X[::-1], Y)
    with pytest.raises(DataError, match="y is not"):
        verify(made, X, Y[:-1])

    class Tampered(Members):
        def votes(self, x_test):
            votes = super().votes(x_test)
            return replace(votes, labels=(votes.labels + 1) % 10, ranking=None, margins=None)

    with pytest.raises(UsageError, match="votes for subset 0 are not those of a refit of ridge"):
        verify(Tampered(made.partitions, RIDGE), X, Y, 1.0)
    with pytest.raises(UsageError, match="fraction is 2"):
        verify(made, X, Y, 2)


def test_a_learner_that_leaves_a_subset_out_is_named():
    class Lazy(PerSubset):
        def fit_scores(self, *given, **options):
            yield from itertools.islice(super().fit_scores(*given, **options), 2)

    with pytest.raises(UsageError, match="lazy yields no scores for subset"):
        verify(members(Lazy(ridge_scores, "lazy")), X, Y)


def test_a_manifest_is_json_and_says_everything():
    p = partition(X, Y, k=300, spread=2, key=ContentHash(b"very secret"))
    said = manifest_of(p, RIDGE)
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["subsets"]["count"] == 600 and said["subsets"]["empty"] == p.num_empty > 0
    assert said["subsets"]["rows"] == 600 and said["subsets"]["largest"] == p.sizes.max()
    assert said["ladder"] == list(LADDER) and said["learner"]["name"] == "ridge"
    assert {"jaxpoison", "jax", "numpy", "python"} <= set(said["versions"])
    assert said["partition"]["covers"] == "inputs" and len(said["partition"]["shifts"]) == 2
    assert "secret" not in json.dumps(said)
    assert manifest_of(p)["learner"] is None
    other = manifest_of(partition(X, Y, k=300, spread=2, key=ContentHash(b"other")), RIDGE)
    assert manifest_digest(said) != manifest_digest(other)
    assert manifest_digest(said) == manifest_digest(json.loads(json.dumps(said)))


def test_the_fingerprint_is_of_the_multiset_of_rows():
    order = np.random.default_rng(0).permutation(len(X))
    p = partition(X, Y, k=10)
    same = partition(X[order], Y[order], k=20)
    assert fingerprint(p) == fingerprint(same)
    q, _ = p.insert(X[:1], Y[:1])
    assert fingerprint(q) != fingerprint(p)
    assert fingerprint(q.delete([0])[0]) == fingerprint(p)
    flipped = Y.copy()
    flipped[5] = (Y[5] + 1) % 10
    assert fingerprint(partition(X, flipped, k=10)) != fingerprint(p)


def test_partitions_votes_and_manifest_need_no_jax():
    code = """
import sys, numpy as np
from jaxpoison.certify import certify, votes_of
from jaxpoison.certify.manifest import manifest_of
from jaxpoison.certify.partitions import partition
p = partition(np.arange(24, dtype=np.uint8).reshape(8, 3), np.arange(8) % 2, k=4)
votes = votes_of(labels=np.zeros((4, 2), int), subsets=np.arange(4), design=p.design, num_classes=2)
assert certify(votes).radius.tolist() == [2, 2]
assert manifest_of(p)["device"] is None
assert not {"jax", "flax", "optax", "sklearn"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_device_and_precision_are_those_of_jax():
    import jax

    said = manifest_of(partition(X, Y, k=10))
    assert said["device"]["platform"] == jax.default_backend()
    assert said["precision"]["jax_enable_x64"] == jax.config.jax_enable_x64
    made = certify(members(RIDGE).votes(X[:3]))
    assert made.design is not None and made.design.rule["rule"] == "content hash"
