"""Labels of the nearest rows, and the neighbour searches that detectors share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison._types import Array, Block, HostArray, Scores
from jaxpoison.detect._cells import Cells, bank_of, cells_of, search, search_own
from jaxpoison.detect._detector import Key, class_rows, empty_scores, flat_rows
from jaxpoison.detect._inputs import inputs_of
from jaxpoison.kernels import nearest_neighbours, tile_nearest_neighbours
from jaxpoison.stream import Stream

NUM_NEIGHBOURS = 16
"""Neighbours of the shared search; a detector that asks for no more slices it."""

_BANK_ROWS = 1 << 16  # all rows are searched up to here, then a fixed draw of so many
_BANK_FLOATS = 1 << 26  # of the reference rows of all classes together
_LEAST_REFERENCE = 64  # rows of a class; where so many of all do not fit, they are projected
_CELLS_FROM = 1 << 40  # products of a search beyond the bank's size, from which cells are searched
_MAX_FEATURES = 1024
_CHUNK = 4096  # rows behind the stage at a time when a draw of rows is gathered
_MANY_CLASSES = 128  # beyond which the rows of a class in a block are few
_VOTE_ROWS = 1 << 16  # whose votes are counted at a time
_SPARE = 2.0  # neighbours each class is credited with before any is seen


class NearestRows(NamedTuple):
    """The nearest other rows of each row, nearest first.

    Attributes:
        distance: [n, k] Euclidean; infinite where there are fewer than k.
        rows: [n, k] integer row numbers; -1 where there are fewer than k.
    """

    distance: HostArray
    rows: HostArray


def nearest_rows(stream: Stream, num_neighbours: int) -> NearestRows:
    """The k nearest other rows among all classes, once a stream.

    Args:
        stream: Feature rows [n, d].
        num_neighbours: k.

    Returns:
        Distances and row numbers [n, k]. Beyond 65536 rows the neighbours are sought among a fixed
        draw of as many, and where that takes more than 2^40 products, in 8 of 512 cells of the
        draw; beyond 1024 features, in a random projection to 1024.

    **Cost**: 2 n min(n, 65536) d FLOP, in two passes; the searched rows are held on each device.
    In cells 2 n d 1536 FLOP, on the host.
    """
    k = max(num_neighbours, NUM_NEIGHBOURS)

    def make() -> NearestRows:
        rows, bank = _bank(stream)
        if len(stream) > _BANK_ROWS and len(stream) * bank.size > _CELLS_FROM:
            return NearestRows(*search(stream, cells_of(rows, bank), _projection(stream), k))
        slots = np.zeros(k, np.float32)
        operands = (bank, rows.astype(np.int32), _projection(stream), slots)
        return _unpacked(stream.map(_search_all, *operands), rows)

    found: NearestRows = stream.memo(("nearest_rows", k), make, lasts=False)
    return NearestRows(found.distance[:, :num_neighbours], found.rows[:, :num_neighbours])


def neighbour_weights(found: NearestRows) -> HostArray:
    """How much each of the nearest rows counts: ``exp(-d_ij^2 / d_ik^2)``, [n, k]; 0 for none."""
    is_there = found.rows >= 0
    distance = np.where(is_there, found.distance, 0.0).astype(np.float64, copy=False)
    reach = distance.max(axis=1, keepdims=True)
    ratio = distance / np.where(reach > 0, reach, 1.0)
    out: HostArray = np.where(is_there, np.exp(-(ratio**2)), 0.0)
    return out


def class_nearest_rows(
    stream: Stream,
    num_neighbours: int,
    num_reference: int,
    num_draws: int,
    min_rows: int = 1,
) -> Iterator[NearestRows]:
    """The k nearest other rows among some rows of the own class.

    Args:
        stream: Feature rows [n, d].
        num_neighbours: k.
        num_reference: Rows of a class that are searched, fewer where classes are many.
        num_draws: Draws of them; one where every class is searched whole.
        min_rows: Smaller classes are not searched; what is said of their rows means nothing.

    Yields:
        One search a draw. The draws are fixed: they depend on the class sizes alone.

    **Cost**: 2 n min(m, num_reference) d FLOP a draw; 2^26 reference values held. Where that is
    fewer than 64 rows of each class, rows are projected on fewer random directions.
    """
    of = np.flatnonzero(stream.counts >= max(min_rows, 1))
    wanted = min(num_reference, int(stream.counts.max()))
    width = min(len(_flat_row(stream)), _MAX_FEATURES)
    largest = _BANK_FLOATS // (len(of) * width)
    if largest < min(_LEAST_REFERENCE, wanted):
        largest = _LEAST_REFERENCE
        width = max(_BANK_FLOATS // (len(of) * largest), 1)
    if largest < wanted:
        wanted = 1 << int(np.log2(largest))  # banks are padded to a power of two
    projection = _projection(stream, width)
    for seed in range(num_draws if stream.counts.max() > wanted else 1):
        yield _search_classes(stream, of, num_neighbours, wanted, projection, seed)


def gathered(stream: Stream, rows: HostArray, projection: HostArray | None = None) -> HostArray:
    """Some rows as the stream's stage shows them, projected if asked, [r, d] float32."""
    parts = []
    # each chunk reads whole shards, and those of many rows are large
    chunk = _CHUNK if len(stream) <= _BANK_ROWS else max(_CHUNK, stream.rows.layout.rows // 2)
    for start in range(0, len(rows), chunk):
        part = np.asarray(inputs_of(stream, rows[start : start + chunk]), np.float32)
        part = part.reshape(len(part), -1)
        parts.append(part if projection is None or not projection.size else part @ projection)
    return np.concatenate(parts)


def _search_classes(
    stream: Stream, of: HostArray, k: int, num_reference: int, projection: HostArray, seed: int
) -> NearestRows:
    """One draw of the reference rows of some classes, searched."""
    rng, of_class = np.random.default_rng(seed), class_rows(stream)
    size = 1 << int(np.ceil(np.log2(max(num_reference, 2))))
    rows, mask = np.zeros((len(of), size), np.int64), np.zeros((len(of), size), np.float32)
    slot = np.zeros(stream.num_classes, np.int32)
    for label in range(stream.num_classes):
        mine = np.sort(rng.permutation(of_class[label])[:num_reference])
        at = int(np.searchsorted(of, label))
        if at < len(of) and of[at] == label:
            slot[label] = at
            rows[at, : len(mine)], mask[at, : len(mine)] = mine, 1.0
    used, place = np.unique(rows[mask > 0], return_inverse=True)
    x = gathered(stream, used, projection)
    if len(stream) > _BANK_ROWS and stream.num_classes > _MANY_CLASSES:
        banks: list[Cells | None] = [None] * stream.num_classes
        edges = np.concatenate([[0], np.cumsum((mask > 0).sum(axis=1))])
        for i, label in enumerate(of):
            part = place[edges[i] : edges[i + 1]]
            banks[label] = bank_of(used[part], x[part])
        return NearestRows(*search_own(stream, banks, projection, k))
    bank = np.zeros((len(of), size, x.shape[1]), np.float32)
    bank[mask > 0] = x[place]
    operands = (bank, mask, rows.astype(np.int32), slot, projection, np.zeros(k, np.float32))
    return _unpacked(stream.map(_search_own, *operands), rows, slot[stream.labels])


def _flat_row(stream: Stream) -> HostArray:
    row: HostArray = stream.memo(
        "flat_row", lambda: np.ravel(inputs_of(stream, np.zeros(1, np.int64)))
    )
    return row


def _projection(stream: Stream, most: int | None = None) -> HostArray:
    """[d, most] Gaussian directions, the same for every stream; [d, 0] where none are needed."""
    most, d = most or _MAX_FEATURES, len(_flat_row(stream))
    if d <= most:
        return np.zeros((d, 0), np.float32)
    normal: HostArray = np.random.default_rng(0).standard_normal((d, most), np.float32)
    normal /= np.float32(np.sqrt(most))
    return normal


def _bank(stream: Stream) -> tuple[HostArray, HostArray]:
    """Numbers and features of the rows that are searched."""
    projection = _projection(stream)
    if len(stream) <= _BANK_ROWS:
        return np.arange(len(stream)), stream.map(_features, projection)
    rows = np.sort(np.random.default_rng(0).permutation(len(stream))[:_BANK_ROWS])
    return rows, gathered(stream, rows, projection)


def _features(block: Block, projection: Array) -> Array:
    x = flat_rows(block)
    if not projection.shape[1]:
        return x
    return jnp.matmul(x, projection, precision=jax.lax.Precision.HIGHEST)


def _search_all(block: Block, bank: Array, ids: Array, projection: Array, slots: Array) -> Array:
    x = _features(block, projection)
    found = nearest_neighbours(
        x.reshape(-1, x.shape[-1]),
        block.ids.reshape(-1),
        bank,
        jnp.ones(len(bank)),
        ids,
        num_neighbours=len(slots),  # an array's shape: static, where a number would be traced
    )
    return _packed(found.distance2, found.position).reshape(*block.mask.shape, 2, -1)


def _search_own(
    block: Block,
    bank: Array,
    mask: Array,
    ids: Array,
    slot: Array,
    projection: Array,
    slots: Array,
) -> Array:
    x = _features(block, projection)
    found = tile_nearest_neighbours(
        x, slot[block.label], block.ids, bank, mask, ids, num_neighbours=len(slots)
    )
    return _packed(found.distance2, found.position)


def _packed(distance2: Array, index: Array) -> Array:
    """One array for both; positions below 2^24 are exact in float32."""
    return jnp.stack([distance2, index.astype(jnp.float32)], axis=-2)


def _unpacked(packed: HostArray, rows: HostArray, of: HostArray | None = None) -> NearestRows:
    """Positions become row numbers: in ``rows`` [m], or in ``rows[of]`` [n, m], a list a row."""
    if len(packed) > _BANK_ROWS:  # results of millions of rows are held in half the bytes
        distance = np.sqrt(packed[:, 0])
        rows = rows.astype(np.int32)
    else:
        distance = np.sqrt(packed[:, 0], dtype=np.float64)
    index = packed[:, 1].astype(np.int32)
    taken = np.maximum(index, 0)
    number = rows[taken] if of is None else rows[of[:, None], taken]
    return NearestRows(distance, np.where(index < 0, number.dtype.type(-1), number))


class DisagreementInfo(NamedTuple):
    """What the neighbours' labels say of each class.

    Attributes:
        share: [c] rows that most of their neighbours contradict.
        deep: [c] rows that nearly all of their neighbours contradict.
    """

    share: HostArray
    deep: HostArray


@dataclass(frozen=True)
class KNNDisagreement:
    """How much the nearest rows contradict a row's label.

    With ``w_ij = exp(-d_ij^2 / d_ik^2)`` scaled to sum to k, ``W_c`` the weight of the neighbours
    of class c and y the own label, ``s = b / (W_y + b)`` where b is the largest ``W_c`` of another
    class. The same is done with the densities ``(W_c + 2) / (k n_c / n + 2)``, and the smaller of
    the two counts. So a row of a rare class is not suspect because common rows surround it: that
    is expected of it whatever its label.

    Attributes:
        num_neighbours: k.
        deep: Disagreement from which a row lies deep inside another class.
        min_rows: Smaller classes are skipped.

    **Cost**: one neighbour search, shared.

    **Assumes / fails on**: wrong labels are a minority of every neighbourhood. Planted rows that
    are near each other vote for each other: no backdoor of more than k rows is seen. Flips
    between classes that overlap in these features look like the overlap.

    Reference: Peri et al., 2020, arXiv:1909.13374 (deep k-NN), with a vote in place of a cut.
    """

    num_neighbours: int = NUM_NEIGHBOURS
    deep: float = 0.8
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n] in 0..1; the class statistic is how sharp its disagreement is.

        The statistic is ``log((D + 1/2) / (S + 1/2))``: D rows of the class lie deep inside others,
        S are contradicted but not deep. Classes that overlap have many of S and few of D; a class
        that is merely hard has no larger statistic than an easy one, where a plain share would.
        """
        values, statistic, null = empty_scores(stream)
        share, deep = np.full(stream.num_classes, np.nan), np.full(stream.num_classes, np.nan)
        if len(stream) > 1:
            values = self._disagreement(stream).astype(np.float32)
        of_class = class_rows(stream)
        for c in range(stream.num_classes):
            mine = of_class[c]
            if stream.counts[c] < self.min_rows:
                values[mine] = 0.0
                continue
            inside = int((values[mine] >= self.deep).sum())
            edge = int((values[mine] > 0.5).sum()) - inside
            statistic[c] = np.log((inside + 0.5) / (edge + 0.5))
            share[c] = (inside + edge) / stream.counts[c]
            deep[c] = inside / stream.counts[c]
        return Scores(values, statistic, null, None, DisagreementInfo(share, deep))

    def _disagreement(self, stream: Stream) -> HostArray:
        k = min(self.num_neighbours, len(stream) - 1)
        whole = nearest_rows(stream, k)
        out = np.empty(len(stream))
        for start in range(0, len(stream), _VOTE_ROWS):
            part = slice(start, start + _VOTE_ROWS)
            found = NearestRows(whole.distance[part], whole.rows[part])
            out[part] = self._of_rows(stream, found, stream.labels[part], k)
        return out

    def _of_rows(self, stream: Stream, found: NearestRows, given: HostArray, k: int) -> HostArray:
        weight = neighbour_weights(found)
        weight *= k / np.maximum(weight.sum(axis=1, keepdims=True), 1e-30)
        labels = stream.labels[np.maximum(found.rows, 0)]
        expected = k * stream.counts / len(stream)
        own, other, own_density, other_density = _strongest(labels, weight, given, expected)
        plain = other / np.maximum(own + other, 1e-30)
        corrected = other_density / (own_density + other_density)
        out: HostArray = np.minimum(plain, corrected)
        return out


def _strongest(
    labels: HostArray, weight: HostArray, own: HostArray, expected: HostArray
) -> tuple[HostArray, ...]:
    """Weight and density of the own class and the largest of another, [n] each.

    Without an array [n, c]: each neighbour's class is summed over the other neighbours.
    """
    total = np.zeros_like(weight)  # of the class of each neighbour
    for j in range(labels.shape[1]):
        total += weight[:, j : j + 1] * (labels == labels[:, j : j + 1])
    is_own = labels == own[:, None]
    mine = (weight * is_own).sum(axis=1)
    other = np.where(is_own, 0.0, total).max(axis=1)
    density = (total + _SPARE) / (expected[labels] + _SPARE)
    # a class that no neighbour has is credited too; it matters where all neighbours are the own
    unseen = _SPARE / (expected.max() + _SPARE)
    other_density = np.where(is_own, unseen, density).max(axis=1)
    return mine, other, (mine + _SPARE) / (expected[own] + _SPARE), other_density
