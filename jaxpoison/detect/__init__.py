"""Detectors: one file a method, each a value with ``score(stream, *, key) -> Scores``."""

from jaxpoison.detect.activation import ActivationClustering as ActivationClustering
from jaxpoison.detect.exclusion import ExclusionCheck as ExclusionCheck
from jaxpoison.detect.exclusion import displacement as displacement
from jaxpoison.detect.mahalanobis import RobustMahalanobis as RobustMahalanobis
from jaxpoison.detect.mixture import SharedMixture as SharedMixture
from jaxpoison.detect.refine import refine as refine
from jaxpoison.detect.spectral import SpectralSignatures as SpectralSignatures
from jaxpoison.detect.spectre import Spectre as Spectre
