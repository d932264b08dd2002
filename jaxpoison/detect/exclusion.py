"""Verification of candidate rows: what are they without their own labels' help?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from jaxpoison import folds
from jaxpoison._check import UsageError
from jaxpoison._types import Exclusion, HostArray
from jaxpoison.detect._class_mixture import ClassMixture
from jaxpoison.detect._detector import Key, even_subset, host_rng
from jaxpoison.detect._inputs import inputs_of
from jaxpoison.linalg import one_thread
from jaxpoison.stream import Stream

_GROUP_ROWS = 4000  # larger groups are judged by an even subset, their weight scaled up
_OTHER_ROWS = 4000  # rows that stand for the rest of the data in the transplant
_PROBE_ROWS = 200
_SHIFT_STEPS = 4
_TEACHING_ROWS = 1 << 18  # of more rows about so many teach the classifier, a share of each class


class Fit(NamedTuple):
    """The classifier's normal equations and its out-of-fold opinion of every row."""

    features: folds.RandomFeatures
    gram: HostArray  # [p, p] of the rows that teach
    target: HostArray  # [p, c]
    ridge: float
    agrees: HostArray  # [n] bool, own label out of fold
    taught: HostArray  # [n] bool, rows that are in the equations
    rows: HostArray  # [o] sampled rows
    x: HostArray  # [o, d]
    x_labels: HostArray  # [o]
    usual: HostArray  # [o] distance to the nearest row of the same class, NaN where not probed
    classes: ClassMixture


@dataclass(frozen=True)
class ExclusionCheck:
    """Asks a classifier that never saw a group what its rows are.

    A ridge classifier on random Fourier features of the inputs is fitted once. For a group its
    rows are taken out of the normal equations *exactly* (``A - Phi_S^T Phi_S``), so each group
    costs one solve and no training. Planted dirty-label rows then go back to their own classes;
    an honest cluster mostly keeps its label, or is taken for one neighbour from afar.

    Attributes:
        num_features: Random features p.
        num_folds: Folds of the out-of-fold opinion.
        ridge: Share of the mean diagonal added to it.
        bandwidth: Of the features, in units of the inputs' root mean square norm.

    **Cost**: two passes of 2 r p^2 + 2 n p (d + c) FLOP in all, r = n up to 2^18 rows and
    beyond about so many, the first ones of every tile, but no fewer than the folds; p^3 / 3 a
    group; a sample of rows held.

    **Assumes / fails on**: the inputs tell the classes apart without the trigger. A clean-label
    attack keeps its labels and is not confirmed; features of a model that learnt the poison put
    triggered rows where their label says, and confirm nothing.

    Reference: exclusionary reclassification, Chen et al., 2018, arXiv:1811.03728, as a second
    stage; random features: Rahimi and Recht, 2007.
    """

    num_features: int = 1024
    num_folds: int = 5
    ridge: float = 1e-3
    bandwidth: float = 0.5

    def fit(self, stream: Stream, *, key: Key) -> Fit:
        """Two passes: normal equations by fold, then every row judged by the other folds.

        Raises:
            UsageError: Fewer than two folds, or a ridge or bandwidth that is not above 0.
        """
        if self.num_folds < 2 or not (self.ridge > 0 and self.bandwidth > 0):
            raise UsageError(
                f"num_folds is {self.num_folds}, ridge {self.ridge}, bandwidth {self.bandwidth}; "
                "give at least 2 folds, and numbers above 0"
            )
        counts, mean = folds.class_means(stream)
        centre = (counts @ mean / max(counts.sum(), 1)).astype(np.float32)
        spread = stream.fold(folds.SquaredNorm(centre))
        rms = float(np.sqrt(max(spread / max(len(stream), 1), 1e-30)))
        weights_key, phase_key, rows_key = jax.random.split(key, 3)
        d, p = mean.shape[1], self.num_features
        weights = np.asarray(jax.random.normal(weights_key, (d, p))) / (self.bandwidth * rms)
        phase = np.asarray(jax.random.uniform(phase_key, (p,), maxval=2 * np.pi))
        features = folds.RandomFeatures(centre, weights.astype(np.float32), phase)
        places = _places(stream, self.num_folds)
        grams, targets = stream.fold(
            folds.RidgeEquations(features, stream.num_classes, self.num_folds, places)
        )
        gram, target = grams.sum(axis=0), targets.sum(axis=0)
        ridge = self.ridge * float(np.trace(gram)) / len(gram)
        solved = np.stack(
            [
                _solve(gram - part, target - part_target, ridge).astype(np.float32)
                for part, part_target in zip(grams, targets, strict=True)
            ]
        )
        del grams, targets  # of many classes they are a tenth of a gigabyte
        agrees = stream.map(folds.out_of_fold_agrees, features, solved)
        some = np.sort(host_rng(rows_key).permutation(len(stream))[:_OTHER_ROWS])
        x, labels = inputs_of(stream, some), stream.labels[some]
        taught = np.ones(len(stream), np.bool_)
        if places is not None:
            taught = stream.rows.layout.places(stream.labels) < places
        usual, classes = _usual(x, labels), ClassMixture.of(stream)
        return Fit(features, gram, target, ridge, agrees, taught, some, x, labels, usual, classes)

    def check(self, stream: Stream, fit: Fit, groups: list[HostArray]) -> list[Exclusion]:
        """Judges each group of rows, all of one class; one more read of the source.

        Args:
            stream: The one ``fit`` saw.
            fit: From ``fit``.
            groups: Row numbers of each group.

        Returns:
            One ``Exclusion`` a group.
        """
        if not groups:
            return []
        kept = [even_subset(g, _GROUP_ROWS) for g in groups]
        teaching = [even_subset(g[fit.taught[g]], _GROUP_ROWS) for g in groups]
        union = np.unique(np.concatenate([*kept, *teaching]))
        x = inputs_of(stream, union)
        judged, taught = ([x[np.searchsorted(union, part)] for part in p] for p in (kept, teaching))
        return [
            self._judge(stream, fit, *each) for each in zip(judged, taught, groups, strict=True)
        ]

    def _judge(
        self, stream: Stream, fit: Fit, x: HostArray, teaching: HostArray, group: HostArray
    ) -> Exclusion:
        own, size = int(stream.labels[group[0]]), len(group)
        phi, seen = fit.features.host(x), fit.features.host(teaching)
        times = float(fit.taught[group].sum()) / max(len(seen), 1)
        target = fit.target.copy()
        target[:, own] -= times * seen.sum(axis=0)
        left = fit.gram - times * (seen.T @ seen)
        weights = _solve(_without_negative(left) if times > 1 else left, target, fit.ridge)
        opinion = phi @ weights
        agreement = float((opinion.argmax(axis=1) == own).mean())
        opinion[:, own] = -np.inf
        others_of = opinion.argmax(axis=1)
        taken_for = np.bincount(others_of, minlength=stream.num_classes)
        rest = np.ones(len(stream), np.bool_)
        rest[group] = False
        expected = _mean(fit.agrees[rest & (stream.labels == own)], 0.5)
        others = fit.x_labels != own
        at_home = rest[fit.rows] & ~others
        mixture, error = fit.classes.gain(x, fit.x[at_home], own)
        return Exclusion(
            num_rows=size,
            agreement=agreement,
            expected=expected,
            log10_p=_log10_binomial(agreement * len(x), len(x), expected),
            diversity=_diversity(taken_for, np.delete(stream.counts, own), len(x)),
            transplant=_transplant(x, fit.x[others], fit.usual),
            home=_transplant(x, fit.x[at_home], fit.usual),
            source=int(taken_for.argmax()),
            source_share=float(taken_for.max() / max(taken_for.sum(), 1)),
            depth=_depth(x, folds.class_means(stream)[1][others_of]),
            mixture=mixture,
            mixture_error=error,
        )


def _places(stream: Stream, num_folds: int) -> int | None:
    """How many rows of a tile teach, a multiple of the folds; None for all."""
    tile = stream.rows.layout.tile
    if len(stream) <= _TEACHING_ROWS:
        return None
    places = tile * _TEACHING_ROWS // len(stream)
    places = max(places // num_folds, 1) * num_folds
    return places if places < tile else None


@one_thread()
def _solve(gram: HostArray, target: HostArray, ridge: float) -> HostArray:
    from scipy.linalg import cho_factor, cho_solve

    factor = cho_factor(gram + ridge * np.eye(len(gram)), lower=True, check_finite=False)
    out: HostArray = cho_solve(factor, target, check_finite=False)
    return out


def _without_negative(gram: HostArray) -> HostArray:
    """The nearest second moment: a subset scaled up can take away more than there is."""
    values, vectors = np.linalg.eigh(gram)
    out: HostArray = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return out


def _mean(values: HostArray, empty: float) -> float:
    return float(values.mean()) if len(values) else empty


def _log10_binomial(hits: float, n: int, rate: float) -> float:
    from scipy.stats import binom

    rate = min(max(rate, 1e-3), 1 - 1e-3)
    return max(float(binom.logcdf(round(hits), n, rate) / np.log(10)), -300.0)


def _effective(counts: HostArray) -> HostArray:
    """exp(entropy) of each row of counts."""
    share = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    logs = np.log(np.where(share > 0, share, 1.0))
    out: HostArray = np.exp(-(share * logs).sum(axis=-1))
    return out


def _diversity(taken_for: HostArray, others: HostArray, n: int) -> float:
    """Effective number of classes, against that of as many rows drawn from all other classes."""
    share = others / max(others.sum(), 1)
    drawn = np.random.default_rng(0).multinomial(n, share, size=64)
    return float(_effective(taken_for) / max(float(_effective(drawn).mean()), 1e-12))


def _distances2(rows: HostArray, others: HostArray) -> HostArray:
    """Squared distances [r, o]; about a common origin, as squares of a large mean cancel."""
    origin = others.mean(axis=0)
    rows, others = rows - origin, others - origin
    d2 = (rows**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)[None] - 2 * rows @ others.T
    out: HostArray = np.maximum(d2, 0.0)
    return out


def _usual(x: HostArray, labels: HostArray) -> HostArray:
    """How far the nearest row of the same class is, for an even subset of the rows."""
    probes = np.linspace(0, len(x) - 1, min(2 * _PROBE_ROWS, len(x))).astype(int)
    d2 = _distances2(x[probes], x)
    d2[np.arange(len(probes)), probes] = np.inf
    d2[labels[probes][:, None] != labels[None]] = np.inf
    out = np.full(len(x), np.nan)
    out[probes] = np.sqrt(d2.min(axis=1))
    return out


def _transplant(x: HostArray, others: HostArray, usual: HostArray) -> float:
    """Distance to the nearest of some rows after the best common shift, in usual distances."""
    usual = usual[np.isfinite(usual)]
    if not len(usual) or not len(others):
        return float("inf")
    some = x[np.linspace(0, len(x) - 1, min(_PROBE_ROWS, len(x))).astype(int)]
    shift = matched_residuals(some, others, steps=_SHIFT_STEPS - 1).mean(axis=0)
    nearest = _distances2(some - shift, others)
    reach = float(np.median(np.sqrt(nearest.min(axis=1))))
    return reach / max(float(np.median(usual)), 1e-12)


def _depth(x: HostArray, means: HostArray) -> float:
    """What rows [r, d] gain by the means [r, d] of other classes, of what is to be gained.

    With a common shift taken out, their scatter about their own class's mean is that about one
    point, less their scatter about ``means``; rows of those classes gain the scatter of the means.
    """
    x, means = x - x.mean(axis=0, dtype=np.float64), means - means.mean(axis=0)
    between = float((means**2).sum())
    if between <= 1e-9 * float((x**2).sum()):
        return float("nan")  # one class, or rows that are all alike
    return float((x**2).sum() - ((x - means) ** 2).sum()) / between


def matched_residuals(
    x: HostArray, others: HostArray, shift: HostArray | None = None, steps: int = 1
) -> HostArray:
    """What each row has beyond its nearest of some others, matched less a common shift [r, d].

    Args:
        x: [r, d].
        others: [o, d].
        shift: [d] to begin with, or None for none.
        steps: Matchings; each takes the mean residual of the one before as the shift.
    """
    residuals = x
    for _ in range(steps):
        moved = x if shift is None else x - shift
        residuals = x - others[_distances2(moved, others).argmin(axis=1)]
        shift = residuals.mean(axis=0)
    return residuals


def displacement(stream: Stream, fit: Fit, groups: list[HostArray]) -> list[HostArray]:
    """Of each disputed row by itself: distance to home over distance to other classes.

    Distances are to the nearest sampled row, at home to one that is not disputed. No shift is
    taken out: this finds rows whose trigger hardly shows.

    Args:
        stream: The one that ``fit`` saw.
        fit: Gives the sampled rows.
        groups: Rows of one class each.

    Returns:
        [len(rows)] each; 1 where a side has no sampled row.

    **Cost**: one read of the rows, r * o distances.
    """
    if not groups:
        return []
    edges = np.cumsum([len(rows) for rows in groups])[:-1]
    inputs = np.split(inputs_of(stream, np.concatenate(groups)), edges)
    settled = fit.agrees[fit.rows]
    out = []
    for rows, x in zip(groups, inputs, strict=True):
        at_home = fit.x_labels == stream.labels[rows[0]]
        own, others = fit.x[at_home & settled], fit.x[~at_home]
        if not len(own) or not len(others):
            out.append(np.ones(len(rows)))
            continue
        home, away = (np.sqrt(_distances2(x, side).min(axis=1)) for side in (own, others))
        out.append(home / np.maximum(away, 1e-6 * np.maximum(home, 1e-12)))
    return out
