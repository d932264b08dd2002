"""What a scan is asked to do, as plain values that are written into the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any

from jaxpoison._check import MAX_SEED, UsageError, is_whole
from jaxpoison._types import (
    ALL_DETECTORS,
    DEFAULT_DETECTORS,
    DETECTOR_NAMES,
    NEEDS,
    USER_PREFIX,
)


@dataclass(frozen=True)
class Method:
    """What changes the mathematics.

    Attributes:
        detectors: Names to run; "all" among them stands for all of ``DETECTOR_NAMES``, and
            "user:NAME" for one of another package. None runs ``DEFAULT_DETECTORS``, and those of
            ``NEEDS`` for which there is what they need.
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
        names = () if self.detectors is None else self.detectors
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise UsageError(f"detectors: {names!r}; give a list of names, such as ['spectral']")
        unknown = sorted({str(n) for n in names if not _is_known(n)})
        if unknown or (self.detectors is not None and not names):
            raise UsageError(
                f"detectors: {unknown or 'an empty list'}; choose from "
                f"{', '.join(DETECTOR_NAMES)}, {ALL_DETECTORS}, or {USER_PREFIX}NAME"
            )
        if not isinstance(self.fdr, Real) or not 0.0 < self.fdr < 1.0:
            raise UsageError(f"fdr: {self.fdr!r}; give a share above 0 and below 1, such as 0.05")
        if not is_whole(self.seed) or not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed: {self.seed!r}; give an integer from 0 to {MAX_SEED}")

    @property
    def names(self) -> tuple[str, ...]:
        """The detectors to run, each once: those of a scan in their order, then others as named."""
        if self.detectors is None:
            return DEFAULT_DETECTORS
        is_all = ALL_DETECTORS in self.detectors
        own = [name for name in DETECTOR_NAMES if is_all or name in self.detectors]
        others = [name for name in self.detectors if name.startswith(USER_PREFIX)]
        return (*own, *dict.fromkeys(others))


def _is_known(name: object) -> bool:
    is_user = isinstance(name, str) and name.startswith(USER_PREFIX) and name != USER_PREFIX
    return is_user or name in (*DETECTOR_NAMES, ALL_DETECTORS)


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
        trusted: Where the numbers of rows that are known to be honest are, if any are.
        target: Where the predictions are that the user asks about, if any are.
        method: What changes the mathematics.
        resources: What changes only the speed.
    """

    data: str
    labels: str | None = None
    features: str | None = None
    trusted: str | None = None
    target: str | None = None
    method: Method = field(default_factory=Method)
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Checks that the detectors named have what they need.

        Raises:
            UsageError: One of them has not.
        """
        for name in self.method.detectors or ():
            if name in NEEDS and not self._has(name):
                option = NEEDS[name]
                raise UsageError(
                    f"detectors: {name!r} needs {option} ({option.lstrip('-')}=); give it, or "
                    "leave the detector out"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The detectors to run: those named or the usual ones, and what was given a need for.

        Targets are given for one detector alone, so it runs whatever is named; trusted rows also
        make p-values.
        """
        more = [name for name in NEEDS if self._has(name) and self.method.detectors is None]
        if self.target is not None:
            more.append("influence")
        names = [*self.method.names, *more]
        own = [name for name in DETECTOR_NAMES if name in names]
        return (*own, *(name for name in names if name.startswith(USER_PREFIX)))

    def _has(self, name: str) -> bool:
        return (self.target if name == "influence" else self.trusted) is not None

    def as_dict(self) -> dict[str, Any]:
        """The plan as the report holds it."""
        plan = asdict(self)
        if self.method.detectors is not None:  # as JSON has it
            plan["method"]["detectors"] = list(self.method.detectors)
        return plan


def name_of(given: Any) -> str:
    """How a plan names what was given: as typed, or as an array."""
    return str(given) if isinstance(given, str) or hasattr(given, "__fspath__") else "<array>"
