"""What can be told of a finding's kind once its rows are known."""

from __future__ import annotations

import numpy as np

from jaxpoison import calibrate
from jaxpoison._types import HostArray
from jaxpoison.detect import closeness as copies
from jaxpoison.detect import common_shift as shifts
from jaxpoison.detect._detector import evenly
from jaxpoison.detect._inputs import staged
from jaxpoison.detect.distinct import Settled
from jaxpoison.detect.label_views import Opinion
from jaxpoison.stream import Stream

_CLEAN = "clean_label"
_MOST_FINDINGS = 64  # that are looked at, most confident first,
_MOST_CLEAN = 16  # and of clean-label ones: where rows are wide each takes seconds
_MOST_SHIFTED = 750  # rows of a clean-label finding, and as many others of its class
_MOST_CLOSE = 4000  # rows of another one, and as many of the classes they are taken for
_MOST_BYTES = 1 << 28  # of rows, those of all findings together: where they are large, fewer
_PART_BYTES = 1 << 25  # of rows made ready at a time


def named(
    findings: tuple[calibrate.Finding, ...],
    flagged: HostArray,
    inputs: Stream,
    opinion: Opinion | None,
) -> tuple[calibrate.Finding, ...]:
    """Findings under the names that their rows deserve; nothing else of them changes.

    Rows of other classes have a trigger where they differ from the rows of the classes they are
    taken for; where they hardly differ from each other they are copies. Clean-label rows have a
    trigger where they share what sets them apart, and else victims. What can not be asked keeps
    its name: dirty labels without label evidence, too few rows, findings beyond the first.

    Args:
        findings: With their final rows, most confident first.
        flagged: [n] bool, rows that are no example of honest ones.
        inputs: The inputs as rows; they are read once, forwards.
        opinion: Of the labels, or None.
    """
    asked = list(enumerate(findings[:_MOST_FINDINGS]))
    clean = [i for i, found in asked if found.kind == _CLEAN][:_MOST_CLEAN]
    dirty = [i for i, found in asked if found.kind != _CLEAN]
    settled = None
    if opinion is not None and dirty:
        settled = Settled(opinion, inputs.labels, flagged)
    num_asked = len(clean) + (0 if settled is None else len(dirty))
    if not num_asked:
        return findings
    size = int(np.prod(inputs.row_shape)) * np.dtype(inputs.dtype).itemsize
    room = _MOST_BYTES // (2 * size * num_asked)
    pairs = {i: _shifted_rows(findings[i], flagged, inputs.labels, room) for i in clean}
    if settled is not None:
        pairs |= {i: _close_rows(findings[i], settled, room) for i in dirty}
    every = np.unique(np.concatenate([rows for pair in pairs.values() for rows in pair]))
    raw = inputs.take(every) if len(every) else np.zeros((0, *inputs.row_shape), inputs.dtype)
    out = list(findings)
    for i, pair in pairs.items():
        x, others = (_ready(inputs, raw[np.searchsorted(every, rows)]) for rows in pair)
        if settled is None or findings[i].kind == _CLEAN:
            kind = _clean(x, others)
        else:
            kind = _dirty(findings[i], x, others, settled)
        out[i] = findings[i]._replace(kind=kind)
    return tuple(out)


def _shifted_rows(
    found: calibrate.Finding, flagged: HostArray, labels: HostArray, room: int
) -> tuple[HostArray, HostArray]:
    """Rows of a clean-label finding, and others of its class."""
    others = np.flatnonzero((labels == found.target) & ~flagged)
    most = min(_MOST_SHIFTED, room)
    return evenly(found.rows, most), evenly(others, most)


def _close_rows(
    found: calibrate.Finding, settled: Settled, room: int
) -> tuple[HostArray, HostArray]:
    """Rows of a finding, and as many of the classes that they are taken for."""
    rows = evenly(found.rows, min(_MOST_CLOSE, room))
    others = settled.peers(rows)
    return evenly(rows, len(others)), others


def _ready(inputs: Stream, raw: HostArray) -> HostArray:
    """Rows as verification sees them; in parts, as of large images there are copies on the way."""
    step = max(1, _PART_BYTES // max(raw[:1].nbytes, 1))
    parts = [staged(inputs, raw[i : i + step]) for i in range(0, len(raw), step)]
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def _clean(x: HostArray, others: HostArray) -> str:
    if min(len(x), len(others)) < shifts.FEWEST:
        return _CLEAN
    shift = shifts.common_shift(x, others)
    return calibrate.kind_of_shift(shift.share, shift.spread)


def _dirty(found: calibrate.Finding, x: HostArray, others: HostArray, settled: Settled) -> str:
    close, told = copies.closeness(x, others), settled.distinctness(found.rows)
    is_whole = len(x) == len(found.rows)
    return calibrate.kind_of_dirty(found.kind, found.source, close, told, is_whole=is_whole)
