"""An evaluation as a Markdown page."""

from __future__ import annotations

import re
from typing import Any

from jaxpoison.evaluate._notes import METHOD
from jaxpoison.evaluate.views import Field, Table, sections
from jaxpoison.report import _text

HEADING = "# Evaluation\n\nMade by `jaxpoison evaluate`."
"""Every page begins so."""

_LONGEST = 400
_MARKUP = re.compile(r"([\\`*_\[\]<>|#!~&$])")


def render_markdown(document: dict[str, Any]) -> str:
    """All tables as Markdown; text that came from files has no markup left in it.

    Args:
        document: Of ``summarise``.

    Returns:
        Text that ends with a newline.
    """
    seeds = ", ".join(map(str, document["seeds"])) or "none"
    lines = [
        f"{HEADING} Suite {plain(document['suite'])} (version "
        f"{document['suite_version']}), jaxpoison {plain(', '.join(document['versions']))}, seeds "
        f"{seeds}.",
        "",
        "## How it is measured",
        "",
    ]
    lines += [line for paragraph in METHOD for line in (paragraph, "")]
    for section in sections(document):
        lines += [f"## {plain(section.title)}", ""]
        lines += [f"{plain(section.note)}.", ""] if section.note else []
        for table in section.tables:
            lines += [f"### {table.title}", "", *([table.note, ""] if table.note else [])]
            lines += [*_rows(table), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def plain(text: str) -> str:
    """Text as Markdown shows it: on one line, markup escaped, nothing hidden."""
    return _MARKUP.sub(r"\\\1", _text.visible(text, _LONGEST))


def _rows(table: Table) -> list[str]:
    head = [plain(name) for name in table.columns]
    rule = ["---:" if table.is_numeric(k) else "---" for k in range(len(table.columns))]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *map(_cells, table.rows))]


def _cells(row: list[Field]) -> list[str]:
    return [plain(f.text) + (f" ({plain(f.range)})" if f.range else "") for f in row]
