"""Delivers the outbox to one sink: in order, at least once, confirmed in the outbox only after the sink has confirmed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from pointsman.events import Level, Notice
from pointsman.store.sqlite import unhurried

from .database import Batch, Database, sink_lock
from .errors import OutboxUnavailable
from .events import BillEvent
from .sinks import EventsKnown, EventsRejected, SinkContext, SinkUnavailable

if TYPE_CHECKING:
    from pointsman.plugin import Services

    from .outbox import Outbox
    from .sinks import Chosen, Sink

log: Final = logging.getLogger("pointsman.billing")

#: Seconds between the attempts of a waiting worker to take over delivery.
TAKE_OVER_S: Final = 1.0
#: Seconds between looking for events that other workers have written.
LOOK_S: Final = 0.5
#: Seconds for which events are collected before they are delivered.
GATHER_S: Final = 0.1
#: Seconds for which reading events and moving the cursor wait for other work of the outbox, while there is no backlog.
_PATIENCE_S: Final = 0.05
_ERROR_CHARS: Final = 300
#: Tries of a batch at which the sink itself fails, which says nothing about its receiver.
_MOST_BROKEN: Final = 50
_WANTED: Final = {"attempts": "attempt", "requests": "request"}


@dataclass(slots=True)
class Progress:
    """The state of the delivery in this worker.

    Attributes:
        active: Whether this worker delivers.
        failing: The last error, empty while it works.
        tries: Consecutive failures.
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
        outbox: The outbox to deliver.
        services: The host's services.
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
        self._publish = services.publish
        self._lock = sink_lock(outbox.directory, chosen.name)
        self._sink: Sink = chosen.info.factory(chosen.config, SinkContext(base=services.base, now=services.clock.now))
        self._opened = False
        self._wake = asyncio.Event()
        self._written = False
        #: Whether the last batch was a whole one, so that there are probably more events.
        self._behind = False
        self._idle = asyncio.Event()
        self._task: asyncio.Task[object] | None = None

    def wake(self) -> None:
        """Signal that there may be events to deliver."""
        self._idle.clear()
        self._written = True
        self._wake.set()

    async def look(self) -> None:
        """Look for events that other workers have written."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
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
        if not self._may_deliver():
            self.progress.active = False
            self._idle.set()
            await self._clock.sleep(TAKE_OVER_S)
            return
        self.progress.active = True
        # Where this worker does not write either, there is nothing to wait for.
        patience_s = _PATIENCE_S if self._written and not self._behind else 0.0
        # What has been written until now is read now.
        self._wake.clear()
        self._written = False
        with unhurried(patience_s):
            batch = await self._outbox.read(lambda db: db.next_batch(self.name, self._config.batch_events))
            self._behind = batch.again or len(batch.events) == self._config.batch_events
            if batch.events:
                self._idle.clear()
                await self._deliver(batch)
        if not self._behind:
            # What was read is all there was, and what has been written since is read after the pause.
            if not batch.events or not self._written:
                self._idle.set()
            await self._pause()

    def _may_deliver(self) -> bool:
        """Return whether this worker holds the lock; take it if it is free."""
        if not self._lock.is_locked:
            try:
                self._lock.acquire(blocking=False)
            except TimeoutError:
                return False
        return True

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
        """Deliver a batch; events that the sink rejects, or fails at for a reason of its own, become dead letters."""
        wanted = _WANTED.get(self._config.events)
        pending = [replace(batch, events=tuple((s, e) for s, e in batch.events if wanted in {None, e.type}))]
        skipped = len(batch.events) - len(pending[0].events)
        if skipped and not pending[0].events:
            await self._outbox.write(partial(self._confirm, batch, 0))
            return
        while pending:
            part = pending.pop(0)
            # The cursor moves past a part only when everything before it is done; the last part moves it to the end.
            upto = batch.upto if not pending else part.events[-1][0]
            part = replace(part, upto=0 if batch.again else upto)
            try:
                await self._send(part)
            except EventsRejected as err:
                if len(part.events) == 1 and isinstance(err, EventsKnown):
                    await self._delivered(part)
                elif len(part.events) == 1:
                    await self._bury(part, 1, str(err))
                else:
                    pending[:0] = _split(part, err.ids)
            except SinkUnavailable as err:
                await self._bury(part, self.progress.tries, str(err))
            else:
                await self._delivered(part)

    async def _delivered(self, part: Batch) -> None:
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
        events = [event for _, event in part.events]
        tries = 1
        while True:
            try:
                await self._send_once(events, tries)
            except SinkUnavailable as err:
                if self._is_last(err, tries):
                    raise
                pause_s = self._pause_s(err, tries)
            else:
                return
            # A shutdown does not wait for a failing sink.
            self._idle.set()
            await self._clock.sleep(pause_s)
            tries += 1

    async def _send_once(self, events: Sequence[BillEvent], tries: int) -> None:
        try:
            # A sink has its own time limit and a better message for it; this one is for a sink that hangs.
            async with asyncio.timeout(self._config.timeout_s + 5.0):
                await self._open_and_send(events)
        except EventsRejected:
            self._opened = False
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as err:
            if isinstance(err, asyncio.CancelledError | GeneratorExit) and _is_ended():
                raise
            self._opened = False
            error = err if isinstance(err, SinkUnavailable) else _failure(err)
            await self._note(tries, str(error))
            with suppress(Exception):
                await self._sink.close()
            if error is err:
                raise
            raise error from err

    async def _open_and_send(self, events: Sequence[BillEvent]) -> None:
        # In a task of its own: a sink may cancel the one it runs in.
        failed = await asyncio.create_task(self._ask_sink(events), name=f"billing: send to {self.name}")
        if failed is not None:
            raise failed

    async def _ask_sink(self, events: Sequence[BillEvent]) -> BaseException | None:
        """Return what the sink has raised: a SystemExit that leaves a task ends the process."""
        try:
            if not self._opened:
                await self._sink.open()
                self._opened = True
            await self._sink.send(events)
        except KeyboardInterrupt:
            raise
        except BaseException as err:  # noqa: BLE001  # a sink may raise whatever it likes
            return err
        return None

    def _is_last(self, error: SinkUnavailable, tries: int) -> bool:
        """Return whether a batch is given up: by the configuration, or because the sink itself fails at it again and again."""
        most = _MOST_BROKEN if isinstance(error, _SinkBroken) else None
        return any(limit is not None and tries >= limit for limit in (most, self._config.max_tries))

    def _pause_s(self, error: SinkUnavailable, tries: int) -> float:
        """Return the next pause: it doubles, with jitter between half and whole; at least the retry-after of the sink."""
        doubled_s = self._config.backoff_first_s * 2.0 ** min(tries - 1, 60)
        pause_s = min(self._config.backoff_most_s, doubled_s) * self._random.uniform(0.5, 1.0)
        return max(pause_s, min(error.retry_after_s or 0.0, self._config.backoff_most_s))

    async def _bury(self, part: Batch, tries: int, error: str) -> None:
        self.progress.dead += len(part.events)
        log.error(
            "billing sink %s: %d events become dead letters after %d tries: %s",
            self.name,
            len(part.events),
            tries,
            error[:_ERROR_CHARS],
        )
        self._notice(
            "dead_letters",
            f"billing sink {self.name}: {len(part.events)} events are dead letters after {tries} tries: "
            f"{error[:_ERROR_CHARS]}; redrive them with 'pointsman billing redrive --sink {self.name}' once that is mended",
        )
        await self._outbox.write(lambda db: db.bury(self.name, part, tries, error[:_ERROR_CHARS], self._now_ms()))

    async def _note(self, tries: int, error: str) -> None:
        if not self.progress.failing:
            log.warning("billing sink %s fails: %s", self.name, error[:_ERROR_CHARS])
            self._notice(
                "sink", f"billing sink {self.name} fails and is tried again: {error[:_ERROR_CHARS]}", "warning"
            )
        self.progress.failing, self.progress.tries = error[:_ERROR_CHARS], tries
        with suppress(OutboxUnavailable):
            await self._outbox.write(
                lambda db: db.failed(self.name, tries, error[:_ERROR_CHARS], self._worker, self._now_ms())
            )

    def _notice(self, kind: str, text: str, level: Level = "error") -> None:
        self._publish(Notice(kind=kind, subject=self.name, text=text, at=self._clock.now(), level=level, logged=True))

    async def _pause(self) -> None:
        """Wait until this worker writes something, or it is time to look for events of other workers."""
        await self._wake.wait()
        if self._written:
            # Events come in numbers or one by one; together they share a read, a delivery and a commit.
            await asyncio.sleep(GATHER_S)

    def _now_ms(self) -> int:
        return int(self._clock.now() * 1000)


def _split(part: Batch, at_fault: frozenset[str]) -> list[Batch]:
    """Return a rejected batch in parts, in order: split around the events at fault where they are known, else in halves."""
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


def _is_ended() -> bool:
    """Return whether the delivery is being ended; a sink may raise the same by itself."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class _SinkBroken(SinkUnavailable):
    """The sink raised an error that says nothing about its receiver."""


def _failure(err: BaseException) -> SinkUnavailable:
    """Return an unexpected error without its text, which may contain anything."""
    if isinstance(err, TimeoutError):
        return SinkUnavailable("no answer in time")
    if isinstance(err, OSError):
        return SinkUnavailable(f"{type(err).__name__}: {err.strerror or 'no connection'}")
    return _SinkBroken(f"unexpected {type(err).__name__}")
