"""What Hugging Face's datasets write into the schema of their Arrow and Parquet files."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from jaxpoison._check import DataError

from .base import Array, quote
from .names import IMAGE_NAMES, choose

_MAX_METADATA = 8 << 20  # bytes


def declared_names(schema: Any, column: str, name: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel column: the name of class k at place k.

    Args:
        schema: Of the file.
        column: The label column.
        name: What the user typed.

    Returns:
        The names, or None where the schema declares none.

    Raises:
        DataError: Metadata that are no JSON, or names that are no text.
    """
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None or len(raw) > _MAX_METADATA:
        return None
    try:
        feature = json.loads(raw)["info"]["features"][column]
        if feature.get("_type") != "ClassLabel":
            return None
        names = feature["names"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # other versions may write other things: then labels are numbers
    if not isinstance(names, list) or not all(isinstance(text, str) for text in names):
        raise DataError(f"{name}: names of classes that are no text; save the data set again")
    if len(set(names)) < len(names):
        raise DataError(f"{name}: two classes of one name; save the data set again")
    return tuple(names)


def check_named(values: Array, names: tuple[str, ...], name: str) -> None:
    """Refuse labels beyond the names that are declared.

    Raises:
        DataError: Names the first such label.
    """
    if values.size and int(values.max()) >= len(names):
        row = int(values.argmax())
        raise DataError(
            f"{name}: label of row {row} is {values[row]}, but only {len(names)} classes are named "
            f"({quote(', '.join(names))}); save the data set again"
        )


def image_column_of(schema: Any) -> str | None:
    """The column that holds encoded images, as struct<bytes, path>."""
    found = [str(field.name) for field in schema if _is_image(field.type)]
    return choose(found, IMAGE_NAMES) or (found[0] if len(found) == 1 else None)


def _is_image(kind: Any) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    held = kind.field("bytes").type
    return bool(pa.types.is_binary(held) or pa.types.is_large_binary(held))
