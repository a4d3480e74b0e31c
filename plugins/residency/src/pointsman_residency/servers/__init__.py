"""The servers that hold the models: built-in ones, and those of installed distributions."""

from .base import PASSING, Listed, ModelServer, ServerError, Trouble
from .registry import BUILT_IN, ENTRY_POINTS, installed, unknown

__all__ = [
    "BUILT_IN",
    "ENTRY_POINTS",
    "PASSING",
    "Listed",
    "ModelServer",
    "ServerError",
    "Trouble",
    "installed",
    "unknown",
]
