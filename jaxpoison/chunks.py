"""Large blocks some tiles at a time, so that what is made of a row is never held for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpoison._types import Array, Block

_LARGE = 1 << 16  # rows, padding included, up to which a block is worked on as a whole
_ROWS = 2048  # added up at a time: as fast as more, a thousand features of them fit the cache

FEW_ROWS = 512
"""At a time where several thousand values of a row are made: a third faster than 2048."""


def is_large(block: Block) -> bool:
    """Whether a thousand features of all rows of a block would take hundreds of megabytes."""
    return bool(block.mask.size > _LARGE)


def _part(block: Block, number: Array, per: int) -> Block:
    """Some tiles; the last part begins earlier, and what was seen before is masked."""
    start = jnp.minimum(number * per, block.mask.shape[0] - per)
    part = Block(*(jax.lax.dynamic_slice_in_dim(a, start, per) for a in block))
    is_new = start + jnp.arange(per) >= number * per
    return part._replace(mask=part.mask * is_new[:, None])


def _size(block: Block, rows: int) -> tuple[int, int]:
    """Tiles of a part, and the number of parts."""
    tiles, t = block.mask.shape
    per = max(1, min(tiles, rows // t))
    return per, -(-tiles // per)


def scan_parts(step: Callable[[Any, Block], Any], carry: Any, block: Block) -> Any:
    """``carry = step(carry, part)`` for every part of a block, traced.

    **Cost**: what ``step`` holds of 2048 rows.
    """
    per, count = _size(block, _ROWS)

    def body(carry: Any, number: Array) -> tuple[Any, None]:
        return step(carry, _part(block, number, per)), None

    return jax.lax.scan(body, carry, jnp.arange(count))[0]


def map_parts(fn: Callable[[Block], Array], block: Block, rows: int = _ROWS) -> Array:
    """``fn(part) -> [tiles, t, ...]`` of every part of a block put together, traced.

    Args:
        fn: What to make of a part.
        block: Rows.
        rows: Of a part.

    **Cost**: what ``fn`` holds of so many rows, and the result.
    """
    tiles = block.mask.shape[0]
    per, count = _size(block, rows)
    parts = jax.lax.map(lambda number: fn(_part(block, number, per)), jnp.arange(count))
    whole = parts[:-1].reshape(-1, *parts.shape[2:])
    rest: Array = parts[-1, per * count - tiles :]
    return jnp.concatenate([whole, rest])
