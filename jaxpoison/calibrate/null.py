"""Row p-values against the lower half of each class, and false discovery rates."""

from __future__ import annotations

import numpy as np

from jaxpoison._types import HostArray
from jaxpoison.layout import ClassRows

SIGMA_SHARE = 0.158655  # of a normal population that lies more than one sigma below the centre


def tail_log10_p(values: HostArray, labels: HostArray, num_classes: int) -> HostArray:
    """log10 of each row's upper tail probability in its own class.

    The null of a class is a normal fitted to its lower half only: centre at the median, sigma
    from the median to the 15.87 % quantile. So poison, which sits in the upper half, can not
    widen its own null. Scores that are never negative (squared lengths) are compared on the
    cube-root scale, on which a chi-square is close to normal.

    Args:
        values: [n] scores, higher is more suspicious.
        labels: [n] dense classes.
        num_classes: c.

    Returns:
        [n] float64, at most 0. A class without spread gets 0.

    **Assumes / fails on**: poison is less than half of its class. Honest upper tails heavier than
    normal make small p-values: alone they are a ranking, not evidence; see ``gate``.

    Reference: Wilson and Hilferty, 1931 (cube root); the one-sided null follows Efron, 2004.
    """
    from scipy.special import log_ndtr

    out = np.zeros(len(values))
    scale = np.cbrt if values.size and values.min() >= 0 else np.asarray
    of_class = ClassRows(labels, num_classes)
    for c in range(num_classes):
        mine = of_class[c]
        if not mine.size:
            continue
        v = scale(values[mine].astype(np.float64))
        low, centre = np.quantile(v, [SIGMA_SHARE, 0.5])
        if centre > low:
            out[mine] = log_ndtr((centre - v) / (centre - low)) / np.log(10.0)
    return out


def benjamini_hochberg(p: HostArray) -> HostArray:
    """q-values: the smallest false discovery rate at which each row would be called.

    ``q_(i) = min over j >= i of p_(j) n / j``, at most 1.

    Args:
        p: [n] p-values.

    Returns:
        [n] q-values, in the order given.

    Reference: Benjamini and Hochberg, 1995.
    """
    order = np.argsort(p, kind="stable")
    n = len(p)
    scaled = p[order] * n / np.arange(1, n + 1)
    q = np.empty(n)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q
