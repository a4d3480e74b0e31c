"""Which deployments a request has tried already, for as long as it can still be tried again. Pure and bounded."""

from __future__ import annotations

from typing import Final

MAX_REQUESTS: Final = 20_000
#: No request is retried after so long, in seconds.
KEPT_S: Final = 900.0

_NONE: Final = frozenset[str]()


class Tries:
    """Deployments by request; the oldest requests are forgotten first."""

    __slots__ = ("_requests",)

    def __init__(self) -> None:
        self._requests: dict[str, tuple[float, set[str]]] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def of(self, request_id: str) -> set[str] | frozenset[str]:
        """Return the ids of the deployments that were tried, those that are running included."""
        found = self._requests.get(request_id)
        return _NONE if found is None else found[1]

    def add(self, request_id: str, deployment_id: str, now: float) -> None:
        """Note an attempt at ``now`` (Unix seconds)."""
        found = self._requests.get(request_id)
        if found is None:
            self._requests[request_id] = (now, {deployment_id})
            if len(self._requests) > MAX_REQUESTS:
                del self._requests[next(iter(self._requests))]
        else:
            found[1].add(deployment_id)

    def forget(self, request_id: str) -> None:
        """Forget a request that has been answered."""
        self._requests.pop(request_id, None)

    def sweep(self, now: float) -> None:
        """Forget what nobody has forgotten."""
        for request_id, (at, _) in list(self._requests.items()):
            if at > now - KEPT_S:
                break
            del self._requests[request_id]
