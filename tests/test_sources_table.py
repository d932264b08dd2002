"""The table of formats: every line can be used, and names no more than there is."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import format_data
from jaxpoison._check import UsageError
from jaxpoison.sources import FILE_ENDINGS, FORMATS, open_source, table

ROOT = Path(__file__).resolve().parents[1]


def options(reference):
    return set(inspect.signature(table.resolve(reference)).parameters)


@pytest.mark.parametrize("line", FORMATS, ids=lambda line: line.name)
def test_what_a_line_names_is_there(line):
    if not line.opener:  # objects of Python, which have no path
        assert not (line.endings or line.folder or line.labels)
        return
    split = {"split"} if line.has_splits else set()
    assert {"name", "labelled", *split} < options(line.opener)
    assert ("split" in options(line.opener)) == line.has_splits
    assert bool(line.endings) != bool(line.folder)
    if line.labels:
        assert options(line.labels) == {"path", "name", "rows", *split}
    if line.folder:
        assert not table.resolve(line.folder)(ROOT / "tests")


def test_names_and_endings_are_unique():
    names = [line.name for line in FORMATS]
    assert len(set(names)) == len(names)
    assert len(set(FILE_ENDINGS)) == len(FILE_ENDINGS)
    assert FILE_ENDINGS == tuple(ending for line in FORMATS for ending in line.endings)


@pytest.mark.parametrize(
    ("file", "ending", "name"),
    [
        ("a.csv", ".csv", "CSV, TSV"),
        ("a.b.csv.gz", ".csv.gz", "CSV, TSV"),
        ("a.gz", ".gz", None),
        ("csv", "", None),
        ("a.CSV", ".CSV", None),
        ("train-images-idx3-ubyte.gz", ".gz", None),
    ],
)
def test_the_longest_ending_decides(file, ending, name):
    found = table.format_of_file(Path(file))
    assert table.ending_of(file) == ending and (found.name if found else None) == name


def test_unknown_endings_name_the_known_ones(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(UsageError) as caught:
        open_source(tmp_path / "a.docx")
    for ending in (".csv.gz", ".jsonl", ".h5", "'.docx'"):
        assert ending in str(caught.value)
    with pytest.raises(UsageError, match=r"'#train' chooses a split.*npz.*h5.*zarr"):
        (tmp_path / "a.csv").write_text("a,y\n1,2\n")
        open_source(f"{tmp_path}/a.csv#train")


def test_a_module_that_is_missing():
    assert table.is_installed("") and table.is_installed("json.decoder")
    assert not table.is_installed("no_such_module") and not table.is_installed("no_such.module")
    with pytest.raises(UsageError, match=r"data: needs no_such.*pip install 'jaxpoison\[some\]'"):
        table.need("no_such_module", "some", "data")


def test_a_folder_of_arrays_loads_nothing_heavy(tmp_path):
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", np.zeros((3, 2)))
    code = (
        "import sys\nfrom jaxpoison.sources import open_source\n"
        f"assert len(open_source({str(tmp_path)!r})) == 6\n"
        "print(sorted({'pyarrow', 'h5py', 'tensorstore', 'grain', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", format_data.FORMATS)
def test_an_open_source_can_be_sent_to_another_process(name, tmp_path):
    if name.startswith("grain"):
        pytest.skip("a function that is no module's cannot be sent")
    x, y = format_data.planted(40, 4)
    written = format_data.write(name, tmp_path, x, y)
    source = open_source(*written)
    source.read(3, 9)
    sent = pickle.loads(pickle.dumps(source))
    for each in (sent, source):
        np.testing.assert_array_equal(each.read(2, 40)["x"], x[2:])
        np.testing.assert_array_equal(each.labels(), y)
    assert sent.fingerprint() == source.fingerprint()
