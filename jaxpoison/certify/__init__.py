"""Certified prediction: partitions, ensembles, votes, and certificates in exact integers.

    votes = certify.votes_of(scores=scores, subsets=ids, design=design)
    certify.certify(votes, rule="plurality").radius

Importing this loads nothing heavy; the names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxpoison.certify import features as features
    from jaxpoison.certify import learners as learners
    from jaxpoison.certify._types import Design as Design
    from jaxpoison.certify.baselines import ProbabilisticCertificates as ProbabilisticCertificates
    from jaxpoison.certify.baselines import certify_bagging as certify_bagging
    from jaxpoison.certify.baselines import certify_group_privacy as certify_group_privacy
    from jaxpoison.certify.baselines import certify_label_smoothing as certify_label_smoothing
    from jaxpoison.certify.certificates import Certificates as Certificates
    from jaxpoison.certify.certificates import certify as certify
    from jaxpoison.certify.choose import choose_k as choose_k
    from jaxpoison.certify.collective import CollectiveCertificates as CollectiveCertificates
    from jaxpoison.certify.collective import certify_together as certify_together
    from jaxpoison.certify.ensemble import Ensemble as Ensemble
    from jaxpoison.certify.ensemble import fit as fit
    from jaxpoison.certify.ensemble import fit_partitions as fit_partitions
    from jaxpoison.certify.flips import FlipCertificates as FlipCertificates
    from jaxpoison.certify.flips import certify_flips as certify_flips
    from jaxpoison.certify.flips import certify_kernel_ridge as certify_kernel_ridge
    from jaxpoison.certify.flips import flip_costs as flip_costs
    from jaxpoison.certify.keys import Column as Column
    from jaxpoison.certify.keys import ContentHash as ContentHash
    from jaxpoison.certify.keys import KeyFunction as KeyFunction
    from jaxpoison.certify.keys import PixelSum as PixelSum
    from jaxpoison.certify.keys import SortedPosition as SortedPosition
    from jaxpoison.certify.keys import TimeWindow as TimeWindow
    from jaxpoison.certify.manifest import manifest_of as manifest_of
    from jaxpoison.certify.partitions import LADDER as LADDER
    from jaxpoison.certify.partitions import Partitions as Partitions
    from jaxpoison.certify.partitions import partition as partition
    from jaxpoison.certify.ranking import margins_of as margins_of
    from jaxpoison.certify.ranking import rank_classes as rank_classes
    from jaxpoison.certify.rules.guard import Guarded as Guarded
    from jaxpoison.certify.rules.median import IntervalCertificates as IntervalCertificates
    from jaxpoison.certify.rules.median import certify_median as certify_median
    from jaxpoison.certify.rules.neighbours import (
        certify_nearest_neighbours as certify_nearest_neighbours,
    )
    from jaxpoison.certify.rules.neighbours import (
        certify_radius_neighbours as certify_radius_neighbours,
    )
    from jaxpoison.certify.rules.top_k import TopK as TopK
    from jaxpoison.certify.threats import General as General
    from jaxpoison.certify.threats import Keys as Keys
    from jaxpoison.certify.threats import LabelFlip as LabelFlip
    from jaxpoison.certify.verification import verify as verify
    from jaxpoison.certify.verification import verify_learner as verify_learner
    from jaxpoison.certify.votes import Votes as Votes
    from jaxpoison.certify.votes import sum_scores as sum_scores
    from jaxpoison.certify.votes import votes_of as votes_of

_MEMBERS = {
    "Certificates": "certificates",
    "CollectiveCertificates": "collective",
    "Column": "keys",
    "ContentHash": "keys",
    "Design": "_types",
    "Ensemble": "ensemble",
    "FlipCertificates": "flips",
    "General": "threats",
    "Guarded": "rules.guard",
    "IntervalCertificates": "rules.median",
    "KeyFunction": "keys",
    "Keys": "threats",
    "LADDER": "partitions",
    "LabelFlip": "threats",
    "Partitions": "partitions",
    "PixelSum": "keys",
    "ProbabilisticCertificates": "baselines",
    "SortedPosition": "keys",
    "TimeWindow": "keys",
    "TopK": "rules.top_k",
    "Votes": "votes",
    "certify": "certificates",
    "certify_bagging": "baselines",
    "certify_flips": "flips",
    "certify_group_privacy": "baselines",
    "certify_kernel_ridge": "flips",
    "certify_label_smoothing": "baselines",
    "certify_median": "rules.median",
    "certify_nearest_neighbours": "rules.neighbours",
    "certify_radius_neighbours": "rules.neighbours",
    "certify_together": "collective",
    "choose_k": "choose",
    "fit": "ensemble",
    "fit_partitions": "ensemble",
    "flip_costs": "flips",
    "manifest_of": "manifest",
    "margins_of": "ranking",
    "partition": "partitions",
    "rank_classes": "ranking",
    "sum_scores": "votes",
    "verify": "verification",
    "verify_learner": "verification",
    "votes_of": "votes",
}
_ROOMS = frozenset({"features", "learners"})
__all__ = sorted({*_MEMBERS, *_ROOMS})


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _ROOMS:
        return import_module(f"jaxpoison.certify.{name}")
    if name not in _MEMBERS:
        raise AttributeError(f"module 'jaxpoison.certify' has no attribute {name!r}")
    value: object = getattr(import_module(f"jaxpoison.certify.{_MEMBERS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
