"""Websockets on which nothing has been asked for yet: they are not admitted, since their model is not known, so they are bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ..types import Denial

#: The most of one caller that a worker keeps open, and for how long, in seconds.
MOST: Final = 20
PATIENCE_S: Final = 60.0
TOO_MANY: Final = Denial(
    status=429,
    code="too_many_silent_connections",
    type="rate_limit_error",
    message=f"More than {MOST} of your connections have asked for nothing yet; use one of them, or close some.",
    retry_after_s=1.0,
)
TOO_SILENT: Final = Denial(
    status=408,
    code="silent_connection",
    message=f"The connection has asked for nothing within {PATIENCE_S:.0f} s; open it when there is something to ask.",
)


class SilentSockets:
    """Those of one worker.

    Args:
        most: The most of one caller.
        patience_s: How long one may be silent, in seconds.
    """

    def __init__(self, most: int = MOST, patience_s: float = PATIENCE_S) -> None:
        self._most = most
        self.patience_s = patience_s
        self._open: Counter[str] = Counter()

    @contextmanager
    def one_of(self, caller: str) -> Iterator[bool]:
        """Count one during the ``with`` block, unless there are too many: then it is False.

        Args:
            caller: Whose it is.
        """
        if self._open[caller] >= self._most:
            yield False
            return
        self._open[caller] += 1
        try:
            yield True
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]
