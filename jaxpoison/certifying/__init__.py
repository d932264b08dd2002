"""From files to certified predictions: data, partitions, models, votes, certificates, report.

Importing this loads nothing heavy; the names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxpoison.certifying.execute import run as run
    from jaxpoison.certifying.execute import run_into as run_into
    from jaxpoison.certifying.forecasting import forecast as forecast
    from jaxpoison.certifying.plan import CertifyPlan as CertifyPlan

_MEMBERS = {
    "CertifyPlan": "plan",
    "forecast": "forecasting",
    "run": "execute",
    "run_into": "execute",
}
__all__ = sorted(_MEMBERS)


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _MEMBERS:
        raise AttributeError(f"module 'jaxpoison.certifying' has no attribute {name!r}")
    value: object = getattr(import_module(f"jaxpoison.certifying.{_MEMBERS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
