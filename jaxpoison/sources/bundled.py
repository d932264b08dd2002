"""Data sets that come with scikit-learn: real, small, and there without a network."""

from __future__ import annotations

import importlib

import numpy as np

from jaxpoison._check import UsageError

from .arrays import ArrayColumn
from .base import ColumnSource, quote
from .labels import check_labels

KNOWN = ("digits", "breast_cancer", "wine")


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
