"""The table of formats: how each is recognised, who opens it, and what must be installed for it.

One line a format. Openers are named, not imported: what only some data needs is loaded for that
data alone.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module, util
from pathlib import Path
from typing import Any, NamedTuple

from jaxpoison._check import UsageError


class Format(NamedTuple):
    """One format. Functions are written "module:function", modules of this package."""

    name: str
    opener: str = ""  # (path, name, *, labelled, and split where has_splits) -> ColumnSource
    endings: tuple[str, ...] = ()  # of file names; such files may also be the shards of a folder
    folder: str = ""  # (path) -> bool: whether a folder is one data set of this format
    has_splits: bool = False
    labels: str = ""  # (path, name, *, rows, and split where has_splits) -> Labels, given apart
    module: str = ""  # what is imported for it beyond the core dependencies
    extra: str = ""  # which extra brings that module


FORMATS = (
    Format("NumPy", "npy:open_npy_rows", (".npy",), labels="npy:open_npy_labels"),
    Format(
        "NumPy archive",
        "npz:open_npz",
        (".npz",),
        has_splits=True,
        labels="npz:open_npz_labels",
    ),
    Format(
        "Parquet, Arrow, Feather",
        "arrow:open_arrow",
        (".parquet", ".arrow", ".feather"),
        labels="arrow:open_arrow_labels",
    ),
    Format(
        "CSV, TSV",
        "csv:open_csv",
        (".csv", ".tsv", ".csv.gz", ".tsv.gz"),
        labels="csv:open_csv_labels",
    ),
    Format(
        "JSON Lines",
        "jsonl:open_jsonl",
        (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
        labels="jsonl:open_jsonl_labels",
    ),
    Format(
        "HDF5",
        "hdf5:open_hdf5",
        (".h5", ".hdf5"),
        has_splits=True,
        labels="hdf5:open_hdf5_labels",
        module="h5py",
        extra="hdf5",
    ),
    Format(
        "zarr",
        "zarr:open_zarr",
        folder="zarr:holds_zarr",
        has_splits=True,
        labels="zarr:open_zarr_labels",
        module="tensorstore",
        extra="zarr",
    ),
    Format(
        "Hugging Face folder",
        "hf_folder:open_saved",
        folder="hf_folder:holds_saved",
        has_splits=True,
    ),
    Format("IDX folder", "idx:open_idx_folder", folder="idx:holds_idx", has_splits=True),
    Format("Python iterators and sequences"),
    Format("Grain data sets", module="grain", extra="grain"),
    Format("images (folders, tar, records, Arrow)", module="PIL", extra="images"),
    Format("TFRecord"),
    Format("ArrayRecord", module="array_record", extra="tfds"),
    Format("TensorFlow Datasets", module="tensorflow_datasets", extra="tfds"),
)


def install_command(extra: str) -> str:
    """What to type for an extra."""
    return f"pip install 'jaxpoison[{extra}]'"


def is_installed(module: str) -> bool:
    """Whether a module is there, without importing it."""
    try:
        return not module or util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def need(module: str, extra: str, name: str) -> Any:
    """A module of an extra, imported.

    Args:
        module: As in ``import``.
        extra: Which brings it.
        name: What the user typed, for the message.

    Raises:
        UsageError: It is not installed; the message holds the command.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{name}: needs {module}, which cannot be imported ({error}); {install_command(extra)}"
        ) from error


def resolve(reference: str) -> Callable[..., Any]:
    """The function that a "module:function" of this package names."""
    module, _, function = reference.partition(":")
    found: Callable[..., Any] = getattr(import_module(f".{module}", __package__), function)
    return found


def ending_of(file_name: str) -> str:
    """The longest ending of the table that a file name has, or the part after its last dot."""
    found = [e for each in FORMATS for e in each.endings if file_name.endswith(e)]
    return max(found, key=len, default=Path(file_name).suffix)


def format_of_file(path: Path) -> Format | None:
    """The format that the ending of a file name stands for."""
    ending = ending_of(path.name)
    return next((each for each in FORMATS if ending in each.endings), None)


def format_of_folder(path: Path) -> Format | None:
    """The format of a folder that is one data set, not a folder of shards."""
    for each in FORMATS:
        if each.folder and resolve(each.folder)(path):
            return each
    return None


def file_endings() -> tuple[str, ...]:
    """Every ending, in the order of the table."""
    return tuple(ending for each in FORMATS for ending in each.endings)
