"""What the failure of one leg means for the race: gRFC A6 (gRPC's client-side hedging) carried over to model providers.

In A6 a status is fatal or not. A fatal one ends the call for all legs, since every server would say the same; any other
starts the next leg at once, while the legs that run go on. Here the provider's *class* of error decides, never its
text. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pointsman.errors import UpstreamError
from pointsman.types import CALLERS_FAULT, ErrorClass


class Verdict(StrEnum):
    """What a failed leg does to its race."""

    FATAL = "fatal"
    NEXT = "next"


#: The provider turned the request away before it did anything, so even one with side effects may be sent elsewhere.
_NOTHING_DONE: Final = frozenset({ErrorClass.RATE_LIMIT, ErrorClass.AUTH, ErrorClass.NOT_FOUND, ErrorClass.REFUSED})

_KNOWN: Final = {str(kind): kind for kind in ErrorClass}


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a leg failed.

    Attributes:
        kind: The class of the error.
        error: What to raise if this becomes the client's answer.
        retry_after_s: Push-back: this candidate wants to be left alone for so long. None: it did not say.
    """

    kind: ErrorClass
    error: UpstreamError
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: UpstreamError) -> Fault:
        """Return the fault that an upstream error stands for; a class nobody knows is ``unknown``."""
        kind = _KNOWN.get(error.error_class, ErrorClass.UNKNOWN)
        return cls(kind=kind, error=error, retry_after_s=error.retry_after_s)

    @property
    def did_nothing(self) -> bool:
        """Whether the provider is sure not to have begun."""
        return self.kind in _NOTHING_DONE


def verdict(kind: ErrorClass, *, own_credential: bool = False) -> Verdict:
    """Say whether a failure ends the race.

    Args:
        kind: The class of the error.
        own_credential: The client brought the provider's key itself, so a refused key is the client's error. Otherwise
            it is the gateway's, and the next candidate has another one.
    """
    if kind in CALLERS_FAULT or (kind is ErrorClass.AUTH and own_credential):
        return Verdict.FATAL
    return Verdict.NEXT
