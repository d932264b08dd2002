"""Bad input gets an error that names the file, the value that was seen and the next step."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxpoison._check import DataError, JaxpoisonError, NothingToScan, UsageError
from jaxpoison.sources import open_source, require_labels
from jaxpoison.sources.arrow import label_codes

X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.array([0, 1, 2, 0, 1, 2])
IMAGES = np.zeros((6, 4, 4), np.uint8)

ARRAYS = [  # x, y, error, words the message must hold
    (X.reshape(-1), Y, DataError, ["shape (12,)", "reshape"]),
    (X.reshape(6, 2, 1), Y, DataError, ["float32", "uint8", "* 255", "reshape(len(x), -1)"]),
    (IMAGES.astype(np.int64), Y, DataError, ["int64", "0..255", "astype(np.uint8)"]),
    (np.zeros((6, 3, 8, 8), np.uint8), Y, DataError, ["(6, 3, 8, 8)", "transpose(0, 2, 3, 1)"]),
    (np.zeros((6, 1, 1, 1, 1), np.uint8), Y, DataError, ["(6, 1, 1, 1, 1)"]),
    (X.astype(np.complex64), Y, DataError, ["complex64", "not a number"]),
    (X.astype(str), Y, DataError, ["not a number"]),
    (X.astype(object), Y, DataError, ["Python objects", "np.stack"]),
    ([[1, 2], [3]], [0, 1], DataError, ["list", "equal length"]),
    (5, None, DataError, ["int", "not an array"]),
    (X[:0], Y[:0], NothingToScan, ["(0, 2)", "no rows"]),
    (X[:, :0], Y, DataError, ["(6, 0)", "empty"]),
    (X, Y[:5], DataError, ["5 labels for 6 rows"]),
    (X, Y.reshape(6, 1), DataError, ["(6, 1)", "y.ravel()"]),
    (X, np.eye(6), DataError, ["(6, 6)", "argmax"]),
    (X, np.zeros((6, 1, 1)), DataError, ["(6, 1, 1)"]),
    (X, Y.astype(float), DataError, ["float64", "astype(np.int64)"]),
    (X, Y + 0.5, DataError, ["row 0 is 0.5", "class numbers"]),
    (X, [0, 1, np.nan, 0, 1, 2], DataError, ["row 2 is nan"]),
    (X, [0, 1, 2, np.inf, 1, 2], DataError, ["row 3 is inf"]),
    (X, [0, 1, -7, 0, -1, 2], DataError, ["row 2 is -7", "start at 0"]),
    (X, np.array([0, 1, 2, 2**63, 1, 2], np.uint64), DataError, ["row 3 is 9223372036854775808"]),
    (X, np.array(["a", "b", "c", 1, "b", "c"], object), DataError, ["row 3", "int"]),
    (X, Y.astype(complex), DataError, ["complex128"]),
    (None, None, UsageError, ["data is None"]),
    ("", None, UsageError, ["''"]),
    ("sklearn:iris2", None, UsageError, ["iris2", "sklearn:digits, sklearn:breast_cancer"]),
    ("torch:mnist", None, UsageError, ["unknown prefix 'torch'", "idx:FOLDER"]),
]


@pytest.mark.parametrize("case", range(len(ARRAYS)))
def test_errors_of_arrays_and_names(case):
    x, y, kind, words = ARRAYS[case]
    with pytest.raises(kind) as caught:
        open_source(x, y)
    for word in words:
        assert word in str(caught.value)


def npy_header(text, body=b"", version=1):
    raw = text.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(raw)) + raw + body


def npz_bytes(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in members.items():
            archive.writestr(f"{name}.npy", value)
    return out.getvalue()


def array_bytes(array, **options):
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def saved_npz(compressed=False, **members):
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **members)
    return out.getvalue()


def twice():
    out = io.BytesIO()
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(out, "w") as archive:
        for array in (X, X + 1):
            archive.writestr("x.npy", array_bytes(array))
    return out.getvalue()


def flipped(raw, at):
    return raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :]


def encrypted():
    raw = saved_npz(x=X, y=Y)
    central = raw.index(b"PK\x01\x02")
    return flipped(raw, central + 8)


def idx_bytes(dims, body, magic=b"\0\0\x08"):
    return magic + bytes([len(dims)]) + struct.pack(f">{len(dims)}I", *dims) + body


def parquet_bytes(**columns):
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def ipc_bytes(table):
    out = io.BytesIO()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


LISTS = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 2)
HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }"
OBJECTS = np.array([[1], [2, 3]], dtype=object)
NO_TEXT = np.full(24, 0xFFFFFFFF, np.uint32).view("<U4")  # beyond the last character
EVIL = "\x1b[31mred\x1b[0m"

FILES = [  # file name, content, what is opened (None: the file), words
    ("a.npz", b"", None, ["a.npz", "empty (0 bytes)"]),
    ("a.npz", b"not a zip at all", None, ["a.npz", "damaged", "not a zip"]),
    ("a.npz", saved_npz(x=X, y=Y)[:-40], None, ["a.npz", "not a zip"]),
    ("a.npz", saved_npz(a=X, b=Y), None, ["no member 'x'", "'a', 'b'", "np.savez"]),
    ("a.npz", saved_npz(x=X, label=Y), None, ["no member 'y'", "'x', 'label'", "labels="]),
    ("a.npz", saved_npz(x=X, **{EVIL: Y}), None, ["no member 'y'", "\\x1b[31mred"]),
    ("mnist.npz", saved_npz(x_train=X, y_train=Y, x_test=X, y_test=Y), None, ["mnist.npz#train"]),
    ("mnist.npz", saved_npz(x_train=X, y_train=Y), "mnist.npz#val", ["'x_val'", "mnist.npz#train"]),
    ("a.npz", saved_npz(x=X, y=Y[:4]), None, ["member 'y'", "4 labels for 6 rows"]),
    ("a.npz", saved_npz(x=X, y=Y.astype(float)), None, ["member 'y'", "astype(np.int64)"]),
    ("a.npz", saved_npz(x=X, y=Y.astype(bytes)), None, ["labels are text", "np.unique"]),
    ("a.npz", saved_npz(x=X, y=Y.astype("U300")), None, ["labels are text", "np.unique"]),
    ("a.npz", saved_npz(x=X, y=NO_TEXT), None, ["member 'y'", "damaged text"]),
    ("a.npz", saved_npz(x=X, y=Y - 1), None, ["row 0 is -1"]),
    ("a.npz", saved_npz(x=OBJECTS, y=Y), None, ["member 'x'", "object dtype", "never loaded"]),
    ("a.npz", saved_npz(x=X, y=Y.astype(object)), None, ["member 'y'", "object dtype"]),
    ("a.npz", npz_bytes(x=npy_header(HUGE, b"\0" * 64), y=b""), None, ["shape", "holds 64"]),
    ("a.npz", npz_bytes(x=array_bytes(X) + b"tail", y=b""), None, ["48 bytes, the file holds 52"]),
    ("a.npz", npz_bytes(x=b"PK garbage", y=b""), None, ["npy signature"]),
    ("a.npz", saved_npz(True, x=np.asfortranarray(X), y=Y), None, ["Fortran", "np.savez"]),
    ("a.npz", twice(), None, ["'x' occurs twice"]),
    ("a.npz", encrypted(), None, ["member 'x'", "encrypted"]),
    ("a.npy", array_bytes(X)[:-5], None, ["truncated", "48 bytes", "holds 43"]),
    ("a.npy", array_bytes(X) + b"more", None, ["damaged", "holds 52"]),
    ("a.npy", array_bytes(X)[:40], None, ["truncated or damaged header"]),
    ("a.npy", b"\x93NUMPY", None, ["npy signature"]),
    ("a.npy", flipped(array_bytes(X), 6), None, ["npy version"]),
    ("a.npy", array_bytes(OBJECTS), None, ["object dtype", "never loaded", "np.stack"]),
    ("a.npy", array_bytes(np.zeros(6, "f4,i4")), None, ["several fields"]),
    ("a.npy", array_bytes(np.zeros((6, 2), "M8[s]")), None, ["not a number"]),
    ("a.npy", npy_header("{'descr': '<f4', 'shape': (2, 2)}"), None, ["damaged npy header"]),
    ("a.npy", npy_header("(" * 5000), None, ["damaged npy header"]),
    ("a.npy", npy_header("__import__('os')"), None, ["damaged npy header"]),
    ("a.npy", npy_header(HUGE.replace("46", "-46")), None, ["declares shape"]),
    ("a.npy", npy_header(HUGE.replace("<f4", "f4,f4")), None, ["declares type 'f4,f4'"]),
    ("a.npy", array_bytes(X[:0]), None, ["no rows"]),
    ("a.doc", b"1,2", None, ["'.doc'", ".npy, .npz, .parquet"]),
    ("a.pkl", b"\x80\x04N.", None, ["run code", "np.savez"]),
    ("a.npy", array_bytes(X), "a.npy#train", ["'#train'"]),
    ("train.npz", saved_npz(x=X, y=Y), "trian.npz", ["no such file", "did you mean 'train.npz'"]),
    ("a.npz", saved_npz(x=X, y=Y), "deep/a.npz", ["no folder"]),
    ("a-images-idx3-ubyte", b"\0\0\x08", None, ["IDX magic number"]),
    ("a-images-idx3-ubyte", b"\0\0\x07\x03" + b"\0" * 20, None, ["IDX magic number"]),
    ("a-images-idx3-ubyte", b"\0\0\x08\x03\0\0", None, ["truncated IDX header"]),
    ("a-images-idx3-ubyte", idx_bytes((6, 4, 4), b"\0" * 95), None, ["(6, 4, 4)", "111 bytes"]),
    ("a-images-idx3-ubyte", idx_bytes((6, 4, 4), b"\0" * 97), None, ["112 bytes", "113 bytes"]),
    ("a-images-idx3-ubyte", idx_bytes((6, 4, 4), b"\0" * 96), None, ["no labels beside", "idx1"]),
    ("a-idx3-ubyte.gz", gzip.compress(idx_bytes((2**31, 9, 9), b"")), None, ["compressed bytes"]),
    ("a-idx3-ubyte.gz", gzip.compress(idx_bytes((6, 4, 4), b"\0" * 9)), None, ["25 bytes"]),
    ("a-idx3-ubyte.gz", gzip.compress(bytes(99))[:-9], None, ["IDX magic number"]),
    (
        "a-idx3-ubyte.gz",
        gzip.compress(idx_bytes((60, 40, 40), np.random.default_rng(0).bytes(96_000)))[:-900],
        None,
        ["damaged", "end-of-stream"],
    ),
    ("a-idx3-ubyte.gz", b"plain", None, ["cannot be read", "gzip"]),
    ("a.parquet", b"PAR1 and nothing", None, ["a.parquet", "cannot be decoded"]),
    ("a.parquet", b"CSV,really", None, ["neither Parquet nor Arrow"]),
    ("a.parquet", parquet_bytes(a=Y, b=Y), None, ["embedding, embeddings", "'a: int64'"]),
    ("a.parquet", parquet_bytes(a=LISTS, b=LISTS, y=Y), None, ["no column with a list"]),
    ("a.parquet", parquet_bytes(x=LISTS, klass=Y), None, ["no label column", "'klass: int64'"]),
    ("a.parquet", parquet_bytes(x=LISTS[:0], y=Y[:0]), None, ["no rows"]),
    ("a.parquet", parquet_bytes(x=[["a"], ["b"]], y=[1, 2]), None, ["list of 'string'"]),
    ("a.parquet", parquet_bytes(x=LISTS, y=[0, 1, None, 1, 1, 1]), None, ["row 2 is null"]),
    ("a.parquet", parquet_bytes(x=LISTS, y=["a", None] * 3), None, ["row 1 is null"]),
    ("a.parquet", parquet_bytes(x=LISTS, y=[0.0, 1, 2, 0, 1, 2]), None, ["astype(np.int64)"]),
    ("a.parquet", parquet_bytes(x=LISTS, y=[b"a"] * 6), None, ["type binary"]),
    ("a.parquet", parquet_bytes(x=LISTS, y=[0, 1, 2, 0, 1, -2]), None, ["row 5 is -2"]),
    ("a.parquet", parquet_bytes(x=[None, [1.0]], y=[0, 1]), None, ["'x'", "row 0 is null"]),
    ("a.parquet", parquet_bytes(x=LISTS, y=Y)[:-30], None, ["cannot be decoded"]),
    ("a.arrow", ipc_bytes(pa.table({"x": LISTS, "y": Y}))[:-30], None, ["cannot be decoded"]),
    (
        "a.arrow",
        ipc_bytes(pa.Table.from_arrays([LISTS, LISTS, pa.array(Y)], ["x", "x", "y"])),
        None,
        ["'x' occurs twice"],
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(FILES)))
def test_errors_of_files(tmp_path, case):
    name, content, opened, words = FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JaxpoisonError) as caught:
        open_source(str(tmp_path / (opened or name)))
    message = str(caught.value)
    for word in [*words, str(tmp_path)]:
        assert word in message
    assert "\x1b" not in message


READS = [  # seen only when the rows are read
    ("a.parquet", parquet_bytes(x=[[1.0, 2], [1, 2], [3]], y=[0, 1, 1]), ["row 2 has 1 values"]),
    ("a.parquet", parquet_bytes(x=[[1.0, 2], [1, 2], None], y=[0, 1, 1]), ["row 2 is null"]),
    ("a.parquet", parquet_bytes(x=[[1.0, 2], [1, None]], y=[0, 1]), ["row 1 has a null"]),
    ("a.npz", flipped(saved_npz(True, x=np.tile(X, (99, 1)), y=np.tile(Y, 99)), 80), ["member"]),
]


@pytest.mark.parametrize("case", range(len(READS)))
def test_errors_of_rows(tmp_path, case):
    name, content, words = READS[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        source = open_source(tmp_path / name)
        source.read(0, len(source))
    for word in words:
        assert word in str(caught.value)


def test_a_wrong_checksum_is_found_at_the_end_of_a_stream(tmp_path):
    raw = saved_npz(True, x=X, y=Y)
    crc = struct.pack("<I", zipfile.ZipFile(io.BytesIO(raw)).getinfo("x.npy").CRC)
    (tmp_path / "a.npz").write_bytes(raw.replace(crc, b"\1\2\3\4"))
    with pytest.raises(DataError, match="CRC"):
        open_source(tmp_path / "a.npz").read(0, 6)


def test_arrow_offsets_are_not_followed_unchecked(tmp_path):
    offsets = pa.array([0, 2, 4, 6, 8, 10, 12], pa.int32())
    table = pa.table({"x": pa.ListArray.from_arrays(offsets, pa.array(X.ravel())), "y": Y})
    raw = ipc_bytes(table)
    mark = np.array([8, 10, 12], "<i4").tobytes()
    assert raw.count(mark) == 1
    (tmp_path / "a.arrow").write_bytes(raw.replace(mark, np.array([8, 10**9, 12], "<i4").tobytes()))
    with pytest.raises(DataError, match="cannot be decoded"):
        open_source(tmp_path / "a.arrow").read(0, 6)


@pytest.mark.parametrize("index", [3, -1])
def test_dictionary_indices_are_not_followed_unchecked(tmp_path, index):
    indices = pa.array([0, 1, 2, index, 0, 1], pa.int32())
    labels = pa.DictionaryArray.from_arrays(indices, ["a", "b", "c"], safe=False)
    with pytest.raises(pa.ArrowException, match="out of bounds"):
        label_codes(labels, {}, "y")  # what the Parquet reader may hand over
    (tmp_path / "a.arrow").write_bytes(ipc_bytes(pa.table({"x": LISTS, "y": labels})))
    with pytest.raises(DataError, match="cannot be decoded"):
        open_source(tmp_path / "a.arrow")


def test_errors_of_folders(tmp_path):
    def refuse(words, kind=DataError, **options):
        with pytest.raises(kind) as caught:
            open_source(tmp_path / "f", **options)
        for word in words:
            assert word in str(caught.value)

    folder = tmp_path / "f"
    folder.mkdir()
    refuse(["folder is empty", ".npz"])
    (folder / "notes.txt").write_text("hello")
    refuse(["notes.txt"])
    np.savez(folder / "0.npz", x=X[:0], y=Y[:0])
    refuse(["no rows in 1 shards"], NothingToScan)
    np.savez(folder / "1.npz", x=X, y=Y)
    np.savez(folder / "2.npz", x=X[:, :1], y=Y)
    refuse(["/2.npz", "shape (1,) differs from (2,)", "/1.npz"])
    np.savez(folder / "2.npz", x=IMAGES, y=Y)
    refuse(["/2.npz", "kind images"])
    np.savez(folder / "2.npz", x=X)
    refuse(["/2.npz", "no member 'y'"])
    (folder / "2.npz").unlink()
    pq.write_table(pa.table({"x": LISTS, "y": Y}), folder / "2.parquet")
    refuse(["mixes formats", "0.npz", "2.parquet"])
    for shard in ("0.npz", "1.npz"):
        (folder / shard).unlink()
    pq.write_table(pa.table({"x": LISTS, "y": list("abcabc")}), folder / "3.parquet")
    refuse(["/3.parquet", "text"])
    for shard in folder.iterdir():
        shard.unlink()
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    refuse(["x.npy as the data"])
    refuse(["shape (6,)", "/y.npy"], role="features")
    with pytest.raises(DataError, match="is a folder"):
        open_source(X, labels=str(folder))
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes((6, 4, 4), bytes(96)))
    with pytest.raises(DataError, match="no t10k-images-idx3-ubyte"):
        open_source(f"idx:{folder}#t10k")
    with pytest.raises(UsageError, match="'#train'"):
        open_source(f"idx:{folder}/train-images-idx3-ubyte#train")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(DataError, match="no regular file"):
        open_source(tmp_path / "pipe.npy")


def test_errors_of_labels_given_apart(tmp_path):
    np.save(tmp_path / "short.npy", Y[:2])
    np.savez(tmp_path / "none.npz", a=Y, b=Y)
    pq.write_table(pa.table({"y": Y[:2]}), tmp_path / "short.parquet")
    pq.write_table(pa.table({"klass": Y}), tmp_path / "other.parquet")
    (tmp_path / "y.doc").write_text("1")
    cases = {
        "short.npy": "2 labels for 6 rows",
        "none.npz": "no member 'y'",
        "short.parquet": "2 labels for 6 rows",
        "other.parquet": "'klass'",
        "y.doc": "'.doc'",
        "missing.npy": "no such file",
        "short.npy#train": "'#train'",
    }
    for name, words in cases.items():
        with pytest.raises(JaxpoisonError, match=words) as caught:
            open_source(X, tmp_path / name)
        assert str(caught.value).startswith("labels ")
    with pytest.raises(UsageError, match="give one"):
        open_source(open_source(X, Y), Y)
    with pytest.raises(DataError, match="--labels"):
        require_labels(open_source(X))


def test_a_file_cut_while_open_is_an_error(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    source = open_source(tmp_path / "a.npz")
    source.read(0, 2)
    os.truncate(tmp_path / "a.npz", 150)
    with pytest.raises(DataError, match="truncated"):
        source.read(0, 6)


def test_nothing_heavy_is_imported():
    code = (
        "import sys, jaxpoison.sources, jaxpoison.sources.inspect as _\n"
        "heavy = {'jax', 'pyarrow', 'sklearn', 'scipy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "packed.npz", "a-idx3-ubyte.gz", "a.parquet"])
def test_damaged_bytes_never_escape_as_another_error(tmp_path, name):
    content = {
        "a.npy": array_bytes(X),
        "a.npz": saved_npz(x=X, y=Y),
        "packed.npz": saved_npz(True, x=X, y=Y),
        "a-idx3-ubyte.gz": gzip.compress(idx_bytes((6, 4, 4), bytes(96)), mtime=0),
        "a.parquet": parquet_bytes(x=LISTS, y=Y),
    }[name]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        raw = bytearray(content)
        for at in rng.integers(0, len(raw), rng.integers(1, 4)):
            raw[at] = rng.integers(0, 256)
        (tmp_path / name).write_bytes(bytes(raw[: rng.integers(1, 2 * len(raw))]))
        try:
            source = open_source(tmp_path / name, None if "npz" in name or "par" in name else Y)
            source.read(0, min(len(source), 100))
        except JaxpoisonError as error:
            refused += 1
            assert str(tmp_path) in str(error) or str(error).startswith("labels")
    assert refused > 30
