"""What can be told of a finding's kind once its rows are known."""

from __future__ import annotations

import numpy as np

from jaxpoison import calibrate
from jaxpoison._types import HostArray
from jaxpoison.detect._detector import even_subset
from jaxpoison.detect._inputs import inputs_of
from jaxpoison.detect.common_shift import FEWEST, common_shift
from jaxpoison.detect.distinct import distinctness
from jaxpoison.detect.label_views import Opinion
from jaxpoison.stream import Stream

_DIRTY = ("backdoor", "subpopulation", "label_flip")
_MOST_ROWS = 750  # of a clean-label finding, and as many others of its class
_MOST_FINDINGS = 64  # that are looked at, most confident first


def named(
    findings: tuple[calibrate.Finding, ...], inputs: Stream, opinion: Opinion | None
) -> tuple[calibrate.Finding, ...]:
    """Findings under the names that their rows deserve; nothing else of them changes.

    Rows of other classes have a trigger where they differ from the rows of the classes they are
    taken for. Clean-label rows have one where they share what sets them apart, and else victims.

    Args:
        findings: With their final rows, most confident first.
        inputs: The inputs as rows.
        opinion: Of the labels, or None.
    """
    flagged = np.zeros(len(inputs), np.bool_)
    for found in findings:
        flagged[found.rows] = True
    asked = findings[:_MOST_FINDINGS]
    is_dirty = opinion is not None and any(found.kind in _DIRTY for found in asked)
    phi = opinion.space.phi if opinion is not None and is_dirty else None
    out = []
    for found in asked:
        if found.kind == "clean_label":
            found = found._replace(kind=_clean(found, flagged, inputs))
        elif found.kind in _DIRTY and opinion is not None and phi is not None:
            told = distinctness(opinion, phi, inputs.labels, found.rows, flagged)
            found = found._replace(kind=calibrate.kind_of_dirty(found.kind, found.source, told))
        out.append(found)
    return (*out, *findings[_MOST_FINDINGS:])


def _clean(found: calibrate.Finding, flagged: HostArray, inputs: Stream) -> str:
    others = np.flatnonzero((inputs.labels == found.target) & ~flagged)
    some = even_subset(found.rows, _MOST_ROWS), even_subset(others, _MOST_ROWS)
    if min(len(rows) for rows in some) < FEWEST:
        return found.kind
    shift = common_shift(*(inputs_of(inputs, rows) for rows in some))
    return calibrate.kind_of_shift(shift.share, shift.spread)
