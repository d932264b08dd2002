"""What poison does to a network, and what is left of it once rows are removed."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison._types import Array, Block, HostArray
from jaxpoison.attacks import Poisoned
from jaxpoison.evaluate.sets import Split
from jaxpoison.models import Model
from jaxpoison.sources import open_source
from jaxpoison.stream import Stream, make_mesh
from jaxpoison.training import Fitted, fit

FILTERS = ("poisoned", "flags", "perfect", "random")
_VISITED_ROWS = 60_000  # of one training, all epochs together
_FEWEST_EPOCHS, _MOST_EPOCHS = 2, 30


class Aim(NamedTuple):
    """Rows outside the training set that the attacker wants to see misjudged.

    Attributes:
        x: [m, ...] inputs, with the trigger where there is one.
        wanted: [m] int64 labels the attacker wants.
    """

    x: HostArray
    wanted: HostArray


def train(
    x: HostArray,
    y: HostArray,
    num_classes: int,
    *,
    seed: int,
    exclude: HostArray | None = None,
) -> Fitted:
    """A small network on some rows; as many epochs whatever is excluded."""
    epochs = int(np.clip(round(_VISITED_ROWS / len(y)), _FEWEST_EPOCHS, _MOST_EPOCHS))
    return fit(open_source(x), y, num_classes, epochs=epochs, seed=seed, exclude=exclude)


def closed_loop(
    poisoned: Poisoned | None, split: Split, flagged: HostArray, *, seed: int
) -> dict[str, dict[str, float | int | None]]:
    """Trains the same network on what four filters leave, and tests it on honest rows.

    Args:
        poisoned: The data as poisoned; None where nothing was planted.
        split: Honest rows, for the test.
        flagged: [n'] bool rows that the scan flagged.
        seed: Of the weights, the order and the random filter.

    Returns:
        For "poisoned" (nothing removed), "flags", "perfect" (the poisoned rows removed, cover
        rows kept) and "random" (as many rows as flags): rows removed, accuracy on honest test
        rows, and success, the share of the attacker's test rows given the label he wants (None
        where the attack wants no particular one).

    **Cost**: up to four trainings; equal filters are trained once.
    """
    x, y = (split.x, split.y) if poisoned is None else (poisoned.x, poisoned.y)
    num_classes = int(max(split.y.max(), y.max(), split.y_test.max())) + 1
    nothing = np.zeros(len(y), np.bool_)
    drawn = np.random.default_rng([seed, 14]).permutation(len(y))[: int(flagged.sum())]
    at_random = nothing.copy()
    at_random[drawn] = True
    perfect = nothing if poisoned is None else poisoned.mask
    removed = dict(zip(FILTERS, (nothing, flagged, perfect, at_random), strict=True))
    goal = None if poisoned is None else aim(poisoned, split)
    out: dict[str, dict[str, float | int | None]] = {}
    done: dict[bytes, dict[str, float | int | None]] = {}
    for name, drop in removed.items():
        if drop.tobytes() not in done:
            done[drop.tobytes()] = _result(x, y, num_classes, drop, split, goal, seed)
        out[name] = dict(done[drop.tobytes()])
    return out


def aim(poisoned: Poisoned, split: Split) -> Aim | None:
    """What the attacker shows, and the labels he wants for it.

    The victims of a targeted attack; else the test rows whose honest label is not the wanted one.
    """
    victims = poisoned.params.get("victims")
    if victims is not None and poisoned.target is not None:
        rows = np.asarray(victims, np.int64)
        return Aim(split.x[rows], np.full(len(rows), poisoned.target, np.int64))
    if poisoned.wanted is None:
        return None
    wanted = np.asarray(poisoned.wanted(split.y_test), np.int64)
    rows = np.flatnonzero(wanted != split.y_test)
    if not rows.size:
        return None
    x = split.x_test[rows]
    return Aim(x if poisoned.trigger is None else poisoned.trigger(x), wanted[rows])


def _result(
    x: HostArray,
    y: HostArray,
    num_classes: int,
    drop: HostArray,
    split: Split,
    goal: Aim | None,
    seed: int,
) -> dict[str, float | int | None]:
    removed = int(drop.sum())
    if drop.all():
        return {"removed": removed, "accuracy": None, "success": None}
    model = train(x, y, num_classes, seed=seed, exclude=drop).model
    right = predict(model, split.x_test, num_classes) == split.y_test
    success = None
    if goal is not None:
        success = float((predict(model, goal.x, num_classes) == goal.wanted).mean())
    return {"removed": removed, "accuracy": float(right.mean()), "success": success}


def predict(model: Model, x: HostArray, num_classes: int) -> HostArray:
    """The class of each row, [m] int64."""
    labels = np.zeros(len(x), np.int32)
    stream = Stream(open_source(x), labels, num_classes, make_mesh(1))
    logits: HostArray = np.asarray(stream.map(_logits, model))
    classes: HostArray = logits.argmax(axis=1)
    return classes.astype(np.int64)


def _logits(block: Block, model: Model) -> Array:
    def tile(x: Array) -> Array:
        return model.logits(model.params, x).astype(jnp.float32)

    # one tile at a time: a whole shard of feature maps would be a gigabyte
    logits: Array = jax.lax.map(tile, block.x)
    return logits
