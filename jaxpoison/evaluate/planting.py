"""From a case to a poisoned data set: the rate, the target, and a model where the attack asks."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import numpy as np

from jaxpoison._check import UsageError
from jaxpoison.attacks import ATTACKS, Poisoned
from jaxpoison.attacks.by_name import check_settings
from jaxpoison.evaluate.retrain import train
from jaxpoison.evaluate.sets import Split, thin
from jaxpoison.evaluate.suites import CLEAN, Case


def fits(case: Case, set_name: str, only: tuple[str, ...] | None, kind: str) -> bool:
    """Whether a case is run on a set: asked for there, and made for its kind of rows.

    Args:
        case: The case.
        set_name: Of the set.
        only: Names of the only cases the set takes, or None.
        kind: "images" or "rows".
    """
    if case.sets is not None and set_name not in case.sets:
        return False
    if only is not None and case.name not in only:
        return False
    return case.attack == CLEAN or ATTACKS[case.attack].needs in ("any", kind)


def check(case: Case) -> None:
    """Refuses an unknown attack, or options it does not have.

    Raises:
        UsageError: With the attacks or the options that there are.
    """
    if case.attack == CLEAN:
        return
    if case.attack not in ATTACKS:
        raise UsageError(
            f"case {case.name!r}: unknown attack {case.attack!r}; known: clean, "
            f"{', '.join(sorted(ATTACKS))}"
        )
    known = set(inspect.signature(ATTACKS[case.attack].fn).parameters) - {"x", "y", "rate", "key"}
    odd = sorted(set(case.options) - known)
    if odd:
        raise UsageError(
            f"case {case.name!r}: {case.attack} has no option {odd[0]!r}; known: "
            f"{', '.join(sorted(known))}"
        )
    own = {k: v for k, v in case.options.items() if k not in ("target", "source", "model")}
    check_settings(case.attack, own)


def plant(case: Case, split: Split, *, seed: int) -> tuple[Poisoned | None, Split]:
    """Poisons the training rows of a split.

    Args:
        case: What is done.
        split: Honest rows.
        seed: Of the target, the rows and everything else random.

    Returns:
        The poisoned rows, None for a clean case, and the split they were made from (its target
        class thinned where the case asks for that).

    Raises:
        UsageError: The attack refuses: too few rows, the wrong kind of rows.
    """
    if case.attack == CLEAN:
        return None, split
    attack, options = ATTACKS[case.attack], dict(case.options)
    rate = case.rate
    if case.of == "target" or case.thin < 1:
        target = options.get("target")
        if target is None:
            target = int(np.random.default_rng([seed, 13]).choice(np.unique(split.y)))
        options["target"] = target
        split = thin(split, target, case.thin, seed=seed) if case.thin < 1 else split
        if case.of == "target":
            rate *= float((split.y == target).mean())
    if attack.needs_model:
        options["model"] = _surrogate(split, seed)
    key = jax.random.fold_in(jax.random.key(seed), 0xA77)
    return attack.fn(split.x, split.y, rate=rate, key=key, **options), split


def _surrogate(split: Split, seed: int) -> Any:
    """The network an attacker would use: trained on the honest rows, by another seed."""
    return train(split.x, split.y, int(split.y.max()) + 1, seed=seed + 1000).model
