"""What can be told of a finding's kind once its rows are known."""

from __future__ import annotations

import numpy as np

from jaxpoison import calibrate
from jaxpoison._types import HostArray
from jaxpoison.detect._detector import even_subset
from jaxpoison.detect._inputs import inputs_of
from jaxpoison.detect.common_shift import FEWEST, common_shift
from jaxpoison.stream import Stream

_MOST_ROWS = 750  # of a finding, and as many others of its class


def named(findings: list[calibrate.Finding], inputs: Stream) -> list[calibrate.Finding]:
    """Findings with the clean-label ones told apart: a trigger in all rows, or victims.

    Args:
        findings: With their final rows.
        inputs: The inputs as rows.
    """
    flagged = np.zeros(len(inputs), np.bool_)
    for found in findings:
        flagged[found.rows] = True
    return [
        found._replace(kind=_kind(found, flagged, inputs)) if found.kind == "clean_label" else found
        for found in findings
    ]


def _kind(found: calibrate.Finding, flagged: HostArray, inputs: Stream) -> str:
    others = np.flatnonzero((inputs.labels == found.target) & ~flagged)
    some = even_subset(found.rows, _MOST_ROWS), even_subset(others, _MOST_ROWS)
    if min(len(rows) for rows in some) < FEWEST:
        return found.kind
    shift = common_shift(*(inputs_of(inputs, rows) for rows in some))
    return calibrate.kind_of_shift(shift.share, shift.spread)
