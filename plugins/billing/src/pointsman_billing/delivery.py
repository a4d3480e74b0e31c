"""Delivers the outbox to one sink: in order, at least once, claimed only after the sink has confirmed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from .database import Batch, Database
from .errors import OutboxUnavailable
from .events import BillEvent
from .lock import DeliveryLock
from .sinks import EventsRejected, SinkContext, SinkUnavailable

if TYPE_CHECKING:
    from pointsman.plugin import Services

    from .outbox import Outbox
    from .sinks import Chosen, Sink

log: Final = logging.getLogger("pointsman.billing")

#: How often a worker that does not deliver looks whether the one that does has died.
TAKE_OVER_S: Final = 1.0
#: How often is looked for what other workers have written.
LOOK_S: Final = 0.5
_ERROR_CHARS: Final = 300
_WANTED: Final = {"attempts": "attempt", "requests": "request"}


@dataclass(slots=True)
class Progress:
    """How the delivery is doing in this worker.

    Attributes:
        active: Whether this worker delivers.
        failing: What went wrong last, empty when it works.
        tries: How often in a row.
        delivered: Events confirmed since the start.
        dead: Events given up since the start.
    """

    active: bool = False
    failing: str = ""
    tries: int = 0
    delivered: int = 0
    dead: int = 0


class Delivery:
    """One sink's delivery.

    Args:
        chosen: The sink.
        outbox: What is delivered.
        services: Time, chance, background work.
    """

    def __init__(self, chosen: Chosen, outbox: Outbox, services: Services) -> None:
        self.chosen = chosen
        self.name = chosen.name
        self.progress = Progress()
        self._config = chosen.config
        self._outbox = outbox
        self._clock = services.clock
        self._random = services.random
        self._worker = services.worker
        self._lock = DeliveryLock(outbox.directory, chosen.name)
        self._sink: Sink = chosen.info.factory(chosen.config, SinkContext(base=services.base, now=services.clock.now))
        self._opened = False
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._task: asyncio.Task[object] | None = None

    def wake(self) -> None:
        """Say that there may be something to deliver."""
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Deliver for ever."""
        self._task = asyncio.current_task()
        try:
            while True:
                try:
                    await self._run_once()
                except (OutboxUnavailable, OSError) as err:
                    await self._note(0, f"{err}")
                    await self._clock.sleep(TAKE_OVER_S)
        finally:
            self._idle.set()
            try:
                await self._sink.close()
            finally:
                self._lock.release()

    async def _run_once(self) -> None:
        if not self._lock.take():
            self.progress.active = False
            self._idle.set()
            await self._clock.sleep(TAKE_OVER_S)
            return
        self.progress.active = True
        self._wake.clear()
        batch = await self._outbox.read(lambda db: db.next_batch(self.name, self._config.batch_events))
        if not batch.events:
            self._idle.set()
            await self._pause()
            return
        self._idle.clear()
        await self._deliver(batch)

    async def stop(self) -> None:
        """End the delivery and wait until it has ended."""
        task = self._task
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task})

    async def drained(self) -> None:
        """Wait until this worker has nothing to deliver to the sink, or cannot."""
        await self._idle.wait()

    async def _deliver(self, batch: Batch) -> None:
        """Deliver a batch; what the sink refuses for good, or for too long, becomes dead letters."""
        wanted = _WANTED.get(self._config.events)
        pending = [replace(batch, events=tuple((s, e) for s, e in batch.events if wanted in {None, e.type}))]
        skipped = len(batch.events) - len(pending[0].events)
        if skipped and not pending[0].events:
            await self._outbox.write(partial(self._confirm, batch, 0))
            return
        while pending:
            part = pending.pop(0)
            # The cursor moves behind a part only when nothing before it is open; the last one takes it to the end.
            upto = batch.upto if not pending else part.events[-1][0]
            part = replace(part, upto=0 if batch.again else upto)
            try:
                await self._send(part)
            except EventsRejected as err:
                if len(part.events) == 1:
                    await self._bury(part, 1, str(err))
                else:
                    pending[:0] = _split(part, err.ids)
            except SinkUnavailable as err:
                await self._bury(part, self._config.max_tries, str(err))
            else:
                await self._outbox.write(partial(self._confirm, part, len(part.events)))
                self.progress.delivered += len(part.events)
                self.progress.failing, self.progress.tries = "", 0

    def _confirm(self, part: Batch, count: int, db: Database) -> None:
        db.confirm(self.name, part, count, self._worker, self._now_ms())

    async def _send(self, part: Batch) -> None:
        """Send a part until the sink has taken it.

        Raises:
            EventsRejected: it never will.
            SinkUnavailable: it could not for too long.
        """
        retrying = AsyncRetrying(
            sleep=self._back_off,
            wait=self._wait_s,
            stop=stop_after_attempt(self._config.max_tries),
            retry=retry_if_exception_type(SinkUnavailable),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                await self._send_once([event for _, event in part.events], attempt.retry_state.attempt_number)

    async def _send_once(self, events: Sequence[BillEvent], tries: int) -> None:
        try:
            # A sink has a time limit of its own and can say more about it; this one is for a sink that hangs.
            async with asyncio.timeout(self._config.timeout_s + 5.0):
                if not self._opened:
                    await self._sink.open()
                    self._opened = True
                await self._sink.send(events)
        except EventsRejected:
            self._opened = False
            raise
        except Exception as err:
            self._opened = False
            error = err if isinstance(err, SinkUnavailable) else SinkUnavailable(_words(err))
            await self._note(tries, str(error))
            with suppress(Exception):
                await self._sink.close()
            if error is err:
                raise
            raise error from err

    async def _back_off(self, seconds: float) -> None:
        # Nobody waits for a sink that is failing.
        self._idle.set()
        await self._clock.sleep(seconds)

    def _wait_s(self, state: RetryCallState) -> float:
        """Return the next pause: it doubles, with jitter between half and whole; at least what the sink asked for."""
        error = state.outcome.exception() if state.outcome is not None else None
        asked_s = (error.retry_after_s or 0.0) if isinstance(error, SinkUnavailable) else 0.0
        doubled_s = self._config.backoff_first_s * 2.0 ** min(state.attempt_number - 1, 60)
        pause_s = min(self._config.backoff_most_s, doubled_s) * self._random.uniform(0.5, 1.0)
        return max(pause_s, min(asked_s, self._config.backoff_most_s))

    async def _bury(self, part: Batch, tries: int, error: str) -> None:
        self.progress.dead += len(part.events)
        log.error(
            "billing sink %s: %d events become dead letters after %d tries: %s",
            self.name,
            len(part.events),
            tries,
            error[:_ERROR_CHARS],
        )
        await self._outbox.write(lambda db: db.bury(self.name, part, tries, error[:_ERROR_CHARS], self._now_ms()))

    async def _note(self, tries: int, error: str) -> None:
        if not self.progress.failing:
            log.warning("billing sink %s fails: %s", self.name, error[:_ERROR_CHARS])
        self.progress.failing, self.progress.tries = error[:_ERROR_CHARS], tries
        with suppress(OutboxUnavailable):
            await self._outbox.write(
                lambda db: db.failed(self.name, tries, error[:_ERROR_CHARS], self._worker, self._now_ms())
            )

    async def _pause(self) -> None:
        """Wait until something was written here, or it is time to look what others have written."""
        sleeping = asyncio.ensure_future(self._clock.sleep(LOOK_S))
        waking = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            waking.cancel()

    def _now_ms(self) -> int:
        return int(self._clock.now() * 1000)


def _split(part: Batch, at_fault: frozenset[str]) -> list[Batch]:
    """Return a rejected batch in parts, in their order: around those at fault where they are known, else in halves."""
    events = part.events
    if at_fault and any(event.id not in at_fault for _, event in events):
        runs: list[list[int]] = []
        for index, (_, event) in enumerate(events):
            wrong = event.id in at_fault
            if wrong or not runs or events[runs[-1][-1]][1].id in at_fault:
                runs.append([index])
            else:
                runs[-1].append(index)
        return [replace(part, events=tuple(events[index] for index in run)) for run in runs]
    middle = len(events) // 2
    return [replace(part, events=events[:middle]), replace(part, events=events[middle:])]


def _words(err: Exception) -> str:
    """Return an unforeseen error without its text, which may hold anything."""
    return "no answer in time" if isinstance(err, TimeoutError) else f"unexpected {type(err).__name__}"
