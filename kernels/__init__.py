"""Statistical kernels: pure functions of the arrays of one class, on one device.

Every kernel takes rows and a mask, never reads the content of masked rows, and is made to be
mapped over classes with `jax.vmap` or `jax.lax.map`. It knows no data source, no block, no
threshold. Each is jitted with its static knobs as keywords.
"""

from __future__ import annotations

if __name__ != "jaxpoison.kernels":
    raise ImportError(
        f"this package was imported as {__name__!r}; it is part of jaxpoison: "
        "import jaxpoison.kernels instead"
    )

from ._masked import masked_quantile as masked_quantile
from .kmeans import KMeans as KMeans
from .kmeans import kmeans as kmeans
from .mixture import Mixture as Mixture
from .mixture import shared_covariance_mixture as shared_covariance_mixture
from .neighbours import Neighbours as Neighbours
from .neighbours import nearest_neighbours as nearest_neighbours
from .neighbours import tile_nearest_neighbours as tile_nearest_neighbours
from .quantum_entropy import QuantumEntropy as QuantumEntropy
from .quantum_entropy import quantum_entropy_scores as quantum_entropy_scores
from .silhouette import silhouette as silhouette
from .tiles import tile_grams as tile_grams
from .tiles import tile_project as tile_project
from .tiles import tile_sketch as tile_sketch
from .tiles import tile_sums as tile_sums
from .trimmed import TrimmedGaussian as TrimmedGaussian
from .trimmed import trimmed_gaussian as trimmed_gaussian
