"""What can be told of a finding's kind once its rows are known."""

from __future__ import annotations

import numpy as np

from jaxpoison import calibrate
from jaxpoison._types import HostArray
from jaxpoison.detect._detector import even_subset
from jaxpoison.detect._inputs import inputs_of, staged
from jaxpoison.detect.closeness import closeness
from jaxpoison.detect.common_shift import FEWEST, common_shift
from jaxpoison.detect.distinct import Settled
from jaxpoison.detect.label_views import Opinion
from jaxpoison.stream import Stream

_CLEAN = "clean_label"
_MOST_FINDINGS = 64  # that are looked at, most confident first
_MOST_ROWS = 750  # of a clean-label finding, and as many others
_MOST_PEERS = 200  # of another one, and as many others,
_MOST_BYTES = 1 << 28  # or fewer, so that those of all findings are no more


def named(
    findings: tuple[calibrate.Finding, ...], inputs: Stream, opinion: Opinion | None
) -> tuple[calibrate.Finding, ...]:
    """Findings under the names that their rows deserve; nothing else of them changes.

    Rows of other classes have a trigger where they differ from the rows of the classes they are
    taken for; where they hardly differ from each other they are copies. Clean-label rows have a
    trigger where they share what sets them apart, and else victims.

    Args:
        findings: With their final rows, most confident first.
        inputs: The inputs as rows.
        opinion: Of the labels, or None: then only clean-label findings are looked at.
    """
    flagged = np.zeros(len(inputs), np.bool_)
    for found in findings:
        flagged[found.rows] = True
    asked = findings[:_MOST_FINDINGS]
    clean = [
        found._replace(kind=_clean(found, flagged, inputs)) if found.kind == _CLEAN else found
        for found in asked
    ]
    dirty = [i for i, found in enumerate(asked) if found.kind != _CLEAN]
    if opinion is not None and dirty:
        kinds = _dirty([asked[i] for i in dirty], flagged, inputs, opinion)
        for i, kind in zip(dirty, kinds, strict=True):
            clean[i] = clean[i]._replace(kind=kind)
    return (*clean, *findings[_MOST_FINDINGS:])


def _clean(found: calibrate.Finding, flagged: HostArray, inputs: Stream) -> str:
    others = np.flatnonzero((inputs.labels == found.target) & ~flagged)
    some = even_subset(found.rows, _MOST_ROWS), even_subset(others, _MOST_ROWS)
    if min(len(rows) for rows in some) < FEWEST:
        return found.kind
    shift = common_shift(*(inputs_of(inputs, rows) for rows in some))
    return calibrate.kind_of_shift(shift.share, shift.spread)


def _dirty(
    findings: list[calibrate.Finding], flagged: HostArray, inputs: Stream, opinion: Opinion
) -> list[str]:
    settled = Settled(opinion, inputs.labels, flagged)
    size = int(np.prod(inputs.row_shape)) * np.dtype(inputs.dtype).itemsize
    most = int(np.clip(_MOST_BYTES // (2 * size * len(findings)), FEWEST, _MOST_PEERS))
    pairs = [settled.peers(even_subset(found.rows, most)) for found in findings]
    every = np.unique(np.concatenate([rows for pair in pairs for rows in pair]))
    raw = inputs.take(every) if len(every) else np.zeros((0, *inputs.row_shape), inputs.dtype)
    out = []
    for found, pair in zip(findings, pairs, strict=True):
        x, others = (raw[np.searchsorted(every, rows)] for rows in pair)
        close = float("nan")
        if len(x) and len(others):
            close = closeness(staged(inputs, x), staged(inputs, others))
        told = settled.distinctness(found.rows)
        out.append(calibrate.kind_of_dirty(found.kind, found.source, close, told))
    return out
