"""What a scan costs, as measured: for the forecast, never for a decision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_SEARCHED = 1 << 16  # rows that neighbours are sought among, at most
_PER_VISIT = {"images": 2.2e-4 / 784, "rows": 1.5e-5}  # of training: a value, a row


class Rate(NamedTuple):
    """Seconds of one detector in all spaces of a scan.

    Attributes:
        fixed: Mostly compiling.
        row: For each row.
        pair: For each row and each row that it is compared with.
    """

    fixed: float
    row: float = 0.0
    pair: float = 0.0


# Two cores shared with others: 2,000 to 60,000 rows of 64 features, 12,000 images of 28 x 28.
# What the classes and the features add is less than what another machine does.
RATES = {
    "spectral": Rate(0.4, 2e-6),
    "activation": Rate(1.3, 2e-5),
    "spectre": Rate(2.0, 8e-5),
    "mahalanobis": Rate(2.0, 5e-5),
    "mixture": Rate(4.8, 1.6e-4),
    "whitening": Rate(2.5, 5e-5),
    "duplicates": Rate(0.5, 1e-5, 3.3e-9),
    "labels": Rate(1.9, 2.4e-4),
    "neighbours": Rate(0.4, 0.0, 1.4e-9),
    "density": Rate(0.7, 1e-4),
    "early_loss": Rate(0.8),
    "el2n": Rate(0.03),
    "aum": Rate(0.03),
    "loss_drop": Rate(0.03),
    "low_loss": Rate(0.03),
    "clusters": Rate(1.5, 2e-5),
    "split": Rate(2.0, 3e-5),
    "gram": Rate(1.2, 3e-5),
    "low_rank": Rate(4.0, 8e-5),
    "strip": Rate(3.0, 5e-4),
    "gradient_direction": Rate(5.0, 3e-4),  # besides the pass, which the norms share
    "gradient_norm": Rate(3.5, 3.5e-4),
    "self_influence": Rate(3.5, 1e-4),
    "influence": Rate(3.0, 1e-4),
    "shapley": Rate(0.5, 0.0, 2e-9),
}
_UNKNOWN = Rate(1.0, 5e-5)  # a detector of another package
_REST = Rate(6.0, 1.4e-4)  # reading, verifying, the report


def score_seconds(names: Iterable[str], num_rows: int) -> float:
    """Seconds that detectors and what follows them take, without training.

    Args:
        names: Of the detectors that run.
        num_rows: n.
    """
    pairs = num_rows * min(num_rows, _SEARCHED)
    rates = [_REST, *(RATES.get(name, _UNKNOWN) for name in names)]
    return sum(rate.fixed + rate.row * num_rows + rate.pair * pairs for rate in rates)


def train_seconds(visits: float, kind: str, num_values: int) -> float:
    """Seconds of training a network.

    Args:
        visits: Rows times epochs.
        kind: "images" or "rows".
        num_values: Of one row.
    """
    per_visit = _PER_VISIT[kind]
    return 1.0 + visits * (per_visit * num_values if kind == "images" else per_visit)
