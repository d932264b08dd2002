"""Prepared tfds folders are read without tensorflow-datasets; nothing is ever downloaded."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from image_files import (
    class_node,
    example,
    image_node,
    png,
    tensor_node,
    write_prepared,
)
from jaxpoison._check import DataError, JaxpoisonError, UsageError
from jaxpoison.sources import open_source

pytest.importorskip("PIL.Image", reason="images are read by Pillow (extra images)")
HAS_ARRAY_RECORD = importlib.util.find_spec("array_record") is not None
KINDS = ["tfrecord", *(["array_record"] if HAS_ARRAY_RECORD else [])]

X = np.random.default_rng(0).integers(0, 256, (9, 5, 4), dtype=np.uint8)
Y = np.array([2, 0, 1, 1, 0, 2, 0, 1, 2])
RECORDS = [example({"image": png(x), "label": int(y)}) for x, y in zip(X, Y, strict=True)]
SHARDS = {"test": [RECORDS[:2]], "train": [RECORDS[:4], RECORDS[4:]]}
FEATURES = {"image": image_node(5, 4, 1), "label": class_node(3)}
CLASSES = ("zebra", "ape", "cat")


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def prepare(folder, splits=SHARDS, features=FEATURES, **options):
    return write_prepared(folder, splits, features, **({"classes": CLASSES} | options))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_the_same_arrays_as_npz(data_dir, kind):
    folder = prepare(data_dir / "zoo/1.0.0", kind=kind, keys=("image", "label"))
    np.savez(data_dir / "a.npz", x=X, y=Y)
    expected = open_source(data_dir / "a.npz").fingerprint()
    for name in (folder, f"{folder}#train", "tfds:zoo", "tfds:zoo:1.0.0#train", "tfds:zoo/1.0.0"):
        source = open_source(name)
        assert source.schema == ("images", (5, 4), "uint8", CLASSES)
        for start, stop in ((0, 9), (3, 5), (8, 9), (4, 4)):
            block = source.read(start, stop)
            np.testing.assert_array_equal(block["x"], X[start:stop])
            np.testing.assert_array_equal(block["y"], Y[start:stop])
        assert source.fingerprint() == expected
    assert len(open_source("tfds:zoo#test")) == 2
    assert open_source("tfds:zoo@8x6#test").schema.shape == (8, 6)
    assert open_source("tfds:zoo", role="features").labels() is None


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_datasets") is None or not HAS_ARRAY_RECORD,
    reason="tensorflow-datasets is not installed (extra tfds)",
)
def test_what_tensorflow_datasets_prepares_is_read_as_it_reads_it(data_dir):
    code = f"""
        import io, sys, numpy as np, tensorflow_datasets as tfds
        from PIL import Image
        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            def _info(self):
                f = tfds.features
                return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict({{
                    "image": f.Image(shape=(None, None, 3)), "id": f.Text(),
                    "label": f.ClassLabel(names=["z", "a"]),
                    "v": f.Tensor(shape=(2,), dtype=np.float32),
                }}), supervised_keys=("image", "label"))
            def _split_generators(self, _):
                return {{"train": self._generate_examples()}}
            def _generate_examples(self):
                rng = np.random.default_rng(0)
                for i in range(20):
                    raw = io.BytesIO()
                    Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).save(raw, "PNG")
                    raw.seek(0)
                    yield i, {{"image": raw, "id": "x", "label": i % 2, "v": [i, 1]}}
        builder = Tiny(data_dir={str(data_dir)!r}, file_format="array_record")
        builder.download_and_prepare()
        rows = list(builder.as_data_source(split="train"))
        np.savez({str(data_dir / "tiny.npz")!r}, x=[r["image"] for r in rows],
                 y=[r["label"] for r in rows])
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    source = open_source("tfds:tiny")
    assert source.schema == ("images", (6, 5, 3), "uint8", ("z", "a")) and len(source) == 20
    assert source.fingerprint() == open_source(data_dir / "tiny.npz").fingerprint()


def test_versions_and_configs(data_dir):
    for version, count in (("1.9.0", 3), ("1.10.0", 5), ("1.2.0", 7)):
        prepare(data_dir / "zoo" / version, {"train": [RECORDS[:count]]})
    assert len(open_source("tfds:zoo")) == 5
    assert len(open_source("tfds:zoo:1.9.0")) == 3
    (data_dir / "zoo/2.0.0.incomplete1A2B").mkdir()
    assert len(open_source("tfds:zoo")) == 5
    for config in ("big", "small"):
        folder = prepare(data_dir / "farm" / config / "1.0.0", {"train": [RECORDS]})
        for file in folder.glob(f"{config}-*"):
            file.rename(file.with_name(file.name.replace(config, "farm", 1)))
        info = json.loads((folder / "dataset_info.json").read_text())
        (folder / "dataset_info.json").write_text(json.dumps(info | {"name": "farm"}))
        if config == "big":
            assert len(open_source("tfds:farm")) == 9  # the only config
            assert len(open_source("tfds:farm:1.0.0")) == 9
    for name in ("tfds:farm:big", "tfds:farm/small", "tfds:farm:small:1.0.0#train"):
        assert len(open_source(name)) == 9
    with pytest.raises(DataError, match=r"2 configs .* write tfds:farm:big or tfds:farm:small"):
        open_source("tfds:farm")


def test_an_unprepared_name_is_told_at_once(data_dir, monkeypatch):
    import socket

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    prepare(data_dir / "zoo/1.0.0")
    (data_dir / "half/1.0.0").mkdir(parents=True)
    for name, builder in (
        ("tfds:mnist", "'mnist'"), ("tfds:zoo:2.0.0", "'zoo'"), ("tfds:half", "'half'"),
        ("tfds:zoo:config", "'zoo/config'"), ("tfds:half:1.0.0", "'half'"),
    ):  # fmt: skip
        with pytest.raises(DataError) as caught:
            open_source(name)
        for word in ("is not prepared", str(data_dir), "tfds build", f"tfds.builder({builder},"):
            assert word in str(caught.value)
    for name in ("tfds:", "tfds:../zoo", "tfds:a:b:c:d", "tfds:..", "tfds:zoo:", "tfds:/etc"):
        with pytest.raises(UsageError, match="write tfds:NAME"):
            open_source(name)
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(data_dir))
    with pytest.raises(DataError, match=f"{data_dir}/tensorflow_datasets"):
        open_source("tfds:zoo")


def test_the_package_is_not_imported(data_dir):
    prepare(data_dir / "zoo/1.0.0")
    code = (
        "import sys\nfrom jaxpoison.sources import open_source\n"
        "open_source('tfds:zoo').read(0, 9)\n"
        "heavy = {'tensorflow_datasets', 'tensorflow', 'jax'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_features_are_chosen_or_listed(data_dir):
    def one(name, values, features, **options):
        records = [example(values), example(values)]
        prepare(data_dir / name / "1.0.0", {"train": [records]}, features, **options)
        return open_source(f"tfds:{name}")

    vector, raw = np.float32([1, 2, 3]), png(X[0])
    source = one("vec", {"v": vector, "label": 1}, {"v": tensor_node(3), "label": class_node(3)})
    np.testing.assert_array_equal(source.read(0, 2)["x"], np.stack([vector] * 2))
    pixels = {"v": X[0].ravel(), "label": 1}
    source = one("raw", pixels, {"v": tensor_node(5, 4, dtype="uint8"), "label": class_node(3)})
    np.testing.assert_array_equal(source.read(1, 2)["x"], X[:1])
    values = {"a/x": raw, "b": raw, "a/y": 2, "label": 1}
    inner = {"featuresDict": {"features": {"x": image_node(5, 4, 1), "y": class_node(3)}}}
    nodes = {"a": inner, "b": image_node(5, 4, 1), "label": class_node(3)}
    source = one("nested", values, nodes, keys=("a/x", "a/y"))
    assert source.labels().tolist() == [2, 2] and source.schema.class_names is None
    with pytest.raises(DataError, match=r"not plain what the inputs are.*'a/x: Image'"):
        one("many", values, nodes)
    nodes = {"image": image_node(5, 4, 1), "y1": class_node(2), "y2": class_node(2)}
    with pytest.raises(DataError, match=r"what the labels are.*'y1: ClassLabel'"):
        one("labels", {"image": raw, "y1": 1, "y2": 1}, nodes)
    colour = one("colour", {"image": raw, "label": 0}, {"image": image_node(None, None, 3),
                                                        "label": class_node(3)})  # fmt: skip
    assert colour.schema.shape == (5, 4, 3)
    for number, node in enumerate((
        tensor_node(3, encoding="zlib"), tensor_node(None), tensor_node(3, dtype="string"),
        image_node(5, 4, 1, dtype="float32"), {"text": {}, "pythonClassName": "tfds.Text"},
    )):  # fmt: skip
        keys = ("v", "label")
        with pytest.raises(DataError, match=r"feature 'v' is .*prepare"):
            one(f"odd{number}", {"v": vector, "label": 1}, {"v": node, "label": class_node(3)},
                keys=keys)  # fmt: skip
    short = {"v": tensor_node(4), "label": class_node(3)}
    with pytest.raises(DataError, match=r"has 3 values, its shape is \(4,\)"):
        one("short", {"v": vector, "label": 1}, short)
    with pytest.raises(DataError, match="values outside uint8"):
        one("wide", {"v": np.array([1, 2, 300]), "label": 1},
            {"v": tensor_node(3, dtype="uint8"), "label": class_node(3)})  # fmt: skip
    with pytest.raises(DataError, match="label of row 0 is 7, and there are 3 classes"):
        one("beyond", {"image": raw, "label": 7}, FEATURES)


@pytest.mark.parametrize("kind", KINDS)
def test_other_rows_than_declared(data_dir, kind):
    folder = prepare(data_dir / "zoo/1.0.0", kind=kind)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][1]["shardLengths"][1] = "7"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"00001-of-00002: declares 7 rows and holds 5"):
        open_source("tfds:zoo")
    (folder / f"zoo-train.{kind}-00000-of-00002").unlink()
    with pytest.raises(DataError, match=r"declares 2 shards of 'train'.*00000-of-00002' is not"):
        open_source("tfds:zoo")


def test_parquet_is_refused_with_the_rows_it_lost(data_dir):
    folder = prepare(data_dir / "zoo/1.0.0", {"train": [RECORDS]}, fileFormat="parquet")
    file = folder / "zoo-train.parquet-00000-of-00001"
    pq.write_table(pa.table({"label": [1, 2]}), file)
    with pytest.raises(DataError, match=r"9 rows are declared, 2 are there.*array_record"):
        open_source("tfds:zoo")
    info = json.loads((folder / "dataset_info.json").read_text()) | {"fileFormat": "riegeli"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    file.rename(folder / "zoo-train.riegeli-00000-of-00001")
    with pytest.raises(DataError, match="'riegeli', which is not read"):
        open_source("tfds:zoo")


def test_older_folders_say_less(data_dir):
    folder = prepare(data_dir / "zoo/1.0.0", classes=())
    info = json.loads((folder / "dataset_info.json").read_text())
    del info["fileFormat"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    source = open_source("tfds:zoo")
    np.testing.assert_array_equal(source.read(0, 9)["x"], X)
    assert source.schema.class_names is None


DAMAGED = {  # file, content, words
    "no json": ("dataset_info.json", "{", ["dataset_info.json: damaged"]),
    "nested": ("features.json", "[" * 99_999, ["features.json: damaged"]),
    "list": ("features.json", "[]", ["holds no object"]),
    "no features": ("features.json", "{}", ["is no FeaturesDict"]),
    "text features": ("features.json", '{"featuresDict": {"features": {"a": 1}}}', ["damaged"]),
    "no splits": ("dataset_info.json", '{"name": "zoo"}', ["damaged splits"]),
    "odd splits": ("dataset_info.json", '{"splits": [1]}', ["damaged splits"]),
    "no lengths": ("dataset_info.json", '{"splits": [{"name": "train"}]}', ["damaged splits"]),
    "escape": (
        "dataset_info.json",
        json.dumps({"name": "zoo", "splits": [
            {"name": "train", "shardLengths": [1], "filepathTemplate": "../../../etc/passwd"}]}),
        ["'../../../etc/passwd' is not among"],
    ),
    "many shards": (
        "dataset_info.json",
        json.dumps({"splits": [{"name": "train", "shardLengths": [1] * 100_000}]}),
        ["declares 100000 shards"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_metadata(data_dir, case):
    file, content, words = DAMAGED[case]
    folder = prepare(data_dir / "zoo/1.0.0")
    (folder / file).write_text(content)
    for name in ("tfds:zoo", str(folder)):
        with pytest.raises(DataError) as caught:
            open_source(name)
        for word in (name, *words):
            assert word in str(caught.value)


def test_damaged_metadata_never_escapes_as_another_error(data_dir):
    folder = prepare(data_dir / "zoo/1.0.0", keys=("image", "label"))
    rng = np.random.default_rng(0)
    for file in ("dataset_info.json", "features.json"):
        content = (folder / file).read_bytes()
        for _ in range(100):
            raw = bytearray(content)
            for at in rng.integers(0, len(raw), rng.integers(1, 4)):
                raw[at] = rng.choice(list(b'[]{}":,0123456789azN'))
            (folder / file).write_bytes(bytes(raw))
            try:
                open_source(folder).read(0, 1)
            except JaxpoisonError as error:
                assert str(folder) in str(error)
        (folder / file).write_bytes(content)


def test_no_such_split(data_dir):
    prepare(data_dir / "zoo/1.0.0")
    with pytest.raises(
        DataError, match="no split 'val'; write 'tfds:zoo#test' or 'tfds:zoo#train'"
    ):
        open_source("tfds:zoo#val")
    prepare(data_dir / "one/1.0.0", {"all": [RECORDS]})
    assert len(open_source("tfds:one")) == 9
