"""Every gradient kernel: micro-batches, chunks, padding and devices change rounding only."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from device_processes import on_devices
from gradient_table import CASES, ROWS, Kernels

pytestmark = pytest.mark.slow  # a hundred small compilations a case

NEAR = 1e-5  # of the largest entry


def agree(got, want, name):
    size = max(float(np.abs(want).max(initial=0.0)), 1e-6)
    assert got.shape == want.shape, name
    assert float(np.abs(got - want).max(initial=0.0)) <= NEAR * size, name


@pytest.fixture(scope="module", params=CASES)
def table(request):
    kernels = Kernels(request.param)
    return kernels, kernels.of_rows(kernels.batch), kernels.sums(kernels.batch)


def part(batch, rows):
    return jax.tree.map(lambda x: x[rows], batch)


def test_micro_batches_give_the_rows_and_sums_of_the_whole(table):
    kernels, rows, sums = table
    pieces = [part(kernels.batch, slice(0, 9)), part(kernels.batch, slice(9, ROWS))]
    each = [kernels.of_rows(piece) for piece in pieces]
    for name, want in rows.items():
        agree(np.concatenate([found[name] for found in each]), want, name)
    added = [kernels.sums(piece) for piece in pieces]
    for name, want in sums.items():
        agree(added[0][name] + added[1][name], want, name)


def test_chunks_change_rounding_only(table):
    kernels, rows, sums = table
    for chunk in (1, 8):  # 23 rows: the last chunk of 8 is filled up
        for name, got in kernels.of_rows(kernels.batch, chunk=chunk).items():
            agree(got, rows[name], name)
        for name, got in kernels.sums(kernels.batch, chunk=chunk).items():
            agree(got, sums[name], name)


def test_padding_is_zero_and_changes_rounding_only(table):
    kernels, rows, sums = table
    x, y = kernels.batch
    padded = np.concatenate([x, np.full_like(x[:5], np.nan)]), np.concatenate([y, y[:5]])
    mask = (np.arange(ROWS + 5) < ROWS).astype(np.float32)
    for name, got in kernels.of_rows(padded, mask).items():
        agree(got[:ROWS], rows[name], name)
        assert not got[ROWS:].any(), name
    for name, got in kernels.sums(padded, mask).items():
        agree(got, sums[name], name)


PROGRAM = """
    import sys
    import jax
    import numpy as np
    from gradient_table import CASES, everything

    assert len(jax.devices()) == int(sys.argv[1])
    found = {f"{case}: {name}": value for case in CASES for name, value in everything(case).items()}
    np.savez(sys.argv[2], **found)
"""


@pytest.mark.timeout(900)
def test_devices_change_rounding_only(tmp_path):
    found = {}
    for count in (1, 2, 4, 8):
        file = tmp_path / f"{count}.npz"
        on_devices(count, PROGRAM, count, file)
        with np.load(file) as arrays:
            found[count] = dict(arrays)
    for count in (2, 4, 8):
        assert found[count].keys() == found[1].keys()
        for name, got in found[count].items():
            agree(got, found[1][name], f"{name} on {count} devices")
