"""A digest of functions, so that a manifest can tell one learner from another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def digest_of(*values: Any) -> str:
    """Of code, defaults, captured values and settings; equal for equal ones.

    Args:
        *values: Functions, dataclasses, arrays, containers and plain values.

    Returns:
        32 hexadecimal digits.

    **Assumes / fails on**: functions called by a global name count by that name alone; an object
    of a class that is none of these counts by its public attributes.
    """
    state = hashlib.blake2b(digest_size=16)
    seen: set[int] = set()
    for value in values:
        _feed(state.update, value, seen)
    return state.hexdigest()


def _feed(put: Callable[[bytes], None], value: Any, seen: set[int]) -> None:
    if isinstance(value, _PLAIN):
        put(f"{type(value).__name__}:{value!r};".encode())
        return
    if isinstance(value, CodeType):
        put(value.co_code)
        # the names of what is called; not file names or line numbers
        parts: tuple[Any, ...] = (value.co_names, value.co_consts)
    elif isinstance(value, type | ModuleType):
        name = value.__name__
        put(f"named:{getattr(value, '__module__', '')}.{name};".encode())
        return
    elif id(value) in seen:
        put(b"cycle;")
        return
    else:
        seen.add(id(value))
        parts = _parts(put, value)
    put(f"({len(parts)}:".encode())
    for part in parts:
        _feed(put, part, seen)
    put(b")")
    seen.discard(id(value))


def _parts(put: Callable[[bytes], None], value: Any) -> tuple[Any, ...]:
    if isinstance(value, FunctionType):
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        keywords = value.__kwdefaults__ or {}
        return (value.__qualname__, value.__code__, value.__defaults__, keywords, *cells)
    if isinstance(value, MethodType):
        return (value.__func__, value.__self__)
    if isinstance(value, partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, Mapping):
        return tuple(sorted(value.items(), key=lambda item: str(item[0])))
    if isinstance(value, tuple | list):
        return tuple(value)
    if isinstance(value, set | frozenset):
        return tuple(sorted(value, key=repr))
    put(f"{type(value).__module__}.{type(value).__qualname__}".encode())
    if is_dataclass(value):
        return tuple((f.name, getattr(value, f.name, None)) for f in fields(value))
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        array = np.asarray(value)
        put(f"{array.dtype}{array.shape}".encode())
        return (array.tobytes(),)
    public = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}
    return (public,)
