"""Memory that is given back: in a process of its own, where the C library can; never an error."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jaxpoison import heap

HELD = """
import ctypes, resource, sys
import numpy as np
from jaxpoison import heap

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6

if not hasattr(ctypes.CDLL(None), "mallopt"):
    sys.exit(77)
fill = np.ones(3 << 20)
del fill  # glibc now takes pieces of up to 24 MB from the heap
was = heap.keep_little() if "keep" in sys.argv else None
before, pieces, between = resident(), [], []
for _ in range(20):
    pieces.append(np.ones(2 << 20))  # 16 MB
    between.append(np.ones(1 << 15))  # lies behind it, so that the end of the heap can not shrink
del pieces
freed = resident() - before
if "trim" in sys.argv:
    heap.trim()
print(was, freed, resident() - before)
"""


def run(*words):
    env = {name: value for name, value in os.environ.items() if name not in heap._CHOSEN}
    command = [sys.executable, "-c", HELD, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode == 77:
        pytest.skip("no glibc: there is nothing to set")
    assert done.returncode == 0, done.stderr
    was, freed, left = done.stdout.split()
    return was, float(freed), float(left)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_large_pieces_go_back_as_they_are_freed():
    was, freed, _ = run("keep")
    assert was == "True" and freed < 50  # of 335 MB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_trim_gives_back_what_was_freed():
    _, freed, left = run("trim")
    assert freed > 200 and left < 50  # without it all stays


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_"])
def test_what_the_environment_says_stays(name, monkeypatch):
    called = []
    monkeypatch.setattr(heap, "_function", lambda name: lambda *a: called.append(a) or 1)
    monkeypatch.setenv(name, "1")
    assert not heap.keep_little() and not called
    monkeypatch.delenv(name)
    for other in heap._CHOSEN:
        monkeypatch.delenv(other, raising=False)
    assert heap.keep_little() and called == [(-3, 8 << 20), (-1, 128 << 20)]


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(error, monkeypatch):
    def missing(_):
        raise error

    for name in heap._CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(heap.ctypes, "CDLL", missing)
    heap._function.cache_clear()
    try:
        assert heap._function("mallopt") is None and not heap.keep_little()
        heap.trim()
    finally:
        heap._function.cache_clear()
