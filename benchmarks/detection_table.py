"""The tables of what is found in README.md, out of the records of ``jaxpoison evaluate``.

    jaxpoison evaluate --suite full --out DIR
    python benchmarks/detection_table.py DIR/records.jsonl --readme README.md

A cell of the first holds the true positives at 1 % false positives of the fused ranking, the share
of the poison that was flagged, and the number of seeds that both are means over. The second says
what a trigger does to a network that is retrained without the flagged rows. Without ``--readme``
they are printed; with it, they take the place of what stands between their marks in that file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from jaxpoison.evaluate.retrain import FILTERS
from jaxpoison.evaluate.suites import load_suite

_MARKS = "<!-- detection: benchmarks/detection_table.py -->", "<!-- end of detection -->"
_AFTER = "<!-- after removal: benchmarks/detection_table.py -->", "<!-- end of after removal -->"
_RETRAINED = "fashion_mnist"
_NO_SUCCESS = 0.05  # of the trigger before anything is removed: nothing to take away
_LEFT_OUT = ("clean", "noise 5 %", "corrupt 5 %", "adaptive spectrum 2 %",
             "feature collision 1 %", "bullseye polytope 1 %")  # fmt: skip
_TITLES = {
    "fashion_mnist": "Fashion-MNIST, 12,000",
    "digits": "digits, 1,438",
    "mnist_5k": "MNIST, 4,000",
    "segments": "image segments, 1,848 x 18",
    "breast_cancer": "breast_cancer, 455 x 30",
    "cifar10_small": "CIFAR-10, 8,000",
}


def held(paths: list[str]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Measured cases by set and name; the last record of a seed counts."""
    latest: dict[tuple[str, str, int], dict[str, Any]] = {}
    for path in paths:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["status"] == "done":
                latest[record["set"], record["case"], record["seed"]] = record
    out: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (name, case, _), record in sorted(latest.items()):
        out.setdefault((name, case), []).append(record)
    return out


def cell(records: list[dict[str, Any]]) -> str:
    """Two means and how many seeds they are of; empty where there are none."""
    if not records:
        return ""
    ranked = sum(each["scores"]["fused"]["tpr"] for each in records) / len(records)
    flagged = sum(each["flags"]["tpr"] or 0.0 for each in records) / len(records)
    return f"{ranked:.2f} / {flagged:.2f} ({len(records)})"


def table(records: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Cases down, sets across."""
    sets = [name for name in _TITLES if any(name == key[0] for key in records)]
    lines = ["| case | " + " | ".join(_TITLES[name] for name in sets) + " |"]
    lines.append("|---|" + "---|" * len(sets))
    for case in (each.name for each in load_suite("full").cases if each.name not in _LEFT_OUT):
        cells = [cell(records.get((name, case), [])) for name in sets]
        if any(cells):
            lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def retrained(records: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Success of each trigger, and accuracy, of networks trained on what four filters leave."""
    lines = ["| trigger | nothing removed | flags removed | a perfect filter | as many at random |"]
    lines.append("|---|---|---|---|---|")
    for case in (each.name for each in load_suite("full").cases):
        mine = [r["retrain"] for r in records.get((_RETRAINED, case), []) if r["retrain"]]
        if not mine or mine[0]["poisoned"]["success"] is None:
            continue
        means = {
            (name, what): sum(each[name][what] for each in mine) / len(mine)
            for name in FILTERS
            for what in ("success", "accuracy")
        }
        if means["poisoned", "success"] < _NO_SUCCESS:
            continue
        cells = [f"{means[n, 'success']:.2f} / {means[n, 'accuracy']:.3f}" for n in FILTERS]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def replaced(text: str, new: str, marks: tuple[str, str]) -> str:
    """The text with what is between the marks replaced."""
    first, last = marks
    if text.count(first) != 1 or text.count(last) != 1:
        raise SystemExit(f"the file needs the lines {first} and {last} once each")
    head, _, rest = text.partition(first)
    return f"{head}{first}\n{new}\n{last}{rest.partition(last)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("records", nargs="+", help="records.jsonl of one or more runs")
    parser.add_argument("--readme", metavar="FILE", help="put it there")
    args = parser.parse_args()
    records = held(args.records)
    found, after = table(records), retrained(records)
    if args.readme is None:
        sys.stdout.write(f"{found}\n\n{after}\n")
        return
    path = Path(args.readme)
    text = replaced(path.read_text(encoding="utf-8"), found, _MARKS)
    path.write_text(replaced(text, after, _AFTER), encoding="utf-8")


if __name__ == "__main__":
    main()
