"""What rows one prediction comes from, as text, as JSON and as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpoison.report._page import asset, content_hash
from jaxpoison.report._report import Pictures, class_title
from jaxpoison.report._text import MINUS, number, percent, plural, visible
from jaxpoison.report.files import (
    EXPLANATION_NAMES,
    read_schema,
    text_saver,
    to_json,
    write_files,
)
from jaxpoison.report.html import fitted_page

if TYPE_CHECKING:
    import os

    import numpy as np

_HERE = Path(__file__).parent
_FORMS = {
    "leave-one-out": "one Newton step without each row, its leverage corrected; the loss evaluated",
    "influence": "first order in the removed row, without its leverage: rows that determine their "
    "own fit weigh more than shown",
}


@dataclass(frozen=True, eq=False)
class Explanation:
    """The rows that help and harm the prediction of one row.

    Attributes:
      document: exactly the content of `explanation.json`.
      index: [n] int64 input row numbers.
      scores: [n] float32 predicted change of the row's loss when each other row is removed, nats;
        positive: helpful. 0 for the row itself.
      pictures: what the HTML shows: the row, then helpful, then harmful ones.
    """

    document: dict[str, Any]
    index: np.ndarray
    scores: np.ndarray
    pictures: Pictures

    def summary(self) -> str:
        """Describes the result in a short table for a terminal; hidden characters are shown."""
        doc, row = self.document, self.document["row"]
        given = class_title(row["label"], row["class_name"])
        guess = class_title(row["predicted"], row["predicted_name"])
        lines = [
            f"row {row['index']} of {visible(doc['source']['name'], 120)}: {given}, loss "
            f"{number(row['loss'])} nats",
            f"predicted: {guess} ({percent(row['predicted_probability'])})",
            f"removing the row itself: {signed(row['self_influence'])}",
        ]
        for what, name in (("helps", "helpful"), ("harms", "harmful")):
            lines.append(f"{what} the prediction most, by the change of the loss without the row:")
            lines += [
                f"  {entry['index']:>9}  {signed(entry['score']):>10}  "
                f"{class_title(entry['label'], entry['class_name'])}"
                for entry in doc[name]
            ] or ["  none"]
        return "\n".join(lines)

    def html(self) -> str:
        """Renders the page: one file that loads nothing, with everything from the data escaped."""
        return fitted_page("explanation.html.j2", lambda side: _context(self, side))

    def write(self, out_dir: str | os.PathLike[str]) -> Path:
        """Writes `explanation.html` and `explanation.json`, both or neither.

        Args:
          out_dir: a folder that does not exist yet (it is created, with its parents) or is empty.

        Returns:
          The folder.

        Raises:
          UsageError: if the folder cannot be used; `check_out_dir` tells the same beforehand.
          OutputError: if writing failed: no space, no permission. Nothing is left behind.
        """
        texts = dict(zip(EXPLANATION_NAMES, (self.html(), to_json(self.document)), strict=True))
        return write_files(out_dir, {name: text_saver(text) for name, text in texts.items()})


def load_explanation_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) that every `explanation.json` obeys."""
    return read_schema("explanation.schema.json")


def class_names_of(classes: Any, names: Sequence[str] | None) -> list[str]:
    """Names of classes, by their numbers where they have no other; untrusted text.

    Args:
      classes: class numbers.
      names: by class number, or None.
    """
    numbers = [int(label) for label in classes]
    return [names[k] if names and k < len(names) else str(k) for k in numbers]


def signed(value: float) -> str:
    """Formats a change with its sign."""
    text = number(value)
    return text if text.startswith(MINUS) or text == "0" else f"+{text}"


def _context(explanation: Explanation, side: int) -> dict[str, Any]:
    from jaxpoison.report import _views

    doc, row = explanation.document, explanation.document["row"]
    items = _views.example_items(explanation.pictures, side)
    for item, shown in zip(items, [row["self_influence"], *_scores(doc)], strict=True):
        item["change"] = signed(shown)
    middle = 1 + len(doc["helpful"])
    css = asset(_HERE / "report.css", _HERE / "explanation.css")
    return {
        "doc": doc, "row": row, "item": items[0], "helpful": items[1:middle],
        "harmful": items[middle:], "title": class_title(row["label"], row["class_name"]),
        "guess": class_title(row["predicted"], row["predicted_name"]),
        "is_right": row["label"] == row["predicted"],
        "form": _FORMS[doc["method"]["form"]],
        "dropped": plural(doc["n_dropped"], "row"),
        "classes": [
            {**entry, "title": class_title(entry["label"], entry["class_name"]),
             "total": signed(entry["score"]), "harm_text": signed(entry["harm"])}
            for entry in doc["classes"]
        ],
        "plan": "\n".join(
            visible(line, 300) for line in json.dumps(doc["plan"], indent=2).splitlines()
        ),
        "css": css, "css_hash": content_hash(css),
    }  # fmt: skip


def _scores(doc: dict[str, Any]) -> list[float]:
    return [entry["score"] for entry in (*doc["helpful"], *doc["harmful"])]
