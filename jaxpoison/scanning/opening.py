"""From what a plan names to rows that are fit to be scanned, and the spaces they are seen in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxpoison._check import DataError, NothingToScan
from jaxpoison._types import HostArray
from jaxpoison.models import Model
from jaxpoison.scanning.plan import ScanPlan
from jaxpoison.scanning.running import digest_of
from jaxpoison.scanning.spaces import ProgressFn, Space, input_space, layer_spaces
from jaxpoison.scanning.targets import Asked, read_targets
from jaxpoison.scanning.trusted import require_enough, trusted_rows
from jaxpoison.sources import Source, is_embedding, require_labels
from jaxpoison.sources.inspect import Inspection, inspect
from jaxpoison.sources.views import DropRows
from jaxpoison.stream import Engine, Stream
from jaxpoison.work import TrainingStates, Work

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
    of_features: str | None = None  # content hash of the features

    def identity(self, fingerprint: str | None) -> str:
        """Of the rows kept of those with the content hash."""
        return f"{fingerprint} {digest_of(self.kept)}"


def open_data(
    plan: ScanPlan, source: Source, rows: Source | None, trusted: Any, target: Any,
    progress: ProgressFn, engine: Engine,
) -> Opened:  # fmt: skip
    """Reads everything once: fingerprint, finite values, labels, lengths.

    Args:
        plan: What was asked for.
        source: The data.
        rows: Features of it, if given.
        trusted: Rows known to be honest, if given.
        target: Predictions asked about, if given.
        progress: Told of rows read.
        engine: Who reads which of them.

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
    shared = engine.shared(source)
    found = inspect(shared, progress=lambda done, total: progress("read", done, total))
    bad, of_features = found.nonfinite, None
    if rows is not None:
        other = inspect(engine.shared(rows))
        of_features = other.fingerprint
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
    return Opened(source, rows, labels, classes, dense, found, kept, known, asked, of_features)


def make_spaces(
    plan: ScanPlan, data: Opened, raw: Stream, model: Model | None, progress: ProgressFn,
    work: Work | None = None,
) -> tuple[list[Space], Model | None, float, float]:  # fmt: skip
    """The spaces and their network, with the seconds that training and its compiling took.

    Args:
        plan: What was asked for.
        data: Of ``open_data``.
        raw: Its rows.
        model: A network of the user, or None to train one where one is needed.
        progress: Told of rows trained on.
        work: Keeps the state of the training; or None.
    """
    seed = plan.method.seed
    if is_embedding(data.source) and data.features is None and model is None:
        return [input_space(raw, data.source, seed, "features")], None, 0.0, 0.0
    spaces = [input_space(raw, data.source, seed)]
    if data.features is not None:
        given = raw.of(data.features, identity=data.identity(data.of_features))
        space = input_space(given, data.features, seed, "features")
        return [*spaces, space._replace(is_learned=True)], None, 0.0, 0.0
    trained = compiled = 0.0
    fitted = None
    if model is None:
        from jaxpoison.training import fit

        fitted = fit(
            raw.runs.shared(data.source), data.dense, raw.num_classes, epochs=plan.method.epochs,
            seed=seed, progress=progress,
            states=None if work is None else TrainingStates(work, "training"),
        )  # fmt: skip
        model, trained, compiled = fitted.model, fitted.seconds, fitted.compile_seconds
    return [*spaces, *layer_spaces(raw, model, fitted)], model, trained, compiled
