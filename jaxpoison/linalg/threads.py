"""BLAS threads, kept out of products too small for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs the body, or the decorated function, with one BLAS thread.

    OpenBLAS splits even a 512 x 20 product, and its threads then spin for a few hundredths of a
    second in wait of the next one. Between passes on a busy machine that has cost a hundred times
    what the products themselves do.
    """
    with _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> Any:
    import scipy.linalg  # noqa: F401  # has a BLAS of its own, which must be loaded to be seen
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()
