"""Drives one race: starts its legs, listens to them, cancels the losers. The decisions are ``race.Race``'s."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Final

from pointsman.errors import UpstreamError
from pointsman.types import Attempt, Chunk, Deployment, ErrorClass, Outcome, UpstreamResponse

from .faults import Fault
from .race import Entry, Lost, Plan, Race, Reason, Start, Won

if TYPE_CHECKING:
    from pointsman.plugin import Clock, UpstreamCall

log: Final = logging.getLogger("pointsman.racing")

#: How long a whole answer waits for its losers to be closed, so that their usage is in the settlement. Real seconds.
LOSERS_WITHIN_S: Final = 0.05
#: How long legs whose own time has run out are given to end, before they are cancelled. Real seconds.
END_WITHIN_S: Final = 1.0
#: A leg that had less than this share of the race's time is not blamed for having run out of it.
BLAMED_FROM: Final = 0.5
_BAD_GATEWAY: Final = 502

#: The leg that the running code works for. The gateway's call inherits it, so ``select`` knows who is asking.
current_leg: Final[ContextVar[Leg | None]] = ContextVar("pointsman_racing_leg", default=None)


class Leg:
    """One attempt of a race.

    Attributes:
        contest: The race.
        number: From 0.
        entry: What it calls.
        reason: Why it was started.
        started_ms: When, on the race's clock.
        timeout_s: How long it may take by itself: until the race's time has run out. None: it was started too late to
            be blamed for that, or the race has all the time there is.
        decided_ms: When it had content, or its answer; None before.
        call: The running call; None before it was started.
        buffer: Chunks read so far and not handed on.
        chunks: The rest of the stream.
        ended: The stream has ended within the buffer.
        response: The whole answer.
        claimed: The deployment that was chosen for it, when the race chose.
        dropped: It is being cancelled, or was.
    """

    __slots__ = (
        "buffer",
        "call",
        "chunks",
        "claimed",
        "contest",
        "decided_ms",
        "dropped",
        "ended",
        "entry",
        "number",
        "reason",
        "response",
        "started_ms",
        "task",
        "timeout_s",
    )

    def __init__(self, contest: Contest, start: Start, started_ms: float) -> None:
        self.contest = contest
        self.number = start.leg
        self.entry: Entry = start.entry
        self.reason: Reason = start.reason
        self.started_ms = started_ms
        self.timeout_s: float | None = None
        self.decided_ms: float | None = None
        self.call: UpstreamCall | None = None
        self.buffer: deque[Chunk] = deque()
        self.chunks: AsyncIterator[Chunk] | None = None
        self.ended = False
        self.response: UpstreamResponse | None = None
        self.claimed: str | None = None
        self.dropped = False
        self.task: asyncio.Task[None] | None = None

    @property
    def attempt(self) -> Attempt | None:
        """The attempt, or None as long as it has not reached a deployment."""
        if self.call is None:
            return None
        try:
            return self.call.attempt
        except UpstreamError:
            return None

    @property
    def deployment(self) -> Deployment | None:
        """Whom it has reached, or None."""
        attempt = self.attempt
        return None if attempt is None else attempt.deployment


class Contest:
    """One race.

    Args:
        plan: What is raced.
        clock: Time.
        stream: Whether the request is a stream.
        call: Starts the call of a leg.
        delay_ms: How long to wait for a leg before the next, from its number, its entry and, once it runs, the leg.
        allow: Asks the budget for an extra attempt.
        patience: By how much the delays are stretched now.
        judge: Returns the score of a leg that has answered; an answer that it fails on scores 0.
        finished: Called once when all legs are closed, or nobody waits for them any more.

    Attributes:
        race: The decisions.
        legs: All legs, in the order in which they were started.
        winner: Set when there is one.
        cancelling_ms: How long each loser took to be closed.
    """

    def __init__(
        self,
        plan: Plan,
        clock: Clock,
        *,
        stream: bool,
        call: Callable[[Leg], UpstreamCall],
        delay_ms: Callable[[int, Entry, Leg | None], float],
        allow: Callable[[], bool],
        patience: Callable[[], float],
        judge: Callable[[Leg], float],
        finished: Callable[[Contest], None],
    ) -> None:
        self.legs: list[Leg] = []
        self.race = Race(
            plan,
            lambda number, entry: delay_ms(number, entry, self.legs[number] if number < len(self.legs) else None),
            allow,
            patience,
        )
        self.winner: Leg | None = None
        self.cancelling_ms: list[float] = []
        self._clock = clock
        self._stream = stream
        self._call = call
        self._judge = judge
        self._finished: Callable[[Contest], None] | None = finished
        self._begun_s = clock.monotonic()
        self._events: deque[Callable[[], list[Start]]] = deque()
        self._changed = asyncio.Event()
        self._alarm: asyncio.Task[None] | None = None
        self._alarm_ms: float | None = None
        self._rang_ms = 0.0
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def now_ms(self) -> float:
        """Milliseconds since the race began."""
        return (self._clock.monotonic() - self._begun_s) * 1000

    async def run(self) -> Leg:
        """Run the race and return its winner; the losers are being cancelled.

        Raises:
            UpstreamError: nobody has won.
        """
        race = self.race
        try:
            self._launch(race.begin(0.0))
            while race.result is None:
                self._set_alarm(race.due_ms())
                await self._changed.wait()
                self._changed.clear()
                while self._events:
                    self._launch(self._events.popleft()())
                # A clock whose sleep ends a hair too early must not make the race wait for a moment that has passed.
                self._launch(race.tick(max(self.now_ms, self._rang_ms)))
        except BaseException:
            await self.abandon()
            raise
        finally:
            self._set_alarm(None)
        if isinstance(race.result, Lost):
            await self.abandon()
            raise race.result.fault.error
        assert isinstance(race.result, Won)  # noqa: S101  # the loop ends with a result
        self.winner = winner = self.legs[race.result.leg]
        for leg in self.legs:
            if leg is not winner:
                self._drop(leg)
        return winner

    async def abandon(self) -> None:
        """Cancel every leg and wait until all are closed."""
        for leg in self.legs:
            if not leg.dropped:
                self._drop(leg)
        await self.close()

    async def close(self, within_s: float | None = None) -> None:
        """Wait until the losers are closed, at most so long in real seconds, and report once."""
        try:
            waiting = {task for task in self._closing if not task.done()}
            if waiting:
                await asyncio.wait(waiting, timeout=within_s)
        finally:
            # Whoever waits may be cancelled; the race is over all the same.
            finished, self._finished = self._finished, None
            if finished is not None:
                finished(self)

    # -- legs ---------------------------------------------------------------------------------------------------------

    def _launch(self, starts: list[Start]) -> None:
        for start in starts:
            leg = Leg(self, start, self.now_ms)
            self.legs.append(leg)
            context = copy_context()
            context.run(current_leg.set, leg)
            leg.task = asyncio.get_running_loop().create_task(
                self._run_leg(leg), name=f"race leg {leg.number}", context=context
            )

    async def _run_leg(self, leg: Leg) -> None:
        try:
            leg.timeout_s = self._time_left_s()
            leg.call = call = self._call(leg)
            if self._stream:
                leg.chunks = call.chunks()
                async for chunk in leg.chunks:
                    leg.buffer.append(chunk)
                    if chunk.has_content:
                        break
                else:
                    leg.ended = True
                    _check_ending(leg)
            else:
                leg.response = await call.response()
        except UpstreamError as err:
            self._tell_failed(leg, err)
        except asyncio.CancelledError:
            if leg.dropped:
                raise
            # Nobody here has cancelled it: the gateway has, underneath. The race goes on with the next.
            self._tell_failed(leg, _broken("was cancelled by the gateway"))
        except Exception as err:
            log.exception("race leg %d on %r failed in an unexpected way", leg.number, leg.entry.target)
            broken = _broken(f"failed: {type(err).__name__}")
            broken.__cause__ = err
            self._tell_failed(leg, broken)
        else:
            leg.decided_ms = now_ms = self.now_ms
            score = self._score(leg)
            self._tell(lambda: self.race.answered(leg.number, now_ms, score))

    def _score(self, leg: Leg) -> float:
        try:
            return self._judge(leg)
        except Exception:
            log.exception("the answer of race leg %d on %r could not be judged", leg.number, leg.entry.target)
            return 0.0

    def _time_left_s(self) -> float | None:
        limit_ms = self.race.plan.timeout_ms
        if limit_ms is None:
            return None
        left_ms = limit_ms - self.now_ms
        return left_ms / 1000 if left_ms >= limit_ms * BLAMED_FROM else None

    def _tell_failed(self, leg: Leg, err: UpstreamError) -> None:
        if not leg.dropped:
            now_ms = self.now_ms
            self._tell(lambda: self.race.failed(leg.number, Fault.of(err), now_ms))

    def _tell(self, event: Callable[[], list[Start]]) -> None:
        self._events.append(event)
        self._changed.set()

    def _drop(self, leg: Leg) -> None:
        leg.dropped = True
        closing = asyncio.create_task(self._close_leg(leg), name=f"race leg {leg.number} closing")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close_leg(self, leg: Leg) -> None:
        if leg.task is not None and leg.timeout_s is not None and self.race.overdue(self.now_ms):
            # It ends in this very moment, as an error that everybody who watches its deployment gets to know.
            await asyncio.wait({leg.task}, timeout=END_WITHIN_S)
        begun_s = self._clock.monotonic()
        running = leg.response is None and not leg.ended
        if leg.call is not None and running:
            with contextlib.suppress(Exception):
                await leg.call.cancel()
        if leg.task is not None and not leg.task.done():
            leg.task.cancel()
            await asyncio.wait({leg.task})
        await close_chunks(leg)
        if running:
            self.cancelling_ms.append((self._clock.monotonic() - begun_s) * 1000)

    # -- time ---------------------------------------------------------------------------------------------------------

    def _set_alarm(self, due_ms: float | None) -> None:
        if due_ms == self._alarm_ms:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._alarm_ms = None, due_ms
        if due_ms is not None:
            self._alarm = asyncio.create_task(self._ring(due_ms), name="race alarm")

    async def _ring(self, due_ms: float) -> None:
        await self._clock.sleep(max(0.0, (due_ms - self.now_ms) / 1000))
        self._alarm_ms, self._rang_ms = None, max(self._rang_ms, due_ms)
        self._changed.set()


class Winner:
    """The winner's stream from its first byte: what has been read of it, then the rest.

    Not a generator: a generator whose reading has never begun does not run its ``finally`` either.

    Args:
        leg: The winner.
    """

    def __init__(self, leg: Leg) -> None:
        self._leg = leg
        self._closed = False

    def __aiter__(self) -> Winner:
        return self

    async def __anext__(self) -> Chunk:
        leg = self._leg
        if leg.buffer:
            return leg.buffer.popleft()
        if self._closed or leg.ended or leg.chunks is None:
            await self.aclose()
            raise StopAsyncIteration
        try:
            return await anext(leg.chunks)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close the stream, and wait for the losers."""
        if self._closed:
            return
        self._closed = True
        self._leg.buffer.clear()
        try:
            await close_chunks(self._leg)
        finally:
            await self._leg.contest.close()


async def close_chunks(leg: Leg) -> None:
    """Close a leg's stream, if it has one that can be closed."""
    close = getattr(leg.chunks, "aclose", None)
    if close is not None:
        with contextlib.suppress(Exception):
            await close()


def _check_ending(leg: Leg) -> None:
    """Look at how a stream without content has ended: one that says itself that it has failed ends without an error.

    Raises:
        UpstreamError: it has failed.
    """
    attempt = leg.attempt
    if attempt is not None and attempt.outcome is Outcome.ERROR and (why := attempt.error) is not None:
        raise UpstreamError(
            why.message, status=why.status or _BAD_GATEWAY, error_class=str(why.kind), retry_after_s=why.retry_after_s
        )


def _broken(what: str) -> UpstreamError:
    return UpstreamError(f"the attempt {what}", status=_BAD_GATEWAY, error_class=str(ErrorClass.CONNECTION))
