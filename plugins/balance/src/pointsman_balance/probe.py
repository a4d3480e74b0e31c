"""Probes half-open breakers with calls of the plugin's own instead of clients' requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pointsman.errors import UpstreamError
from pointsman.types import AttemptKind, Endpoint, UpstreamRequest

from .breaker import PROBE

if TYPE_CHECKING:
    from pointsman.plugin import Services
    from pointsman.types import Deployment

    from .members import Member, Members

AT_ONCE: Final = 8
_BODIES: Final[dict[Endpoint, dict[str, Any]]] = {
    Endpoint.CHAT: {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 1},
    Endpoint.EMBEDDINGS: {"input": "ping"},
}


class Prober:
    """Sends probes.

    Args:
        members: The known deployments.
        services: Upstream calls and background tasks.
    """

    def __init__(self, members: Members, services: Services) -> None:
        self._members = members
        self._services = services
        self._running = 0
        self.sent = 0

    def start_due(self, now: float) -> None:
        """Start the probes that are due, at most ``AT_ONCE`` at a time."""
        for member in self._members:
            if self._running >= AT_ONCE:
                return
            breaker = member.breaker
            if not breaker.healthy and breaker.rules.probe == "call" and breaker.admits(now) == PROBE:
                breaker.start_probe(now)
                self._running += 1
                self._services.tasks.spawn(self._probe_behind(member), name="probe")

    async def _probe_behind(self, member: Member) -> None:
        try:
            await self.probe(member)
        finally:
            self._running -= 1

    async def probe(self, member: Member) -> str | None:
        """Make a call of at most one token; its outcome reaches the breaker like that of any attempt.

        Returns:
            None when it was answered, else the reason.
        """
        deployment = member.deployment
        endpoint = endpoint_of(deployment)
        request = UpstreamRequest(
            target=deployment.id,
            kind=AttemptKind.PROBE,
            body=_BODIES[endpoint],
            endpoint=endpoint,
            timeout_s=member.breaker.rules.probe_timeout_s,
            labels={"probe": "balance"},
        )
        self.sent += 1
        try:
            await self._services.upstream.start(request).response()
        except UpstreamError as err:
            # Without an attempt the probe is inconclusive: it expires, and another one is sent then.
            return f"{err.error_class.replace('_', ' ')}: {err}" if err.status else str(err)
        return None


def endpoint_of(deployment: Deployment) -> Endpoint:
    """Return the API of a deployment, from ``model_info.mode``."""
    return Endpoint.EMBEDDINGS if deployment.info.get("mode") == "embedding" else Endpoint.CHAT
