"""Data sets of Grain: MapDataset, IterDataset, DataLoader, and its random access sources.

Nothing of Grain is imported: what comes from it is known by the module of its type.
"""

from __future__ import annotations

from typing import Any

from jaxpoison._check import UsageError

from .base import ColumnSource
from .batches import MissingElement, open_elements, spool

_MOST = 1 << 48  # rows; a dataset that repeats for ever says that it is as long as an int can be


def is_grain(values: object) -> bool:
    """Whether an object is of a class of Grain, or of one derived from it."""
    return any(each.__module__.partition(".")[0] == "grain" for each in type(values).__mro__)


def open_grain(values: Any, name: str, *, labelled: bool) -> ColumnSource:
    """A data set whose elements are rows or batches: mappings, or pairs (x, y).

    Args:
        values: What can be indexed is read in place, and must give the same rows every time; a
            MapDataset with a filter, an IterDataset or a DataLoader is read once and kept.
        name: What to call it in messages.
        labelled: Whether the labels of the elements are taken, if they have any.

    Returns:
        The source.

    Raises:
        UsageError: It repeats for ever.
        DataError: Elements that are no arrays, or differ.
        NothingToScan: No elements.
    """
    if not hasattr(values, "__getitem__"):
        return _spooled(values, name, labelled=labelled)
    count = len(values)
    if count > _MOST:
        raise UsageError(f"{name}: repeats for ever; leave out .repeat(), or give it a number")
    try:
        return open_elements(values, name, labelled=labelled, is_checked=True)
    except MissingElement:  # a filter leaves holes, which iterating passes over
        if not hasattr(values, "__iter__"):
            raise
        return _spooled(values, name, labelled=labelled)


def _spooled(values: Any, name: str, *, labelled: bool) -> ColumnSource:
    elements = iter(values)
    try:
        return spool(elements, name, labelled=labelled)
    finally:
        if hasattr(elements, "close"):
            elements.close()  # its threads read ahead
