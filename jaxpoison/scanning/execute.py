"""From a plan to a report."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxpoison import calibrate
from jaxpoison._types import OF_GRADIENTS, USER_PREFIX
from jaxpoison.detect import registry
from jaxpoison.models import Model
from jaxpoison.report import Report
from jaxpoison.scanning import evidence as gathering
from jaxpoison.scanning.assemble import Outcome, assemble
from jaxpoison.scanning.grow import grown
from jaxpoison.scanning.labelling import label_evidence
from jaxpoison.scanning.naming import named
from jaxpoison.scanning.opening import Opened, make_spaces, open_data
from jaxpoison.scanning.plan import Method, Resources, ScanPlan, name_of
from jaxpoison.scanning.ranking import ranked
from jaxpoison.scanning.rates import score_seconds, train_seconds
from jaxpoison.scanning.running import Running, digest_of, running
from jaxpoison.scanning.spaces import (
    ProgressFn,
    Space,
    last_space,
    plain_inputs,
    silent,
    witness_stream,
)
from jaxpoison.scanning.targets import targets_in
from jaxpoison.scanning.verify import verify
from jaxpoison.sources import Source, is_embedding, open_source, require_labels
from jaxpoison.stream import Engine, Stream, digest_of_value, make_mesh, use_compile_cache


def scan(
    x: Any,
    y: Any = None,
    *,
    features: Any = None,
    trusted: Any = None,
    target: Any = None,
    model: Model | None = None,
    detectors: tuple[str, ...] | list[str] | None = None,
    seed: int = 0,
    fdr: float = 0.05,
    drop_nonfinite: bool = False,
    budget_mb: int = 2048,
    progress: ProgressFn | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    engine: str | Engine = "local",
) -> Report:
    """Looks for poison in a dataset; needs no known rate, no clean set, no known attack.

    Args:
        x: Images [n, H, W] or [n, H, W, C] uint8, rows [n, d], or the name of a dataset or file.
        y: Labels [n], integers, or the name of a file; None where x holds them.
        features: [n, d] of a network of your own, or a file of them; no network is trained then.
        trusted: Rows that are known to be honest, as drawn at random from the honest ones: their
            numbers, a mask [n] bool, or the name of a file of either (.npy, or .txt or .csv with
            one number a line). p-values are then conformal against them, rows whose q-value is at
            most ``fdr`` are flagged too, and trusted rows never are.
        target: Predictions to ask about: an .npz file with members x and y, or a pair (x, y), x
            inputs as the data (features where features are given), y the labels that the model gave
            them or that are in dispute. The column ``influence`` then says how far each row is
            responsible, in nats; it has no part in the verdict.
        model: Your own network over x (``jaxpoison.models``); none is trained then.
        detectors: Names of ``jaxpoison._types.DETECTORS``, "all", or "user:NAME" for one of
            another package; None for the usual ones.
        seed: Of everything random.
        fdr: Share of false alarms allowed among the flagged rows: mean local rate of findings,
            and q-value where rows are trusted.
        drop_nonfinite: Leave out rows with NaN or infinite values instead of refusing them.
        budget_mb: Memory for rows held between passes; changes only the speed.
        progress: Called with (stage, rows done, rows in all).
        out: New or empty folder that the report is written to. What is done of the scan is kept
            there until then, so that one that was cut off can go on; None keeps nothing.
        resume: Go on with what ``out`` holds of the same scan; the result is the same to the bit.
        engine: "local", all devices of this process; "spmd", those of all processes that run this
            program together; "ray" or "ray://HOST:PORT", a Ray cluster. Changes only the speed.

    Returns:
        Verdict, scores and flags of every row.

    Raises:
        DataError: The data breaks a rule; the message names the row and the next step.
        UsageError: An argument makes no sense, or ``out`` holds another scan.
        NothingToScan: No class has enough rows.
        OutputError: ``out`` can not be written to.
    """
    plan = ScanPlan(
        data=name_of(x),
        labels=None if y is None else name_of(y),
        features=None if features is None else name_of(features),
        trusted=None if trusted is None else name_of(trusted),
        target=None if target is None else name_of(target),
        method=Method(
            detectors=_as_names(detectors),
            seed=seed,
            fdr=fdr,
            drop_nonfinite=drop_nonfinite,
        ),
        resources=Resources(budget_mb=budget_mb),
    )
    with running(engine, out, resume=resume) as how:
        source = open_source(x, y)
        rows = None if features is None else open_source(features, role="features")
        return _run(plan, source, rows, trusted, target, model, progress or silent, how)


def _as_names(detectors: Any) -> Any:
    """Any collection of names as a tuple; anything else for the plan to refuse."""
    is_many = isinstance(detectors, Iterable) and not isinstance(detectors, str)
    return tuple(detectors) if is_many else detectors


def run(
    plan: ScanPlan,
    *,
    progress: ProgressFn | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    engine: str | Engine = "local",
) -> Report:
    """Opens what a plan names and scans it.

    Args:
        plan: What to do.
        progress: Called with (stage, rows done, rows in all).
        out: As in ``scan``.
        resume: As in ``scan``.
        engine: As in ``scan``.

    Raises:
        DataError: A file can not be read or breaks a rule.
        NothingToScan: No class has enough rows.
        UsageError: ``out`` holds another scan, or the engine is not there.
        OutputError: ``out`` can not be written to.
    """
    with running(engine, out, resume=resume, devices=plan.resources.devices) as how:
        source = open_source(plan.data, plan.labels)
        rows = None if plan.features is None else open_source(plan.features, role="features")
        return _run(plan, source, rows, plan.trusted, plan.target, None, progress or silent, how)


def _run(
    plan: ScanPlan,
    source: Source,
    rows: Source | None,
    trusted: Any,
    target: Any,
    model: Model | None,
    progress: ProgressFn,
    how: Running,
) -> Report:
    started = time.perf_counter()
    use_compile_cache()
    loaded = gathering.load_user_detectors(plan.names)
    data = open_data(plan, source, rows, trusted, target, progress, how.engine)
    of_model = None if model is None else digest_of_value(model)
    # what can not be named can not be told from another one, so nothing is kept of it
    is_known = model is None or of_model is not None
    work = how.work(_identity(plan, data, of_model)) if is_known else None
    journal = how.journal(work)
    raw = Stream(
        data.source, data.dense, len(data.classes), make_mesh(plan.resources.devices),
        budget_bytes=plan.resources.budget_mb << 20, engine=how.engine, journal=journal,
        identity=data.identity(data.inspection.fingerprint),
    )  # fmt: skip
    # Orbax waits for all processes, so the state of a training is kept where there is one
    states = work if how.engine.num_processes == 1 else None
    spaces, model, trained, compiled = make_spaces(plan, data, raw, model, progress, states)
    told = _told(data, spaces, model)
    jobs, reasons = gathering.jobs_of(
        spaces, raw, model, plan.names, loaded, told, are_named=plan.method.detectors is not None
    )
    gathered = gathering.gather(jobs, plan.method.seed, progress, journal)
    evidence = [each for each in gathered if each.detector not in calibrate.APART]
    size = int(np.prod(raw.row_shape))
    groups = gathering.groups_of(evidence, data.dense, size)
    witness = witness_stream(spaces[0], data.source)
    about_labels = label_evidence(jobs, plan.method.seed)
    for stream in (raw, *(job.stream for job in jobs)):
        stream.forget()
    judged = verify(plan, witness, groups, about_labels, size, spaces[0].own_units, progress)
    findings = grown(judged.findings, evidence, judged.opinion, data.dense, plan.method.fdr)
    verdict = calibrate.decide(findings, len(data.dense))
    fused = ranked(evidence, judged, verdict, data.dense)
    if data.trusted is not None:
        verdict, fused = calibrate.against_trusted(
            verdict, fused, data.dense, data.trusted, plan.method.fdr
        )
    inputs = plain_inputs(spaces[0], data.source)
    names = named(verdict.findings, verdict.flagged, inputs, judged.opinion)
    verdict = verdict._replace(findings=names)
    total = time.perf_counter() - started
    timing = {"total": total, "compile": compiled, "train": trained, "score": total - trained}
    report = assemble(
        Outcome(
            plan, data.source, data.labels, data.classes, data.dense, data.kept, data.trusted,
            data.inspection,
            spaces, gathered, reasons, groups, judged.checks, judged.opinion, verdict, fused,
            timing,
        )
    )  # fmt: skip
    how.write(report, work)
    return report


def _identity(plan: ScanPlan, data: Opened, of_model: str | None) -> dict[str, Any]:
    """All of the data and the plan that decides the result."""
    asked = plan.as_dict()
    asked.pop("resources")
    targets = None if data.asked is None else data.asked.source.fingerprint()
    return {
        "plan": asked,
        "data": {"fingerprint": data.inspection.fingerprint, "kept": digest_of(data.kept)},
        "features": data.of_features,
        "trusted": digest_of(data.trusted),
        "target": targets,
        "model": of_model,
    }


def _told(data: Opened, spaces: list[Space], model: Model | None) -> dict[str, dict[str, Any]]:
    """What some detectors are given besides rows."""
    told: dict[str, dict[str, Any]] = {}
    if data.asked is not None:
        told["influence"] = {"targets": targets_in(data.asked, last_space(spaces), model)}
    if data.trusted is not None:
        told["shapley"] = {"trusted": data.trusted}
    return told


def forecast(plan: ScanPlan) -> dict[str, Any]:
    """What a scan would do: rows, passes over the data, device bytes, seconds.

    Reads only headers and labels. The seconds come from the shapes, at the rates of a machine of
    two cores; a faster one needs less.

    Raises:
        DataError: The data can not be opened.
        UsageError: A detector is not installed.
    """
    for name in plan.names:
        if name.startswith(USER_PREFIX):
            registry.require(name.removeprefix(USER_PREFIX))
    source = open_source(plan.data, plan.labels)
    labels = require_labels(source)
    dense = np.unique(labels, return_inverse=True)[1].astype(np.int32)
    num_classes = int(dense.max()) + 1
    stream = Stream(source, dense, num_classes, make_mesh(plan.resources.devices))
    n, d = len(source), int(np.prod(stream.row_shape))
    wide = min(d, 1024)
    is_trained = plan.features is None and not is_embedding(source)
    names = plan.names
    if plan.method.detectors is None and not is_trained:
        names = tuple(name for name in names if name not in OF_GRADIENTS)
    block = stream.resident_bytes // max(stream.num_shards, 1)
    held = min(stream.resident_bytes, plan.resources.budget_mb << 20)
    moments = 4 * num_classes * wide * wide
    visits = n * float(np.clip(100_000 / n, 2, 40)) if is_trained else 0.0
    visits = min(visits, 100_000)
    training = train_seconds(visits, source.schema.kind, d) if is_trained else 0.0
    return {
        "rows": n,
        "passes": 6 + 2 * len(names),
        "device_bytes": held + 3 * block + 2 * moments,
        "seconds": training + score_seconds(names, n),
    }
