"""The rank of every row, out of all the evidence and what verification made of it."""

from __future__ import annotations

import numpy as np

from jaxpoison import calibrate
from jaxpoison._types import HostArray
from jaxpoison.detect.label_views import Opinion
from jaxpoison.scanning.evidence import Evidence
from jaxpoison.scanning.verify import Verified

FAMILIES = (
    ("density", "mahalanobis", "spectre"),
    ("whitening", "mixture"),
    ("early_loss", "el2n", "aum"),
    ("labels",),
)
"""Detectors that ask one question of a row within its class: alone, of another mode, learnt late,
under a label that is doubted more than others of its class are."""


def ranked(
    evidence: list[Evidence], judged: Verified, verdict: calibrate.Verdict, labels: HostArray
) -> calibrate.Fused:
    """Fuses the evidence, see ``calibrate.fuse``.

    Args:
        evidence: Of every detector that may rank.
        judged: The outcome of verification.
        verdict: Its findings and what they flag.
        labels: [n] dense.
    """
    confirmed = np.zeros(int(labels.max()) + 1, np.bool_)
    confirmed[[f.target for f in verdict.findings if f.confirmed and f.kind != "label_flip"]] = True
    sharp = calibrate.sharp_odds(verdict)
    # where labels are wrong all over, how probable a label is says more than any other tail
    tails = [] if judged.doubt is not None else evidence
    gated = [e for e in tails if e.detector != "labels"]
    doubt = judged.doubt
    return calibrate.fuse(
        [e.log10_p for e in gated],
        [e.gate.open & confirmed for e in gated],
        labels,
        sharp,
        verdict.flagged & np.isfinite(sharp),
        _label_votes(evidence, judged.opinion) if doubt is None else [doubt],
        judged.open_labels,
        _family_votes(tails),
    )


def _label_votes(evidence: list[Evidence], opinion: Opinion | None) -> list[HostArray] | None:
    """Scores [n] each of the families that doubt labels out of fold, or None."""
    if opinion is None:
        return None
    others = [e.scores.values for e in evidence if e.detector == "neighbours"]
    return [opinion.margins, *others[:1]]  # the first are of the inputs, which nothing learnt


def _family_votes(evidence: list[Evidence]) -> list[HostArray]:
    """What each family says of a row within its class, [n] each: Fisher's sum over its detectors.

    The strongest tail of a detector over the spaces counts.
    """
    out = []
    for names in FAMILIES:
        tails = {
            name: -np.min([e.log10_p for e in evidence if e.detector == name], axis=0)
            for name in names
            if any(e.detector == name for e in evidence)
        }
        if tails:
            ranks = [calibrate.rank_log10_p(each) for each in tails.values()]
            out.append(np.sum(ranks, axis=0))
    return out
