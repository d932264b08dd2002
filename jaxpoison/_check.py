"""Errors a user can act on, and the validators of the host boundary.

Every message names the argument or file, the value that was seen, and the next step.
"""

from __future__ import annotations

from numbers import Integral

MAX_SEED = 2**32 - 1
"""Of everything random: what numpy and jax both take."""


class JaxpoisonError(ValueError):
    """Base of every error that is the input's fault, not the program's."""


class UsageError(JaxpoisonError):
    """An argument that makes no sense whatever the data holds."""


class DataError(JaxpoisonError):
    """Data that cannot be read, or that breaks a rule of the format."""


class NothingToScan(JaxpoisonError):
    """Data that is valid but leaves nothing a detector could look at."""


def is_whole(value: object) -> bool:
    """Whether a value is an integer of any library; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)
