"""What an unknown name may have meant. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

#: As alike as the host's own hints are.
_NEAR_RATIO: Final = 0.5


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest known name, or an empty text."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=_NEAR_RATIO)
    return f" (did you mean {match[0]!r}?)" if match else ""
