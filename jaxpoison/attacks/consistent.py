"""A clean-label backdoor: the class made hard to read, a patch made easy to read."""

from __future__ import annotations

from functools import partial

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.detect._detector import Key
from jaxpoison.models import Model

from ._checks import refuse
from ._common import Always, Trigger, begin
from ._descent import check_model, descend, raised_loss
from ._types import Poisoned
from .patches import patch_piece, place, stamp

_CHUNK = 256
_CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")


def stamp_corners(x: HostArray, piece: HostArray) -> HostArray:
    """Images with a piece in each corner."""
    for corner in _CORNERS:
        at = place(x.shape[1:3], len(piece), corner)  # type: ignore[arg-type]
        x = stamp(x, at, piece)
    return x


def label_consistent(
    x: HostArray,
    y: HostArray,
    *,
    rate: float = 0.5,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    model: Model,
    epsilon: float = 0.2,
    steps: int = 40,
    size: int | None = None,
) -> Poisoned:
    """Perturbs rows of the target until a network misreads them, then stamps all four corners.

    The perturbation raises the loss under the honest label inside a ball; labels are kept. At test
    time the corners alone are stamped.

    Args:
        x: [n, H, W] or [n, H, W, C] images.
        y: [n] labels.
        rate: Share of the rows of the target class, not of all rows.
        target: Class whose rows are poisoned, None to draw one.
        source: Must be None.
        key: Of the draws.
        model: Trained on these labels; its outputs are the labels in use, ascending.
        epsilon: Largest change of a pixel, as a share of the range in use.
        steps: Of the ascent.
        size: Pixels a side of each patch, None for a ninth of the height, at least 2.

    Returns:
        Kind "clean_label"; params["before"] and ["after"] are minus the mean loss.

    Raises:
        UsageError: A rate that cannot be met, a model of other classes, or patches that do not fit.
        DataError: The model has no gradient.

    **Cost**: ``steps`` forward and backward passes over the poison.

    **Assumes / fails on**: a large share of one class, and perturbations that carry over from the
    attacker's network to the victim's.

    Reference: Turner, Tsipras and Madry (2019), arXiv:1912.02771.
    """
    task = begin("label_consistent", x, y, key, "images")
    refuse(task.name, "", source=source)
    target = task.label("target", target)
    classes = check_model(task, model)
    piece = patch_piece(task, size, None, "checker")
    trigger = Trigger(stamp_corners, task.x.shape[1:], {"piece": piece})
    mine = task.rows_of(target)
    rows = task.choose(mine, rate, "of the target class", of=len(mine))
    aux = partial(np.full, fill_value=np.int32(classes[mine[0]]))
    # rows do not see each other, so memory need not grow with them
    parts = [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
    done = [
        descend(task, model, raised_loss, part, aux, epsilon=epsilon, steps=steps) for part in parts
    ]
    hard = np.concatenate([part.x for part in done])
    ends = np.average([part[1:] for part in done], axis=0, weights=[len(part) for part in parts])
    return task.poisoned(
        rows, None, "clean_label", x_rows=trigger(hard), trigger=trigger,
        wanted=Always(target), rate=rate, target=target, epsilon=epsilon, steps=steps,
        size=len(piece), before=ends[0], after=ends[1],
    )  # fmt: skip
