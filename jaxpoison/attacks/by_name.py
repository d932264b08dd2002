"""An attack by its name and a seed, with the network that it may need trained on the way."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxpoison._check import MAX_SEED, UsageError, is_whole
from jaxpoison._types import HostArray
from jaxpoison.sources import open_source
from jaxpoison.training import fit

from ._checks import as_arrays
from ._types import Poisoned
from .registry import ATTACKS

_COMMON = frozenset({"x", "y", "rate", "target", "source", "key", "model"})

ProgressFn = Callable[[str, int, int], None]


def settings_of(name: str) -> dict[str, Any]:
    """What an attack can be told besides rate, target and source, with its defaults.

    Raises:
        UsageError: An unknown attack.
    """
    parameters = inspect.signature(ATTACKS[known_name(name)].fn).parameters
    return {k: p.default for k, p in parameters.items() if k not in _COMMON}


def known_name(name: str) -> str:
    """The name itself, if there is such an attack.

    Raises:
        UsageError: There is none.
    """
    if not isinstance(name, str) or name not in ATTACKS:
        import difflib

        close = difflib.get_close_matches(str(name), ATTACKS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"unknown attack {name!r}; {hint}known: {', '.join(ATTACKS)}")
    return name


def poison(
    name: str,
    x: HostArray,
    y: HostArray,
    *,
    rate: float | None = None,
    target: int | None = None,
    source: int | None = None,
    seed: int = 0,
    progress: ProgressFn | None = None,
    **settings: Any,
) -> Poisoned:
    """Runs an attack by its name.

    Where the attack needs a network, one is trained on the clean rows (``training.fit``), victims
    included: an attacker who knows the data and the kind of network.

    Args:
        name: A key of ``ATTACKS``.
        x: [n, ...] inputs.
        y: [n] labels.
        rate: None for the attack's own default.
        target: None to draw one, where the attack has one.
        source: None to draw one, where the attack has one.
        seed: Of everything random.
        progress: Of the training, if any: called with ("train", visited rows, rows to visit).
        **settings: Of the attack, see ``settings_of``.

    Returns:
        The poisoned data and its truth.

    Raises:
        UsageError: An unknown attack or setting, or what the attack itself refuses.
        DataError: What the attack itself refuses.

    **Cost**: the attack's, and the training's.

    **Assumes / fails on**: as the attack.
    """
    attack = ATTACKS[known_name(name)]
    check_settings(name, settings)
    rate, target, source, seed = (_scalar(each) for each in (rate, target, source, seed))
    _check_common(rate, {"target": target, "source": source}, seed)
    x, y = as_arrays(x, y)
    if attack.needs_model:
        classes, dense = np.unique(y, return_inverse=True)
        data = open_source(x)
        trained = fit(data, dense.astype(np.int64), len(classes), seed=seed, progress=progress)
        settings["model"] = trained.model
    with np.errstate(over="ignore", invalid="ignore"):  # the attack refuses what overflows
        return attack.fn(
            x,
            y,
            rate=attack.default_rate if rate is None else rate,
            target=target,
            source=source,
            key=jax.random.key(seed),
            **settings,
        )


def check_settings(name: str, settings: dict[str, Any]) -> None:
    """Refuses settings that an attack does not have, and booleans for what is none.

    Raises:
        UsageError: There is one.
    """
    known = settings_of(name)
    for setting, value in settings.items():
        if setting not in known:
            raise UsageError(
                f"{name} has no setting {setting!r}; it has {', '.join(known) or 'none'}"
            )
        if isinstance(value, bool) and not isinstance(known[setting], bool):
            raise UsageError(f"{setting} is {value}; give a number or a name")


def _check_common(rate: object, classes: dict[str, object], seed: Any) -> None:
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float)):
        raise UsageError(f"rate is {rate!r}; give a share above 0 and at most 1, such as 0.01")
    for argument, value in classes.items():
        if value is not None and not is_whole(value):
            raise UsageError(f"{argument} is {value!r}; give the number of a class")
    if not is_whole(seed) or not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed is {seed!r}; give an integer from 0 to {MAX_SEED}")


def _scalar(value: Any) -> Any:
    """A number of numpy or jax, or an array of one value without axes, as Python has it."""
    return value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
