"""Rows of many classes on disk, made block by block, for benchmarks of size."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

_BLOCK_FLOATS = 1 << 22
_SHARED_RANK = 64
_OWN_RANK = 2
_PLANTED = 0.1  # rows of class 0 that are rows of other classes plus a shift


class Shape(NamedTuple):
    """How large a benchmark's data is."""

    rows: int
    features: int
    classes: int

    @property
    def name(self) -> str:
        """For files and tables."""
        return f"{self.rows}-{self.features}-{self.classes}"


def planted(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] and which rows are planted [n] bool; they follow from the shape alone."""
    rng = np.random.default_rng([shape.rows, shape.classes])
    labels = rng.integers(0, shape.classes, shape.rows)
    if shape.rows >= 4 * shape.classes:  # no class is empty
        labels[: 4 * shape.classes] = np.tile(np.arange(shape.classes), 4)
    count = max(int(_PLANTED * shape.rows / shape.classes), 1)
    is_planted = np.zeros(shape.rows, np.bool_)
    is_planted[rng.choice(shape.rows, count, replace=False)] = True
    return labels, is_planted


def write(folder: Path, shape: Shape) -> tuple[Path, Path]:
    """Writes x as .npy float32 and the labels as .npy int64, unless they are there already.

    A row is the mean of its class, a draw from a covariance that all classes share (variances
    1, 1/2, 1/3 ... along 64 directions), one from two directions of its class, and noise, as
    features of networks are. A tenth of class 0 are rows of other classes plus one shift.
    """
    x_path, y_path = folder / f"x-{shape.name}.npy", folder / f"y-{shape.name}.npy"
    if x_path.exists() and y_path.exists():
        return x_path, y_path
    n, d, c = shape
    labels, is_planted = planted(shape)
    rng = np.random.default_rng(0)
    mean = 0.5 * rng.standard_normal((c, d), np.float32)
    rank = min(_SHARED_RANK, d)
    shared = rng.standard_normal((rank, d), np.float32)
    shared /= np.sqrt(np.arange(1, rank + 1, dtype=np.float32))[:, None]
    own = rng.standard_normal((c, _OWN_RANK, d), np.float32) / np.float32(2)
    shift = rng.standard_normal(d, np.float32)
    shift *= 12 / np.linalg.norm(shift)
    step = max(_BLOCK_FLOATS // d, 1)
    header = {"descr": "<f4", "fortran_order": False, "shape": (n, d)}
    with open(x_path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, n, step):
            label = labels[start : start + step]
            block = rng.standard_normal((len(label), d), np.float32)
            block *= np.float32(0.7)
            block += mean[label]
            block += rng.standard_normal((len(label), rank), np.float32) @ shared
            for axis in range(_OWN_RANK):
                block += rng.standard_normal((len(label), 1), np.float32) * own[label, axis]
            block[is_planted[start : start + step]] += shift
            block.astype("<f4", copy=False).tofile(file)
    labels = labels.copy()
    labels[is_planted] = 0
    np.save(y_path, labels)
    return x_path, y_path


def as_table(x_path: Path, y_path: Path) -> Path:
    """The same rows as a table of features in one Arrow file: no network is trained on those."""
    import pyarrow as pa

    path = x_path.with_suffix(".arrow")
    if path.exists():
        return path
    labels, x = np.load(y_path), np.load(x_path, mmap_mode="r")
    n, d = x.shape
    step = max(_BLOCK_FLOATS // d, 1)
    kind = pa.list_(pa.float32(), d)
    schema = pa.schema([("features", kind), ("label", pa.int64())])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, n, step):
            rows = pa.array(np.ravel(x[start : start + step]))
            column = pa.FixedSizeListArray.from_arrays(rows, d)
            label = pa.array(labels[start : start + step])
            writer.write_batch(pa.record_batch([column, label], schema=schema))
    return path
