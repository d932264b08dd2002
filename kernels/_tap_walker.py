"""Finds, in the trace of one row's loss, the products whose one operand is a parameter leaf.

The trace is laid flat: calls that a leaf passes through (jit, remat, closed calls) are inlined,
all others are kept as they are, so that custom derivative rules stay in force.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from ._tap_layers import ConvGeometry, Kind, Step, moved
from ._tap_pools import is_plain_pool, pooled

_INLINED = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}
_MOVES = {"reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim"}
_SAME = {"convert_element_type", "copy", "copy_p"}

_Operand: TypeAlias = "int | Literal"


class Op(NamedTuple):
    """One primitive of the flat trace; values are numbered."""

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[_Operand, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[tuple[int, ...], Any], ...]  # shape and dtype of each output
    run: Callable[..., list[Any]]


class Source(NamedTuple):
    """A value that is a parameter leaf, only moved."""

    leaf: int
    steps: tuple[Step, ...]
    shape: tuple[int, ...]
    spread: tuple[int, ...] | None = None  # axes it fills after a broadcast that repeats it


@dataclass(frozen=True)
class Use:
    """One product with a leaf.

    Attributes:
        op: Its number in the flat trace.
        kind: Of the layer.
        leaf: Number of the weight leaf.
        operand: Which operand of the op holds the inputs.
        to_matrix: Moves from the leaf to [i, o].
        input_steps: Moves from that operand to the layout of ``Tap.inputs``.
        output_steps: Moves from the op's output to [T, o].
        sizes: (T, i, o).
        output: Shape and dtype of the op's output.
        conv: Geometry of a convolution.
        clips: An embedding whose row numbers are clipped, not dropped, when out of range.
    """

    op: int
    kind: Kind
    leaf: int
    operand: int
    to_matrix: tuple[Step, ...]
    input_steps: tuple[Step, ...]
    output_steps: tuple[Step, ...]
    sizes: tuple[int, int, int]
    output: tuple[tuple[int, ...], Any]
    conv: ConvGeometry | None = None
    clips: bool = False

    def inputs(self, operand: Array) -> Array:
        """The op's operand as ``Tap.inputs`` of one row."""
        x: Array = moved(operand, self.input_steps)
        if self.kind == "embedding":
            size = self.sizes[1]
            x = jnp.clip(x, 0, size - 1) if self.clips else x
            x = jnp.where((x >= 0) & (x < size), x, -1).astype(jnp.int32)
        return x


class Trace(NamedTuple):
    """The flat trace of one row's loss."""

    ops: tuple[Op, ...]
    consts: tuple[tuple[int, Any], ...]
    inputs: tuple[int, ...]
    outputs: tuple[_Operand, ...]
    sources: dict[int, Source]


class _Flattener:
    def __init__(self) -> None:
        self.count = 0
        self.ops: list[Op] = []
        self.consts: list[tuple[int, Any]] = []
        self.sources: dict[int, Source] = {}

    def new(self) -> int:
        self.count += 1
        return self.count - 1

    def walk(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[_Operand]) -> list[_Operand]:
        names: dict[Any, _Operand] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            names[var] = self.new()
            self.consts.append((self.count - 1, value))

        def read(atom: Any) -> _Operand:
            return atom if isinstance(atom, Literal) else names[atom]

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            if eqn.primitive.name in _INLINED and any(self._is_source(o) for o in operands):
                closed = isinstance(inner, ClosedJaxpr)
                body, bound = (inner.jaxpr, inner.consts) if closed else (inner, ())
                names.update(zip(eqn.outvars, self.walk(body, bound, operands), strict=True))
                continue
            outputs = tuple(self.new() for _ in eqn.outvars)
            names.update(zip(eqn.outvars, outputs, strict=True))
            shapes = tuple(_shape(v.aval) for v in eqn.outvars)
            run = _runner(eqn, jaxpr.debug_info)
            self.ops.append(Op(eqn.primitive, eqn.params, tuple(operands), outputs, shapes, run))
            self._follow(self.ops[-1])
        return [read(atom) for atom in jaxpr.outvars]

    def _is_source(self, operand: _Operand) -> bool:
        return isinstance(operand, int) and operand in self.sources

    def _follow(self, op: Op) -> None:
        """Notes the output as a moved leaf if that is what it is."""
        name = op.primitive.name
        if name not in _MOVES | _SAME or not self._is_source(op.inputs[0]):
            return
        source = self.sources[op.inputs[0]]  # type: ignore[index]
        if source.spread is not None:
            return
        shape, dtype = op.shapes[0]
        if not jnp.issubdtype(dtype, jnp.floating):
            return
        steps = source.steps
        if name == "transpose":
            steps = (*steps, ("transpose", tuple(op.params["permutation"])))
        elif name in _MOVES:
            if _size(shape) != _size(source.shape):  # repeated: of use only as a bias
                axes = tuple(op.params["broadcast_dimensions"])
                wide = tuple(a for a, n in zip(axes, source.shape, strict=True) if n > 1)
                repeated = Source(source.leaf, source.steps, tuple(shape), wide)
                self.sources[op.outputs[0]] = repeated
                return
            if name == "reshape" and op.params.get("dimensions") is not None:
                return
            steps = (*steps, ("reshape", tuple(shape)))
        self.sources[op.outputs[0]] = Source(source.leaf, steps, tuple(shape))


def flat_trace(closed: ClosedJaxpr, leaves: dict[int, tuple[int, ...]]) -> Trace:
    """The trace laid flat, without what the loss does not need.

    Args:
        closed: Of one row's loss; inputs are all leaves of the parameters, then the row.
        leaves: Shapes of the leaves to follow, by their number among the inputs.
    """
    flattener = _Flattener()
    inputs = tuple(flattener.new() for _ in closed.jaxpr.invars)
    flattener.sources.update({n: Source(n, (), shape) for n, shape in leaves.items()})
    outputs = flattener.walk(closed.jaxpr, closed.consts, inputs)
    needed = {o for o in outputs if isinstance(o, int)}
    ops = []
    for op in reversed(flattener.ops):
        if needed.intersection(op.outputs):
            needed.update(o for o in op.inputs if isinstance(o, int))
            ops.append(op)
    sources = {n: source for n, source in flattener.sources.items() if n in needed}
    return Trace(tuple(reversed(ops)), tuple(flattener.consts), inputs, tuple(outputs), sources)


def find_uses(trace: Trace) -> tuple[list[Use], dict[int, int], set[int]]:
    """Products with leaves; biases as {leaf: op of the product}; leaves used in other ways."""
    sources = trace.sources
    uses: dict[int, Use] = {}
    biases: dict[int, int] = {}
    other = {sources[o].leaf for o in trace.outputs if isinstance(o, int) and o in sources}
    made_by = {out: n for n, op in enumerate(trace.ops) for out in op.outputs}
    readers: list[_Operand | None] = [o for op in trace.ops for o in op.inputs]
    readers += trace.outputs
    for n, op in enumerate(trace.ops):
        places = [k for k, o in enumerate(op.inputs) if isinstance(o, int) and o in sources]
        if not places or op.outputs[0] in sources:
            continue
        leaves = [sources[op.inputs[k]].leaf for k in places]  # type: ignore[index]
        use = None
        if len(places) == 1:
            source = sources[op.inputs[places[0]]]  # type: ignore[index]
            use = None if source.spread is not None else _matched(n, op, places[0], source)
            product = op.inputs[1 - places[0]] if op.primitive.name == "add" else None
            maker = made_by.get(product, -1) if isinstance(product, int) else -1
            found = uses.get(maker) if readers.count(product) == 1 else None
            if found is not None and _is_bias(op, source, found):
                if leaves[0] in biases:  # shared: the sum of the two is not one layer's
                    other.add(leaves[0])
                biases[leaves[0]] = found.op
                continue
        if use is None:
            other.update(leaves)
        else:
            uses[n] = use
    return list(uses.values()), biases, other


def evaluate(
    trace: Trace, arguments: Sequence[Any], uses: Sequence[Use], shifts: Sequence[Array]
) -> tuple[Any, tuple[Array, ...]]:
    """The loss, with a shift added to the output of each use, and the inputs of each use."""
    values: dict[int, Any] = dict(trace.consts)
    values.update(zip(trace.inputs, arguments, strict=True))
    by_op = {use.op: k for k, use in enumerate(uses)}
    inputs: list[Any] = [None] * len(uses)

    for n, op in enumerate(trace.ops):
        outputs = op.run(*(values[o] for o in op.inputs if isinstance(o, int)))
        if n in by_op:
            k = by_op[n]
            outputs[0] = outputs[0] + shifts[k]
            inputs[k] = uses[k].inputs(_value(values, op.inputs[uses[k].operand]))
        values.update(zip(op.outputs, outputs, strict=True))
    return _value(values, trace.outputs[0]), tuple(inputs)


def _value(values: dict[int, Any], operand: _Operand) -> Any:
    return values[operand] if isinstance(operand, int) else operand.val


def _runner(eqn: Any, debug_info: Any) -> Callable[..., list[Any]]:
    """One equation as a function of its operands; how primitives are bound differs by version."""
    operands = [v for v in eqn.invars if not isinstance(v, Literal)]
    if operands and is_plain_pool(eqn):
        window = tuple(eqn.params["window_dimensions"])
        return lambda x: [pooled(x, window)]
    free = list(dict.fromkeys(operands))  # a value may be given twice
    places = [operands.index(v) for v in free]
    body = Jaxpr((), free, eqn.outvars, [eqn], eqn.effects, debug_info)
    alone = jaxpr_as_fun(ClosedJaxpr(body, ()))
    return lambda *values: list(alone(*(values[k] for k in places)))


def _shape(aval: Any) -> tuple[tuple[int, ...], Any]:
    return tuple(getattr(aval, "shape", ())), getattr(aval, "dtype", None)


def _matched(n: int, op: Op, place: int, source: Source) -> Use | None:
    if op.primitive.name == "dot_general":
        return _dense(n, op, place, source)
    if op.primitive.name == "conv_general_dilated" and place == 1:
        return _conv(n, op, source)
    if op.primitive.name == "gather" and place == 0:
        return _embedding(n, op, source)
    return None


def _dense(n: int, op: Op, place: int, source: Source) -> Use | None:
    contracting, batch = op.params["dimension_numbers"]
    if batch[0]:
        return None  # one matrix per index of a batch axis: not one product
    weight_axes = tuple(contracting[place])
    free = tuple(axis for axis in range(len(source.shape)) if axis not in weight_axes)
    i = _size(source.shape[axis] for axis in weight_axes)
    o = _size(source.shape[axis] for axis in free)
    input_axes = tuple(contracting[1 - place])
    shape, _ = op.shapes[0]
    num_free = len(shape) - len(free)  # axes of the output that come from the inputs
    rank = num_free + len(input_axes)
    positions = tuple(axis for axis in range(rank) if axis not in input_axes)
    t = _size(shape) // max(o, 1)
    output: tuple[Step, ...] = (("reshape", (t, o)),)
    if place == 0:
        output = (("reshape", (o, t)), ("transpose", (1, 0)))
    return Use(
        n,
        "dense",
        source.leaf,
        1 - place,
        _plain((*source.steps, ("transpose", weight_axes + free), ("reshape", (i, o)))),
        (("transpose", positions + input_axes), ("reshape", (t, i))),
        output,
        (t, i, o),
        op.shapes[0],
    )


def _conv(n: int, op: Op, source: Source) -> Use | None:
    if op.params["feature_group_count"] != 1 or op.params["batch_group_count"] != 1:
        return None
    numbers, shape = op.params["dimension_numbers"], op.shapes[0][0]
    outs, ins, *spatial = numbers.rhs_spec
    kernel = tuple(source.shape[axis] for axis in spatial)
    i, o = _size(kernel) * source.shape[ins], source.shape[outs]
    out = (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])
    t = _size(shape) // max(o, 1)
    geometry = ConvGeometry(
        kernel,
        tuple(shape[axis] for axis in numbers.out_spec[2:]),
        tuple(op.params["window_strides"]),
        tuple((int(low), int(high)) for low, high in op.params["padding"]),
        tuple(op.params["lhs_dilation"]),
        tuple(op.params["rhs_dilation"]),
    )
    return Use(
        n,
        "conv",
        source.leaf,
        0,
        _plain((*source.steps, ("transpose", (*spatial, ins, outs)), ("reshape", (i, o)))),
        (("transpose", (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])),),
        (("transpose", out), ("reshape", (t, o))),
        (t, i, o),
        op.shapes[0],
        geometry,
    )


def _embedding(n: int, op: Op, source: Source) -> Use | None:
    numbers, shape = op.params["dimension_numbers"], op.shapes[0][0]
    plain = (
        len(source.shape) == 2
        and tuple(op.params["slice_sizes"]) == (1, source.shape[1])
        and tuple(numbers.collapsed_slice_dims) == (0,)
        and tuple(numbers.start_index_map) == (0,)
        and tuple(numbers.offset_dims) == (len(shape) - 1,)
        and not numbers.operand_batching_dims
    )
    if not plain:
        return None
    t, (v, o) = _size(shape[:-1]), source.shape
    clips = op.params["mode"] == jax.lax.GatherScatterMode.CLIP
    return Use(
        n,
        "embedding",
        source.leaf,
        1,
        source.steps,
        (("reshape", (t,)),),
        (("reshape", (t, o)),),
        (t, v, o),
        op.shapes[0],
        clips=clips,
    )


def _is_bias(op: Op, source: Source, use: Use) -> bool:
    """Whether the leaf is added to every position of the product, one value an output."""
    shape = op.shapes[0][0]
    if shape != use.output[0] or any(name == "transpose" for name, _ in source.steps):
        return False
    before = source.steps[-1][1] if source.steps else source.shape
    if _size(source.shape if source.spread is None else before) != use.sizes[2]:
        return False
    # Number the bias and lay it out like the product: [T, 1] with T = o must not pass for [1, o].
    numbers = np.arange(use.sizes[2])
    if source.spread is None:
        numbers = numbers.reshape(source.shape)
    else:
        sizes = [shape[axis] if axis in source.spread else 1 for axis in range(len(shape))]
        if _size(sizes) != len(numbers):
            return False
        numbers = numbers.reshape(sizes)
    laid = moved(np.broadcast_to(numbers, shape), use.output_steps)
    return bool((laid == np.arange(use.sizes[2])).all())


def _plain(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The same moves without those that change nothing, so that equal layouts compare equal."""
    kept: list[Step] = []
    for name, value in steps:
        if name == "transpose" and value == tuple(range(len(value))):
            continue
        if name == "reshape" and kept and kept[-1][0] == "reshape":
            kept.pop()
        kept.append((name, value))
    return tuple(kept)


def _size(shape: Any) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
