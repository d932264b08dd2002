"""Certified predictions as text, as Parquet, as JSON and as one HTML page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from jaxpoison.report import _promises
from jaxpoison.report._page import asset, content_hash
from jaxpoison.report._report import Pictures, class_title
from jaxpoison.report._text import count, percent, plural, visible
from jaxpoison.report.files import (
    CERTIFICATE_NAMES,
    read_schema,
    save_parquet,
    text_saver,
    to_json,
    write_files,
)
from jaxpoison.report.html import fitted_page

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

_HERE = Path(__file__).parent
_LISTED_RADII = 12  # of the table behind the curve, and of the terminal at most


@dataclass(frozen=True, eq=False)
class CertificateReport:
    """Predictions of test rows, and how much poison each withstands.

    Attributes:
      document: exactly the content of `certificate.json`.
      columns: of `predictions.parquet`, [v] each: index, label where labels are known (masked where
        the class is none of the training rows'), prediction, radius, votes_first, votes_second,
        runner_up, and for each kind of change how many of it are withstood.
      pictures: the least certain rows, in the order of `document["least_certain"]`.
    """

    document: dict[str, Any]
    columns: dict[str, Any]
    pictures: Pictures

    def summary(self) -> str:
        """Describes the result in a few lines for a terminal; hidden characters are shown."""
        doc = self.document
        certified = plural(doc["certified"], "row")
        lines = [
            f"{plural(doc['test']['rows'], 'row')} of {visible(doc['test']['name'], 120)} "
            f"predicted by {plural(doc['subsets'], 'model')} trained on "
            f"{plural(doc['train']['rows'], 'row')} of {visible(doc['train']['name'], 120)}",
            f"certified against {_promises.one_change(doc['threat']['costs'])}: {certified} "
            f"({percent(doc['certified'] / doc['test']['rows'])})",
        ]
        if doc["accuracy"] is not None:
            lines.append(
                f"accuracy {percent(doc['accuracy']['clean'])} (one model alone "
                f"{percent(doc['accuracy']['base'])}), median radius {doc['median']}"
            )
        what = "right and certified" if doc["accuracy"] is not None else "certified"
        lines.append(f"radius in touched cells, and rows {what} there:")
        lines += [f"  {row['radius']:>7,}  {percent(row['shown'])}" for row in radius_rows(doc)]
        lines.append(f"one change touches: {_promises.costs_line(doc['threat']['costs'])}")
        lines += [f"note: {visible(note, 300)}" for note in doc["notes"]]
        return "\n".join(lines)

    def html(self) -> str:
        """Renders the page: one file that loads nothing, with everything from the data escaped."""
        return fitted_page("certificate.html.j2", lambda side: _context(self, side))

    def write(self, out_dir: str | os.PathLike[str], *, resume: bool = False) -> Path:
        """Writes `predictions.parquet`, `certificate.html` and `certificate.json`, all or none.

        Args:
          out_dir: a folder that does not exist yet (it is created, with its parents) or is empty.
          resume: it may hold what the run has done so far, which stays there.

        Returns:
          The folder.

        Raises:
          UsageError: if the folder cannot be used; `check_out_dir` tells the same beforehand.
          OutputError: if writing failed: no space, no permission. Nothing is left behind.
        """
        texts = {"certificate.html": self.html(), "certificate.json": to_json(self.document)}
        savers: dict[str, Callable[[IO[bytes]], object]] = {
            name: text_saver(text) for name, text in texts.items()
        }
        savers["predictions.parquet"] = lambda file: save_parquet(self.columns, file)
        return write_files(out_dir, {n: savers[n] for n in CERTIFICATE_NAMES}, resume=resume)


def load_certificate_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) that every `certificate.json` obeys."""
    return read_schema("certificate.schema.json")


def radius_rows(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """A dozen radii at even steps from 0 to the largest, with what is certified there."""
    curve = doc["curve"]
    shown = curve["share"] if curve["accuracy"] is None else curve["accuracy"]
    last = len(curve["radius"]) - 1
    step = max(1, -(-last // (_LISTED_RADII - 1)))
    return [
        {
            "radius": curve["radius"][at],
            "right": None if curve["accuracy"] is None else curve["accuracy"][at],
            "share": curve["share"][at],
            "shown": shown[at],
        }
        for at in range(0, last + 1, step)
    ]


def _context(report: CertificateReport, side: int) -> dict[str, Any]:
    from jaxpoison.report import _views, svg

    doc = report.document
    items = _views.example_items(report.pictures, side)
    for item, entry in zip(items, doc["least_certain"], strict=True):
        item.update(_shown(entry))
    curve = doc["curve"]
    series = [("any prediction", curve["share"])]
    if curve["accuracy"] is not None:
        series.insert(0, ("right", curve["accuracy"]))
    css = asset(_HERE / "report.css", _HERE / "certificate.css")
    radius = doc["median"] if doc["median"] is not None else _middle(doc)
    return {
        "doc": doc, "items": items, "rows": radius_rows(doc), "radius": radius,
        "chart": svg.steps(curve["radius"], series, "touched cells", "rows certified"),
        "costs": _promises.cost_rows(doc["threat"]["costs"], radius),
        "promised": _promises.promised(doc), "not_promised": _promises.not_promised(doc),
        "scheme": _promises.SCHEMES[doc["scheme"]], "threat": _promises.THREATS[
            doc["threat"]["name"]],
        "unit": _promises.one_change(doc["threat"]["costs"]),
        "manifest": _lines({"learner": doc["manifest"]["learner"], "manifest": doc["manifest"]}),
        "plan": _lines(doc["plan"]),
        "css": css, "css_hash": content_hash(css),
    }  # fmt: skip


def _shown(entry: dict[str, Any]) -> dict[str, Any]:
    label = entry["label"]
    return {
        "radius": count(entry["radius"]),
        "votes": f"{count(entry['votes_first'])} : {count(entry['votes_second'])}",
        "guess": class_title(entry["prediction"], entry["prediction_name"]),
        "other": class_title(entry["runner_up"], entry["runner_up_name"]),
        "truth": None if label is None else class_title(label, entry["label_name"]),
        "is_wrong": label is not None and label != entry["prediction"],
    }


def _middle(doc: dict[str, Any]) -> int:
    """Largest radius that half of the rows have, or -1."""
    held = [
        r for r, s in zip(doc["curve"]["radius"], doc["curve"]["share"], strict=True) if s >= 0.5
    ]
    return max(held, default=-1)


def _lines(value: Any) -> str:
    text = json.dumps(value, indent=2, default=str)
    return "\n".join(visible(line, 300) for line in text.splitlines()[:400])
