"""Gradient norms: how much each row would still move the trained network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxpoison._types import HostArray, Scores
from jaxpoison.detect._detector import Key
from jaxpoison.detect._gradients import gradient_norms_of
from jaxpoison.detect._two_groups import two_groups
from jaxpoison.models import Model
from jaxpoison.stream import Stream

_FLOOR = 1e-5  # of a norm before its logarithm: about what rounding in a softmax leaves of one


class GradientNormInfo(NamedTuple):
    """What the norms were.

    Attributes:
        num_nonfinite: Rows whose loss or gradient is not finite; they have the median of their
            class.
        weight: [c] share of the smaller group of each class.
    """

    num_nonfinite: int
    weight: HostArray


@dataclass(frozen=True)
class GradientNorm:
    """Log of the norm of the gradient of a row's loss in all trained leaves.

    ``score_i = log |d l(f(x_i), y_i) / d theta|_2`` at the end of the training, over the weights
    and biases of all layers. The norm comes from the inputs and output gradients of each layer
    (for a dense layer it is the product of theirs); no gradient of a row is formed.

    Attributes:
        min_rows: Classes with fewer rows are skipped.

    **Cost**: one pass: a forward and a backward in the activations, 4 T P FLOP a row, and the
    products of ``kernels.gradient_norms``; blocks of at most 2^26 numbers of inputs and output
    gradients.

    **Assumes / fails on**: the network has not learnt the wrong labels by heart. Rows that it
    contradicts are large, and so are honest rows between two classes. A backdoor that it learnt
    has small gradients: those are the business of ``LowLossIsolation``.

    Reference: Paul, Ganguli, Dziugaite, 2021, arXiv:2107.07075 (GraNd, there early in training);
    the norms: Goodfellow, 2015, arXiv:1510.01799.
    """

    min_rows: int = 40

    def score(self, stream: Stream, *, key: Key, model: Model) -> Scores:
        """Scores [n]; the statistic separates two groups of log norms, see ``two_groups``.

        Args:
            stream: Raw inputs as the model takes them, without a stage.
            key: Not used.
            model: Its loss is differentiated in all that it trains.

        Raises:
            UsageError: The stream has a stage, or the model has no gradients of single rows.
        """
        norms, is_finite = gradient_norms_of(stream, model, key)
        values = np.log(norms.astype(np.float64) + _FLOOR)
        groups = two_groups(stream, values, self.min_rows, is_finite)
        null = np.zeros((stream.num_classes, 0))
        info = GradientNormInfo(int((~is_finite).sum()), groups.weight)
        return Scores(groups.values, groups.statistic, null, groups.candidates, info)
