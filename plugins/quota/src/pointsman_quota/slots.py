"""Requests whose answers are complete and that are not settled yet: their slots are free.

A settlement waits for the journal, and with it for a moment in which the client may already ask again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .scopes import Target


class Ended(NamedTuple):
    """A request whose answer is complete.

    Attributes:
        request_id: The request.
        target: The scopes it takes from.
        since_s: When its answer was complete, in monotonic seconds.
    """

    request_id: str
    target: Target
    since_s: float


class EndedRequests:
    """This worker's requests that hold a slot which the ledger does not know to be free.

    Attributes:
        any: Set while there is one.
    """

    def __init__(self) -> None:
        self._requests: dict[str, Ended] = {}
        self.any = asyncio.Event()

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, ended: Ended) -> None:
        """Add a request, if the number of concurrent ones is limited in one of its scopes."""
        if ended.target.limits_concurrency:
            self._requests[ended.request_id] = ended
            self.any.set()

    def forget(self, request_id: str) -> None:
        """Drop a request that has been settled, or whose slot the ledger knows to be free."""
        self._requests.pop(request_id, None)
        if not self._requests:
            self.any.clear()

    def take(self, lane: str) -> Ended | None:
        """Remove and return the request that has ended first in a scope, by the scope's key; None if there is none."""
        found = next((ended for ended in self._requests.values() if lane in ended.target.scope_keys), None)
        if found is not None:
            self.forget(found.request_id)
        return found

    def take_older(self, than_s: float) -> Ended | None:
        """Remove and return the request that has ended first, if at a moment in monotonic seconds or before; else None."""
        found = next(iter(self._requests.values()), None)
        if found is None or found.since_s > than_s:
            return None
        self.forget(found.request_id)
        return found
