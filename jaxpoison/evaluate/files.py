"""The folder of an evaluation: records, and the tables made of them in three forms."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from jaxpoison._check import UsageError
from jaxpoison.evaluate.markdown import HEADING, render_markdown
from jaxpoison.evaluate.page import render_page
from jaxpoison.evaluate.records import FILE_NAME
from jaxpoison.report.files import OutputError, to_json

TABLES = ("evaluation.json", "evaluation.md", "evaluation.html")


def check_folder(out: str | Path) -> Path:
    """A folder that records can go to: a new or empty one, or one of an earlier run.

    Raises:
        UsageError: It is a file, or holds something else.
    """
    if not str(out):
        raise UsageError("out is empty; name a folder for the records")
    folder = Path(out)
    if folder.is_dir():
        names = sorted(each.name for each in folder.iterdir())
        if names and FILE_NAME not in names:
            raise UsageError(
                f"out {str(out)!r} holds files, such as {names[0]!r}, but no {FILE_NAME} of an "
                "earlier evaluation; choose another folder"
            )
        for name in {FILE_NAME, *TABLES} & set(names):
            if not (folder / name).is_file():
                raise UsageError(f"{str(folder / name)!r} is no file; choose another folder")
    elif folder.exists():
        raise UsageError(f"out {str(out)!r} is not a folder; choose another name")
    return folder


def check_docs(docs: str | Path) -> Path:
    """A Markdown file that may be written: a new one, or an evaluation that is made anew.

    Raises:
        UsageError: It is a folder or another file, or can not be there.
    """
    path = Path(docs)
    if not path.name:
        raise UsageError(f"docs is {str(docs)!r}; name a Markdown file")
    if path.exists():
        if not path.is_file():
            raise UsageError(f"docs {str(docs)!r} is no file; name a Markdown file")
        with path.open("rb") as file:
            if file.read(len(HEADING)) not in (b"", HEADING.encode()):
                raise UsageError(
                    f"docs {str(docs)!r} holds something else than an evaluation; choose another "
                    "name, or remove it"
                )
    place = next(each for each in path.absolute().parents if each.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UsageError(f"docs {str(docs)!r}: {str(place)!r} can not be written to; name another")
    return path


def write_tables(document: dict[str, Any], folder: Path, docs: str | Path | None = None) -> None:
    """Writes the JSON, Markdown and HTML forms of a document, and the Markdown a second time.

    Args:
        document: Of ``summarise``.
        folder: That holds the records.
        docs: Another Markdown file, or None.
    """
    text = render_markdown(document)
    forms = dict(zip(TABLES, (to_json(document), text, render_page(document)), strict=True))
    for name, content in forms.items():
        _replace(folder / name, content)
    if docs is not None:
        with contextlib.suppress(OSError):  # writing the file says it better
            Path(docs).parent.mkdir(parents=True, exist_ok=True)
        _replace(Path(docs), text)


def _replace(path: Path, content: str) -> None:
    """Never half a file: a reader sees the old one or the new one."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(content, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise OutputError(
            f"{path}: can not be written ({error.strerror or error}); the records are kept, "
            "--render writes the tables anew"
        ) from error
    finally:
        part.unlink(missing_ok=True)
