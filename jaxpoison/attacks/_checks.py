"""What an attack refuses before it touches a row."""

from __future__ import annotations

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray

_LEAST_CHANGED = 0.1  # of the poisoned rows that keep their label


def as_arrays(x: object, y: object) -> tuple[HostArray, HostArray]:
    """Inputs and labels as arrays.

    Raises:
        UsageError: They have no shape.
    """
    try:
        return np.asarray(x), np.asarray(y)
    except ValueError as error:  # rows of unlike length
        raise UsageError(f"x or y is no array ({error}); give rows of one shape") from error


def num_rows(rate: float, total: int, what: str) -> int:
    """``rate * total``, rounded.

    Raises:
        UsageError: Not a share, or so small that no row is poisoned.
    """
    if not 0 < rate <= 1:
        raise UsageError(f"rate is {rate}; give a share above 0 and at most 1, such as 0.01")
    count = round(rate * total)
    if count < 1:
        raise UsageError(
            f"rate is {rate}: of {total} {what} that is none; give at least {1 / max(total, 1):.2g}"
        )
    return count


def refuse(name: str, instead: str, **arguments: int | None) -> None:
    """Refuses an argument that an attack has no use for, rather than ignore it."""
    for argument, value in arguments.items():
        if value is not None:
            raise UsageError(f"{argument} is {value}; {name} takes none: leave it out{instead}")


def positive(**arguments: float) -> None:
    """Refuses sizes and strengths that are not above 0."""
    for name, value in arguments.items():
        if not 0 < value < np.inf:
            raise UsageError(f"{name} is {value}; give a number above 0")


def share(**arguments: float) -> None:
    """Refuses shares outside 0 (excluded) to 1."""
    for name, value in arguments.items():
        if not 0 < value <= 1:
            raise UsageError(f"{name} is {value}; give a share above 0 and at most 1")


def row_numbers(name: str, values: object) -> HostArray:
    """Distinct whole numbers [k] int64, ascending: of rows, or of columns.

    Raises:
        UsageError: Anything else.
    """
    given = np.asarray(values)
    if given.ndim != 1 or (given.dtype.kind not in "iu" and given.size):
        raise UsageError(f"{name} is {values!r}; give a whole number, or a list of them")
    return np.unique(given.astype(np.int64))


def on_or_off(**arguments: bool) -> None:
    """Refuses what is neither True nor False: any text is true to Python."""
    for name, value in arguments.items():
        if not isinstance(value, bool | np.bool_):
            raise UsageError(f"{name} is {value!r}; give true or false")


def float_rows(name: str, x: HostArray) -> None:
    """Refuses rows of integers where an attack adds fractions to them."""
    if x.ndim == 2 and x.dtype.kind != "f":
        raise UsageError(
            f"x has type {x.dtype}: {name} adds fractions, which wrap around in it; give "
            "x.astype(np.float32)"
        )


def finite_rows(name: str, after: HostArray) -> None:
    """Refuses poisoned rows that are not finite."""
    if after.dtype.kind == "f" and not np.isfinite(after).all():
        raise UsageError(
            f"{name}: poisoned rows would hold values beyond {after.dtype}; give weaker settings"
        )


def num_same(before: HostArray, after: HostArray) -> int:
    """Rows [m, ...] that are equal in every value."""
    return int((after == before).all(axis=tuple(range(1, after.ndim))).sum())


def changed_rows(name: str, before: HostArray, after: HostArray) -> None:
    """Refuses poisoned inputs [m, ...] under honest labels that nearly all are what they were."""
    same = num_same(before, after)
    if len(after) - same < _LEAST_CHANGED * len(after):
        raise UsageError(
            f"{name}: {same} of {len(after)} rows would be poisoned in name only, with the inputs "
            "and labels they had; give stronger settings"
        )
