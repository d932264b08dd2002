"""A folder of images: one folder a class, as image classifiers read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxpoison._check import DataError

from .base import ColumnSource, listing, parts_of, quote
from .columns import readable
from .images import Size, image_column
from .labels import check_labels
from .pixels import ENDINGS, OTHER_ENDINGS
from .spans import Spans, shown

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval")
_MAX_DEPTH = 8  # of folders below that of a class
_LOOK_ENTRIES = 1000  # in each of the folders that are searched for a first image


def _is_hidden(name: str) -> bool:
    return name[0] in "._"


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        entries = [entry for entry in found if not _is_hidden(entry.name)]
    return sorted(entries, key=lambda entry: entry.name)


def holds_images(folder: Path, depth: int = 2) -> bool:
    """Whether there are images in a folder of a folder, or one deeper (``train/CLASS/``)."""
    with readable(str(folder)):
        folders = [e for e in _entries(folder)[:_LOOK_ENTRIES] if e.is_dir(follow_symlinks=False)]
        for entry in folders:
            inner = _entries(Path(entry.path))[:_LOOK_ENTRIES]
            if any(_ending(e.name) in ENDINGS for e in inner):
                return True
    return depth > 1 and any(holds_images(Path(e.path), depth - 1) for e in folders)


def open_image_folder(
    folder: Path, name: str, *, split: str | None, size: Size | None, labelled: bool
) -> ColumnSource:
    """Images by class: ``folder/CLASS/*.png``, or ``folder/SPLIT/CLASS/*.png`` with a split.

    Args:
        folder: Holds one folder a class, or images side by side when labels are not wanted.
        name: What the user typed.
        split: A folder in it that holds the folders of classes; None for none.
        size: Height and width that all images are brought to; None if they have one size.
        labelled: Whether the classes are wanted as labels.

    Returns:
        The source: images in the sorted order of their paths, and classes in the sorted order of
        their names.

    Raises:
        DataError: No images or no classes, several sizes, links that lead out of the folder,
            images that are damaged or of a kind that is not read.
        NothingToScan: No images.

    **Cost**: The first 16 KiB of every file; about 200 bytes a row are kept.
    """
    with readable(name):
        root = folder if split is None else _choose(folder, name, split)
        loose, classes = _sort_out(root, name, is_split=split is not None)
        if labelled and not classes:
            raise DataError(
                f"{name}: holds no folder of a class; put the images of each class in a folder of "
                "their own, or give the labels apart (labels=)"
            )
        paths, labels = list(loose), [0] * len(loose)
        for number, one in enumerate(classes):
            found = _walk(root / one, root.resolve(), f"{name}/{shown(one)}")
            inner = [f"{one}/{path}" for path in found]
            if not inner:
                raise DataError(
                    f"{name}: the folder {quote(one)} holds no images ({', '.join(ENDINGS)}); "
                    "remove it, or fill it"
                )
            paths += inner
            labels += [number] * len(inner)
        spans = _spans(root, name, paths)
    source = ColumnSource(name, image_column(spans, name, resize=size))
    if not labelled:
        return source
    y = check_labels(np.array(labels, np.int64), rows=len(paths), name=name)
    return source.with_labels(y, tuple(_text(one, name) for one in classes))


def _sort_out(root: Path, name: str, *, is_split: bool) -> tuple[list[str], list[str]]:
    """Images side by side, and folders of classes: one or the other."""
    entries, base = _entries(root), root.resolve()
    linked = [e.name for e in entries if e.is_dir() and e.is_symlink()]
    if linked:
        raise DataError(_linked(f"{name}/{shown(linked[0])}"))
    classes = [e.name for e in entries if e.is_dir()]
    loose = [e.name for e in entries if not e.is_dir() and _is_image(e, base, name)]
    if classes and loose:
        raise DataError(
            f"{name}: {len(loose)} images lie beside the folders of the classes, the first is "
            f"{quote(loose[0])}; move them into one"
        )
    if classes and not is_split and set(classes) <= set(SPLITS):
        known = parts_of(name, classes)
        raise DataError(f"{name}: its folders are named like splits, not classes; write {known}")
    return loose, classes


def _choose(folder: Path, name: str, split: str) -> Path:
    """The folder of a split: one of those that are there, so that no name leads elsewhere."""
    known = [e.name for e in _entries(folder) if e.is_dir(follow_symlinks=False)]
    if split not in known:
        raise DataError(
            f"{name}: no folder {quote(split)}; it holds {listing(known) or 'no folders'}; "
            "write FOLDER#SPLIT"
        )
    return folder / split


def _walk(folder: Path, base: Path, name: str, depth: int = 0) -> Iterator[str]:
    """Images in a folder and in those below it, relative to it, in sorted order."""
    if depth > _MAX_DEPTH:
        raise DataError(f"{name}: lies more than {_MAX_DEPTH} folders deep; bring it further up")
    for entry in _entries(folder):
        if entry.is_dir():
            if entry.is_symlink():
                raise DataError(_linked(f"{name}/{shown(entry.name)}"))
            inner = _walk(folder / entry.name, base, f"{name}/{shown(entry.name)}", depth + 1)
            yield from (f"{entry.name}/{path}" for path in inner)
        elif _is_image(entry, base, name):
            yield entry.name


def _is_image(entry: os.DirEntry[str], base: Path, name: str) -> bool:
    """Whether a file is to be read, once it is sure that it may be."""
    ending = _ending(entry.name)
    if ending in OTHER_ENDINGS:
        raise DataError(
            f"{name}/{shown(entry.name)}: images that end in {ending} are not read; save it as "
            "PNG, or remove it"
        )
    if ending not in ENDINGS:
        return False
    if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(base):
        raise DataError(_linked(f"{name}/{shown(entry.name)}"))
    if not entry.is_file():
        raise DataError(f"{name}/{shown(entry.name)}: is no regular file; remove it")
    return True


def _linked(name: str) -> str:
    return (
        f"{name}: is a link to a folder, or out of the folder of the images, and is not followed; "
        "put a copy in its place, or remove it"
    )


def _text(folder: str, name: str) -> str:
    """The name of a class, if it is text."""
    try:
        folder.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name}: the name of the folder {quote(folder)} is no UTF-8; rename it"
        ) from error
    return folder


def _spans(root: Path, name: str, paths: list[str]) -> Spans:
    sizes = np.fromiter((os.stat(root / path).st_size for path in paths), np.int64, len(paths))
    return Spans(
        [f"{root}{os.sep}{path}" for path in paths], [f"{name}/{shown(path)}" for path in paths],
        np.arange(len(paths)), np.zeros(len(paths), np.int64), sizes,
    )  # fmt: skip
