"""Which rows a network's answer to given inputs comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray, Scores
from jaxpoison.detect._detector import Key, empty_scores, flat_rows
from jaxpoison.detect._head import DAMPING, fit_head, mean_responsibility
from jaxpoison.stream import Stream


class Targets(NamedTuple):
    """Predictions that are asked about.

    Attributes:
        features: [m, d] as the stream shows its rows.
        labels: [m] int32 dense classes: those the network gave, or those in dispute.
    """

    features: HostArray
    labels: HostArray


class InfluenceInfo(NamedTuple):
    """How the scores came about.

    Attributes:
        form: "leave-one-out" (losses or their gradients after a Newton step without the row),
            "influence" (without the leverage of the row), or "gradients" (no curvature).
        num_targets: m.
        damping: lambda of the head.
        gradient: Norm of the head's gradient; influence assumes that it is small.
        residual: Largest relative residual of the linear systems.
    """

    form: str
    num_targets: int
    damping: float
    gradient: float
    residual: float


@dataclass(frozen=True)
class TargetInfluence:
    """Predicted rise of the targets' mean loss when the row is removed, nats.

    A softmax head is fitted to the features: ``min sum_i l_i / n + lambda |W|^2 / 2``. Taking row i
    out moves W by ``(H - H_i)^-1 g_i / n``, H the Hessian, H_i the part of row i and g_i its
    gradient, and the score is what that does to the loss of the targets at their given labels. High
    scores hold the prediction up: for an input with a trigger, the rows that taught the trigger.

    Attributes:
        damping: lambda, on features of mean squared length 1.
        min_rows: Smaller classes are skipped; they still teach the head.

    **Cost**: ten Newton steps of the head; c - 1 linear systems a target, or one for all of more
    than ``64 / (c - 1)`` targets: some tens of products of 4 n d c FLOP each; the leverages
    ``(n c d)^2 / n`` where c (d + 1) is at most 2048. Above 131,072 no system is solved.

    **Assumes / fails on**: the last layer is what rows act through: what they did to the features
    is not seen. It answers for the targets only. The rows behind an honest prediction are honest,
    so scores are no evidence of poison by themselves, and one of many copies is replaced by the
    others: it hardly matters alone.

    Reference: Koh and Liang, 2017, arXiv:1703.04730; the correction: Rad and Maleki, 2020,
    arXiv:1801.10243; gradients: Pruthi et al., 2020, arXiv:2002.08484.
    """

    damping: float = DAMPING
    min_rows: int = 1

    def score(self, stream: Stream, *, key: Key, targets: Targets) -> Scores:
        """Scores [n]; the statistic is the sum of a class's scores above 0."""
        asked = np.asarray(targets.features, np.float32)
        _check(asked, targets.labels, stream.num_classes)
        features = features_of(stream)
        if asked.shape[1] != features.shape[1]:
            raise UsageError(
                f"targets: {asked.shape[1]} features, the rows have {features.shape[1]}; give "
                "features of the same network"
            )
        head = fit_head(features, stream.labels, stream.num_classes, self.damping)
        found = mean_responsibility(head, head.of(asked), targets.labels)
        values, statistic, null = empty_scores(stream)
        for c in np.flatnonzero(stream.counts >= max(self.min_rows, 1)):
            mine = stream.labels == c
            values[mine] = found.scores[mine]
            statistic[c] = np.maximum(found.scores[mine], 0.0).sum(dtype=np.float64)
        info = InfluenceInfo(found.form, len(asked), self.damping, head.gradient, found.residual)
        return Scores(values, statistic, null, None, info)


def features_of(stream: Stream) -> HostArray:
    """The rows of a stream behind its stage, [n, d] float32, read once."""
    out: HostArray = stream.memo("flat_features", lambda: stream.map(flat_rows))
    return out


def _check(features: HostArray, labels: HostArray, num_classes: int) -> None:
    labels = np.asarray(labels)
    if features.ndim != 2 or not len(features) or labels.shape != features.shape[:1]:
        raise UsageError(
            f"targets: features of shape {features.shape} and labels of shape {labels.shape}; give "
            "[m, d] and [m], m at least 1"
        )
    if not np.isfinite(features).all():
        row = int(np.argmin(np.isfinite(features).all(axis=1)))
        raise UsageError(f"targets: the features of row {row} are not finite; leave it out")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= num_classes:
        raise UsageError(
            f"targets: labels of type {labels.dtype} from {labels.min()} to {labels.max()}; give "
            f"integers from 0 to {num_classes - 1}"
        )
