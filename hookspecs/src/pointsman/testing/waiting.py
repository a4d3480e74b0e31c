"""Waiting for what a running gateway does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_LOOK_AGAIN_S: Final = 0.05


def eventually(look: Callable[[], T], enough: Callable[[T], object], *, within_s: float = 30.0) -> T:
    """Look again and again until it is enough, and return what was seen then.

    Args:
        look: Reads what the gateway shows.
        enough: Whether that is what is waited for.
        within_s: How long, in real seconds; it looks at least once.

    Raises:
        AssertionError: it never was; the message says what was seen last.
    """
    give_up_at = time.monotonic() + within_s
    while not enough(found := look()):
        if time.monotonic() >= give_up_at:
            raise AssertionError(f"after {within_s:g} s it is still {found!r}")
        time.sleep(_LOOK_AGAIN_S)
    return found
