"""The tactics: built-in ones, those of installed distributions, and how a configured one is built."""

from .registry import BUILT_IN, ENTRY_POINTS, NamedTactic, TacticChoice, installed, make

__all__ = ["BUILT_IN", "ENTRY_POINTS", "NamedTactic", "TacticChoice", "installed", "make"]
