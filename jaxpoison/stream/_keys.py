"""What decides the bits of a pass, as a digest."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from ._stream import Stream

_BYTES = 16
_BLOCK_ROWS = 8192


_KNOWN = ("jaxpoison.", "jax.", "numpy")


class Unnamed(Exception):
    """Something whose content no name tells: a closure, a bound method, code of another package."""


def key_of_pass(stream: Stream, verb: str, fn: Any, operands: Any) -> str:
    """Equal for equal rows, classes, stages, functions and operands, in every process.

    Functions are known by their names: what they do belongs to the version of the code, which is
    kept beside the journal.

    Raises:
        Unnamed: Something in it has no name that says what it does.
    """
    state = hashlib.blake2b(digest_size=_BYTES)
    layout = dataclasses.astuple(stream.rows.layout)
    seen = (verb, identity_of(stream), stream.num_classes, layout, stream.stage, fn, operands)
    _add(state, seen)
    return f"{verb}-{state.hexdigest()}"


def digest_of_value(value: Any) -> str | None:
    """Content of a pytree with its functions, or None where it can not be named."""
    state = hashlib.blake2b(digest_size=_BYTES)
    try:
        _add(state, value)
    except Unnamed:
        return None
    return state.hexdigest()


def identity_of(stream: Stream) -> str:
    """What stands for the rows and labels of a stream."""

    def make() -> str:
        state = hashlib.blake2b(digest_size=_BYTES)
        _add(state, stream.labels)
        source: Any = stream.source
        if stream.identity is not None:
            _add(state, stream.identity)
        elif hasattr(source, "fingerprint"):
            _add(state, source.fingerprint())
        else:
            for start in range(0, len(source), _BLOCK_ROWS):
                _add(state, source.read(start, min(start + _BLOCK_ROWS, len(source)))["x"])
        return state.hexdigest()

    value: str = stream.memo("identity", make)
    return value


def _add(state: Any, value: Any) -> None:
    """Feeds a value to the hash, its type and its length before it."""
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.asarray(value)
        state.update(f"array {array.dtype.str} {array.shape};".encode())
        state.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(each.name, getattr(value, each.name)) for each in dataclasses.fields(value)]
        _add(state, (type(value), *parts))
    elif isinstance(value, functools.partial):
        _add(state, ("partial", value.func, value.args, value.keywords))
    elif isinstance(value, (tuple, list)):
        state.update(f"{type(value).__qualname__} {len(value)};".encode())
        for each in value:
            _add(state, each)
    elif isinstance(value, dict):
        _add(state, sorted(value.items(), key=lambda item: str(item[0])))
    elif value is None or isinstance(value, (bool, int, float, str, bytes)):
        state.update(f"{type(value).__name__} {value!r};".encode())
    elif hasattr(value, "__qualname__"):
        state.update(_name_of(value).encode())
    else:
        leaves = jax.tree.leaves(value)
        if len(leaves) == 1 and leaves[0] is value:  # an object that is no pytree
            raise Unnamed(type(value).__qualname__)
        _add(state, [str(path) for path, _ in jax.tree_util.tree_leaves_with_path(value)])
        _add(state, leaves)


def _name_of(value: Any) -> str:
    """Of a function or type of this package, or of one whose release is kept too."""
    module, owner = value.__module__ or "", getattr(value, "__self__", None)
    is_bound = owner is not None and not isinstance(owner, ModuleType)
    if "<" in value.__qualname__ or is_bound or not module.startswith(_KNOWN):
        raise Unnamed(value.__qualname__)
    return f"name {module}.{value.__qualname__};"
