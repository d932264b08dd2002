"""Counting over members in blocks of test rows, in small integers, so that no vote is widened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxpoison.certify._types import Ints

_ENTRIES = 1 << 19  # of a block: its temporaries stay in the cache
_BYTE = 255  # ones that a byte can add up


def blocks(rows: int, entries_per_row: int, entries: int = _ENTRIES) -> Iterator[slice]:
    """Slices of test rows, of about ``entries`` entries each."""
    step = max(1, entries // max(1, entries_per_row))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def count_votes(labels: Ints, num_classes: int) -> Ints:
    """Votes for each class.

    Args:
        labels: [m, v] classes voted for, below ``num_classes``.
        num_classes: c.

    Returns:
        [v, c] int64.
    """
    members, rows = labels.shape
    counts = np.empty((rows, num_classes), np.int64)
    for block in blocks(rows, members):
        width = block.stop - block.start
        keys = labels[:, block].astype(np.intp)
        keys += np.arange(width, dtype=np.intp) * num_classes
        counts[block] = np.bincount(keys.ravel(), minlength=width * num_classes).reshape(width, -1)
    return counts


def count_true(hits: np.ndarray[Any, np.dtype[np.bool_]]) -> Ints:
    """Sum of booleans over the first axis: bytes are added as bytes while they cannot overflow.

    Args:
        hits: [m, ...].

    Returns:
        [...] int64.
    """
    ones = hits.view(np.uint8)
    total = np.zeros(hits.shape[1:], np.int64)
    for start in range(0, len(hits), _BYTE):
        total += np.add.reduce(ones[start : start + _BYTE], axis=0, dtype=np.uint8)
    return total


def winners(counts: Ints) -> Ints:
    """[v] class with most votes; the lower index wins a tie."""
    best: Ints = np.argmax(counts, axis=1)
    return best


def gaps(counts: Ints, of: Ints) -> Ints:
    """What a class is ahead of each other by, less one where the other would win a tie.

    ``gaps[t, b] = n_a - n_b - [b < a]`` with a the class ``of[t]``: a stays ahead of b as long as
    it is at least 0.

    Args:
        counts: [v, c] votes.
        of: [v] classes.

    Returns:
        [v, c] int64; the entry of the class itself is the largest integer.
    """
    own = np.take_along_axis(counts, of[:, None], axis=1)
    classes = np.arange(counts.shape[1])
    ahead: Ints = own - counts - (classes < of[:, None])
    np.put_along_axis(ahead, of[:, None], np.iinfo(np.int64).max, axis=1)
    return ahead


def leads(counts: Ints, of: Ints) -> Ints:
    """``g(a, b) = n_a - n_b + [b > a]`` with a = ``of[t]``: [v, c], 1 at a itself."""
    own = np.take_along_axis(counts, of[:, None], axis=1)
    ahead: Ints = own - counts + (np.arange(counts.shape[1]) > of[:, None])
    return ahead
