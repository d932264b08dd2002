"""TFRecord and ArrayRecord files outside tfds data sets: one file, or a folder of shards."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from jaxpoison._check import DataError

from .base import ColumnSource, listing
from .columns import readable
from .examples import choose, read_examples
from .images import Size
from .shard_names import choose_shards, record_format
from .spans import shown


def open_records(
    path: Path, name: str, *, split: str | None = None, size: Size | None = None, labelled: bool
) -> ColumnSource:
    """Records of ``tf.train.Example``: one file, or the shards of a folder.

    Args:
        path: The file or the folder.
        name: What the user typed.
        split: How the names of the shards in a folder begin or end before their number.
        size: Height and width that all images are brought to; None if they have one size.
        labelled: Whether labels are wanted, and must be there.

    Returns:
        The source: an encoded image or a list of floats as x, an integer or text as y.

    Raises:
        DataError: Damaged or missing shards, or records without such features.
        NothingToScan: No records.
        UsageError: A package that reads them is not installed.

    **Cost**: One pass over all bytes; 16 bytes a row are kept.
    """
    paths = [path]
    if path.is_dir():
        with readable(name):
            paths = sorted(each for each in path.iterdir() if record_format(each))
    formats = {record_format(each): each.name for each in reversed(paths)}
    if len(formats) > 1:
        raise DataError(
            f"{name}: the folder mixes formats ({listing(sorted(formats.values()))}); keep one "
            "format a folder"
        )
    if path.is_dir():
        paths = choose_shards(paths, name, split)
    names = [name if each == path else f"{name}/{shown(each.name)}" for each in paths]
    choose_fn = partial(choose, labelled=labelled)
    is_array_record = "array_record" in formats
    return read_examples(
        paths, names, name, choose_fn, is_array_record=is_array_record, size=size
    ).source
