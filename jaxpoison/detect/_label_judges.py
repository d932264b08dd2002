"""What classifiers on partial views say of rows that they were not fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import chunks
from jaxpoison._types import Array, Block, HostArray
from jaxpoison.detect._label_rounds import Rounds
from jaxpoison.detect._ridge_views import NormalEquations
from jaxpoison.kernels._elementwise import largest
from jaxpoison.stream import Stage, Stream, compiled

_BATCH = 512
_HELD_BYTES = 1 << 28  # of rows taken at a time to be judged


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["columns", "weights", "bias", "head", "offset"],
    meta_fields=[],
)
@dataclass(frozen=True)
class _Judge:
    """What one view says of rows that nothing was fitted to.

    Attributes:
        columns: [w] features that the view sees.
        weights: [q, w, k] and
        bias: [q, k] of the classifiers of q rounds.
        head: [q, k, c] from scores to log likelihoods.
        offset: [q, c], taken away from these.
    """

    columns: Array
    weights: Array
    bias: Array
    head: Array
    offset: Array

    def margins(self, phi: Array, label: Array) -> tuple[Array, Array]:
        """Margins [..., q] of rows [..., p] of some labels, and the last round's best other one."""
        exact = jax.lax.Precision.HIGHEST
        phi = phi[..., self.columns]
        margins = []
        for q in range(len(self.weights)):
            scores = jnp.matmul(phi, self.weights[q], precision=exact) + self.bias[q]
            log = jnp.matmul(scores, self.head[q], precision=exact) - self.offset[q]
            is_own = jnp.arange(log.shape[-1]) == label[..., None]
            own = jnp.take_along_axis(log, label[..., None], axis=-1)[..., 0]
            top, other = largest(jnp.where(is_own, -jnp.inf, log))
            known = jnp.isfinite(own) & jnp.isfinite(top)
            margins.append(jnp.where(known, top - own, 0.0))
        return jnp.stack(margins, axis=-1), other


class Judges(NamedTuple):
    """Judges of all views, and the features they see.

    Attributes:
        stage: Makes features of inputs.
        mean: [p] and
        scale: [p], which centre and scale them.
        views: One a view, the whole input first.
    """

    stage: Stage
    mean: HostArray
    scale: HostArray
    views: tuple[_Judge, ...]


def judged(x: Array, label: Array, judges: Judges) -> Array:
    """Margins, a view's rounds side by side, and the class the whole input is taken for.

    Args:
        x: [tiles, t, ...].
        label: [tiles, t].
        judges: What to ask.

    Returns:
        [tiles, t, views * q + 1].
    """
    phi = (judges.stage.fn(judges.stage.params, x) - judges.mean) * judges.scale
    said = [judge.margins(phi, label) for judge in judges.views]
    # the other views' best classes are not asked for: compiling drops a pass over all classes
    columns = [*(margins for margins, _ in said), said[0][1][..., None]]
    return jnp.concatenate([each.astype(jnp.float32) for each in columns], axis=-1)


def judge_block(block: Block, judges: Judges) -> Array:
    """What judges say of the rows of a block [tiles, t, views * q + 1]."""

    def part(block: Block) -> Array:
        label = jnp.broadcast_to(block.label[:, None], block.mask.shape)
        return judged(block.x, label, judges)

    return chunks.map_parts(part, block, chunks.FEW_ROWS)


def judges_of(equations: NormalEquations, rounds: Rounds, stage: Stage) -> Judges:
    """What a fit says of any row: its judges of all views, behind the stage of their features."""
    views = tuple(_view_judge(equations, rounds, i) for i in range(rounds.num_views))
    return Judges(stage, equations.mean, equations.scale, views)


def _view_judge(equations: NormalEquations, rounds: Rounds, view: int) -> _Judge:
    columns = np.flatnonzero(equations.columns[view])
    weights = rounds.weights[:, view].astype(np.float64)
    judges = [each[view] for each in rounds.judges]
    head = np.stack([judge.root @ judge.centre.T for judge in judges])
    kept, bias = weights[:, columns], weights[:, -1]
    if head.shape[2] <= head.shape[1]:  # as many scores as classes: one product does for both
        kept, bias = kept @ head, (bias[:, None] @ head)[:, 0]
        head = np.broadcast_to(np.eye(head.shape[2]), head.shape)
    offset = np.stack([judge.offset for judge in judges])
    single = (a.astype(np.float32) for a in (kept, bias, head, offset))
    return _Judge(columns.astype(np.int32), *single)


def features_of(stream: Stream, stage: Stage, rows: HostArray) -> HostArray:
    """Features of some rows."""
    return _batched(stream.take(rows), lambda x: _stage(stage, x[None])[0])


def judged_rows(stream: Stream, rows: HostArray, judges: Judges) -> HostArray:
    """What judges say of some rows [r, views * q + 1]."""
    judges = jax.device_put(judges)
    parts = []
    row_bytes = max(int(np.prod(stream.row_shape)) * stream.dtype.itemsize, 1)
    step = max(_HELD_BYTES // row_bytes // _BATCH, 1) * _BATCH
    for start in range(0, len(rows), step):
        mine = rows[start : start + step]
        labels = stream.labels[mine]
        parts.append(
            _batched(stream.take(mine), lambda x, y: _asked(x[None], y[None], judges)[0], labels)
        )
    return np.concatenate(parts)


def _batched(x: HostArray, fn: Callable[..., Array], *more: HostArray) -> HostArray:
    """A compiled function of some rows, a fixed number at a time: one compilation."""
    out: HostArray | None = None
    for start in range(0, len(x), _BATCH):
        some = (np.resize(a[start : start + _BATCH], (_BATCH, *a.shape[1:])) for a in (x, *more))
        seen = np.asarray(fn(*some))[: len(x) - start]
        if out is None:
            out = np.empty((len(x), seen.shape[1]), seen.dtype)
        out[start : start + len(seen)] = seen
    if out is None:
        raise ValueError("no rows to fit classifiers to")
    return out


def _run_stage(stage: Any, x: Array) -> Array:
    out: Array = stage.fn(stage.params, x)
    return out


_stage = compiled(_run_stage)
_asked = compiled(judged)
