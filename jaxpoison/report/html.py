"""Render a Report as one HTML file that needs nothing else, and as a card for notebooks."""

from __future__ import annotations

import json
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpoison.report import _notes, _text
from jaxpoison.report._page import asset, content_hash, environment
from jaxpoison.report._report import VERDICTS, attack_line, class_title

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2 import Template

    from jaxpoison.report._report import Report

_HERE = Path(__file__).parent
_MAX_BYTES = 2_900_000
_THUMB_SIDES = (64, 48, 32, 16, 8)  # tried in turn until the page is small enough
_MAX_LISTED = 60
_CARD_COLORS = {"clean": "#0f766e", "suspicious": "#b45309", "poisoned": "#b91c1c"}


def render_html(report: Report) -> str:
    """Renders the page: equal content gives an equal page, whatever the clock says.

    Nothing is loaded from elsewhere, and a Content-Security-Policy forbids it: only the script
    and the style sheet with the right hash run, only `data:` images show. Text from the data is
    escaped, and its hidden characters are made visible.

    Args:
      report: the result of a scan, of any size; what is shown is bounded.

    Returns:
      HTML of less than 3 MB, to be stored as UTF-8.
    """
    return fitted_page("report.html.j2", lambda side: _context(report, side))


def fitted_page(template: str, context_of: Callable[[int], dict[str, Any]]) -> str:
    """Renders a page with the largest thumbnails that keep it below 3 MB.

    Args:
      template: its file name.
      context_of: what the template is given, for a side of the thumbnails in pixels.
    """
    page = ""
    for side in _THUMB_SIDES:
        page = page_template(template).render(context_of(side))
        if len(page.encode("utf-8")) <= _MAX_BYTES:
            break
    return page


def _context(report: Report, thumb_side: int) -> dict[str, Any]:
    from jaxpoison.report import _views

    doc = report.report
    cards, left = _views.cards(report, thumb_side)
    attacks = doc["suspected_attacks"]
    carded = {card["label"] for card in cards if card["suspected"]}
    kinds = [a["kind"] for a in attacks]  # each is explained where it comes first
    listed = [
        {
            **a,
            "about": _notes.KINDS.get(a["kind"]) if kinds.index(a["kind"]) == i else None,
            "has_card": a["target_class"] in carded,
            "title": class_title(a["target_class"], a["target_name"]),
            "source": None
            if a["source_class"] is None
            else _views.class_name(report.pictures, a["source_class"]),
            "fired": list(dict.fromkeys(t["detector"] for t in a["evidence"] if t["fired"])),
        }
        for i, a in enumerate(attacks[:_MAX_LISTED])
    ]
    calibration = _notes.CALIBRATED if doc["calibrated"] else _notes.UNCALIBRATED
    css, script = asset(_HERE / "report.css"), asset(_HERE / "report.js")
    plan = json.dumps(doc["plan"], indent=2, default=str)
    return {
        "doc": doc, "verdict": report.verdict, "headline": VERDICTS[report.verdict],
        "meaning": _notes.MEANING[report.verdict], "steps": _notes.NEXT_STEPS[report.verdict],
        "limits": (calibration, *_notes.LIMITS), "methods": _notes.METHODS,
        "attacks": listed, "num_more_attacks": len(attacks) - len(listed),
        "matrix": _views.matrix(report),
        "suspected": [card for card in cards if card["suspected"]],
        "quiet": [card for card in cards if not card["suspected"]],
        "num_suspected": len(report.pictures.suspected),
        "loose": _views.loose_group(report, left, thumb_side),
        "table": _views.table(report),
        "skipped": doc["skipped_classes"][:_MAX_LISTED],
        "num_more_skipped": max(0, len(doc["skipped_classes"]) - _MAX_LISTED),
        "idle": [name for name, run in doc["detectors"].items() if not run["ran"]],
        "class_name": lambda label: _views.class_name(report.pictures, label),
        "plan": "\n".join(_text.visible(line, 300) for line in plan.splitlines()[:400]),
        "css": css, "script": script,
        "css_hash": content_hash(css), "script_hash": content_hash(script),
    }  # fmt: skip


@lru_cache(maxsize=4)
def page_template(name: str) -> Template:
    """A template of this package by its file name, with the filters that all of them use."""
    from markupsafe import Markup

    env = environment(_HERE)
    env.filters.update(
        count=_text.count, number=_text.number, percent=_text.percent, seconds=_text.seconds,
        visible=_text.visible, plural=_text.plural,
        lines=lambda text: Markup("\n").join(text.split("\n")),
    )  # fmt: skip
    return env.get_template(name)


def render_card(report: Report) -> str:
    """Renders a short summary for a notebook: escaped, no script, readable on dark and light.

    Args:
      report: the result of a scan.

    Returns:
      One `div` element.
    """
    doc = report.report
    color = _CARD_COLORS[report.verdict]
    attacks = doc["suspected_attacks"]
    items = "".join(f"<li>{escape(attack_line(attack))}</li>" for attack in attacks[:8])
    if len(attacks) > 8:
        items += f"<li>and {len(attacks) - 8} more</li>"
    facts = (
        f"flagged <b>{_text.count(doc['n_flagged'])}</b> of "
        f"{_text.plural(doc['n_samples'], 'row')} in "
        f"{_text.plural(doc['n_classes'], 'class', 'classes')} · estimated rate "
        f"{escape(_text.percent(doc['estimated_rate']))} · "
        f"p<sub>poisoned</sub> {escape(_text.number(doc['p_poisoned']))}"
    )
    return (
        f'<div style="border-left:4px solid {color};padding:.4em .9em;margin:.4em 0;'
        'font-family:system-ui,sans-serif;line-height:1.45;max-width:48em">'
        f'<div><b style="background:{color};color:#fff;border-radius:3px;padding:.1em .5em">'
        f"{report.verdict}</b> {escape(VERDICTS[report.verdict])}.</div>"
        f'<div style="margin-top:.3em">{facts}</div>'
        + (f'<ul style="margin:.3em 0 .3em 1.2em;padding:0">{items}</ul>' if items else "")
        + f'<div style="opacity:.7;font-size:.9em">{escape(_text.visible(doc["note"], 200))} · '
        f"{escape(_text.visible(doc['source']['name'], 80))}</div></div>"
    )
