"""The result of a scan, as plain arrays and text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxpoison.report._text import count, number, percent, plural, visible

if TYPE_CHECKING:
    import os
    from pathlib import Path

    import numpy as np

VERDICTS = {
    "clean": "No class shows evidence of poisoning",
    "suspicious": "Something does not look natural, but the evidence is not strong",
    "poisoned": "Strong evidence of poisoned rows",
}


class ClassPicture(NamedTuple):
    """What the HTML shows about one class.

    Attributes:
      label: the class number.
      name: its name, untrusted text; may be empty.
      num_rows: rows of the class that were scanned.
      num_flagged: how many of them are flagged.
      evidence: one dict a test, with the keys detector, space, statistic, value, threshold, null
        and fired.
      points: [m, 2] float32, a projection of (a sample of) the class; may be empty.
      point_flagged: [m] bool.
      hist_name: what `hist_values` holds, for the axis.
      hist_values: [num_rows] the score that shows this class best.
      hist_flagged: [num_rows] bool.
    """

    label: int
    name: str
    num_rows: int
    num_flagged: int
    evidence: tuple[dict[str, Any], ...]
    points: np.ndarray
    point_flagged: np.ndarray
    hist_name: str
    hist_values: np.ndarray
    hist_flagged: np.ndarray


class Example(NamedTuple):
    """One row worth looking at: a very suspicious one, or a clean neighbour for comparison.

    Attributes:
      index: input row number.
      label: its class number.
      suspicion: the fused score, higher is more suspicious.
      p: p-value of the row.
      q: q-value of the row.
      flagged: whether the scan flagged it.
      kind: suspected kind of attack, empty where not flagged.
      image: uint8 [H, W] or [H, W, C], or None.
      values: float [k], the first features of the row where there is no image, or None.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    label: int
    suspicion: float
    p: float
    q: float
    flagged: bool
    kind: str
    image: np.ndarray | None
    values: np.ndarray | None


class Pictures(NamedTuple):
    """What the HTML shows.

    Attributes:
      suspected: classes in which a test fired, most evident first; may be empty.
      others: the remaining classes; their `points` may be empty.
      examples: up to 100 rows, most suspicious first.
      class_names: one name a class, untrusted text; may be empty.
    """

    suspected: tuple[ClassPicture, ...]
    others: tuple[ClassPicture, ...]
    examples: tuple[Example, ...]
    class_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Report:
    """Verdict, evidence and per-row scores of one scan.

    Attributes:
      report: exactly the content of `report.json`.
      index: [n] int64 input row numbers.
      label: [n] int64 labels as given.
      scores: one [n] float32 a detector, higher is more suspicious.
      suspicion: [n] float64 fused score, higher is more suspicious.
      p: [n] float64 p-values.
      q: [n] float64 q-values.
      flagged: [n] bool.
      suspected_kind: [n] str, empty where not flagged.
      suggested_label: [n] int64 the label that the rest of the data would give a flagged row whose
        label looks wrong; -1 elsewhere.
      pictures: what the HTML shows.
    """

    report: dict[str, Any]
    index: np.ndarray
    label: np.ndarray
    scores: dict[str, np.ndarray]
    suspicion: np.ndarray
    p: np.ndarray
    q: np.ndarray
    flagged: np.ndarray
    suspected_kind: np.ndarray
    suggested_label: np.ndarray
    pictures: Pictures

    @property
    def verdict(self) -> str:
        """One of clean, suspicious and poisoned."""
        return str(self.report["verdict"])

    def clean_indices(self) -> np.ndarray:
        """Returns the input row numbers [n - flagged] that are not flagged, int64."""
        return self._rows(~self.flagged)

    def flagged_indices(self) -> np.ndarray:
        """Returns the input row numbers [flagged] that are flagged, int64."""
        return self._rows(self.flagged)

    def _rows(self, keep: np.ndarray) -> np.ndarray:
        rows: np.ndarray = self.index[keep]
        return rows.astype("int64", copy=False)

    def summary(self) -> str:
        """Describes the result in a few plain lines for a terminal.

        Names come from the data: hidden characters are made visible, but markup such as
        `[red]` stays, so print the text with markup interpretation off.

        Returns:
          Lines joined by newlines, without a final one.
        """
        doc = self.report
        lines = [
            f"{self.verdict.upper()}: {VERDICTS[self.verdict]}.",
            f"flagged {count(doc['n_flagged'])} of {plural(doc['n_samples'], 'row')} "
            f"in {plural(doc['n_classes'], 'class', 'classes')} "
            f"(estimated rate {percent(doc['estimated_rate'])}, "
            f"p_poisoned {number(doc['p_poisoned'])})",
        ]
        lines += [f"  {attack_line(attack)}" for attack in doc["suspected_attacks"]]
        if doc["skipped_classes"]:
            skipped = plural(len(doc["skipped_classes"]), "class", "classes")
            lines.append(
                f"too small for some detectors: {skipped} (see skipped_classes in report.json)"
            )
        if doc["n_dropped"]:
            lines.append(f"dropped before the scan: {plural(doc['n_dropped'], 'row')}")
        lines.append(f"note: {visible(doc['note'], 300)}")
        return "\n".join(lines)

    def write(self, out_dir: str | os.PathLike[str], *, resume: bool = False) -> Path:
        """Writes all files of the report into a folder, or nothing at all.

        Args:
          out_dir: a folder that does not exist yet (it is created, with its parents) or is empty.
          resume: it may hold what the scan has done so far, which stays there.

        Returns:
          The folder.

        Raises:
          UsageError: if the folder cannot be used; `check_out_dir` tells the same beforehand.
          OutputError: if writing failed: no space, no permission. Nothing is left behind.
        """
        from jaxpoison.report.files import write_report

        return write_report(self, out_dir, resume=resume)

    def _repr_html_(self) -> str:
        from jaxpoison.report.html import render_card

        return render_card(self)

    def __repr__(self) -> str:
        """Names the verdict and the counts, not the arrays."""
        return (
            f"Report(verdict={self.verdict!r}, n_flagged={self.report['n_flagged']}, "
            f"n_samples={self.report['n_samples']})"
        )


def attack_line(attack: dict[str, Any]) -> str:
    """Describes one entry of `suspected_attacks` in one line of plain text."""
    target = class_title(attack["target_class"], attack["target_name"])
    source = attack["source_class"]
    came = "" if source is None else f" from class {source}"
    return (
        f"{visible(attack['kind'], 40)} in {target}{came}: {plural(attack['n'], 'row')}, "
        f"confidence {percent(attack['confidence'])}"
    )


def class_title(label: int, name: object) -> str:
    """Names a class by number, and by its untrusted name where it has one of its own."""
    shown = visible(name or "", 60).strip()
    return f"class {label}" if shown in ("", str(label)) else f"class {label} ({shown})"
