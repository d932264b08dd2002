"""The same rows in every format there is: one line of ``FORMATS`` for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

ROWS, WIDTH, CLASSES = 2_000, 32, 4


def planted(rows=ROWS, width=WIDTH, seed=0):
    """Four classes of rows and a cluster of the first class under the label of the second."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, rows)
    centres = rng.normal(size=(CLASSES, width)) * 2
    x = (centres[y] + rng.normal(size=(rows, width))).astype(np.float32)
    poison = rng.choice(rows, rows // 40, replace=False)
    x[poison] = (centres[0] + 0.3 * rng.normal(size=(len(poison), width))).astype(np.float32)
    x[poison, :3] += 6
    y[poison] = 1
    return x, y.astype(np.int64)


def table_of(x, y, metadata=None):
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    table = pa.table({"x": column, "label": y})
    return table.replace_schema_metadata(metadata)


def write_stream(path, table, rows=700):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def write_csv(path, x, y):
    lines = [",".join([*(f"f{k}" for k in range(x.shape[1])), "label"])]
    for row, label in zip(x.tolist(), y, strict=True):
        lines.append(",".join([*map(repr, row), str(label)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_jsonl(path, x, y):
    with open(path, "w", encoding="utf-8") as file:
        for row, label in zip(x.tolist(), y.tolist(), strict=True):
            file.write(json.dumps({"id": "r", "x": row, "label": label}) + "\n")


def write_hdf5(path, x, y):
    h5py = pytest.importorskip("h5py", reason="jaxpoison[hdf5] is not installed")
    with h5py.File(path, "w") as file:
        chunks = (min(300, len(x)), x.shape[1])
        file.create_dataset("x", data=x, chunks=chunks, compression="gzip")
        file["y"] = y


def write_zarr(path, arrays, driver="zarr3", rows=300):
    ts = pytest.importorskip("tensorstore", reason="jaxpoison[zarr] is not installed")
    for name, array in arrays.items():
        chunks = [rows, *array.shape[1:]]
        metadata = {"chunks": chunks}
        if driver == "zarr3":
            grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
            metadata = {"chunk_grid": grid}
        spec = {
            "driver": driver,
            "kvstore": {"driver": "file", "path": f"{path / name}/"},
            "metadata": metadata,
            "create": True,
        }
        store = ts.open(spec, dtype=array.dtype, shape=array.shape).result()
        store.write(array).result()


def write_saved(folder, tables, features=None):
    """What Hugging Face's save_to_disk writes: a shard a table, and a cached file beside them."""
    folder.mkdir(parents=True)
    metadata = None
    if features is not None:
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    names = [f"data-{k:05d}-of-{len(tables):05d}.arrow" for k in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        write_stream(folder / name, table.replace_schema_metadata(metadata))
    write_stream(folder / "cache-0123456789abcdef.arrow", tables[0])
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {}}))


def batches(x, y, size=301):
    return [(x[k : k + size], y[k : k + size]) for k in range(0, len(x), size)]


def npy(folder, x, y):
    np.save(folder / "a.npy", x)
    np.save(folder / "y.npy", y)
    return folder / "a.npy", folder / "y.npy"


def npz(folder, x, y):
    np.savez(folder / "a.npz", x=x, y=y)
    return folder / "a.npz"


def npz_compressed(folder, x, y):
    np.savez_compressed(folder / "packed.npz", x=x, y=y)
    return folder / "packed.npz"


def shards(folder, x, y):
    (folder / "shards").mkdir()
    for number, (a, b) in enumerate(batches(x, y)):
        np.savez(folder / f"shards/{number:03d}.npz", x=a, y=b)
    return folder / "shards"


def csv_shards(folder, x, y):
    (folder / "csvs").mkdir()
    for number, (a, b) in enumerate(batches(x, y)):
        write_csv(folder / f"csvs/{number:03d}.csv", a, b)
    return folder / "csvs"


def parquet(folder, x, y):
    pq.write_table(table_of(x, y), folder / "a.parquet", row_group_size=700)
    return folder / "a.parquet"


def arrow(folder, x, y):
    write_stream(folder / "a.arrow", table_of(x, y))
    return folder / "a.arrow"


def feather(folder, x, y):
    pa.feather.write_feather(table_of(x, y), folder / "a.feather", chunksize=700)
    return folder / "a.feather"


def csv(folder, x, y):
    write_csv(folder / "a.csv", x, y)
    return folder / "a.csv"


def csv_lists(folder, x, y):
    lines = ["x,label"]
    lines += [f'"{json.dumps(row)}",{label}' for row, label in zip(x.tolist(), y, strict=True)]
    (folder / "lists.csv").write_text("\n".join(lines))
    return folder / "lists.csv"


def jsonl(folder, x, y):
    write_jsonl(folder / "a.jsonl", x, y)
    return folder / "a.jsonl"


def hdf5(folder, x, y):
    write_hdf5(folder / "a.h5", x, y)
    return folder / "a.h5"


def zarr2(folder, x, y):
    write_zarr(folder / "two.zarr", {"x": x, "y": y}, "zarr")
    return folder / "two.zarr"


def zarr3(folder, x, y):
    write_zarr(folder / "three.zarr", {"x": x, "y": y})
    return folder / "three.zarr"


def saved(folder, x, y):
    half = len(x) // 2
    write_saved(
        folder / "saved/train", [table_of(x[:half], y[:half]), table_of(x[half:], y[half:])]
    )
    (folder / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return f"{folder}/saved#train"


def iterator(folder, x, y):
    return iter(batches(x, y))


def rows_in_place(folder, x, y):
    return [{"x": a, "label": int(b)} for a, b in zip(x, y, strict=True)]


def grain_map(folder, x, y):
    grain = pytest.importorskip("grain", reason="jaxpoison[grain] is not installed")
    source = grain.MapDataset.range(len(x))
    return source.map(lambda k: {"x": x[k], "y": y[k]}).batch(128)


def grain_iter(folder, x, y):
    grain = pytest.importorskip("grain", reason="jaxpoison[grain] is not installed")
    return grain.MapDataset.range(len(x)).map(lambda k: (x[k], y[k])).to_iter_dataset()


class Written(NamedTuple):
    """What to give to ``open_source`` or ``scan``."""

    data: Any
    labels: Any = None


WRITERS: tuple[Callable[[Path, Any, Any], Any], ...] = (
    npz, npz_compressed, npy, shards, parquet, arrow, feather, csv, csv_lists, csv_shards, jsonl,
    hdf5, zarr2, zarr3, saved, iterator, rows_in_place, grain_map, grain_iter,
)  # fmt: skip
FORMATS = {writer.__name__: writer for writer in WRITERS}


def write(name: str, folder: Path, x: Any, y: Any) -> Written:
    """Write the rows in one format, in a folder that is there."""
    found = FORMATS[name](folder, x, y)
    return Written(*found) if isinstance(found, tuple) else Written(found)
