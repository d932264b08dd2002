"""Trains the members of an ensemble by gradients; no member sees another.

A member is packed on the host from its own rows, its own capacity rung and its own seed. Three
programs train it: ``map`` (all steps of one member in one program), ``steps`` (one program a step;
the CPU backend runs convolutions many times faster outside loops) and ``vmap`` (a group of always
so many members in one program). A group runs on one device.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison._types import Array, HostArray
from jaxpoison.stream import compiled, place

from ._side_by_side import num_threads, side_by_side

if TYPE_CHECKING:
    from jax.sharding import Mesh

QUERIES = 128
"""Test rows of a block, always so many: a score has the same bits alone and among others."""

_PROBE_STEPS = 6

Scored: TypeAlias = tuple[list[int], HostArray]


class Functions(NamedTuple):
    """What a gradient learner is: pure, hashable functions.

    Attributes:
        init: ``init(key, x[1, ...], num_classes) -> state``, a pytree of arrays.
        step: ``step(state, x[b, ...], y[b] int32, mask[b] bool) -> state``.
        apply: ``apply(state, x[b, ...]) -> scores [b, c]``.
    """

    init: Callable[..., Any]
    step: Callable[..., Any]
    apply: Callable[..., Any]


class Member(NamedTuple):
    """One subset as operands of a program.

    Attributes:
        x: [r, ...] rows in canonical order, zeros above the subset's size.
        y: [r] int32 classes.
        order: [steps, b] int32 rows of each batch, -1 for padding.
        num_steps: [] int32; batches beyond are padding.
        seed: [2] uint32 of the initial state.
    """

    x: Array
    y: Array
    order: Array
    num_steps: Array
    seed: Array


@dataclass(frozen=True)
class Recipe:
    """What does not depend on the data.

    Attributes:
        functions: Of the learner.
        epochs: Passes over the subset's rows.
        batch_size: Most rows of a step.
        seed: Of the ensemble.
        chunk: Members of a group of ``vmap``.
        num_classes: c.
    """

    functions: Functions
    epochs: int
    batch_size: int
    seed: int
    chunk: int
    num_classes: int


def pack(recipe: Recipe, x: HostArray, y: HostArray, subset: int, capacity: int) -> Member:
    """A member from its own rows alone.

    The batches of an epoch are the rows in the order of raw words of a Philox generator, whose
    stream no version of NumPy changes.

    Args:
        recipe: Of the learner.
        x: [s, ...] the subset's rows in canonical order.
        y: [s] classes.
        subset: Id of the subset.
        capacity: r, the rung of a subset of s rows.
    """
    rows, batch = len(x), min(recipe.batch_size, capacity)
    steps, most = -(-rows // batch), -(-capacity // batch)
    inputs = np.zeros((capacity, *x.shape[1:]), x.dtype)
    labels = np.zeros(capacity, np.int32)
    inputs[:rows], labels[:rows] = x, y
    order = np.full((recipe.epochs * most, batch), -1, np.int32)
    words = np.random.Philox(key=_words(recipe.seed, subset, b"order"))
    epoch = np.full(steps * batch, -1, np.int32)
    for i in range(recipe.epochs):
        epoch[:rows] = np.argsort(words.random_raw(rows), kind="stable")
        order[i * steps : (i + 1) * steps] = epoch.reshape(steps, batch)
    seed = _words(recipe.seed, subset, b"init").view(np.uint32)[:2]
    return Member(inputs, labels, order, np.int32(recipe.epochs * steps), seed)


def _words(seed: int, subset: int, purpose: bytes) -> HostArray:
    text = f"{seed}/{subset}".encode()
    digest = hashlib.blake2b(text, digest_size=16, person=b"jaxpoison." + purpose)
    return np.frombuffer(digest.digest(), "<u8").astype(np.uint64)


def scores_of(
    recipe: Recipe, strategy: str, members: Iterator[tuple[int, Member]], tests: HostArray,
    mesh: Mesh,
) -> Iterator[Scored]:  # fmt: skip
    """Trains members and scores the test rows, a group at a time.

    Args:
        recipe: Of the learner.
        strategy: "vmap", "map" or "steps".
        members: Subset ids and members of one capacity.
        tests: [t, QUERIES, ...] test rows in blocks.
        mesh: Devices; groups are dealt out in turn.

    Yields:
        Subset ids [m] and their scores [m, t * QUERIES, c].

    **Cost**: of a group, its rows, its parameters and optimiser states, and m v c scores.
    """
    placed = [place(tests, mesh, i) for i in range(mesh.size)]
    size = recipe.chunk if strategy == "vmap" else 1
    run = {"vmap": _run_group, "map": _run_map, "steps": _run_steps}[strategy]

    def work(index: int, group: list[tuple[int, Member]]) -> Scored:
        ids = [subset for subset, _ in group]
        # a group is filled up with copies, so that there is one program of one shape
        filled = [member for _, member in group] + [group[-1][1]] * (size - len(group))
        scores = run(recipe, filled, placed[index % mesh.size], mesh, index)
        return ids, np.asarray(scores)[: len(ids)]

    threads = num_threads(mesh) if strategy != "vmap" else mesh.size
    yield from side_by_side(work, _grouped(members, size), threads)


def _grouped(members: Iterator[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for member in members:
        group.append(member)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _run_group(
    recipe: Recipe, members: Sequence[Member], tests: Array, mesh: Mesh, index: int
) -> HostArray:
    stacked = Member(*(np.stack(leaves) for leaves in zip(*members, strict=True)))
    operands = place(stacked, mesh, index)
    return _flat(_group(operands, tests, functions=recipe.functions, classes=recipe.num_classes))


def _run_map(
    recipe: Recipe, members: Sequence[Member], tests: Array, mesh: Mesh, index: int
) -> HostArray:
    member = place(members[0], mesh, index)
    scores = _whole(member, tests, functions=recipe.functions, classes=recipe.num_classes)
    return _flat(scores[None])


def _run_steps(
    recipe: Recipe, members: Sequence[Member], tests: Array, mesh: Mesh, index: int
) -> HostArray:
    functions, member = recipe.functions, place(members[0], mesh, index)
    state = _first(member, functions=functions, classes=recipe.num_classes)
    for i in range(int(members[0].num_steps)):
        state = _next(state, member, np.int32(i), functions=functions)
    blocks = [_score(state, tests, np.int32(i), functions=functions) for i in range(len(tests))]
    return _flat(np.stack([np.asarray(block) for block in blocks])[None])


def _flat(scores: Any) -> HostArray:
    host = np.asarray(scores)
    return host.reshape(host.shape[0], -1, host.shape[-1])


def _init(member: Member, *, functions: Functions, classes: int) -> Any:
    key = jax.random.wrap_key_data(member.seed, impl="threefry2x32")
    return functions.init(key, jnp.zeros_like(member.x[:1]), classes)


def _step(state: Any, member: Member, i: Array, *, functions: Functions) -> Any:
    rows = member.order[i]
    mask = rows >= 0
    x, y = member.x[jnp.maximum(rows, 0)], member.y[jnp.maximum(rows, 0)]
    # Zeroed, not just weighted by zero: zero times infinity is no number.
    x = jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype))
    return functions.step(state, x, jnp.where(mask, y, 0), mask)


def _apply(state: Any, tests: Array, i: Array, *, functions: Functions) -> Array:
    return jnp.asarray(functions.apply(state, tests[i]), jnp.float32)


def _train_and_score(member: Member, tests: Array, *, functions: Functions, classes: int) -> Array:
    def body(i: Array, state: Any) -> Any:
        return _step(state, member, i, functions=functions)

    state = _init(member, functions=functions, classes=classes)
    state = jax.lax.fori_loop(0, member.num_steps, body, state)
    return jnp.asarray(
        jax.lax.map(lambda x: jnp.asarray(functions.apply(state, x), jnp.float32), tests)
    )


def _grouped_training(members: Member, tests: Array, *, functions: Functions, classes: int) -> Any:
    def one(member: Member) -> Array:
        return _train_and_score(member, tests, functions=functions, classes=classes)

    return jax.vmap(one)(members)


# Members run side by side on the cores: one thread each, and the bits owe nothing to the others.
_group = compiled(_grouped_training, static=("functions", "classes"))
_whole = compiled(_train_and_score, static=("functions", "classes"), single_thread=True)
_first = compiled(_init, static=("functions", "classes"), single_thread=True)
_next = compiled(_step, static=("functions",), donate=("state",), single_thread=True)
_score = compiled(_apply, static=("functions",), single_thread=True)


def seconds_a_member(
    recipe: Recipe, strategy: str, row: tuple[tuple[int, ...], Any], mesh: Mesh
) -> float:
    """Wall seconds of a few steps of one member, the second time, on rows drawn at random.

    The rows of the training set take no part: were the choice of a program theirs, one row could
    change the bits of every member.
    """
    shape, dtype = row
    rng = np.random.default_rng(0)
    rows = _PROBE_STEPS * recipe.batch_size
    size = recipe.chunk if strategy == "vmap" else num_threads(mesh)
    x = rng.integers(0, 2, (rows, *shape)).astype(dtype)
    y = rng.integers(0, recipe.num_classes, rows)
    once = Recipe(**{**recipe.__dict__, "epochs": 1})
    member = pack(once, x, y, 0, rows)
    tests = np.zeros((1, QUERIES, *shape), dtype)
    for _ in range(2):
        start = time.perf_counter()
        for _ in scores_of(once, strategy, iter([(0, member)] * size), tests, mesh):
            continue
        seconds = (time.perf_counter() - start) / size
    return seconds
