"""The states in the store: shared with the other workers, restored after a restart, never on the request path.

Each worker adds what it observed since its last write to the deployment's record by compare-and-set, so that a record counts
every attempt of every worker once. The record's key is a digest of the deployment's id, so that an id from outside never
becomes part of a path or a key.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from pointsman.errors import Conflict, StoreError
from pointsman.store.protocol import Put
from pointsman.store.views import modify
from pointsman.types import ErrorClass

from .health import Check, DeploymentState, Facts
from .quota import Quota
from .statistics import SLICES, Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pointsman.plugin import Services
    from pointsman.store.protocol import JSON

    from .health import HealthRules
    from .tracker import Tracker

log: Final = logging.getLogger("pointsman.signals")

VERSION: Final = 1
PREFIX: Final = "deployment/"
#: Deployments written and read in one round; the others follow in the next rounds.
AT_ONCE: Final = 200
#: Concurrent writes: the disk store commits them together.
TOGETHER: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the store holds about one deployment.

    Attributes:
        deployment_id: Its id.
        revision: Changes with every write.
        written_at: Unix seconds.
        facts: The latest observations.
        quota: The remaining quota.
        window: Statistics.
        recent_ms: Latest latencies of the worker that wrote it, in milliseconds.
    """

    deployment_id: str
    revision: str
    written_at: float
    facts: Facts
    quota: Quota
    window: Window
    recent_ms: Sequence[float] = ()

    def useful(self, now: float, ttl_s: float) -> bool:
        """Return whether it still counts: it is not older than ``ttl_s``, or an exhaustion in it has not ended."""
        return now - self.written_at <= ttl_s or self.quota.ends_at(now) > now


class Repository:
    """Reads and writes the states of a ``Tracker``.

    Args:
        tracker: The states.
        services: Store, clock and ids.
    """

    def __init__(self, tracker: Tracker, services: Services) -> None:
        self._tracker = tracker
        self._store = services.store
        self._clock = services.clock
        self._new_id = services.new_id
        self._next = 0
        self._round = asyncio.Lock()
        self.writes = 0
        self.failures = 0

    async def restore(self) -> int:
        """Load the states that still count; return the number of deployments.

        Raises:
            StoreError: the store cannot be read.
        """
        now, tracker = self._clock.now(), self._tracker
        records = [
            record
            for _, value in await self._store.scan(PREFIX)
            if (record := record_from_json(value, None, tracker.rules)) is not None
            and record.useful(now, tracker.rules.ttl_s)
        ]
        records.sort(key=lambda record: record.written_at, reverse=True)
        for record in records[: tracker.config.max_deployments]:
            state = DeploymentState(record.deployment_id, record.window.slice_s, tracker.rules)
            self._learn(state, record, now)
            tracker.restored(state)
        return len(tracker.states)

    async def share(self) -> None:
        """Write new observations, then read those of other workers. A failing store is logged and retried."""
        try:
            async with self._round:
                await self._write_all(self._unsaved()[:AT_ONCE])
                await self._pull()
        except StoreError as err:
            self.failures += 1
            level = logging.WARNING if self.failures == 1 else logging.DEBUG
            log.log(level, "signals cannot be shared with the other workers; retrying: %s", err)
        else:
            self.failures = 0

    async def write(self, state: DeploymentState) -> None:
        """Add the new observations of a deployment to its record.

        Raises:
            StoreError: the record was not written; nothing is lost, the next call writes it.
        """
        if state.pending is not None:
            return
        tracker, key = self._tracker, key_of(state.id)
        pending, written, reset_at = state.delta, False, 0.0
        state.pending, state.delta, state.unsaved = pending, Window(pending.slice_s), False

        def merge(present: JSON) -> tuple[Put, Record]:
            nonlocal reset_at
            now = self._clock.now()
            record = self._merged(state, present, pending, now)
            reset_at = state.facts.reset_at
            ttl_s = max(tracker.rules.ttl_s, pending.slice_s * SLICES, state.quota.ends_at(now) - now)
            return Put(record_to_json(record), ttl_s), record

        try:
            record = await modify(self._store, key, merge, what=f"the record of the deployment {state.id!r}")
            # What has been reset while it was written does not count: the next write adds to nothing.
            state.base = record.window if state.facts.reset_at == reset_at else Window(record.window.slice_s)
            state.revision = record.revision
            self.writes += 1
            written = True
        except Conflict as err:
            log.debug("%s; the next round retries", err)
        finally:
            state.pending = None
            if not written:
                state.delta.merge(pending)
                state.unsaved = True
            tracker.changed(state)

    async def read(self, states: Sequence[DeploymentState]) -> None:
        """Apply the records that other workers wrote about these deployments.

        Raises:
            StoreError: the store cannot be read.
        """
        values = await self._store.get_many([key_of(state.id) for state in states])
        now = self._clock.now()
        for state, value in zip(states, values, strict=True):
            if state.pending is not None or not isinstance(value, dict) or value.get("revision") == state.revision:
                # Mostly what this worker itself has written: it is not read again.
                continue
            record = record_from_json(value, state.delta.slice_s, self._tracker.rules)
            if record is not None and record.useful(now, self._tracker.rules.ttl_s):
                self._learn(state, record, now)
                self._tracker.changed(state)

    async def flush(self) -> None:
        """Write all new observations at shutdown."""
        try:
            async with self._round:
                await self._write_all(self._unsaved())
        except StoreError as err:
            log.warning("the latest observations of the deployments are lost: %s", err)

    def _unsaved(self) -> list[DeploymentState]:
        return [state for state in self._tracker.states.values() if state.unsaved or state.delta.slices]

    async def _write_all(self, states: Sequence[DeploymentState]) -> None:
        for first in range(0, len(states), TOGETHER):
            writes = (self.write(state) for state in states[first : first + TOGETHER])
            failed = [one for one in await asyncio.gather(*writes, return_exceptions=True) if one is not None]
            if failed:
                raise failed[0]

    async def _pull(self) -> None:
        states = list(self._tracker.states.values())
        if self._next >= len(states):
            self._next = 0
        if chosen := states[self._next : self._next + AT_ONCE]:
            self._next += AT_ONCE
            await self.read(chosen)

    def _merged(self, state: DeploymentState, before: JSON, pending: Window, now: float) -> Record:
        """Return the record to write; the state also learns from the present record."""
        window = Window(pending.slice_s)
        state.facts.clean()
        present = None
        if isinstance(before, dict) and before.get("revision") == state.revision:
            # What this worker itself has written or read: it knows all of it.
            if state.base.slice_s == window.slice_s:
                window.merge(state.base)
        elif before is not None:
            present = record_from_json(before, pending.slice_s, self._tracker.rules)
        if present is not None and present.deployment_id == state.id:
            state.reset_elsewhere(present.facts.reset_at)
            counts = present.facts.reset_at >= state.facts.reset_at
            state.facts.merge(present.facts)
            state.quota.merge(present.quota)
            if counts:
                window.merge(present.window)
        window.merge(pending)
        window.prune(now)
        return Record(
            deployment_id=state.id,
            revision=self._new_id(),
            written_at=now,
            facts=state.facts,
            quota=state.quota,
            window=window,
            recent_ms=state.recent,
        )

    def _learn(self, state: DeploymentState, record: Record, now: float) -> None:
        record.window.prune(now)
        state.reset_elsewhere(record.facts.reset_at)
        counts = record.facts.reset_at >= state.facts.reset_at
        state.facts.merge(record.facts)
        state.quota.merge(record.quota)
        state.base = record.window if counts else Window(record.window.slice_s)
        state.revision = record.revision
        if counts and not state.recent:
            _fill(state, record.recent_ms)


def _fill(state: DeploymentState, recent_ms: Iterable[float]) -> None:
    for value in recent_ms:
        state.add_recent(value)


def key_of(deployment_id: str, prefix: str = PREFIX) -> str:
    """Return the store's key for a deployment."""
    return prefix + sha256(deployment_id.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def record_to_json(record: Record) -> JSON:
    """Return a record as JSON."""
    facts = record.facts
    check = facts.check
    return {
        "version": VERSION,
        "id": record.deployment_id,
        "revision": record.revision,
        "written_at": record.written_at,
        "used_at": facts.used_at,
        "success_at": facts.success_at,
        "error_at": facts.error_at,
        "error_kind": facts.error_kind,
        "error": facts.error,
        "check": None if check is None else [check.at, check.ok, check.message],
        "check_success_at": facts.check_success_at,
        "consecutive_errors": facts.consecutive_errors,
        "reset_at": facts.reset_at,
        "quota": record.quota.to_json(),
        "slice_s": record.window.slice_s,
        "window": record.window.to_json(),
        "recent_ms": [round(value, 3) for value in record.recent_ms],
    }


def record_from_json(value: Any, slice_s: float | None, rules: HealthRules) -> Record | None:
    """Rebuild a record; None when it is not one of this version.

    Args:
        value: JSON from the store.
        slice_s: Length of a slice of statistics in seconds; those of another length are left out. None: the record's own.
        rules: How quotas are judged.
    """
    try:
        if value["version"] != VERSION:
            return None
        facts = Facts()
        facts.used_at, facts.success_at = float(value["used_at"]), float(value["success_at"])
        facts.error_at, facts.error = float(value["error_at"]), str(value["error"])
        facts.error_kind = ErrorClass(value["error_kind"]) if value["error_kind"] is not None else None
        if value["check"] is not None:
            at, ok, message = value["check"]
            facts.check = Check(float(at), ok is True, str(message))
        # A record of the first release does not have these.
        facts.check_success_at = float(value.get("check_success_at", 0.0))
        facts.consecutive_errors = int(value.get("consecutive_errors", 0))
        facts.reset_at = float(value.get("reset_at", 0.0))
        slice_s = slice_s or float(value["slice_s"])
        same = value["slice_s"] == slice_s
        return Record(
            deployment_id=str(value["id"]),
            revision=str(value["revision"]),
            written_at=float(value["written_at"]),
            facts=facts,
            quota=Quota.from_json(value["quota"], rules),
            window=Window.from_json(value["window"], slice_s) if same else Window(slice_s),
            recent_ms=[float(item) for item in value["recent_ms"]] if same else (),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None
