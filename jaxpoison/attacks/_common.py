"""The few steps that all attacks share: checks, draws, and the truth written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import HostArray
from jaxpoison.detect._detector import Key, host_rng

from ._checks import as_arrays, changed_rows, finite_rows, num_rows
from ._types import Kind, Poisoned

MAX_UINT8 = 255


@dataclass(frozen=True)
class Trigger:
    """``fn(x, **options)`` for test inputs of one row shape; picklable, unlike a closure.

    Attributes:
        fn: Module-level function of a batch of inputs.
        row_shape: Of one row.
        options: Everything else that ``fn`` needs.
    """

    fn: Callable[..., HostArray]
    row_shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, x: HostArray) -> HostArray:
        """A copy of the inputs with the trigger, of the same type."""
        x = np.asarray(x)
        if x.shape[1:] != self.row_shape:
            raise UsageError(
                f"x has shape {x.shape}; the trigger is for [m, "
                f"{', '.join(map(str, self.row_shape))}]: give rows like those that were poisoned"
            )
        return self.fn(x, **self.options)


@dataclass(frozen=True)
class Always:
    """Every label becomes the target."""

    target: int

    def __call__(self, y: HostArray) -> HostArray:
        """[m] labels wanted."""
        return np.full(len(np.asarray(y)), self.target, np.int64)


@dataclass(frozen=True)
class OnlyFrom:
    """The source's label becomes the target; others stay."""

    source: int
    target: int

    def __call__(self, y: HostArray) -> HostArray:
        """[m] labels wanted."""
        y = np.asarray(y, np.int64)
        return np.where(y == self.source, self.target, y)


@dataclass(frozen=True)
class NextClass:
    """Every label becomes the next larger one in use, the largest the smallest."""

    classes: tuple[int, ...]

    def __call__(self, y: HostArray) -> HostArray:
        """[m] labels wanted."""
        classes = np.asarray(self.classes, np.int64)
        place = np.searchsorted(classes, np.asarray(y, np.int64), side="right")
        return classes[place % len(classes)]


@dataclass(frozen=True)
class Task:
    """Checked arguments of one attack.

    Attributes:
        name: Of the attack.
        x: [n, ...] as given; never written to.
        y: [n] int64 honest labels.
        classes: Labels in use, ascending.
        rng: Numpy's stream of the key.
        key_data: The key as plain numbers.
    """

    name: str
    x: HostArray
    y: HostArray
    classes: HostArray
    rng: np.random.Generator
    key_data: list[int]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.y)

    def label(self, argument: str, value: int | None, *, other_than: int | None = None) -> int:
        """A class of the data: the one asked for, or one drawn.

        Args:
            argument: "target" or "source", for messages.
            value: As given.
            other_than: A class it must not be.
        """
        known = self.classes[self.classes != other_than] if other_than is not None else self.classes
        if not known.size:
            self.need_two_classes()
        if value is None:
            return int(self.rng.choice(known))
        if value not in known:
            shown = ", ".join(map(str, known[:12].tolist())) + (", ..." if known.size > 12 else "")
            raise UsageError(f"{argument} is {value}; choose one of the labels {shown}")
        return int(value)

    def need_two_classes(self) -> None:
        """Refuses data of one class."""
        if self.classes.size < 2:
            raise UsageError(
                f"y has one class, {self.classes.tolist()}; {self.name} needs a second one"
            )

    def source_for(self, value: int | None, target: int, rate: float) -> int:
        """The source class: the one asked for, or one drawn among those large enough."""
        if value is not None:
            return self.label("source", value, other_than=target)
        count = num_rows(rate, len(self), "rows")
        sizes = {int(k): int((self.y == k).sum()) for k in self.classes if k != target}
        if not sizes:
            return self.label("source", None, other_than=target)
        large = [k for k, size in sizes.items() if size >= count]
        if not large:
            most = max(sizes.values())
            raise UsageError(
                f"rate is {rate}: {count} of {len(self)} rows, but no class other than the target "
                f"has more than {most}; give a rate of at most {most / len(self):.4g}"
            )
        return int(self.rng.choice(np.asarray(large)))

    def choose(
        self, eligible: HostArray, rate: float, what: str, *, of: int | None = None
    ) -> HostArray:
        """Row numbers to poison, ascending, drawn from those that may be.

        Args:
            eligible: Row numbers.
            rate: Share of ``of`` rows.
            what: What the eligible rows are, for messages.
            of: Rows that the rate is a share of; all rows by default.
        """
        total = len(self) if of is None else of
        count = num_rows(rate, total, "rows")
        if not len(eligible):
            self.need_two_classes()
        if count > len(eligible):
            raise UsageError(
                f"rate is {rate}: {count} of {total} rows, but only {len(eligible)} are {what}; "
                f"give a rate of at most {len(eligible) / total:.4g}"
            )
        return np.sort(self.rng.choice(eligible, count, replace=False))

    def choose_cover(self, eligible: HostArray, poisoned: int, ratio: float) -> HostArray:
        """Cover rows: ``ratio`` for each poisoned one."""
        if not 0 <= ratio < np.inf:
            raise UsageError(f"cover_ratio is {ratio}; give a number of at least 0")
        count = round(ratio * poisoned)
        if count and not len(eligible):
            raise UsageError(
                f"y has {self.classes.size} classes: no rows are left to be {self.name}'s cover; "
                "give data with more classes, or cover_ratio 0"
            )
        if count > len(eligible):
            raise UsageError(
                f"cover_ratio is {ratio}: {count} cover rows, but only {len(eligible)} rows can be "
                f"one; give at most {len(eligible) / max(poisoned, 1):.4g}, or a lower rate"
            )
        return np.sort(self.rng.choice(eligible, count, replace=False))

    def others(self, *classes: int) -> HostArray:
        """Row numbers of all classes but these."""
        return np.flatnonzero(~np.isin(self.y, classes))

    def rows_of(self, label: int) -> HostArray:
        """Row numbers of a class."""
        return np.flatnonzero(self.y == label)

    def poisoned(
        self,
        rows: HostArray,
        labels: HostArray | int | None,
        kind: Kind,
        *,
        x_rows: HostArray | None = None,
        cover: HostArray | None = None,
        x_cover: HostArray | None = None,
        trigger: Trigger | None = None,
        wanted: Callable[[HostArray], HostArray] | None = None,
        target: int | None = None,
        source: int | None = None,
        rate: float,
        **params: Any,
    ) -> Poisoned:
        """Copies with some rows replaced, and the truth.

        Args:
            rows: Row numbers that are poisoned.
            labels: Their labels; None keeps the honest ones.
            kind: Of the attack.
            x_rows: Their inputs; None keeps the honest ones.
            cover: Row numbers of cover rows.
            x_cover: Their inputs.
            trigger: For test inputs.
            wanted: Labels the attacker wants.
            target: Class the attacker wants.
            source: Class the attack works on.
            rate: As given.
            **params: What else repeats the attack.
        """
        x, y = self.x.copy(), self.y.copy()
        mask, is_cover = np.zeros(len(self), bool), np.zeros(len(self), bool)
        mask[rows] = True
        if x_rows is not None:
            finite_rows(self.name, x_rows)
            if labels is None:
                changed_rows(self.name, self.x[rows], x_rows)
            x[rows] = x_rows
        if labels is not None:
            y[rows] = labels
        if cover is not None and x_cover is not None:
            is_cover[cover] = True
            x[cover] = x_cover
        settings = self.settings(rate, target, source, **params)
        return Poisoned(
            x, y, mask, is_cover, np.arange(len(self)), self.y.copy(), kind,
            trigger, wanted, target, source, settings,
        )  # fmt: skip

    def settings(
        self, rate: float, target: int | None, source: int | None, **params: Any
    ) -> dict[str, Any]:
        """Plain values that repeat the attack."""
        fixed = {"attack": self.name, "rate": float(rate), "target": target, "source": source}
        return {**fixed, "key": self.key_data, **{k: plain(v) for k, v in params.items()}}


def begin(name: str, x: HostArray, y: HostArray, key: Key, needs: str = "any") -> Task:
    """Checks what every attack is given.

    Args:
        name: Of the attack.
        x: [n, ...] inputs.
        y: [n] labels.
        key: Of every draw.
        needs: "images", "rows" or "any".

    Raises:
        UsageError: Wrong shapes or types, or inputs of the wrong kind.
        DataError: Values that are not finite.
    """
    x, y = as_arrays(x, y)
    if x.ndim not in (2, 3, 4) or x.dtype.kind not in "uif" or 0 in x.shape:
        raise UsageError(
            f"x has shape {x.shape} and type {x.dtype}; give images [n, H, W] or [n, H, W, C], or "
            "rows [n, d], with at least one row"
        )
    is_classes = y.shape == (len(x),) and y.dtype.kind in "iu"
    if not is_classes or y.min() < 0 or y.max() > np.iinfo(np.int64).max:
        raise UsageError(
            f"y has shape {y.shape} and type {y.dtype}; give one integer of at least 0, within 63 "
            f"bits, for each of the {len(x)} rows"
        )
    if needs == "images" and x.ndim < 3:
        raise UsageError(f"x has shape {x.shape}: {name} needs images [n, H, W] or [n, H, W, C]")
    if needs == "rows" and x.ndim != 2:
        raise UsageError(
            f"x has shape {x.shape}: {name} needs rows [n, d]; give x.reshape(len(x), -1) or "
            "features"
        )
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))[0])
        raise DataError(f"x: row {row} has values that are not finite; drop or repair such rows")
    y = y.astype(np.int64)
    data = np.asarray(jax.random.key_data(key)).tolist()
    return Task(name, x, y, np.unique(y), host_rng(key), data)


def plain(value: Any) -> Any:
    """Numpy values and tuples as JSON has them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value


def value_range(x: HostArray) -> tuple[float, float]:
    """Darkest and brightest value in use: 0 and the maximum for integers, or as found."""
    low, high = float(x.min()), float(x.max())
    if x.dtype.kind in "ui":
        low = min(low, 0.0)
        return low, high if high > low else float(MAX_UINT8)
    return low, high if high > low else low + 1.0


def as_type(values: HostArray, dtype: Any, low: Any, high: Any) -> HostArray:
    """Clipped to the range in use; where the type is an integer, rounded and within its range."""
    values = np.clip(values, low, high)
    if np.dtype(dtype).kind in "ui":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def spatial(values: HostArray, row_shape: tuple[int, ...]) -> HostArray:
    """A pattern [H, W] fit to be added to images with or without channels."""
    return values[..., None] if len(row_shape) == 3 else values
