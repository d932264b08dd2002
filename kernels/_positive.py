"""One check that every solver shares."""

from __future__ import annotations

from typing import Any

import numpy as np


def require_positive(**values: Any) -> None:
    """Refuses numbers that are not positive and finite; what is traced or on a device passes.

    Args:
        **values: Name and value.

    Raises:
        ValueError: names the argument and the value seen.
    """
    for name, value in values.items():
        if isinstance(value, int | float | np.number) and not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a positive finite number, got {value}")
