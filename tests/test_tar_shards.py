"""Tar archives: samples where they lie, the same rows as an .npz, and hostile members refused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_files import png, tar_bytes
from jaxpoison._check import DataError, JaxpoisonError, NothingToScan, UsageError
from jaxpoison.sources import open_source
from jaxpoison.sources.inspect import inspect

pytest.importorskip("PIL.Image", reason="images are read by Pillow (extra images)")

quiet = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
X = np.random.default_rng(0).integers(0, 256, (6, 5, 5), dtype=np.uint8)
Y = np.array([2, 0, 1, 1, 0, 2])
PNGS = [png(array) for array in X]


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def samples(rows=range(6)):
    """``KEY.png`` and ``KEY.cls`` of some rows."""
    out = []
    for row in rows:
        out += [(f"{row:06d}.png", PNGS[row]), (f"{row:06d}.cls", str(Y[row]).encode())]
    return out


def write(path, members, **options):
    path.write_bytes(tar_bytes(members, **options))
    return path


@quiet
@given(data=st.data())
def test_equal_to_the_same_arrays_as_npz(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("tar")
    n, count = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    kind = data.draw(st.sampled_from(["png", "npy", "npy-images"]))
    shape, dtype = {"png": ((4, 6), "u1"), "npy": ((5,), ">f4"), "npy-images": ((2, 3), "u1")}[kind]
    x = rng.integers(0, 256, (n, *shape)).astype(dtype)
    y = rng.integers(0, 4, n)
    label = data.draw(st.sampled_from(["cls", "json"]))
    form = data.draw(
        st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    )
    (folder / "set").mkdir()
    for shard, rows in enumerate(np.array_split(np.arange(n), count)):
        members = []
        for row in rows:
            key = f"{'deep/' * 40}{row:06d}" if form != tarfile.USTAR_FORMAT else f"{row:06d}"
            value = np.asfortranarray(x[row]) if row % 2 else x[row]
            raw = png(x[row]) if kind == "png" else npy(value)
            text = str(y[row]) if label == "cls" else json.dumps({"id": 1, "label": int(y[row])})
            members += [(f"./{key}.{label}", text.encode()), (f"./{key}.{kind[:3]}", raw)]
        write(folder / f"set/shard-{shard:06d}.tar", members, format=form)
    source = open_source(folder / "set")
    for _ in range(3):
        start, stop = sorted([data.draw(st.integers(0, n)), data.draw(st.integers(0, n))])
        block = source.read(start, stop)
        np.testing.assert_array_equal(block["x"], x[start:stop])
        np.testing.assert_array_equal(block["y"], y[start:stop])
    np.savez(folder / "a.npz", x=x, y=y)
    assert source.fingerprint() == open_source(folder / "a.npz").fingerprint()
    assert inspect(source, block_rows=3).fingerprint == source.fingerprint()


def test_classes_by_folder_and_by_text(tmp_path):
    names = np.array(["ape", "cat", "dog"])[Y]
    by_folder = [(f"set/{name}/img.v1.{row}.png", PNGS[row]) for row, name in enumerate(names)]
    by_text = []
    for row, name in enumerate(names):
        by_text += [(f"{row}.png", PNGS[row]), (f"{row}.cls", f"{name}\n".encode())]
    sources = [
        open_source(write(tmp_path / "a.tar", by_folder)),
        open_source(write(tmp_path / "b.tar", by_text)),
    ]
    for source in sources:
        assert source.schema.class_names == ("ape", "cat", "dog")
        assert source.labels().tolist() == Y.tolist()
        np.testing.assert_array_equal(source.read(1, 6)["x"], X[1:])
    assert len({source.fingerprint() for source in sources}) == 1


def test_labels_apart_and_members_that_are_no_rows(tmp_path):
    extra = [("README.txt", b"words"), ("._0.png", b"mac"), ("meta/", b""), ("0.txt", b"caption")]
    members = [(f"{row}.png", raw) for row, raw in enumerate(PNGS)]
    folder = tarfile.TarInfo("empty")
    folder.type = tarfile.DIRTYPE
    path = write(tmp_path / "a.tar", [*extra[:2], (folder, b""), extra[3], *members])
    source = open_source(path, Y)
    np.testing.assert_array_equal(source.read(0, 6)["x"], X)
    assert source.labels().tolist() == Y.tolist()
    assert open_source(path, role="features").labels() is None
    with pytest.raises(DataError, match=r"member '0\.png' has no label.*labels="):
        open_source(path)
    with pytest.raises(NothingToScan, match="no images"):
        open_source(write(tmp_path / "b.tar", extra[:2]))


def test_resized_mixed_and_split(tmp_path):
    colour = np.random.default_rng(1).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    (tmp_path / "set").mkdir()
    write(tmp_path / "set/train-0.tar", samples(range(3)))
    write(tmp_path / "set/train-1.tar", [("9.png", png(colour)), ("9.cls", b"1")])
    write(tmp_path / "set/test-0.tar", samples(range(4, 6)))
    train = open_source(f"{tmp_path}/set#train")
    assert train.schema.shape == (5, 5, 3) and len(train) == 4
    np.testing.assert_array_equal(train.read(3, 4)["x"][0], colour)
    np.testing.assert_array_equal(train.read(0, 3)["x"][..., 2], X[:3])
    assert open_source(f"{tmp_path}/set#test").schema.shape == (5, 5)
    assert open_source(f"images:{tmp_path}/set@8x9#test").schema.shape == (8, 9)
    with pytest.raises(DataError, match=r"2 data sets.*set#test' or '.*set#train'"):
        open_source(tmp_path / "set")
    with pytest.raises(DataError, match="no shards of 'val'"):
        open_source(f"{tmp_path}/set#val")
    with pytest.raises(UsageError, match="'#train' chooses a split of a folder"):
        open_source(f"{tmp_path}/set/train-0.tar#train")
    large = [("0.png", png(np.zeros((9, 9), np.uint8))), ("0.cls", b"0")]
    write(tmp_path / "set/train-2.tar", large)
    with pytest.raises(DataError, match=r"'000000\.png' is 5 x 5, .*'0\.png' is 9 x 9.*@5x5#train"):
        open_source(f"{tmp_path}/set#train")


def special(name, kind, target="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def lying(size, name="0.png", kind=tarfile.REGTYPE, headers=None):
    """An archive whose first header declares another size than is there."""
    info = special(name, kind, size=size if headers is None else 0)
    info.pax_headers = headers or {}
    header = info.tobuf(tarfile.GNU_FORMAT if headers is None else tarfile.PAX_FORMAT)
    return header + PNGS[0] + bytes(-len(PNGS[0]) % 512) + bytes(1024)


ONE, ONE_CLS = samples([0]), ("cls", b"1")
GOOD = tar_bytes(samples())
HOSTILE = {  # content, words of the message
    "symlink": (tar_bytes([*ONE, (special("1.png", b"2", "/etc/passwd"), b"")]), ["1.png", "link"]),
    "hard link": (tar_bytes([*ONE, (special("1.png", b"1", "000000.png"), b"")]), ["is a link"]),
    "device": (tar_bytes([*ONE, (special("1.png", tarfile.CHRTYPE), b"")]), ["device"]),
    "pipe": (tar_bytes([*ONE, (special("1.png", tarfile.FIFOTYPE), b"")]), ["special file"]),
    "absolute": (tar_bytes([*ONE, ("/etc/1.png", PNGS[1])]), ["'/etc/1.png' leads out"]),
    "parents": (tar_bytes([*ONE, ("a/../../1.png", PNGS[1])]), ["leads out"]),
    "twice": (tar_bytes([*ONE, ("000000.png", PNGS[1])]), ["'000000.png' occurs twice"]),
    "twice, other spelling": (tar_bytes([*ONE, ("./000000.png", PNGS[1])]), ["occurs twice"]),
    "two images of a key": (tar_bytes([*ONE, ("000000.jpg", PNGS[1])]), ["'000000' has two"]),
    "two labels of a key": (tar_bytes([*ONE, ("000000.json", b'{"label": 1}')]), ["has two"]),
    "label alone": (tar_bytes([*ONE, ("7.cls", b"1")]), ["'7' has a label and no image"]),
    "no label": (tar_bytes([*ONE, ("7.png", PNGS[1])]), ["'7.png' has no label"]),
    "pickle": (tar_bytes([*ONE, ("000000.pyd", b"\x80\x04N.")]), ["is a pickle", "runs code"]),
    "torch": (tar_bytes([*ONE, ("000000.pth", b"x")]), ["is a pickle"]),
    "other images": (tar_bytes([*ONE, ("7.gif", b"GIF89a")]), ["end in .gif are not read"]),
    "huge label": (tar_bytes([("0.png", PNGS[0]), ("0.cls", b"1" * 5000)]), ["holds 5000 bytes"]),
    "empty label": (tar_bytes([("0.png", PNGS[0]), ("0.cls", b"")]), ["holds 0 bytes"]),
    "negative label": (tar_bytes([("0.png", PNGS[0]), ("0.cls", b"-1")]), ["row 0 is -1"]),
    "overlarge": (tar_bytes([("0.png", PNGS[0]), ("0.cls", b"9" * 19)]), ["too large"]),
    "binary label": (tar_bytes([("0.png", PNGS[0]), ("0.cls", b"\xff\xfe")]), ["is no label"]),
    "json nest": (tar_bytes([("0.png", PNGS[0]), ("0.json", b"[" * 90_000)]), ["is no label"]),
    "json float": (tar_bytes([("0.png", PNGS[0]), ("0.json", b'{"label": 1.5}')]), ["no integer"]),
    "json other": (tar_bytes([("0.png", PNGS[0]), ("0.json", b'{"cap": 1}')]), ["'cap'"]),
    "json list": (tar_bytes([("0.png", PNGS[0]), ("0.json", b"[1]")]), ["it holds nothing"]),
    "kinds of label": (
        tar_bytes([*ONE, ("1.png", PNGS[1]), ("1.cls", b"cat")]),
        ["'2' is a number, others are text"],
    ),
    "mixed": (tar_bytes([*ONE, ("1.npy", npy(X[1])), ("1.cls", b"1")]), ["arrays and images"]),
    "no png": (tar_bytes([("0.png", b"nothing"), ("0.cls", b"1")]), ["'0.png'", "no PNG"]),
    "no npy": (tar_bytes([("0.npy", b"nothing"), ("0.cls", b"1")]), ["'0.npy'", "npy signature"]),
    "objects": (
        tar_bytes([("0.npy", npy(np.array([{}, 1], object))), ("0.cls", b"1")]),
        ["object dtype", "never loaded"],
    ),
    "huge npy": (
        tar_bytes([("0.npy", npy(np.zeros(4)).replace(b"(4,)", b"(9,)")), ("0.cls", b"1")]),
        ["'0.npy'", "shape '(9,)'", "72 bytes", "holds 32"],
    ),
    "unlike npy": (
        tar_bytes([(f"{i}.{e}", r) for i in (0, 1) for e, r in (("npy", npy(X[i, i:])), ONE_CLS)]),
        ["'1.npy'", "(4, 5)", "(5, 5)"],
    ),
    "huge member": (lying(1 << 33), ["declares 8589934592 bytes"]),
    "huge name": (lying(1 << 33, kind=b"L"), ["bytes, at most"]),
    "huge pax header": (lying(1 << 33, kind=b"x"), ["bytes, at most"]),
    "huge sparse map": (lying(1 << 33, kind=b"S"), ["special file"]),
    "negative member": (lying(-5120), ["declares -5120 bytes"]),
    "negative pax size": (lying(0, headers={"size": "-1536"}), ["-1536"]),
    "negative name": (lying(-512, kind=b"L"), ["bytes, at most"]),
    "negative and no file": (lying(-5120, kind=b"Z"), ["declares -5120 bytes"]),
    "compressed": (gzip.compress(GOOD), ["no tar archive, or a compressed one"]),
    "cut in a member": (GOOD[:700], ["truncated archive"]),
    "cut between members": (GOOD[:1024], ["truncated: the end of the archive is missing"]),
    "cut in a header": (GOOD[:1200], ["truncated"]),
    "data behind the end": (GOOD + tar_bytes(ONE), ["data behind its last member"]),
    "damaged header": (GOOD[:1024] + b"\xff" * 512 + GOOD[1536:], ["damaged header"]),
    "no archive": (b"hello" * 500, ["no tar archive"]),
    "not utf-8": (tar_bytes([("0\udcff.png", PNGS[0])]), ["no UTF-8"]),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused(tmp_path, case):
    raw, words = HOSTILE[case]
    (tmp_path / "a.tar").write_bytes(raw)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path / "a.tar").read(0, 1)
    for word in (f"{tmp_path}/a.tar", *words):
        assert word in str(caught.value)


def test_compressed_archives_are_named(tmp_path):
    for name in ("a.tar.gz", "a.tgz", "a.tar.zst"):
        (tmp_path / name).write_bytes(gzip.compress(GOOD))
        with pytest.raises(DataError, match="give it uncompressed"):
            open_source(tmp_path / name)


def test_a_large_member_is_refused(tmp_path, monkeypatch):
    from jaxpoison.sources import spans

    monkeypatch.setattr(spans, "MAX_RECORD_BYTES", 50)
    with pytest.raises(DataError, match=r"'000000\.png': holds \d+ bytes; a record has 1 to 50"):
        open_source(write(tmp_path / "a.tar", samples()))


def test_damaged_bytes_never_escape_as_another_error(tmp_path):
    rng = np.random.default_rng(0)
    path, refused = tmp_path / "a.tar", 0
    for round_ in range(200):
        raw = bytearray(GOOD)
        # Headers are where an archive is hurt most.
        for at in rng.integers(0, len(raw) if round_ % 2 else 512, rng.integers(1, 6)):
            raw[at] = rng.integers(0, 256)
        path.write_bytes(bytes(raw[: rng.integers(1, 2 * len(raw))]))
        try:
            open_source(path).read(0, 1)
        except JaxpoisonError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 100


def test_an_image_that_is_no_longer_there(tmp_path):
    path = write(tmp_path / "a.tar", samples())
    source = open_source(path)
    path.write_bytes(GOOD[:2000])
    with pytest.raises(DataError, match=r"member '00000\d\.png': truncated"):
        source.read(0, 6)
