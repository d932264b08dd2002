"""HDF5 and zarr: which arrays are x and y, splits, ranged reads, and files that point elsewhere."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import format_data
from jaxpoison._check import DataError, JaxpoisonError, NothingToScan, UsageError
from jaxpoison.sources import is_embedding, open_source

X = np.arange(40, dtype=np.float32).reshape(20, 2)
Y = np.arange(20) % 3
IMAGES = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4)
quiet = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WITHOUT_H5PY = "jaxpoison[hdf5] is not installed"
WITHOUT_TENSORSTORE = "jaxpoison[zarr] is not installed"


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py", reason=WITHOUT_H5PY)


@pytest.fixture
def tensorstore():
    return pytest.importorskip("tensorstore", reason=WITHOUT_TENSORSTORE)


def hdf5(folder, arrays, name="a.h5"):
    import h5py

    path = folder / name
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
    return path


def zarr(folder, arrays, driver):
    path = folder / f"{driver}.zarr"
    format_data.write_zarr(path, arrays, driver, rows=7)
    for group in {key.partition("/")[0] for key in arrays if "/" in key}:
        text = {"zarr_format": 2} if driver == "zarr" else {"node_type": "group", "zarr_format": 3}
        (path / group / (".zgroup" if driver == "zarr" else "zarr.json")).write_text(
            json.dumps(text)
        )
    return path


@pytest.fixture(params=["hdf5", "zarr", "zarr3"])
def write(request, tmp_path):
    """A function that writes arrays, in each of the formats; in an empty folder every time."""
    is_hdf5 = request.param == "hdf5"
    pytest.importorskip(
        "h5py" if is_hdf5 else "tensorstore",
        reason=WITHOUT_H5PY if is_hdf5 else WITHOUT_TENSORSTORE,
    )

    def put(arrays):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return hdf5(folder, arrays) if is_hdf5 else zarr(folder, arrays, request.param)

    return put


def taken(data, labels=None, **options):
    source = open_source(data, labels, **options)
    return source, source.read(0, len(source))


@pytest.mark.parametrize(
    ("arrays", "split", "embedding"),
    [
        ({"x": X, "y": Y}, "", False),
        ({"features": X, "labels": Y.astype(np.uint8)}, "", True),
        ({"data": X.astype(">f8"), "target": Y > 0}, "", False),
        ({"embeddings": X.astype(np.float16), "x": X, "y": Y, "label": Y[::-1]}, "", False),
        ({"x_train": X, "y_train": Y, "x_test": X[:3], "y_test": Y[:3]}, "#train", False),
        ({"train/x": X, "train/label": Y, "test/x": X[:3]}, "#train", False),
    ],
)
def test_which_arrays_are_taken(write, arrays, split, embedding):
    source, block = taken(f"{write(arrays)}{split}")
    np.testing.assert_array_equal(block["x"], X)
    labels = next(value for key, value in arrays.items() if value.ndim == 1)
    np.testing.assert_array_equal(block["y"], labels.astype(np.int64))
    assert is_embedding(source) == embedding


def test_images_and_labels_apart(write):
    path = write({"images": IMAGES, "label": Y})
    source, block = taken(path)
    assert source.schema[:3] == ("images", (4, 4), "uint8")
    np.testing.assert_array_equal(block["x"], IMAGES)
    np.testing.assert_array_equal(open_source(IMAGES, path).labels(), Y)
    np.testing.assert_array_equal(open_source(IMAGES, write({"anything": Y})).labels(), Y)
    only = write({"anything": X})
    source, block = taken(only, role="features")
    assert source.labels() is None and is_embedding(source)
    np.testing.assert_array_equal(taken(only, Y)[1]["y"], Y)


@pytest.mark.parametrize(
    ("arrays", "split", "words"),
    [
        ({}, "", ["no array of inputs", "holds nothing"]),
        ({"q": X, "y": Y}, "", ["'q'", "name one of them x"]),
        ({"x": X, "q": Y}, "", ["no array of labels", "labels="]),
        ({"train/x": X, "train/y": Y}, "", ["'train/'", "#train'"]),
        ({"x_val": X, "y_val": Y}, "", ["#val'"]),
        ({"train/x": X, "train/y": Y}, "#test", ["the split 'test'", "#train'"]),
        ({"train/x": X, "q": Y}, "#train", ["no array of labels"]),
        ({"x": X, "y": Y[:4]}, "", ["array 'y'", "4 labels for 20 rows"]),
        ({"x": X, "y": Y - 1}, "", ["array 'y'", "row 0 is -1"]),
        ({"x": X, "y": np.eye(20)}, "", ["argmax"]),
        ({"x": X.astype(np.complex64), "y": Y}, "", ["array 'x'", "complex64"]),
        ({"x": X[:, 0], "y": Y}, "", ["shape (20,)"]),
        ({"x": IMAGES.astype(np.float32), "y": Y}, "", ["uint8"]),
    ],
)
def test_what_is_refused(write, arrays, split, words):
    path = write(arrays)
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.mkdir()  # an empty .zarr folder
    with pytest.raises(DataError) as caught:
        open_source(f"{path}{split}")
    for word in [*words, str(path)]:
        assert word in str(caught.value)


def test_no_rows(write):
    with pytest.raises(NothingToScan, match="no rows"):
        open_source(write({"x": X[:0], "y": Y[:0]}))


def test_a_missing_package_is_named_with_its_command(write, monkeypatch):
    path = write({"x": X, "y": Y})
    module = "h5py" if path.suffix == ".h5" else "tensorstore"
    extra = "hdf5" if path.suffix == ".h5" else "zarr"
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises
    with pytest.raises(UsageError, match=rf"needs {module}.*pip install 'jaxpoison\[{extra}\]'"):
        open_source(path)


@quiet
@given(data=st.data())
def test_ranged_reads_equal_indexing(write, data):
    n = data.draw(st.integers(1, 50))
    tail = data.draw(st.sampled_from([(1,), (3,), (4, 5), (2, 2, 3)]))
    rng = np.random.default_rng(n)
    kind = np.uint8 if len(tail) > 1 else data.draw(st.sampled_from([np.float32, np.int16]))
    x, y = rng.integers(0, 200, (n, *tail)).astype(kind), rng.integers(0, 5, n)
    source = open_source(write({"x": x, "y": y}))
    assert source.fingerprint() == open_source(x, y).fingerprint()
    for _ in range(3):
        start = data.draw(st.integers(0, n))
        stop = data.draw(st.integers(start, n))
        block = source.read(start, stop)
        np.testing.assert_array_equal(block["x"], x[start:stop])
        np.testing.assert_array_equal(block["y"], y[start:stop])


def external_link(h5py, file, folder):
    hdf5(folder, {"x": X}, "secret.h5")
    file["x"] = h5py.ExternalLink("secret.h5", "/x")


def soft_link(h5py, file, folder):
    file["hidden"] = X
    file["x"] = h5py.SoftLink("/hidden")


def linked_group(h5py, file, folder):
    hdf5(folder, {"g/x": X, "g/y": Y}, "secret.h5")
    file["train"] = h5py.ExternalLink("secret.h5", "/g")


def virtual(h5py, file, folder):
    hdf5(folder, {"x": X}, "secret.h5")
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:] = h5py.VirtualSource("secret.h5", "x", X.shape)
    file.create_virtual_dataset("x", layout)


def external_storage(h5py, file, folder):
    (folder / "secret").write_bytes(bytes(160))
    file.create_dataset("x", (20, 2), "f4", external=[(str(folder / "secret"), 0, 160)])


def ragged(h5py, file, folder):
    file.create_dataset("x", (20,), dtype=h5py.vlen_dtype("f4"))


def references(h5py, file, folder):
    file.create_dataset("x", (20, 2), dtype=h5py.ref_dtype)


def compound(h5py, file, folder):
    file["x"] = np.zeros(20, "f4,i4")


def text(h5py, file, folder):
    file["x"] = np.array([["a"]] * 20, dtype="S1")


def empty(h5py, file, folder):
    file["x"] = h5py.Empty("f4")


def large_chunks(h5py, file, folder):
    file.create_dataset("x", (10**6, 1000), "f4", chunks=(10**5, 1000), compression="gzip")


def unwritten_chunks(h5py, file, folder):
    file.create_dataset("x", (10**12, 100), "f4", chunks=(10**3, 100))


def unwritten(h5py, file, folder):
    file.create_dataset("x", (10**12, 100), "f4")


HOSTILE = {
    external_link: "link to another place",
    soft_link: "link to another place",
    virtual: "kept in other files",
    external_storage: "kept in other files",
    ragged: "'object'",
    references: "'object'",
    compound: "f0",
    text: "S1",
    empty: "is empty",
    large_chunks: "chunks of shape",
    unwritten_chunks: "1000000000 chunks, the file holds 0",
    unwritten: "400000000000000 bytes, the file holds 0",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_hdf5_files_that_point_elsewhere_or_fill_the_memory(h5py, tmp_path, make):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(h5py, file, tmp_path)
        file["y"] = Y
    with pytest.raises(DataError) as caught:
        open_source(tmp_path / "a.h5")
    assert HOSTILE[make] in str(caught.value) and "a.h5" in str(caught.value)


def test_hdf5_groups_behind_links_are_not_entered(h5py, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        linked_group(h5py, file, tmp_path)
    with pytest.raises(DataError, match="link to another place"):
        open_source(f"{tmp_path}/a.h5#train")


def test_hdf5_packed_by_code_from_elsewhere(h5py, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["y"] = Y
        file.create_dataset("x", data=X, chunks=(5, 2), scaleoffset=2)
    with pytest.raises(DataError, match="filter 6"):
        open_source(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["y"] = Y
        file.create_dataset(
            "x", data=X, chunks=(5, 2), compression="lzf", shuffle=True, fletcher32=True
        )
    np.testing.assert_array_equal(taken(tmp_path / "b.hdf5")[1]["x"], X)


def test_hdf5_shards_close_their_files(h5py, tmp_path):
    (tmp_path / "shards").mkdir()
    for number in range(3):
        hdf5(tmp_path / "shards", {"x": X + number, "y": Y}, f"{number}.h5")
    source = open_source(tmp_path / "shards")
    np.testing.assert_array_equal(source.read(10, 50)["x"][:, 0], np.r_[X, X + 1, X + 2][10:50, 0])
    source.close()
    assert all(column._file is None for column in source.column._columns)
    np.testing.assert_array_equal(source.read(59, 60)["x"], X[19:] + 2)


def test_an_hdf5_file_that_changes_while_it_is_open(h5py, tmp_path):
    path = hdf5(tmp_path, {"x": X, "y": Y})
    source = open_source(path)
    source.read(0, 3)
    source.close()
    hdf5(tmp_path, {"x": X[:5], "y": Y})
    with pytest.raises(DataError, match="has changed"):
        source.read(0, 3)


def test_zarr_metadata_that_promise_too_much(tensorstore, tmp_path):
    for driver in ("zarr", "zarr3"):
        path = zarr(tmp_path, {"x": X, "y": Y}, driver)
        meta = path / "x" / (".zarray" if driver == "zarr" else "zarr.json")
        text = meta.read_text()
        for old, new, words in (
            ("20", "20000000000", "2857142858 chunks, the folder holds 3"),
            ("7", "7000000000", "53405 MB each"),
            ("<f4" if driver == "zarr" else "float32", "|O", "cannot be decoded"),
            ("{", "[", "cannot be decoded"),
        ):
            meta.write_text(text.replace(old, new))
            with pytest.raises(DataError, match=words) as caught:
                open_source(path)
            assert str(path) in str(caught.value) and len(str(caught.value)) < 600
        meta.write_text(text)
        chunk = next(p for p in (path / "x").rglob("*") if p.is_file() and p != meta)
        chunk.write_bytes(b"garbage")
        source = open_source(path)
        with pytest.raises(DataError, match="cannot be decoded"):
            source.read(0, 20)


def test_a_zarr_array_by_itself_and_links_in_a_group(tensorstore, tmp_path):
    path = zarr(tmp_path, {"x": X, "y": Y}, "zarr3")
    np.testing.assert_array_equal(taken(path / "x", path / "y")[1]["y"], Y)
    with pytest.raises(DataError, match="no array of labels"):
        open_source(path / "x")
    (path / "x").rename(tmp_path / "elsewhere")
    (path / "x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="no array of inputs"):
        open_source(path)


@pytest.mark.parametrize("name", ["a.h5", "a.zarr"])
def test_damaged_bytes_never_escape_as_another_error(tmp_path, name):
    if name == "a.h5":
        pytest.importorskip("h5py", reason=WITHOUT_H5PY)
        path = hdf5(tmp_path, {"x": X, "y": Y})
        files = [path]
    else:
        pytest.importorskip("tensorstore", reason=WITHOUT_TENSORSTORE)
        path = zarr(tmp_path, {"x": X, "y": Y}, "zarr3")
        files = [p for p in path.rglob("*") if p.is_file()]
    contents = [file.read_bytes() for file in files]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(120):
        which = int(rng.integers(0, len(files)))
        raw = bytearray(contents[which])
        for at in rng.integers(0, len(raw), rng.integers(1, 4)):
            raw[at] = rng.integers(0, 256)
        files[which].write_bytes(bytes(raw[: rng.integers(1, 2 * len(raw))]))
        try:
            source = open_source(path)
            source.read(0, min(len(source), 100))
            source.close()
        except JaxpoisonError as error:
            refused += 1
            assert str(tmp_path) in str(error)
        files[which].write_bytes(contents[which])
    assert refused > 20
