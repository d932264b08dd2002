"""Models: trained networks as parameters and pure functions, and adapters that make them so."""

from __future__ import annotations

from ._model import CrossEntropy, InputFn, LossFn, Model, cross_entropy
from .adapters import from_function, from_linen, from_nnx

__all__ = [
    "CrossEntropy",
    "InputFn",
    "LossFn",
    "Model",
    "cross_entropy",
    "from_function",
    "from_linen",
    "from_nnx",
]
