"""Sequences and iterators of rows or batches, and data sets of Grain."""

from __future__ import annotations

import os
import sys
import tempfile
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpoison._check import DataError, JaxpoisonError, NothingToScan, UsageError
from jaxpoison.sources import is_embedding, open_source
from jaxpoison.sources.batches import SequenceColumn
from jaxpoison.sources.spill import SpillColumn
from shared_reads import wrong_reads

X = np.arange(40, dtype=np.float32).reshape(20, 2)
Y = np.arange(20) % 3
IMAGES = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4)
few = settings(max_examples=25, deadline=None)


def batches(x=X, y=Y, size=6):
    return [(x[k : k + size], y[k : k + size]) for k in range(0, len(x), size)]


def pairs(x=X, y=Y):
    return [(a, int(b)) for a, b in zip(x, y, strict=True)]


class Indexed:
    """Like a torch data set: a length and an index, and no more."""

    def __init__(self, elements):
        self.elements = elements

    def __len__(self):
        return len(self.elements)

    def __getitem__(self, index):
        return self.elements[index]


ELEMENTS = {
    "pairs": pairs(),
    "batches": batches(),
    "lists": [([*map(float, a)], b) for a, b in pairs()],
    "list batches": [(a, b.tolist()) for a, b in batches()],
    "mappings": [{"x": a, "label": b, "more": None} for a, b in pairs()],
    "batches of mappings": [{"image": a, "y": b} for a, b in batches()],
    "one batch": [(X, Y)],
    "uneven batches": [(X[:1], Y[:1]), (X[1:15], Y[1:15]), (X[15:], Y[15:])],
    "with an empty batch": [(X[:5], Y[:5]), (X[:0], Y[:0]), (X[5:], Y[5:])],
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_every_form_of_elements(name):
    elements, expected = ELEMENTS[name], open_source(X, Y).fingerprint()
    sources = {
        "list": open_source(elements),
        "iterator": open_source(iter(elements)),
        "generator": open_source(each for each in elements),
        "indexed": open_source(Indexed(elements)),
    }
    for form, source in sources.items():
        assert source.fingerprint() == expected, form
        in_place = form in ("list", "indexed")
        assert type(source.column) is (SequenceColumn if in_place else SpillColumn), form
        block = source.read(4, 17)
        np.testing.assert_array_equal(block["x"], X[4:17])
        np.testing.assert_array_equal(block["y"], Y[4:17])


def test_labels_are_optional_and_may_be_given_apart():
    for make in (lambda: iter(X), lambda: (a for a, _ in batches()), lambda: Indexed(list(X))):
        assert open_source(make()).labels() is None
        np.testing.assert_array_equal(open_source(make(), Y).labels(), Y)
        source = open_source(make(), role="features")
        np.testing.assert_array_equal(source.read(0, 20)["x"], X)
    np.testing.assert_array_equal(open_source(iter(batches()), Y[::-1]).labels(), Y[::-1])
    assert open_source(iter(batches()), role="features").labels() is None
    assert open_source(Indexed(pairs()), role="features").labels() is None


def test_images_text_labels_and_embeddings():
    source = open_source(zip(IMAGES, Y, strict=True))
    assert source.schema[:3] == ("images", (4, 4), "uint8")
    assert open_source(iter(IMAGES)).schema.kind == "images"
    names = np.array(["cat", "ape", "dog"])[Y]
    for elements in (zip(X, map(str, names), strict=True), iter(batches(X, names))):
        source = open_source(elements)
        assert source.schema.class_names == ("ape", "cat", "dog")
        assert source.fingerprint() == open_source(X, names).fingerprint()
    assert is_embedding(open_source({"embedding": a, "y": b} for a, b in pairs()))
    assert not is_embedding(open_source({"x": a, "y": b} for a, b in pairs()))


def test_images_of_pillow_beside_their_labels():
    image = pytest.importorskip("PIL.Image", reason="jaxpoison[images] is not installed")
    elements = [(image.fromarray(a), int(b)) for a, b in zip(IMAGES, Y, strict=True)]
    expected = open_source(IMAGES, Y).fingerprint()
    for data in (elements, iter(elements), Indexed(elements)):
        assert open_source(data).fingerprint() == expected
    elements[3] = (image.new("L", (9, 9)), 1)
    with pytest.raises(DataError, match=r"element 3: x has rows of shape \(9, 9\)"):
        open_source(elements)


def test_arrays_are_still_arrays():
    for data in (X.tolist(), [tuple(row) for row in X.tolist()], list(X), tuple(X)):
        source = open_source(data)
        np.testing.assert_array_equal(source.read(0, 20)["x"], X)
        assert type(source.column).__name__ == "ArrayColumn"
    scalars = [tuple(row) for row in X]  # pairs of numpy's scalars are rows
    np.testing.assert_array_equal(open_source(scalars).read(0, 20)["x"], X)
    lists = [[[1.0, 2.0], [3.0, 4.0]]] * 3
    with pytest.raises(DataError, match=r"shape \(3, 2, 2\)"):
        open_source(lists)


def elements_of(*more, first=(X[:3], Y[:3])):
    return lambda: iter([first, *more])


REFUSED = [  # a function that makes the data, words
    (elements_of((X[:3].astype(np.float64), Y[:3])), ["element 1", "'float64'", "'float32'"]),
    (elements_of((X[:3, :1], Y[:3])), ["element 1", "(1,)", "(2,)"]),
    (elements_of((X[:3], Y[:2])), ["element 1", "3 rows of x, labels of shape (2,)"]),
    (elements_of((X[0], 1)), ["element 1"]),
    (elements_of(X[:3]), ["element 1 is ndarray", "pair"]),
    (elements_of(None), ["element 1 is None"]),
    (elements_of((X[:3], "cat dog ape")), ["element 1"]),
    (elements_of((X[:3], ["a", "b", "c"])), ["some labels are text"]),
    (elements_of((X[:3], Y[:3] - 5)), ["label of row 3 is -5"]),
    (elements_of((X[:3], Y[:3] + 0.5)), ["row 3 is 0.5"]),
    (elements_of(first=(X[:3], np.eye(3))), ["element 0", "(3, 3)", "argmax"]),
    (elements_of(first=(X[:3].astype(str), Y[:3])), ["element 0", "arrays of numbers"]),
    (elements_of(first=(X[:3].astype(object), Y[:3])), ["element 0", "'object'"]),
    (elements_of(first=([[1, 2], [3]], [0, 1])), ["element 0", "cannot become an array"]),
    (elements_of(first={"q": X}), ["element 0 has the keys 'q'", "one of x"]),
    (elements_of({"x": X}, first={"x": X, "y": Y}), ["element 1 has the keys 'x'"]),
    (elements_of(first=IMAGES), ["element 0", "one image or many"]),
    (lambda: iter([1, 2]), ["element 0 is 'int'"]),
    (lambda: iter("abc"), ["element 0 is 'str'"]),
    (lambda: Indexed([b"abc"]), ["element 0 is 'bytes'"]),
    (lambda: {"x": X, "y": Y}, ["dict"]),
    (lambda: b"abc", ["bytes"]),
    (lambda: {1, 2}, ["element 0 is 'int'"]),
    (lambda: iter([(X[:0], Y[:0])]), ["no rows"]),
    (lambda: iter([]), ["gave nothing", "used up"]),
    (lambda: Indexed([]), ["sequence is empty"]),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_is_refused(case):
    make, words = REFUSED[case]
    with pytest.raises(JaxpoisonError) as caught:
        open_source(make())
    for word in ["data", *words]:
        assert word in str(caught.value)


def test_an_iterator_that_is_used_up_is_nothing_to_scan():
    elements = iter(batches())
    open_source(elements)
    with pytest.raises(NothingToScan, match="give a new one"):
        open_source(elements)


def test_an_error_of_the_iterator_itself_is_not_hidden():
    def broken():
        yield X[:3], Y[:3]
        raise ConnectionError("the server has gone")

    with pytest.raises(ConnectionError, match="the server has gone"):
        open_source(broken())


def test_a_sequence_that_changes_is_an_error():
    elements = batches()
    source = open_source(elements)
    elements[1] = (X[:3], Y[:3])
    with pytest.raises(DataError, match="element 1 has 3 rows, it had 6"):
        source.read(0, 20)
    elements[1] = (X[:6, :1], Y[:6])
    with pytest.raises(DataError, match="element 1"):
        source.read(0, 20)


@few
@given(data=st.data())
def test_ranged_reads_equal_indexing(data):
    n, d = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 4))
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)), rng.integers(0, 4, n)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=6)))
    elements = [(x[a:b], y[a:b]) for a, b in zip([0, *cuts], [*cuts, n], strict=True)]
    for source in (open_source(elements), open_source(iter(elements))):
        assert source.fingerprint() == open_source(x, y).fingerprint()
        for _ in range(3):
            start = data.draw(st.integers(0, n))
            stop = data.draw(st.integers(start, n))
            expected = x[start:stop].astype(np.float32)
            np.testing.assert_array_equal(source.read(start, stop)["x"], expected)


def test_only_a_few_batches_are_held_and_nothing_is_left_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    alive, most = set(), 0

    def generate():
        nonlocal most
        for number in range(200):
            batch = np.full((512, 64), number, np.float32)  # 128 KB
            alive.add(number)
            weak = weakref.finalize(batch, alive.discard, number)
            most = max(most, len(alive))
            yield batch, np.full(512, number % 5)
            del batch, weak

    source = open_source(generate())
    assert len(source) == 200 * 512 and most < 80
    assert os.listdir(tmp_path) == []  # the file has no name
    assert source.read(100 * 512, 100 * 512 + 1)["x"][0, 0] == 100
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    del source
    if descriptors is not None:
        assert len(os.listdir("/proc/self/fd")) == descriptors - 1


def test_threads_may_share_a_source():
    x = np.arange(4000 * 8, dtype=np.float32).reshape(4000, 8)
    y = np.arange(4000) % 7
    for source in (open_source(iter(batches(x, y, 100))), open_source(batches(x, y, 100))):
        assert not wrong_reads(source, x, 20)


@pytest.fixture
def grain():
    return pytest.importorskip("grain", reason="jaxpoison[grain] is not installed")


def test_data_sets_of_grain(grain):
    data = grain.MapDataset.source(pairs())
    expected = open_source(X, Y).fingerprint()
    in_place = {
        "rows": data,
        "batches": data.batch(6),
        "mappings": data.map(lambda e: {"image": e[0], "label": e[1]}).batch(7),
    }
    once = {
        "iterated": data.to_iter_dataset(),
        "iterated batches": data.to_iter_dataset().batch(6),
        "filter of nothing": data.to_iter_dataset().filter(lambda e: True),
    }
    for name, each in (in_place | once).items():
        source = open_source(each)
        assert source.fingerprint() == expected, name
        assert type(source.column) is (SequenceColumn if name in in_place else SpillColumn), name
    again = open_source(data.repeat(2))
    np.testing.assert_array_equal(again.read(18, 23)["x"], np.r_[X, X][18:23])


def test_rows_that_grain_filters_out_are_passed_over(grain):
    data = grain.MapDataset.source(pairs()).filter(lambda e: e[1] != 1)
    expected = open_source(X[Y != 1], Y[Y != 1])
    assert open_source(data).fingerprint() == expected.fingerprint()
    features = open_source(data, role="features")
    np.testing.assert_array_equal(features.read(0, 13)["x"], X[Y != 1])


def test_loaders_and_sources_of_grain(grain):
    class Rows(grain.sources.RandomAccessDataSource):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            return {"x": X[index], "y": Y[index]}

    expected = open_source(X, Y).fingerprint()
    assert open_source(Rows()).fingerprint() == expected
    loader = grain.load(Rows(), num_epochs=1, batch_size=6)
    assert open_source(loader).fingerprint() == expected


def test_what_is_refused_of_grain(grain):
    data = grain.MapDataset.source(pairs())
    with pytest.raises(UsageError, match="for ever"):
        open_source(data.repeat())
    with pytest.raises(NothingToScan):
        open_source(data[3:3])
    with pytest.raises(DataError, match="element 0 is 'bytes'"):
        open_source(grain.MapDataset.source([b"a", b"b"]))
    with pytest.raises(DataError, match="element 0 is 'int"):
        open_source(grain.MapDataset.range(5))
    with pytest.raises(NothingToScan):
        open_source(data.filter(lambda e: False).to_iter_dataset())


def test_grain_is_known_by_the_name_of_its_module_and_never_imported(monkeypatch):
    class MapDataset(Indexed):
        __module__ = "grain._src.python.dataset.dataset"

    monkeypatch.setitem(sys.modules, "grain", None)  # importing it raises
    source = open_source(MapDataset(pairs()))
    assert source.fingerprint() == open_source(X, Y).fingerprint()
    holes = MapDataset([None, *pairs()])
    with pytest.raises(DataError, match="element 0 is None"):
        open_source(holes)
