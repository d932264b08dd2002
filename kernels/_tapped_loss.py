"""A loss as a function of shifts added to its layers' outputs, found by walking or by marks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import jaxpr_as_fun

from ._tap_layers import Step
from ._tap_walker import Use, evaluate, find_uses, flat_trace


class Signature(NamedTuple):
    """Everything a trace depends on besides the loss: structures and shapes of one row.

    Attributes:
        params: Structure of the parameters.
        leaf_shapes: Of its leaves.
        leaf_types: Their dtypes.
        trained: Numbers of the leaves that are trained.
        batch: Structure of the batch, always a tuple of arguments.
        row_shapes: Of its leaves, without the axis of rows.
        row_types: Their dtypes.
    """

    params: Any
    leaf_shapes: tuple[tuple[int, ...], ...]
    leaf_types: tuple[Any, ...]
    trained: tuple[int, ...]
    batch: Any
    row_shapes: tuple[tuple[int, ...], ...]
    row_types: tuple[Any, ...]

    @staticmethod
    def of(params: Any, batch: Any, trainable: Any) -> tuple[Signature, tuple[str, ...], int]:
        """The signature, the path of each leaf, and the number of rows."""
        leaves, structure = jax.tree.flatten(params)
        names, leaf_types = _names_of(structure), tuple(map(_dtype, leaves))
        trained = _trained(trainable, params, len(leaves))
        for n in trained:
            if not _is_floating(leaf_types[n]):
                raise ValueError(
                    f"params{names[n]} is {leaf_types[n]}, not floating; make it no leaf of "
                    "params or leave it out by trainable"
                )
        if not trained:
            raise ValueError("params has no leaf to train: nothing has a gradient")
        rows, batch_structure = jax.tree.flatten(_arguments(batch))
        counts = {np.shape(x)[0] if np.ndim(x) else -1 for x in rows}
        if len(counts) != 1 or -1 in counts:
            raise ValueError(
                "every array of batch must begin with the same number of rows, got shapes "
                f"{[tuple(np.shape(x)) for x in rows]}"
            )
        signature = Signature(
            structure,
            tuple(tuple(np.shape(leaf)) for leaf in leaves),
            leaf_types,
            trained,
            batch_structure,
            tuple(tuple(np.shape(x)[1:]) for x in rows),
            tuple(map(_dtype, rows)),
        )
        return signature, names, counts.pop()

    def leaves_of(self, params: Any, batch: Any) -> tuple[list[Any], list[Any]]:
        """Leaves of parameters and batch, if they fit the signature."""
        leaves, structure = jax.tree.flatten(params)
        rows, batch_structure = jax.tree.flatten(_arguments(batch))
        got = (structure, batch_structure, *(tuple(np.shape(leaf)) for leaf in leaves))
        if got != (self.params, self.batch, *self.leaf_shapes):
            raise ValueError("params or batch differ in structure or shape from the plan's")
        shapes = tuple(tuple(np.shape(x)[1:]) for x in rows)
        if shapes != self.row_shapes:
            raise ValueError(f"rows have shapes {shapes}, the plan is for {self.row_shapes}")
        return [_as_array(leaf) for leaf in leaves], [_as_array(x) for x in rows]

    def abstract(self, num_rows: int) -> list[jax.ShapeDtypeStruct]:
        """Shapes of all leaves of the parameters, then of the batch."""
        leaves = zip(self.leaf_shapes, self.leaf_types, strict=True)
        rows = zip(self.row_shapes, self.row_types, strict=True)
        return [_abstract(shape, dtype) for shape, dtype in leaves] + [
            _abstract((num_rows, *shape), dtype) for shape, dtype in rows
        ]

    def called(self, loss_fn: Any, leaves: Sequence[Any], *extra: Any) -> Any:
        """The loss of flat leaves."""
        count = len(self.leaf_shapes)
        params = jax.tree.unflatten(self.params, leaves[:count])
        return loss_fn(params, *jax.tree.unflatten(self.batch, leaves[count:]), *extra)


class Found(NamedTuple):
    """The tapped loss of one row.

    Attributes:
        uses: Every product that gets a shift.
        members: Of each layer, the numbers of its uses.
        biases: Of each layer, the leaf of its bias or None.
        rest: Leaves to differentiate in.
        run: ``run(shifts, leaves and row) -> loss, inputs of each use``.
    """

    uses: tuple[Use, ...]
    members: tuple[tuple[int, ...], ...]
    biases: tuple[int | None, ...]
    rest: tuple[int, ...]
    run: Callable[[Sequence[Array], Sequence[Any]], tuple[Any, tuple[Array, ...]]]


def walk_loss(loss_fn: Any, signature: Signature, num_rows: int) -> Found:
    """Finds the layers in the trace of one row's loss."""
    flat = _flat(loss_fn, signature)
    _check_loss(flat, signature, num_rows)
    closed = jax.make_jaxpr(flat)(*signature.abstract(1))
    _check_consts(closed.consts)
    trace = flat_trace(closed, {n: signature.leaf_shapes[n] for n in signature.trained})
    uses, biases, other = find_uses(trace)
    by_leaf: dict[int, list[Use]] = defaultdict(list)
    for use in uses:
        by_leaf[use.leaf].append(use)
    kept = {
        leaf: group
        for leaf, group in by_leaf.items()
        if leaf not in other and leaf not in biases and _one_layer(group)
    }
    bias_of = {op: leaf for leaf, op in biases.items() if leaf not in other and leaf not in by_leaf}
    used = {source.leaf for source in trace.sources.values()}
    chosen = tuple(use for group in kept.values() for use in group)
    members, found_biases, start = [], [], 0
    for group in kept.values():
        members.append(tuple(range(start, start + len(group))))
        start += len(group)
        # a layer used twice has its bias added twice: both are one leaf, or it is no one's bias
        found_biases.append(bias_of.get(group[0].op) if len(group) == 1 else None)
    tapped = {*kept, *(leaf for leaf in found_biases if leaf is not None)}
    rest = tuple(n for n in signature.trained if n in used and n not in tapped)

    def run(shifts: Sequence[Array], values: Sequence[Any]) -> tuple[Any, tuple[Array, ...]]:
        return evaluate(trace, values, chosen, shifts)

    return Found(chosen, tuple(members), tuple(found_biases), rest, run)


def mark_loss(loss_fn: Any, signature: Signature, num_rows: int) -> Found:
    """Takes the layers from the loss's own calls of ``tap``."""
    uses: list[Use] = []
    biases: list[int | None] = []

    def note(leaves: Sequence[Any]) -> Any:
        def tap(y: Array, x: Array, weight: Array, bias: Array | None = None) -> Array:
            use, number = _marked(leaves, signature, len(uses), y, x, weight, bias)
            uses.append(use)
            biases.append(number)
            return y

        return tap

    def noted(*leaves: Any) -> Any:
        uses.clear()
        biases.clear()
        return signature.called(loss_fn, leaves, note(leaves))

    _check_loss(noted, signature, num_rows)
    jax.eval_shape(noted, *signature.abstract(1))
    _check_marks(uses, biases)

    def shifted(shifts: Sequence[Array], leaves: Sequence[Any]) -> Any:
        inputs: list[Array] = []

        def tap(y: Array, x: Array, weight: Array, bias: Array | None = None) -> Array:
            use = uses[len(inputs)]
            inputs.append(use.inputs(x))
            return y + shifts[len(inputs) - 1]

        return signature.called(loss_fn, leaves, tap), tuple(inputs)

    shifts = [_abstract(*use.output) for use in uses]
    closed = jax.make_jaxpr(shifted)(shifts, signature.abstract(1))
    _check_consts(closed.consts)
    marked = {*(use.leaf for use in uses), *(leaf for leaf in biases if leaf is not None)}
    rest = tuple(n for n in signature.trained if n not in marked)

    def run(shifts: Sequence[Array], values: Sequence[Any]) -> tuple[Any, tuple[Array, ...]]:
        value, *inputs = jaxpr_as_fun(closed)(*shifts, *values)
        return value, tuple(inputs)

    return Found(tuple(uses), tuple((k,) for k in range(len(uses))), tuple(biases), rest, run)


def _flat(loss_fn: Any, signature: Signature) -> Callable[..., Any]:
    def flat(*leaves: Any) -> Any:
        return signature.called(loss_fn, leaves)

    return flat


def _one_layer(group: list[Use]) -> bool:
    """Whether the uses of a leaf can be joined along their positions."""
    layouts = {(use.kind, use.to_matrix, use.sizes[1:]) for use in group}
    return len(group) == 1 or (len(layouts) == 1 and group[0].kind != "conv")


def _marked(
    leaves: Sequence[Any], signature: Signature, number: int, y: Any, x: Any, weight: Any, bias: Any
) -> tuple[Use, int | None]:
    def number_of(name: str, wanted: Any) -> int:
        for n in signature.trained:
            if leaves[n] is wanted:
                return n
        raise ValueError(
            f"the {name} of tap number {number} is no trained leaf of params; pass the leaf "
            "itself, not a cast or reshaped copy"
        )

    o, i = y.shape[-1], x.shape[-1]
    t = y.size // max(o, 1)
    if weight.size != i * o or weight.shape[-1] != o or x.size != t * i:
        raise ValueError(
            f"tap number {number} has inputs {x.shape}, weight {weight.shape} and outputs "
            f"{y.shape}; it must be y[..., o] = x[..., i] @ weight[i, o]"
        )
    if bias is not None and bias.size != o:
        raise ValueError(f"tap number {number} has a bias {bias.shape} for {o} outputs")
    leaf = number_of("weight", weight)
    matrix, inputs, output = _reshape(i, o), _reshape(t, i), _reshape(t, o)
    layout = (y.shape, y.dtype)
    use = Use(number, "dense", leaf, 0, (matrix,), (inputs,), (output,), (t, i, o), layout)
    return use, None if bias is None else number_of("bias", bias)


def _reshape(*shape: int) -> Step:
    return "reshape", shape


def _check_marks(uses: list[Use], biases: list[int | None]) -> None:
    marked = [use.leaf for use in uses] + [leaf for leaf in biases if leaf is not None]
    if len(set(marked)) < len(marked):
        raise ValueError("a leaf is marked by two taps; leave both out, or use plan_taps")


def _check_loss(loss: Callable[..., Any], signature: Signature, num_rows: int) -> None:
    value = jax.eval_shape(loss, *signature.abstract(num_rows))
    shape = getattr(value, "shape", None)
    if shape not in ((), (num_rows,)) or not jnp.issubdtype(value.dtype, jnp.floating):
        seen = f"{value.dtype}{list(shape)}" if shape is not None else jax.tree.structure(value)
        raise ValueError(
            f"loss_fn must give one floating loss for each of the {num_rows} rows, or one for the "
            f"whole batch; it gave {seen}"
        )


def _check_consts(consts: Sequence[Any]) -> None:
    if any(isinstance(value, jax.core.Tracer) for value in consts):
        raise ValueError(
            "loss_fn closes over arrays that are being traced; pass them in params (frozen by "
            "trainable) or in batch"
        )


@lru_cache(maxsize=64)
def _names_of(structure: Any) -> tuple[str, ...]:
    whole = jax.tree.unflatten(structure, range(structure.num_leaves))
    paths, _ = jax.tree_util.tree_flatten_with_path(whole)
    return tuple(jax.tree_util.keystr(path) or "params" for path, _ in paths)


@lru_cache(maxsize=64)
def _is_floating(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))


def _trained(trainable: Any, params: Any, num_leaves: int) -> tuple[int, ...]:
    if trainable is None:
        return tuple(range(num_leaves))
    flags: list[bool] = []
    try:
        jax.tree.map(
            lambda flag, part: flags.extend([bool(flag)] * len(jax.tree.leaves(part))),
            trainable,
            params,
        )
    except ValueError as error:
        raise ValueError(f"trainable is no prefix of params: {error}") from None
    return tuple(n for n, flag in enumerate(flags) if flag)


def _arguments(batch: Any) -> tuple[Any, ...]:
    return batch if type(batch) is tuple else (batch,)


def _dtype(x: Any) -> Any:
    """The dtype that jax gives x, extended ones (random keys) included."""
    if isinstance(x, jax.Array):
        return x.dtype
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        dtype = np.result_type(x)
    extended = jnp.issubdtype(dtype, jax.dtypes.extended)
    return dtype if extended else jax.dtypes.canonicalize_dtype(dtype)


def _abstract(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _as_array(x: Any) -> Any:
    return x if isinstance(x, jax.Array) else jnp.asarray(x)
