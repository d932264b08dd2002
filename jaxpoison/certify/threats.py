"""What an attacker may change, and how many cells of the partition each change touches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxpoison._check import UsageError

if TYPE_CHECKING:
    from jaxpoison.certify._types import Design


@dataclass(frozen=True)
class General:
    """Any change of the training set: rows inserted, deleted, modified, relabelled, in one attack.

    **Assumes / fails on**: membership decided by the row alone. A partition by sorted position is
    refused: one inserted row moves all later ones to other subsets.
    """

    name = "general"

    def costs(self, design: Design) -> dict[str, int]:
        """Cells that one change touches at most, by kind of change.

        Args:
            design: Of the partition.

        Returns:
            "insert", "delete", "flip" (the label alone), "modify" (anything in a row), and for a
            key column "modify, same key".

        Raises:
            UsageError: The partition is by sorted position.
        """
        if design.covers == "sorted position":
            raise UsageError(
                "threat General cannot be certified on a partition by sorted position: one"
                " inserted row moves all later ones; claim LabelFlip, or partition by content"
            )
        flip = 2 if design.covers == "inputs and labels" else 1
        costs = {"insert": 1, "delete": 1, "flip": flip, "modify": 2}
        if design.covers == "key column":
            costs["modify, same key"] = 1
        return costs

    def allowed(self, design: Design) -> None:
        """Raises UsageError where the design cannot carry the claim, as ``costs`` does."""
        self.costs(design)


@dataclass(frozen=True)
class LabelFlip:
    """Labels changed, to any other class; inputs and their number are trusted."""

    name = "label flip"

    def costs(self, design: Design) -> dict[str, int]:
        """Cells that one change touches at most, by kind of change.

        Args:
            design: Of the partition.

        Returns:
            "flip": 2 where the label decides the cell (out of one, into another), else 1.
        """
        return {"flip": 2 if design.covers == "inputs and labels" else 1}

    def allowed(self, design: Design) -> None:
        """Every partition carries it."""


@dataclass(frozen=True)
class Keys:
    """Whole keys (clients, sources, windows of time) corrupted: all their rows, without limit.

    **Assumes / fails on**: a partition by that key; the key of a row cannot be forged by others.
    """

    name = "keys"

    def costs(self, design: Design) -> dict[str, int]:
        """Cells that one corrupted key touches.

        Args:
            design: Of the partition.

        Returns:
            "key": 1.

        Raises:
            UsageError: The partition is not by a key column.
        """
        if design.covers != "key column":
            raise UsageError(
                f"threat Keys needs a partition by a key column, but the cells cover"
                f" {design.covers!r}: the rows of one key may lie in all cells; partition by the"
                " column, or claim General"
            )
        return {"key": 1}

    def allowed(self, design: Design) -> None:
        """Raises UsageError where the design cannot carry the claim, as ``costs`` does."""
        self.costs(design)


Threat = General | LabelFlip | Keys
