"""``.npz``: stored members are read at their offset in the archive, compressed ones streamed."""

from __future__ import annotations

import struct
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

from jaxpoison._check import DataError

from .base import Column, ColumnSource, listing, parts_of, quote
from .columns import FileColumn, Stream, StreamColumn, readable
from .labels import Labels, read_labels
from .npy import check_size, read_header

_LOCAL_HEADER = struct.Struct("<4s22xHH")


def members(path: Path, name: str) -> list[str]:
    """Names of the arrays in an archive, without ``.npy``.

    Raises:
        DataError: Not an archive, or a name that occurs twice.
    """
    with readable(name), zipfile.ZipFile(path) as archive:
        names = [i.filename.removesuffix(".npy") for i in archive.infolist() if not i.is_dir()]
    for member, count in Counter(names).items():
        if count > 1:
            # Readers differ in which one they take, so a scan could see other rows than training.
            raise DataError(f"{name}: member {quote(member)} occurs twice; save it again")
    return names


def open_member(path: Path, member: str, name: str) -> Column:
    """One array of an archive, as a column.

    Args:
        path: The archive.
        member: Its name, without ``.npy``.
        name: What the user typed.

    Returns:
        A column over the stored bytes, or over the decompressed stream.

    Raises:
        DataError: Damaged, encrypted, or a header that declares another size than the archive.
    """
    label = f"{name}: member {quote(member)}"
    with readable(label), zipfile.ZipFile(path) as archive:
        known = archive.namelist()
        info = archive.getinfo(f"{member}.npy" if f"{member}.npy" in known else member)
        if info.flag_bits & 1:
            raise DataError(f"{label}: is encrypted; save it again with np.savez")
        with archive.open(info) as stream:
            header = read_header(stream, label)
        check_size(header, info.file_size - header.offset, label)
        if info.compress_type == zipfile.ZIP_STORED:
            start = _data_offset(path, info, label)
            return FileColumn(
                path,
                label,
                start + header.offset,
                header.shape,
                header.dtype,
                fortran=header.fortran,
            )
    if header.fortran and len(header.shape) > 1:
        raise DataError(
            f"{label}: is compressed and in Fortran order, which cannot be streamed by rows; "
            "save it uncompressed (np.savez), or save np.ascontiguousarray(x)"
        )

    open_stream = partial(_open_stream, path.absolute(), info.filename)
    return StreamColumn(open_stream, label, header.offset, header.shape, header.dtype)


def _open_stream(path: Path, filename: str) -> Stream:
    with zipfile.ZipFile(path) as archive:  # the member keeps the file open by itself
        return archive.open(filename)


def _data_offset(path: Path, info: zipfile.ZipInfo, name: str) -> int:
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        raw = file.read(_LOCAL_HEADER.size)
    if len(raw) < _LOCAL_HEADER.size or raw[:4] != b"PK\x03\x04":
        raise DataError(f"{name}: damaged zip entry; save it again with np.savez")
    _, name_size, extra_size = _LOCAL_HEADER.unpack(raw)
    start = info.header_offset + _LOCAL_HEADER.size + name_size + extra_size
    held = path.stat().st_size - start
    if info.compress_size != info.file_size or held < info.file_size:
        raise DataError(
            f"{name}: declares {info.file_size} bytes, the file holds {held}; copy or save it again"
        )
    return int(start)


def open_npz(path: Path, name: str, *, split: str | None, labelled: bool) -> ColumnSource:
    """Members ``x`` and ``y`` of an archive (``x_train``, ``y_train`` with split "train").

    Args:
        path: The archive.
        name: What the user typed.
        split: None, or the ending of the member names.
        labelled: Whether ``y`` is read, and must be there.

    Returns:
        The source.

    Raises:
        DataError: Missing members, or anything wrong with one of them.
    """
    names = members(path, name)
    ending = "" if split is None else f"_{split}"
    x_name, y_name = f"x{ending}", f"y{ending}"
    if not labelled and split is None and len(names) == 1:
        x_name = names[0]
    for wanted in (x_name, y_name) if labelled else (x_name,):
        if wanted not in names:
            raise DataError(_missing(name, wanted, names, split))
    column = open_member(path, x_name, name)
    source = ColumnSource(name, column)
    if not labelled:
        return source
    y = open_member(path, y_name, name)
    return source.with_labels(
        *read_labels(y, rows=len(source), name=f"{name}: member {quote(y_name)}")
    )


def open_npz_labels(path: Path, name: str, *, rows: int, split: str | None) -> Labels:
    """The labels of an archive whose inputs are not wanted.

    Raises:
        DataError: No member ``y`` and more than one other, or not one class number a row.
    """
    names = members(path, name)
    wanted = "y" if split is None else f"y_{split}"
    if split is None and len(names) == 1:
        wanted = names[0]
    if wanted not in names:
        raise DataError(_missing(name, wanted, names, split))
    return read_labels(open_member(path, wanted, name), rows=rows, name=name)


def _missing(name: str, wanted: str, names: list[str], split: str | None) -> str:
    base = name if split is None else name.rpartition("#")[0]
    splits = sorted(n[2:] for n in names if n.startswith("x_") and f"y_{n[2:]}" in names)
    if splits:
        step = "write " + parts_of(base, splits)
    elif wanted.startswith("y"):
        step = "add it, or give the labels apart (labels=)"
    else:
        step = "save it with np.savez(file, x=..., y=...)"
    return f"{name}: no member {quote(wanted)}; it holds {listing(names) or 'nothing'}; {step}"
