"""Ensembles: votes, rows that come and go bit by bit, and independence of the machine."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

from certify_data import PerSubset, nearest_scores
from jaxpoison._check import DataError, UsageError
from jaxpoison.certify import certify
from jaxpoison.certify.ensemble import fit, fit_partitions
from jaxpoison.certify.features import Pixels, Scattering
from jaxpoison.certify.keys import Column, SortedPosition
from jaxpoison.certify.learners import ClassMean, KernelRidge, Neighbours
from jaxpoison.certify.partitions import partition
from jaxpoison.certify.ranking import margins_of, rank_classes
from jaxpoison.certify.verification import verify
from test_devices import on_devices

_BUNCH = load_digits()
_ORDER = np.random.default_rng(0).permutation(len(_BUNCH.target))
X = _BUNCH.images.astype(np.uint8)[_ORDER]
Y = _BUNCH.target.astype(np.int64)[_ORDER]
TEST = X[1500:]
RIDGE = KernelRidge(features=Pixels())


def same(one, other):
    """Whether two ensembles have the same models, bit by bit."""
    return all(
        (a is None) == (b is None)
        and (a is None or all(np.array_equal(p, q) for p, q in zip(a, b, strict=True)))
        for a, b in zip(one._models, other._models, strict=True)
    )


def test_votes_are_those_of_the_scores_with_ranking_and_margins():
    ensemble = fit(X[:1500], Y[:1500], k=50, spread=2, learner=RIDGE)
    scores = np.concatenate(
        [s for _, s in RIDGE.fit_scores(ensemble.partitions, X, Y, TEST, num_classes=10)]
    )
    plain = ensemble.votes(TEST)
    full = ensemble.votes(TEST, ranking=True, margins=True)
    np.testing.assert_array_equal(plain.labels, scores.argmax(axis=2))
    np.testing.assert_array_equal(full.labels, plain.labels)
    np.testing.assert_array_equal(full.ranking, rank_classes(scores))
    np.testing.assert_array_equal(full.margins, margins_of(scores))
    assert plain.ranking is None and plain.design == ensemble.partitions.design
    assert (plain.subsets == np.arange(100)).all() and plain.labels.dtype == np.uint8


def test_digits_are_certified():
    ensemble = fit(X[:1500], Y[:1500], k=50, learner=KernelRidge(features=Scattering(4)))
    found = certify(ensemble.votes(TEST))
    assert (found.prediction == Y[1500:]).mean() > 0.88
    assert found.median(Y[1500:]) >= 12


@pytest.mark.parametrize("spread", [1, 3])
@pytest.mark.parametrize(
    "learner", [RIDGE, ClassMean(features=Pixels()), Neighbours(3, features=Pixels())], ids=str
)
def test_insert_and_delete_are_bit_equal_to_a_fit_of_what_is_left(learner, spread):
    start = fit(X[:700], Y[:700], k=30, spread=spread, learner=learner)
    before = start.votes(TEST[:50]).labels.copy()
    grown = start.insert(X[700:703], Y[700:703]).insert(X[703:760], Y[703:760])
    whole = fit(X[:760], Y[:760], k=30, spread=spread, learner=learner)
    assert same(grown, whole)
    np.testing.assert_array_equal(grown.votes(TEST).labels, whole.votes(TEST).labels)
    gone = np.array([0, 5, 333, 701, 759])
    left = np.setdiff1d(np.arange(760), gone)
    shrunk = grown.delete(gone[:2]).delete(gone[2:])
    again = fit(X[left], Y[left], k=30, spread=spread, learner=learner, num_classes=10)
    assert same(shrunk, again)
    np.testing.assert_array_equal(shrunk.votes(TEST).labels, again.votes(TEST).labels)
    assert not same(shrunk, grown)
    np.testing.assert_array_equal(start.votes(TEST[:50]).labels, before)  # it stays as it was


def test_an_insertion_refits_the_subsets_of_its_cell_and_no_other():
    start = fit(X[:700], Y[:700], k=30, spread=4, learner=RIDGE)
    grown = start.insert(X[800:801], Y[800:801])
    changed = [i for i, (a, b) in enumerate(zip(start._models, grown._models, strict=True))
               if a is not b]  # fmt: skip
    cell = grown.partitions.cell[700]
    expected = sorted((cell + s) % 120 for s in grown.partitions.design.shifts)
    assert changed == expected


def test_a_row_that_comes_and_goes_leaves_no_trace():
    start = fit(X[:300], Y[:300], k=40, learner=RIDGE)
    assert same(start.insert(X[500:510], Y[500:510]).delete(np.arange(300, 310)), start)


def test_empty_subsets_vote_for_class_0_and_are_counted():
    ensemble = fit(X[:60], Y[:60], k=50, learner=RIDGE)
    empty = np.flatnonzero(ensemble.partitions.sizes == 0)
    assert len(empty) > 0
    votes = ensemble.votes(TEST[:9], ranking=True, margins=True)
    assert not votes.labels[empty].any() and not votes.margins[empty].any()
    assert (votes.ranking[empty] == np.arange(10)).all()
    assert ensemble.manifest()["subsets"]["empty"] == len(empty)


def test_row_order_changes_no_vote():
    order = np.random.default_rng(4).permutation(900)
    one = fit(X[:900], Y[:900], k=60, spread=2, learner=RIDGE)
    other = fit(X[:900][order], Y[:900][order], k=60, spread=2, learner=RIDGE)
    assert same(one, other)
    np.testing.assert_array_equal(one.votes(TEST).labels, other.votes(TEST).labels)


def test_changes_within_the_radius_never_change_a_prediction():
    """Label flips and insertions in so many cells, against the rows certified for them."""
    rng = np.random.default_rng(5)
    start = fit(X[:1200], Y[:1200], k=40, learner=RIDGE)
    found = certify(start.votes(TEST[:80]))
    for cells in (1, 3, 8, 15):
        hit = rng.choice(40, cells, replace=False)
        rows = np.flatnonzero(np.isin(start.partitions.cell, hit))
        y = Y[:1200].copy()
        y[rows] = (y[rows] + 1 + rng.integers(0, 9, len(rows))) % 10
        attacked = certify(fit(X[:1200], y, k=40, learner=RIDGE).votes(TEST[:80]))
        safe = found.radius >= cells
        assert safe.any()
        np.testing.assert_array_equal(attacked.prediction[safe], found.prediction[safe])


def test_any_learner_of_subsets_can_vote_and_its_rows_can_change():
    learner = PerSubset(nearest_scores)
    start = fit(X[:200], Y[:200], k=10, learner=learner)
    grown = start.insert(X[200:220], Y[200:220]).delete([3, 215])
    left = np.setdiff1d(np.arange(220), [3, 215])
    again = fit(X[left], Y[left], k=10, learner=learner)
    np.testing.assert_array_equal(grown.votes(TEST[:30]).labels, again.votes(TEST[:30]).labels)
    assert start.manifest()["learner"]["name"] == "per subset"


def test_verify_holds_for_an_ensemble_and_catches_foreign_models():
    ensemble = fit(X[:500], Y[:500], k=20, learner=RIDGE)
    assert len(verify(ensemble, X[:500], Y[:500]).subsets) >= 3
    ensemble._models[:] = [ensemble._models[(i + 1) % 20] for i in range(20)]
    with pytest.raises((UsageError, ValueError)):
        verify(ensemble, X[:500], Y[:500], fraction=1.0)


def test_the_manifest_is_json_and_tells_settings_apart():
    one = fit(X[:200], Y[:200], k=10, learner=RIDGE)
    other = fit(X[:200], Y[:200], k=10, learner=KernelRidge(gamma=0.5, features=Pixels()))
    first, second = json.dumps(one.manifest()), json.dumps(other.manifest())
    assert first != second and '"gamma": 0.5' in second
    assert one.manifest()["num_classes"] == 10
    assert json.dumps(one.insert(X[200:201], Y[200:201]).manifest()) != first


def test_features_at_hand_are_taken():
    parts = partition(X[:300], Y[:300], k=10)
    given = fit_partitions(parts, RIDGE, num_classes=10, features=RIDGE.features(X[:300]))
    assert same(given, fit_partitions(parts, RIDGE, num_classes=10))
    with pytest.raises(UsageError, match="all 300 rows"):
        fit_partitions(parts, RIDGE, num_classes=10, features=RIDGE.features(X[:299]))


def test_progress_ends_at_all_pairs():
    seen = []
    ensemble = fit(X[:300], Y[:300], k=10, spread=2, learner=RIDGE)
    ensemble.votes(TEST[:33], progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 20 * 33


def test_bad_input_is_named():
    ensemble = fit(X[:200], Y[:200], k=10, learner=RIDGE)
    with pytest.raises(DataError, match=r"x_test has shape \(4, 64\)"):
        ensemble.votes(TEST[:4].reshape(4, 64))
    with pytest.raises(DataError, match="y has label 10, but classes are 0 to 9"):
        ensemble.insert(X[:1], np.array([10]))
    with pytest.raises(DataError, match="x has shape"):
        ensemble.insert(X[:1, :4], Y[:1])
    with pytest.raises(UsageError, match="not there"):
        ensemble.delete([200])
    with pytest.raises(UsageError, match="k is 300"):
        fit(X[:200], Y[:200], k=300, learner=RIDGE)
    with pytest.raises(DataError, match="label -1"):
        fit(X[:200], Y[:200] - 1, k=10, learner=RIDGE)
    with pytest.raises(UsageError, match="decimals"):
        fit(X[:200] / 16, Y[:200], k=10, learner=RIDGE)
    with pytest.raises(DataError):
        fit(X[:50], Y[:50], k=5, learner=RIDGE, key=Column("source"), column=np.ones(50, int))
    fixed = fit(X[:200], Y[:200], k=10, learner=RIDGE, key=SortedPosition())
    with pytest.raises(UsageError, match="sorted position"):
        fixed.insert(X[300:301], Y[300:301])


DEVICES = """
    import hashlib, json, sys
    import numpy as np
    from sklearn.datasets import load_digits
    from jaxpoison.certify.ensemble import fit
    from jaxpoison.certify.features import Pixels
    from jaxpoison.certify.learners import ClassMean, KernelRidge, Neighbours, Ridge, _members
    from jaxpoison.stream import make_mesh

    _members.QUERIES = 128  # several blocks of test rows out of little data
    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8), bunch.target.astype(np.int64)
    found = {}
    for devices in map(int, sys.argv[1].split(",")):
        seen = {}
        for learner in (KernelRidge, Ridge, ClassMean, Neighbours):
            for spread in (1, 3):
                ensemble = fit(x[:900], y[:900], k=37, spread=spread,
                               learner=learner(features=Pixels()), mesh=make_mesh(devices))
                ensemble = ensemble.insert(x[900:910], y[900:910]).delete([4, 905])
                votes = ensemble.votes(x[1000:], margins=True)
                state = hashlib.blake2b(votes.labels.tobytes(), digest_size=16)
                state.update(votes.margins.tobytes())
                for model in ensemble._models:
                    for leaf in model or ():
                        state.update(np.ascontiguousarray(leaf).tobytes())
                seen[f"{learner.__name__} {spread}"] = state.hexdigest()
        found[devices] = seen
    print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_models_and_votes_have_the_same_bits_on_1_2_4_and_8_devices():
    found = json.loads(on_devices(8, DEVICES, "1,2,4,8"))
    alone = json.loads(on_devices(1, DEVICES, "1"))
    assert found["1"] == alone["1"]
    assert found["2"] == found["4"] == found["8"] == found["1"]
    assert len(set(alone["1"].values())) == 8
