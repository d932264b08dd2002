"""Turn a Report into the bounded, ready-to-print values that the HTML template places."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from jaxpoison.report import svg
from jaxpoison.report._report import class_title
from jaxpoison.report._text import DASH, MINUS, TIMES, number, plural, visible
from jaxpoison.report.png import as_pixels, data_uri

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from jaxpoison.report._report import ClassPicture, Example, Pictures, Report

# Whatever the size of the data, the page stays within these.
MAX_CARDS = 12
MAX_CLASSES = 300
MAX_ROWS = 400
MAX_EXAMPLES = 100
MAX_EVIDENCE = 12
_MIN_FLAGGED, _MIN_REST = 4, 3  # pictures needed for an average that means something


def ratio(test: dict[str, Any]) -> float | None:
    """Returns value / threshold, or None where that ratio says nothing."""
    value, threshold = float(test["value"]), float(test["threshold"])
    if threshold <= 0 or not (math.isfinite(value) and math.isfinite(threshold)):
        return None
    return value / threshold


def strongest(tests: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the test that speaks loudest: one that fired, then the largest ratio."""
    return max(tests, key=lambda t: (t["fired"], ratio(t) or 0.0), default=None)


def order_by_evidence(pictures: Sequence[ClassPicture]) -> list[ClassPicture]:
    """Sorts classes by how close they come to a threshold, nearest first."""

    def nearness(picture: ClassPicture) -> float:
        best = strongest(picture.evidence)
        return (ratio(best) or 0.0) if best else 0.0

    return sorted(pictures, key=nearness, reverse=True)


def class_name(pictures: Pictures, label: int) -> str:
    """Names a class from the untrusted list, or by its number."""
    names = pictures.class_names
    return class_title(label, names[label] if 0 <= label < len(names) else "")


def short_name(pictures: Pictures, label: int) -> str:
    """Names a class for a thumbnail: its own name, or its number."""
    names = pictures.class_names
    shown = visible(names[label] or "", 40).strip() if 0 <= label < len(names) else ""
    return f"class {label}" if shown in ("", str(label)) else shown


def matrix(report: Report) -> dict[str, Any]:
    """Lists every class against every detector: value as a share of its threshold."""
    pictures = report.pictures
    all_classes = [*pictures.suspected, *order_by_evidence(pictures.others)]
    shown = all_classes[:MAX_CLASSES]
    # Detectors in the order of the report; those that only evidence knows come after.
    used = dict.fromkeys(t["detector"] for picture in shown for t in picture.evidence)
    names = [name for name in report.report["detectors"] if name in used]
    names += [name for name in used if name not in names]
    rows = []
    for picture in shown:
        cells = [
            _cell(strongest([t for t in picture.evidence if t["detector"] == name]))
            for name in names
        ]
        rows.append(
            {
                "label": picture.label,
                "title": class_title(picture.label, picture.name),
                "num_rows": picture.num_rows,
                "num_flagged": picture.num_flagged,
                "cells": cells,
                "fired": any(t["fired"] for t in picture.evidence),
                "spark": svg.sparkline(picture.hist_values),
                "hist_name": picture.hist_name,
            }
        )
    return {"detectors": names, "rows": rows, "num_hidden": len(all_classes) - len(shown)}


def _cell(test: dict[str, Any] | None) -> dict[str, Any]:
    if test is None:
        return {"text": DASH, "sort": -1.0, "level": 0, "fired": False, "title": "did not run"}
    share = ratio(test)
    text = f"{number(test['value'])} / {number(test['threshold'])}"
    if share is not None:
        text = f"{share:.2f}{TIMES}" if abs(share) < 10 else f"{number(share)}{TIMES}"
    level = 0 if share is None else min(4, max(0, int(share * 4)))
    title = f"{test['statistic']}: {number(test['value'])}, threshold {number(test['threshold'])}"
    return {
        "text": text.replace("-", MINUS),
        "sort": -1.0 if share is None else share,
        "level": level,
        "fired": bool(test["fired"]),
        "title": title + (f", {test['space']}" if test["space"] else ""),
    }


def tests_of(evidence: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns evidence for a table: fired first, then by how near the threshold, bounded."""
    ranked = sorted(evidence, key=lambda t: (t["fired"], ratio(t) or 0.0), reverse=True)
    return ranked[:MAX_EVIDENCE]


def cards(report: Report, thumb_side: int) -> tuple[list[dict[str, Any]], list[Example]]:
    """Describes the classes that get charts, and returns the examples that belong to none.

    Args:
      report: the result to show.
      thumb_side: longest side of a thumbnail, in pixels.
    """
    pictures = report.pictures
    chosen = [
        *pictures.suspected,
        *(p for p in order_by_evidence(pictures.others) if p.evidence or len(p.hist_values)),
    ][:MAX_CARDS]
    left = list(pictures.examples[:MAX_EXAMPLES])
    columns = _feature_scale(left)
    found = []
    for place, picture in enumerate(chosen):
        is_suspected = place < len(pictures.suspected)
        mine = [e for e in left if e.label == picture.label] if is_suspected else []
        left = [e for e in left if not (is_suspected and e.label == picture.label)]
        found.append(
            {
                "label": picture.label,
                "title": class_title(picture.label, picture.name),
                "num_rows": picture.num_rows,
                "num_flagged": picture.num_flagged,
                "suspected": is_suspected,
                "tests": tests_of(picture.evidence),
                "num_more": max(0, len(picture.evidence) - MAX_EVIDENCE),
                "num_fired": sum(bool(t["fired"]) for t in picture.evidence),
                "histogram": svg.histogram(
                    picture.hist_values, picture.hist_flagged, picture.hist_name
                ),
                "scatter": svg.scatter(picture.points, picture.point_flagged),
                "averages": averages(mine, thumb_side),
                "groups": groups(mine, pictures, columns, thumb_side),
            }
        )
    return found, left


def groups(
    examples: Sequence[Example], pictures: Pictures, scale: Any, thumb_side: int
) -> list[dict[str, Any]]:
    """Splits examples into flagged ones and neighbours, and draws each."""
    found = []
    for flagged, title in ((True, "Most suspicious rows"), (False, "Not flagged, to compare")):
        rows = [e for e in examples if bool(e.flagged) == flagged]
        if rows:
            items = [_example(e, pictures, scale, thumb_side) for e in rows]
            found.append({"title": title, "flagged": flagged, "items": items})
    return found


def loose_group(report: Report, left: list[Example], thumb_side: int) -> dict[str, Any] | None:
    """Describes the examples that no suspected class claims."""
    if not left:
        return None
    scale = _feature_scale(left)
    items = [_example(e, report.pictures, scale, thumb_side) for e in left]
    return {"flagged": any(e.flagged for e in left), "items": items}


def example_items(pictures: Pictures, thumb_side: int) -> list[dict[str, Any]]:
    """Describes all examples, in their order."""
    scale = _feature_scale(pictures.examples)
    return [_example(e, pictures, scale, thumb_side) for e in pictures.examples]


def _example(example: Example, pictures: Pictures, scale: Any, side: int) -> dict[str, Any]:
    image = strip = None
    num_values = 0
    if example.image is not None and example.image.size:
        image = data_uri(example.image, side)
    elif example.values is not None and len(example.values):
        levels = _levels(example.values, scale)
        num_values = len(levels)
        strip = svg.heat_strip(levels, _value_text(example.values))
    return {
        "index": example.index,
        "title": class_name(pictures, example.label),
        "name": short_name(pictures, example.label),
        "suspicion": number(example.suspicion),
        "p": number(example.p),
        "q": number(example.q),
        "flagged": bool(example.flagged),
        "kind": example.kind,
        "image": image,
        "strip": strip,
        "num_values": num_values,
    }


def _feature_scale(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns median and spread of each feature over the examples shown, for colours."""
    import numpy as np

    rows = [e.values for e in examples if e.image is None and e.values is not None]
    width = min((len(v) for v in rows), default=0)
    if not width:
        return None
    table = np.nan_to_num(np.stack([np.asarray(v[:width], np.float64) for v in rows]))
    median = np.median(table, axis=0)
    spread = np.median(np.abs(table - median), axis=0) * 1.4826
    return median, np.where(spread > 0, spread, np.maximum(table.std(axis=0), 1e-12))


def _levels(values: np.ndarray, scale: tuple[np.ndarray, np.ndarray] | None) -> list[int]:
    import numpy as np

    if scale is None:
        return []
    median, spread = scale
    real = np.nan_to_num(np.asarray(values[: len(median)], np.float64))
    z = np.clip((real - median) / spread / 0.75, -4, 4)  # full colour at three spreads
    return [int(level) for level in np.rint(z).tolist()]


def _value_text(values: np.ndarray) -> str:
    return "features " + ", ".join(number(value) for value in values[:24].tolist())


def averages(examples: Sequence[Example], side: int) -> list[dict[str, str]]:
    """Draws the mean flagged and unflagged picture and where they differ: a trigger stands out."""
    import numpy as np

    drawn = [e for e in examples if e.image is not None and e.image.size]
    if not drawn or len({e.image.shape for e in drawn if e.image is not None}) != 1:
        return []
    pixels = [(bool(e.flagged), as_pixels(e.image)) for e in drawn if e.image is not None]
    stacks = [
        np.array([image for is_flagged, image in pixels if is_flagged == wanted], np.float64)
        for wanted in (True, False)
    ]
    if len(stacks[0]) < _MIN_FLAGGED or len(stacks[1]) < _MIN_REST:
        return []
    flagged_mean, rest_mean = (stack.mean(axis=0) for stack in stacks)
    difference = np.abs(flagged_mean - rest_mean).mean(axis=2)
    stretched = difference * (255.0 / max(1.0, float(difference.max())))
    named = (
        (f"mean of {plural(len(stacks[0]), 'flagged row')}", flagged_mean),
        (f"mean of {len(stacks[1])} others", rest_mean),
        ("difference, stretched", stretched),
    )
    return [
        {"title": title, "image": data_uri(np.rint(mean).astype(np.uint8), side)}
        for title, mean in named
    ]


def table(report: Report) -> dict[str, Any]:
    """Lists the most suspicious rows with all their scores."""
    import numpy as np

    top = np.argsort(-np.asarray(report.suspicion, np.float64), kind="stable")[:MAX_ROWS]
    rows = []
    for k in top.tolist():
        scores = [float(report.scores[name][k]) for name in report.scores]
        label = int(report.label[k])
        rows.append(
            {
                "index": int(report.index[k]),
                "title": class_name(report.pictures, label),
                "label": label,
                "flagged": bool(report.flagged[k]),
                "kind": visible(report.suspected_kind[k], 40),
                "numbers": [
                    (_exact(value), number(value))
                    for value in (
                        float(report.suspicion[k]),
                        float(report.p[k]),
                        float(report.q[k]),
                        *scores,
                    )
                ],
            }
        )
    kinds = sorted({str(row["kind"]) for row in rows} - {""})
    names = list(report.scores)
    return {"detectors": names, "rows": rows, "kinds": kinds, "num_all": len(report.index)}


def _exact(value: float) -> str:
    """Encodes a sort key, short but in the right order."""
    return f"{value:.6g}"
