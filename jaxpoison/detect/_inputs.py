"""Rows on the host, as a stream's stage shows them."""

from __future__ import annotations

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.stream import Stream


def inputs_of(stream: Stream, rows: HostArray) -> HostArray:
    """Some rows as the stream's stage shows them, [r, d]."""
    return staged(stream, stream.take(rows))


def rows_between(stream: Stream, start: int, stop: int) -> HostArray:
    """Adjacent rows as the stream's stage shows them, [r, d]."""
    return staged(stream, stream.source.read(start, stop)["x"])


def staged(stream: Stream, x: HostArray) -> HostArray:
    """Raw rows as the stream's stage shows them, [r, d]."""
    if stream.stage is not None:
        x = np.asarray(stream.stage.fn(stream.stage.params, x[None]))[0]
    return x
