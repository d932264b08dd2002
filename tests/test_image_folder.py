"""Folders of images: pixels by documented rules, streamed, and nothing that is hostile gets in."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_files import encoded, png, save_folder
from jaxpoison._check import DataError, NothingToScan, UsageError
from jaxpoison.sources import DropRows, decoded, open_source
from jaxpoison.sources.inspect import inspect
from shared_reads import wrong_reads

Image = pytest.importorskip("PIL.Image", reason="images are read by Pillow (extra images)")

quiet = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def make(n=12, shape=(5, 4), classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.sort(np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)]))
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), y


def names_of(y):
    return [f"class {label}" for label in y]


@quiet
@given(data=st.data())
def test_equal_to_the_same_arrays_as_npz(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("images")
    channels = data.draw(st.sampled_from([(), (3,)]))
    shape = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)), *channels)
    n = data.draw(st.integers(3, 20))
    x, y = make(n, shape, seed=data.draw(st.integers(0, 99)))
    if channels and shape[0] in (1, 3) and min(shape[1:]) > 4:
        return  # looks like channels first in every format
    source = open_source(save_folder(folder / "a", x, names_of(y)))
    np.savez(folder / "a.npz", x=x, y=y)
    assert source.schema == ("images", shape, "uint8", ("class 0", "class 1", "class 2"))
    for _ in range(3):
        start, stop = sorted([data.draw(st.integers(0, n)), data.draw(st.integers(0, n))])
        block = source.read(start, stop)
        np.testing.assert_array_equal(block["x"], x[start:stop])
        np.testing.assert_array_equal(block["y"], y[start:stop])
    assert source.fingerprint() == open_source(folder / "a.npz").fingerprint()


def test_a_second_pass_reads_what_the_first_decoded(tmp_path, monkeypatch):
    x, y = make(40, (6, 6))
    source = open_source(save_folder(tmp_path / "a", x, names_of(y)))
    calls, column = [], source.column
    original = column._decode
    monkeypatch.setattr(column, "_decode", lambda *args: calls.append(1) or original(*args))
    first = inspect(source, block_rows=7)
    assert len(calls) == 40
    again = inspect(source, block_rows=16)
    np.testing.assert_array_equal(source.read(0, 40)["x"], x)
    assert len(calls) == 40 and first.fingerprint == again.fingerprint
    source.close()
    np.testing.assert_array_equal(source.read(3, 9)["x"], x[3:9])
    assert len(calls) == 40


def test_without_room_for_a_temporary_file_every_pass_decodes(tmp_path, monkeypatch):
    x, y = make(10)
    save_folder(tmp_path / "a", x, names_of(y))
    full = open_source(tmp_path / "a")
    monkeypatch.setattr(decoded, "_FREE_SHARE", 1 << 60)
    np.testing.assert_array_equal(full.read(0, 10)["x"], x)
    np.testing.assert_array_equal(full.read(0, 10)["x"], x)
    assert full.column._spill._file is None
    monkeypatch.undo()
    broken = open_source(tmp_path / "a")

    def refuse(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    np.testing.assert_array_equal(broken.read(2, 10)["x"], x[2:])


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    x, y = make(10)
    source = open_source(save_folder(tmp_path / "a", x, names_of(y)))
    source.read(0, 10)
    assert source.column._spill._file is not None
    del source
    assert not list((tmp_path / "tmp").iterdir())


def test_threads_decode_large_images_and_may_share_a_source(tmp_path):
    x, y = make(150, (80, 80, 3))
    source = open_source(save_folder(tmp_path / "a", x, names_of(y)))
    source.column._threads = 3
    assert not wrong_reads(source, x, 4)
    (tmp_path / "a" / "class 2" / "00149.png").write_bytes(png(x[149])[:-2000])
    damaged = open_source(tmp_path / "a")
    damaged.column._threads = 3
    with pytest.raises(DataError, match=r"00149\.png.*truncated"):
        damaged.read(100, 150)


def test_splits_nested_folders_and_files_that_are_no_images(tmp_path):
    x, y = make(9)
    for split in ("train", "test"):
        save_folder(tmp_path / split, x, names_of(y))
    save_folder(tmp_path / "train/class 0", x[:2], ["b/deep", "b/deep"])
    (tmp_path / "train/class 1/Thumbs.db").write_text("no image")
    (tmp_path / "train/class 1/.x.png").write_text("half written")
    (tmp_path / "train/.git").mkdir()
    (tmp_path / "train/README.md").write_text("words")
    plain = open_source(f"{tmp_path}#test")
    np.testing.assert_array_equal(plain.read(0, 9)["x"], x)
    assert plain.fingerprint() == open_source(f"images:{tmp_path}#test").fingerprint()
    zeros = int((y == 0).sum())
    train = open_source(f"{tmp_path}#train")
    assert train.labels().tolist() == [0, 0, *y]
    np.testing.assert_array_equal(
        train.read(0, 11)["x"], np.concatenate([x[:zeros], x[:2], x[zeros:]])
    )
    with pytest.raises(DataError, match=r"named like splits.*#test.*#train"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=r"no folder 'val'; it holds 'test', 'train'"):
        open_source(f"{tmp_path}#val")
    with pytest.raises(DataError, match="no folder"):
        open_source(f"images:{tmp_path / 'train'}#..")


def test_images_without_classes_and_labels_apart(tmp_path):
    x, y = make(6)
    (tmp_path / "flat").mkdir()
    for row, array in enumerate(x):
        (tmp_path / f"flat/{row}.png").write_bytes(png(array))
    source = open_source(f"images:{tmp_path}/flat", y)
    np.testing.assert_array_equal(source.read(0, 6)["x"], x)
    np.testing.assert_array_equal(source.labels(), y)
    assert open_source(f"images:{tmp_path}/flat", role="features").labels() is None
    with pytest.raises(DataError, match=r"no folder of a class.*labels="):
        open_source(f"images:{tmp_path}/flat")
    save_folder(tmp_path / "a", x, names_of(y))
    named = open_source(tmp_path / "a", y[::-1].copy())
    assert named.labels().tolist() == y[::-1].tolist() and named.schema.class_names is None
    kept = DropRows(open_source(tmp_path / "a"), np.array([0, 3]))
    np.testing.assert_array_equal(kept.read(0, 4)["x"], x[[1, 2, 4, 5]])


def test_several_sizes_need_a_size_to_resize_to(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((6, 6), (6, 6), (12, 8))]
    for row, (array, name) in enumerate(zip(arrays, "aab", strict=True)):
        path = tmp_path / "set" / name / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(array))
    with pytest.raises(DataError) as caught:
        open_source(tmp_path / "set")
    for word in ("a/0.png is 6 x 6", "b/2.png is 12 x 8", f"images:{tmp_path}/set@6x6"):
        assert word in str(caught.value)
    source = open_source(f"images:{tmp_path}/set@6x4")
    expected = [
        np.asarray(Image.fromarray(a).resize((4, 6), Image.Resampling.BILINEAR)) for a in arrays
    ]
    np.testing.assert_array_equal(source.read(0, 3)["x"], np.stack(expected))
    flat = np.full((64, 64), 255, np.uint8)
    flat[::2] = 0  # stripes: without antialiasing they would come out black or white
    (tmp_path / "set/a/0.png").write_bytes(png(flat))
    small = open_source(f"images:{tmp_path}/set@4x4").read(0, 1)["x"]
    assert np.abs(small.astype(int) - 127).max() < 12
    with pytest.raises(UsageError, match="1 to 4096"):
        open_source(f"images:{tmp_path}/set@0x6")
    with pytest.raises(DataError, match="no such file"):
        open_source(f"images:{tmp_path}/sets@6x6")


def test_links_and_special_files(tmp_path):
    x, y = make(6)
    folder = save_folder(tmp_path / "a", x, names_of(y))
    (tmp_path / "secret.png").write_bytes(png(x[0]))
    inside, outside = folder / "class 0/in.png", folder / "class 0/out.png"
    inside.symlink_to(folder / "class 0" / sorted(os.listdir(folder / "class 0"))[0])
    assert len(open_source(folder)) == 7
    outside.symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"class 0/out\.png: is a link"):
        open_source(folder)
    outside.unlink()
    (folder / "class 1/loop").symlink_to(folder)
    with pytest.raises(DataError, match="class 1/loop: is a link"):
        open_source(folder)
    (folder / "class 1/loop").unlink()
    (folder / "class 9").symlink_to(tmp_path)
    with pytest.raises(DataError, match="class 9: is a link"):
        open_source(folder)
    (folder / "class 9").unlink()
    os.mkfifo(folder / "class 0/pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: is no regular file"):
        open_source(folder)
    (folder / "class 0/pipe.png").unlink()
    (folder / "class 0/gone.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png: is no regular file"):
        open_source(folder)


def test_folders_that_are_no_classes(tmp_path):
    x, y = make(6)
    folder = save_folder(tmp_path / "a", x, names_of(y))
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="'empty' holds no images"):
        open_source(folder)
    (folder / "empty").rmdir()
    (folder / "loose.png").write_bytes(png(x[0]))
    with pytest.raises(DataError, match=r"1 images lie beside .* 'loose\.png'"):
        open_source(folder)
    (folder / "loose.png").unlink()
    (folder / "class 0/scan.tiff").write_bytes(b"II")
    with pytest.raises(DataError, match=r"end in \.tiff are not read"):
        open_source(folder)
    (folder / "class 0/scan.tiff").unlink()
    deep = folder / "class 0" / "/".join("abcdefghijkl")
    deep.mkdir(parents=True)
    with pytest.raises(DataError, match="folders deep"):
        open_source(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no folder of a class"):
        open_source(f"images:{tmp_path}/none")
    with pytest.raises(NothingToScan, match="no images"):
        open_source(f"images:{tmp_path}/none", role="features")
    with pytest.raises(DataError, match="is no folder and no archive"):
        np.save(tmp_path / "a.npy", x)
        open_source(f"images:{tmp_path}/a.npy")


def test_archives_beside_the_folders(tmp_path):
    x, y = make(6)
    folder = save_folder(tmp_path / "a", x, names_of(y))
    (folder / "images.tar.gz").write_bytes(b"what the folders came in")
    assert len(open_source(folder)) == 6
    (folder / "shard-0.tar").write_bytes(bytes(1024))
    with pytest.raises(DataError, match=r"folders of images and the archive 'shard-0\.tar'"):
        open_source(folder)
    (folder / "shard-0.tar").unlink()
    np.savez(folder / "shard-0.npz", x=x[:2], y=y[:2])
    assert len(open_source(folder)) == 2 and len(open_source(f"images:{folder}")) == 6


def test_names_are_escaped_and_must_be_text(tmp_path):
    x, _ = make(3)
    save_folder(tmp_path / "a", x, ["\x1b[31mred", "<b>", "ok"])
    assert open_source(tmp_path / "a").schema.class_names == ("\x1b[31mred", "<b>", "ok")
    (tmp_path / "a/<b>/broken\x1b[2J.png").write_bytes(b"no image at all")
    with pytest.raises(DataError) as caught:
        open_source(tmp_path / "a")
    assert "\x1b" not in str(caught.value).replace(str(tmp_path), "")
    os.rename(os.fsencode(tmp_path / "a/ok"), os.fsencode(tmp_path / "a") + b"/\xff\xfe")
    (tmp_path / "a/<b>/broken\x1b[2J.png").unlink()
    with pytest.raises(DataError, match="no UTF-8"):
        open_source(tmp_path / "a")


def test_a_file_changed_while_open_is_an_error(tmp_path):
    x, y = make(6)
    folder = save_folder(tmp_path / "a", x, names_of(y))
    victim = sorted(folder.rglob("*.png"))[2]
    source = open_source(folder)
    victim.write_bytes(png(make(1, (20, 20), 1)[0][0]))
    with pytest.raises(DataError, match="was another when the data was opened"):
        source.read(0, 6)
    victim.write_bytes(b"")
    with pytest.raises(DataError, match="truncated"):
        source.read(0, 6)
    victim.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        source.read(0, 6)
    np.testing.assert_array_equal(source.read(3, 6)["x"], x[3:])


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    x, y = make(3)
    save_folder(tmp_path / "a", x, names_of(y))
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UsageError, match=r"pip install 'jaxpoison\[images\]'"):
        open_source(tmp_path / "a")


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read there")
def test_images_are_never_all_in_memory(tmp_path):
    """In a process of its own; its peak is read from /proc, where no parent's is handed down."""
    code = """
        import sys
        from jaxpoison.sources import open_source
        def peak():
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10
        source = open_source(sys.argv[1])
        source.read(0, 8)
        before = peak()
        for _ in range(2):
            for start in range(0, len(source), 64):
                source.read(start, min(start + 64, len(source)))
        print(peak() - before)
    """
    folder = tmp_path / "a/c"
    folder.mkdir(parents=True)
    for row in range(16):
        raw = encoded(Image.new("RGB", (256, 256), (row, row, row)), "BMP")
        (folder / f"{row}.bmp").write_bytes(raw)
        for copy in range(1, 50):
            os.link(folder / f"{row}.bmp", folder / f"{row}-{copy}.bmp")
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a")],
        capture_output=True, text=True, check=True, cwd=root,
    )  # fmt: skip
    assert int(done.stdout) < 70, "800 images of 192 KB: 150 MB, of which 12 MB are read at a time"
