"""Training and test rows of a plan, in memory, and the key column beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxpoison._check import DataError, NothingToScan, UsageError
from jaxpoison._types import HostArray
from jaxpoison.certify.keys import ContentHash
from jaxpoison.sources import Schema, open_source, require_labels
from jaxpoison.sources.base import listing, quote
from jaxpoison.sources.formats import split_name

if TYPE_CHECKING:
    from jaxpoison.certifying.plan import CertifyPlan
    from jaxpoison.sources import Source

MAX_CLASSES = 4096
_ARROW = (".parquet", ".arrow", ".feather")
_PIECE = 1 << 16
_GRAINS = 1 << 20  # of a share that is held out


class Rows(NamedTuple):
    """Rows in memory.

    Attributes:
        name: As typed.
        fingerprint: Of the whole source.
        x: [n, ...] uint8 images or float32 rows.
        y: [n] int64; None where nothing is known. -1 for a class that training rows do not have.
        index: [n] number of each row in its source.
    """

    name: str
    fingerprint: str
    x: HostArray
    y: HostArray | None
    index: HostArray  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class Opened(NamedTuple):
    """All that a plan reads.

    Attributes:
        train: Training rows.
        labels: [n] int64 of the training rows.
        test: Rows of the same shape.
        column: [n] key values, or None.
        schema: Of one row.
        num_classes: c.
        notes: What a reader should know of how the data was read.
    """

    train: Rows
    labels: HostArray
    test: Rows
    column: HostArray | None
    schema: Schema
    num_classes: int
    notes: tuple[str, ...]


def open_data(plan: CertifyPlan) -> Opened:
    """Reads what the plan names.

    Raises:
        DataError: Data that is damaged, or test rows unlike the training rows.
        UsageError: Names of no known format, floats without a rounding rule.
        NothingToScan: No rows on one side.
    """
    source = open_source(plan.data, plan.labels)
    y = require_labels(source)
    if source.schema.dtype == "float32" and plan.decimals is None and plan.key is None:
        raise UsageError(
            f"{source.name}: rows are floats, and equal inputs could hash apart; give the digits "
            "to round to (--decimals 6), or a key column (--key)"
        )
    x = _read(source)
    column = None if plan.key is None else read_key(plan.data, plan.key, len(source))
    if column is not None and _is_labels(column, y, source.schema.class_names):
        raise UsageError(
            f"key: {plan.key!r} holds the labels, and a changed label would change the key; name a "
            "column of sources, clients or times"
        )
    whole = Rows(source.name, source.fingerprint(), x, y, np.arange(len(source)))
    notes: tuple[str, ...] = ()
    if plan.share is not None:
        held = _held_out(plan, x, y)
        train, test = _take(whole, ~held), _take(whole, held)
        column = None if column is None else column[~held]
        y = y[~held]
    else:
        train = whole
        test, notes = _open_test(plan, source)
    classes = _num_classes(plan, y, source.name)
    return Opened(train, y, test, column, source.schema, classes, notes)


def _is_labels(column: HostArray, y: HostArray, names: tuple[str, ...] | None) -> bool:
    """Whether a column holds the labels, as numbers or by their names."""
    if column.dtype.kind in "iu":
        return np.array_equal(column, y)
    return names is not None and np.array_equal(column.astype(str), np.array(names)[y])


def read_key(data: str, key: str, rows: int) -> HostArray:
    """[n] values of the key: a column of a Parquet or Arrow file, a member of an .npz, or a .npy.

    Raises:
        UsageError: Data of a format that has no columns.
        DataError: No such column, or not one value a row.
    """
    path, _ = split_name(data)
    if key.endswith(".npy"):
        from jaxpoison.sources import npy
        from jaxpoison.sources.formats import locate

        name = f"key {key}"
        locate(Path(key), name)
        column = npy.open_npy(Path(key), name)
        values = column.read(0, column.shape[0]) if column.shape else np.empty(0)
    elif path.suffix in _ARROW and path.is_file():
        values = _arrow_column(path, data, key)
    elif path.suffix == ".npz" and path.is_file():
        from jaxpoison.sources import npz

        names = npz.members(path, data)
        if key not in names:
            raise DataError(
                f"{data}: no member {quote(key)} for the key; it holds {listing(names)}"
            )
        member = npz.open_member(path, key, data)
        values = member.read(0, member.shape[0]) if member.shape else np.empty(0)
    else:
        raise UsageError(
            f"key: {key!r} of {data}, which has no columns; give a .npy file of one value a row, "
            "or data in a Parquet or .npz file"
        )
    if values.shape != (rows,):
        raise DataError(
            f"key {quote(key)} has shape {values.shape}; {data} has {rows} rows: give one value a "
            "row"
        )
    return values


def _arrow_column(path: Path, data: str, key: str) -> HostArray:
    from jaxpoison.sources.arrow_files import decoding, open_arrow_file

    file = open_arrow_file(path, data)
    names = [str(name) for name in file.schema.names]
    if names.count(key) != 1:
        what = "no column" if key not in names else "more than one column"
        raise DataError(f"{data}: {what} {quote(key)} for the key; it has {listing(names)}")
    parts: list[HostArray] = []
    with decoding(data):
        for piece in file.pieces(key, 0, _PIECE):
            if piece.null_count:
                raise DataError(f"{data}: column {quote(key)} has nulls; fill or drop those rows")
            parts.append(np.asarray(piece.to_numpy(zero_copy_only=False)))
    return np.concatenate(parts) if parts else np.empty(0)


def _read(source: Source) -> HostArray:
    x: HostArray = source.read(0, len(source))["x"]
    if x.dtype.kind == "f":
        finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise DataError(
                f"{source.name}: row {row} has NaN or infinity; drop such rows by a rule of the "
                "row alone, or fill them"
            )
    return x


def _held_out(plan: CertifyPlan, x: HostArray, y: HostArray) -> HostArray:
    """[n] rows to test on; a row's own content decides, so copies of a row stay together."""
    key = ContentHash(salt=f"jaxpoison split {plan.seed}".encode(), decimals=plan.decimals)
    if x.dtype.kind == "f" and plan.decimals is None:  # by the bits: no rounding suits all sizes
        x = (x.astype(np.float32) + np.float32(0)).view(np.uint32)  # one zero, not two
    share = plan.share or 0.0
    held: HostArray = key.cells(x, y, _GRAINS) < share * _GRAINS
    if held.all() or not held.any():
        raise NothingToScan(
            f"test: {plan.test} of {len(x)} rows leaves {int(held.sum())} to test on and "
            f"{int((~held).sum())} to train on; give another share"
        )
    return held


def _take(rows: Rows, kept: HostArray) -> Rows:
    return Rows(
        rows.name, rows.fingerprint, rows.x[kept], None if rows.y is None else rows.y[kept],
        rows.index[kept],
    )  # fmt: skip


def _open_test(plan: CertifyPlan, data: Source) -> tuple[Rows, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    try:
        source = open_source(plan.test, plan.test_labels, role="test")
    except DataError as error:
        if plan.test_labels is not None:
            raise
        source = open_source(plan.test, role="features")  # rows without labels are fine
        notes = (f"labels of the test rows are not known: {error}",)
    if source.schema.shape != data.schema.shape or source.schema.kind != data.schema.kind:
        raise DataError(
            f"{source.name}: test rows are {source.schema.kind} of shape {source.schema.shape}, "
            f"those of {data.name} {data.schema.kind} of shape {data.schema.shape}; give rows of "
            "the same shape"
        )
    y = source.labels()
    if y is not None:
        y = _same_classes(y, source, data)
    x = _read(source)
    return Rows(source.name, source.fingerprint(), x, y, np.arange(len(source))), notes


def _same_classes(y: HostArray, test: Source, data: Source) -> HostArray:
    """Labels by the numbers that the training rows have for their names."""
    names, own = data.schema.class_names, test.schema.class_names
    if names == own or (names is None and own is None):
        return y
    if names is None or own is None:
        text, number = (data, test) if own is None else (test, data)
        raise DataError(
            f"{text.name}: labels are names, those of {number.name} are numbers; give both alike"
        )
    place = {name: number for number, name in enumerate(names)}
    return np.array([place.get(name, -1) for name in own], np.int64)[y]


def _num_classes(plan: CertifyPlan, y: HostArray, name: str) -> int:
    largest = int(y.max(initial=0))
    if plan.classes is not None:
        if largest >= plan.classes:
            raise DataError(
                f"{name}: label {largest} of a row, but classes are 0 to {plan.classes - 1} "
                "(--classes); give more, or drop such rows"
            )
        return plan.classes
    if largest >= MAX_CLASSES:
        raise DataError(
            f"{name}: label {largest}; at most {MAX_CLASSES} classes are certified: number the "
            "classes from 0"
        )
    return max(2, largest + 1)


def shape_of(schema: Schema) -> dict[str, Any]:
    """What one row looks like, for the report."""
    return {"kind": schema.kind, "shape": list(schema.shape), "dtype": schema.dtype}
