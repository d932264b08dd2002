"""The tables of what is found in README.md, out of the records of ``jaxpoison evaluate``.

    jaxpoison evaluate --suite full --out DIR
    python benchmarks/detection_table.py DIR/records.jsonl --readme README.md

A cell of the first holds the true positives at 1 % false positives of the fused ranking, the share
of the poison that was flagged, and the number of seeds that both are means over. The second says
how often a trigger has its way with a network: trained on everything, without the flagged rows,
and without exactly the planted rows. The third counts what the most confident finding of a case is
called. Without ``--readme`` they are printed; with it, they take the place of what stands between
their marks in that file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from jaxpoison.evaluate.retrain import FILTERS
from jaxpoison.evaluate.suites import load_suite
from jaxpoison.report._notes import KINDS

_MARKS = "<!-- detection: benchmarks/detection_table.py -->", "<!-- end of detection -->"
_AFTER = "<!-- after removal: benchmarks/detection_table.py -->", "<!-- end of after removal -->"
_NAMES = "<!-- kinds: benchmarks/detection_table.py -->", "<!-- end of kinds -->"
_BEFORE = "poisoned", "success"
_TAUGHT = 0.05  # success before anything is removed; with less there is nothing to take away
_NEAR, _POINT = 0.05, 0.01  # of a perfect filter's success and accuracy
Means: TypeAlias = dict[tuple[str, str], float]
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


def after_removal(records: list[dict[str, Any]]) -> Means:
    """Means over the seeds of a case, by filter and by what is asked of the network.

    Empty where the networks of a seed were not retrained, or a filter left nothing to train on.
    """
    mine = [record["retrain"] for record in records]
    if not all(mine):
        return {}
    out: Means = {}
    for name, what in ((name, what) for name in FILTERS for what in ("success", "accuracy")):
        values = [each[name][what] for each in mine]
        if None not in values:
            out[name, what] = sum(values) / len(values)
    return out if all((name, "accuracy") in out for name in FILTERS) else {}


def retrained(records: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Success of each trigger before and after removal, sets across, and how often it is enough."""
    means = {(s, c): after_removal(records[s, c]) for s, c in records if c != "clean"}
    means = {key: each for key, each in means.items() if key[0] in _TITLES and each}
    taught = {key: each for key, each in means.items() if each.get(_BEFORE, 0.0) >= _TAUGHT}
    sets = [name for name in _TITLES if any(name == key[0] for key in taught)]
    lines = ["| trigger | " + " | ".join(_TITLES[name].split(",")[0] for name in sets) + " |"]
    lines.append("|---|" + "---|" * len(sets))
    for case in (each.name for each in load_suite("full").cases):
        values = [taught.get((name, case)) for name in sets]
        cells = [
            "{:.2f} → {:.2f} / {:.2f}".format(*(each[f, "success"] for f in FILTERS[:3]))
            if each else ""
            for each in values
        ]  # fmt: skip
        if any(cells):
            lines.append(f"| {case} | " + " | ".join(cells) + " |")
    near = within(taught.values(), "success", _NEAR), within(means.values(), "accuracy", _POINT)
    lines.append(
        f"\nWhat the flags leave is within {_NEAR} of the perfect filter's success in {near[0]} of "
        f"{len(taught)} pairs of a set and a trigger that a network learns, and within a point of "
        f"its accuracy in {near[1]} of {len(means)} pairs of a set and an attack."
    )
    return "\n".join(lines)


def within(means: Iterable[Means], what: str, most: float) -> int:
    """Of how many the flags do as well as the perfect filter, but for this much."""
    sign = 1 if what == "success" else -1
    gaps = (sign * (each["flags", what] - each["perfect", what]) for each in means)
    return sum(gap <= most + 1e-9 for gap in gaps)


def kinds(records: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Planted kinds down, and across how many cases have a finding, and what it is called."""
    every = [record for each in records.values() for record in each if record["kind"]]
    found = Counter((record["kind"], record["kind_found"]) for record in every)
    names = [name for name in KINDS if any(found[kind, name] for kind in KINDS)]
    lines = ["| planted | cases | with a finding | " + " | ".join(names) + " |"]
    lines.append("|---|" + "---|" * (len(names) + 2))
    for kind in KINDS:
        cases = sum(number for (planted, _), number in found.items() if planted == kind)
        cells = [found[kind, name] for name in names]
        shown = (
            f"**{n}**" if name == kind else n or "" for name, n in zip(names, cells, strict=True)
        )
        lines.append(f"| {kind} | {cases} | {sum(cells)} | " + " | ".join(map(str, shown)) + " |")
    right = sum(found[kind, kind] for kind in KINDS)
    named = sum(found[kind, name] for kind in KINDS for name in names)
    lines.append(f"\nOf {named} cases with a finding {right} are called what they are.")
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
    found, after, names = table(records), retrained(records), kinds(records)
    if args.readme is None:
        sys.stdout.write(f"{found}\n\n{after}\n\n{names}\n")
        return
    path = Path(args.readme)
    text = path.read_text(encoding="utf-8")
    for new, marks in ((found, _MARKS), (after, _AFTER), (names, _NAMES)):
        text = replaced(text, new, marks)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
