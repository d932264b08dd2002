"""What a run that may be cut off has done so far, kept beside its output."""

from __future__ import annotations

from ._codec import read
from ._states import TrainingStates
from ._work import Work, code_identity, difference, saved_identity

__all__ = ["TrainingStates", "Work", "code_identity", "difference", "read", "saved_identity"]
