"""Refreshing what is known about a deployment: one check at a time, in this process and across processes.

Whoever asks while a check is running gets its finding. Across processes a lease in the store says who is checking; the
others wait for the record that the check leaves behind. Neither takes longer than the deadline.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from pointsman.errors import StoreError

from .checks import Finding
from .records import key_of
from .state import Check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pointsman.plugin import Services
    from pointsman.types import Deployment, Limit, Signal

    from .book import Book
    from .cache import Cache
    from .checks import Checks
    from .config import AnyCheck
    from .state import State

log: Final = logging.getLogger("pointsman.signals")

LEASES: Final = "lease/"
AT_ONCE: Final = 8
_POLL_S: Final = 0.1
#: The lease outlives the deadline a little, so that it is never free while its check may still be running.
_GRACE_S: Final = 1.0
_JITTER: Final = 0.2


class Refresher:
    """Makes the checks, when they are due and when somebody asks.

    Args:
        book: The states.
        cache: Their records in the store.
        checks: How to check.
        services: For the store, the clock, tasks, chance and the published signals.
    """

    def __init__(self, book: Book, cache: Cache, checks: Checks, services: Services) -> None:
        self._book = book
        self._cache = cache
        self._checks = checks
        self._services = services
        self._running: dict[str, asyncio.Future[None]] = {}
        self._due_at: dict[str, float] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.made = 0
        self.failed = 0

    def can(self, deployment: Deployment) -> bool:
        """Say whether there is a check for a deployment."""
        return self._checks.check_for(deployment) is not None

    async def refresh(self, deployment: Deployment) -> Signal:
        """Check a deployment now, or wait for the check that is running; return the signal afterwards."""
        await asyncio.shield(self._start(deployment))
        now = self._services.clock.now()
        signal = self._book.fresh_signal(self._book.state(deployment, now), now)
        self._services.signals.put(signal)
        return signal

    async def tick(self) -> None:
        """Start the checks that are due. Each comes at its own time, so that they do not arrive together."""
        now, config = self._services.clock.now(), self._book.config
        for state in tuple(self._book.states.values()):
            deployment = state.deployment
            if deployment is None or not state.active or (check := self._checks.check_for(deployment)) is None:
                self._due_at.pop(state.id, None)
                continue
            interval_s = getattr(check, "interval_s", None) or config.check_interval_s
            due_at = self._due_at.get(state.id)
            if due_at is None:
                # What another worker or the time before a restart has found is as good as an own check.
                last = state.facts.check
                first = now if last is None else last.at + interval_s
                due_at = self._due_at[state.id] = max(now, first) + self._services.random.uniform(
                    0, _JITTER * interval_s
                )
            if due_at <= now:
                self._due_at[state.id] = now + interval_s * self._services.random.uniform(1 - _JITTER, 1 + _JITTER)
                last = state.facts.check
                if last is None or now - last.at >= interval_s / 2:
                    self._start(deployment)
        for gone in self._due_at.keys() - self._book.states.keys():
            del self._due_at[gone]

    def _start(self, deployment: Deployment) -> asyncio.Future[None]:
        running = self._running.get(deployment.id)
        if running is None:
            running = self._running[deployment.id] = asyncio.get_running_loop().create_future()
            self._services.tasks.spawn(self._run(deployment, running), name=f"check {deployment.id}")
        return running

    async def _run(self, deployment: Deployment, done: asyncio.Future[None]) -> None:
        try:
            async with self._slots:
                check = self._checks.check_for(deployment)
                state = self._book.state(deployment, self._services.clock.now())
                if check is None:
                    await self._reread(state)
                elif await self._lease(state):
                    try:
                        await self._check(check, deployment, state)
                        await self._cache.write(state)
                    finally:
                        await self._release(state)
                else:
                    await self._wait_for_other(state)
        except StoreError as err:
            log.warning("deployment %r: the check's outcome stays in this worker: %s", deployment.id, err)
        finally:
            self._running.pop(deployment.id, None)
            if not done.done():
                done.set_result(None)

    async def _check(self, check: AnyCheck, deployment: Deployment, state: State) -> None:
        deadline_s = self._book.config.check_deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                finding = await self._checks.run(check, deployment)
        except TimeoutError:
            finding = Finding(ok=False, message=f"no answer within {deadline_s:g} s")
        self.made += 1
        self.failed += not finding.ok
        now = self._services.clock.now()
        reading = finding.reading
        self._book.checked(
            state, Check(finding.at or now, finding.ok, finding.message), reading if reading.limits else None
        )
        if finding.exhausted is False:
            state.quota.succeeded(finding.at or now)
        elif finding.exhausted and not any(limit.remaining == 0 for limit in reading.limits):
            lasts_s = _exhausted_for_s(reading.limits, now, self._book.rules.ttl_s)
            state.quota.refused(lasts_s, now, "its quota document says exhausted")

    async def _lease(self, state: State) -> bool:
        """Take the lease; without a store to ask, this worker checks for itself."""
        ttl_s = self._book.config.check_deadline_s + _GRACE_S
        try:
            return await self._services.store.compare_and_set(
                key_of(state.id, LEASES), None, self._services.worker, ttl_s=ttl_s
            )
        except StoreError as err:
            log.warning("deployment %r is checked without a lease: %s", state.id, err)
            return True

    async def _release(self, state: State) -> None:
        try:
            await self._services.store.compare_and_set(key_of(state.id, LEASES), self._services.worker, None)
        except StoreError as err:
            log.debug("the lease of deployment %r runs out by itself: %s", state.id, err)

    async def _wait_for_other(self, state: State) -> None:
        """Wait until the worker with the lease is done, at most for the deadline, and read what it has found."""
        clock, key = self._services.clock, key_of(state.id, LEASES)
        end = clock.monotonic() + self._book.config.check_deadline_s
        while clock.monotonic() < end and await self._services.store.get(key) is not None:
            await clock.sleep(_POLL_S)
        await self._reread(state)

    async def _reread(self, state: State) -> None:
        await self._cache.read([state])


def _exhausted_for_s(limits: Sequence[Limit], now: float, otherwise_s: float) -> float:
    """Return how long an exhaustion lasts that a document states in so many words, with no axis at 0.

    Its cause is the axis with the least left, and it ends with that axis' reset.

    Args:
        limits: What the document says of the axes.
        now: Unix seconds.
        otherwise_s: Its length when no reset is told.
    """

    def left(limit: Limit) -> tuple[float, float]:
        ratio = limit.remaining / limit.limit if limit.limit and limit.remaining is not None else 1.0
        return ratio, -(limit.resets_at or 0.0)

    resets_at = min(limits, key=left).resets_at if limits else None
    return resets_at - now if resets_at is not None and resets_at > now else otherwise_s
