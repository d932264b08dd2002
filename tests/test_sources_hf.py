"""Folders of save_to_disk, and what Hugging Face's data sets write into Arrow and Parquet files."""

from __future__ import annotations

import io
import json
import shutil
import sys
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from format_data import table_of, write_saved, write_stream
from jaxpoison._check import DataError, NothingToScan, UsageError
from jaxpoison.sources import is_embedding, open_source

X = np.arange(40, dtype=np.float32).reshape(20, 2)
Y = np.arange(20) % 3
NAMES = ["zebra", "ape", "cat", "unused"]
LABEL = {"label": {"names": NAMES, "_type": "ClassLabel"}, "x": {"_type": "Sequence"}}
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 5, 4), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 5, 4, 3), dtype=np.uint8)


def halves():
    return [table_of(X[:9], Y[:9]), table_of(X[9:], Y[9:])]


def encode(pixels, kind="PNG"):
    image = pytest.importorskip("PIL.Image", reason="jaxpoison[images] is not installed")
    out = io.BytesIO()
    image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def image_table(pixels, y=Y, name="image"):
    rows = [{"bytes": encode(each), "path": None} for each in pixels]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.table({name: pa.array(rows, kind), "label": y})


def test_a_saved_data_set_is_its_listed_files_alone(tmp_path):
    write_saved(tmp_path / "saved", halves())
    source = open_source(tmp_path / "saved")  # the cached file in the folder is no shard
    assert source.fingerprint() == open_source(X, Y).fingerprint()
    np.testing.assert_array_equal(source.read(7, 12)["x"], X[7:12])
    assert source.schema.class_names is None and not is_embedding(source)
    assert len(open_source(f"{tmp_path}/saved#train")) == 20
    assert open_source(tmp_path / "saved", role="features").labels() is None


def test_splits_of_a_data_set(tmp_path):
    write_saved(tmp_path / "all/train", halves())
    write_saved(tmp_path / "all/test", [table_of(X[:4], Y[:4])])
    (tmp_path / "all/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(open_source(f"{tmp_path}/all#train")) == 20
    assert len(open_source(f"{tmp_path}/all#test")) == 4
    for text in (f"{tmp_path}/all", f"{tmp_path}/all#val"):
        with pytest.raises(DataError, match=r"holds the splits 'train', 'test'; write .*all#train"):
            open_source(text)
    (tmp_path / "all/dataset_dict.json").write_text('{"splits": ["test"]}')
    assert len(open_source(tmp_path / "all")) == 4


def test_declared_classes_keep_their_numbers(tmp_path):
    """The names are not in sorted order and one is unused: text labels would be renumbered."""
    write_saved(tmp_path / "saved", halves(), LABEL)
    metadata = {"huggingface": json.dumps({"info": {"features": LABEL}})}
    (tmp_path / "hub").mkdir()
    for number, table in enumerate(halves()):
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / f"hub/{number}.parquet")
    for path in (tmp_path / "saved", tmp_path / "hub", tmp_path / "hub/0.parquet"):
        source = open_source(path)
        assert source.schema.class_names == tuple(NAMES)
        np.testing.assert_array_equal(source.labels(), Y[: len(source)])
    assert open_source(tmp_path / "hub").fingerprint() == open_source(X, Y).fingerprint()


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        ({"_type": "ClassLabel", "names": ["a", "b"]}, "label of row 2 is 2, but only 2 classes"),
        ({"_type": "ClassLabel", "names": ["a", "a", "b"]}, "two classes of one name"),
        ({"_type": "ClassLabel", "names": [1, 2, 3]}, "no text"),
        ({"_type": "ClassLabel", "names": "abc"}, "no text"),
    ],
)
def test_declared_classes_that_make_no_sense(tmp_path, feature, words):
    write_saved(tmp_path / "saved", halves(), {"label": feature})
    with pytest.raises(DataError, match=words):
        open_source(tmp_path / "saved")


@pytest.mark.parametrize(
    "raw", ["nonsense", "[1]", '{"info": 3}', '{"info": {"features": []}}', "["]
)
def test_metadata_of_other_versions_are_passed_over(tmp_path, raw):
    table = table_of(X, Y, {"huggingface": raw})
    write_stream(tmp_path / "a.arrow", table)
    assert open_source(tmp_path / "a.arrow").schema.class_names is None


def damaged(folder, state):
    write_saved(folder, halves())
    (folder / "state.json").write_text(state if isinstance(state, str) else json.dumps(state))
    return folder


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("nonsense", "damaged"),
        ([1], "state.json is damaged"),
        ({}, "lists no data files"),
        ({"_data_files": []}, "lists no data files"),
        ({"_data_files": [{"name": "a"}]}, "lists no data files"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "'gone.arrow' is missing"),
        ({"_data_files": [{"filename": "../secret.arrow"}]}, "lies elsewhere"),
        ({"_data_files": [{"filename": "/etc/passwd"}]}, "lies elsewhere"),
        ({"_data_files": [{"filename": ".."}]}, "lies elsewhere"),
        ({"_data_files": [], "_indices_files": [{"filename": "i.arrow"}]}, "flatten_indices"),
    ],
)
def test_states_that_are_refused(tmp_path, state, words):
    write_stream(tmp_path / "secret.arrow", table_of(X, Y))
    with pytest.raises(DataError, match=words) as caught:
        open_source(damaged(tmp_path / "saved", state))
    assert str(tmp_path / "saved") in str(caught.value)


@pytest.mark.parametrize(
    ("splits", "words"),
    [("3", "names no splits"), ('["../train"]', "lies elsewhere"), ('["other"]', "no state.json")],
)
def test_splits_that_are_refused(tmp_path, splits, words):
    write_saved(tmp_path / "all/train", halves())
    (tmp_path / "all/dataset_dict.json").write_text(f'{{"splits": {splits}}}')
    with pytest.raises(DataError, match=words):
        open_source(tmp_path / "all")


def test_other_mistakes(tmp_path):
    write_saved(tmp_path / "saved", halves())
    with pytest.raises(DataError, match="without splits"):
        open_source(f"{tmp_path}/saved#val")
    write_saved(tmp_path / "none", [table_of(X[:0], Y[:0])])
    with pytest.raises(NothingToScan):
        open_source(tmp_path / "none")
    write_saved(tmp_path / "mixed", [table_of(X, Y), table_of(X[:, :1], Y)])
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: shape"):
        open_source(tmp_path / "mixed")


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_images_inside_the_files(tmp_path, monkeypatch, pixels):
    monkeypatch.setattr("jaxpoison.sources.arrow_images._PIECE_ROWS", 4)
    table = image_table(pixels)
    write_saved(tmp_path / "saved", [table.slice(0, 9), table.slice(9)], LABEL)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=6)
    write_stream(tmp_path / "a.arrow", table, rows=6)
    expected = open_source(pixels, Y)
    for path in (tmp_path / "saved", tmp_path / "a.parquet", tmp_path / "a.arrow"):
        source = open_source(path)
        assert source.schema[:3] == expected.schema[:3] and not is_embedding(source)
        assert source.fingerprint() == expected.fingerprint()
        np.testing.assert_array_equal(source.read(8, 11)["x"], pixels[8:11])
        np.testing.assert_array_equal(source.read(2, 3)["x"], pixels[2:3])


def test_which_column_is_x_beside_images(tmp_path):
    table = image_table(GREY, name="picture")
    boxes = pa.array([[1.0, 2.0]] * 20)
    pq.write_table(table.append_column("boxes", boxes), tmp_path / "a.parquet")
    assert open_source(tmp_path / "a.parquet").schema.kind == "images"
    pq.write_table(table.append_column("embedding", boxes), tmp_path / "b.parquet")
    assert open_source(tmp_path / "b.parquet").schema.kind == "rows"


def save_images(folder, rows):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(rows, kind), "label": np.arange(len(rows))})
    pq.write_table(table, folder / "a.parquet")
    return folder / "a.parquet"


def test_images_that_are_refused(tmp_path):
    good = {"bytes": encode(GREY[0]), "path": "a.png"}
    huge = bytearray(good["bytes"])
    huge[16:24] = (8_200).to_bytes(4, "big") * 2  # width and height in the header of a PNG
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    cases = [
        ({"bytes": None, "path": "/etc/passwd"}, "row 1: holds no bytes.*not followed"),
        (None, "row 1: holds no bytes"),
        ({"bytes": b"", "path": None}, "row 1: holds 0 bytes"),
        ({"bytes": b"nonsense", "path": None}, "row 1"),
        ({"bytes": bytes(huge), "path": None}, "row 1: declares 8200 x 8200 pixels"),
        ({"bytes": encode(GREY[0, :3]), "path": None}, "row 1: is 3 x 4, row 0 is 5 x 4"),
    ]
    for row, words in cases:
        with pytest.raises(DataError, match=words) as caught:
            open_source(save_images(tmp_path, [good, row]))
        assert "a.parquet" in str(caught.value)
    cut = {"bytes": encode(RNG.integers(0, 256, (64, 64), dtype=np.uint8))[:-900], "path": None}
    source = open_source(save_images(tmp_path, [cut, cut]))
    with pytest.raises(DataError, match="row 0"):
        source.read(0, 2)
    with pytest.raises(NothingToScan):
        open_source(save_images(tmp_path, []))


def test_without_pillow_the_command_is_named(tmp_path, monkeypatch):
    path = save_images(tmp_path, [{"bytes": encode(GREY[0]), "path": None}])
    monkeypatch.setitem(sys.modules, "PIL.Image", None)  # importing it raises
    with pytest.raises(UsageError, match=r"pip install 'jaxpoison\[images\]'"):
        open_source(path)


def test_a_folder_with_a_state_of_something_else_may_hold_shards(tmp_path):
    """Only state.json and dataset_dict.json make a folder a saved data set."""
    write_saved(tmp_path / "saved", halves())
    (tmp_path / "saved/state.json").unlink()
    shutil.move(tmp_path / "saved/cache-0123456789abcdef.arrow", tmp_path / "cache")
    assert open_source(tmp_path / "saved").fingerprint() == open_source(X, Y).fingerprint()
