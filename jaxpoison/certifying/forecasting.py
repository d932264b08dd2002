"""What a run will take, and what it may certify, before anything large is computed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpoison._check import JaxpoisonError, UsageError
from jaxpoison._types import HostArray
from jaxpoison.certify.choose import choose_k
from jaxpoison.certify.learners import ClosedForm
from jaxpoison.certifying.execute import ProgressFn, subsets_of
from jaxpoison.certifying.opening import Opened, open_data
from jaxpoison.certifying.plan import CertifyPlan
from jaxpoison.certifying.recipes import key_of, learner_of, threat_of
from jaxpoison.certifying.voting import rows_of_a_piece
from jaxpoison.stream import use_compile_cache

if TYPE_CHECKING:
    from jaxpoison.certify.learners import Learner
    from jaxpoison.certify.partitions import Partitions

_SAMPLE = 256  # rows whose features are timed
_SIDE = 512  # of a product that is timed
_TRIES = 5
_STARTUP = 8.0  # seconds for loading and compiling
_GRAM_ROWS = 1024  # test rows of a block of the Gram matrix
_PROFILE_SECONDS = 30.0  # of features, above which no profile is made
_VALIDATION = 500
_LEAST_ASIDE = 10
_LEAST_ROWS = 8  # in a subset of the largest k of the profile


def forecast(plan: CertifyPlan, *, progress: ProgressFn | None = None) -> dict[str, Any]:
    """Rows, models, memory and time of a run, and radii to expect at several k.

    Args:
        plan: What to do.
        progress: Called with (stage, done, total).

    Returns:
        "rows", "tests", "subsets", "k", "smallest" and "largest" subset, "bytes", "seconds" (None
        where members are trained by gradients), "profile" (a list of "k", "clean", "median" and
        "radii", or None) and "left_out" (why there is none).

    Raises:
        DataError: As the run would.
        UsageError: As the run would.

    **Cost**: the data read and hashed, features of 256 rows, and for the profile a few hundred
    small models; none where their features alone would take half a minute.

    **Assumes / fails on**: the profile is a forecast, not a certificate, and a k chosen by it on
    rows that an attacker may have touched is a choice that no certificate covers.
    """
    tell = progress or (lambda stage, done, total: None)
    use_compile_cache()
    tell("read", 0, 0)
    data = open_data(plan)
    parts = subsets_of(plan, data)
    threat_of(plan).allowed(parts.design)
    learner = learner_of(plan, data.schema)
    out = _counts(plan, data, parts)
    if not isinstance(learner, ClosedForm):
        out["left_out"] = f"learner {plan.learner} is trained by gradients, which takes long"
        return out
    tell("measure", 0, 0)
    each, width = _features(learner, data.train.x)
    out["bytes"] = _bytes(plan, data, parts, width)
    out["seconds"] = _seconds(data, parts, each, width)
    if each * len(data.train.x) > _PROFILE_SECONDS:
        out["left_out"] = f"features of all rows would take {each * len(data.train.x):.0f} seconds"
        return out
    tell("forecast", 0, 0)
    try:
        out["profile"] = _profile(plan, data, learner, parts.design.k)
    except JaxpoisonError as error:  # too few rows for it, say: the run itself may be fine
        out["left_out"] = str(error)
    return out


def _counts(plan: CertifyPlan, data: Opened, parts: Partitions) -> dict[str, Any]:
    sizes = parts.sizes
    return {
        "rows": len(data.train.x), "tests": len(data.test.x), "k": parts.design.k,
        "subsets": parts.design.num_subsets, "smallest": int(sizes.min()),
        "largest": int(sizes.max()), "bytes": _bytes(plan, data, parts, 0), "seconds": None,
        "profile": None, "left_out": None,
    }  # fmt: skip


def _profile(plan: CertifyPlan, data: Opened, learner: Learner, k: int) -> list[dict[str, Any]]:
    rows = len(data.train.x)
    aside = min(_VALIDATION, rows // 5, rows - k)
    if aside < _LEAST_ASIDE:
        raise UsageError(f"k of {k} leaves too few of {rows} rows to foretell by")
    most = (rows - aside) // _LEAST_ROWS
    ks = sorted({k, *(c for c in (k // 4, k // 2, 2 * k, 4 * k) if 8 <= c <= most)})
    found = choose_k(
        data.train.x, data.labels, learner, ks=ks,
        num_classes=data.num_classes, measure=2, members=24, num_validation=aside,
        key=key_of(plan), column=data.column, seed=plan.seed,
    )  # fmt: skip
    return [
        {
            "k": each.k, "clean": each.clean_accuracy, "median": each.median,
            "radii": {
                str(r): float(each.certified_accuracy([r])[0])
                for r in sorted({1, each.k // 10, each.k // 4})
            },
        }
        for each in found.forecasts
    ]  # fmt: skip


def _features(learner: ClosedForm, x: HostArray) -> tuple[float, int]:
    """Seconds a row, and how many values."""
    sample = x[:: max(1, len(x) // _SAMPLE)][:_SAMPLE]
    learner.features(sample[:1])  # filters are made once
    start = time.perf_counter()
    width = learner.features(sample).shape[1]
    return (time.perf_counter() - start) / len(sample), width


def _seconds(data: Opened, parts: Partitions, each: float, width: int) -> float:
    n, v = len(data.train.x), len(data.test.x)
    rate = 2 * _SIDE**3 / _fastest()
    solves = float((parts.sizes.astype(np.float64) ** 3).sum()) / 3
    taken = 2.0 * len(parts.rows) * v * data.num_classes
    return _STARTUP + each * (n + v) + (2.0 * n * v * width + solves + taken) / rate


def _fastest() -> float:
    """Seconds of a product of two squares, the least of some."""
    square = np.ones((_SIDE, _SIDE), np.float32)
    seconds = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        square @ square
        seconds.append(time.perf_counter() - start)
    return max(min(seconds), 1e-6)


def _bytes(plan: CertifyPlan, data: Opened, parts: Partitions, width: int) -> int:
    """Rows, their features, a block of the Gram matrix, models and the votes of a piece."""
    n, v, members = len(data.train.x), len(data.test.x), parts.design.num_subsets
    held = min(v, rows_of_a_piece(members, data.num_classes, plan.rule))
    votes = members * held * (1 + (data.num_classes if plan.rule == "run_off" else 0))
    models = 4 * len(parts.rows) * (data.num_classes + 2)
    rows = 2 * data.train.x.nbytes + data.test.x.nbytes
    return int(rows + 4 * width * (n + v) + 4 * n * _GRAM_ROWS + votes + models)
