"""Which features of a prepared tfds data set are x and y, by its ``features.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxpoison._check import DataError

from .base import listing, quote
from .columns import readable
from .examples import IMAGE_NAMES, Y_NAMES, Choice
from .names import X_NAMES

_MAX_NAMES_BYTES = 64 << 20
_MAX_DEPTH = 32
_NUMBERS = (
    "float16", "float32", "float64", "bfloat16", "bool",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
)  # fmt: skip
_AS_FLOAT = ("float16", "float64", "bfloat16")  # stored as float32 in any case

Tree = dict[str, Any]


def choose_features(
    folder: Path, info: Tree, features: Tree, name: str, *, labelled: bool
) -> Choice:
    """Inputs and labels: the supervised keys, else the only ones of their kind.

    Args:
        folder: Of the data set; class names lie there.
        info: ``dataset_info.json``.
        features: ``features.json``.
        name: What the user typed.
        labelled: Whether labels are wanted, and must be there.

    Returns:
        What to read.

    Raises:
        DataError: None or several to choose from, or a kind that is not read.
    """
    flat = _flatten(features, name)
    keys = _supervised(info)
    x, y = keys if keys is not None and keys[0] in flat else (None, None)
    images = [key for key, value in flat.items() if "image" in value]
    if x is None:
        arrays = [key for key, value in flat.items() if _shape(value)]
        x = _only(flat, IMAGE_NAMES, images) or _only(flat, X_NAMES, arrays)
    seen = listing([f"{key}: {_kind(value)}" for key, value in flat.items()]) or "no features"
    if x is None:
        raise DataError(
            f"{name}: it is not plain what the inputs are; it holds {seen}; prepare it with "
            "supervised_keys, or with one image or one tensor"
        )
    if not labelled:
        return _inputs(x, flat[x], None, None, name)
    if y is None or y not in flat:
        y = _only(flat, Y_NAMES, [key for key, value in flat.items() if "classLabel" in value])
    if y is None:
        raise DataError(
            f"{name}: it is not plain what the labels are; it holds {seen}; prepare it with "
            "supervised_keys or one ClassLabel, or give the labels apart (labels=)"
        )
    return _inputs(x, flat[x], y, _class_names(folder, y, flat[y], name), name)


def _flatten(node: object, name: str, prefix: str = "", depth: int = 0) -> dict[str, Tree]:
    """Features by the names that they have in a record."""
    inner = node.get("featuresDict") if isinstance(node, dict) else None
    held = inner.get("features", {}) if isinstance(inner, dict) else None
    if not isinstance(held, dict) or depth > _MAX_DEPTH:
        raise DataError(f"{name}/features.json: is no FeaturesDict; prepare the data again")
    flat: dict[str, Tree] = {}
    for key, value in held.items():
        if not isinstance(value, dict):
            raise DataError(f"{name}/features.json: damaged; prepare the data again")
        if "featuresDict" in value:
            flat |= _flatten(value, name, f"{prefix}{key}/", depth + 1)
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _supervised(info: Tree) -> tuple[str, str] | None:
    """Input and label, where the data set names one of each."""
    try:
        items = info["supervisedKeys"]["tuple"]["items"]
        x, y = (each["featureKey"] for each in items)
    except (KeyError, TypeError, ValueError):
        return None
    return (x, y) if isinstance(x, str) and isinstance(y, str) else None


def _only(flat: dict[str, Tree], names: tuple[str, ...], fitting: list[str]) -> str | None:
    found = next((key for key in names if key in fitting), None)
    return found or (fitting[0] if len(fitting) == 1 else None)


def _kind(node: Tree) -> str:
    """The name of a feature's class, for messages."""
    return str(node.get("pythonClassName", "?")).rpartition(".")[2]


def _shape(node: Tree, kind: str = "tensor") -> tuple[int, ...]:
    """The shape of a tensor or an image, -1 where it is not fixed; () for anything else."""
    try:
        sizes = [int(size) for size in node[kind]["shape"]["dimensions"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        return ()
    return tuple(size if size > 0 else -1 for size in sizes)


def _inputs(
    x: str, node: Tree, y: str | None, class_names: tuple[str, ...] | None, name: str
) -> Choice:
    label = f"{name}: feature {quote(x)}"
    kind = next((each for each in ("image", "tensor") if isinstance(node.get(each), dict)), None)
    if kind is None:
        raise DataError(
            f"{label} is of kind {quote(_kind(node))}, which is not read; prepare the data with an "
            "Image or a Tensor as input"
        )
    dtype = str(node[kind].get("dtype", "uint8"))
    if kind == "image":
        if dtype not in ("uint8", "uint16"):
            raise DataError(f"{label} is an image of {quote(dtype)}; prepare it as uint8")
        is_colour = _shape(node, "image")[-1:] in ((3,), (4,))
        return Choice(x, y, True, is_colour, class_names=class_names)
    shape, encoding = _shape(node), str(node["tensor"].get("encoding", "none")).lower()
    if not shape or -1 in shape or dtype not in _NUMBERS or encoding != "none":
        raise DataError(
            f"{label} is a tensor of {quote(dtype)}, shape {shape} and encoding {quote(encoding)}; "
            "prepare it with numbers, a fixed shape and no encoding"
        )
    dtype = "float32" if dtype in _AS_FLOAT else dtype
    return Choice(x, y, False, shape=shape, dtype=dtype, class_names=class_names)


def _class_names(folder: Path, y: str, node: Tree, name: str) -> tuple[str, ...] | None:
    """Names of the classes from the file beside the data, in the order of their numbers."""
    file = f"{y.replace('/', '-')}.labels.txt"
    path = folder / file
    if "classLabel" not in node or _leads_away(file) or not path.is_file():
        return None
    with readable(f"{name}/{file}"):
        if path.stat().st_size > _MAX_NAMES_BYTES:
            raise DataError(f"{name}/{file}: is larger than {_MAX_NAMES_BYTES} bytes")
        names = tuple(path.read_text("utf-8").splitlines())
    return names or None


def _leads_away(file: str) -> bool:
    """Whether a name would lead into another folder."""
    return "/" in file or "\\" in file
