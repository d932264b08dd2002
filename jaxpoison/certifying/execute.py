"""A run of certified prediction: data, subsets, models, votes, certificates, report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray
from jaxpoison.certify.certificates import Certificates
from jaxpoison.certify.ensemble import Ensemble, fit_partitions
from jaxpoison.certify.learners import ClosedForm, GradientLearner
from jaxpoison.certify.partitions import partition
from jaxpoison.certify.verification import Verification, verify
from jaxpoison.certifying.document import make_report
from jaxpoison.certifying.opening import Opened, open_data
from jaxpoison.certifying.plan import CertifyPlan, default_k
from jaxpoison.certifying.recipes import key_of, learner_of, threat_of
from jaxpoison.certifying.voting import Count, Piece, pieces
from jaxpoison.report.files import check_out_dir
from jaxpoison.stream import Engine, open_engine, use_compile_cache
from jaxpoison.work import Work, saved_identity

if TYPE_CHECKING:
    from jaxpoison.certify.learners import Learner
    from jaxpoison.certify.partitions import Partitions
    from jaxpoison.report import CertificateReport

ProgressFn = Callable[[str, int, int], None]

_FEATURE_ROWS = 4096


def run_into(
    plan: CertifyPlan,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    check: bool = False,
    progress: ProgressFn | None = None,
    engine: str | Engine = "local",
) -> CertificateReport:
    """Certifies and writes the report; votes are kept beside it until it is whole.

    Args:
        plan: What to do.
        out: New or empty folder; with ``resume`` one that a run was cut off in.
        resume: Go on with the votes of that run, if it was one of the same plan.
        check: As in ``run``.
        progress: Called with (stage, done, total).
        engine: As in ``run``.

    Returns:
        The report.

    Raises:
        UsageError: The folder is in use, or holds votes of another plan.
        OutputError: It cannot be written to.
        DataError: As in ``run``.
    """
    folder = check_out_dir(out, resume=resume)

    def work_of(identity: dict[str, Any]) -> Work:
        return Work(folder, identity, resume=resume)

    saved = saved_identity(folder) if resume else None
    with _opened(engine) as opened:
        report, work = _run(plan, work_of, saved, check, progress or _silent, opened)
    report.write(folder, resume=True)
    if work is not None:
        work.remove()
    return report


def run(
    plan: CertifyPlan,
    *,
    check: bool = False,
    progress: ProgressFn | None = None,
    engine: str | Engine = "local",
) -> CertificateReport:
    """Certified predictions of the test rows of a plan.

    Args:
        plan: What to do.
        check: Refit a twentieth of the subsets and compare bits (``certify.verify``).
        progress: Called with (stage, done, total).
        engine: Where members are trained and asked: "local"; "ray" or "ray://HOST:PORT", a Ray
            cluster. Changes only the speed.

    Returns:
        Predictions, radii and all that they rest on.

    Raises:
        DataError: Data that breaks a rule, or test rows unlike the training rows.
        UsageError: Options that do not fit the data or each other.
        NothingToScan: No rows.

    **Cost**: the rows in memory, features of all of them, a model a subset, and one vote of each
    model on each test row, of which those on 2,048 rows are held at a time.
    """
    with _opened(engine) as opened:
        return _run(plan, None, None, check, progress or _silent, opened)[0]


def _opened(engine: str | Engine) -> AbstractContextManager[Engine]:
    if isinstance(engine, str) and engine.startswith("spmd"):
        raise UsageError(
            f"engine: {engine!r} is for scans; certify on one machine (local) or on a cluster "
            "(ray, ray://HOST:PORT)"
        )
    return open_engine(engine)


def _run(
    plan: CertifyPlan,
    work_of: Callable[[dict[str, Any]], Work] | None,
    saved: dict[str, Any] | None,
    check: bool,
    tell: ProgressFn,
    engine: Engine,
) -> tuple[CertificateReport, Work | None]:
    clock = _Clock()
    use_compile_cache()
    tell("read", 0, 0)
    data = open_data(plan)
    clock.mark("read")
    ensemble = _ensemble(plan, data, saved, tell, clock)
    identity = _identity(plan, data, ensemble)
    work = None if work_of is None else work_of(identity)
    threat = threat_of(plan)
    count = Count(plan.rule, threat, data.test.y)
    members, tests = ensemble.partitions.design.num_subsets, len(data.test.x)

    def told(votes: int) -> None:
        tell("vote", votes // members, tests)

    found = list(pieces(ensemble, data.test.x, count, work, told, engine))
    clock.mark("votes and certificates")
    checked: Verification | None = None
    if check:
        tell("verify", 0, 0)
        checked = verify(ensemble, data.train.x, data.labels, seed=plan.seed)
        clock.mark("verify")
    certificates = _joined(found, ensemble, plan, data)
    runner_up = np.concatenate([piece.runner_up for piece in found])
    base = sum(piece.right for piece in found) / (members * tests)
    report = make_report(
        plan, data, ensemble, certificates, runner_up, base, clock.seconds, checked,
        0 if work is None else work.reused,
    )  # fmt: skip
    return report, work


def _ensemble(
    plan: CertifyPlan, data: Opened, saved: dict[str, Any] | None, tell: ProgressFn, clock: _Clock
) -> Ensemble:
    tell("partition", 0, 0)
    parts = subsets_of(plan, data)
    threat_of(plan).allowed(parts.design)
    clock.mark("partition")
    learner = _chosen(learner_of(plan, data.schema), data, saved)
    features = None
    if isinstance(learner, ClosedForm):
        features = _features(learner, data.train.x, tell)
        clock.mark("features")
    tell("fit", 0, 0)
    ensemble = fit_partitions(parts, learner, num_classes=data.num_classes, features=features)
    clock.mark("fit")
    return ensemble


def _features(learner: ClosedForm, x: HostArray, tell: ProgressFn) -> HostArray:
    """Features of all rows, some at a time; they are of each row alone, so that changes no bit."""
    first = learner.features(x[:_FEATURE_ROWS])
    out = np.empty((len(x), first.shape[1]), np.float32)
    out[: len(first)] = first
    for start in range(len(first), len(x), _FEATURE_ROWS):
        tell("features", start, len(x))
        out[start : start + _FEATURE_ROWS] = learner.features(x[start : start + _FEATURE_ROWS])
    return out


def subsets_of(plan: CertifyPlan, data: Opened) -> Partitions:
    """The partitions of a plan."""
    k = plan.k or default_k(len(data.train.x))
    return partition(
        data.train.x, data.labels, k=k, spread=plan.d, key=key_of(plan), column=data.column
    )


def _chosen(learner: Learner, data: Opened, saved: dict[str, Any] | None) -> Learner:
    """The learner with a program for its members, which bits depend on: the saved run's, if any."""
    if not isinstance(learner, GradientLearner):
        return learner
    held = ((saved or {}).get("learner") or {}).get("settings") or {}
    if held.get("strategy") in ("vmap", "map", "steps"):
        return replace(learner, strategy=held["strategy"])
    row = data.test.x[:1] if learner.features is None else learner.features(data.test.x[:1])
    return learner.measured(row.shape[1:], row.dtype, data.num_classes)


def _identity(plan: CertifyPlan, data: Opened, ensemble: Ensemble) -> dict[str, Any]:
    """All that decides the votes."""
    manifest = ensemble.manifest()
    learner = manifest["learner"]
    # What was measured in this process is no setting; the strategy in use is one.
    learner["settings"].pop("measured", None)
    learner.pop("digest")
    return {
        **manifest, "rule": plan.rule,
        "test": {"fingerprint": data.test.fingerprint, "rows": len(data.test.x),
                 "share": plan.share, "seed": None if plan.share is None else plan.seed},
    }  # fmt: skip


def _joined(
    found: list[Piece], ensemble: Ensemble, plan: CertifyPlan, data: Opened
) -> Certificates:
    design, threat = ensemble.partitions.design, threat_of(plan)
    columns = [
        np.concatenate([getattr(piece, name) for piece in found])
        for name in ("prediction", "radius", "first", "second")
    ]
    return Certificates(
        columns[0], columns[1], columns[2], columns[3], rule=plan.rule, threat=threat,
        costs=threat.costs(design), design=design,
    )  # fmt: skip


class _Clock:
    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._marks: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self._marks[stage] = now - self._last
        self._last = now

    @property
    def seconds(self) -> dict[str, float]:
        return {**self._marks, "total": time.perf_counter() - self._start}


def _silent(stage: str, done: int, total: int) -> None:
    """Shows nothing."""
