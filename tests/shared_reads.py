"""Threads that read one source at the same time."""

from __future__ import annotations

import threading

import numpy as np


def wrong_reads(source, x, times):
    """The ranges that three threads did not read as they are in x."""
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(times):
            start, stop = sorted(rng.integers(0, len(x) + 1, 2).tolist())
            if not np.array_equal(source.read(start, stop)["x"], x[start:stop]):
                wrong.append((start, stop))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong
