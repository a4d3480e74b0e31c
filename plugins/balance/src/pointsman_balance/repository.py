"""Breaker changes and live settings, shared with the other workers through the store, off the request path.

A change is written at once in the background, and read by the others within ``sync_s``. Of two changes of one breaker the
later one counts. Keys are digests: they contain neither a model group nor a deployment id.
"""

from __future__ import annotations

import json
import logging
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from pointsman.errors import ConfigError, Conflict, StoreError
from pointsman.store.protocol import Put, Update
from pointsman.store.views import Snapshot, modify

from .breaker import BreakerState, Cause, Change
from .config import GroupPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pointsman.plugin import Services
    from pointsman.store.protocol import JSON

    from .members import Member
    from .policies import Policies

log: Final = logging.getLogger("pointsman.balance")

PREFIX: Final = "{balance}/"
BREAKERS: Final = f"{PREFIX}breaker/"
GROUPS: Final = f"{PREFIX}group/"
#: Seconds for which a change is kept after its opening ended, so that a restarted worker knows the earlier openings.
KEPT_S: Final = 600.0


class Repository:
    """Reads and writes the shared state of breakers and settings.

    Args:
        services: For the store, the clock and background tasks.
        policies: The settings of the model groups.
        adopt: Called with model group and deployment id, and the change of another worker.
        settled: Called when settings changed.
    """

    def __init__(
        self,
        services: Services,
        policies: Policies,
        *,
        adopt: Callable[[tuple[str, str], Change], None],
        settled: Callable[[], None],
    ) -> None:
        self._store = services.store
        self._clock = services.clock
        self._spawn = services.tasks.spawn
        self._policies = policies
        self._adopt = adopt
        self._settled = settled
        self._snapshot = Snapshot(
            services.store, PREFIX, on_change=self._learn, clock=services.clock.monotonic, max_age_s=30.0
        )
        self._unwritten: dict[tuple[str, str], Change] = {}
        self._writing = False
        #: The latest change of every breaker in the store.
        self.changes: dict[tuple[str, str], Change] = {}
        self.failures = 0
        #: Descriptions of settings in the store that cannot be used.
        self.problems: list[str] = []

    # -- breakers -----------------------------------------------------------------------------------------------------

    def share(self, member: Member) -> None:
        """Share a breaker's latest change with the other workers, in the background."""
        self._unwritten[member.key] = member.breaker.change()
        if not self._writing:
            self._writing = True
            self._spawn(self._write_behind(), name="share breakers")

    async def flush(self) -> None:
        """Write all pending changes.

        Raises:
            StoreError, Conflict: the store failed; the remaining changes are retried.
        """
        while self._unwritten:
            key = next(iter(self._unwritten))
            change = self._unwritten[key]
            await self._write(key, change)
            if self._unwritten.get(key) is change:
                del self._unwritten[key]

    async def _write_behind(self) -> None:
        try:
            await self.flush()
        except (StoreError, Conflict) as err:
            self._failed(err)
        finally:
            self._writing = False

    async def sync(self) -> None:
        """Write pending changes and read those of the other workers. A failing store is retried at the next call."""
        try:
            if not self._writing:
                await self.flush()
            await self._snapshot.refresh()
        except (StoreError, Conflict) as err:
            self._failed(err)
        else:
            self.failures = 0

    async def finish(self) -> None:
        """Write all pending changes at shutdown, even if a background task was about to."""
        try:
            await self.flush()
        except (StoreError, Conflict) as err:
            self._failed(err)

    def _failed(self, err: StoreError | Conflict) -> None:
        self.failures += 1
        level = logging.WARNING if self.failures == 1 else logging.DEBUG
        log.log(level, "breaker changes cannot be shared with the other workers; retrying: %s", err)

    async def _write(self, key: tuple[str, str], change: Change) -> None:
        name = digest(BREAKERS, *key)

        def later(present: JSON) -> tuple[Update | None, None]:
            known, now = change_from_json(present), self._clock.now()
            # A change from the future was written with a wrong clock; it must not hide the changes of other workers.
            if known is not None and change.at <= known[1].at <= now:
                return None, None
            put = Put(change_to_json(key, change), max(0.0, change.until - now) + KEPT_S)
            return self._snapshot.raising(Update(puts={name: put})), None

        await modify(self._store, name, later, what=f"the breaker of {key[1]!r} in {key[0]!r}")

    # -- settings -----------------------------------------------------------------------------------------------------

    async def set_group(self, group: str, policy: GroupPolicy | None) -> None:
        """Change a group's settings for all workers; None restores the configured ones.

        Raises:
            StoreError: the store failed; nothing was changed.
        """
        name = digest(GROUPS, group)
        if policy is None:
            update = Update(deletes=[name])
        else:
            fields: Any = policy.model_dump(mode="json", exclude_unset=True)
            update = Update(puts={name: Put({"group": group, "policy": fields})})
        await self._store.update(self._snapshot.raising(update))
        await self._snapshot.refresh()

    # -- reading ------------------------------------------------------------------------------------------------------

    def _learn(self, items: Mapping[str, JSON]) -> None:
        changes: dict[tuple[str, str], Change] = {}
        groups: dict[str, GroupPolicy] = {}
        problems: list[str] = []
        for name, value in items.items():
            if name.startswith(BREAKERS) and (read := change_from_json(value)) is not None:
                changes[read[0]] = read[1]
            elif name.startswith(GROUPS):
                try:
                    group, policy = group_from_json(value)
                    self._policies.check(group, policy)
                    groups[group] = policy
                except (ValueError, TypeError, KeyError, ValidationError, ConfigError) as err:
                    problems.append(f"live settings in the store cannot be used: {str(err).splitlines()[0]}")
        self.problems = problems
        before, self.changes = self.changes, changes
        if self._policies.replace(groups):
            self._settled()
        for key, change in changes.items():
            if before.get(key) != change:
                self._adopt(key, change)


def digest(prefix: str, *parts: str) -> str:
    """Return the store's key for these names."""
    return prefix + sha256(json.dumps(parts).encode()).hexdigest()[:40]


def change_to_json(key: tuple[str, str], change: Change) -> JSON:
    """Return a breaker's change as JSON."""
    return {
        "group": key[0],
        "deployment": key[1],
        "state": str(change.state),
        "at": change.at,
        "until": change.until,
        "openings": change.openings,
        "cause": None if change.cause is None else str(change.cause),
        "reason": change.reason,
        "ramp": change.ramp,
    }


def change_from_json(value: Any) -> tuple[tuple[str, str], Change] | None:
    """Rebuild a change; None when the document is not one."""
    try:
        return (str(value["group"]), str(value["deployment"])), Change(
            state=BreakerState(value["state"]),
            at=float(value["at"]),
            until=float(value["until"]),
            openings=int(value["openings"]),
            cause=None if value["cause"] is None else Cause(value["cause"]),
            reason=str(value["reason"]),
            ramp=value["ramp"] is True,
        )
    except (KeyError, TypeError, ValueError):
        return None


def group_from_json(value: Any) -> tuple[str, GroupPolicy]:
    """Rebuild a group's settings.

    Raises:
        ValueError, TypeError, KeyError: the document does not have the form of group settings.
    """
    return str(value["group"]), GroupPolicy.model_validate(value["policy"])
