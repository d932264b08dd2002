"""The contracts of all detectors, for LabelViews: it looks for wrong labels in the raw inputs."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
import scipy.stats

import label_data as given
from device_processes import on_devices
from engine_data import auroc
from jaxpoison._types import Scores
from jaxpoison.layout import Layout
from label_data import CLASSES, KEY, ROWS, SMALL, judge


def test_score_keeps_the_detector_protocol():
    x, labels, wrong = given.flipped()
    scores = SMALL.score(given.stream_of(x, labels, num_classes=CLASSES + 1), key=KEY)
    assert isinstance(scores, Scores) and scores.values.dtype == np.float32
    assert scores.values.shape == (ROWS,) and scores.statistic.dtype == np.float64
    assert scores.null.shape == (CLASSES + 1, 0) and scores.candidates is None
    assert np.isnan(scores.statistic[CLASSES]) and np.isfinite(scores.statistic[:CLASSES]).all()
    opinion = judge(x, labels, num_classes=CLASSES + 1)
    assert np.array_equal(scores.values, opinion.margins)
    for c in range(CLASSES):
        assert scores.statistic[c] == (opinion.depth[labels == c] > 1.0).mean()
        assert scores.statistic[c] > 0.2 * wrong[labels == c].mean()
    assert scores.info == (opinion.doubted.sum(), ROWS)
    assert scores.info._fields == ("num_doubted", "num_fitted")


def test_a_stream_is_judged_once_a_key():
    stream = given.stream_of(*given.flipped()[:2])
    one = SMALL.judge(stream, key=KEY)
    assert SMALL.judge(stream, key=jax.random.key(0)) is one
    assert SMALL.judge(stream, key=jax.random.key(1)) is not one
    assert dataclasses.replace(SMALL, num_rounds=2).judge(stream, key=KEY) is not one


def test_same_key_same_bits():
    x, labels, _ = given.flipped()
    again = judge(x.copy(), labels.copy())
    for a, b in zip(again[:4], given.first()[:4], strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(again.space.phi, given.first().space.phi)


def test_another_key_sees_the_same_rows():
    x, labels, wrong = given.flipped()
    other = judge(x, labels, key=jax.random.key(5))
    assert not np.array_equal(other.margins, given.first().margins)
    assert auroc(other.margins, wrong) > 0.98 and auroc(given.first().margins, wrong) > 0.98
    assert scipy.stats.spearmanr(other.margins, given.first().margins)[0] > 0.9


@pytest.mark.parametrize("shape", [(256, 8), (256, 32), (512, 64)])
def test_block_size_does_not_matter(monkeypatch, shape):
    rows, tile = shape
    layout = Layout(rows, tile, rows // tile + CLASSES)
    monkeypatch.setattr(Layout, "of", classmethod(lambda cls, n, b, c: layout))
    x, labels, _ = given.flipped()
    again = judge(x, labels)
    np.testing.assert_allclose(again.margins, given.first().margins, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(again.depth, given.first().depth, rtol=1e-3, atol=1e-3)
    assert (again.doubted == given.first().doubted).mean() > 0.998  # but for a margin at the limit


def test_the_order_of_rows_hardly_matters():
    """Folds and the sample are drawn by position, so the bits do differ."""
    x, labels, wrong = given.flipped()
    order = np.random.default_rng(0).permutation(ROWS)
    margins = judge(x[order], labels[order]).margins
    assert abs(auroc(margins, wrong[order]) - auroc(given.first().margins, wrong)) < 0.005
    assert scipy.stats.spearmanr(margins, given.first().margins[order])[0] > 0.9


def test_names_of_classes_do_not_matter():
    x, labels, _ = given.flipped()
    to = np.random.default_rng(0).permutation(CLASSES)
    renamed = judge(x, to[labels])
    np.testing.assert_allclose(renamed.margins, given.first().margins, rtol=1e-3, atol=1e-3)
    assert np.array_equal(renamed.taken_for, to[given.first().taken_for])


def no_nonsense(opinion, labels, num_classes):
    for values in (opinion.margins, opinion.depth, opinion.space.phi, opinion.space.gram):
        assert np.isfinite(values).all()
    assert ((opinion.taken_for >= 0) & (opinion.taken_for < num_classes)).all()
    assert len(opinion.margins) == len(labels) == len(opinion.doubted)
    assert opinion.doubted.dtype == np.bool_ and opinion.margins.dtype == np.float32


@pytest.mark.parametrize("max_rows", [50_000, 400])
@pytest.mark.parametrize("sizes", [{1: 3}, {1: 1}, {1: 0}, {1: 7, 3: 8}, {0: 0, 4: 1}, {2: 12}])
def test_tiny_and_empty_classes(sizes, max_rows):
    x, labels, wrong = given.flipped()
    keep = np.ones(ROWS, bool)
    for c, size in sizes.items():
        keep[np.flatnonzero(labels == c)[size:]] = False
    x, labels, wrong = x[keep], labels[keep], wrong[keep]
    detector = dataclasses.replace(SMALL, max_rows=max_rows)
    opinion = judge(x, labels, detector, num_classes=CLASSES)
    no_nonsense(opinion, labels, CLASSES)
    tiny = [c for c, size in sizes.items() if size < 8]
    assert not opinion.margins[np.isin(labels, tiny)].any()
    assert not np.isin(opinion.taken_for, tiny).any()
    large = ~np.isin(labels, list(sizes))
    assert auroc(opinion.margins[large], wrong[large]) > 0.95


@pytest.mark.parametrize("max_rows", [50_000, 300])
def test_two_classes(max_rows):
    x, labels, wrong = given.flipped(seed=1, num_classes=2, n=600)
    opinion = judge(x, labels, dataclasses.replace(SMALL, max_rows=max_rows))
    no_nonsense(opinion, labels, 2)
    assert auroc(opinion.margins, wrong) > 0.98
    assert np.array_equal(opinion.taken_for, 1 - labels)


@pytest.mark.parametrize("max_rows", [50_000, 300])
@pytest.mark.parametrize("size", [1, 5])
def test_two_classes_of_which_one_is_tiny(size, max_rows):
    """Nothing else is left that a row could be: nothing is said, and nothing is infinite."""
    x, labels, _ = given.flipped(seed=1, num_classes=2, n=600)
    keep = np.r_[np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:size]]
    opinion = judge(x[keep], labels[keep], dataclasses.replace(SMALL, max_rows=max_rows))
    no_nonsense(opinion, labels[keep], 2)
    assert not opinion.margins.any() and not opinion.doubted.any()


@pytest.mark.parametrize("labels", [[0, 0, 1], [0, 1], [0] * 30, list(range(12)) * 2])
def test_hardly_any_rows(labels):
    labels = np.array(labels)
    x = given.flipped()[0][: len(labels)]
    opinion = judge(x, labels)
    no_nonsense(opinion, labels, labels.max() + 1)
    assert not opinion.margins.any()


@pytest.mark.parametrize("max_rows", [50_000, 600])
def test_a_class_of_identical_rows(max_rows):
    x, labels, wrong = (a.copy() for a in given.flipped())
    x[labels == 2] = x[np.flatnonzero(labels == 2)[0]]
    opinion = judge(x, labels, dataclasses.replace(SMALL, max_rows=max_rows))
    no_nonsense(opinion, labels, CLASSES)
    large = labels != 2
    assert auroc(opinion.margins[large], wrong[large]) > 0.95


@pytest.mark.parametrize("kind", ["table", "digits"])
def test_rows_all_equal(kind):
    x, labels, _ = given.flipped() if kind == "table" else given.stamped()
    opinion = judge(np.full_like(x, 3), labels)
    no_nonsense(opinion, labels, labels.max() + 1)
    # one score a fold: who of it is how deep in what is chance, but nobody is sure of anything
    assert np.abs(opinion.margins).max() < 3.0 and not opinion.doubted.any()


@pytest.mark.parametrize("d", [1, 3, 4])
def test_few_columns(d):
    x, labels, _ = given.flipped()
    no_nonsense(judge(x[:, :d], labels), labels, CLASSES)


def test_constant_and_repeated_columns():
    x, labels, wrong = given.flipped()
    wide = np.concatenate([x, np.full((ROWS, 3), 9.0, np.float32), x[:, :4]], axis=1)
    opinion = judge(wide, labels)
    no_nonsense(opinion, labels, CLASSES)
    assert auroc(opinion.margins, wrong) > 0.98


def test_given_rows_stay_as_they_were():
    x, labels, _ = given.flipped()
    before = x.copy(), labels.copy()
    judge(x, labels)
    assert np.array_equal(x, before[0]) and np.array_equal(labels, before[1])


DEVICES = """
    import hashlib, json, sys
    import jax
    import numpy as np
    from sklearn.datasets import load_digits
    from jaxpoison.detect import LabelViews
    from jaxpoison.layout import Layout
    from jaxpoison.sources import open_source
    from jaxpoison.stream import Stream, make_mesh

    Layout.of = classmethod(lambda cls, n, b, c: cls(256, 16, 16 + c))  # several shards
    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8), bunch.target.astype(np.int32)
    y[:90] = (y[:90] + 1) % 10
    found = {}
    for devices in (1, 8):
        for name, rows in (("images", x), ("rows", x.reshape(-1, 64).astype(np.float32))):
            for most in (50000, 1000):
                source = open_source(rows) if rows.ndim > 2 else open_source(rows, role="features")
                stream = Stream(source, y, 10, make_mesh(devices))
                opinion = LabelViews(num_features=256, max_rows=most).judge(
                    stream, key=jax.random.key(0))
                state = hashlib.blake2b(digest_size=16)
                for array in opinion[:4]:
                    state.update(np.ascontiguousarray(array).tobytes())
                found[f"{name} {most} {devices}"] = state.hexdigest()
    print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_same_bits_on_1_and_8_devices():
    found = json.loads(on_devices(8, DEVICES))
    assert len(set(found.values())) == 4 and len(found) == 8
    for name in found:
        if name.endswith(" 8"):
            assert found[name] == found[name[:-1] + "1"], name
