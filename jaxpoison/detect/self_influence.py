"""Self-influence: how much a row's own loss depends on having been trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray, Scores
from jaxpoison.detect._detector import Key, flat_rows
from jaxpoison.detect._head import DAMPING, Head, fit_head, probabilities, row_blocks
from jaxpoison.detect._two_groups import two_groups
from jaxpoison.linalg import one_thread
from jaxpoison.stream import Stream

_CHUNK_ROWS = 4096
_FLOOR = 1e-12  # nats, before the logarithm: probabilities in float32 resolve 1e-7, here squared

Form: TypeAlias = Literal["exact", "kronecker", "none"]


class SelfInfluenceInfo(NamedTuple):
    """How the scores were made.

    Attributes:
        form: Of the curvature: "exact" (with the leverage correction), "kronecker", or "none"
            where fewer than two classes have rows.
        gradient: Norm of the objective's gradient where the fit ended.
        num_nonfinite: Rows with features that are not finite; they have the median of their class.
        weight: [c] share of the smaller group of each class.
    """

    form: Form
    gradient: float
    num_nonfinite: int
    weight: HostArray


@dataclass(frozen=True)
class SelfInfluence:
    """Log of the rise of a row's own loss when the last layer is trained without it.

    A softmax head ``W`` on the features (centred, of mean squared length 1, with a one for the
    bias) minimises ``sum_i l_i / n + damping |W|^2 / 2``.
    ``score_i = log(l_i(W_-i) - l_i(W))`` with W_-i one Newton step away on the objective without
    the row, in closed form for all rows at once (``kernels.head_self_influence``, nats).

    A head of more than 2048 weights takes ``log(g_i^T H^-1 g_i / n)`` with ``g_i = (p - y) x^T``
    and H diagonal in the basis ``Q_x (x) Q_z`` of the eigenvectors of the means of ``x x^T`` and
    ``diag p - p p^T``, its diagonal the true mean there: EK-FAC of the Hessian itself, no labels
    are drawn.

    Attributes:
        damping: lambda.
        min_rows: Classes with fewer rows are skipped.

    **Cost**: one read of the features, [n, d] held; about 10 Newton steps of tens of products,
    4 n c d FLOP each; then 2 (n + c d) (c d)^2 FLOP for the exact form, or
    4 n (d^2 + c^2 + c d) in float64 on the host for the other.

    **Assumes / fails on**: a row is odd if only itself explains it: wrong labels, atypical rows.
    A group of poisoned rows explains each other and scores low, like any honest group. The head
    is fitted anew, so a network that learnt its rows by heart has features that hide them.

    Reference: Koh and Liang, 2017, arXiv:1703.04730; Feldman and Zhang, 2020, arXiv:2008.03703
    (self-influence as memorisation); correction: Pregibon, 1981; George et al., 2018,
    arXiv:1806.03884.
    """

    damping: float = DAMPING
    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key) -> Scores:
        """Scores [n]; the statistic separates two groups of log self-influence.

        Args:
            stream: Features, such as those of the last layer of a network.
            key: Not used.

        Raises:
            UsageError: The damping is not a positive number.
        """
        if not 0.0 < self.damping < np.inf:
            raise UsageError(f"damping is {self.damping}; give a positive finite number")
        rows = stream.map(flat_rows)  # features_of would hold them as long as the stream
        is_finite: HostArray = np.isfinite(rows).min(axis=1, initial=True)
        good = np.flatnonzero(is_finite)
        labels = stream.labels[good]
        influence = np.zeros(len(rows))
        form: Form = "none"
        gradient = 0.0
        if len(np.unique(labels)) > 1:
            head = fit_head(rows[good], labels, stream.num_classes, self.damping)
            form, gradient = "exact" if head.is_corrected else "kronecker", head.gradient
            influence[good] = head.own if head.is_corrected else _by_factors(head, labels)
        values = np.log(np.maximum(influence, 0.0) + _FLOOR)
        groups = two_groups(stream, values, self.min_rows, is_finite)
        null = np.zeros((stream.num_classes, 0))
        info = SelfInfluenceInfo(form, gradient, len(rows) - len(good), groups.weight)
        return Scores(groups.values, groups.statistic, null, groups.candidates, info)


def _by_factors(head: Head, labels: HostArray) -> HostArray:
    """``g^T H^-1 g / n`` [n] with H diagonal in the basis of the two factors' eigenvectors."""
    (n, d), c = head.rows.shape, len(head.weights)
    chunks = list(row_blocks(n, _CHUNK_ROWS))
    inputs, outputs = np.zeros((d, d)), np.zeros((c, c))
    for part in chunks:
        x, p = head.rows[part].astype(np.float64), probabilities(head, head.rows[part])
        inputs += x.T @ x
        outputs += np.diag(p.sum(axis=0)) - p.T @ p
    with one_thread():
        of_inputs, of_outputs = (np.linalg.eigh(moment)[1] for moment in (inputs, outputs))
    diagonal = np.zeros((d, c))
    for part in chunks:
        x, p = head.rows[part].astype(np.float64), probabilities(head, head.rows[part])
        spread = p @ np.square(of_outputs) - np.square(p @ of_outputs)
        diagonal += np.square(x @ of_inputs).T @ spread
    inverse = 1.0 / (diagonal / n + head.damping)
    out = np.zeros(n)
    for part in chunks:
        x, p = head.rows[part].astype(np.float64), probabilities(head, head.rows[part])
        p[np.arange(len(p)), labels[part]] -= 1.0
        turned = np.square(x @ of_inputs) @ inverse
        out[part] = np.sum(turned * np.square(p @ of_outputs), axis=1) / n
    return out
