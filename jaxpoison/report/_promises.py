"""What a certificate says and what it does not, in plain words."""

from __future__ import annotations

from typing import Any

from jaxpoison.report._text import count, plural

SCHEMES = {
    "dpa": "Deep Partition Aggregation: every training row lies in one of k subsets, one model is "
    "trained on each, and the class with most votes wins (Levine and Feizi 2021, arXiv:2006.14768)",
    "fa": "Finite Aggregation: every training row lies in d of k d subsets, one model is trained "
    "on each, and the class with most votes wins (Wang, Levine and Feizi 2022, arXiv:2202.02628)",
    "roe": "Run-off election: every training row lies in one of k subsets, one model is trained on "
    "each, and of the two classes with most votes the one that more models prefer wins (Rezaei et "
    "al. 2023, arXiv:2302.02300)",
    "fa+roe": "Run-off election over Finite Aggregation: every training row lies in d of k d "
    "subsets (Rezaei et al. 2023, arXiv:2302.02300)",
}
THREATS = {
    "general": "rows inserted, deleted, relabelled and changed at will, all in one attack",
    "label flip": "labels changed at will; the inputs and their number are trusted",
    "keys": "some keys (clients, sources, windows of time) corrupted: all their rows, at will",
}
_CHANGES = {
    "insert": "a row inserted",
    "delete": "a row deleted",
    "flip": "a label changed",
    "modify": "a row changed in any way",
    "modify, same key": "a row changed in any way but its key",
    "key": "all rows of one key changed, added or removed",
}


def costs_line(costs: dict[str, int]) -> str:
    """Cells that each kind of change touches, in one line."""
    return ", ".join(f"{_CHANGES[name]} {cells}" for name, cells in costs.items())


def one_change(costs: dict[str, int]) -> str:
    """The changes that touch one cell, any one of which a radius of 1 withstands."""
    words = [_CHANGES[name] for name, cells in costs.items() if cells == 1]
    if not words:
        return "one touched cell"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def cost_rows(costs: dict[str, int], radius: int) -> list[dict[str, str]]:
    """Each kind of change: cells that it touches, and how many of it a radius withstands."""
    return [
        {
            "change": _CHANGES[name],
            "cells": plural(cells, "cell"),
            "tolerated": count(radius // cells) if radius >= 0 else "none",
        }
        for name, cells in costs.items()
    ]


def promised(doc: dict[str, Any]) -> list[str]:
    """What holds, whoever attacks."""
    said = [
        "The prediction of a row with radius r stays what it is if the training data is changed "
        "in any way that touches at most r cells. Nothing else is assumed of the attacker: he may "
        "know the data, the partition and the models.",
        "So if the data holds poison already, in at most r cells, the prediction is the one that "
        "the data would give without it.",
        "All rows with radius r or more hold together under any one attack of r cells: the curve "
        "is a floor of what is left under attack.",
        "Radii are whole numbers, counted from votes. There is no probability in them.",
    ]
    if doc["threat"]["name"] == "keys":
        said.append("A corrupted key may do anything to all its rows, and counts as one cell.")
    return said


def not_promised(doc: dict[str, Any]) -> list[str]:
    """What does not follow."""
    said = [
        "That a prediction is right. A wrong one can have a large radius.",
        "Anything about changes of the test row itself, such as a trigger or noise added to it.",
        "That rows with a smaller radius fall: a radius is a lower bound, and one attack need not "
        "reach them all.",
        "Anything about choices made by looking at the data: k, the learner and its settings, the "
        "number of classes and how they are numbered, which rows were left out. They count as "
        "fixed before the attack.",
        "That a run ends. An attacker can add rows that stop it, such as infinite values; drop "
        "such rows by a rule of the row alone, never by what the others hold.",
        "That the same votes come out of other versions, devices or settings than those of the "
        "manifest. A model that trains differently is another model.",
    ]
    covers, threat = doc["covers"], doc["threat"]["name"]
    if threat == "label flip":
        said.append("Anything about inputs that were inserted, deleted or changed.")
    if covers == "key column":
        said.append(
            "Anything against one who can write keys at will: each key that he writes touches a "
            "cell of its own."
        )
    return said
