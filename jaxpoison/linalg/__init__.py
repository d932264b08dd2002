"""Small dense algebra and ranks on the host in float64; knows no data."""

from jaxpoison.linalg.directions import contrast as contrast
from jaxpoison.linalg.directions import fisher as fisher
from jaxpoison.linalg.directions import principal as principal
from jaxpoison.linalg.directions import ridge_of as ridge_of
from jaxpoison.linalg.ranks import knn_shapley as knn_shapley
from jaxpoison.linalg.ranks import ranked as ranked
from jaxpoison.linalg.ritz import ritz_pairs as ritz_pairs
from jaxpoison.linalg.subspace import in_span as in_span
from jaxpoison.linalg.subspace import new_directions as new_directions
from jaxpoison.linalg.subspace import orthonormal_rows as orthonormal_rows
from jaxpoison.linalg.subspace import rayleigh_ritz as rayleigh_ritz
from jaxpoison.linalg.threads import one_thread as one_thread
