"""Closed-form learners: what a member says is a function of its own rows, in every bit."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from threadpoolctl import threadpool_limits

from jaxpoison._check import DataError, UsageError
from jaxpoison.certify.features import Hog, Pixels
from jaxpoison.certify.features.rows import FeatureRows
from jaxpoison.certify.keys import ContentHash
from jaxpoison.certify.learners import (
    ClassMean,
    ClosedForm,
    KernelRidge,
    Learner,
    Neighbours,
    Ridge,
    _members,
)
from jaxpoison.certify.learners._members import fit_members, score_members
from jaxpoison.certify.partitions import partition
from jaxpoison.certify.verification import verify_learner

_BUNCH = load_digits()
_ORDER = np.random.default_rng(0).permutation(len(_BUNCH.target))
X = _BUNCH.images.astype(np.uint8)[_ORDER]
Y = _BUNCH.target.astype(np.int64)[_ORDER]
TEST = X[1600:]
LEARNERS = (
    KernelRidge(features=Pixels()),
    Ridge(features=Pixels()),
    ClassMean(features=Pixels()),
    Neighbours(3, features=Pixels()),
)


def scores_of(learner, parts, x=X, y=Y, x_test=TEST[:40]):
    found = {}
    for ids, scores in learner.fit_scores(parts, x, y, x_test, num_classes=10):
        assert scores.dtype == np.float32 and scores.shape == (len(ids), len(x_test), 10)
        found.update(zip(ids.tolist(), scores, strict=True))
    return np.stack([found[i] for i in range(parts.design.num_subsets)])


def naive(learner, x, y, x_test):
    """[v, c] scores in float64, without padding, blocks or Gram matrix."""
    a, b = (learner.features(v).astype(np.float64) for v in (x, x_test))
    onehot = np.eye(10)[y]
    between = ((b[:, None] - a[None]) ** 2).sum(axis=2)
    if isinstance(learner, Neighbours):
        chosen = np.argsort(between, axis=1, kind="stable")[:, : learner.k]
        return onehot[chosen].sum(axis=1)
    if isinstance(learner, ClassMean):
        means = [a[y == c].mean(axis=0) if (y == c).any() else a[0] * np.nan for c in range(10)]
        distance = np.array([((b - m) ** 2).sum(axis=1) for m in means]).T
        return 2 + (b**2).sum(axis=1)[:, None] - distance
    if isinstance(learner, Ridge):
        system, cross = 1 + a @ a.T, 1 + b @ a.T
    else:
        within = ((a[:, None] - a[None]) ** 2).sum(axis=2)
        system, cross = np.exp(-learner.gamma * within), np.exp(-learner.gamma * between)
    return cross @ np.linalg.solve(system + learner.regularisation * np.eye(len(a)), onehot - 0.1)


@pytest.mark.parametrize("spread", [1, 3])
@pytest.mark.parametrize("learner", LEARNERS, ids=lambda each: each.name)
def test_one_gram_matrix_gives_the_scores_of_naive_fits(learner, spread):
    parts = partition(X[:1600], Y[:1600], k=40, spread=spread)
    got = scores_of(learner, parts)
    for subset in range(0, parts.design.num_subsets, 7):
        rows = parts.subset(subset)
        want = naive(learner, X[rows], Y[rows], TEST[:40])
        absent = np.isnan(want) if isinstance(learner, ClassMean) else np.zeros(want.shape, bool)
        np.testing.assert_allclose(got[subset][~absent], want[~absent], atol=2e-3)
        assert (got[subset][absent] < -1e30).all()


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")  # a pixel that is always 0
def test_class_means_and_neighbours_predict_what_scikit_learn_predicts():
    parts = partition(X[:1600], Y[:1600], k=20)
    for learner, peer in (
        (ClassMean(features=Pixels()), NearestCentroid()),
        (Neighbours(1, features=Pixels()), KNeighborsClassifier(1, algorithm="brute")),
    ):
        got = scores_of(learner, parts, x_test=TEST).argmax(axis=2)
        for subset in range(5):
            rows = parts.subset(subset)
            peer.fit(Pixels()(X[rows]), Y[rows])
            np.testing.assert_array_equal(got[subset], peer.predict(Pixels()(TEST)))


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda each: each.name)
def test_verification_finds_nothing_to_object_to(learner):
    parts = partition(X[:800], Y[:800], k=30, spread=2)
    ids = np.arange(0, 60, 9)
    done = verify_learner(learner, parts, X[:800], Y[:800], num_classes=10, subsets=ids)
    assert done.subsets == tuple(ids.tolist())


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda each: each.name)
def test_bits_depend_neither_on_row_order_nor_on_other_members(learner):
    parts = partition(X[:600], Y[:600], k=25)
    want = scores_of(learner, parts)
    order = np.random.default_rng(1).permutation(600)
    shuffled = partition(X[:600][order], Y[:600][order], k=25)
    got = scores_of(learner, shuffled, X[:600][order], Y[:600][order])
    np.testing.assert_array_equal(got, want)
    few = scores_of(learner, parts.only([3, 11]))
    np.testing.assert_array_equal(few[[3, 11]], want[[3, 11]])
    assert not few[[0, 24]].any()  # an empty subset votes for class 0
    wide = X[:600].astype(np.int64)
    np.testing.assert_array_equal(scores_of(learner, parts, wide, x_test=TEST[:40]), want)


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda each: each.name)
def test_a_prediction_has_the_same_bits_alone_and_among_others(learner, monkeypatch):
    parts = partition(X[:600], Y[:600], k=25)
    want = scores_of(learner, parts, x_test=TEST)
    np.testing.assert_array_equal(scores_of(learner, parts, x_test=TEST[9:10]), want[:, 9:10])
    monkeypatch.setattr(_members, "QUERIES", 64)  # more blocks of test rows than one
    many = scores_of(learner, parts, x_test=TEST)
    np.testing.assert_allclose(many, want, atol=1e-4)


def test_subsets_of_every_rung_and_an_empty_one():
    learner, rng = KernelRidge(features=Pixels()), np.random.default_rng(2)
    features = FeatureRows(learner.features(X))
    sizes = (0, 1, 2, 15, 16, 17, 32, 33, 100, 300)
    held = [rng.choice(1600, size, replace=False) for size in sizes]
    models = fit_members(learner, features, held, Y, 10)
    assert models[0] is None
    assert [len(m[0]) for m in models[1:]] == [16, 16, 16, 16, 32, 32, 64, 128, 512]
    queries = learner.features(TEST[:30])
    seen = []
    for test, members, scores in score_members(learner, features, held, models, queries):
        assert test == slice(0, 30) and scores.shape == (len(members), 10, 30)
        for member, own in zip(members.tolist(), np.asarray(scores), strict=True):
            rows = held[member]
            np.testing.assert_allclose(
                own.T, naive(learner, X[rows], Y[rows], TEST[:30]), atol=2e-3
            )
        seen += members.tolist()
    assert sorted(seen) == list(range(1, 10))


def test_capacity_is_the_subsets_own_affair():
    """A subset that grows past its rung changes its own shapes and no bit of another."""
    learner = KernelRidge(features=Pixels())
    features = FeatureRows(learner.features(X))
    held = [np.arange(i * 15, i * 15 + 15) for i in range(40)]
    want = fit_members(learner, features, held, Y, 10)
    grown = list(held)
    grown[7] = np.arange(900, 1100)
    got = fit_members(learner, features, grown, Y, 10)
    for i in range(40):
        assert i == 7 or np.array_equal(got[i][0], want[i][0])
    assert got[7][0].shape == (256, 10)


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda each: each.name)
@pytest.mark.parametrize("value", [np.inf, np.nan, 1e30])
def test_a_row_that_overflows_the_gram_matrix_stays_in_its_own_subset(learner, value):
    features = learner.features(X)
    held = [np.arange(i * 20, i * 20 + 20) for i in range(9)]

    def scores(table):
        rows = FeatureRows(table)
        models = fit_members(learner, FeatureRows(features), held, Y, 10)
        out = np.zeros((9, 10, 25), np.float32)
        queries = learner.features(TEST[:25])
        for test, members, block in score_members(learner, rows, held, models, queries):
            out[members, :, test] = block
        return out

    hostile = features.copy()
    hostile[0] = value  # padding must not point at the first row of all
    np.testing.assert_array_equal(scores(hostile)[1:], scores(features)[1:])


def test_settings_reach_the_digest():
    made = [
        KernelRidge(), KernelRidge(gamma=0.9), KernelRidge(regularisation=0.1),
        KernelRidge(features=Hog()), Ridge(), ClassMean(), Neighbours(1), Neighbours(2),
    ]  # fmt: skip
    assert len({each.digest() for each in made}) == len(made)
    assert KernelRidge().digest() == KernelRidge().digest()
    for each in made:
        assert isinstance(each, Learner) and isinstance(each, ClosedForm)
        assert each.to_json()["name"] == each.name


def test_bad_input_is_named():
    parts = partition(X[:100], Y[:100], k=5, key=ContentHash())
    learner = KernelRidge(features=Pixels())

    def run(x=X[:100], y=Y[:100], x_test=TEST[:3], num_classes=10):
        return list(learner.fit_scores(parts, x, y, x_test, num_classes=num_classes))

    with pytest.raises(DataError, match=r"x_test has shape \(3, 8\).*\(8, 8\)"):
        run(x_test=TEST[:3, 0])
    with pytest.raises(DataError, match="x_test has shape"):
        run(x_test=TEST[:0])
    with pytest.raises(DataError, match="y has label 9, but classes are 0 to 8"):
        run(num_classes=9)
    with pytest.raises(DataError, match="y has label -1"):
        run(y=Y[:100] - 1)
    with pytest.raises(DataError, match="dtype float64"):
        run(y=Y[:100] / 2)
    with pytest.raises(UsageError, match="num_classes is 1"):
        run(num_classes=1)
    with pytest.raises(UsageError, match="gamma is 0"):
        KernelRidge(gamma=0)
    with pytest.raises(UsageError, match="regularisation is -1"):
        Ridge(regularisation=-1)
    with pytest.raises(UsageError, match="k is 0"):
        Neighbours(0)


def test_a_regularisation_too_small_is_refused_not_voted_with():
    x = np.repeat(X[:1], 40, axis=0)
    parts = partition(x, np.zeros(40, np.int64), k=1)
    learner = KernelRidge(regularisation=1e-12, features=Pixels())
    with pytest.raises(UsageError, match="raise its regularisation"):
        list(learner.fit_scores(parts, x, np.zeros(40, np.int64), X[:2], num_classes=2))


def test_models_do_not_depend_on_the_threads_of_lapack():
    learner = KernelRidge(features=Pixels())
    features = FeatureRows(learner.features(X))
    held = [np.arange(300), np.arange(300, 1300)]
    with threadpool_limits(1, "blas"):
        want = fit_members(learner, features, held, Y, 10)
    with threadpool_limits(2, "blas"):
        got = fit_members(learner, features, held, Y, 10)
    for one, other in zip(want, got, strict=True):
        np.testing.assert_array_equal(one[0], other[0])


class Breaks(KernelRidge):
    """No finite model of a subset of more than ``most`` rows."""

    most = 42

    def fit_group(self, x, members, mask):
        (found,) = super().fit_group(x, members, mask)
        return (jnp.where((mask.sum(axis=1) > self.most)[:, None, None], jnp.nan, found),)


def test_a_subset_without_a_finite_model_votes_for_the_first_class():
    learner, parts = Breaks(features=Pixels()), partition(X[:600], Y[:600], k=15)
    lost = parts.sizes > learner.most
    assert 0 < lost.sum() < len(lost)
    scores = scores_of(learner, parts)
    assert (scores[lost] == 0).all()
    want = scores_of(KernelRidge(features=Pixels()), parts)
    np.testing.assert_array_equal(scores[~lost], want[~lost])
    learner = type("All", (Breaks,), {"most": 0})(features=Pixels())
    with pytest.raises(UsageError, match="raise its regularisation"):
        scores_of(learner, parts)
