"""Which rows one prediction comes from."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

import jaxpoison
from jaxpoison._check import DataError, UsageError
from jaxpoison._types import HostArray
from jaxpoison.detect._head import MAX_SOLVED, Head, fit_head, mean_responsibility, probabilities
from jaxpoison.detect.influence import features_of
from jaxpoison.models import Model
from jaxpoison.report import Example, Explanation, Pictures, class_names_of
from jaxpoison.scanning.opening import Opened, make_spaces, open_data
from jaxpoison.scanning.plan import Method, Resources, ScanPlan, name_of
from jaxpoison.scanning.spaces import ProgressFn, Space, last_space, silent
from jaxpoison.sources import open_source
from jaxpoison.stream import LocalEngine, Stream, make_mesh, use_compile_cache

MAX_TOP = 100
"""Rows of each kind that an explanation can list."""

_VALUES = 24  # of a row of features that is shown
_LISTED_CLASSES = 60
_DIMMEST = 64  # brightest pixel below which images are stretched to be seen


class _Found(NamedTuple):
    """What the head says of the row and of all others, in their order in the data."""

    head: Head
    place: int  # of the row
    scores: HostArray  # [n], 0 for the row itself
    own: float
    form: str
    residual: float
    num_features: int


def explain(
    x: Any,
    y: Any = None,
    *,
    row: int,
    features: Any = None,
    model: Model | None = None,
    top: int = 8,
    seed: int = 0,
    drop_nonfinite: bool = False,
    budget_mb: int = 2048,
    progress: ProgressFn | None = None,
) -> Explanation:
    """Finds the rows that most help and most harm the prediction of one row of the data.

    A network is trained on the data as a scan does (or yours is taken, or your features), and its
    last layer fitted to its minimum. The score of each other row is the predicted change of this
    row's loss at its given label, in nats, when the other row is removed and the last layer fitted
    again: positive, helpful; negative, harmful. The row's influence on itself is given apart.

    Args:
        x: Images [n, H, W] or [n, H, W, C] uint8, rows [n, d], or the name of a dataset or file.
        y: Labels [n], or the name of a file; None where x holds them.
        row: Number of the row to explain, counted from 0.
        features: [n, d] of a network of your own, or a file of them; no network is trained then.
        model: Your own network over x (``jaxpoison.models``); none is trained then.
        top: Helpful and harmful rows to list, 1 to 100 each.
        seed: Of the training.
        drop_nonfinite: Leave out rows with NaN or infinite values instead of refusing them.
        budget_mb: Memory for rows held between passes; changes only the speed.
        progress: Called with (stage, rows done, rows in all).

    Returns:
        The rows with their scores, to be shown or written.

    Raises:
        DataError: The data breaks a rule, or has no such row.
        UsageError: An argument makes no sense.
        NothingToScan: No class has enough rows.

    **Cost**: a training; a head of c (d + 1) weights, c - 1 linear systems in it, and the leverages
    of all rows where it has at most 2,048 weights (else scores lack the correction for rows that
    determine their own fit, and ``method.form`` says so).

    **Assumes / fails on**: what a row did to the features is not seen, only what it does to the
    last layer. One of many copies of a row hardly matters alone.

    Reference: Koh and Liang, 2017, arXiv:1703.04730; Rad and Maleki, 2020, arXiv:1801.10243.
    """
    started = time.perf_counter()
    row, top = _integer("row", row, 0, None), _integer("top", top, 1, MAX_TOP)
    tell = progress or silent
    plan = ScanPlan(
        data=name_of(x),
        labels=None if y is None else name_of(y),
        features=None if features is None else name_of(features),
        method=Method(seed=seed, drop_nonfinite=drop_nonfinite),
        resources=Resources(budget_mb=budget_mb),
    )
    source = open_source(x, y)
    if row >= len(source):
        raise DataError(
            f"row: {row}; {source.name} has {len(source)} rows, numbered from 0 to "
            f"{len(source) - 1}"
        )
    use_compile_cache()
    rows = None if features is None else open_source(features, role="features")
    mesh = make_mesh()
    data = open_data(plan, source, rows, None, None, tell, LocalEngine(mesh))
    place = int(np.searchsorted(data.kept, row))
    if place == len(data.kept) or data.kept[place] != row:
        raise DataError(f"row: {row} holds NaN or infinity and was left out; explain another one")
    c = len(data.classes)
    raw = Stream(data.source, data.dense, c, mesh, None, budget_mb << 20)
    spaces, _, trained, _ = make_spaces(plan, data, raw, model, tell)
    space = last_space(spaces)
    found = _found(space, data, place)
    tell("explain", len(data.dense), len(data.dense))
    chosen = _chosen(found, top)
    timing = {"total": time.perf_counter() - started, "train": trained}
    return Explanation(
        document=_document(data, found, chosen, plan, space.name, row, top, timing),
        index=data.kept.astype(np.int64),
        scores=found.scores,
        pictures=_pictures(data, raw, found, chosen),
    )


def _found(space: Space, data: Opened, place: int) -> _Found:
    c = len(data.classes)
    features = features_of(space.stream)
    num_features = features.shape[1]
    if 2 * c > MAX_SOLVED:
        raise DataError(
            f"{data.source.name}: {c} classes; a head can be solved for at most {MAX_SOLVED // 2}: "
            "explain within fewer classes"
        )
    if c * (num_features + 1) > MAX_SOLVED:
        directions = MAX_SOLVED // c - 1
        drawn = np.random.default_rng(0).standard_normal((num_features, directions), np.float32)
        features = features @ (drawn / np.float32(np.sqrt(directions)))
    head = fit_head(features, data.dense, c, name=f"{space.name} features")
    asked = mean_responsibility(head, head.rows[place : place + 1], data.dense[place : place + 1])
    scores = asked.scores.copy()
    own = float(head.own[place]) if head.is_corrected else float(scores[place])
    scores[place] = 0.0
    return _Found(head, place, scores, own, asked.form, asked.residual, num_features)


def _chosen(found: _Found, top: int) -> tuple[list[int], list[int]]:
    """The most helpful and the most harmful rows, strongest first; ties in the order of rows."""
    order = np.argsort(-found.scores, kind="stable")
    helpful = [int(k) for k in order[:top] if found.scores[k] > 0]
    order = np.argsort(found.scores, kind="stable")
    return helpful, [int(k) for k in order[:top] if found.scores[k] < 0]


def _document(
    data: Opened, found: _Found, chosen: tuple[list[int], list[int]], plan: ScanPlan, space: str,
    row: int, top: int, timing: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    head, schema = found.head, data.source.schema
    names = class_names_of(data.classes, schema.class_names)
    helpful, harmful = ([_entry(data, found, k, names) for k in rows] for rows in chosen)
    return {
        "schema": "jaxpoison.explanation/1",
        "version": jaxpoison.__version__,
        "source": {
            "name": data.source.name,
            "fingerprint": data.inspection.fingerprint,
            "kind": schema.kind,
            "shape": [int(side) for side in schema.shape],
            "dtype": schema.dtype,
        },
        "n_samples": len(data.dense),
        "n_classes": len(data.classes),
        "n_dropped": int(data.inspection.num_rows - len(data.dense)),
        "unit": "predicted change of the loss of the row, in nats, when the other row is removed",
        "row": _prediction(data, found, row, names),
        "helpful": helpful,
        "harmful": harmful,
        "classes": _by_class(data, found, names),
        "method": {
            "form": found.form,
            "space": space,
            "features": found.num_features,
            "directions": head.rows.shape[1] - 1,
            "damping": head.damping,
            "gradient": head.gradient,
            "residual": float(min(found.residual, 1.0)),
        },
        "timing": {name: round(value, 4) for name, value in timing.items()},
        "seed": plan.method.seed,
        "plan": {
            "data": plan.data, "labels": plan.labels, "features": plan.features, "row": row,
            "top": top, "seed": plan.method.seed, "drop_nonfinite": plan.method.drop_nonfinite,
        },
    }  # fmt: skip


def _prediction(data: Opened, found: _Found, row: int, names: list[str]) -> dict[str, Any]:
    """What the head says of the row itself."""
    p = probabilities(found.head, found.head.rows[found.place : found.place + 1])[0]
    own, guess = int(data.dense[found.place]), int(p.argmax())
    return {
        "index": row,
        "label": int(data.classes[own]),
        "class_name": names[own],
        "predicted": int(data.classes[guess]),
        "predicted_name": names[guess],
        "probability": float(p[own]),
        "predicted_probability": float(p[guess]),
        "loss": float(-np.log(max(float(p[own]), 1e-300))),
        "self_influence": found.own,
    }


def _entry(data: Opened, found: _Found, k: int, names: list[str]) -> dict[str, Any]:
    return {
        "index": int(data.kept[k]),
        "label": int(data.classes[data.dense[k]]),
        "class_name": names[int(data.dense[k])],
        "score": float(found.scores[k]),
    }


def _by_class(data: Opened, found: _Found, names: list[str]) -> list[dict[str, Any]]:
    """Sums over the rows of each class, the largest first."""
    c = len(data.classes)
    rows = np.bincount(data.dense, minlength=c)
    total, harm = (
        np.bincount(data.dense, weights=part.astype(np.float64), minlength=c)
        for part in (found.scores, np.minimum(found.scores, 0.0))
    )
    order = np.argsort(-np.abs(total), kind="stable")[:_LISTED_CLASSES]
    return [
        {
            "label": int(data.classes[k]),
            "class_name": names[int(k)],
            "rows": int(rows[k]),
            "score": float(total[k]),
            "harm": float(harm[k]),
        }
        for k in order
    ]


def _pictures(
    data: Opened, raw: Stream, found: _Found, chosen: tuple[list[int], list[int]]
) -> Pictures:
    places = [found.place, *chosen[0], *chosen[1]]
    x = raw.take(np.array(places))
    is_image = data.source.schema.kind == "images"
    examples = tuple(
        Example(
            index=int(data.kept[k]),
            label=int(data.classes[data.dense[k]]),
            suspicion=found.own if k == found.place else float(found.scores[k]),
            p=1.0,
            q=1.0,
            flagged=bool(found.scores[k] < 0),
            kind="",
            image=_bright(x[i]) if is_image else None,
            values=None if is_image else x[i][:_VALUES].astype(np.float64),
        )
        for i, k in enumerate(places)
    )
    names = [""] * (int(data.classes.max()) + 1) if data.classes.max() < 1 << 20 else []
    if names:
        shown = class_names_of(data.classes, data.source.schema.class_names)
        for label, name in zip(data.classes.tolist(), shown, strict=True):
            names[label] = name
    return Pictures((), (), examples, tuple(names))


def _bright(image: HostArray) -> HostArray:
    """Grey images that use a small part of the range (such as 0..16) are stretched to be seen."""
    if image.ndim == 3 or int(image.max(initial=0)) > _DIMMEST:
        return image
    return (image.astype(np.uint16) * 15).clip(0, 255).astype(np.uint8)


def _integer(name: str, value: Any, low: int, high: int | None) -> int:
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or value < low or (high is not None and value > high):
        most = "" if high is None else f" to {high}"
        raise UsageError(f"{name}: {value!r}; give a whole number from {low}{most}")
    return int(value)
