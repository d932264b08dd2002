"""The tables of an evaluation as text and values; Markdown and HTML show the same ones."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxpoison.report import _text

Entry = dict[str, Any]
NOTHING = _text.DASH

FILTER_TITLES = {
    "poisoned": "as it is",
    "flags": "flags removed",
    "perfect": "perfect filter",
    "random": "random filter",
}
_SCORES = (
    ("auroc", "AUROC", "0.5 is what chance gives, 1 a perfect ranking."),
    ("tpr", "True positives at 1 % false positives", "0.01 is what chance gives; ties count "
     "against the detector."),
    ("average_precision", "Average precision", "The share of poisoned rows is what chance gives."),
)  # fmt: skip


_RETRAINED = (
    ("success", "Attack success after retraining", "The same small network, trained again on what "
     "each filter leaves; lower is better."),
    ("accuracy", "Accuracy after retraining", "Of those networks on honest test rows."),
)  # fmt: skip


class Field(NamedTuple):
    """One cell of a table.

    Attributes:
        text: As shown.
        range: The interval as shown, or nothing.
        level: Shade from -4 (worse than chance) over 0 to 8 (perfect), or None for none.
        is_number: Whether it is set flush right.
        value: To sort by, or None.
    """

    text: str
    range: str = ""
    level: int | None = None
    is_number: bool = True
    value: float | None = None


class Table(NamedTuple):
    """Title, what it says, and its cells.

    Attributes:
        title: Above it.
        note: One sentence, may be empty.
        columns: Their names.
        rows: Fields, the first naming the row.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[list[Field]]

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers only."""
        return all(row[column].is_number for row in self.rows)


class Section(NamedTuple):
    """Tables under one heading.

    Attributes:
        title: Heading.
        note: What must be known about the set, may be empty.
        tables: Without the empty ones.
    """

    title: str
    note: str
    tables: list[Table]


def sections(document: dict[str, Any]) -> list[Section]:
    """All tables: clean sets first, then one section a set, then what was not done."""
    out = []
    if document["clean"]:
        out.append(Section("Clean data", "", [_clean(document)]))
    for each in document["sets"]:
        mine = [entry for entry in document["poisoned"] if entry["set"] == each["name"]]
        if mine:
            tables = [_scores(document, mine, *names) for names in _SCORES]
            tables += [_flags(mine), *(_retrain(mine, *names) for names in _RETRAINED), _cost(mine)]
            out.append(Section(each["name"], each["note"], [t for t in tables if t.rows]))
    if document["not_done"]:
        out.append(Section("Not measured", "", [_not_done(document["not_done"])]))
    return out


def share(cell: dict[str, Any] | None, digits: int = 3, *, shade: str = "") -> Field:
    """A mean between 0 and 1 with its interval.

    Args:
        cell: Mean, low, high, n; or None.
        digits: After the point.
        shade: "auroc" (0.5 is nothing), "plain" (0 is nothing), or no shade.
    """
    if cell is None:
        return Field(NOTHING)
    level = None
    if shade:
        mean = cell["mean"]
        level = round(16 * (mean - 0.5)) if shade == "auroc" else round(8 * mean)
        level = max(-4, min(8, level))
    ends = ""
    if cell["low"] is not None:
        ends = f"{cell['low']:.{digits}f}{_text.DASH}{cell['high']:.{digits}f}"
    return Field(f"{cell['mean']:.{digits}f}", ends, level, value=cell["mean"])


def _name(text: str) -> Field:
    return Field(text, is_number=False)


def _count(value: float | None) -> Field:
    return Field(NOTHING if value is None else f"{value:,.0f}", value=value)


def _scores(
    document: dict[str, Any], mine: list[Entry], metric: str, title: str, note: str
) -> Table:
    names = [n for n in document["detectors"] if any(n in entry["scores"] for entry in mine)]
    shade = "auroc" if metric == "auroc" else "plain"
    rows = [
        [
            _name(entry["case"]),
            *(share(entry["scores"].get(n, {}).get(metric), shade=shade) for n in names),
        ]
        for entry in mine
        if entry["scores"]
    ]
    return Table(title, note, ("attack", *names), rows)


def _flags(mine: list[Entry]) -> Table:
    rows = [
        [
            _name(entry["case"]),
            _count(entry["rows"]),
            _count(entry["poisoned"]),
            share(entry["flags"]["tpr"]),
            share(entry["flags"]["fpr"], 4),
            share(entry["flags"]["cover"]),
            _name(_verdicts(entry)),
            _name(_right(entry["kind_right"])),
            _name(_right(entry["target_right"])),
        ]
        for entry in mine
    ]
    columns = (
        "attack", "rows", "poisoned", "flagged of the poisoned", "flagged of the others",
        "flagged of the cover rows", "verdicts", "kind right", "target right",
    )  # fmt: skip
    note = "What a scan says by itself: no threshold, no rate and no clean set are given to it."
    return Table("Flags and names", note, columns, rows)


def _retrain(mine: list[Entry], what: str, title: str, note: str) -> Table:
    rows = [
        [_name(entry["case"]), *(share(entry["retrain"][f][what]) for f in FILTER_TITLES)]
        for entry in mine
        if any(entry["retrain"][f][what] for f in FILTER_TITLES)
    ]
    return Table(title, note, ("attack", *FILTER_TITLES.values()), rows)


def _cost(mine: list[Entry]) -> Table:
    rows = []
    for entry in mine:
        times = [entry["seconds"][name] for name in ("plant", "scan", "retrain")]
        shown = [Field(NOTHING if t is None else _text.seconds(t), value=t) for t in times]
        rows.append([_name(entry["case"]), *shown, _count(entry["peak_mb"])])
    note = "Median time of a step; largest memory of the process up to the end of its scan."
    return Table("Cost", note, ("attack", "planting", "scan", "retraining", "peak MB"), rows)


def _clean(document: dict[str, Any]) -> Table:
    notes = {each["name"]: each["note"] for each in document["sets"]}
    rows = [
        [
            _name(entry["set"]),
            _count(len(entry["seeds"])),
            _count(entry["rows"]),
            _name(_verdicts(entry)),
            share(entry["flags"]["fpr"], 4),
            share(entry["flags"]["noise"]),
            share(entry["retrain"]["poisoned"]["accuracy"]),
            share(entry["retrain"]["flags"]["accuracy"]),
            _name(notes[entry["set"]]),
        ]
        for entry in document["clean"]
    ]
    columns = (
        "set", "seeds", "rows", "verdicts", "flagged", "flagged of the swapped labels",
        "accuracy, as it is", "accuracy, flags removed", "remark",
    )  # fmt: skip
    note = "Nothing was planted: every flag and every verdict but clean is a false alarm."
    return Table("False alarms", note, columns, rows)


def _not_done(entries: list[Entry]) -> Table:
    rows = [
        [
            _name(entry["set"]),
            _name(entry["case"]),
            _name(", ".join(map(str, entry["seeds"]))),
            _name(f"{entry['status']}: {entry['reason']}"),
        ]
        for entry in entries
    ]
    return Table("Refused or failed", "", ("set", "attack", "seeds", "reason"), rows)


def _verdicts(entry: Entry) -> str:
    return ", ".join(f"{n} {name}" for name, n in entry["verdicts"].items() if n)


def _right(tally: dict[str, int] | None) -> str:
    return NOTHING if tally is None else f"{tally['right']} of {tally['of']}"
