"""A made-up Report, and names that an attacker might choose: for the tests of the report."""

from __future__ import annotations

import numpy as np

from jaxpoison.report import ClassPicture, Example, Pictures, Report

DETECTORS = ("spectral", "mixture")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "[red]x[/red]",
    "\x1b[31mred\x07\r\nsecond line",
    "abc\u202egpj.exe\u2066\u200b",
    "{{ 7 * 7 }}{% raw %}",
    "\ud800 lone",
    "</style></script></title><base href=http://x>",
    "' onmouseover=alert(1) x='",
    "x" * 5000,
)


def make_report(
    *, n=300, num_classes=3, verdict="poisoned", names=("cat", "dog", "owl"), num_examples=12,
    image_shape=(8, 8), suspected=(1,), seed=0,
) -> Report:  # fmt: skip
    rng = np.random.default_rng(seed)
    label = np.arange(n) % num_classes
    suspicion = rng.gamma(2.0, 1.0, n)
    flagged = np.isin(label, suspected) & (suspicion > 3)
    kind = np.where(flagged, "backdoor", "")
    p = np.exp(-suspicion)

    def test_of(fired):
        return {
            "detector": "spectral", "space": "features", "statistic": "largest eigenvalue",
            "value": 4.5 if fired else 1.5, "threshold": 3.0, "null": "bootstrap", "fired": fired,
        }  # fmt: skip

    def picture(c):
        rows = np.flatnonzero(label == c)
        name = names[c] if c < len(names) else ""
        return ClassPicture(
            c, name, len(rows), int(flagged[rows].sum()), (test_of(c in suspected),),
            rng.normal(size=(min(3000, len(rows)), 2)).astype(np.float32), flagged[rows][:3000],
            "spectral score", suspicion[rows], flagged[rows],
        )  # fmt: skip

    def example(k):
        image = values = None
        if image_shape is None:
            values = rng.normal(size=24)
        else:
            image = rng.integers(0, 256, image_shape, dtype=np.uint8)
        return Example(
            int(k), int(label[k]), float(suspicion[k]), float(p[k]), float(p[k]),
            bool(flagged[k]), str(kind[k]), image, values,
        )  # fmt: skip

    pictures = Pictures(
        tuple(picture(c) for c in suspected),
        tuple(picture(c) for c in range(num_classes) if c not in suspected),
        tuple(example(k) for k in np.argsort(-suspicion)[:num_examples]),
        tuple(names),
    )
    attacks = [
        {
            "kind": "backdoor", "target_class": c, "source_class": None,
            "target_name": names[c] if c < len(names) else "",
            "n": int(flagged[label == c].sum()), "confidence": 0.97,
            "evidence": [test_of(True)],
        }
        for c in suspected
    ]  # fmt: skip
    document = {
        "schema": "jaxpoison.report/1", "version": "0.1.0", "verdict": verdict,
        "calibrated": False, "note": "uncalibrated against trusted data",
        "source": {"name": names[0], "fingerprint": "ab" * 20, "kind": "images",
                   "shape": [8, 8], "dtype": "uint8"},
        "n_samples": n, "n_classes": num_classes, "n_flagged": int(flagged.sum()), "n_dropped": 0,
        "p_poisoned": 0.9, "estimated_rate": float(flagged.mean()), "suspected_attacks": attacks,
        "skipped_classes": [{"label": 0, "rows": 3, "reason": "too few rows"}],
        "detectors": {d: {"seconds": 0.5, "ran": True, "reason": "", "weight": 1.0}
                      for d in DETECTORS},
        "threshold": {"method": "gate, then BH", "value": 3.0, "expected_fdr": 0.05},
        "timing": {"total": 2.0, "compile": 0.5, "train": 0.5, "score": 1.0},
        "peak_mb": 100.0, "seed": 0, "plan": {"data": names[0], "method": {"seed": 0}},
    }  # fmt: skip
    scores = {d: rng.normal(size=n).astype(np.float32) for d in DETECTORS}
    return Report(
        document, np.arange(n) + 10, label, scores, suspicion, p, p, flagged, kind,
        np.where(flagged, 3, -1), pictures,
    )  # fmt: skip
