"""Detectors: one file a method, each a value with ``score(stream, *, key) -> Scores``."""

from jaxpoison.detect.activation import ActivationClustering as ActivationClustering
from jaxpoison.detect.contrast_whitening import ContrastWhitening as ContrastWhitening
from jaxpoison.detect.density import DensityClusters as DensityClusters
from jaxpoison.detect.density import LocalDensity as LocalDensity
from jaxpoison.detect.duplicates import NearDuplicates as NearDuplicates
from jaxpoison.detect.dynamics import AUM as AUM
from jaxpoison.detect.dynamics import EL2N as EL2N
from jaxpoison.detect.dynamics import EarlyLoss as EarlyLoss
from jaxpoison.detect.dynamics import LossDrop as LossDrop
from jaxpoison.detect.dynamics import LowLossIsolation as LowLossIsolation
from jaxpoison.detect.exclusion import ExclusionCheck as ExclusionCheck
from jaxpoison.detect.exclusion import displacement as displacement
from jaxpoison.detect.gram_powers import GramPowers as GramPowers
from jaxpoison.detect.label_views import LabelViews as LabelViews
from jaxpoison.detect.likeness import likeness as likeness
from jaxpoison.detect.mahalanobis import RobustMahalanobis as RobustMahalanobis
from jaxpoison.detect.mixture import SharedMixture as SharedMixture
from jaxpoison.detect.neighbours import KNNDisagreement as KNNDisagreement
from jaxpoison.detect.refine import refine as refine
from jaxpoison.detect.robust_pca import RobustPCA as RobustPCA
from jaxpoison.detect.spectral import SpectralSignatures as SpectralSignatures
from jaxpoison.detect.spectre import Spectre as Spectre
from jaxpoison.detect.strip import Strip as Strip
from jaxpoison.detect.variance_decomposition import VarianceDecomposition as VarianceDecomposition
