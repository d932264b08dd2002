"""Measures every detector against attacks with known truth, and what its flags are worth.

    document = jaxpoison.evaluate.run_suite("quick", "evaluation")

Importing this loads nothing heavy; the names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxpoison.evaluate.metrics import auroc, average_precision, interval, true_positive_rate
    from jaxpoison.evaluate.runner import run_suite
    from jaxpoison.evaluate.suites import SUITES, Case, SetSpec, Suite, load_suite

__all__ = [
    "SUITES",
    "Case",
    "SetSpec",
    "Suite",
    "auroc",
    "average_precision",
    "interval",
    "load_suite",
    "run_suite",
    "true_positive_rate",
]

_MODULES = {
    "metrics": ("auroc", "average_precision", "interval", "true_positive_rate"),
    "runner": ("run_suite",),
    "suites": ("SUITES", "Case", "SetSpec", "Suite", "load_suite"),
}
_MEMBERS = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _MEMBERS:
        raise AttributeError(f"module 'jaxpoison.evaluate' has no attribute {name!r}")
    value: object = getattr(import_module(f"jaxpoison.evaluate.{_MEMBERS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
