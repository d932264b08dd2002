"""Where the members of a tar archive lie: headers are walked, nothing is extracted.

What Python's ``tarfile`` lets pass in silence is an error here: an archive that was cut, and data
behind its end, which other readers do see.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from jaxpoison._check import DataError

from .base import quote
from .columns import readable

_MAX_HEADER_READ = 1 << 20  # a long name or an extended header; tarfile reads what it declares
_MAX_TAIL = 16 << 20  # of zeros behind the end
_BLOCK = 512
_BUFFER = 1 << 20


class Member(NamedTuple):
    """A regular file in an archive."""

    name: str
    offset: int
    size: int


class _Bounded:
    """A file that refuses to read as much as a hostile header may declare."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= _MAX_HEADER_READ:
            raise DataError(
                f"{self._name}: a header declares {count} bytes, at most {_MAX_HEADER_READ} are "
                "read; make the archive again"
            )
        return self._file.read(count)


def members(file: IO[bytes], path: Path, name: str) -> Iterator[Member]:
    """The regular files of an archive, in the order in which they are stored.

    Args:
        file: The archive, open for reading; the caller may move it between two members.
        path: Where it lies.
        name: What to call it in a message.

    Yields:
        Members; folders and comments are passed over.

    Raises:
        DataError: No tar archive, compressed, cut, data behind the end, links, devices, sparse
            files, names that lead out of the archive, or names that occur twice.
    """
    total = path.stat().st_size
    seen: set[str] = set()
    with readable(name):
        try:
            # "r:" opens nothing that is compressed.
            bounded = cast("Any", _Bounded(file, name))
            archive: Any = tarfile.open(fileobj=bounded, mode="r:", encoding="utf-8")
        except tarfile.TarError as error:
            raise DataError(
                f"{name}: no tar archive, or a compressed one ({error}); give it uncompressed"
            ) from error
        while True:
            try:
                info = archive.next()
            except (tarfile.TarError, RecursionError) as error:
                raise DataError(
                    f"{name}: damaged or truncated archive ({error}); copy or make it again"
                ) from error
            if info is None:
                break
            archive.members.clear()  # or a long archive fills the memory with its headers
            member = _check(info, total, name)
            if member is None:
                continue
            if member.name in seen:
                # Readers differ in which one they take, so a scan could see other rows.
                raise DataError(
                    f"{name}: member {quote(member.name)} occurs twice; make the archive again"
                )
            seen.add(member.name)
            yield member
        _check_end(file, archive.offset, total, name)


def _check(info: tarfile.TarInfo, total: int, name: str) -> Member | None:
    label = f"{name}: member {quote(info.name)}"
    parts = info.name.split("/")
    if info.name.startswith(("/", "\\")) or ".." in parts or "\0" in info.name:
        raise DataError(f"{label} leads out of the archive; make it again with relative names")
    if info.size < 0:  # would lead back, and round for ever
        raise DataError(f"{label} declares {info.size} bytes; make the archive again")
    if info.isdir():
        return None
    if not info.isreg() or info.issparse():
        kind = "link" if info.issym() or info.islnk() else "device or other special file"
        raise DataError(f"{label} is a {kind}; store plain files only")
    if info.offset_data + info.size > total:
        raise DataError(
            f"{label} declares {info.size} bytes, the archive ends after "
            f"{max(0, total - info.offset_data)} of them; copy or make it again"
        )
    name_in = "/".join(part for part in parts if part not in ("", "."))
    try:
        name_in.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{label}: its name is no UTF-8; rename it") from error
    return Member(name_in, info.offset_data, info.size)


def _check_end(file: IO[bytes], end: int, total: int, name: str) -> None:
    """An archive ends with a block of zeros, and nothing but zeros follows."""
    held = total - end
    file.seek(end)
    tail = file.read(min(held, _MAX_TAIL)) if held > 0 else b""
    if len(tail) < _BLOCK:
        raise DataError(f"{name}: truncated: the end of the archive is missing; copy it again")
    if held > _MAX_TAIL or tail.strip(b"\0"):
        raise DataError(
            f"{name}: holds data behind its last member, or a damaged header; make it again"
        )


def open_for_walk(path: Path) -> IO[bytes]:
    """The archive, buffered for headers that lie close to each other."""
    return open(path, "rb", _BUFFER)
