"""Small data to scan, and what must hold of a scan's report."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
from sklearn.datasets import load_digits

import engine_data as data
from jaxpoison import scan
from jaxpoison._types import DEFAULT_DETECTORS, OF_GRADIENTS
from jaxpoison.report import load_schema

TARGET = 3
QUICK = {"detectors": ("mixture",)}
OF_TRAINING = ("early_loss", "el2n", "aum", "loss_drop", "low_loss")
UNTRAINED = tuple(n for n in DEFAULT_DETECTORS if n not in (*OF_TRAINING, *OF_GRADIENTS))


def digits():
    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target.astype(np.int64)


def patched(seed=0, rate=0.05):
    """Digits of other classes under one label, with a bright 2 x 2 corner; and which they are."""
    x, y = digits()
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(y != TARGET))[: round(rate * len(y))]
    x[rows, :2, :2] = 16
    y[rows] = TARGET
    return x, y, rows


def flat(x):
    return x.reshape(len(x), -1).astype(np.float32)


def small(n=600, d=8, num_classes=3):
    """Feature rows that scan in a second."""
    x, y, _ = data.planted(n=n, d=d, num_classes=num_classes)
    return x, y.astype(np.int64)


def quick(x, y, **options):
    """A scan without training, of one detector."""
    return scan(x, y, **{"features": x, **QUICK, **options})


X, Y = small()


def broken(value, row=17, column=2):
    x = X.copy()
    x[row, column] = value
    return x


def check_found(report, rows):
    assert report.verdict == "poisoned"
    (attack,) = report.report["suspected_attacks"]
    assert attack["target_class"] == TARGET and attack["kind"] == "backdoor"
    assert attack["n"] == report.flagged.sum() and attack["evidence"]
    assert report.flagged[rows].mean() >= 0.9
    assert np.isin(report.flagged_indices(), rows).mean() >= 0.9
    is_planted = np.isin(np.arange(len(report.label)), rows)
    assert data.auroc(report.suspicion, is_planted) > 0.99


def check_consistent(report):
    """What must hold of any report."""
    doc, n = report.report, len(report.index)
    jsonschema.validate(doc, load_schema())
    json.loads(json.dumps(doc, allow_nan=False))
    columns = [report.label, report.suspicion, report.p, report.q, report.flagged]
    columns += [report.suspected_kind, report.suggested_label, *report.scores.values()]
    assert all(len(column) == n for column in columns)
    assert all(np.isfinite(c).all() for c in (*report.scores.values(), report.suspicion))
    assert (report.suggested_label[~report.flagged] == -1).all()
    assert set(report.suggested_label) <= {-1, *report.label}
    assert ((report.p > 0) & (report.p <= 1)).all() and ((report.q > 0) & (report.q <= 1)).all()
    assert doc["n_samples"] == n and doc["n_flagged"] == report.flagged.sum()
    assert ((report.suspected_kind != "") == report.flagged).all()
    if not doc["calibrated"]:  # else rows are flagged by their q-values too
        assert doc["n_flagged"] == sum(a["n"] for a in doc["suspected_attacks"])
    assert {name for name, run in doc["detectors"].items() if run["ran"]} == set(report.scores)
    assert all(run["reason"] for run in doc["detectors"].values())
    assert set(report.clean_indices()) | set(report.flagged_indices()) == set(report.index)
    assert 0 <= doc["p_poisoned"] <= 1 and 0 <= doc["estimated_rate"] <= 1
    if report.flagged.any() and not doc["calibrated"]:  # flagged rows lead the ranking
        assert report.suspicion[report.flagged].min() > report.suspicion[~report.flagged].max()
