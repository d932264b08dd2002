"""What is compiled: one shard a device, and members side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpoison._types import Block

_AXIS = "data"


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["fn"])
@dataclass(frozen=True)
class Stage:
    """A pure function of each tile's inputs: ``fn(params, x[tiles, t, ...]) -> [tiles, t, d]``.

    ``fn`` is static and must be a module-level function, or every call compiles again.
    """

    fn: Callable[[Any, Any], Any]
    params: Any


def compiled(
    fn: Callable[..., Any],
    *,
    static: tuple[str, ...] = (),
    donate: tuple[str, ...] = (),
    single_thread: bool = False,
) -> Callable[..., Any]:
    """Compiles a pure function for rooms that may not call jit themselves.

    Args:
        fn: A module-level function.
        static: Names of arguments that are configuration.
        donate: Names of arguments whose memory the result may take over.
        single_thread: A CPU device runs it on one thread, for programs that run side by side.

    Returns:
        The compiled function.
    """
    options: Any = {"xla_cpu_multi_thread_eigen": False} if single_thread else None
    return jax.jit(fn, static_argnames=static, donate_argnames=donate, compiler_options=options)


def make_mesh(num_devices: int | None = None, *, is_global: bool = False) -> Mesh:
    """One axis over the first devices, automatic axes.

    ``jax.make_mesh`` would give explicit axes, on which ``x.T @ x`` along the sharded axis raises.

    Args:
        num_devices: So many, or None for all.
        is_global: Of all processes that run this program together, not of this one alone.
    """
    devices = jax.devices() if is_global else jax.local_devices()
    return Mesh(np.array(devices[: num_devices or None]), (_AXIS,))


def first_devices(mesh: Mesh, count: int) -> Mesh:
    """The first devices of a mesh of one process, at most so many; all of one of several."""
    devices = mesh.devices.flat
    if count >= mesh.size or len({each.process_index for each in devices}) > 1:
        return mesh
    return Mesh(np.array(devices[: max(count, 1)]), (_AXIS,))


def _spec(*axes: str) -> PartitionSpec:
    return PartitionSpec(*axes)  # type: ignore[no-untyped-call]  # jax leaves it without types


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, _spec())


def one_each(mesh: Mesh) -> NamedSharding:
    """One part of the first axis on each device."""
    return NamedSharding(mesh, _spec(_AXIS))


def mesh_of_solvers(mesh: Mesh) -> Mesh:
    """The devices that may run eigendecompositions side by side: one, if they are CPU devices.

    CPU devices share one pool of threads. A decomposition holds a thread while it waits for others
    of the pool, so as many of them as there are threads wait for ever (seen with 8 devices on 2
    cores, jaxlib 0.10.2). One device has all the threads anyway.
    """
    devices = mesh.devices.flat
    return Mesh(np.array(devices[:1]), (_AXIS,)) if devices[0].platform == "cpu" else mesh


def place(tree: Any, mesh: Mesh, index: int) -> Any:
    """A pytree of arrays on one device of the mesh, counted round."""
    return jax.device_put(tree, mesh.devices.flat[index % mesh.size])


def _at_device(tree: Any) -> Any:
    return jax.tree.map(lambda a: a[0], tree)


def _from_device(tree: Any) -> Any:
    return jax.tree.map(lambda a: a[None], tree)


def _sharded(mesh: Mesh, fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn(operands, shard)`` on every device: operands replicated, shards one a device."""
    mapped: Callable[..., Any] = jax.shard_map(
        fn, mesh=mesh, in_specs=(_spec(), _spec(_AXIS)), out_specs=_spec(_AXIS), check_vma=False
    )
    return mapped


@partial(jax.jit, static_argnames=("mesh", "fn"))
def pass_step(
    operands: Any, stage: Stage | None, blocks: Block, *, fn: Callable[..., Any], mesh: Mesh
) -> Any:
    """``fn(block, *operands)`` of one shard a device, behind the stage."""

    def one(operands: Any, blocks: Block) -> Any:
        operands, stage = operands
        block = _at_device(blocks)
        if stage is not None:
            block = block._replace(x=stage.fn(stage.params, block.x))
        return _from_device(fn(block, *operands))

    return _sharded(mesh, one)((operands, stage), blocks)


@partial(jax.jit, static_argnames=("mesh", "fn"))
def spread_step(shared: Any, members: Any, *, fn: Callable[..., Any], mesh: Mesh) -> Any:
    """``fn(member, *shared)`` of one group of members a device."""

    def one(shared: Any, members: Any) -> Any:
        # one group a device: a loop over groups would compile anew for every number of them
        mapped = jax.vmap(lambda member: fn(member, *shared))(_at_device(members))
        return _from_device(mapped)

    return _sharded(mesh, one)(shared, members)


@partial(jax.jit, static_argnames=("mesh", "fn"))
def spread_in_turn(
    shared: Any, members: Any, counts: Any, *, fn: Callable[..., Any], mesh: Mesh
) -> Any:
    """The same, a member after the other, of the first ``counts[device]`` of each group."""

    def one(shared: Any, operands: Any) -> Any:
        members, count = _at_device(operands)

        def of(i: Any) -> Any:
            return fn(jax.tree.map(lambda a: a[i], members), *shared)

        def step(i: Any, out: Any) -> Any:
            return jax.tree.map(lambda all_, new: all_.at[i].set(new), out, of(i))

        group = jax.tree.leaves(members)[0].shape[0]
        shapes = jax.eval_shape(of, 0)
        empty = jax.tree.map(lambda s: jnp.zeros((group, *s.shape), s.dtype), shapes)
        return _from_device(jax.lax.fori_loop(0, count, step, empty))

    return _sharded(mesh, one)(shared, (members, counts))
