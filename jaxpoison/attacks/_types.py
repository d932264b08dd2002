"""What an attack gives back: poisoned arrays and the whole truth about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jaxpoison._types import HostArray

Kind = Literal[
    "backdoor",
    "label_flip",
    "clean_label",
    "targeted",
    "duplicates",
    "subpopulation",
    "availability",
]


class Poisoned(NamedTuple):
    """A poisoned dataset with its truth.

    Attributes:
        x: [n', ...] inputs, type and shape of a row as given; n' > n only where rows are added.
        y: [n'] int64 labels as the victim sees them.
        mask: [n'] bool, the poisoned rows.
        cover: [n'] bool, rows that carry the trigger under their honest label.
        origin: [n'] int64 row of the input that each row was made from.
        y_true: [n'] int64 honest labels.
        kind: What a report should call it.
        trigger: Test inputs [m, ...] -> the same inputs with the trigger; None where there is none.
        wanted: Honest labels [m] of test rows -> the labels the attacker wants for them once they
            carry the trigger; None where the attack wants no particular label.
        target: Class the attacker wants, None for several or none.
        source: Class the attack works on, None for several.
        params: Plain values that repeat the attack.
    """

    x: HostArray
    y: HostArray
    mask: HostArray
    cover: HostArray
    origin: HostArray
    y_true: HostArray
    kind: Kind
    trigger: Callable[[HostArray], HostArray] | None
    wanted: Callable[[HostArray], HostArray] | None
    target: int | None
    source: int | None
    params: dict[str, Any]
