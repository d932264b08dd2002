"""Searches and products class by class or cell by cell on the host, where devices are too slow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from jaxpoison import folds
from jaxpoison._types import HostArray
from jaxpoison.detect._inputs import rows_between
from jaxpoison.linalg import one_thread
from jaxpoison.stream import Stream, one_ahead

_CELLS = 512
_PROBES = 8  # cells that each row looks into
_STEPS = 4  # of k-means, from leaders drawn evenly
_LARGEST = 4  # times the mean size of a cell, beyond which it is cut
_READ_BYTES = 1 << 27  # of rows read at a time
_CHUNK_ROWS = 1 << 14  # looked at at a time: enough that some hundred of them share a cell
_CANCELLED = 1e-3  # of the squared norms: squared distances below it are computed again
_WORKERS = 4
_MANY_CLASSES = 128  # beyond which the rows of a class in a block are few


class Cells(NamedTuple):
    """A bank of rows sorted by cell.

    Attributes:
        x: [m, d] float32, about the mean of the bank.
        squares: [m].
        rows: [m] row numbers.
        first: [cells + 1] where each cell begins.
        leaders: [cells, d] its mean.
        centre: [d].
    """

    x: HostArray
    squares: HostArray
    rows: HostArray
    first: HostArray
    leaders: HostArray
    centre: HostArray


@one_thread()
def cells_of(rows: HostArray, bank: HostArray) -> Cells:
    """Sorts a bank into cells by k-means; the bank decides, not how it is searched.

    Args:
        rows: [m] row numbers, ascending.
        bank: [m, d] float32.
    """
    centre = bank.mean(axis=0, dtype=np.float64).astype(np.float32)
    x = bank - centre
    leaders = x[:: max(len(x) // _CELLS, 1)][:_CELLS].copy()
    for _ in range(_STEPS):
        cell = _nearest_leader(x, leaders)
        sizes = np.bincount(cell, minlength=len(leaders))
        order = np.argsort(cell, kind="stable")
        starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        filled = sizes > 0
        sums = np.add.reduceat(x[order], starts[filled], axis=0)
        leaders[filled] = sums / sizes[filled, None].astype(np.float32)
    cell = _nearest_leader(x, leaders)
    away = ((x - leaders[cell]) ** 2).sum(axis=1)
    order = np.lexsort((away, cell))
    sizes = np.bincount(cell, minlength=len(leaders))
    # a cell of too many rows is cut into shells, or one heap of like rows would cost a full search
    most = _LARGEST * -(-len(x) // len(leaders))
    first = [0]
    for size in sizes[sizes > 0]:
        pieces = -(-int(size) // most)
        first += (first[-1] + np.linspace(0, size, pieces + 1).astype(int)[1:]).tolist()
    edges = np.array(first)
    x = np.ascontiguousarray(x[order])
    means = np.add.reduceat(x, edges[:-1], axis=0) / np.diff(edges)[:, None].astype(np.float32)
    return Cells(x, (x * x).sum(axis=1), rows[order], edges, means, centre)


def _nearest_leader(x: HostArray, leaders: HostArray) -> HostArray:
    half = 0.5 * (leaders * leaders).sum(axis=1)
    parts = [
        (x[start : start + _CHUNK_ROWS] @ leaders.T - half).argmax(axis=1)
        for start in range(0, len(x), _CHUNK_ROWS)
    ]
    return np.concatenate(parts)


def search(
    stream: Stream, cells: Cells, projection: HostArray, k: int
) -> tuple[HostArray, HostArray]:
    """The nearest rows of a bank to every row of a stream, other than itself, in 8 cells of it.

    Args:
        stream: Rows [n, d], of which the bank is some.
        cells: The bank.
        projection: [d, q] of rows wider than the bank, or [d, 0].
        k: Neighbours.

    Returns:
        Distances [n, k] float32, infinite where there are fewer, and row numbers [n, k] int32, -1
        where there are fewer; nearest first.

    **Cost**: one read; 2 n d (cells + 8 m / cells) FLOP on the host, on up to four threads.
    """
    n = len(stream)
    distance, found = np.empty((n, k), np.float32), np.empty((n, k), np.int32)

    def of_chunk(start: int, x: HostArray) -> None:
        stop = start + len(x)
        distance[start:stop], found[start:stop] = _of_rows(x, start, cells, k)

    with one_thread(), ThreadPoolExecutor(min(os.cpu_count() or 1, _WORKERS)) as pool:
        for start, x in _blocks(stream, projection):
            # a part for each of as many workers as there may be, not as there are: equal bits
            step = min(_CHUNK_ROWS, max(-(-len(x) // _WORKERS), 1))
            parts = range(0, len(x), step)
            jobs = [pool.submit(of_chunk, start + i, x[i : i + step]) for i in parts]
            for job in jobs:
                job.result()
    return distance, found


def _blocks(stream: Stream, projection: HostArray) -> Iterator[tuple[int, HostArray]]:
    """Row numbers and rows, in order; a thread reads one block ahead."""
    step = max(_READ_BYTES // (4 * int(np.prod(stream.row_shape))), 1)
    starts = range(0, len(stream), step)

    def read(start: int) -> HostArray:
        x = rows_between(stream, start, min(start + step, len(stream)))
        x = np.asarray(x, np.float32).reshape(len(x), -1)
        return x @ projection if projection.size else x

    return zip(starts, one_ahead(read, starts), strict=True)


def _of_rows(x: HostArray, start: int, cells: Cells, k: int) -> tuple[HostArray, HostArray]:
    """Distances and row numbers [b, k] of the rows that begin at a row number."""
    x = x - cells.centre
    size, probes = len(x), min(_PROBES, len(cells.leaders))
    half = 0.5 * (cells.leaders * cells.leaders).sum(axis=1)
    affinity = half - x @ cells.leaders.T
    chosen = np.argpartition(affinity, probes - 1, axis=1)[:, :probes].copy()
    chosen.sort(axis=1)  # so that ties fall in one way
    k1 = k + 1  # a row may find itself
    value = np.full((size, probes, k1), np.inf, np.float32)
    place = np.zeros((size, probes, k1), np.int32)
    order = np.argsort(chosen, axis=None, kind="stable")
    edges = np.searchsorted(chosen.ravel()[order], np.arange(len(cells.leaders) + 1))
    for cell in np.flatnonzero(np.diff(edges)):
        row, probe = np.divmod(order[edges[cell] : edges[cell + 1]], probes)
        low, high = cells.first[cell], cells.first[cell + 1]
        gap = cells.squares[low:high] - 2 * (x[row] @ cells.x[low:high].T)
        if high - low > k1:
            near = np.argpartition(gap, k, axis=1)[:, :k1]
            gap = np.take_along_axis(gap, near, axis=1)
        else:
            near = np.broadcast_to(np.arange(high - low), gap.shape)
        value[row, probe, : gap.shape[1]] = gap
        place[row, probe, : gap.shape[1]] = near + low
    values, places = value.reshape(size, -1), place.reshape(size, -1)
    values[cells.rows[places] == start + np.arange(size)[:, None]] = np.inf
    near = np.argpartition(values, k - 1, axis=1)[:, :k]
    values, places = np.take_along_axis(values, near, 1), np.take_along_axis(places, near, 1)
    return _finished(x, values, places, cells)


def _finished(
    x: HostArray, value: HostArray, place: HostArray, cells: Cells
) -> tuple[HostArray, HostArray]:
    """Squared distances made exact where norms cancelled, sorted, as distances and row numbers."""
    own = (x * x).sum(axis=1)[:, None]
    norms = own + cells.squares[place]
    squared = np.maximum(value + own, 0.0)
    row, column = np.nonzero((squared < _CANCELLED * norms) & np.isfinite(value))
    if row.size:
        squared[row, column] = ((x[row] - cells.x[place[row, column]]) ** 2).sum(axis=1)
    # as in linalg.ranks: the bits of a float that is not negative order as an integer
    packed = np.ascontiguousarray(squared, np.float32).view(np.int32).astype(np.int64) << 32
    packed |= place
    packed.sort(axis=1)
    distance = np.sqrt((packed >> 32).astype(np.int32).view(np.float32))
    found = cells.rows[packed & 0xFFFFFFFF]
    return distance, np.where(np.isfinite(distance), found, -1)


def search_own(
    stream: Stream, banks: list[Cells | None], projection: HostArray, k: int
) -> tuple[HostArray, HostArray]:
    """The nearest rows of each row, other than itself, in the bank of its own class.

    A class of few rows in a block is too small a product for a device.

    Args:
        stream: Rows [n, d].
        banks: One a class, or None to pass it over.
        projection: As for ``search``.
        k: Neighbours.

    Returns:
        As ``search``; for a class without a bank none.

    **Cost**: one read; 2 n m d FLOP on the host, m the rows of a bank.
    """
    n = len(stream)
    distance, found = np.full((n, k), np.inf, np.float32), np.full((n, k), -1, np.int32)

    def of_class(x: HostArray, rows: HostArray, bank: Cells) -> None:
        x = x - bank.centre
        gap = bank.squares - 2 * (x @ bank.x.T)
        gap[bank.rows == rows[:, None]] = np.inf
        kept = min(k, gap.shape[1])
        if kept < gap.shape[1]:
            place = np.argpartition(gap, kept - 1, axis=1)[:, :kept]
            gap = np.take_along_axis(gap, place, axis=1)
        else:
            place = np.broadcast_to(np.arange(kept), gap.shape)
        distance[rows, :kept], found[rows, :kept] = _finished(x, gap, place, bank)

    with one_thread(), ThreadPoolExecutor(min(os.cpu_count() or 1, _WORKERS)) as pool:
        for start, x in _blocks(stream, projection):
            jobs = []
            for part, label in _parts(stream.labels[start : start + len(x)]):
                bank = banks[label]
                if bank is not None:
                    jobs.append(pool.submit(of_class, x[part], start + part, bank))
            for job in jobs:
                job.result()
    return distance, found


def bank_of(rows: HostArray, x: HostArray) -> Cells:
    """Reference rows [m, d] of a class as one cell."""
    centre = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    x = x - centre
    return Cells(x, (x * x).sum(axis=1), rows, np.array([0, len(x)]), x[:0], centre)


def covariance_products(
    stream: Stream, basis: HostArray, mean: HostArray, counts: HostArray
) -> HostArray:
    """``V_c Sigma_c`` [c, k, d] float32 for every class, by one read of the rows.

    On CPU devices, where classes are many, the host multiplies class by class: a tile of few rows
    adds to k x d sums there, which costs a compiled loop five times what the products do.

    Args:
        stream: Rows [n, d].
        basis: [c, k, d] float32.
        mean: [c, d].
        counts: [c] rows.

    **Cost**: 4 n k d FLOP.
    """
    on_cpu = stream.mesh.devices.flat[0].platform == "cpu"
    if not on_cpu or stream.num_classes <= _MANY_CLASSES:
        return folds.sketch(stream, basis, mean, counts).astype(np.float32)
    out, centre = np.zeros_like(basis), mean.astype(np.float32)

    def of_class(x: HostArray, part: HostArray, label: int) -> None:
        x = x[part] - centre[label]
        out[label] += (x @ basis[label].T).T @ x

    with one_thread(), ThreadPoolExecutor(min(os.cpu_count() or 1, _WORKERS)) as pool:
        for start, x in _blocks(stream, np.zeros((0, 0), np.float32)):
            labels = stream.labels[start : start + len(x)]
            jobs = [pool.submit(of_class, x, part, label) for part, label in _parts(labels)]
            for job in jobs:
                job.result()
    out /= np.maximum(counts, 1).astype(np.float32)[:, None, None]
    return out


def _parts(labels: HostArray) -> list[tuple[HostArray, int]]:
    """The places of each class that is there, and the class."""
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [(part, int(labels[part[0]])) for part in parts if len(part)]
