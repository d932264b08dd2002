"""Sources: every format as rows and labels that can be read a range at a time.

Host only: numpy, and pyarrow or scikit-learn when the data asks for them; never jax.
"""

from __future__ import annotations

from pathlib import Path

from jaxpoison._check import DataError, UsageError

from .arrays import open_array
from .base import Array, ColumnSource, Schema, Source
from .bundled import KNOWN as BUNDLED_NAMES
from .formats import KNOWN as FILE_ENDINGS
from .formats import open_labels, open_text
from .table import FORMATS
from .views import DropRows, Subset, is_embedding

__all__ = [
    "BUNDLED_NAMES",
    "FILE_ENDINGS",
    "FORMATS",
    "DropRows",
    "Schema",
    "Source",
    "Subset",
    "is_embedding",
    "open_source",
    "require_labels",
]


def open_source(data: object, labels: object = None, *, role: str = "data") -> Source:
    """Open data of any known format.

    Only headers and labels are read, but of text and of iterators: these are read once, and their
    rows kept in a temporary file.

    Args:
        data: A path of any format of ``table.FORMATS`` (``docs/formats.md`` describes them), a
            folder of shards or of images by class, with ``#train`` or ``#test`` for a split;
            ``sklearn:digits``; ``idx:FOLDER``; ``images:PATH@64x64``; ``tfds:NAME``; an array of
            images [n, H, W] or [n, H, W, C] uint8, or rows [n, D]; a sequence or an iterator of
            rows or batches (x, y); or a data set of Grain.
        labels: A path or an array [n]; None takes what the format keeps with the data.
        role: What the data is for. With "features" labels that come with it are ignored; with
            anything else a format that keeps labels must have them.

    Returns:
        The source. ``labels()`` is None where a bare array or ``.npy`` came without labels.

    Raises:
        UsageError: Arguments that name no known format.
        DataError: Data that is missing, damaged, or breaks a rule of the format.
        NothingToScan: No rows.
    """
    if data is None:
        raise UsageError(f"{role} is None; give a path or an array")
    if isinstance(data, Source):
        if labels is not None:
            raise UsageError(f"{role} is an open source and labels were given too; give one")
        return data
    labelled = labels is None and role != "features"
    if isinstance(data, str | Path):
        exclude = Path(labels) if isinstance(labels, str | Path) else None
        source = open_text(str(data), labelled=labelled, exclude=exclude)
    else:
        source = _open_object(data, role, labelled=labelled)
    if labels is None:
        return source
    return source.with_labels(*open_labels(labels, rows=len(source)))


def _open_object(data: object, role: str, *, labelled: bool) -> ColumnSource:
    """An array, or a sequence or iterator of rows or batches."""
    from . import batches, grain

    if grain.is_grain(data):
        return grain.open_grain(data, role, labelled=labelled)
    if batches.is_elements(data):
        return batches.open_elements(data, role, labelled=labelled)
    return open_array(data, role)


def require_labels(source: Source) -> Array:
    """The labels of a source that cannot do without.

    Returns:
        [n] int64.

    Raises:
        DataError: The source has none.
    """
    labels = source.labels()
    if labels is None:
        raise DataError(f"{source.name}: has no labels; give them apart (--labels, labels=)")
    return labels
