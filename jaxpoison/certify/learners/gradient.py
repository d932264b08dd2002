"""Learners trained by gradients: any (init, step, apply), and two small networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import HostArray
from jaxpoison.stream import make_mesh

from ..features import FeatureMap
from ..partitions import Partitions, rungs
from ._identity import digest_of
from ._learner import Scores, check_labels, check_test_rows
from ._networks import Perceptron, SmallCNN
from ._training import QUERIES, Functions, Member, Recipe, pack, scores_of, seconds_a_member

if TYPE_CHECKING:
    from jax.sharding import Mesh

Strategy = Literal["measure", "vmap", "map", "steps"]

_STRATEGIES: tuple[Strategy, ...] = ("vmap", "map", "steps")
_SCORE_BYTES = 256 << 20
_LOWEST = float(np.finfo(np.float32).min)
_measured: dict[tuple[str, Any], Strategy] = {}


@dataclass(frozen=True)
class GradientLearner:
    """A model of each subset by steps of gradient descent, from pure functions of yours.

    Of a subset, and of nothing else, come: the rows, in canonical order and padded to the rung of
    their own number; the seed, a hash of ``seed`` and the subset's id, from which the initial
    state and the batches follow; the number of steps, ``epochs * ceil(rows / batch_size)``.

    Attributes:
        init: ``init(key, x[1, ...], num_classes) -> state``, a pytree of arrays; of x only the
            shape may count (it is zero). State that needs random numbers keeps a key of its own.
        step: ``step(state, x[b, ...], y[b] int32, mask[b] bool) -> state``; rows whose mask is
            False are zero and must not count.
        apply: ``apply(state, x[b, ...]) -> scores [b, c]``, each row by itself.
        epochs: Passes over the rows.
        batch_size: Rows of a step; the last one of an epoch is filled up and masked.
        seed: Of the ensemble.
        features: A fixed map of one row, applied first; None passes rows as they are.
        strategy: "map" (one program trains a member), "steps" (one program a step), "vmap" (one
            program trains ``chunk`` members), or "measure": the fastest of them here, found once a
            process by a few steps on random rows. Bits differ between strategies, so it is part of
            the digest; to have the votes of another machine again, give the strategy that its
            manifest names.
        chunk: Members of a program of "vmap"; part of the digest.
        forms: Other functions for a strategy, equal but for rounding: ``(("vmap", (init, step,
            apply)), ...)``.
        name: For reports.

    Raises:
        UsageError: Functions that are none, or settings that make no sense.
    """

    init: Any
    step: Any
    apply: Any
    epochs: int = field(default=20, kw_only=True)
    batch_size: int = field(default=32, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    features: FeatureMap | None = field(default=None, kw_only=True)
    strategy: Strategy = field(default="measure", kw_only=True)
    chunk: int = field(default=16, kw_only=True)
    forms: tuple[tuple[str, Any], ...] = field(default=(), kw_only=True)
    name: str = field(default="GradientLearner", kw_only=True)

    def __post_init__(self) -> None:
        """Checks what can be checked without rows."""
        for what in ("init", "step", "apply"):
            if not callable(getattr(self, what)):
                found = type(getattr(self, what)).__name__
                raise UsageError(f"{what} is {found}, not a function; see GradientLearner")
        for what in ("epochs", "batch_size", "chunk"):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{what} is {value!r}; give an integer of at least 1")
        if self.strategy not in ("measure", *_STRATEGIES):
            raise UsageError(f"strategy is {self.strategy!r}; use measure, vmap, map or steps")

    def to_json(self) -> dict[str, Any]:
        """Settings, as values that JSON can hold; "strategy" is the one in use, once measured."""
        return {
            "name": self.name,
            "functions": digest_of(self.init, self.step, self.apply, self.forms),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "features": None if self.features is None else self.features.to_json(),
            "strategy": self.strategy,
            "measured": sorted({v for k, v in _measured.items() if k[0] == self._key()}),
            "chunk": self.chunk,
        }

    def digest(self) -> str:
        """Of the settings and of the code of the functions."""
        return digest_of(self.to_json())

    def measured(
        self, shape: tuple[int, ...], dtype: Any, num_classes: int, mesh: Mesh | None = None
    ) -> GradientLearner:
        """The same learner with the strategy that is fastest here.

        Args:
            shape: Of one row, behind ``features``.
            dtype: Of rows.
            num_classes: c.
            mesh: Devices; all where None.

        **Cost**: each program compiled, and a few steps by it. Once a process.
        """
        if self.strategy != "measure":
            return self
        mesh = make_mesh() if mesh is None else mesh
        kind = (mesh.devices.flat[0].device_kind, mesh.size)
        key = (self._key(), (tuple(shape), str(np.dtype(dtype)), num_classes, kind))
        if key not in _measured:
            row = (tuple(shape), np.dtype(dtype))
            seconds = {
                each: seconds_a_member(self._recipe(each, num_classes), each, row, mesh)
                for each in _STRATEGIES
            }
            _measured[key] = min(seconds, key=lambda each: seconds[each])
        return replace(self, strategy=_measured[key])

    def fit_scores(
        self,
        partitions: Partitions,
        x: HostArray,
        y: HostArray,
        x_test: HostArray,
        *,
        num_classes: int,
        mesh: Mesh | None = None,
    ) -> Iterator[Scores]:
        """As ``Learner.fit_scores``.

        Scores that are no finite number count as the lowest: a member that diverged votes for the
        first of the classes it has left, in every run alike.

        Raises:
            UsageError: Functions whose results have another shape than they must.
            DataError: Labels or test rows that do not fit.

        **Cost**: members in turn, ``chunk`` or one a core at a time; their parameters are dropped
            as soon as the test rows have their scores.
        """
        check_labels(y, num_classes)
        check_test_rows(x_test, x)
        mesh = make_mesh() if mesh is None else mesh
        sizes = partitions.sizes
        subsets = np.flatnonzero(sizes)
        held = self._rows(x, np.unique(partitions.rows)) if subsets.size else np.asarray(x_test[:0])
        queries = np.asarray(x_test) if self.features is None else self.features(x_test)
        if queries.dtype.kind == "f" and not np.isfinite(queries).all():
            raise DataError("x_test has a value that is not finite; drop the row or fill it")
        row = (queries.shape[1:], queries.dtype)
        learner = self.measured(*row, num_classes, mesh)
        recipe = learner._recipe(learner.strategy, num_classes)
        _check(recipe, *row)
        tests = _blocks(queries)
        empty = np.flatnonzero(sizes == 0)
        step = max(1, _SCORE_BYTES // max(1, len(queries) * num_classes * 4))
        for start in range(0, len(empty), step):
            some = empty[start : start + step]
            yield some, np.zeros((len(some), len(queries), num_classes), np.float32)
        capacities = rungs(sizes)
        for capacity in np.unique(capacities[subsets]).tolist():
            ids = np.flatnonzero(capacities == capacity)
            members = _members(recipe, partitions, held, y, ids, capacity)
            for done, scores in scores_of(recipe, learner.strategy, members, tests, mesh):
                finite = np.where(np.isfinite(scores), scores, np.float32(_LOWEST))
                yield np.array(done, np.int64), finite[:, : len(queries)]

    def _rows(self, x: HostArray, used: HostArray) -> HostArray:
        """Rows by id behind the features; zeros where no subset has the row."""
        if self.features is None:
            if x.dtype.kind == "f" and not np.isfinite(x[used]).all():
                raise DataError("x has a value that is not finite; drop the row or fill it")
            return np.asarray(x)
        features = self.features(x[used])
        out = np.zeros((len(x), *features.shape[1:]), features.dtype)
        out[used] = features
        return out

    def _key(self) -> str:
        return digest_of(self.init, self.step, self.apply, self.forms, self.batch_size, self.chunk)

    def _recipe(self, strategy: str, num_classes: int) -> Recipe:
        functions = dict(self.forms).get(strategy, (self.init, self.step, self.apply))
        return Recipe(
            Functions(*functions), self.epochs, self.batch_size, self.seed, self.chunk, num_classes
        )


def mlp(
    widths: tuple[int, ...] = (128,), *, learning_rate: float = 0.05, momentum: float = 0.9,
    **settings: Any,
) -> GradientLearner:  # fmt: skip
    """A perceptron with ReLU; each row is standardised by itself first.

    Args:
        widths: Of the hidden layers.
        learning_rate: Of every step.
        momentum: Of Nesterov's form.
        **settings: Of ``GradientLearner``: epochs, batch_size, seed, features, strategy, chunk.
    """
    net = Perceptron(tuple(widths), float(learning_rate), float(momentum))
    return GradientLearner(
        net.init, net.step, net.apply, **{"name": "mlp", "epochs": 40, **settings}
    )


def small_cnn(
    channels: tuple[int, int] = (16, 32), *, learning_rate: float = 0.02, momentum: float = 0.9,
    **settings: Any,
) -> GradientLearner:  # fmt: skip
    """Two 3 x 3 convolutions with ReLU and 2 x 2 maxima, and a dense layer, on images.

    Programs that loop or vmap compute the second convolution by ``conv_gemm``, the program of one
    step by the backend's own convolution; each image is standardised by itself first.

    Args:
        channels: Of the two convolutions.
        learning_rate: Of every step.
        momentum: Of Nesterov's form.
        **settings: Of ``GradientLearner``: epochs, batch_size, seed, features, strategy, chunk.
    """
    first, second = channels
    net = SmallCNN((int(first), int(second)), float(learning_rate), float(momentum))
    gemm = replace(net, form="patches")
    other = (gemm.init, gemm.step, gemm.apply)
    settings = {"name": "small_cnn", "forms": (("vmap", other), ("map", other)), **settings}
    return GradientLearner(net.init, net.step, net.apply, **settings)


def _members(
    recipe: Recipe, partitions: Partitions, x: HostArray, y: HostArray, ids: HostArray,
    capacity: int,
) -> Iterator[tuple[int, Member]]:  # fmt: skip
    for subset in ids.tolist():
        rows = partitions.subset(subset)
        yield subset, pack(recipe, x[rows], y[rows], subset, capacity)


def _blocks(queries: HostArray) -> HostArray:
    count = -(-len(queries) // QUERIES)
    out = np.zeros((count * QUERIES, *queries.shape[1:]), queries.dtype)
    out[: len(queries)] = queries
    return out.reshape(count, QUERIES, *queries.shape[1:])


def _check(recipe: Recipe, shape: tuple[int, ...], dtype: Any) -> None:
    """Runs the functions on shapes alone, and says which one gives what it must not."""
    init, step, apply = recipe.functions
    rows, num_classes = recipe.batch_size, recipe.num_classes
    key, operand = jax.random.key(0), np.broadcast_to  # no memory: one value, seen many times
    x, one = (operand(np.zeros((), dtype), (count, *shape)) for count in (rows, 1))
    y, mask = (operand(np.zeros((), kind), (rows,)) for kind in (np.int32, np.bool_))
    state: Any = _shapes("init", lambda k, x: init(k, x, num_classes), key, one)
    after: Any = _shapes("step", step, state, x, y, mask)
    before, now = str(jax.tree.structure(state)), str(jax.tree.structure(after))
    if before != now:
        raise UsageError(
            f"step gives a state of structure {now}, but init one of {before}; return the state "
            "alone, with the parts it came with"
        )
    for path, leaf in jax.tree.leaves_with_path(state):
        new = dict(jax.tree.leaves_with_path(after))[path]
        if (leaf.shape, leaf.dtype) != (new.shape, new.dtype):
            raise UsageError(
                f"step turns state{jax.tree_util.keystr(path)} from {leaf.dtype}{leaf.shape} into "
                f"{new.dtype}{new.shape}; a loss or an update has a wrong shape (the loss must be "
                "a scalar, the state must keep its shapes)"
            )
    scores = _shapes("apply", apply, state, x)
    if getattr(scores, "shape", None) != (rows, num_classes):
        seen = getattr(scores, "shape", type(scores).__name__)
        raise UsageError(
            f"apply gives {seen} for {rows} rows; it must give scores ({rows}, {num_classes}), "
            "one a row and class"
        )


def _shapes(name: str, fn: Any, *operands: Any) -> Any:
    try:
        return jax.eval_shape(fn, *operands)
    except UsageError:
        raise
    except Exception as error:
        shapes = jax.tree.map(lambda a: f"{a.dtype}{a.shape}", operands[1:])
        raise UsageError(
            f"{name} fails on operands of shapes {shapes}: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else error!r}; it is called as "
            f"GradientLearner says"
        ) from error
