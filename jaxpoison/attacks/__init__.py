"""The red team: poisons a dataset with known truth, as pure functions of arrays and a key.

poisoned = jaxpoison.attacks.poison("patch", x, y, rate=0.01, target=3, seed=0)
poisoned.x, poisoned.y, poisoned.mask
"""

from __future__ import annotations

from ._types import Kind, Poisoned
from .by_name import poison, settings_of
from .registry import ATTACKS, Attack

__all__ = ["ATTACKS", "Attack", "Kind", "Poisoned", "poison", "settings_of"]
