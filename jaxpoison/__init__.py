"""Find poison in training data: which rows, of what kind, how sure.

    report = jaxpoison.scan(features, labels)
    report.verdict, report.clean_indices()

Importing this loads nothing heavy; the names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxpoison import attacks, certify, detect, evaluate, kernels, models, sources
    from jaxpoison.report import Report
    from jaxpoison.scanning import explain, scan

__version__ = "0.1.0"
__all__ = [
    "Report",
    "__version__",
    "attacks",
    "certify",
    "detect",
    "evaluate",
    "explain",
    "kernels",
    "models",
    "scan",
    "sources",
]

_MEMBERS = {
    "Report": "jaxpoison.report",
    "explain": "jaxpoison.scanning",
    "scan": "jaxpoison.scanning",
}
_ROOMS = frozenset({"attacks", "certify", "detect", "evaluate", "kernels", "models", "sources"})


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _ROOMS:
        return import_module(f"jaxpoison.{name}")
    if name not in _MEMBERS:
        raise AttributeError(f"module 'jaxpoison' has no attribute {name!r}")
    value: object = getattr(import_module(_MEMBERS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
