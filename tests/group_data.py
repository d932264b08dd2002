"""Groups, what verification says of them, and findings, made by hand."""

from __future__ import annotations

import numpy as np

from jaxpoison._types import Exclusion
from jaxpoison.calibrate import Finding
from jaxpoison.calibrate.groups import Group, trait_group

HONEST = Exclusion(
    num_rows=20, agreement=0.9, expected=0.9, log10_p=-0.1, diversity=0.3, transplant=1.0,
    home=1.0, source=2, source_share=0.4,
)  # fmt: skip
DIRTY = HONEST._replace(agreement=0.05, log10_p=-12.0, home=2.5)
NAN = float("nan")


def group(detector="mixture", rows=range(20), **options):
    rows = np.array(list(rows))
    given = {
        "space": "input", "target": 1, "log_odds": np.full(len(rows), 6.0), "separation": 20.0,
        "z": 3.0, "num_features": 64,
    }  # fmt: skip
    return Group(detector=detector, rows=rows, **{**given, **options})


def trait(num_rows=20, separation=6.0, depth=0.9, num_features=64):
    odds = np.full(num_rows, 5.0)
    return trait_group(1, np.arange(num_rows), odds, separation, depth, num_features)


def displaced(ratio):
    return HONEST._replace(home=ratio, transplant=1.0)


def finding(
    target, rows, kind="backdoor", *, near=(), near_odds=-1.0, log_odds=4.0, support=1.0, **options
):
    """A confirmed finding; odds and support are one for all rows, or one a row."""
    rows, near = np.asarray(rows, np.int64), np.asarray(near, np.int64)
    given = {"source": None, "confidence": 0.9, "confirmed": True, "groups": (0,)}
    return Finding(
        kind=kind,
        target=target,
        rows=rows,
        log_odds=np.broadcast_to(log_odds, rows.shape).astype(float),
        support=np.broadcast_to(support, rows.shape).astype(float),
        near=near,
        near_odds=np.broadcast_to(near_odds, near.shape).astype(float),
        **{**given, **options},
    )
