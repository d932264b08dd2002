"""TFRecord and ArrayRecord files: the same rows as an .npz, checksums compared, layouts named."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_files import (
    crc32c,
    example,
    feature,
    field,
    frame,
    masked,
    png,
    varint,
    write_array_record,
    write_tfrecord,
)
from jaxpoison._check import DataError, JaxpoisonError, NothingToScan, UsageError
from jaxpoison.sources import is_embedding, open_source, tfrecord
from jaxpoison.sources.example import floats, integers, parse
from jaxpoison.sources.inspect import inspect

pytest.importorskip("PIL.Image", reason="images are read by Pillow (extra images)")
HAS_ARRAY_RECORD = importlib.util.find_spec("array_record") is not None
KINDS = ["tfrecord", *(["array_record"] if HAS_ARRAY_RECORD else [])]
needs_array_record = pytest.mark.skipif(
    not HAS_ARRAY_RECORD, reason="ArrayRecord files are read by array_record (extra tfds)"
)
quiet = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
X = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
Y = np.array([2, 0, 1, 1, 0, 2])
RECORDS = [example({"image": png(x), "label": int(y)}) for x, y in zip(X, Y, strict=True)]


def write(path, records, kind="tfrecord"):
    (write_tfrecord if kind == "tfrecord" else write_array_record)(path, records)
    return path


@quiet
@given(data=st.data())
def test_equal_to_the_same_arrays_as_npz(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("records")
    kind, n = data.draw(st.sampled_from(KINDS)), data.draw(st.integers(1, 25))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    y, is_image = rng.integers(0, 1000, n), data.draw(st.booleans())
    packed, shards = data.draw(st.booleans()), data.draw(st.integers(1, 3))
    if is_image:
        x = rng.integers(0, 256, (n, 3, 4), dtype=np.uint8)
        rows = [{"image/encoded": png(a), "image/class/label": int(b), "image/format": "png"}
                for a, b in zip(x, y, strict=True)]  # fmt: skip
    else:
        x = rng.normal(size=(n, 7)).astype(np.float32)
        rows = [{"id": k, "features": a, "y": int(y[k]), "text": "é"} for k, a in enumerate(x)]
    (folder / "set").mkdir()
    for shard, part in enumerate(np.array_split(np.arange(n), shards)):
        name = f"a.{kind}-{shard:05d}-of-{shards:05d}"
        write(folder / "set" / name, [example(rows[row], packed) for row in part], kind)
    source = open_source(folder / "set")
    for _ in range(3):
        start, stop = sorted([data.draw(st.integers(0, n)), data.draw(st.integers(0, n))])
        block = source.read(start, stop)
        np.testing.assert_array_equal(block["x"], x[start:stop])
        np.testing.assert_array_equal(block["y"], y[start:stop])
    np.savez(folder / "a.npz", x=x, y=y)
    assert source.fingerprint() == open_source(folder / "a.npz").fingerprint()
    assert inspect(source, block_rows=4).fingerprint == source.fingerprint()
    assert open_source(folder / "set", role="features").labels() is None
    source.close()
    np.testing.assert_array_equal(source.read(0, n)["x"], x)


@quiet
@given(lengths=st.lists(st.integers(0, 1100), max_size=6), seed=st.integers(0, 99))
def test_checksums_are_those_of_the_definition(lengths, seed):
    rng = np.random.default_rng(seed)
    records = [rng.bytes(length) for length in lengths]
    assert tfrecord.crc32c(records) == [crc32c(record) for record in records]


def test_checksums_of_known_strings():
    known = {b"123456789": 0xE3069283, bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43, b"": 0}
    assert tfrecord.crc32c(list(known)) == list(known.values())


@quiet
@given(
    numbers=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9),
    values=st.lists(st.floats(width=32, allow_nan=False), max_size=9),
    texts=st.lists(st.binary(max_size=9), min_size=1, max_size=4),
    packed=st.booleans(),
)
def test_features_are_parsed(numbers, values, texts, packed):
    record = example(
        {"n": np.array(numbers, np.int64), "f": np.float32(values), "b": texts}, packed
    )
    found = parse(record, "r")
    assert integers(record, found["n"]).tolist() == numbers
    np.testing.assert_array_equal(floats(record, found["f"]), np.float32(values))
    assert [record[start:stop] for start, stop in found["b"].spans] == texts


def test_batches_of_a_long_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecord, "_BATCH_BYTES", 500)
    source = open_source(write(tmp_path / "a.tfrecord", RECORDS * 5))
    np.testing.assert_array_equal(source.read(7, 30)["x"], np.concatenate([X] * 5)[7:])


@pytest.mark.parametrize(("name", "is_so"), [("embedding", True), ("other", True), ("x", False)])
def test_lists_are_embeddings_but_for_raw_names(tmp_path, name, is_so):
    """As in every other format, or one data set would be scanned in two ways."""
    records = [example({name: np.arange(3, dtype=np.float32), "label": k}) for k in (0, 1)]
    assert is_embedding(open_source(str(write(tmp_path / "a.tfrecord", records)))) is is_so
    images = open_source(str(write(tmp_path / "b.tfrecord", RECORDS)))
    assert not is_embedding(images)


def test_text_labels_and_unsorted_shards(tmp_path):
    names = ["dog", "cat", "ape"]
    for shard, row in enumerate((0, 1, 2)):
        record = example({"image": png(X[row]), "label": names[row]})
        write(tmp_path / f"s.tfrecord-{shard:05d}-of-00003", [record])
    source = open_source(tmp_path)
    assert source.schema.class_names == ("ape", "cat", "dog")
    assert source.labels().tolist() == [2, 1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_splits_and_missing_shards(tmp_path, kind):
    for split, count in (("train", 3), ("test", 1)):
        for shard in range(count):
            part = RECORDS[2 * shard : 2 * shard + 2]
            write(tmp_path / f"set-{split}.{kind}-{shard:05d}-of-{count:05d}", part, kind)
    (tmp_path / "features.txt").write_text("no shard")
    train = open_source(f"{tmp_path}#train")
    np.testing.assert_array_equal(train.read(0, 6)["x"], X)
    assert len(open_source(f"{tmp_path}#set-test")) == 2
    assert open_source(f"images:{tmp_path}@8x8#test").schema.shape == (8, 8)
    with pytest.raises(DataError, match=r"2 data sets.*#set-test' or '.*#set-train'"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=r"no shards of 'rain'"):
        open_source(f"{tmp_path}#rain")
    (tmp_path / f"set-train.{kind}-00001-of-00003").unlink()
    with pytest.raises(DataError, match=r"shards are missing.*there are 3 \(no 1\)"):
        open_source(f"{tmp_path}#train")
    with pytest.raises(UsageError, match="a split of a folder"):
        open_source(f"{tmp_path}/set-test.{kind}-00000-of-00001#test")
    other = "tfrecord" if kind == "array_record" else "array_record"
    (tmp_path / f"b.{other}").write_bytes(b"x")
    with pytest.raises(DataError, match="mixes formats"):
        open_source(f"{tmp_path}#train")
    (tmp_path / f"b.{other}").unlink()
    np.savez(tmp_path / "b.npz", x=X, y=Y)
    with pytest.raises(DataError, match=r"mixes formats .*'b\.npz'"):
        open_source(f"{tmp_path}#train")


ONE = frame(RECORDS[0])


def flipped(raw, at):
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def lead(size):
    raw = struct.pack("<Q", size)
    return raw + struct.pack("<I", masked(raw))


def record(**values):
    return frame(example(values))


def entries(*raws):
    return frame(field(1, b"".join(field(1, raw) for raw in raws)))


KEY, IMAGE = field(1, b"image"), field(2, feature(png(X[0])))
LABEL = field(1, b"label") + field(2, feature(1))
DAMAGED = {  # content, words of the message
    "no frames": (b"hello, I am no record", ["record 0", "checksum of its length"]),
    "cut lead": (ONE + b"\1\2\3", ["record 1", "ends 9 bytes early"]),
    "cut data": (ONE[:-9], ["record 0", "bytes early"]),
    "length": (flipped(ONE, 1), ["checksum of its length"]),
    "data": (ONE + flipped(ONE, 40), ["record 1", "its checksum differs"]),
    "checksum": (flipped(ONE, len(ONE) - 1), ["its checksum differs"]),
    "huge": (lead(1 << 60), ["record 0", f"holds {1 << 60} bytes"]),
    "long": (lead(1 << 20), ["bytes early"]),
    "gzip": (gzip.compress(ONE), ["compressed with gzip"]),
    "no example": (frame(b"plain text"), ["record 0", "no tf.train.Example", "np.savez"]),
    "empty record": (frame(b""), ["no image called", "no features"]),
    "other message": (frame(field(3, b"x")), ["no tf.train.Example"]),
    "two messages": (frame(example({"image": png(X[0])}) * 2), ["no tf.train.Example"]),
    "twice": (entries(KEY + IMAGE, KEY + IMAGE, LABEL), ["'image' occurs twice"]),
    "two names": (entries(KEY + KEY + IMAGE, LABEL), ["two names"]),
    "two values": (entries(KEY + IMAGE + IMAGE, LABEL), ["two values"]),
    "two kinds": (entries(KEY + field(2, feature(b"x") + feature(1)), LABEL), ["several kinds"]),
    "no utf-8": (entries(field(1, b"\xff") + IMAGE, LABEL), ["no tf.train.Example"]),
    "leaves": (frame(b"\x0a\xff\x01x"), ["leaves its message"]),
    "endless": (frame(b"\xff" * 20), ["cut or too long"]),
    "group": (frame(varint(1 << 3 | 3)), ["wire type 3"]),
    "no image": (record(a=1, label=1), ["image/encoded", "'a: int64', 'label: int64'"]),
    "two lists": (record(a=[1.5], b=[2.5], label=1), ["no list of floats", "'a: float'"]),
    "no label": (record(image=png(X[0]), id=7), ["no label", "'id: int64', 'image: bytes'"]),
    "two images": (record(image=[png(X[0])] * 2, label=1), ["'image' has 2 values"]),
    "two labels": (record(image=png(X[0]), label=np.array([1, 2])), ["'label' has 2 values"]),
    "negative": (record(image=png(X[0]), label=-1), ["row 0 is -1"]),
    "raw pixels": (record(image=X[0].tobytes(), label=1), ["no PNG"]),
    "lacking": (ONE + record(label=1), ["record 1", "no feature 'image'", "'label: int64'"]),
    "unlike": (
        record(x=[1.0, 2.0], label=1) + record(x=[1.0], label=1),
        ["record 1", "has shape (1,), others have (2,)"],
    ),
    "kinds of label": (ONE + record(image=png(X[0]), label="cat"), ["1 of 2 labels are text"]),
    "sizes": (
        ONE + record(image=png(X[0, :3]), label=1),
        ["record 0 is 5 x 4", "record 1 is 3 x 4", "@5x4"],
    ),
    "cut number": (
        entries(KEY + IMAGE, field(1, b"label") + field(2, field(3, field(1, b"\xff")))),
        ["'label': damaged"],
    ),
    "cut float": (
        entries(field(1, b"x") + field(2, field(2, field(1, b"abc"))), LABEL),
        ["'x': damaged"],
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_and_unknown_layouts(tmp_path, case):
    raw, words = DAMAGED[case]
    (tmp_path / "a.tfrecord").write_bytes(raw)
    with pytest.raises(DataError) as caught:
        source = open_source(tmp_path / "a.tfrecord")
        source.read(0, len(source))
    for word in (f"{tmp_path}/a.tfrecord", *words):
        assert word in str(caught.value)


@needs_array_record
def test_damaged_array_records(tmp_path):
    path = write(tmp_path / "a.array_record", RECORDS * 20, "array_record")
    raw = path.read_bytes()
    middle = flipped(raw, len(RECORDS[0]) + 100)
    for content in (b"garbage" * 20_000, b"short", raw[: len(raw) // 2], raw[:-100], middle):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.array_record.*(damaged|no ArrayRecord)"):
            source = open_source(path)
            source.read(0, len(source))
    write(path, [b"plain text"], "array_record")
    with pytest.raises(DataError, match=r"record 0: is no tf\.train\.Example"):
        open_source(path)


@pytest.mark.parametrize("kind", KINDS)
def test_no_records(tmp_path, kind):
    path = tmp_path / f"a.{kind}-00000-of-00002"
    write(path, [], kind)
    if path.stat().st_size:
        with pytest.raises(NothingToScan, match="no records"):
            open_source(path)
    write(tmp_path / f"a.{kind}-00001-of-00002", RECORDS, kind)
    assert len(open_source(tmp_path)) == 6  # writers leave empty shards behind


def test_without_array_record_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.array_record").write_bytes(bytes(100))
    module = "array_record.python.array_record_module"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"pip install 'jaxpoison\[tfds\]'"):
        open_source(tmp_path / "a.array_record")


def test_a_file_cut_while_open_is_an_error(tmp_path):
    path = write(tmp_path / "a.tfrecord", RECORDS)
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"a\.tfrecord: record \d: truncated"):
        source.read(0, 6)


def test_damaged_bytes_never_escape_as_another_error(tmp_path):
    rng, path, refused = np.random.default_rng(0), tmp_path / "a.tfrecord", 0
    for round_ in range(200):
        records = list(RECORDS[:2])
        raw = bytearray(records[round_ % 2])
        for at in rng.integers(0, len(raw), rng.integers(1, 5)):
            raw[at] = rng.integers(0, 256)
        records[round_ % 2] = bytes(raw[: rng.integers(1, 2 * len(raw))])
        write(path, records)  # with right checksums: what lies inside is damaged
        try:
            open_source(path).read(0, 2)
        except JaxpoisonError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 100
