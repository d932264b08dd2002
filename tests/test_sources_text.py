"""CSV and JSON Lines: what is taken as x and y, ranged reads, and text of every broken kind."""

from __future__ import annotations

import gzip
import json
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

import format_data
from jaxpoison._check import DataError, JaxpoisonError, NothingToScan
from jaxpoison.sources import is_embedding, open_source, spill

ROOT = Path(__file__).resolve().parents[1]
quiet = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

TAKEN = [  # file name, content, x, y, names of classes, is an embedding
    ("a.csv", "a,b,label\n1,2.5,3\n-4,5e3,0\n", [[1, 2.5], [-4, 5000]], [3, 0], None, False),
    ("a.csv", "a,b,label\r\n1,2,3\r\n\r\n4,5,6\r\n", [[1, 2], [4, 5]], [3, 6], None, False),
    ("a.csv", "\ufeffa,y\n1,0\n", [[1]], [0], None, False),
    ("a.csv", "id,y,a,b\n7,1,2,3", [[2, 3]], [1], None, False),
    ("a.csv", ",a,class\n0,2,1\n1,3,0\n", [[2], [3]], [1, 0], None, False),
    ("a.csv", "a,who,label\n1,bob,2\n3,ann,4\n", [[1], [3]], [2, 4], None, False),
    ("a.csv", 'a,y\n1,"d\ng"\n2,"c""t"\n', [[1], [2]], [1, 0], ('c"t', "d\ng"), False),
    ("a.csv", "a,y\n1,10\n2,9\n", [[1], [2]], [10, 9], None, False),
    ("a.csv", "a,y\n1,10\n2,9b\n", [[1], [2]], [0, 1], ("10", "9b"), False),
    ("a.csv", "a,y\nnan,1\n-inf,0\n1e300,0\n", [[np.nan], [-np.inf], [np.inf]], [1, 0, 0],
     None, False),
    ("a.csv", "0,1,label\n5,6,1\n", [[5, 6]], [1], None, False),
    ("a.csv", 'embedding,n,y\n"[1, 2.5]",9,1\n"[3,4]",9,0\n', [[1, 2.5], [3, 4]], [1, 0],
     None, True),
    ("a.csv", 'x,y\n"[1]",1\n', [[1]], [1], None, False),
    ("a.csv", 'vec,y\n"[1]",1\n', [[1]], [1], None, True),
    ("a.tsv", "a\ty\n1\t2\n", [[1]], [2], None, False),
    ("a.csv.gz", gzip.compress(b"a,y\n1,2\n"), [[1]], [2], None, False),
    ("a.tsv.gz", gzip.compress(b"a\ty\n1\t2\n"), [[1]], [2], None, False),
    ("a.jsonl", '{"x": [1, 2.5], "y": 1, "z": {"x": []}}\n{"y": 0, "x": [3, 4]}',
     [[1, 2.5], [3, 4]], [1, 0], None, False),
    ("a.jsonl", '\ufeff\n{"embedding": [1], "label": "b"}\n\n{"embedding": [2], "label": "a"}\n',
     [[1], [2]], [1, 0], ("a", "b"), True),
    ("a.jsonl", '{"v": [1], "y": true}\n{"v": [NaN], "y": false}\n', [[1], [np.nan]], [1, 0],
     None, True),
    ("a.ndjson", '{"features": [1], "x": [2], "y": 3}', [[1]], [3], None, True),
    ("a.jsonl.gz", gzip.compress(b'{"x": [1], "y": 3}\n'), [[1]], [3], None, False),
]  # fmt: skip


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("case", range(len(TAKEN)))
def test_what_is_taken(tmp_path, case):
    name, content, x, y, names, embedding = TAKEN[case]
    source = open_source(put(tmp_path, name, content))
    block = source.read(0, len(source))
    np.testing.assert_array_equal(block["x"], np.array(x, np.float32))
    np.testing.assert_array_equal(block["y"], y)
    assert source.schema.class_names == names and is_embedding(source) == bool(embedding)


REFUSED = [  # file name, content, words the message must hold
    ("a.csv", "", ["empty (0 bytes)"]),
    ("a.csv", "\n\n", ["no header line"]),
    ("a.csv", "a,y\n", ["no rows"]),
    ("a.csv", "a,b,y\n1,2,3\n3,4\n", ["row 1", "Expected 3 columns, got 2"]),
    ("a.csv", "a,b,y\n1,2,3\n3,4,5,6\n", ["row 1", "Expected 3 columns, got 4"]),
    ("a.csv", "a,b,y\n1,2,3\n3,x4,5\n", ["column 'b', row 1", "x4"]),
    ("a.csv", "a,b,y\n" + "1,2,3\n" * 400_000 + "3,x4,5\n", ["column 'b', row 400000", "x4"]),
    ("a.csv", "a,b,y\n1,2,3\n3,,5\n", ["column 'b', row 1 has no value", "nan"]),
    ("a.csv", "a,b,y\n1,2,3\n3,NA,5\n", ["column 'b', row 1 has no value"]),
    ("a.csv", "a,y\n,1\n,2\n", ["column 'a', row 0 has no value"]),
    ("a.csv", "a,y\n1,1\n2,\n", ["column 'y'", "row 1 has no label"]),
    ("a.csv", "a,y\n1,0.5\n", ["row 0 is 0.5", "class numbers"]),
    ("a.csv", "a,y\n1,1.0\n", ["float64"]),
    ("a.csv", "a,y\n1,-1\n", ["row 0 is -1"]),
    ("a.csv", "a,y\n1,99999999999999999999\n", ["column 'y'"]),
    ("a.csv", "a,b\n1,2\n", ["no label column", "'a', 'b'", "labels="]),
    ("a.csv", "a;y\n1;2\n", ["no label column", "'a;y'"]),
    ("a.csv", "1.5,2\n3,4\n", ["first line holds numbers", "header"]),
    ("a.csv", "a,a,y\n1,2,3\n", ["'a' occurs twice"]),
    ("a.csv", "who,y\nbob,3\n", ["no column of numbers", "'who'"]),
    ("a.csv", 'a,y\n1,"c\n2,3\n', ["odd number of quotation marks"]),
    ("a.csv", 'a,y\n1,"' + "c\n" * 3_000_000, ["longer than 2 MB"]),
    ("a.csv", "a,y\n1,2\n".encode("utf-16"), ["UTF-16", "UTF-8"]),
    ("a.csv", "a,y\n1,caf\xe9\n".encode("latin-1"), ["not UTF-8"]),
    ("a.csv", "a,y\n1\x00,2\n", ["no column of numbers"]),
    ("a.csv", "a,y\n1,2\n1\x00,2\n", ["column 'a', row 1"]),
    ("a.csv", 'x,y\n"[1,2]",1\n"[1,2,3]",1\n', ["row 1 has shape [3], expected [2]"]),
    ("a.csv", 'x,y\n"[1,2]",1\n"[[1],[2]]",1\n', ["row 1 has shape [2, 1]"]),
    ("a.csv", 'x,y\n"[1,2]",1\n"[1 2]",1\n', ["row 1 holds '[1 2]'", "JSON list"]),
    ("a.csv", 'x,y\n"[1,2]",1\n,1\n', ["row 1 holds ''"]),
    ("a.csv", 'x,y\n"[1,""a""]",1\n', ["row 0 holds"]),
    ("a.csv", 'x,y\n"[1,' + "[" * 5000 + '",1\n', ["row 0 holds"]),
    ("a.csv", 'x,y\n"[1]",1\n"' + "\x1b[31m" + '",1\n', ["row 1 holds '\\x1b[31m'"]),
    ("a.csv.gz", b"a,y\n1,2\n", ["cannot be decoded"]),
    ("a.csv.gz", gzip.compress(b"a,y\n" + b"1,2\n" * 9999)[:-40], ["cannot be decoded"]),
    ("a.jsonl", "\n", ["no rows"]),
    ("a.jsonl", "[1, 2]\n", ["row 0 is 'list'"]),
    ("a.jsonl", "nonsense\n", ["row 0", "one JSON object a line"]),
    ("a.jsonl", '{"x": [1, 2], "y": 1}\n[3]\n', ["row 1", "array"]),
    ("a.jsonl", '{"x": [1, 2], "y": 1}\n{"x": [1], "y": 1}\n', ["field 'x': row 1 has 1 values"]),
    ("a.jsonl", '{"x": [1], "y": 1}\n{"x": ["a"], "y": 1}\n', ["row 1", "string"]),
    ("a.jsonl", '{"x": [1], "y": 1}\n' * 200_000 + '{"x": ["a"], "y": 1}\n', ["row 200000"]),
    ("a.jsonl", '{"x": [1], "y": 1}\n{"x": [null], "y": 1}\n', ["row 1 has a null"]),
    ("a.jsonl", '{"x": [1], "y": 1}\n{"y": 1}\n', ["field 'x': row 1 is null"]),
    ("a.jsonl", '{"x": [1], "y": 1}\n{"x": [1]}\n', ["field 'y': row 1 is null"]),
    ("a.jsonl", '{"x": [1], "y": 1}\n{"x": [1], "y": "b"}\n', ["row 1", "string"]),
    ("a.jsonl", '{"x": [1], "y": 1}\n{"x": [1], "y": 1.5}\n', ["1.5"]),
    ("a.jsonl", '{"x": [1], "y": 1.5}\n', ["row 0 is 1.5"]),
    ("a.jsonl", '{"x": [1], "y": 1}\n{"x": [1], "x": [2], "y": 1}\n', ["row 1", "twice"]),
    ("a.jsonl", '{"x": [1], "y": 1}\n{"x": [1, "y": 1}\n', ["row 1"]),
    ("a.jsonl", '{"x": [1], "y": 1}\n{"x": [1], "y"', ["row 1"]),
    ("a.jsonl", '{"x": [1], "y": 1}\n{"x": [1e999], "y": 1}\n', ["row 1", "too big"]),
    ("a.jsonl", '{"a": [1], "b": [1], "y": 1}\n', ["no field with a list", "'a', 'b', 'y'"]),
    ("a.jsonl", '{"x": [], "y": 1}\n', ["no field with a list"]),
    ("a.jsonl", '{"x": [[1], [2]], "y": 1}\n', ["no field with a list"]),
    ("a.jsonl", '{"x": [1], "z": 1}\n', ["no label column", "'x', 'z'"]),
    ("a.jsonl", '{"x": [1], "y": {"a": 1}}\n', ["no label column"]),
    ("a.jsonl", b'{"x": [1], "y": "\xff"}\n', ["row 0"]),
    ("a.jsonl", b'{"x": [1], "y": "a"}\n{"x": [1], "y": "\xff"}\n', ["field 'y'", "UTF8"]),
    ("a.jsonl", '{"x": [1], "y": 1}\n'.encode("utf-16"), ["UTF-16"]),
    ("a.jsonl", '{"x": [' + "1," * 2_000_000 + '1], "y": 1}\n', ["longer than 2 MB"]),
    ("a.jsonl", '{"x": ' + "[" * 100_000, ["row 0"]),
    ("a.jsonl.gz", gzip.compress(b'{"x": [1], "y": 1}\n' * 9999)[:-40], ["cannot be decoded"]),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_is_refused(tmp_path, case):
    name, content, words = REFUSED[case]
    path = put(tmp_path, name, content)
    with pytest.raises(JaxpoisonError) as caught:
        open_source(path)
    for word in [*words, str(path)]:
        assert word in str(caught.value)
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 600


def test_no_rows_is_nothing_to_scan(tmp_path):
    for name, content in (("a.csv", "a,y\n"), ("a.jsonl", "\n \n")):
        with pytest.raises(NothingToScan):
            open_source(put(tmp_path, name, content))


@quiet
@given(data=st.data())
def test_ranged_reads_equal_indexing(tmp_path, data):
    """Blocks of a few hundred bytes, so that rows and quoted labels lie across their ends."""
    n, d = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 5))
    value = st.floats(width=32, allow_nan=False)
    x = np.array(data.draw(st.lists(value, min_size=n * d, max_size=n * d)), np.float32)
    x = x.reshape(n, d)
    text = st.text(alphabet='ab",\n é', max_size=4).map("<{}>".format)
    names = np.array(data.draw(st.lists(text, min_size=n, max_size=n)))
    labels = ['"' + name.replace('"', '""') + '"' for name in names]
    lines = [",".join([*(f"f{k}" for k in range(d)), "label"])]
    for row, label in zip(x.tolist(), labels, strict=True):
        lines.append(",".join([*map(repr, row), label]))
    objects = [
        json.dumps({"x": row, "label": str(name)})
        for row, name in zip(x.tolist(), names, strict=True)
    ]
    files = {"a.csv": "\n".join(lines), "a.jsonl": "\n".join(objects)}
    expected = open_source(x, names)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("csv", "jsonl"):
            patch.setattr(f"jaxpoison.sources.{module}._BLOCK", 2048)
        for name, content in files.items():
            source = open_source(put(tmp_path, name, content))
            assert source.fingerprint() == expected.fingerprint(), name
            assert source.schema == expected.schema
            for _ in range(3):
                start = data.draw(st.integers(0, n))
                stop = data.draw(st.integers(start, n))
                np.testing.assert_array_equal(source.read(start, stop)["x"], x[start:stop])


def test_labels_apart_and_features(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    table = put(tmp_path, "a.csv", "who,label\na,2\nb,0\nc,1\n")
    only = put(tmp_path, "b.csv", "species\ncat\nape\ncat\n")
    lines = put(tmp_path, "a.jsonl", '{"label": 2}\n{"label": 0}\n{"label": 1}\n')
    assert open_source(x, table).labels().tolist() == [2, 0, 1]
    assert open_source(x, lines).labels().tolist() == [2, 0, 1]
    assert open_source(x, only).schema.class_names == ("ape", "cat")
    for path, words in ((put(tmp_path, "c.csv", "label\n1\n"), "1 labels|shape"), (
        put(tmp_path, "d.csv", "p,q\n1,2\n"), "no label column"
    ), (put(tmp_path, "e.jsonl", '{"p": 1, "q": 2}\n'), "no label column")):  # fmt: skip
        with pytest.raises(DataError, match=words) as caught:
            open_source(x, path)
        assert str(caught.value).startswith("labels ")
    rows = put(tmp_path, "rows.csv", "a,b\n1,2\n3,4\n")
    source = open_source(rows, role="features")
    assert source.labels() is None and source.read(1, 2)["x"].tolist() == [[3, 4]]
    np.testing.assert_array_equal(open_source(rows, [1, 0]).labels(), [1, 0])


def test_shards_share_one_temporary_file(tmp_path):
    x, y = format_data.planted(600, 4)
    source = open_source(format_data.csv_shards(tmp_path, x, y))
    columns = [shard for shard in source.column._columns]
    assert len(columns) == 2 and len({id(column._spill) for column in columns}) == 1
    np.testing.assert_array_equal(source.read(250, 350)["x"], x[250:350])
    alone = open_source(tmp_path / "csvs/000.csv")
    assert alone.column._spill is not columns[0]._spill
    put(tmp_path, "csvs/002.jsonl", '{"x": [1], "y": 1}')
    with pytest.raises(DataError, match="mixes formats"):
        open_source(tmp_path / "csvs")


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    path = put(tmp_path, "a.csv", "a,y\n1,2\n")
    monkeypatch.setattr(spill, "_RESERVE", 1 << 62)
    with pytest.raises(DataError, match=r"a\.csv: no room for its rows.*TMPDIR"):
        open_source(path)
    monkeypatch.setattr(spill, "_RESERVE", 0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: os.open("/nowhere/at/all", 0))
    with pytest.raises(DataError, match=r"no room for its rows.*No such file"):
        open_source(path)


def test_shards_that_need_no_temporary_file_make_none(tmp_path, monkeypatch):
    x, y = format_data.planted(600, 4)
    folder = format_data.shards(tmp_path, x, y)
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    assert len(open_source(folder)) == 600


PROCESS = """
    import os, resource, sys, tempfile
    from jaxpoison.sources import open_source
    folder = tempfile.gettempdir()
    source = open_source(sys.argv[1])
    before = os.listdir(folder)
    total = 0.0
    for start in range(0, len(source), 8192):
        total += float(source.read(start, min(start + 8192, len(source)))["x"][0, 0])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, int(total), len(before))
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
"""


def peak(path, folder):
    """Peak memory in MB of a process that reads everything and is killed then."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROCESS), str(path)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    memory, total, listed = map(int, done.stdout.split())
    assert listed == 0 and not list(folder.iterdir())  # not even after a kill
    return memory, total


def write_long(path, rows, width=64):
    row = ",".join(f"{k}.123456" for k in range(1, width))
    with open(path, "w") as file:
        if path.suffix == ".csv":
            file.write(",".join(f"f{k}" for k in range(width)) + ",label\n")
            file.writelines(f"{k},{row},{k % 7}\n" for k in range(rows))
        else:
            file.writelines(f'{{"x":[{k},{row}],"y":{k % 7}}}\n' for k in range(rows))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    path = tmp_path / name
    write_long(path, 20_000)
    small, _ = peak(path, tmp_path / "tmp")
    write_long(path, 300_000)
    assert path.stat().st_size > 150e6
    large, total = peak(path, tmp_path / "tmp")
    assert total == sum(range(0, 300_000, 8192))
    assert large - small < 150, f"{small} MB for 20,000 rows, {large} MB for 300,000"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz"])
def test_damaged_bytes_never_escape_as_another_error(tmp_path, name):
    content = {
        "a.csv": b'id,a,b,label\n0,1.5,2,"ca\nt"\n1,-3e4,5,dog\n2,7,8,cat\n',
        "a.jsonl": b'{"x": [1.5, 2], "label": "cat"}\n{"x": [-3e4, 5], "label": "dog"}\n',
    }
    content["a.csv.gz"] = gzip.compress(content["a.csv"], mtime=0)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        raw = bytearray(content[name])
        for at in rng.integers(0, len(raw), rng.integers(1, 4)):
            raw[at] = rng.integers(0, 256)
        path = put(tmp_path, name, bytes(raw[: rng.integers(1, 2 * len(raw))]))
        try:
            source = open_source(path)
            source.read(0, len(source))
        except JaxpoisonError as error:
            refused += 1
            assert str(tmp_path) in str(error)
    assert refused > 30
