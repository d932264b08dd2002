"""Fixed features of one row each: nothing is learnt, so no row can change those of another."""

from __future__ import annotations

from ._feature_map import Chain as Chain
from ._feature_map import FeatureMap as FeatureMap
from ._feature_map import Pixels as Pixels
from .deskew import Deskew as Deskew
from .hog import Hog as Hog
from .scattering import Scattering as Scattering
