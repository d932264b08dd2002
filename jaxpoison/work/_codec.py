"""Trees of arrays and plain values as one file of arrays, without pickle.

Tuples, lists, dicts, named tuples and frozen dataclasses of this package, arrays, numbers, text
and None; what is read back is of the same types and the same bits.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from typing import IO, Any

import numpy as np

_TREE = "tree"
_OWN = "jaxpoison."


def write(file: IO[bytes], tree: Any) -> None:
    """Writes an .npz file.

    Raises:
        TypeError: A value of a type that is not known here.
    """
    arrays: list[Any] = []
    text = json.dumps(_pack(tree, arrays)).encode()
    named: dict[str, Any] = {f"a{i}": each for i, each in enumerate(arrays)}
    named[_TREE] = np.frombuffer(text, np.uint8)
    np.savez(file, **named)


def read(file: IO[bytes]) -> Any:
    """What ``write`` was given.

    Raises:
        ValueError: The bytes are not of that form.
    """
    with np.load(file, allow_pickle=False) as held:
        arrays = {name: held[name] for name in held.files}
    return _unpack(json.loads(arrays.pop(_TREE).tobytes().decode()), arrays)


def _pack(value: Any, arrays: list[Any]) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic)):  # before float, which numpy's double is too
        if value.dtype.kind in "OV":
            raise TypeError(f"an array of {value.dtype} can not be kept")
        arrays.append(value)
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {kind: len(arrays) - 1}
    if isinstance(value, int):
        return {"int": str(value)}
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, arrays), _pack(v, arrays)] for k, v in value.items()]}
    parts = _fields(value)
    if parts is not None and type(value).__module__.startswith(_OWN):
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        return {"of": name, "fields": {k: _pack(v, arrays) for k, v in parts.items()}}
    if type(value) in (tuple, list):
        return {type(value).__name__: [_pack(each, arrays) for each in value]}
    raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__} can not be kept")


def _fields(value: Any) -> dict[str, Any] | None:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        held: dict[str, Any] = value._asdict()
        return held
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    return None


def _unpack(value: Any, arrays: dict[str, Any]) -> Any:
    if not isinstance(value, dict):
        return value
    if "of" in value:
        fields = {name: _unpack(each, arrays) for name, each in value["fields"].items()}
        return _class_of(value["of"])(**fields)
    ((kind, held),) = value.items()
    if kind == "int":
        return int(held)
    if kind == "float":
        return float.fromhex(held)
    if kind == "array":
        return arrays[f"a{held}"]
    if kind == "scalar":
        return arrays[f"a{held}"][()]
    if kind == "dict":
        return {_unpack(k, arrays): _unpack(v, arrays) for k, v in held}
    parts = [_unpack(each, arrays) for each in held]
    return tuple(parts) if kind == "tuple" else parts


def _class_of(name: str) -> Any:
    """A named tuple or dataclass of this package."""
    module, _, path = name.partition(":")
    # a module that runs when it is imported holds no records
    is_own = module.startswith(_OWN) and "__" not in module
    found: Any = importlib.import_module(module) if is_own else None
    for part in path.split("."):
        found = getattr(found, part, None)
    is_record = isinstance(found, type) and (
        dataclasses.is_dataclass(found) or (issubclass(found, tuple) and hasattr(found, "_fields"))
    )
    if not is_record:
        raise ValueError(f"{name} is no record of this package")
    return found
