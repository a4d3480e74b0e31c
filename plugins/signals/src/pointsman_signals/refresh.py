"""Runs checks: at most one at a time for each server, in this process and across processes.

The check of a local server is left out while the server answers traffic: that shows as much, and costs it nothing.

A refresh during a running check waits for its finding. Across processes a lease in the store names the checking worker;
the others wait for the record that the check writes. Neither takes longer than the deadline.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from pointsman.errors import StoreError

from .checks import Finding
from .health import Check
from .quota import DOCUMENT_EXHAUSTED
from .repository import key_of
from .servers import answers_by_host, server_of, targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pointsman.plugin import Services
    from pointsman.types import Deployment, Limit, Signal

    from .checks import Checks
    from .config import AnyCheck
    from .health import DeploymentState
    from .repository import Repository
    from .servers import Target
    from .tracker import Tracker

log: Final = logging.getLogger("pointsman.signals")

LEASES: Final = "lease/"
AT_ONCE: Final = 8
_POLL_S: Final = 0.1
#: Seconds by which the lease outlives the deadline, so that it never expires while its check may still be running.
_GRACE_S: Final = 1.0
_JITTER: Final = 0.2


class Refresher:
    """Runs the checks, when they are due and on demand.

    Args:
        tracker: The states.
        cache: Their records in the store.
        checks: The checks themselves.
        services: Store, clock, tasks, random numbers and published signals.
    """

    def __init__(self, tracker: Tracker, repository: Repository, checks: Checks, services: Services) -> None:
        self._tracker = tracker
        self._repository = repository
        self._checks = checks
        self._services = services
        self._running: dict[str, asyncio.Future[None]] = {}
        self._due_at: dict[str, float] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.run_count = 0
        self.failed = 0

    def can(self, deployment: Deployment) -> bool:
        """Return whether there is a check for a deployment."""
        return self._checks.check_for(deployment) is not None

    async def refresh(self, deployment: Deployment) -> Signal:
        """Check a deployment now, or wait for the running check; return the resulting signal."""
        now = self._services.clock.now()
        state = self._tracker.state(deployment, now)
        key, _ = server_of(self._checks.check_for(deployment), deployment)
        await asyncio.shield(self._start(key, state))
        now = self._services.clock.now()
        signal = self._tracker.fresh_signal(self._tracker.state(deployment, now), now)
        self._services.signals.put(signal)
        return signal

    async def tick(self) -> None:
        """Start the checks that are due. Their times are spread, so that they do not run all at once."""
        now, config, uniform = self._services.clock.now(), self._tracker.config, self._services.random.uniform
        found = targets(self._checks, self._tracker.states.values())
        hosts = answers_by_host(found)
        for target in found:
            interval_s = getattr(target.check, "interval_s", None) or config.check_interval_s
            due_at = self._due_at.get(target.key)
            last_at = target.checked_at
            if due_at is None:
                # A finding of another worker, or from before a restart, counts as much as one of this worker.
                first = now if last_at is None else last_at + interval_s
                due_at = self._due_at[target.key] = max(now, first) + uniform(0, _JITTER * interval_s)
            if due_at > now:
                continue
            answered_at = target.needless_since(hosts)
            if answered_at is not None and now - answered_at < interval_s:
                self._due_at[target.key] = answered_at + interval_s * uniform(1, 1 + _JITTER)
                self._spare(target, now - interval_s)
                continue
            self._due_at[target.key] = now + interval_s * uniform(1 - _JITTER, 1 + _JITTER)
            if last_at is None or now - last_at >= interval_s / 2:
                self._start(target.key, target.members[0])
        for gone in self._due_at.keys() - {target.key for target in found}:
            del self._due_at[gone]

    def _spare(self, target: Target, since: float) -> None:
        """Take the traffic of a server for a check of those of its deployments that had none."""
        at = target.answered_at
        if at <= since:
            return
        for state in target.members:
            if state.facts.success_at <= since and (state.facts.check is None or state.facts.check.at < at):
                self._tracker.checked(state, Check(at, ok=True), None)

    def _start(self, key: str, state: DeploymentState) -> asyncio.Future[None]:
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = asyncio.get_running_loop().create_future()
            self._services.tasks.spawn(self._run(key, state, running), name=f"check {state.id}")
        return running

    async def _run(self, key: str, state: DeploymentState, done: asyncio.Future[None]) -> None:
        deployment = state.deployment
        assert deployment is not None  # noqa: S101  # only those that the gateway has are checked
        members: Sequence[DeploymentState] = (state,)
        try:
            async with self._slots:
                check = self._checks.check_for(deployment)
                for target in targets(self._checks, self._tracker.states.values()):
                    if target.key == key:
                        members = target.members
                if check is None:
                    await self._repository.read(members)
                elif await self._lease(key, deployment):
                    try:
                        await self._check(check, deployment, members)
                        for member in members:
                            await self._repository.write(member)
                    finally:
                        await self._release(key, deployment)
                else:
                    await self._wait_for_other(key, members)
        except StoreError as err:
            log.warning(
                "the outcome of the check of deployment %r cannot be shared with the other workers: %s",
                deployment.id,
                err,
            )
        finally:
            self._running.pop(key, None)
            if not done.done():
                done.set_result(None)

    async def _check(self, check: AnyCheck, deployment: Deployment, members: Sequence[DeploymentState]) -> None:
        deadline_s = self._tracker.config.check_deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                finding = await self._checks.run(check, deployment)
        except TimeoutError:
            finding = Finding(ok=False, message=f"no answer within {deadline_s:g} s")
        self.run_count += 1
        self.failed += not finding.ok
        now = self._services.clock.now()
        reading = finding.reading
        for state in members:
            self._tracker.checked(
                state, Check(finding.at or now, finding.ok, finding.message), reading if reading.limits else None
            )
            if finding.exhausted is False:
                state.quota.succeeded(finding.at or now)
            elif finding.exhausted and not any(limit.remaining == 0 for limit in reading.limits):
                lasts_s = _exhausted_for_s(reading.limits, now, self._tracker.rules.ttl_s)
                state.quota.refused(lasts_s, now, DOCUMENT_EXHAUSTED)

    async def _lease(self, key: str, deployment: Deployment) -> bool:
        """Acquire the lease; return whether this worker checks, which it also does when the store fails."""
        ttl_s = self._tracker.config.check_deadline_s + _GRACE_S
        try:
            return await self._services.store.compare_and_set(
                key_of(key, LEASES), None, self._services.worker, ttl_s=ttl_s
            )
        except StoreError as err:
            log.warning("deployment %r is checked without a lease because the store fails: %s", deployment.id, err)
            return True

    async def _release(self, key: str, deployment: Deployment) -> None:
        try:
            await self._services.store.compare_and_set(key_of(key, LEASES), self._services.worker, None)
        except StoreError as err:
            log.debug("the lease of deployment %r cannot be released and expires by itself: %s", deployment.id, err)

    async def _wait_for_other(self, key: str, members: Sequence[DeploymentState]) -> None:
        """Wait until the worker with the lease is done, at most for the deadline, and read its finding."""
        clock, lease = self._services.clock, key_of(key, LEASES)
        end = clock.monotonic() + self._tracker.config.check_deadline_s
        while clock.monotonic() < end and await self._services.store.get(lease) is not None:
            await clock.sleep(_POLL_S)
        await self._repository.read(members)


def _exhausted_for_s(limits: Sequence[Limit], now: float, otherwise_s: float) -> float:
    """Return how long an exhaustion lasts that a document reports by its status, with no axis at 0.

    Its cause is the axis with the least remaining share, and it ends with that axis' reset.

    Args:
        limits: The document's axes.
        now: Unix seconds.
        otherwise_s: Its length when no reset is known.
    """

    def left(limit: Limit) -> tuple[float, float]:
        ratio = limit.remaining / limit.limit if limit.limit and limit.remaining is not None else 1.0
        return ratio, -(limit.resets_at or 0.0)

    resets_at = min(limits, key=left).resets_at if limits else None
    return resets_at - now if resets_at is not None and resets_at > now else otherwise_s
