"""Tells operators which tenant has reached which limit: the first refusal of a minute, with what it says to the client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman.events import Notice

if TYPE_CHECKING:
    from collections.abc import Callable

    from pointsman.types import Denial

#: The same limit of the same tenant is announced once in this time, in seconds.
EVERY_S: Final = 60.0
#: Limits whose last announcement is remembered.
MOST_REMEMBERED: Final = 10_000


class LimitNotices:
    """Announces limits that have been reached, without flooding.

    Args:
        publish: Announces.
    """

    def __init__(self, publish: Callable[[Notice], None]) -> None:
        self._publish = publish
        self._told: dict[tuple[str, str], float] = {}

    def reached(self, tenant: str, limit: str, denial: Denial, now: float) -> None:
        """Announce a refusal, unless the same one was announced within the last minute.

        Args:
            tenant: The tenant.
            limit: The limit and its scope.
            denial: What the client is told.
            now: Unix seconds.
        """
        key = (tenant, limit)
        if now - self._told.get(key, float("-inf")) < EVERY_S:
            return
        if len(self._told) >= MOST_REMEMBERED:
            self._told = {key: at for key, at in self._told.items() if now - at < EVERY_S}
        self._told[key] = now
        self._publish(
            Notice(
                kind="limit",
                subject=f"{tenant}/{limit}",
                text=f"tenant {tenant} has reached {limit}; requests are refused with {denial.status}: {denial.message}",
                at=now,
            )
        )
