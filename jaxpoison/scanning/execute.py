"""From a plan to a report."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from jaxpoison import calibrate
from jaxpoison._check import DataError, NothingToScan
from jaxpoison._types import OF_GRADIENTS, HostArray
from jaxpoison.models import Model
from jaxpoison.report import Report
from jaxpoison.scanning import evidence as gathering
from jaxpoison.scanning.assemble import Outcome, assemble
from jaxpoison.scanning.grow import grown
from jaxpoison.scanning.plan import Method, Resources, ScanPlan, name_of
from jaxpoison.scanning.ranking import ranked
from jaxpoison.scanning.rates import score_seconds, train_seconds
from jaxpoison.scanning.spaces import (
    ProgressFn,
    Space,
    input_space,
    last_space,
    layer_spaces,
    silent,
    witness_stream,
)
from jaxpoison.scanning.targets import Asked, read_targets, targets_in
from jaxpoison.scanning.trusted import require_enough, trusted_rows
from jaxpoison.scanning.verify import label_evidence, verify
from jaxpoison.sources import Source, open_source, require_labels
from jaxpoison.sources.inspect import Inspection, inspect
from jaxpoison.sources.views import DropRows
from jaxpoison.stream import Stream, make_mesh, use_compile_cache

_EMBEDDING_ENDINGS = (".parquet", ".arrow", ".feather")
_MIN_CLASS_ROWS = 8  # a class below this is left to no detector at all


class Opened(NamedTuple):
    """What was opened and found fit to scan."""

    source: Source
    features: Source | None
    labels: HostArray  # as given
    classes: HostArray  # distinct labels, ascending
    dense: HostArray  # [n] int32
    inspection: Inspection
    kept: HostArray  # input row numbers
    trusted: HostArray | None  # [n] bool
    asked: Asked | None = None  # predictions to be explained


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

    Returns:
        Verdict, scores and flags of every row.

    Raises:
        DataError: The data breaks a rule; the message names the row and the next step.
        UsageError: An argument makes no sense.
        NothingToScan: No class has enough rows.
    """
    plan = ScanPlan(
        data=name_of(x),
        labels=None if y is None else name_of(y),
        features=None if features is None else name_of(features),
        trusted=None if trusted is None else name_of(trusted),
        target=None if target is None else name_of(target),
        method=Method(
            detectors=None if detectors is None else tuple(detectors),
            seed=seed,
            fdr=fdr,
            drop_nonfinite=drop_nonfinite,
        ),
        resources=Resources(budget_mb=budget_mb),
    )
    source = open_source(x, y)
    rows = None if features is None else open_source(features, role="features")
    return _run(plan, source, rows, trusted, target, model, progress or silent)


def run(plan: ScanPlan, *, progress: ProgressFn | None = None) -> Report:
    """Opens what a plan names and scans it.

    Raises:
        DataError: A file can not be read or breaks a rule.
        NothingToScan: No class has enough rows.
    """
    source = open_source(plan.data, plan.labels)
    rows = None if plan.features is None else open_source(plan.features, role="features")
    return _run(plan, source, rows, plan.trusted, plan.target, None, progress or silent)


def _run(
    plan: ScanPlan,
    source: Source,
    rows: Source | None,
    trusted: Any,
    target: Any,
    model: Model | None,
    progress: ProgressFn,
) -> Report:
    started = time.perf_counter()
    use_compile_cache()
    loaded = gathering.load_user_detectors(plan.names)
    data = open_data(plan, source, rows, trusted, target, progress)
    mesh = make_mesh(plan.resources.devices)
    budget = plan.resources.budget_mb << 20
    raw = Stream(data.source, data.dense, len(data.classes), mesh, None, budget)
    spaces, model, trained, compiled = make_spaces(plan, data, raw, model, progress)
    told = _told(data, spaces, model)
    jobs, reasons = gathering.jobs_of(
        spaces, raw, model, plan.names, loaded, told, are_named=plan.method.detectors is not None
    )
    gathered = gathering.gather(jobs, plan.method.seed, progress)
    evidence = [each for each in gathered if each.detector not in calibrate.APART]
    size = int(np.prod(raw.row_shape))
    groups = gathering.groups_of(evidence, data.dense, size)
    witness = witness_stream(spaces[0], data.source)
    about_labels = label_evidence(jobs, plan.method.seed)
    judged = verify(plan, witness, groups, about_labels, size, progress)
    findings = grown(judged.findings, evidence, judged.opinion, data.dense, plan.method.fdr)
    verdict = calibrate.decide(findings, len(data.dense))
    fused = ranked(evidence, judged, verdict, data.dense)
    if data.trusted is not None:
        verdict, fused = calibrate.against_trusted(
            verdict, fused, data.dense, data.trusted, plan.method.fdr
        )
    total = time.perf_counter() - started
    timing = {"total": total, "compile": compiled, "train": trained, "score": total - trained}
    return assemble(
        Outcome(
            plan, data.source, data.labels, data.classes, data.dense, data.kept, data.trusted,
            data.inspection,
            spaces, gathered, reasons, groups, judged.checks, judged.opinion, verdict, fused,
            timing,
        )
    )  # fmt: skip


def _told(data: Opened, spaces: list[Space], model: Model | None) -> dict[str, dict[str, Any]]:
    """What some detectors are given besides rows."""
    told: dict[str, dict[str, Any]] = {}
    if data.asked is not None:
        told["influence"] = {"targets": targets_in(data.asked, last_space(spaces), model)}
    if data.trusted is not None:
        told["shapley"] = {"trusted": data.trusted}
    return told


def open_data(
    plan: ScanPlan, source: Source, rows: Source | None, trusted: Any, target: Any,
    progress: ProgressFn,
) -> Opened:  # fmt: skip
    """Reads everything once: fingerprint, finite values, labels, lengths.

    Args:
        plan: What was asked for.
        source: The data.
        rows: Features of it, if given.
        trusted: Rows known to be honest, if given.
        target: Predictions asked about, if given.
        progress: Told of rows read.

    Raises:
        DataError: The data breaks a rule.
        NothingToScan: No class has enough rows.
    """
    known = None if trusted is None else trusted_rows(trusted, len(source))
    if rows is not None and len(rows) != len(source):
        raise DataError(
            f"features: {rows.name} has {len(rows)} rows, the data {len(source)}; "
            "give one row of features for each row of data"
        )
    labels = require_labels(source)
    found = inspect(source, progress=lambda done, total: progress("read", done, total))
    bad = found.nonfinite
    if rows is not None:
        other = inspect(rows)
        bad = np.union1d(bad, other.nonfinite)
        if not plan.method.drop_nonfinite:
            other.require_finite(rows.name)
    if not plan.method.drop_nonfinite:
        found.require_finite(source.name)
    kept = np.arange(len(source))
    if len(bad):
        kept = np.delete(kept, bad)
        source, labels = DropRows(source, bad), labels[kept]
        rows = None if rows is None else DropRows(rows, bad)
        if known is not None:
            known = known[kept]
            require_enough(known)
    classes, dense = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(
            f"labels: only one class ({classes.tolist()}) in {source.name}; "
            "poison is found by comparing classes, give data of at least two"
        )
    if np.bincount(dense).max() < _MIN_CLASS_ROWS:
        raise NothingToScan(
            f"{source.name}: the largest class has {np.bincount(dense).max()} rows; "
            f"at least one class needs {_MIN_CLASS_ROWS}"
        )
    like, names = source if rows is None else rows, source.schema.class_names
    asked = None if target is None else read_targets(target, like, classes, names)
    dense = dense.astype(np.int32)
    return Opened(source, rows, labels, classes, dense, found, kept, known, asked)


def make_spaces(
    plan: ScanPlan, data: Opened, raw: Stream, model: Model | None, progress: ProgressFn
) -> tuple[list[Space], Model | None, float, float]:
    """The spaces and their network, with the seconds that training and its compiling took.

    Args:
        plan: What was asked for.
        data: Of ``open_data``.
        raw: Its rows.
        model: A network of the user, or None to train one where one is needed.
        progress: Told of rows trained on.
    """
    seed = plan.method.seed
    is_embedding = plan.data.endswith(_EMBEDDING_ENDINGS)
    if is_embedding and data.features is None and model is None:
        return [input_space(raw, data.source, seed, "features")], None, 0.0, 0.0
    spaces = [input_space(raw, data.source, seed)]
    if data.features is not None:
        given = Stream(data.features, data.dense, raw.num_classes, raw.mesh, None, raw.budget_bytes)
        space = input_space(given, data.features, seed, "features")
        return [*spaces, space._replace(is_learned=True)], None, 0.0, 0.0
    trained = compiled = 0.0
    fitted = None
    if model is None:
        from jaxpoison.training import fit

        fitted = fit(
            data.source, data.dense, raw.num_classes, epochs=plan.method.epochs, seed=seed,
            progress=progress,
        )  # fmt: skip
        model, trained, compiled = fitted.model, fitted.seconds, fitted.compile_seconds
    return [*spaces, *layer_spaces(raw, model, fitted)], model, trained, compiled


def forecast(plan: ScanPlan) -> dict[str, Any]:
    """What a scan would do: rows, passes over the data, device bytes, seconds.

    Reads only headers and labels. The seconds come from the shapes, at the rates of a machine of
    two cores; a faster one needs less.

    Raises:
        DataError: The data can not be opened.
    """
    source = open_source(plan.data, plan.labels)
    labels = require_labels(source)
    dense = np.unique(labels, return_inverse=True)[1].astype(np.int32)
    num_classes = int(dense.max()) + 1
    stream = Stream(source, dense, num_classes, make_mesh(plan.resources.devices))
    n, d = len(source), int(np.prod(stream.row_shape))
    wide = min(d, 1024)
    is_trained = plan.features is None and not plan.data.endswith(_EMBEDDING_ENDINGS)
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
