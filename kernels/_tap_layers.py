"""What a tapped layer is, and how its weight, inputs and cotangents are laid out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Step: TypeAlias = tuple[Literal["reshape", "transpose"], tuple[int, ...]]
"""One move of a layout: ("reshape", new shape) or ("transpose", permutation)."""
Kind: TypeAlias = Literal["dense", "conv", "embedding"]


@dataclass(frozen=True)
class ConvGeometry:
    """Which input positions a convolution multiplies with which kernel offset.

    Attributes:
        kernel: Spatial size of the kernel.
        output: Spatial size of the output.
        strides: Step between outputs, per spatial axis, like all that follow.
        padding: (low, high) zeros; negative ones crop.
        input_dilation: 1 plus the zeros between inputs.
        kernel_dilation: Step between the inputs of one output.
    """

    kernel: tuple[int, ...]
    output: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]

    def padded(self, x: Array) -> Array:
        """[b, N, *spatial, c] with padding and input dilation written out."""
        zero = jnp.zeros((), x.dtype)
        moves = [
            (low, high, dilation - 1)
            for (low, high), dilation in zip(self.padding, self.input_dilation, strict=True)
        ]
        return jax.lax.pad(x, zero, [(0, 0, 0), (0, 0, 0), *moves, (0, 0, 0)])

    def windows(self) -> Iterator[tuple[slice, ...]]:
        """Of each kernel offset, row-major: the padded positions it meets, per spatial axis."""
        for offset in product(*map(range, self.kernel)):
            yield tuple(
                slice(k * dilation, k * dilation + (size - 1) * stride + 1, stride)
                for k, dilation, size, stride in zip(
                    offset, self.kernel_dilation, self.output, self.strides, strict=True
                )
            )


@dataclass(frozen=True)
class Layer:
    """A product of inputs with a weight leaf, and perhaps a bias; hashable by value.

    Attributes:
        kind: "dense", "conv", or "embedding" (inputs are row numbers of the weight).
        name: Path of the weight leaf.
        weight: Number of the weight leaf among the leaves of the parameters.
        bias: Number of the leaf added to the product, or None.
        num_positions: T, the products in one row (1: a dense layer of a vector).
        num_inputs: i; kernel offsets times channels of a convolution.
        num_outputs: o.
        to_matrix: Moves that lay the weight leaf out as [i, o].
        leaf_shape: Of the weight leaf.
        bias_shape: Of the bias leaf, or None.
        conv: Geometry of a convolution.
    """

    kind: Kind
    name: str
    weight: int
    bias: int | None
    num_positions: int
    num_inputs: int
    num_outputs: int
    to_matrix: tuple[Step, ...]
    leaf_shape: tuple[int, ...]
    bias_shape: tuple[int, ...] | None = None
    conv: ConvGeometry | None = None


@partial(
    jax.tree_util.register_dataclass, data_fields=["inputs", "cotangents"], meta_fields=["layer"]
)
@dataclass(frozen=True)
class Tap:
    """Inputs and output gradients of one layer; ``inputs[b].T @ cotangents[b]`` is the gradient.

    Attributes:
        inputs: [b, T, i] of a dense layer; [b, N, *spatial, c] of a convolution; [b, T] int32 row
            numbers of an embedding, -1 where the lookup was out of range. Zero for masked rows.
        cotangents: [b, T, o] gradient of the row's own loss in the layer's outputs.
        layer: What they belong to; static.
    """

    inputs: Array
    cotangents: Array
    layer: Layer


def tap_inputs(tap: Tap) -> Array:
    """Inputs of a layer of any kind as rows of a matrix: patches, or one-hot rows.

    Args:
        tap: Of b rows.

    Returns:
        [b, T, i].

    **Cost**: nothing for a dense layer; b T i numbers written for the others.
    """
    layer = tap.layer
    if layer.kind == "dense":
        return tap.inputs
    if layer.conv is None:
        return jax.nn.one_hot(tap.inputs, layer.num_inputs, dtype=tap.cotangents.dtype)
    # Slices, not a convolution with an identity kernel: they are copies, that one is a product.
    x = layer.conv.padded(tap.inputs)
    patches = jnp.stack([x[(slice(None), slice(None), *w)] for w in layer.conv.windows()], axis=-2)
    return patches.reshape(len(x), layer.num_positions, layer.num_inputs)


def moved(x: Any, steps: tuple[Step, ...], *, lead: int = 0) -> Any:
    """X after the moves; the first ``lead`` axes stay where they are."""
    for name, value in steps:
        if name == "reshape":
            x = x.reshape(x.shape[:lead] + value)
        else:
            x = x.transpose((*range(lead), *(lead + axis for axis in value)))
    return x


def moved_back(x: Any, steps: tuple[Step, ...], shape: tuple[int, ...], *, lead: int = 0) -> Any:
    """What ``moved`` makes x of, given the shape before the moves (without the lead axes)."""
    shapes = [shape]
    for name, value in steps:
        last = shapes[-1]
        shapes.append(value if name == "reshape" else tuple(last[axis] for axis in value))
    for (name, value), before in zip(reversed(steps), reversed(shapes[:-1]), strict=True):
        if name == "reshape":
            x = x.reshape(x.shape[:lead] + before)
        else:
            x = x.transpose((*range(lead), *(lead + int(axis) for axis in np.argsort(value))))
    return x


def leaf_to_matrix(layer: Layer, leaf: Array) -> Array:
    """The layer's weight leaf laid out as [i, o]."""
    matrix: Array = moved(leaf, layer.to_matrix)
    return matrix


def matrix_to_leaf(layer: Layer, matrix: Array) -> Array:
    """[..., i, o] laid out as the layer's weight leaf, [..., *leaf_shape]."""
    lead = matrix.ndim - 2
    leaf: Array = moved_back(matrix, layer.to_matrix, layer.leaf_shape, lead=lead)
    return leaf
