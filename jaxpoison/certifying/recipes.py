"""From the names in a plan to the objects of ``jaxpoison.certify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxpoison._check import UsageError
from jaxpoison.certify import features as maps
from jaxpoison.certify import learners
from jaxpoison.certify.keys import Column, ContentHash, TimeWindow
from jaxpoison.certify.threats import General, Keys, LabelFlip

if TYPE_CHECKING:
    from jaxpoison.certify.features import FeatureMap
    from jaxpoison.certify.keys import KeyRule
    from jaxpoison.certify.learners import Learner
    from jaxpoison.certify.threats import Threat
    from jaxpoison.certifying.plan import CertifyPlan
    from jaxpoison.sources import Schema

_LEAST_SIDE = 16  # of an image that has room for wavelets of two octaves
_NETWORKS = ("mlp", "cnn")


def learner_of(plan: CertifyPlan, schema: Schema) -> Learner:
    """The learner of a plan for rows of a schema.

    Raises:
        UsageError: A learner or features that rows of this kind do not fit.
    """
    if plan.learner in _NETWORKS:
        return _network(plan, schema)
    closed = {
        "kernel-ridge": learners.KernelRidge, "ridge": learners.Ridge,
        "class-mean": learners.ClassMean, "neighbours": learners.Neighbours,
    }  # fmt: skip
    name = auto_features(schema) if plan.features == "auto" else plan.features
    learner: Learner = closed[plan.learner](features=_map(name, schema))
    return learner


def auto_features(schema: Schema) -> str:
    """Features that fit the rows: a function of their shape alone, never of their values."""
    if schema.kind == "rows":
        return "pixels"
    if min(schema.shape[:2]) < _LEAST_SIDE:
        return "deskew" if len(schema.shape) == 2 else "pixels"
    # Deskewing straightens ink on an empty ground; colour pictures have none.
    return "deskew+scattering" if len(schema.shape) == 2 else "scattering"


def key_of(plan: CertifyPlan) -> KeyRule:
    """What gives a row its cell."""
    salt = plan.salt.encode()
    if plan.key is None:
        return ContentHash(salt=salt, decimals=plan.decimals)
    if plan.window is None:
        return Column(plan.key, salt=salt)
    width = int(plan.window) if plan.window == int(plan.window) else plan.window
    return TimeWindow(plan.key, width)


def threat_of(plan: CertifyPlan) -> Threat:
    """What the attacker may do."""
    name = plan.threat or ("general" if plan.key is None else "keys")
    threats: dict[str, Threat] = {"general": General(), "flip": LabelFlip(), "keys": Keys()}
    return threats[name]


def _network(plan: CertifyPlan, schema: Schema) -> Learner:
    if plan.learner == "cnn":
        if schema.kind != "images" or plan.features != "auto":
            raise UsageError(
                "learner: 'cnn' takes images as they are; give images without --features, or "
                "another learner"
            )
        return learners.small_cnn(seed=plan.seed)
    chosen: Any = None if plan.features == "auto" else _map(plan.features, schema)
    return learners.mlp(seed=plan.seed, features=chosen)


def _map(name: str, schema: Schema) -> FeatureMap:
    if schema.kind == "rows" and name != "pixels":
        raise UsageError(
            f"features: {name!r} are of images, and the rows are {schema.shape[0]} values; take "
            "pixels, or give images"
        )
    table: dict[str, FeatureMap] = {
        "pixels": maps.Pixels(),
        "deskew": maps.Chain((maps.Deskew(), maps.Pixels())),
        "scattering": maps.Scattering(),
        "deskew+scattering": maps.Chain((maps.Deskew(), maps.Scattering())),
        "hog": maps.Hog(),
        "deskew+hog": maps.Chain((maps.Deskew(), maps.Hog())),
    }
    return table[name]
