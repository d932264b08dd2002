"""What a scan is asked to do, as plain values that are written into the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from jaxpoison._check import UsageError
from jaxpoison._types import DETECTOR_NAMES


@dataclass(frozen=True)
class Method:
    """What changes the mathematics.

    Attributes:
        detectors: Names to run, None for all.
        seed: Of everything random.
        fdr: Mean local false discovery rate allowed among the flagged rows.
        drop_nonfinite: Leave out rows with NaN or infinite values instead of refusing them.
        epochs: Of the sacrificial network, None to let the number of rows decide.
    """

    detectors: tuple[str, ...] | None = None
    seed: int = 0
    fdr: float = 0.05
    drop_nonfinite: bool = False
    epochs: int | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UsageError: One of them makes no sense.
        """
        unknown = sorted(set(self.detectors or ()) - set(DETECTOR_NAMES))
        if unknown or self.detectors == ():
            raise UsageError(
                f"detectors: {unknown or 'an empty list'}; choose from {', '.join(DETECTOR_NAMES)}"
            )
        if not 0.0 < self.fdr < 1.0:
            raise UsageError(f"fdr: {self.fdr}; give a share above 0 and below 1, such as 0.05")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed: {self.seed}; give an integer from 0 to 4294967295")


@dataclass(frozen=True)
class Resources:
    """What changes only the speed.

    Attributes:
        budget_mb: Memory for rows held between passes; the rest is read again.
        devices: Devices to use, None for all local ones.
    """

    budget_mb: int = 2048
    devices: int | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UsageError: One of them makes no sense.
        """
        if self.budget_mb < 1:
            raise UsageError(f"budget_mb: {self.budget_mb}; give at least 1")
        if self.devices is not None and self.devices < 1:
            raise UsageError(f"devices: {self.devices}; give at least 1, or None for all")


@dataclass(frozen=True)
class ScanPlan:
    """A scan, JSON-able.

    Attributes:
        data: What to scan, as typed.
        labels: Where the labels are, if not in the data.
        features: Precomputed features, one row each, if any.
        method: What changes the mathematics.
        resources: What changes only the speed.
    """

    data: str
    labels: str | None = None
    features: str | None = None
    method: Method = field(default_factory=Method)
    resources: Resources = field(default_factory=Resources)

    def as_dict(self) -> dict[str, Any]:
        """The plan as the report holds it."""
        plan = asdict(self)
        if self.method.detectors is not None:  # as JSON has it
            plan["method"]["detectors"] = list(self.method.detectors)
        return plan
