"""Reading block by block keeps resident memory small, whatever the size of the file."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import format_data

MEMORY = """
    import resource, sys
    from jaxpoison.sources import open_source
    source = open_source(sys.argv[1])
    source.read(0, 10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = 0.0
    for start in range(0, len(source), 8192):
        total += float(source.read(start, min(start + 8192, len(source)))["x"][0, 0])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    print(grown, int(total), "jax" in sys.modules)
"""


def read_all_in_a_process(path):
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(path)],
        capture_output=True, text=True, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    grown, total, has_jax = done.stdout.split()
    assert has_jax == "False"
    return int(grown), int(total)


def test_memory_is_bounded_on_a_large_npz(tmp_path):
    x = np.zeros((400_000, 128), np.float32)
    x[:, 0] = np.arange(len(x))
    np.savez(tmp_path / "a.npz", x=x, y=np.zeros(len(x), np.uint8))
    assert (tmp_path / "a.npz").stat().st_size > 200e6
    grown, total = read_all_in_a_process(tmp_path / "a.npz")
    assert total == sum(range(0, 400_000, 8192))
    assert grown < 40, f"resident memory grew by {grown} MB; a block is 4 MB"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["packed.npz", "one_group.parquet", "one_batch.arrow", "shards", "a.h5", "a.zarr", "saved"],
)
def test_memory_is_bounded_in_other_formats(tmp_path, name):
    x = np.zeros((160_000, 128), np.float32)
    x[:] = np.arange(len(x))[:, None]  # no two rows alike, or a page would hold them all
    y = np.zeros(len(x), np.uint8)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    table, path = pa.table({"embedding": lists, "label": y}), tmp_path / name
    if name == "packed.npz":
        np.savez_compressed(path, x=x, y=y)
    elif name == "shards":
        path.mkdir()
        for number, part in enumerate(np.array_split(np.arange(len(x)), 3)):
            np.savez(path / f"{number}.npz", x=x[part], y=y[part])
    elif name == "a.h5":
        format_data.write_hdf5(path, x, y)
    elif name == "a.zarr":
        format_data.write_zarr(path, {"x": x, "y": y}, rows=5000)
    elif name == "saved":
        format_data.write_saved(path, [table.slice(0, 100_000), table.slice(100_000)])
    elif name == "one_batch.arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, path, row_group_size=len(x))
    grown, _ = read_all_in_a_process(path)
    assert grown < 50, f"resident memory grew by {grown} MB of {x.nbytes >> 20}"
