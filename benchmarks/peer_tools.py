"""The tools that benchmarks/peers.py runs, each behind one function, in its documented mode.

- ART's spectral signatures report scores only above a cut; expected_pp_poison=1 reports them all.
  They have no flags here: the cut needs the rate. They project rows that are not centred, so a
  second contender gets rows whose class means are gone, which is what the paper projects.
- ART's activation defence only flags: PCA to 10, 2-means, the smaller cluster, or with
  "silhouette-scores" a small and cohesive one. The margin between its two centres ranks as well.
- ART wants a classifier that returns activations: it gets an object that returns the features it
  is called with, that is, an identity network.
- cleanlab's Datalab has no joint score: each kind of issue is a contender.
- IsolationForest and LocalOutlierFactor know no labels; they run over all rows and class by class.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxpoison
from jaxpoison.detect import ActivationClustering, SpectralSignatures
from jaxpoison.sources import open_source
from jaxpoison.stream import Stream


class Given(NamedTuple):
    """What every contender gets, and the truth that none of them does."""

    x: np.ndarray
    y: np.ndarray
    features: np.ndarray
    probabilities: np.ndarray
    truth: np.ndarray
    judged: np.ndarray
    seed: int
    seconds: dict[str, float]

    @property
    def num_classes(self) -> int:
        return int(self.y.max()) + 1

    @property
    def centred(self) -> np.ndarray:
        """Features without the mean of the row's class."""
        out = self.features.copy()
        for c in np.unique(self.y):
            out[self.y == c] -= out[self.y == c].mean(axis=0, dtype=np.float64).astype(out.dtype)
        return out


class Answer(NamedTuple):
    """Of a tool: scores [n], and the rows that it calls bad by itself [n] bool, if it does."""

    scores: np.ndarray
    flags: np.ndarray | None = None


class Contender(NamedTuple):
    """A tool: ``make(given)`` returns the function that is timed, which returns an Answer."""

    name: str
    needs: str
    seen: str
    make: Callable[[Given], Callable[[], Answer]]


class GivenFeatures:
    """An identity network, as far as ART asks: what it is called with are the activations."""

    layer_names = ("features",)

    def __init__(self, num_classes: int) -> None:
        self.nb_classes = num_classes

    def get_activations(self, x: np.ndarray, layer: int, batch_size: int) -> np.ndarray:
        return x


def _scan(x: np.ndarray, given: Given) -> Answer:
    report = jaxpoison.scan(x, given.y, seed=given.seed)
    flags = np.zeros(len(given.y), np.bool_)
    flags[report.flagged_indices()] = True
    return Answer(report.suspicion, flags)


def _fused(given: Given):
    return lambda: _scan(given.x, given)


def _fused_on_features(given: Given):
    return lambda: _scan(given.features, given)


def _detector(detector: Any):
    def make(given: Given):
        source, dense = open_source(given.features), given.y.astype(np.int32)

        def run():
            stream = Stream(source, dense, given.num_classes)
            return Answer(detector.score(stream, key=jax.random.key(given.seed)).values)

        return run

    return make


def _art(given: Given, name: str) -> Any:
    defences = import_module("art.defences.detector.poison")
    one_hot = np.eye(given.num_classes, dtype=np.float32)[given.y]
    return getattr(defences, name), GivenFeatures(given.num_classes), one_hot


def _art_spectral(*, centred: bool):
    def make(given: Given):
        defence, network, labels = _art(given, "SpectralSignatureDefense")
        x = given.centred if centred else given.features

        def run():
            made = defence(network, x, labels, expected_pp_poison=1.0, eps_multiplier=1.0)
            scores = np.zeros(len(given.y))
            for row, value in made.detect_poison()[0].items():
                scores[row] = value
            return Answer(scores)

        return run

    return make


def _art_activation(analysis: str, *, ranked: bool = False):
    def make(given: Given):
        defence, network, labels = _art(given, "ActivationDefence")

        def run():
            np.random.seed(given.seed)  # its k-means takes no seed
            made = defence(network, given.features, labels)
            options = {"nb_clusters": 2, "nb_dims": 10, "reduce": "PCA"}
            clean = made.detect_poison(**options, cluster_analysis=analysis)[1]
            flags = np.asarray(clean) == 0
            return Answer(_margins(made, given.y) if ranked else flags.astype(float), flags)

        return run

    return make


def _margins(made: Any, y: np.ndarray) -> np.ndarray:
    """Distance to the larger cluster's centre less that to the smaller one's, over their own."""
    scores = np.zeros(len(y))
    for c, (cluster, x) in enumerate(
        zip(made.clusters_by_class, made.red_activations_by_class, strict=True)
    ):
        small = cluster == np.bincount(cluster, minlength=2).argmin()
        centres = x[~small].mean(axis=0), x[small].mean(axis=0)
        far, near = (np.linalg.norm(x - centre, axis=1) for centre in centres)
        scores[y == c] = (far - near) / max(np.linalg.norm(centres[0] - centres[1]), 1e-12)
    return scores


def _label_issues(given: Given):
    quality = import_module("cleanlab.rank").get_label_quality_scores
    issues = import_module("cleanlab.filter").find_label_issues

    def run():
        flags = issues(given.y, given.probabilities, n_jobs=1)
        return Answer(1.0 - quality(given.y, given.probabilities), flags)

    return run


def _datalab(issue: str, what: str = "features"):
    def make(given: Given):
        datalab = import_module("cleanlab").Datalab
        seen = {"pred_probs": given.probabilities} if what == "probabilities" else {}
        seen = seen or {"features": given.features}

        def run():
            lab = datalab(data={"label": given.y}, label_name="label", verbosity=0)
            lab.find_issues(**seen, issue_types={issue: {}})
            found = lab.get_issues(issue)
            scores, flags = found[f"{issue}_score"], found[f"is_{issue}_issue"]
            return Answer(1.0 - scores.to_numpy(), flags.to_numpy(np.bool_))

        return run

    return make


def _outliers(name: str, *, by_class: bool):
    def make(given: Given):
        groups = [given.y == c for c in np.unique(given.y)]
        groups = groups if by_class else [np.ones(len(given.y), np.bool_)]

        def run():
            scores = np.zeros(len(given.y))
            for rows in groups:
                scores[rows] = _scikit_learn(name, given.features[rows], given.seed)
            return Answer(scores)

        return run

    return make


def _scikit_learn(name: str, x: np.ndarray, seed: int) -> np.ndarray:
    if name == "IsolationForest":
        forest = import_module("sklearn.ensemble").IsolationForest(random_state=seed, n_jobs=1)
        return -forest.fit(x).score_samples(x)
    neighbours = import_module("sklearn.neighbors").LocalOutlierFactor
    return -neighbours(n_neighbors=min(20, len(x) - 1)).fit(x).negative_outlier_factor_


_SILHOUETTE = "activation, with silhouettes"  # ours always computes them
OURS = {
    "spectral": Contender("jaxpoison, spectral", "", "features", _detector(SpectralSignatures())),
    "activation": Contender(
        "jaxpoison, activation", "", "features", _detector(ActivationClustering())
    ),
}
OURS[_SILHOUETTE] = OURS["activation"]
ART = {
    "spectral": Contender(
        "ART SpectralSignatureDefense, centred", "ART", "features", _art_spectral(centred=True)
    ),
    "activation": Contender("ART ActivationDefence", "ART", "features", _art_activation("smaller")),
    _SILHOUETTE: Contender(
        "ART ActivationDefence, silhouette", "ART", "features", _art_activation("silhouette-scores")
    ),
}
CONTENDERS = (
    Contender("jaxpoison, fused", "", "raw rows; trains its own network", _fused),
    Contender("jaxpoison, fused on features", "", "features", _fused_on_features),
    OURS["spectral"],
    Contender("ART SpectralSignatureDefense", "ART", "features", _art_spectral(centred=False)),
    ART["spectral"],
    OURS["activation"],
    ART["activation"],
    Contender("ART ActivationDefence, margin", "ART", "features",
              _art_activation("smaller", ranked=True)),
    ART[_SILHOUETTE],
    Contender("cleanlab find_label_issues", "cleanlab", "probabilities", _label_issues),
    Contender("cleanlab Datalab label", "cleanlab", "probabilities",
              _datalab("label", "probabilities")),
    Contender("cleanlab Datalab outlier", "cleanlab", "features", _datalab("outlier")),
    Contender("cleanlab Datalab near_duplicate", "cleanlab", "features",
              _datalab("near_duplicate")),
    *(
        Contender(f"scikit-learn {name}{', by class' if by_class else ''}", "", "features",
                  _outliers(name, by_class=by_class))
        for name in ("IsolationForest", "LocalOutlierFactor")
        for by_class in (False, True)
    ),
)  # fmt: skip


def missing(contender: Contender, given: Given) -> str | None:
    """Why a tool can not run, or None."""
    try:
        contender.make(given)
    except ImportError as error:
        return f"not installed ({error})"
    return None
