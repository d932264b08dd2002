"""Every attack by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from . import (
    adaptive,
    availability,
    consistent,
    duplicates,
    labels,
    overlays,
    patches,
    spectrum,
    tables,
    targeted,
)
from ._types import Kind, Poisoned

Needs = Literal["images", "rows", "any"]


class Attack(NamedTuple):
    """One entry of the red team's list.

    Attributes:
        name: As in ``ATTACKS`` and on the command line.
        fn: ``fn(x, y, *, rate, target=None, source=None, key, ...) -> Poisoned``.
        needs: Inputs that it works on.
        needs_model: Whether ``fn`` also wants ``model``, a network trained on clean rows, whose
            outputs are the labels in use in ascending order.
        kind: Of what it returns.
        default_rate: A rate that the references use; of all rows, or of the target class where
            ``fn`` says so.
        about: One line.
    """

    name: str
    fn: Callable[..., Poisoned]
    needs: Needs
    needs_model: bool
    kind: Kind
    default_rate: float
    about: str


def _of(
    fn: Callable[..., Poisoned],
    needs: Needs,
    kind: Kind,
    rate: float,
    about: str,
    *,
    needs_model: bool = False,
) -> Attack:
    return Attack(fn.__name__, fn, needs, needs_model, kind, rate, about)


_ALL = (
    _of(labels.flip_uniform, "any", "label_flip", 0.1, "random rows get a random other label"),
    _of(labels.flip_pair, "any", "label_flip", 0.02, "rows of one class get another's label"),
    _of(labels.flip_targeted, "any", "label_flip", 0.05, "rows of all classes get one label"),
    _of(
        labels.flip_subpopulation, "any", "subpopulation", 0.005,
        "one coherent corner of a class gets another label",
    ),
    _of(availability.noise, "any", "availability", 0.1, "noise on inputs, labels kept"),
    _of(availability.corrupt, "any", "availability", 0.1, "dead, clipped or random cells"),
    _of(patches.patch, "images", "backdoor", 0.01, "a patch, all to one"),
    _of(patches.patch_all_to_all, "images", "backdoor", 0.05, "a patch, each class to the next"),
    _of(
        patches.patch_source_specific, "images", "backdoor", 0.02,
        "a patch that works on one class, with cover rows",
    ),
    _of(patches.patch_roaming, "images", "backdoor", 0.05, "a patch at a place of each row's own"),
    _of(overlays.blend, "images", "backdoor", 0.01, "a faint pattern of noise over the image"),
    _of(
        overlays.sig, "images", "clean_label", 0.5,
        "a sinusoid on a share of the target class, labels kept",
    ),
    _of(overlays.warp, "images", "backdoor", 0.05, "a smooth elastic warp"),
    _of(overlays.sample_specific, "images", "backdoor", 0.05, "a faint texture of each row's own"),
    _of(
        adaptive.adaptive_blend, "images", "backdoor", 0.02,
        "random parts of a blended pattern, with cover rows",
    ),
    _of(
        adaptive.adaptive_patch, "images", "backdoor", 0.02,
        "one of four faint patches, with cover rows",
    ),
    _of(
        consistent.label_consistent, "images", "clean_label", 0.5,
        "hard rows of the target class with patches, labels kept", needs_model=True,
    ),
    _of(tables.tabular_trigger, "rows", "backdoor", 0.02, "a few columns set to common values"),
    _of(tables.embedding_trigger, "rows", "backdoor", 0.02, "one direction added to the row"),
    _of(
        spectrum.adaptive_spectrum, "any", "backdoor", 0.02,
        "hidden in the leading directions of the target class",
    ),
    _of(
        targeted.feature_collision, "any", "targeted", 0.02,
        "rows of the target moved onto a victim's features", needs_model=True,
    ),
    _of(
        targeted.bullseye_polytope, "any", "targeted", 0.02,
        "a victim made the centre of the target's rows", needs_model=True,
    ),
    _of(
        targeted.gradient_matching, "any", "targeted", 0.02,
        "rows whose gradient is that of a victim's wrong label", needs_model=True,
    ),
    _of(
        duplicates.flood_duplicates, "any", "duplicates", 0.02,
        "a few rows repeated many times under another label",
    ),
)  # fmt: skip

ATTACKS: dict[str, Attack] = {attack.name: attack for attack in _ALL}
