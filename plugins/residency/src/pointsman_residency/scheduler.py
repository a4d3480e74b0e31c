"""Carries out what a pool decides: loads and unloads on the servers, wakes what waits, keeps up with other workers.

Everything that touches the pool is synchronous, so there is no lock: what is told about an eviction may come back here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from opentelemetry.trace import SpanKind, Status, StatusCode

from pointsman.errors import StoreError
from pointsman.types import Signal, SignalStatus

from . import sharing
from .config import spread
from .decisions import Decision, Load, Unload, decide, resume
from .pool import Pool, Unavailable
from .repository import Command
from .servers import PASSING, Listed, ModelServer, ServerError, Trouble
from .servers.base import QUICK_S, pause_s
from .slots import ABSENT, NEVER, State

if TYPE_CHECKING:
    from pointsman.plugin import Services

    from .config import PoolConfig
    from .repository import Repository
    from .slots import Slot

log: Final = logging.getLogger("pointsman.residency")

#: How often an operator's wait looks at a model, in seconds.
LOOK_S: Final = 0.1
#: A report is written again at least this often, in seconds: it disappears if it is not.
HEARTBEAT_S: Final = 2.0
#: Longest wait for a server to carry out an unload, in seconds: llama-swap lets requests end for ten.
UNLOAD_TIMEOUT_S: Final = 30.0
#: Longest wait for a server's list, in seconds.
LIST_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is.

    Attributes:
        server: Its server.
        name: Its name there, as the server's list has it.
    """

    server: ModelServer
    name: str

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from other places: two settings for one server are one server."""
        return self.server.url, self.name


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened to a model; announced outside everything, and may lead to new calls.

    Attributes:
        model: The model.
        what: ``loaded``, ``evicted``, ``failed`` or ``repaired``.
        reason: Why.
    """

    model: str
    what: str
    reason: str


class Scheduler:
    """One pool in one worker.

    Args:
        name: The pool's name.
        config: Its section.
        pool: Its state.
        places: Returns where a model is.
        known: Returns the keys of the places of all pools' models; everything else on a server is a stranger.
        repository: What the workers share.
        services: The host's services.
        changed: Called with everything that happens.
        deployments: Returns the ids of a model's deployments.

    Attributes:
        drifts: What was repaired lately, newest last.
        store_failures: Consecutive failures of the store.
        server_error: Why the servers' lists could not be read, empty when they could.
        waits: Requests that had to wait.
        waited_s: How long, in sum.
        expired: Requests whose wait was too long.
    """

    def __init__(
        self,
        name: str,
        config: PoolConfig,
        pool: Pool,
        *,
        places: Callable[[str], Place],
        known: Callable[[], set[tuple[str, str]]],
        repository: Repository,
        services: Services,
        changed: Callable[[Change], None],
        deployments: Callable[[str], Iterable[str]],
    ) -> None:
        self.name = name
        self.config = config
        self.pool = pool
        self._places = places
        self._known = known
        self._repository = repository
        self._services = services
        self._changed = changed
        self._deployments = deployments
        self._clock = services.clock
        self._futures: dict[str, asyncio.Future[None]] = {}
        self._leading = False
        self._carried_out: set[str] = set()
        self._written = -1
        #: When a decision is due by the mere course of time, Unix seconds.
        self._next_at = NEVER
        self._listed_at = float("-inf")
        self._listing = False
        self._reported: object = None
        self._reported_at = float("-inf")
        self.drifts: list[str] = []
        self.store_failures = 0
        self.server_error = ""
        self.waits = 0
        self.waited_s = 0.0
        self.expired = 0

    # -- requests -----------------------------------------------------------------------------------------------------

    @property
    def leading(self) -> bool:
        """Whether this worker decides."""
        return self._leading

    def admit(self, model: str, ticket: str) -> bool:
        """Hold a model for a request if that needs no wait; otherwise the request waits and needs ``wait``.

        Raises:
            Unavailable: it cannot be made resident.
        """
        return self.pool.request(model, ticket, self._clock.now())

    async def wait(self, model: str, ticket: str, deadline_s: float) -> float:
        """Wait until a model is held for a request that ``admit`` has let wait; return the seconds that it took.

        Raises:
            Unavailable: its load failed, or the deadline is over.
        """
        started = self._clock.monotonic()
        future = self._futures[ticket] = asyncio.get_running_loop().create_future()
        self.waits += 1
        try:
            self.step()
            timer = asyncio.ensure_future(self._clock.sleep(deadline_s))
            try:
                await asyncio.wait({future, timer}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                timer.cancel()
            if not future.done():
                self.expired += 1
                future.set_exception(self._too_late(model, deadline_s))
            future.result()
        except BaseException:
            # Not only at the deadline: the client may have left, and the verdict may have come at the same moment.
            self.pool.withdraw(model, ticket, self._clock.now())
            self.step()
            raise
        finally:
            self._futures.pop(ticket, None)
            waited_s = self._clock.monotonic() - started
            self.waited_s += waited_s
        return waited_s

    def release(self, model: str, ticket: str) -> None:
        """Give a hold back; a model that was waited for may now be evicted."""
        self.pool.release(model, ticket, self._clock.now())
        slot = self.pool.slots[model]
        # What waits in other workers is seen at the next tick.
        if slot.state is not State.RESIDENT or self._futures:
            self.step()

    def _too_late(self, model: str, deadline_s: float) -> Unavailable:
        slot = self.pool.slots[model]
        why = slot.blocked or (f"it is {slot.state}" if self.store_failures == 0 else "the store does not answer")
        return Unavailable(
            f"The model {model!r} was not ready within {deadline_s:g} s: {why}; try again later.",
            code="model_not_ready",
            retry_after_s=max(1.0, slot.ready_s or 1.0),
        )

    # -- deciding -----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Decide, if this worker may, and start what was decided."""
        self._next_at = NEVER
        if self._leading and self._repository.leads:
            decision = decide(self.pool, self._clock.now())
            self._next_at = decision.next_at
            self._begin(decision)
        self._deliver()

    def _begin(self, decision: Decision) -> None:
        for load in decision.loads:
            self._services.tasks.spawn(self._load(load), name=f"load {load.name}")
        for unload in decision.unloads:
            self._services.tasks.spawn(self._unload(unload), name=f"unload {unload.name}")

    def _deliver(self) -> None:
        for verdict in self.pool.take_verdicts():
            future = self._futures.get(verdict.ticket)
            if future is None or future.done():
                continue
            if verdict.error is None:
                future.set_result(None)
            else:
                future.set_exception(verdict.error)

    async def keep_up(self, longest_s: float) -> None:
        """Tick, and again in quick succession while something changes, until the next tick is due in ``longest_s`` anyway.

        A swap is agreed upon by several ticks of each worker, which would take longer than a quick load itself.
        """
        while True:
            await self.tick()
            now = self._clock.now()
            wait_s = min(pause_s(now - self.pool.changed_at(), longest_s), max(QUICK_S, self._next_at - now))
            if wait_s >= longest_s:
                return
            await self._clock.sleep(wait_s)

    async def tick(self) -> None:
        """Keep up with the other workers, and decide. While the store fails, what is resident keeps serving."""
        # Set again by a step. A worker that follows, or whose store fails, decides nothing.
        self._next_at = NEVER
        try:
            await self._follow_or_lead()
        except StoreError as err:
            self.store_failures += 1
            if self.store_failures == 1:
                log.warning("pool %r: nothing is loaded or evicted while the store fails: %s", self.name, err)
        else:
            self.store_failures = 0

    async def _follow_or_lead(self) -> None:
        leads = await self._repository.lead()
        if leads and not self._leading:
            await self._take_over()
        elif not leads and self._leading:
            self._leading = False
            log.warning("pool %r: another worker decides now", self.name)
        if not self._leading:
            await self._follow()
            return
        reports, commands = await self._repository.inbox()
        sharing.hear(self.pool, reports)
        for command in commands:
            if command.id not in self._carried_out:
                self._carry_out(command)
        self._carried_out = {command.id for command in commands}
        now = self._clock.monotonic()
        if not self._listing and now - self._listed_at >= self.config.refresh_s:
            self._listing = True
            self._services.tasks.spawn(self._reconcile(), name=f"read the servers of {self.name}")
        self.step()
        if reports:
            # A worker that takes over, because this one stalls, has to know what it serves.
            await self._report()
        if await self._publish():
            # Not before: a worker that loses the lease now leaves them to the next one.
            for command in commands:
                await self._repository.done(command)

    async def _follow(self) -> None:
        now = self._clock.now()
        if (document := await self._repository.state()) is not None:
            sharing.follow(self.pool, document, now)
            self._deliver()
        await self._report()

    async def _report(self) -> None:
        report = sharing.report(self.pool, self._clock.now())
        # The rest of it changes all the time, and matters to the order of evictions only.
        urgent = (report.seen, frozenset(report.holds), report.waiting)
        at = self._clock.monotonic()
        if urgent != self._reported or at - self._reported_at >= HEARTBEAT_S:
            await self._repository.write_report(report)
            self._reported, self._reported_at = urgent, at

    async def start(self) -> None:
        """Register this worker before it reads any state, so that the deciding one asks it before it unloads."""
        await self._repository.write_report(replace(sharing.report(self.pool, self._clock.now()), seen=-1))
        await self.tick()
        if self._leading:
            self.pool.preload()
            self.step()

    async def stop(self) -> None:
        """Hand over. The models stay where they are."""
        self._leading = False
        with suppress(StoreError):
            await self._repository.resign()

    async def _take_over(self) -> None:
        if (document := await self._repository.state()) is not None:
            sharing.follow(self.pool, document, self._clock.now())
            self._deliver()
        await self._reconcile(taking_over=True)
        self._leading = True
        self._written = -1
        self._begin(resume(self.pool))

    async def _publish(self) -> bool:
        """Write the states if they have changed; return whether the others can read them as they are."""
        if self.pool.revision == self._written:
            return True
        revision = self.pool.revision
        written = await self._repository.write_state(sharing.document(self.pool))
        if written:
            self._written = revision
        return written

    # -- operators ----------------------------------------------------------------------------------------------------

    async def command(self, what: str, model: str, reason: str) -> None:
        """Carry out what an operator wants, here or in the worker that decides.

        Raises:
            Unavailable: the model cannot be made resident.
            StoreError: the store failed.
        """
        if what == "load":
            # The one that decides could not answer: each worker knows what cannot be loaded.
            self.pool.check(model, self._clock.now())
        if self._leading:
            self._carry_out(Command("", what, model, reason))
            self.step()
            if await self._publish():
                return
        # Another worker decides, or has begun to: what was done here alone would be forgotten.
        await self._repository.send(what, model, reason)

    def _carry_out(self, command: Command) -> None:
        now, pool, model = self._clock.now(), self.pool, command.model
        if model not in pool.slots:
            return
        match command.what:
            case "load":
                with suppress(Unavailable):
                    pool.want(model, command.reason, now)
            case "evict" | "force":
                pool.evict(model, command.reason, now, force=command.what == "force")
            case "keep":
                pool.keep(model, now)
            case "pin" | "unpin":
                pool.pin(model, command.what == "pin")

    async def until(self, reached: Callable[[Slot], bool], model: str, timeout_s: float) -> bool:
        """Wait until a model's slot is as wanted; return whether it is."""
        slot, end = self.pool.slots[model], self._clock.monotonic() + timeout_s
        while not reached(slot):
            if self._clock.monotonic() >= end:
                return False
            await self._clock.sleep(LOOK_S)
        return True

    # -- servers ------------------------------------------------------------------------------------------------------

    async def _load(self, load: Load) -> None:
        slot, place = self.pool.slots[load.name], self._places(load.name)
        started = self._clock.monotonic()
        attributes = {
            "pointsman.residency.pool": self.name,
            "pointsman.residency.model": load.name,
            "pointsman.residency.reason": load.reason,
        }
        with self._services.tracer.start_as_current_span(
            f"residency load {load.name}", kind=SpanKind.CLIENT, attributes=attributes
        ) as span:
            try:
                # The states first: a worker that takes over knows then what may be loading.
                with suppress(StoreError):
                    await self._publish()
                async with asyncio.timeout(self.config.load_timeout_s):
                    await place.server.load(place.name)
                    sizes = await self._measure(slot, place)
            except (ServerError, TimeoutError) as err:
                message = str(err) or f"it took longer than load_timeout_s ({self.config.load_timeout_s:g} s)"
                trouble = err.trouble if isinstance(err, ServerError) else Trouble.BROKEN
                span.set_status(Status(StatusCode.ERROR, message))
                log.warning("pool %r: the model %r could not be loaded: %s", self.name, load.name, message)
                self.pool.load_failed(
                    load.name,
                    self._clock.now(),
                    message,
                    memory=trouble is Trouble.MEMORY,
                    passing=trouble in PASSING,
                )
                self._degrade(slot)
                self._changed(Change(load.name, "failed", message))
            else:
                took_s = self._clock.monotonic() - started
                self.pool.load_ended(load.name, self._clock.now(), took_s=took_s, sizes=sizes)
                span.set_attribute("pointsman.residency.bytes", sum(slot.bytes.values()))
                self._changed(Change(load.name, "loaded", load.reason))
        self.step()

    async def _measure(self, slot: Slot, place: Place) -> Mapping[str, int]:
        """Return what a loaded model takes, by device; empty when its server does not tell.

        Raises:
            ServerError: the server's list does not have it.
        """
        if not place.server.can_list:
            return {}
        listed = (await place.server.models()).get(place.name)
        if listed is None:
            raise ServerError("the server loaded it, and does not list it", Trouble.BROKEN)
        return _taken(listed, slot)

    async def _unload(self, unload: Unload) -> None:
        pool, slot, place = self.pool, self.pool.slots[unload.name], self._places(unload.name)
        try:
            # A worker may have started a request, or itself, since its report was read. It sees the state now.
            await self._publish()
            sharing.hear(pool, (await self._repository.inbox())[0])
            allowed = self._repository.leads and not pool.busy(slot)
        except StoreError:
            allowed = False
        if not allowed:
            pool.postpone(unload.name, self._clock.now())
            self._deliver()
            return
        attributes = {
            "pointsman.residency.pool": self.name,
            "pointsman.residency.model": unload.name,
            "pointsman.residency.reason": unload.reason,
        }
        with self._services.tracer.start_as_current_span(
            f"residency unload {unload.name}", kind=SpanKind.CLIENT, attributes=attributes
        ) as span:
            gone, sleeping, message = await self._unloaded(place)
            if not gone:
                span.set_status(Status(StatusCode.ERROR, message))
                log.warning("pool %r: the model %r could not be unloaded: %s", self.name, unload.name, message)
            pool.unload_ended(unload.name, self._clock.now(), gone=gone, sleeping=sleeping)
        if gone:
            self._changed(Change(unload.name, "evicted", unload.reason))
        else:
            slot.error = message
            self._degrade(slot)
            self._changed(Change(unload.name, "failed", message))
        self.step()

    async def _unloaded(self, place: Place) -> tuple[bool, bool, str]:
        """Unload and wait until the server's own list confirms it; return whether it did, whether it sleeps, why not."""
        server = place.server
        try:
            async with asyncio.timeout(UNLOAD_TIMEOUT_S):
                await server.unload(place.name)
            if not server.can_list:
                return True, False, ""
            began = self._clock.monotonic()
            while True:
                listed = (await server.models()).get(place.name)
                if listed is None or (server.sleeps and listed.sleeping):
                    return True, listed is not None, ""
                elapsed_s = self._clock.monotonic() - began
                if elapsed_s >= self.config.confirm_s:
                    return False, False, f"the server still lists it {self.config.confirm_s:g} s after it was unloaded"
                await self._clock.sleep(pause_s(elapsed_s))
        except (ServerError, TimeoutError) as err:
            return False, False, str(err) or f"the server took longer than {UNLOAD_TIMEOUT_S:g} s"

    async def _reconcile(self, *, taking_over: bool = False) -> None:
        """Read what the servers have, and repair what differs from it."""
        try:
            states = {name: slot.state for name, slot in self.pool.slots.items()}
            listing, foreign, unread = await self._read_servers()
            # What has changed while the lists were read is newer than they are.
            unread |= {name for name, slot in self.pool.slots.items() if slot.state is not states[name]}
            repaired = self.pool.observe(
                listing, self._clock.now(), foreign=foreign, unread=unread, taking_over=taking_over
            )
            for phrase in repaired:
                log.info("pool %r: %s", self.name, phrase)
                self._changed(Change(phrase.partition(" ")[0], "repaired", phrase))
            self.drifts = [*self.drifts, *repaired][-20:]
        finally:
            self._listing = False
            self._listed_at = self._clock.monotonic()
        self.step()

    async def _read_servers(self) -> tuple[dict[str, Mapping[str, int]], dict[str, int], set[str]]:
        """Return what is resident with its bytes by device, the bytes of strangers, and what could not be read."""
        # Of several members at one place the list says only that one of them is there.
        places = {name: self._places(name) for name in self.pool.slots if name not in self.pool.aliases}
        owners = {places[name].key: name for name in sorted(places, key=lambda name: _likely(self.pool.slots[name]))}
        lists: dict[str, Mapping[str, Listed] | None] = {}
        self.server_error = ""
        for server in {place.server.url: place.server for place in places.values()}.values():
            if not server.can_list:
                lists[server.url] = None
                continue
            try:
                async with asyncio.timeout(LIST_TIMEOUT_S):
                    lists[server.url] = await server.models()
            except (ServerError, TimeoutError) as err:
                self.server_error = str(err) or "the server's list took too long"
                lists[server.url] = None
        listing, unread = dict[str, Mapping[str, int]](), set[str]()
        for name, place in places.items():
            found = lists[place.server.url]
            if found is None:
                unread.add(name)
            elif owners[place.key] != name:
                continue
            elif (listed := found.get(place.name)) is not None and not listed.loading and not listed.sleeping:
                listing[name] = _taken(listed, self.pool.slots[name])
        known = self._known()
        strangers = sum(
            listed.bytes or 0
            for url, found in lists.items()
            for name, listed in (found or {}).items()
            if (url, name) not in known
        )
        return listing, {next(iter(self.pool.budget)): strangers} if strangers else {}, unread

    def _degrade(self, slot: Slot) -> None:
        """Publish that a model's deployments should get less traffic until its next load may be tried."""
        now = self._clock.now()
        for deployment_id in self._deployments(slot.name):
            known = self._services.signals.get(deployment_id)
            if known is None:
                known = Signal(deployment_id=deployment_id, status=SignalStatus.DEGRADED, recorded_at=now)
            signal = replace(
                known,
                status=SignalStatus.DEGRADED,
                recorded_at=now,
                until=max(slot.retry_at, slot.stuck_until) or None,
                reason=f"residency: {slot.error}",
            )
            self._services.signals.put(signal)


def _likely(slot: Slot) -> tuple[bool, int]:
    return slot.state not in ABSENT, slot.order


def _taken(listed: Listed, slot: Slot) -> Mapping[str, int]:
    """Return what a model takes by device, as far as its server tells; empty where the expected bytes hold.

    Of a server that tells the weights alone, they count where they are more than was expected.
    """
    size = listed.bytes
    if size is None and listed.weights is not None and listed.weights > sum(slot.bytes.values()):
        size = listed.weights
    return spread(size, slot.model.devices)
