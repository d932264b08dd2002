"""An evaluation as one HTML page that needs nothing else, in the look of a scan's report."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxpoison.report as report_room
from jaxpoison.evaluate._notes import METHOD
from jaxpoison.evaluate.views import Section, sections
from jaxpoison.report import _text
from jaxpoison.report._page import asset, content_hash, environment

if TYPE_CHECKING:
    from jinja2 import Template

_HERE, _REPORT = Path(__file__).parent, Path(report_room.__file__).parent


def render_page(document: dict[str, Any]) -> str:
    """Renders the page: equal content gives an equal page.

    Nothing is loaded from elsewhere, and a Content-Security-Policy forbids it. Text from files is
    escaped, and its hidden characters are made visible.

    Args:
        document: Of ``summarise``.

    Returns:
        HTML, to be stored as UTF-8.
    """
    css = asset(_REPORT / "report.css", _HERE / "page.css")
    script = asset(_REPORT / "report.js")
    shown = sections(document)
    return _template().render(
        doc=document, sections=[(f"s{k}", s) for k, s in enumerate(shown)], method=METHOD,
        facts=_facts(document), css=css, script=script,
        css_hash=content_hash(css), script_hash=content_hash(script), is_matrix=_is_matrix,
    )  # fmt: skip


def _facts(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The head's figures: name, value, remark."""
    clean, poisoned = document["clean"], document["poisoned"]
    scans = sum(len(entry["seeds"]) for entry in clean)
    quiet = sum(entry["verdicts"]["clean"] for entry in clean)
    attacked = sum(len(entry["seeds"]) for entry in poisoned)
    named = sum(len(entry["seeds"]) - entry["verdicts"]["clean"] for entry in poisoned)
    return [
        ("Sets", str(len(document["sets"])), _text.plural(len(document["seeds"]), "seed")),
        (
            "Attacks",
            str(len({entry["case"] for entry in poisoned})),
            _text.plural(attacked, "scan"),
        ),
        ("Clean scans called clean", f"{quiet} of {scans}", "the rest are false alarms"),
        ("Poisoned scans not called clean", f"{named} of {attacked}", "the rest were missed"),
    ]


def _is_matrix(section: Section) -> list[bool]:
    """Which tables of a section are heat maps."""
    return [any(f.level is not None for row in t.rows for f in row) for t in section.tables]


@lru_cache(maxsize=1)
def _template() -> Template:
    return environment(_HERE).get_template("page.html.j2")
