"""From a plan to a report."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpoison import calibrate, detect
from jaxpoison._check import DataError, NothingToScan
from jaxpoison._types import DETECTOR_NAMES, Exclusion, HostArray
from jaxpoison.models import Model
from jaxpoison.report import Report
from jaxpoison.scanning import evidence as gathering
from jaxpoison.scanning.assemble import Outcome, assemble
from jaxpoison.scanning.plan import Method, Resources, ScanPlan
from jaxpoison.scanning.spaces import ProgressFn, Space, input_space, layer_spaces, witness_stream
from jaxpoison.sources import Source, open_source, require_labels
from jaxpoison.sources.inspect import Inspection, inspect
from jaxpoison.sources.views import DropRows
from jaxpoison.stream import Stream, make_mesh, use_compile_cache

_EMBEDDING_ENDINGS = (".parquet", ".arrow", ".feather")
_DISPUTED_ROWS = 2000  # of a class whose displacement is looked at
_MIN_CLASS_ROWS = 8  # a class below this is left to no detector at all


class _Data(NamedTuple):
    """What was opened and found fit to scan."""

    source: Source
    features: Source | None
    labels: HostArray  # as given
    classes: HostArray  # distinct labels, ascending
    dense: HostArray  # [n] int32
    inspection: Inspection
    kept: HostArray  # input row numbers


def scan(
    x: Any,
    y: Any = None,
    *,
    features: Any = None,
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
        model: Your own network over x (``jaxpoison.models``); none is trained then.
        detectors: Names, None for all.
        seed: Of everything random.
        fdr: Mean local false discovery rate allowed among the flagged rows.
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
        data=_name(x),
        labels=None if y is None else _name(y),
        features=None if features is None else _name(features),
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
    return _run(plan, source, rows, model, progress or _silent)


def run(plan: ScanPlan, *, progress: ProgressFn | None = None) -> Report:
    """Opens what a plan names and scans it.

    Raises:
        DataError: A file can not be read or breaks a rule.
        NothingToScan: No class has enough rows.
    """
    source = open_source(plan.data, plan.labels)
    rows = None if plan.features is None else open_source(plan.features, role="features")
    return _run(plan, source, rows, None, progress or _silent)


def _silent(stage: str, done: int, total: int) -> None:
    """Shows nothing."""


def _name(value: Any) -> str:
    return str(value) if isinstance(value, str) or hasattr(value, "__fspath__") else "<array>"


def _run(
    plan: ScanPlan, source: Source, rows: Source | None, model: Model | None, progress: ProgressFn
) -> Report:
    started = time.perf_counter()
    use_compile_cache()
    data = _open(plan, source, rows, progress)
    mesh = make_mesh(plan.resources.devices)
    budget = plan.resources.budget_mb << 20
    raw = Stream(data.source, data.dense, len(data.classes), mesh, None, budget)
    spaces, trained, compiled = _spaces(plan, data, raw, model, progress)
    evidence = gathering.gather(spaces, plan.method.detectors, plan.method.seed, progress)
    groups = gathering.groups_of(evidence, data.dense)
    witness = witness_stream(spaces[0], data.source)
    checks, findings = _verify(plan, witness, groups, progress)
    verdict = calibrate.decide(findings, len(data.dense))
    fused = calibrate.fuse(
        [e.log10_p for e in evidence],
        [e.gate.open for e in evidence],
        data.dense,
        verdict.log_odds,
        verdict.flagged,
    )
    total = time.perf_counter() - started
    timing = {"total": total, "compile": compiled, "train": trained, "score": total - trained}
    return assemble(
        Outcome(
            plan, data.source, data.labels, data.classes, data.dense, data.kept, data.inspection,
            spaces, evidence, groups, checks, verdict, fused, timing,
        )
    )  # fmt: skip


def _verify(
    plan: ScanPlan, witness: Stream, groups: list[calibrate.Group], progress: ProgressFn
) -> tuple[list[Exclusion], list[calibrate.Finding]]:
    """Asks of every group where its rows belong, and redraws the boundary of what is confirmed.

    Groups come from the detectors' gates, and from rows that a classifier gives another label
    out of fold, where some of those share a shift.
    """
    progress("verify", 0, len(witness))
    check = detect.ExclusionCheck()
    fitted = check.fit(witness, key=jax.random.fold_in(jax.random.key(plan.method.seed), 1))
    disputed = gathering.disputed(witness.labels, fitted.agrees)
    shifted = detect.refine(witness, fitted, disputed, is_mixed=True)
    groups += calibrate.shifted_groups(witness.labels, shifted)
    sets, number = gathering.distinct(groups)
    judged = check.check(witness, fitted, sets)
    checks = [judged[i] for i in number]
    fdr = plan.method.fdr
    findings = calibrate.find(groups, checks, num_classes=witness.num_classes, fdr=fdr)
    confirmed = [found for found in findings if found.confirmed]
    drawn = detect.refine(witness, fitted, [found.rows for found in confirmed])
    anew = [
        found if new is None else calibrate.redraw(found, new, fdr)
        for found, new in zip(confirmed, drawn, strict=True)
    ]
    anew = _extended(witness, fitted, disputed, anew)
    progress("verify", len(witness), len(witness))
    return checks, [*anew, *(found for found in findings if not found.confirmed)]


def _extended(
    witness: Stream,
    fitted: detect.exclusion.Fit,
    disputed: list[HostArray],
    findings: list[calibrate.Finding],
) -> list[calibrate.Finding]:
    """Findings joined by the disputed rows of their classes that are displaced by themselves."""
    if not findings:
        return findings
    some = [rows[:: -(-len(rows) // _DISPUTED_ROWS)] for rows in disputed]
    ratios = detect.displacement(witness, fitted, some)
    of = [int(witness.labels[rows[0]]) for rows in some]
    targets = {found.target for found in findings}
    elsewhere = [r for r, target in zip(ratios, of, strict=True) if target not in targets]
    null = np.concatenate(elsewhere) if elsewhere else np.zeros(0)
    mine = dict(zip(of, zip(some, ratios, strict=True), strict=True))
    nothing = (np.zeros(0, np.int64), np.zeros(0))
    return [calibrate.extend(found, *mine.get(found.target, nothing), null) for found in findings]


def _open(plan: ScanPlan, source: Source, rows: Source | None, progress: ProgressFn) -> _Data:
    """Reads everything once: fingerprint, finite values, labels, lengths."""
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
    return _Data(source, rows, labels, classes, dense.astype(np.int32), found, kept)


def _spaces(
    plan: ScanPlan, data: _Data, raw: Stream, model: Model | None, progress: ProgressFn
) -> tuple[list[Space], float, float]:
    """The spaces, with the seconds that training and its compiling took."""
    seed = plan.method.seed
    is_embedding = plan.data.endswith(_EMBEDDING_ENDINGS)
    if is_embedding and data.features is None and model is None:
        return [input_space(raw, data.source, seed, "features")], 0.0, 0.0
    spaces = [input_space(raw, data.source, seed)]
    if data.features is not None:
        given = Stream(data.features, data.dense, raw.num_classes, raw.mesh, None, raw.budget_bytes)
        space = input_space(given, data.features, seed, "features")
        return [*spaces, space._replace(is_learned=True)], 0.0, 0.0
    trained = compiled = 0.0
    fitted = None
    if model is None:
        from jaxpoison.training import fit

        fitted = fit(
            data.source, data.dense, raw.num_classes, epochs=plan.method.epochs, seed=seed,
            progress=progress,
        )  # fmt: skip
        model, trained, compiled = fitted.model, fitted.seconds, fitted.compile_seconds
    return [*spaces, *layer_spaces(raw, model, fitted)], trained, compiled


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
    names = plan.method.detectors or DETECTOR_NAMES
    block = stream.resident_bytes // max(stream.num_shards, 1)
    held = min(stream.resident_bytes, plan.resources.budget_mb << 20)
    moments = 4 * num_classes * wide * wide
    visits = n * float(np.clip(100_000 / n, 2, 40)) if is_trained else 0.0
    visits = min(visits, 100_000)
    per_visit = 2.2e-4 * d / 784 if source.schema.kind == "images" else 3e-5
    share = len(names) / len(DETECTOR_NAMES)
    # compiling, work per class, training, work per value; measured on two busy cores
    seconds = 16.0 + 0.5 * num_classes + visits * per_visit + share * n * wide * 5e-7
    return {
        "rows": n,
        "passes": 6 + 2 * len(names),
        "device_bytes": held + 3 * block + 2 * moments,
        "seconds": seconds,
    }
