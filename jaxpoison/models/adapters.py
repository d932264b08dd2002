"""Networks written elsewhere as a ``Model``; flax is imported only when one is handed over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import Array

from jaxpoison._check import UsageError

from ._model import CrossEntropy, InputFn, LossFn, Model

if TYPE_CHECKING:  # shapes in signatures; the package runs without jaxtyping
    from jaxtyping import Float

Path = tuple[str, ...]
Preprocess = Callable[[Array], Array]
_SHOWN_NAMES = 20


def from_function(
    *,
    params: Any,
    features: InputFn,
    logits: InputFn,
    early_features: InputFn | None = None,
    loss: LossFn | None = None,
    name: str = "function",
) -> Model:
    """A model made of plain functions, from any library that works on jax arrays.

    Args:
        params: Pytree of arrays that all functions take first.
        features: ``fn(params, x[b, ...]) -> [b, d]``, the layer before the logits.
        logits: ``fn(params, x) -> [b, c]``.
        early_features: ``fn(params, x) -> [b, d2]``, or None.
        loss: ``fn(params, x, y[b]) -> [b]``; None is the cross-entropy of the logits.
        name: For messages and the report.

    Returns:
        The model. The functions are compiled once each as long as they are the same objects:
        pass module-level functions, not a new lambda each time.

    Raises:
        UsageError: Something that should be a function is not.
    """
    given = {"features": features, "logits": logits, "early_features": early_features, "loss": loss}
    for argument, fn in given.items():
        is_optional = argument in ("early_features", "loss")
        if not callable(fn) and not (is_optional and fn is None):
            raise UsageError(
                f"{argument} is {type(fn).__name__}, not a function; give fn(params, x)"
            )
    return Model(params, features, logits, loss or CrossEntropy(logits), early_features, name)


def from_nnx(
    module: Any,
    *,
    features: str,
    early_features: str | None = None,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> Model:
    """A model from an unmodified flax NNX module, its submodules' outputs captured.

    The module is copied and set to evaluation (``eval()``); yours is not changed.

    Args:
        module: Module whose ``module(x)`` gives the logits [b, c].
        features: The submodule whose output is the features: ``"encoder"``, ``"blocks.1"``, or
            ``"encoder.embed"`` for a method other than ``__call__``. Outputs with more than two
            axes are flattened; of several calls the last counts.
        early_features: The same for a layer before that, or None.
        preprocess: Static ``fn(x) -> x`` from what a source yields (uint8 images, float32 rows) to
            what the module takes; None passes x as it is.
        name: For messages and the report; None takes the class name.

    Returns:
        The model.

    Raises:
        UsageError: Not an NNX module, or it has no submodule of that name. A submodule that exists
            but is not called by ``module(x)`` is found out at the first call of ``features``.
    """
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise UsageError(
            f"module is {type(module).__name__}, not a flax nnx.Module; "
            "use from_linen or from_function"
        )
    copy: Any = nnx.merge(*nnx.split(module))
    copy.eval()
    modules = {tuple(map(str, path)): part for path, part in nnx.iter_modules(copy)}
    names = [path for path, part in modules.items() if path and callable(part)]
    for argument, wanted in (("features", features), ("early_features", early_features)):
        if wanted is not None:
            _check_submodule(argument, wanted, modules, names)
    graphdef, params = nnx.split(copy)

    def output(wanted: str | None) -> InputFn:
        return _NnxOutput(_Static(graphdef), _parse(wanted), preprocess)

    early = None if early_features is None else output(early_features)
    logits = output(None)
    title = type(module).__name__ if name is None else name
    return Model(params, output(features), logits, CrossEntropy(logits), early, title)


def from_linen(
    module: Any,
    variables: Any,
    *,
    features: str,
    early_features: str | None = None,
    preprocess: Preprocess | None = None,
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Model:
    """A model from an unmodified flax Linen module and its variables.

    Args:
        module: Module whose ``module.apply(variables, x)`` gives the logits [b, c].
        variables: What ``module.init`` returned or training made of it.
        features: The submodule whose output is the features, ``"encoder"`` or ``"encoder.dense"``.
            Outputs with more than two axes are flattened; of several calls the last counts.
        early_features: The same for a layer before that, or None.
        preprocess: Static ``fn(x) -> x`` from what a source yields to what the module takes.
        options: Keyword arguments of the call, such as ``{"train": False}``.
        name: For messages and the report; None takes the class name.

    Returns:
        The model. Linen knows its submodules only when called, so an unknown name is found out at
        the first call of ``features``, as a UsageError that lists those that exist.

    Raises:
        UsageError: Not a Linen module.
    """
    from flax import linen

    if not isinstance(module, linen.Module):
        raise UsageError(
            f"module is {type(module).__name__}, not a flax linen.Module; "
            "use from_nnx or from_function"
        )
    keywords = _Static(tuple(sorted((options or {}).items())))

    def output(wanted: str | None) -> InputFn:
        return _LinenOutput(_Static(module), _parse(wanted), preprocess, keywords)

    early = None if early_features is None else output(early_features)
    logits = output(None)
    title = type(module).__name__ if name is None else name
    return Model(variables, output(features), logits, CrossEntropy(logits), early, title)


@dataclass(frozen=True, eq=False)
class _Static:
    """A configuration value that can be a cache key even if the value itself cannot.

    Equal values share a compiled function where they can be hashed; others only with themselves.
    """

    value: Any

    def __hash__(self) -> int:
        try:
            return hash(self.value)
        except TypeError:
            return id(self.value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Static):
            return NotImplemented
        return self.value is other.value or (
            hash(self) == hash(other) and bool(self.value == other.value)
        )


@dataclass(frozen=True)
class _NnxOutput:
    """``fn(params, x)``: the output of a submodule, or of the module for the empty path."""

    graphdef: _Static
    path: Path
    preprocess: Preprocess | None

    def __call__(self, params: Any, x: Array) -> Float[Array, "b d"]:
        from flax import nnx

        module = nnx.merge(self.graphdef.value, params)
        x = x if self.preprocess is None else self.preprocess(x)
        if not self.path:
            return _as_rows(module(x), "the module", len(x))
        forward: Any = nnx.capture(module, nnx.Intermediate, method_outputs=nnx.Intermediate)
        return _captured(nnx.to_pure_dict(forward(x)[1]), self.path, len(x))


@dataclass(frozen=True)
class _LinenOutput:
    """``fn(variables, x)``: the output of a submodule, or of the module for the empty path."""

    module: _Static
    path: Path
    preprocess: Preprocess | None
    options: _Static

    def __call__(self, params: Any, x: Array) -> Float[Array, "b d"]:
        x = x if self.preprocess is None else self.preprocess(x)
        apply, options = self.module.value.apply, dict(self.options.value)
        if not self.path:
            return _as_rows(apply(params, x, **options), "the module", len(x))
        _, state = apply(
            params, x, **options, capture_intermediates=True, mutable=["intermediates"]
        )
        return _captured(state["intermediates"], self.path, len(x))


def _parse(name: str | None) -> Path:
    return () if name is None else tuple(name.replace("/", ".").split("."))


def _check_submodule(
    argument: str, wanted: str, modules: Mapping[Path, Any], names: Iterable[Path]
) -> None:
    path = _parse(wanted)
    owner = modules.get(path[:-1])
    is_method = owner is not None and callable(getattr(type(owner), path[-1], None))
    if path not in modules and not is_method:
        raise UsageError(f"{argument}={wanted!r}: no such submodule; {_listing(names)}")


def _listing(paths: Iterable[Path]) -> str:
    names = sorted(".".join(path) for path in paths)
    if not names:
        return "the module has no submodules; split it, or use from_function"
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"choose one of {', '.join(names[:_SHOWN_NAMES])}{more}"


def _captured(tree: Any, path: Path, rows: int) -> Float[Array, "b d"]:
    """The output at a path of nested dicts that end in tuples with one entry a call."""
    outputs = dict(_flatten(tree, ()))
    for candidate in ((*path, "__call__"), path):
        if candidate in outputs:
            return _as_rows(outputs[candidate][-1], ".".join(path), rows)
    seen = {p[:-1] if p[-1] == "__call__" else p for p in outputs} - {()}
    raise UsageError(f"{'.'.join(path)!r} has no output when the model is called; {_listing(seen)}")


def _flatten(tree: Any, path: Path) -> Iterable[tuple[Path, tuple[Any, ...]]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, (*path, str(key)))
        elif isinstance(value, tuple) and value:
            yield (*path, str(key)), value


def _as_rows(output: Any, name: str, rows: int) -> Float[Array, "b d"]:
    shape = getattr(output, "shape", None)
    if shape is None or len(shape) < 2 or shape[0] != rows:
        seen = type(output).__name__ if shape is None else f"an array of shape {tuple(shape)}"
        raise UsageError(
            f"{name} gives {seen}; expected an array whose first axis is the {rows} rows"
        )
    return jnp.reshape(output, (rows, -1)).astype(jnp.float32)
