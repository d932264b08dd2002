"""Detectors from other packages, found by entry point and loaded when asked for by name.

A package offers one in its metadata::

    [project.entry-points."jaxpoison.detectors"]
    mine = "my_package.detectors:MyDetector"
"""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray, Scores
from jaxpoison.detect._detector import Detector

GROUP = "jaxpoison.detectors"
"""Entry-point group of detectors."""


def available() -> dict[str, EntryPoint]:
    """Entry points of all installed detectors by name; imports none of them.

    Raises:
        UsageError: Two packages offer different objects under one name.
    """
    out: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = out.setdefault(point.name, point)
        if other.value != point.value:
            raise UsageError(
                f"two packages offer a detector named {point.name!r}: {_said(other)} and "
                f"{_said(point)}; uninstall one of them"
            )
    return dict(sorted(out.items()))


def require(name: str) -> EntryPoint:
    """The entry point of a detector, which is not imported.

    Raises:
        UsageError: There is none of that name.
    """
    points = available()
    if name not in points:
        known = ", ".join(points) or "none is installed"
        raise UsageError(
            f"no detector named {name!r} in the entry points {GROUP!r} (there: {known}); "
            "install the package that offers it, or correct the name"
        )
    return points[name]


def load(name: str) -> Detector:
    """Imports one detector.

    Args:
        name: Of its entry point.

    Returns:
        The object that the entry point names; a class is called without arguments.

    Raises:
        UsageError: No such entry point, it does not import, or what it names is no detector.
    """
    point = require(name)
    try:
        found = point.load()
        if inspect.isclass(found):
            found = found()
    except Exception as error:  # whatever a foreign module raises while it is imported
        raise UsageError(
            f"detector {name!r}: {_said(point)} does not load: {type(error).__name__}: {error}"
        ) from error
    missing = _missing(found)
    if missing:
        raise UsageError(
            f"detector {name!r}: {_said(point)} is {type(found).__name__}, which {missing}; "
            "give an object with min_rows and score(stream, *, key)"
        )
    return cast(Detector, found)


def checked(scores: Any, n: int, c: int, name: str) -> Scores:
    """What a foreign detector returned, in the types that the rest of a scan relies on.

    Args:
        scores: Anything.
        n: Rows.
        c: Classes.
        name: Of the detector, for messages.

    Returns:
        Values [n] float32, statistic [c] and null [c, r] float64, candidates [n] bool or None.

    Raises:
        UsageError: A part is missing, has another shape, or values are not finite.
    """
    names = Scores._fields
    if not all(hasattr(scores, part) for part in names):
        lacks = [part for part in names if not hasattr(scores, part)]
        raise UsageError(
            f"detector {name!r} returned {type(scores).__name__} without {', '.join(lacks)}; "
            f"return all of {', '.join(names)}"
        )
    values = _array(scores.values, "values", (n,), name)
    with np.errstate(over="ignore"):  # what float32 can not hold is reported as not finite
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UsageError(
            f"detector {name!r}: values[{row}] is {values[row]}; score every row, 0 where there "
            "is nothing to say"
        )
    statistic = _array(scores.statistic, "statistic", (c,), name).astype(np.float64)
    null = _array(scores.null, "null", (c, None), name).astype(np.float64)
    for part, array in (("statistic", statistic), ("null", null)):
        if np.isinf(array).any():
            raise UsageError(
                f"detector {name!r}: {part} holds an infinite number; give a finite one, or NaN "
                "for a class that was skipped"
            )
    candidates = scores.candidates
    if candidates is not None:
        candidates = _array(candidates, "candidates", (n,), name)
        if candidates.dtype != np.bool_:
            raise UsageError(
                f"detector {name!r}: candidates has type {candidates.dtype}; give bool, or None"
            )
    return Scores(values, statistic, null, candidates, scores.info)


def _said(point: EntryPoint) -> str:
    package = "" if point.dist is None else f" of {point.dist.name}"
    return f"{point.value}{package}"


def _missing(found: Any) -> str:
    """What keeps an object from being a detector, or nothing."""
    rows = getattr(found, "min_rows", None)
    if rows is None:
        return "has no min_rows"
    if isinstance(rows, bool) or not isinstance(rows, (int, np.integer)) or rows < 1:
        return f"has min_rows {rows!r}, not a number of rows from 1"
    score = getattr(found, "score", None)
    if not callable(score):
        return "has no method score(stream, *, key)"
    try:
        inspect.signature(score).bind(None, key=None)
    except TypeError as error:
        return f"has a score that can not be called as score(stream, key=key) ({error})"
    return ""


def _array(value: Any, part: str, shape: tuple[int | None, ...], name: str) -> HostArray:
    """An array of numbers whose shape is as told; None is any length."""
    try:
        array = np.asarray(value)
    except Exception as error:  # a ragged list, or an array that is gone from its device
        raise UsageError(f"detector {name!r}: {part} is no array: {error}") from error
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype.kind not in "biuf":
        wanted = tuple("any" if want is None else want for want in shape)
        raise UsageError(
            f"detector {name!r}: {part} has shape {array.shape} and type {array.dtype}; "
            f"expected numbers of shape {wanted}"
        )
    return array
