"""The same rows in any format give the same scores, byte for byte."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

import format_data as data
import jaxpoison
from jaxpoison.cli import main
from jaxpoison.sources import DropRows, is_embedding, open_source

DETECTOR = "spectral"
ONCE = {"iterator"}  # cannot be opened twice


def scores_of(written, folder):
    """The score file of a scan: of the command line where the data has a name."""
    paths = [str(each) for each in written if each is not None]
    if isinstance(written.data, str) or hasattr(written.data, "__fspath__"):
        labels = ["--labels", paths[1]] if written.labels is not None else []
        status = main(
            ["scan", paths[0], *labels, "--out", str(folder), "--detectors", DETECTOR, "--quiet",
             "--exit-zero"]
        )  # fmt: skip
        assert status == 0
    else:
        jaxpoison.scan(*written, detectors=(DETECTOR,)).write(folder)
    return (folder / "scores.parquet").read_bytes()


@pytest.fixture(scope="module")
def rows():
    return data.planted()


@pytest.fixture(scope="module")
def expected(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    x, y = rows
    print_ = open_source(x, y).fingerprint()
    return print_, scores_of(data.Written(x, y), folder / "report")


@pytest.mark.parametrize("name", data.FORMATS)
def test_scores_do_not_depend_on_the_format(name, rows, expected, tmp_path):
    written = data.write(name, tmp_path, *rows)
    if name not in ONCE:
        assert open_source(*written).fingerprint() == expected[0]
    assert scores_of(written, tmp_path / "report") == expected[1]


def test_what_is_called_an_embedding_is_not_trained_on_in_any_format(rows, expected, tmp_path):
    x, y = rows
    table = data.table_of(x, y).rename_columns(["embedding", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "shards").mkdir()
    for number in range(2):
        pq.write_table(table.slice(1000 * number, 1000), tmp_path / f"shards/{number}.parquet")
    data.write_saved(tmp_path / "saved", [table])
    data.write_jsonl(tmp_path / "a.jsonl", x, y)
    lines = (tmp_path / "a.jsonl").read_text().replace('"x": ', '"embedding": ')
    (tmp_path / "a.jsonl").write_text(lines)
    mappings = [{"embedding": a, "y": int(b)} for a, b in zip(x, y, strict=True)]
    held = [tmp_path / name for name in ("a.parquet", "shards", "saved", "a.jsonl")]
    found = {
        scores_of(data.Written(each), tmp_path / f"report{k}")
        for k, each in enumerate([*held, mappings, iter(mappings)])
    }
    assert len(found) == 1 and found != {expected[1]}
    subset = DropRows(open_source(held[0]), np.array([3]))
    assert is_embedding(subset) and not is_embedding(open_source(x, y))


def test_scores_depend_on_the_rows(rows, expected, tmp_path):
    x, y = rows
    changed = x.copy()
    changed[7, 3] = np.nextafter(changed[7, 3], np.float32(np.inf))
    assert scores_of(data.Written(changed, y), tmp_path / "report") != expected[1]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    x, y = data.planted(20_000, seed=1)
    folder = tmp_path_factory.mktemp("many")
    return x, y, open_source(x, y).fingerprint(), scores_of(data.Written(x, y), folder / "report")


@pytest.mark.slow
@pytest.mark.parametrize("name", data.FORMATS)
def test_scores_of_20k_rows_do_not_depend_on_the_format(name, many, tmp_path):
    x, y, fingerprint, expected = many
    written = data.write(name, tmp_path, x, y)
    if name not in ONCE:
        source = open_source(*written)
        assert source.fingerprint() == fingerprint
        np.testing.assert_array_equal(source.read(12_345, 12_400)["x"], x[12_345:12_400])
    assert scores_of(written, tmp_path / "report") == expected
