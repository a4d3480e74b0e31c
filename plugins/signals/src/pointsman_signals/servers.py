"""What is checked together: local deployments at one URL are one server, which is checked once. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .checks import LOCAL_CHECK, CheckFailed, models_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pointsman.types import Deployment

    from .checks import Checks
    from .config import AnyCheck
    from .health import DeploymentState


@dataclass(frozen=True, slots=True)
class Target:
    """The deployments that one check is about.

    Attributes:
        key: Identifies it, in this worker and in all others.
        check: The check.
        host: Scheme, host and port of the server; empty for a check that is configured, which says nothing of others.
        members: The states of the deployments, at least one.
    """

    key: str
    check: AnyCheck
    host: str
    members: tuple[DeploymentState, ...]

    @property
    def checked_at(self) -> float | None:
        """Unix seconds of the latest check; None when there was none."""
        return max((one.facts.check.at for one in self.members if one.facts.check is not None), default=None)

    @property
    def answered_at(self) -> float:
        """Unix seconds of the latest answer to traffic; 0 when there was none."""
        return max(one.facts.success_at for one in self.members)

    def needless_since(self, hosts: Mapping[str, float]) -> float | None:
        """Return when traffic has last shown that the server answers; None when it has not shown it.

        A failed attempt of a member, or a failed check, counts for more than an earlier answer of its host.

        Args:
            hosts: From ``answers_by_host``.
        """
        at = hosts.get(self.host, 0.0)
        for facts in (one.facts for one in self.members):
            check_failed_at = facts.check.at if facts.check is not None and not facts.check.ok else 0.0
            if facts.consecutive_errors or check_failed_at >= at:
                return None
        return at or None


def targets(checks: Checks, states: Iterable[DeploymentState]) -> list[Target]:
    """Return all that is checked.

    Args:
        checks: Selects the checks.
        states: The states of all deployments.
    """
    grouped: dict[str, tuple[AnyCheck, str, list[DeploymentState]]] = {}
    for state in states:
        if state.deployment is None or not state.active or (check := checks.check_for(state.deployment)) is None:
            continue
        key, host = server_of(check, state.deployment)
        grouped.setdefault(key, (check, host, []))[2].append(state)
    return [Target(key, check, host, tuple(members)) for key, (check, host, members) in grouped.items()]


def answers_by_host(found: Iterable[Target]) -> dict[str, float]:
    """Return when each host has last answered traffic, in Unix seconds."""
    hosts: dict[str, float] = {}
    for target in found:
        if target.host:
            hosts[target.host] = max(target.answered_at, hosts.get(target.host, 0.0))
    return hosts


def server_of(check: AnyCheck | None, deployment: Deployment) -> tuple[str, str]:
    """Return what identifies the check of a deployment, and the host that it asks; no host for one that is configured."""
    if check is LOCAL_CHECK:
        try:
            url = models_url(deployment, LOCAL_CHECK.path)
            parts = urlsplit(url)
        except (CheckFailed, ValueError):
            # The check itself reports what is wrong with the address.
            return deployment.id, ""
        return f"GET {url}", f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"
    return deployment.id, ""
