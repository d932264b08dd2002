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

from ._ekfac_layers import LayerBasis as LayerBasis
from ._ekfac_layers import LowRank as LowRank
from ._masked import masked_quantile as masked_quantile
from ._masked import rows_product as rows_product
from .conjugate_gradients import Solution as Solution
from .conjugate_gradients import SolveStatus as SolveStatus
from .conjugate_gradients import conjugate_gradients as conjugate_gradients
from .ekfac import EKFACInverse as EKFACInverse
from .ekfac import EKFACSums as EKFACSums
from .ekfac import ekfac_eigenvalues as ekfac_eigenvalues
from .ekfac import ekfac_influence as ekfac_influence
from .ekfac import ekfac_moments as ekfac_moments
from .ekfac import ekfac_self_influence as ekfac_self_influence
from .ekfac import sample_labels as sample_labels
from .grad_dot import grad_dot as grad_dot
from .grad_dot import taps_dot as taps_dot
from .grad_dot import tracin as tracin
from .grad_dot import tracin_self as tracin_self
from .gradient_norms import GradientNorms as GradientNorms
from .gradient_norms import gradient_norms as gradient_norms
from .gradient_norms import gradients_of as gradients_of
from .gradient_norms import layer_squared_norms as layer_squared_norms
from .gradient_norms import per_sample_gradients as per_sample_gradients
from .head_influence import HeadLossInfluence as HeadLossInfluence
from .head_influence import HeadSelfInfluence as HeadSelfInfluence
from .head_influence import head_influence as head_influence
from .head_influence import head_loss_influence as head_loss_influence
from .head_influence import head_self_influence as head_self_influence
from .hessian import WeightedLoss as WeightedLoss
from .hessian import ggn_vector_products as ggn_vector_products
from .hessian import hessian_vector_products as hessian_vector_products
from .hessian import softmax_hessian_products as softmax_hessian_products
from .influence import Influence as Influence
from .influence import gradient_products as gradient_products
from .influence import influence as influence
from .influence import low_rank_influence as low_rank_influence
from .influence import low_rank_self_influence as low_rank_self_influence
from .kernel_ridge import gathered_scores as gathered_scores
from .kernel_ridge import gram_block as gram_block
from .kernel_ridge import kernel_ridge as kernel_ridge
from .kmeans import KMeans as KMeans
from .kmeans import kmeans as kmeans
from .krylov import Krylov as Krylov
from .krylov import arnoldi as arnoldi
from .krylov import lanczos as lanczos
from .krylov import low_rank_inverse as low_rank_inverse
from .last_layer import Scored as Scored
from .last_layer import el2n as el2n
from .last_layer import grand_last_layer as grand_last_layer
from .last_layer import softmax_errors as softmax_errors
from .last_layer import tracin_last_layer as tracin_last_layer
from .lissa import largest_eigenvalue as largest_eigenvalue
from .lissa import lissa as lissa
from .mixture import Mixture as Mixture
from .mixture import shared_covariance_mixture as shared_covariance_mixture
from .neighbours import Neighbours as Neighbours
from .neighbours import nearest_neighbours as nearest_neighbours
from .neighbours import tile_nearest_neighbours as tile_nearest_neighbours
from .projections import AfterKernel as AfterKernel
from .projections import after_kernel as after_kernel
from .projections import feature_gram as feature_gram
from .projections import khatri_rao_project as khatri_rao_project
from .projections import kronecker_project as kronecker_project
from .projections import random_project as random_project
from .quantum_entropy import QuantumEntropy as QuantumEntropy
from .quantum_entropy import quantum_entropy_scores as quantum_entropy_scores
from .shapley import knn_shapley as knn_shapley
from .shapley import knn_shapley_of_ranks as knn_shapley_of_ranks
from .shapley import rank_keys as rank_keys
from .silhouette import silhouette as silhouette
from .softmax_head import SoftmaxFit as SoftmaxFit
from .softmax_head import fit_softmax_head as fit_softmax_head
from .softmax_head import head_gradients as head_gradients
from .softmax_head import solve_head as solve_head
from .subset_classifiers import ClassMeans as ClassMeans
from .subset_classifiers import class_means as class_means
from .subset_classifiers import neighbour_counts as neighbour_counts
from .taps import ConvGeometry as ConvGeometry
from .taps import Layer as Layer
from .taps import Tap as Tap
from .taps import TapPlan as TapPlan
from .taps import Taps as Taps
from .taps import collect_taps as collect_taps
from .taps import leaf_to_matrix as leaf_to_matrix
from .taps import matrix_to_leaf as matrix_to_leaf
from .taps import plan_explicit_taps as plan_explicit_taps
from .taps import plan_taps as plan_taps
from .taps import tap_inputs as tap_inputs
from .tiles import tile_grams as tile_grams
from .tiles import tile_project as tile_project
from .tiles import tile_sketch as tile_sketch
from .tiles import tile_sums as tile_sums
from .trimmed import TrimmedGaussian as TrimmedGaussian
from .trimmed import trimmed_gaussian as trimmed_gaussian
