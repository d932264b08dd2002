"""Settings of every test."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

# Tests leave nothing in the user's cache folder, and find nothing there.
os.environ.setdefault("JAXPOISON_NO_CACHE", "1")

_MOST_MAPS = 30_000
"""Every compiled program holds memory maps, and Linux allows a process 65,530 of them: beyond,
the compiler dies of a segmentation fault."""


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_do_not_pile_up():
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > _MOST_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()
