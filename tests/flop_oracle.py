"""FLOP of a traced function, counted product by product: an independent check of formulas."""

from __future__ import annotations

import math

import jax

_EIGH = 10  # times k^3, as the kernels' docstrings count it
_FREE = {
    "broadcast_in_dim", "reshape", "squeeze", "stack", "transpose", "convert_element_type", "slice",
    "dynamic_slice", "dynamic_update_slice", "concatenate", "pad", "iota", "gather", "copy",
    "select_n", "rev", "sort", "top_k", "stop_gradient", "random_wrap", "random_unwrap",
    "random_bits", "random_fold_in", "random_split", "threefry2x32", "shift_left", "and", "or",
    "shift_right_logical", "bitcast_convert_type", "not", "xor", "eq", "ne", "lt", "le", "gt",
    "ge", "argmin", "argmax", "is_finite", "scatter", "scatter-add", "optimization_barrier",
}  # fmt: skip


def count(call, args, trips):
    """FLOP of ``call(*args)``.

    ``trips``: steps of while loops by their depth; the length of a scan is in its trace.
    """
    closed = jax.make_jaxpr(call)(*args)
    return _of_jaxpr(closed.jaxpr, tuple(trips))


def _of_jaxpr(jaxpr, trips):
    return sum(_of_equation(equation, trips) for equation in jaxpr.eqns)


def _of_equation(equation, trips):
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return params["length"] * _of_jaxpr(params["jaxpr"].jaxpr, trips)
    if name == "while":
        steps, inner = (trips[0], trips[1:]) if trips else (1, ())
        return steps * _of_jaxpr(params["body_jaxpr"].jaxpr, inner)
    if name == "cond":
        return max(_of_jaxpr(branch.jaxpr, trips) for branch in params["branches"])
    inner = [
        _jaxpr_of(params[key]) for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params
    ]
    if inner:
        return _of_jaxpr(inner[0], trips)
    return _of_primitive(name, equation)


def _jaxpr_of(held):
    return getattr(held, "jaxpr", held)


def _of_primitive(name, equation):
    shapes = [v.aval.shape for v in equation.invars]
    out = equation.outvars[0].aval.shape
    size = math.prod(out)
    if name == "dot_general":
        (left, _), _ = equation.params["dimension_numbers"]
        return 2 * size * math.prod(shapes[0][k] for k in left)
    if name == "conv_general_dilated":
        return (
            2 * size * math.prod(shapes[1]) / shapes[1][equation.params["dimension_numbers"][1][0]]
        )
    batch = math.prod(shapes[0][:-2]) if shapes and len(shapes[0]) > 2 else 1
    k = shapes[0][-1] if shapes and shapes[0] else 1
    special = {
        "cholesky": batch * k**3 / 3,
        "eigh": batch * _EIGH * k**3,
        "lu": batch * 2 / 3 * k**3,
        "triangular_solve": size * k,
    }
    if name in special:
        return special[name]
    if name.startswith("reduce_") or name.startswith("cum"):
        return math.prod(shapes[0])
    return 0 if name in _FREE else size
