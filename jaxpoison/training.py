"""Trains a small network on the suspect data itself: its layers are what detectors look at.

Training on what may be poisoned is the point: the network learns the backdoor too, and then tells
the rows that carry it from the rest of their class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpoison._check import DataError, NothingToScan, UsageError
from jaxpoison._types import HostArray
from jaxpoison.models import Model
from jaxpoison.models.networks import (
    Architecture,
    num_weights,
    scaling,
    shrink_images,
    shrunk_shape,
)
from jaxpoison.models.optimise import Seen, TrainState, init, step, to_model
from jaxpoison.sources import Source
from jaxpoison.sources.base import rows_per_block
from jaxpoison.stream import compiled

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Int

ProgressFn = Callable[[str, int, int], None]

_VISITED_ROWS = 100_000  # of the default training, all epochs together
_FEWEST_EPOCHS, _MOST_EPOCHS = 2, 40
_REPORTS = 20


class States(Protocol):
    """Keeps states of a training (``jaxpoison.work.TrainingStates`` is one)."""

    def load(self) -> dict[str, Any] | None:
        """The latest one, or None."""

    def save(self, tree: dict[str, Any], *, is_last: bool = False) -> None:
        """May keep one, and keeps the last: dicts of host arrays."""


class Fitted(NamedTuple):
    """A trained network and how the training went.

    Attributes:
        model: Features, early features, logits and loss of any row of the source.
        rows: [r] int64 row numbers that were trained on, ascending.
        losses: [r, epochs] float32 cross-entropy of each row when its turn came in each epoch,
            before the step that used it.
        margins: [r, epochs] float32 logit of the own class less the largest other one, seen so
            too.
        errors: [r, epochs] float32 ``|softmax(z) - onehot(y)|_2`` (EL2N), seen so too.
        accuracy: Part of the rows that were classified right in the last epoch, seen so too.
        seconds: All of it.
        compile_seconds: The part that went into compiling (and the first step).
    """

    model: Model
    rows: HostArray
    losses: HostArray
    margins: HostArray
    errors: HostArray
    accuracy: float
    seconds: float
    compile_seconds: float


def fit(
    source: Source,
    labels: HostArray,
    num_classes: int,
    *,
    epochs: int | None = None,
    batch_rows: int = 128,
    max_rows: int = 50_000,
    max_bytes: int = 1 << 30,
    learning_rate: float = 2e-3,
    seed: int = 0,
    exclude: HostArray | None = None,
    progress: ProgressFn | None = None,
    states: States | None = None,
) -> Fitted:
    """Trains a ``ResidualCNN`` on images or an ``MLP`` on rows, on the default device.

    On the CPU the same seed gives the same bits, whatever the number of devices beside the one it
    runs on. On a GPU that is so only where XLA is told to use deterministic operations.

    Args:
        source: Images or rows; read once, front to back.
        labels: [n] integer classes 0..c-1.
        num_classes: c.
        epochs: Visits of each row; None makes it about 100,000 visits in all, 2 to 40 epochs.
        batch_rows: Rows of a step. The last batch of an epoch is padded, never dropped.
        max_rows: Train on a random sample of this size when there are more rows.
        max_bytes: And on fewer when the sample would take more memory than this.
        learning_rate: Adam's at the first step; falls to zero along a cosine.
        seed: Of the weights, the sample and the order.
        exclude: [n] bool, rows to leave out entirely, whose labels may be anything; or None.
        progress: Called with ("train", visited rows, rows to visit) about 20 times.
        states: Keeps the state behind an epoch, and has that of a training that was cut off; the
            result is the same to the bit. None keeps nothing.

    Returns:
        The network, and how it took every row in every epoch.

    Raises:
        UsageError: Arguments that make no sense or do not fit each other.
        DataError: A row with values that are not finite.
        NothingToScan: Every row is excluded.

    **Cost**: one pass over the data; the sample in memory, images over 64 pixels averaged down;
    2 s an epoch for 12,000 grey 28 x 28 images on two CPU cores. One compilation for each shape
    of row, number of classes and ``batch_rows``.

    **Assumes / fails on**: rows whose classes can be learned from them; with random labels the
    features still follow the inputs, but say nothing about the labels.
    """
    started = time.perf_counter()
    labels = np.asarray(labels)
    _check_positive(
        num_classes=num_classes, epochs=1 if epochs is None else epochs, batch_rows=batch_rows,
        max_rows=max_rows, max_bytes=max_bytes, learning_rate=learning_rate,
    )  # fmt: skip
    usable = _usable_rows(len(source), labels, num_classes, exclude)
    kind, shape = source.schema.kind, source.schema.shape
    architecture = Architecture(kind, shape, num_classes)
    rng = np.random.default_rng(seed)
    rows = _sample(usable, min(max_rows, max(1, max_bytes // _kept_bytes(source))), rng)
    x = _read(source, rows)
    epochs = epochs or int(np.clip(round(_VISITED_ROWS / len(rows)), _FEWEST_EPOCHS, _MOST_EPOCHS))

    scale, batches = scaling(x), -(-len(rows) // batch_rows)
    compiling = time.perf_counter()
    # numpy's stream, because it is the same on every machine.
    noise = rng.standard_normal(num_weights(architecture), np.float32)
    schedule = np.float32(learning_rate), np.float32(batches * epochs)
    state = _INIT(architecture, noise, *scale, *schedule)
    run = _Run(state, jnp.asarray(x), jnp.asarray(labels[rows].astype(np.int32)), batch_rows)
    run.warm_up()
    compile_seconds = time.perf_counter() - compiling
    seen = run.train(epochs, rng, progress, states)
    model = to_model(run.state, "cnn" if kind == "images" else "mlp")
    return Fitted(
        model, rows, seen.losses, seen.margins, seen.errors, float(seen.correct[:, -1].mean()),
        time.perf_counter() - started, compile_seconds,
    )  # fmt: skip


def _take(x: Array, y: Array, index: Int[Array, " b"]) -> tuple[Array, Array]:
    return jnp.take(x, index, axis=0, mode="clip"), jnp.take(y, index, mode="clip")


_INIT = compiled(init, static=("architecture",))
_STEP = compiled(step)
# Apart from the step: how many rows there are must not make the step compile again.
_TAKE = compiled(_take)
_SHRINK = compiled(shrink_images)


class _Run:
    """The state of a training and its data on the device."""

    def __init__(self, state: TrainState, x: Array, y: Array, batch_rows: int) -> None:
        self.state, self._x, self._y, self._batch_rows = state, x, y, batch_rows

    def warm_up(self) -> None:
        """Compiles the step; its result is thrown away."""
        jax.device_get(self._step(np.zeros(1, np.int32))[1].losses)

    def train(
        self,
        epochs: int,
        rng: np.random.Generator,
        progress: ProgressFn | None,
        states: States | None,
    ) -> Seen:
        """All epochs; what was seen of each row in each, [r, epochs]."""
        rows = len(self._y)
        shape = (rows, epochs)
        losses, margins, errors = (np.empty(shape, np.float32) for _ in range(3))
        record = Seen(losses, margins, errors, np.empty(shape, np.bool_))
        tell = _Teller(progress, rows * epochs)
        done = 0 if states is None else self._restore(states, record)
        for epoch in range(epochs):
            order = rng.permutation(rows).astype(np.int32)
            if epoch < done:
                continue
            seen: list[Seen] = []
            for start in range(0, rows, self._batch_rows):
                index = order[start : start + self._batch_rows]
                self.state, batch = self._step(index)
                seen.append(batch)
                tell(epoch * rows + start + len(index), batch.losses)
            # Everything a step gave back stays on the device until here, so that steps queue up.
            for out, *batches in zip(record, *jax.device_get(seen), strict=True):
                out[order, epoch] = np.concatenate(batches)[:rows]
            if states is not None:
                states.save(self._kept(epoch + 1, record), is_last=epoch + 1 == epochs)
        return record

    def _kept(self, done: int, record: Seen) -> dict[str, Any]:
        leaves = jax.device_get(jax.tree.leaves(self.state))
        return {
            "done": np.array(done),
            "state": {f"{i:04}": np.asarray(leaf) for i, leaf in enumerate(leaves)},
            "record": {name: array[:, :done] for name, array in record._asdict().items()},
        }

    def _restore(self, states: States, record: Seen) -> int:
        """Takes up a training that was cut off; epochs done."""
        held = states.load()
        if held is None:
            return 0
        leaves, structure = jax.tree.flatten(self.state)
        kept = [held["state"][f"{i:04}"] for i in range(len(leaves))]
        kept = [jnp.asarray(new, old.dtype) for new, old in zip(kept, leaves, strict=True)]
        self.state = jax.tree.unflatten(structure, kept)
        done = int(held["done"])
        for name, array in record._asdict().items():
            array[:, :done] = held["record"][name]
        return done

    def _step(self, index: HostArray) -> tuple[TrainState, Seen]:
        mask = np.arange(self._batch_rows) < len(index)
        index = np.pad(index, (0, self._batch_rows - len(index)))
        x, y = _TAKE(self._x, self._y, index)
        return cast(tuple[TrainState, Seen], _STEP(self.state, x, y, mask))


class _Teller:
    """Passes progress on about 20 times, each when the device has really come that far."""

    def __init__(self, progress: ProgressFn | None, total: int) -> None:
        self._progress, self._total, self._told = progress, total, 0

    def __call__(self, done: int, pending: Array) -> None:
        if self._progress is None:
            return
        part = done * _REPORTS // self._total
        if part > self._told:
            self._told = part
            jax.device_get(pending)
            self._progress("train", done, self._total)


def _check_positive(**arguments: float) -> None:
    for name, value in arguments.items():
        if not value > 0:
            raise UsageError(f"{name} is {value}; give a number above 0")


def _usable_rows(
    n: int, labels: HostArray, num_classes: int, exclude: HostArray | None
) -> HostArray:
    """Row numbers that may be trained on, their labels checked."""
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise UsageError(
            f"labels has shape {labels.shape} and type {labels.dtype}; give one integer for each "
            f"of the {n} rows"
        )
    usable = np.ones(n, bool)
    if exclude is not None:
        exclude = np.asarray(exclude)
        if exclude.shape != (n,) or exclude.dtype != np.bool_:
            raise UsageError(
                f"exclude has shape {exclude.shape} and type {exclude.dtype}; give one bool for "
                f"each of the {n} rows"
            )
        usable = ~exclude
    rows = np.flatnonzero(usable)
    if not rows.size:
        raise NothingToScan(f"all {n} rows are excluded; leave some to train on")
    low, high = labels[rows].min(), labels[rows].max()
    if low < 0 or high >= num_classes:
        raise UsageError(
            f"labels go from {low} to {high}; expected 0 to {num_classes - 1}: map them with "
            "np.unique(labels, return_inverse=True), or exclude the rows"
        )
    return rows


def _sample(usable: HostArray, size: int, rng: np.random.Generator) -> HostArray:
    if len(usable) <= size:
        return usable
    return np.sort(rng.choice(usable, size, replace=False))


def _kept_shape(source: Source) -> tuple[int, ...]:
    """Shape of a row as it is kept: large images shrunk."""
    shape = source.schema.shape
    return shape if source.schema.kind == "rows" else shrunk_shape(shape)


def _kept_bytes(source: Source) -> int:
    return int(np.prod(_kept_shape(source))) * np.dtype(source.schema.dtype).itemsize


def _read(source: Source, rows: HostArray) -> HostArray:
    """The inputs of some rows, by one forward pass in blocks."""
    kept = _kept_shape(source)
    out = np.empty((len(rows), *kept), source.schema.dtype)
    for first, last, x in _blocks(source, rows):
        if kept != source.schema.shape:
            # One block size, or the last block would be compiled for itself.
            padded = np.zeros((rows_per_block(source.schema), *x.shape[1:]), x.dtype)
            padded[: len(x)] = x
            x = np.asarray(_SHRINK(padded))[: len(x)]
        out[first:last] = x
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            bad = rows[first + np.flatnonzero(~np.isfinite(x).all(axis=1))[0]]
            raise DataError(
                f"{source.name}: row {bad} has values that are not finite; drop or repair such rows"
            )
    return out


def _blocks(source: Source, rows: HostArray) -> Iterator[tuple[int, int, HostArray]]:
    """(first, last, x): x holds the inputs of rows[first:last]."""
    size = rows_per_block(source.schema)
    for start in range(0, len(source), size):
        stop = min(start + size, len(source))
        first, last = (int(edge) for edge in np.searchsorted(rows, (start, stop)))
        if first < last:
            x = source.read(start, stop)["x"]
            yield first, last, x if last - first == stop - start else x[rows[first:last] - start]
