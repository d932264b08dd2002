"""Which predictions the user asks about."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxpoison._check import DataError, JaxpoisonError, UsageError
from jaxpoison._types import Array, Block, HostArray
from jaxpoison.detect.influence import Targets, features_of
from jaxpoison.models import Model
from jaxpoison.scanning.spaces import Space
from jaxpoison.sources import Source, open_source
from jaxpoison.sources.base import listing
from jaxpoison.sources.inspect import inspect
from jaxpoison.sources.npz import members

_MEMBERS = ("x", "y")


class Asked(NamedTuple):
    """Predictions as the user gave them.

    Attributes:
        source: Inputs like those of the data, or features where features were given.
        labels: [m] int32 dense.
    """

    source: Source
    labels: HostArray


def read_targets(
    given: Any, like: Source, classes: HostArray, class_names: tuple[str, ...] | None = None
) -> Asked:
    """The targets of a file or of arrays, checked against the data.

    Args:
        given: A .npz file with members x and y, a mapping with these keys, or a pair (x, y): x like
            the rows of ``like``, y the labels that the model gave them or that are in dispute.
        like: What x must look like.
        classes: Distinct labels of the data, ascending.
        class_names: Of the data, if its labels were text: y may be, and is numbered by them.

    Raises:
        UsageError: Another kind of file or object.
        DataError: The file can not be read, x or y is missing or unlike the data, a label is
            unknown, or a value is not finite.
    """
    is_file = isinstance(given, str) or hasattr(given, "__fspath__")
    name = f"target {str(given)!r}" if is_file else "target"
    if is_file:
        source, labels = _file(Path(given), name, class_names)
    else:
        source, labels = _arrays(given, name, class_names)
    _require_alike(source, like, name)
    bad = inspect(source).nonfinite
    if len(bad):
        raise DataError(
            f"{name}: row {int(bad[0])} of x holds NaN or infinity; repair it or leave it out"
        )
    unknown = np.flatnonzero(~np.isin(labels, classes))
    if len(unknown):
        shown = ", ".join(map(str, classes[:12].tolist())) + (" ..." if len(classes) > 12 else "")
        raise DataError(
            f"{name}: label of row {int(unknown[0])} is {int(labels[unknown[0]])}; the data has "
            f"the classes {shown}; give y as the data numbers them"
        )
    return Asked(source, np.searchsorted(classes, labels).astype(np.int32))


def targets_in(asked: Asked, space: Space, model: Model | None) -> Targets:
    """The targets as a space shows its rows.

    Args:
        asked: Of ``read_targets``.
        space: The last layer of the model, or the features or inputs where there is no model.
        model: What made the space, or None.
    """
    stage = None if model is not None else space.stream.stage
    stream = space.stream.of(asked.source, labels=asked.labels, stage=stage)
    features = features_of(stream) if model is None else stream.map(_features, model)
    if not np.isfinite(features).all():
        row = int(np.argmin(np.isfinite(features).all(axis=1)))
        raise DataError(
            f"target: the network's features of row {row} are not finite; leave the row out"
        )
    return Targets(features, asked.labels)


def _features(block: Block, model: Model) -> Array:
    x = block.x.reshape(-1, *block.x.shape[2:])
    features = model.features(model.params, x).astype(jnp.float32)
    return features.reshape(*block.mask.shape, -1)


def _file(path: Path, name: str, class_names: tuple[str, ...] | None) -> tuple[Source, HostArray]:
    if path.suffix.lower() != ".npz":
        raise UsageError(f"{name}: give a file that ends in .npz, with members x and y")
    try:
        held = members(path, name) if path.is_file() else list(_MEMBERS)
        missing = [member for member in _MEMBERS if member not in held]
        if missing:
            raise DataError(
                f"{name}: no member {missing[0]!r}; it holds {listing(held) or 'nothing'}; save it "
                "with np.savez(file, x=inputs, y=labels)"
            )
        source = open_source(str(path))
        labels = source.labels()
    except DataError:
        raise
    except JaxpoisonError as error:  # no rows
        raise DataError(f"{name}: {error}; give at least one target") from error
    assert labels is not None  # members has seen them
    if (own := source.schema.class_names) is not None:
        labels = _numbered(np.array(own)[labels], name, class_names)
    return source, labels


def _arrays(given: Any, name: str, class_names: tuple[str, ...] | None) -> tuple[Source, HostArray]:
    try:
        x, y = (given["x"], given["y"]) if hasattr(given, "keys") else given
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{name}: {type(given).__name__} without x and y; give a pair (x, y), a mapping with "
            "these keys, or the name of an .npz file"
        ) from error
    y = np.asarray(y)
    if _is_text(y):
        y = _numbered(y, name, class_names)
    try:
        source = open_source(x, y)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except JaxpoisonError as error:
        raise DataError(f"{name}: {error}; give at least one target") from error
    labels = source.labels()
    assert labels is not None
    return source, labels


def _is_text(y: HostArray) -> bool:
    return y.dtype.kind == "U" or (
        y.dtype.kind == "O" and y.size > 0 and all(isinstance(each, str) for each in y.ravel())
    )


def _numbered(y: HostArray, name: str, class_names: tuple[str, ...] | None) -> HostArray:
    """Text labels by the numbers that the data gives them."""
    if class_names is None:
        raise DataError(
            f"{name}: labels are text, the labels of the data are numbers; give y as numbers too"
        )
    number = {text: k for k, text in enumerate(class_names)}
    unknown = [text for text in y.ravel().tolist() if text not in number]
    if unknown:
        raise DataError(
            f"{name}: label {unknown[0]!r} is unknown; the data has {listing(list(number))}"
        )
    numbers = [number[text] for text in y.ravel().tolist()]
    return np.array(numbers, np.int64).reshape(y.shape)


def _require_alike(source: Source, like: Source, name: str) -> None:
    got, want = source.schema, like.schema
    if (got.kind, got.shape, got.dtype) != (want.kind, want.shape, want.dtype):
        raise DataError(
            f"{name}: x holds {_said(source)}, {like.name} {_said(like)}; give x as the data has it"
        )


def _said(source: Source) -> str:
    schema = source.schema
    return f"{schema.kind} of shape {schema.shape} and type {schema.dtype}"
