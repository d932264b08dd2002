"""What columns, members and keys are called: which is x, which is y, in every format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from jaxpoison._check import DataError

from .base import listing, quote

X_NAMES = ("embedding", "embeddings", "features", "x", "vector")
Y_NAMES = ("label", "labels", "y", "target", "class")
IMAGE_NAMES = ("image", "images", "img")
# An array of any rank may be called by all of these; x and y are first, as in an .npz file.
ARRAY_NAMES = ("x", *X_NAMES[:3], *IMAGE_NAMES, "data")
ARRAY_LABELS = ("y", "label", "labels", "target", "class")

_RAW = ("x", "data", *IMAGE_NAMES)


def is_embedding_name(name: str) -> bool:
    """Whether values of this name are what a network made of the inputs, not the inputs."""
    return name not in _RAW


def choose(held: Iterable[str], wanted: tuple[str, ...], split: str | None = None) -> str | None:
    """The name that is tried first of those that are there, with ``_SPLIT`` behind it."""
    ending, there = "" if split is None else f"_{split}", set(held)
    return next((f"{name}{ending}" for name in wanted if f"{name}{ending}" in there), None)


def refuse_repeated(held: list[str], name: str) -> None:
    """Refuse two columns of one name: readers differ in which one they take.

    Raises:
        DataError: Names the column.
    """
    for each, count in Counter(held).items():
        if count > 1:
            raise DataError(f"{name}: column {quote(each)} occurs twice; rename one")


def no_labels(name: str, held: list[str]) -> DataError:
    """The error of a format that keeps labels and has none."""
    return DataError(
        f"{name}: no label column called {', '.join(Y_NAMES)}; it holds "
        f"{listing(held) or 'no columns'}; add it, or give the labels apart (labels=)"
    )
