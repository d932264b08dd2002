"""Learners: a model of each subset as a function of that subset alone."""

from __future__ import annotations

from ._learner import ClosedForm as ClosedForm
from ._learner import Learner as Learner
from .class_mean import ClassMean as ClassMean
from .flax_module import flax_learner as flax_learner
from .gradient import GradientLearner as GradientLearner
from .gradient import mlp as mlp
from .gradient import small_cnn as small_cnn
from .kernel_ridge import KernelRidge as KernelRidge
from .kernel_ridge import Ridge as Ridge
from .neighbours import Neighbours as Neighbours
