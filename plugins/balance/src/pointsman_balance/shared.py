"""What breakers and administrators have decided, shared with the other workers through the store, off the request path.

A change is written at once in the background, and read by the others within ``sync_s``. Of two changes of one breaker the
later one counts. Keys are digests: neither a model group nor a deployment id becomes part of one.
"""

from __future__ import annotations

import json
import logging
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from pointsman.errors import ConfigError, StoreError
from pointsman.store.base import Put, Update
from pointsman.store.snapshot import Snapshot

from .breaker import BreakerState, Cause, Change
from .config import GroupPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pointsman.plugin import Services
    from pointsman.store.base import JSON

    from .members import Member
    from .policies import Policies

log: Final = logging.getLogger("pointsman.balance")

PREFIX: Final = "{balance}/"
BREAKERS: Final = f"{PREFIX}breaker/"
GROUPS: Final = f"{PREFIX}group/"
TRIES: Final = 5
#: How long a change is kept after its opening has ended, in seconds: a restarted worker knows how often it had opened.
KEPT_S: Final = 600.0


class Shared:
    """The store's side of the breakers and of the settings.

    Args:
        services: For the store, the clock and background tasks.
        policies: Settings that an administrator may change.
        adopt: Called with model group, deployment id and what another worker says.
        settled: Called when settings have changed.
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
        #: The latest change of every breaker that the store knows.
        self.changes: dict[tuple[str, str], Change] = {}
        self.failures = 0
        #: Settings in the store that cannot be used, for people.
        self.problems: list[str] = []

    # -- breakers -----------------------------------------------------------------------------------------------------

    def note(self, member: Member) -> None:
        """Tell the others of a breaker's latest change, in the background."""
        self._unwritten[member.key] = member.breaker.change()
        if not self._writing:
            self._writing = True
            self._spawn(self._write_behind(), name="share breakers")

    async def flush(self) -> None:
        """Write what is not written yet.

        Raises:
            StoreError: the store failed; what is left is tried again.
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
        except StoreError as err:
            self._failed(err)
        finally:
            self._writing = False

    async def sync(self) -> None:
        """Read what the others say, and write what could not be written. A store that fails is tried again."""
        try:
            if not self._writing:
                await self.flush()
            await self._snapshot.refresh()
        except StoreError as err:
            self._failed(err)
        else:
            self.failures = 0

    async def finish(self) -> None:
        """Write what is not written yet, at shutdown, also when a background task was about to."""
        try:
            await self.flush()
        except StoreError as err:
            self._failed(err)

    def _failed(self, err: StoreError) -> None:
        self.failures += 1
        level = logging.WARNING if self.failures == 1 else logging.DEBUG
        log.log(level, "breakers are not shared with the other workers for now: %s", err)

    async def _write(self, key: tuple[str, str], change: Change) -> None:
        name = digest(BREAKERS, *key)
        for _ in range(TRIES):
            before = await self._store.get(name)
            known = change_from_json(before)
            now = self._clock.now()
            # What comes from the future was written by a wrong clock; it must not keep the others from being heard.
            if known is not None and change.at <= known[1].at <= now:
                return
            ttl_s = max(0.0, change.until - now) + KEPT_S
            put = Put(change_to_json(key, change), ttl_s)
            if await self._store.update(self._snapshot.raising(Update(checks={name: before}, puts={name: put}))):
                return

    # -- settings -----------------------------------------------------------------------------------------------------

    async def set_group(self, group: str, policy: GroupPolicy | None) -> None:
        """Change a group's settings for all workers; None goes back to the configuration's.

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
                    problems.append(f"settings in the store cannot be used: {str(err).splitlines()[0]}")
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
    """Rebuild a change; None when it is not one of ours."""
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
        ValueError, TypeError, KeyError: it has not the form of one of ours.
    """
    return str(value["group"]), GroupPolicy.model_validate(value["policy"])
