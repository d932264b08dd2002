"""Groups of rows that detectors set apart, findings, and what makes a group poison."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpoison._types import Exclusion, HostArray, Refined

# A group counts as dirty-label poison when its rows belong elsewhere:
MIN_ROWS = 5  # fewer rows prove nothing
MAX_SHARE = 0.8  # of a class: beyond it, what is left is the odd part
MAX_AGREEMENT = 0.5  # own label without their own help, of what the rest of the class reaches
_ABOVE_CHANCE = 1.3  # agreement of the rest of the class, of what guessing gives
_MAX_LOG10_P = -3.0  # so low an agreement must not be chance
_MIN_DISPLACEMENT = 1.3  # farther from home than from the classes they came from,
_DISPLACEMENT_NOISE = 0.6  # over sqrt(rows): the medians of few rows scatter
_MAX_TRANSPLANT = 1.4  # and ordinary there, up to one common shift
# Distances to rows fade where classes and dimensions are many. Rows of many classes that lie deep
# in them by the means are confirmed as well: honest groups that are taken for so many classes
# reach a depth of -0.2, on digits, Fashion-MNIST and 200 cells of it as classes. Where classes
# overlap, a row is taken for a wrong one too often for that; its scatter tells it all the same:
# planted groups gain 0.7 to 2.3 nats a row as a mixture of classes, honest ones lose 0.4 to 28.
_MIXTURE, _MIXTURE_ERRORS = 0.2, 3.0
# Depth alone counts for less where the scatter is against it: of 24 honest trousers the means said
# that they lie in other classes, at a loss of 2.7 nats; warped rows, which lose as well, are many.
_DEEP_ROWS, _DEEP, _DEEP_DIVERSITY = 10, 0.5, 0.5
_DEEP_ALIKE_ROWS = 50
_DEEP_EXPECTED, _DEEP_AGREEMENT, _DEEP_LOG10_P = 0.3, 0.2, -5.0
# A cluster this far off is reported even when nothing confirms it (clean-label poison keeps its
# labels): only in many dimensions, where honest data has no such gaps.
_LONE_SEPARATION = 45.0
_LONE_Z = 6.0
_LONE_ROWS = 20
_LONE_FEATURES = 32
_SHIFT_SEPARATION = 5.0  # of disputed rows along a shift; honest ones reach about 4
# A trait of doubted rows: separated along it, and deep inside the classes they are taken for.
_TRAIT_ROWS = 8
_TRAIT_SEPARATION, _TRAIT_DEPTH = 3.5, 0.2
_TRAIT_PRODUCT = 2.2  # of the two, where the rows are displaced as well
_TRAIT_ALONE = 5.0  # where they are not; honest ones reach 2.7, or 7.1 at a depth of 0.36
_TRAIT_DEEP = 0.5
# Rows that scatter like one class yet lie in others: warped rows keep at most .04 of the agreement
# of their class and reach a product of 3.6; honest ones keep .2 and reach 3.4. Both they and rows
# of a single class are displaced (1.18 and more); 15 honest pullovers of a long tail were not.
_TRAIT_INSIDE, _TRAIT_AGREEMENT = 3.0, 0.1
_TRAIT_DISPLACEMENT, _TRAIT_NOISE = 1.1, 0.4  # and over sqrt(rows); honest ones reach 1.13
_TRAIT_EXPECTED = 0.2  # of the rest of its class, or doubt of a row is doubt of the classifiers
_WHITENING_SEPARATION = 7.0  # of two modes behind an open gate; honest classes reach 5.3
# Of digits, 64 features, 12 to 24 honest rows reach 14.2 (crossed sevens 10.6); what teaches a
# network under honest labels is half of its class.
_SMALL_FEATURES, _SMALL_SHARE, _SMALL_SEPARATION = 128, 0.3, 16.0
# In tables of few features honest classes have modes and odd corners of their own: they reach 7.9,
# spread like the rest of their class, traits whose product is 7.6, and displacements of 1.5.
_FEW_FEATURES = 48
_FEW_SEPARATION, _FEW_SPREAD, _FEW_PRODUCT, _FEW_DISPLACEMENT = 12.0, 1.5, 8.2, 1.7
# So they do where each feature has its own unit: a rare but honest value, as a pixel at the rim
# or a flag, is as far off as a trigger, and most of all one that only one class has.
# In few features a displaced group that is no rows of many classes must be far apart as well: of
# image segments honest corners reach 24 as separation times displacement, planted rows of one class
# 48 to 800.
_FEW_APART = 34.0


class Group(NamedTuple):
    """Rows of one class that a detector's open gate sets apart.

    Attributes:
        detector: Name.
        space: Where it looked.
        target: Dense class.
        rows: Row numbers.
        log_odds: [len(rows)] of belonging to the group, where the detector gives odds; else None.
        separation: Of the two populations, NaN where the detector has none.
        z: Of the class statistic across classes.
        num_features: d of the space.
        hint: What the detector knows of the kind: "duplicates", or nothing.
        spread_ratio: Spread of the rows over that of the rest of their class in the directions
            that tell classes apart, where the detector measures it; else NaN.
        depth: How far its rows lie inside the classes they are taken for, for traits; else NaN.
        own_units: Whether each feature of the inputs was given a unit of its own.
        share: Of its class, where a detector's gate set it apart; else NaN.
    """

    detector: str
    space: str
    target: int
    rows: HostArray
    log_odds: HostArray | None
    separation: float
    z: float
    num_features: int
    hint: str = ""
    spread_ratio: float = float("nan")
    depth: float = float("nan")
    own_units: bool = False
    share: float = float("nan")

    @property
    def is_plain(self) -> bool:
        """Whether honest rows have no modes of their own in so many features alike."""
        return self.num_features >= _FEW_FEATURES and not self.own_units


class Finding(NamedTuple):
    """One suspected attack.

    Attributes:
        kind: "backdoor", "clean_label", "targeted", "duplicates", "label_flip" or
            "subpopulation".
        target: Dense class that holds the rows.
        source: Dense class they come from, or None for several.
        rows: Row numbers, flagged.
        log_odds: [len(rows)].
        support: [len(rows)] share of the groups behind the finding that hold the row.
        near: Other rows of the class that have odds, below even.
        near_odds: [len(near)].
        confidence: 0..1.
        confirmed: Whether verification agrees.
        groups: Indices of the groups behind it.
    """

    kind: str
    target: int
    source: int | None
    rows: HostArray
    log_odds: HostArray
    support: HostArray
    near: HostArray
    near_odds: HostArray
    confidence: float
    confirmed: bool
    groups: tuple[int, ...]


def displacement_limit(group: Group) -> float:
    """Displacement that a group must reach to be confirmed."""
    least = _MIN_DISPLACEMENT if group.is_plain else _FEW_DISPLACEMENT
    return float(least + _DISPLACEMENT_NOISE / np.sqrt(max(len(group.rows), 1)))


def is_confirmed(group: Group, check: Exclusion, num_classes: int) -> bool:
    """Whether a group is poison by more than its gate.

    In general rows of other classes must explain it better than its own class does. Honest odd
    corners of a class fail: a classifier that never saw them may well take them for another class,
    but they lie no nearer to it than to their own. A trait of rows deep inside other classes, two
    modes far apart in directions where no other class varies, and copies need no such proof.
    Nothing is proved where classifiers do not know the rest of the class better than chance.
    """
    if group.hint == "duplicates":
        return True
    if group.detector == "whitening" and _is_mode(group, check):
        return True
    if group.detector == "trait":
        return _is_trait(group, check)
    return (
        len(group.rows) >= MIN_ROWS
        and check.expected >= _ABOVE_CHANCE / num_classes
        and check.log10_p <= _MAX_LOG10_P
        and check.agreement <= MAX_AGREEMENT * check.expected
        and (_is_displaced(group, check) or _is_deep(group, check))
    )


def _is_displaced(group: Group, check: Exclusion) -> bool:
    return (
        check.home >= displacement_limit(group) * check.transplant
        and check.transplant <= _MAX_TRANSPLANT
        and not _is_corner(group, check)
    )


def _is_corner(group: Group, check: Exclusion) -> bool:
    """Whether a displaced group of few features may be an odd part of its own class."""
    if group.num_features >= _FEW_FEATURES or not _is_alike(check):
        return False
    return not group.separation * check.home >= _FEW_APART * check.transplant


def _is_alike(check: Exclusion) -> bool:
    """Whether rows scatter as one class does and lie in no other."""
    return check.mixture < 0 and not check.depth >= _DEEP


def _is_deep(group: Group, check: Exclusion) -> bool:
    are_many = len(group.rows) >= _DEEP_ALIKE_ROWS or not check.mixture < 0
    return (
        len(group.rows) >= _DEEP_ROWS
        and group.num_features >= _FEW_FEATURES
        and check.expected >= _DEEP_EXPECTED
        and check.agreement <= _DEEP_AGREEMENT * check.expected
        and check.log10_p <= _DEEP_LOG10_P
        and check.transplant <= _MAX_TRANSPLANT
        and check.diversity >= _DEEP_DIVERSITY
        and (_is_mixture(check) or (check.depth >= _DEEP and are_many))
    )


def _is_mixture(check: Exclusion) -> bool:
    return check.mixture >= _mixture_limit(check)


def _mixture_limit(check: Exclusion) -> float:
    return max(_MIXTURE, _MIXTURE_ERRORS * check.mixture_error)


def _is_mode(group: Group, check: Exclusion) -> bool:
    far = group.separation >= _WHITENING_SEPARATION
    if group.is_plain:
        # a few honest rows may show what no other row does
        are_many = len(group.rows) >= _LONE_ROWS or check.log10_p <= _MAX_LOG10_P
        return far and are_many and not _is_style(group)
    if group.num_features >= _FEW_FEATURES:
        # a rare value of honest rows leaves them what they are
        return group.separation >= _FEW_SEPARATION and check.log10_p <= _MAX_LOG10_P
    is_wide = far and group.spread_ratio >= _FEW_SPREAD and not _is_alike(check)
    return group.separation >= _FEW_SEPARATION or is_wide


def _is_style(group: Group) -> bool:
    """Whether a mode may be a style that some rows of an honest class share."""
    if group.num_features >= _SMALL_FEATURES or group.separation >= _SMALL_SEPARATION:
        return False
    return group.share < _SMALL_SHARE


def _is_trait(group: Group, check: Exclusion) -> bool:
    if not is_worth_verifying(group) or check.expected < _TRAIT_EXPECTED:
        return False
    strength = group.separation * group.depth
    if group.num_features >= _FEW_FEATURES and _is_mixture(check):
        return True
    if group.num_features < _FEW_FEATURES and _is_alike(check):
        return False  # honest corners of image segments reach a strength of 8.3
    least = _TRAIT_DISPLACEMENT + _TRAIT_NOISE / np.sqrt(len(group.rows))
    is_displaced = bool(check.home >= least * check.transplant)
    if not group.is_plain:
        stays_home = group.num_features >= _FEW_FEATURES and check.mixture < 0 and not is_displaced
        return strength >= _FEW_PRODUCT and not stays_home
    speaks = strength >= _TRAIT_ALONE or (strength >= _TRAIT_PRODUCT and is_displaced)
    if check.mixture < 0:  # of one class, or from one: the trait is strong, or deep in others
        is_strong = strength >= _TRAIT_ALONE and group.depth >= _TRAIT_DEEP
        is_inside = (
            check.depth >= _DEEP
            and strength >= _TRAIT_INSIDE
            and check.agreement <= _TRAIT_AGREEMENT * check.expected
        )
        return is_displaced and (is_strong or is_inside)
    return speaks


def decisive(group: Group, check: Exclusion) -> tuple[str, float, float]:
    """What confirms a group, or comes nearest to it: a statistic, its value and its threshold."""
    away = check.home / max(check.transplant, 1e-6)
    displaced = "distance to its own class, of that to other classes"
    if group.detector == "trait":
        return _decisive_trait(group, check)
    if group.detector == "whitening" and _is_mode(group, check):
        return "separation of two modes of the class", group.separation, _mode_limit(group)
    if not _is_displaced(group, check):
        if _is_deep(group, check):
            return _decisive_depth(check)
        if away >= displacement_limit(group) and _is_corner(group, check):
            return "separation times displacement", group.separation * away, _FEW_APART
    return displaced, away, displacement_limit(group)


def _decisive_depth(check: Exclusion) -> tuple[str, float, float]:
    if check.depth >= _DEEP:
        return "depth in the classes it is taken for", check.depth, _DEEP
    return "nats a row gained as rows of other classes", check.mixture, _mixture_limit(check)


def _decisive_trait(group: Group, check: Exclusion) -> tuple[str, float, float]:
    if group.num_features >= _FEW_FEATURES and _is_mixture(check):
        return _decisive_depth(check._replace(depth=float("nan")))
    strength, limit = group.separation * group.depth, _TRAIT_PRODUCT
    if not group.is_plain:
        limit = _FEW_PRODUCT
    elif check.mixture < 0:
        limit = _TRAIT_INSIDE if check.depth >= _DEEP else _TRAIT_ALONE
    return "separation of a trait, times its depth", strength, limit


def _mode_limit(group: Group) -> float:
    if group.is_plain:
        style = _is_style(group._replace(separation=0.0))
        return _SMALL_SEPARATION if style else _WHITENING_SEPARATION
    is_far = group.separation >= _FEW_SEPARATION
    return _FEW_SEPARATION if is_far else _WHITENING_SEPARATION  # the latter where it is wide


def is_lone(group: Group) -> bool:
    """Whether a group is so far off that it is reported unconfirmed."""
    if group.detector == "whitening":
        return len(group.rows) >= _LONE_ROWS and group.is_plain and not _is_style(group)
    return bool(
        np.nan_to_num(group.separation) >= _LONE_SEPARATION
        and group.z >= _LONE_Z
        and len(group.rows) >= _LONE_ROWS
        and group.num_features >= _LONE_FEATURES
    )


def confidence(group: Group, check: Exclusion) -> float:
    """0..1, from how far beyond its thresholds a confirmed group lies."""
    displacement = check.home / max(check.transplant, 1e-6)
    score = (
        0.5 * min(_MAX_LOG10_P - check.log10_p, 8.0)
        + 4.0 * (MAX_AGREEMENT - check.agreement / max(check.expected, 1e-6))
        + 6.0 * (min(displacement, 2.0) - displacement_limit(group))
        + 0.5 * np.log(max(float(np.nan_to_num(group.separation)), 4.0) / 8.0)
    )
    return float(1.0 / (1.0 + np.exp(-score)))


def shifted_groups(
    labels: HostArray, found: list[Refined | None], num_features: int
) -> list[Group]:
    """Groups along a shift that disputed rows share, where it sets them clearly apart.

    Args:
        labels: [n] dense.
        found: What ``refine`` made of the disputed rows of each class.
        num_features: Of the inputs.

    Returns:
        A group for each clear one.
    """
    out = []
    for each in found:
        if each is None or each.separation < _SHIFT_SEPARATION:
            continue
        if MIN_ROWS <= (each.log_odds > 0).sum() < len(each.log_odds):
            group = trait_group(
                int(labels[each.rows[0]]), each.rows, each.log_odds, each.separation,
                float("nan"), num_features,
            )  # fmt: skip
            out.append(group._replace(detector="exclusion", space="disputed labels"))
    return out


def is_worth_verifying(group: Group) -> bool:
    """Whether a trait may be confirmed at all."""
    return (
        len(group.rows) >= _TRAIT_ROWS
        and group.separation >= _TRAIT_SEPARATION
        and group.depth >= _TRAIT_DEPTH
    )


def trait_group(
    target: int, rows: HostArray, odds: HostArray, apart: float, depth: float, num_features: int
) -> Group:
    """The rows that more likely have a trait than not, as a group; num_features of the inputs."""
    inside = odds > 0
    return Group(
        detector="trait",
        space="labels",
        target=target,
        rows=rows[inside],
        log_odds=odds[inside],
        separation=apart,
        z=0.0,
        num_features=num_features,
        depth=depth,
    )
