"""Runs one race: starts its attempts, reports their results to ``hedging.Race`` and cancels the losers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Final

from pointsman.errors import UpstreamError
from pointsman.types import Attempt, Chunk, Deployment, ErrorClass, Outcome, UpstreamResponse

from .hedging import Entry, Fault, Lost, Plan, Race, Reason, Start, Won

if TYPE_CHECKING:
    from pointsman.plugin import Clock, Timer, UpstreamCall

log: Final = logging.getLogger("pointsman.racing")

#: Real seconds for which the end of an answer waits for its losers to be closed, so that the settlement has their usage.
CLOSE_LOSERS_WITHIN_S: Final = 0.05
#: Real seconds that an attempt has to end by its own timeout before it is cancelled.
END_WITHIN_S: Final = 1.0
#: An attempt that had less than this share of the race's time is not closed as a timeout when that time ends.
TIMEOUT_FROM_SHARE: Final = 0.5
_BAD_GATEWAY: Final = 502

#: Refers to the attempt for which the code runs. The gateway's call inherits it, so ``select`` knows which attempt it
#: serves; tasks that the call leaves behind keep neither the attempt nor its request in memory.
current_attempt: Final[ContextVar[weakref.ref[RaceAttempt] | None]] = ContextVar(
    "pointsman_racing_attempt", default=None
)


class RaceAttempt:
    """One attempt of a race.

    Attributes:
        number: From 0.
        entry: What it calls.
        reason: Why it was started.
        started_ms: When, on the race's clock.
        timeout_s: Its own timeout: the rest of the race's time. None: the race has no limit, or the attempt started too
            late to be closed as a timeout.
        decided_ms: When it had content, or its whole answer; None before.
        call: The running call; None before it was started.
        buffer: Chunks that were read but not passed on.
        chunks: The rest of the stream.
        ended: The stream has ended within the buffer.
        response: The whole answer.
        claimed: The deployment that the race chose for it.
        dropped: It is being cancelled, or was.
    """

    __slots__ = (
        "__weakref__",
        "_runner",
        "buffer",
        "call",
        "chunks",
        "claimed",
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

    def __init__(self, runner: RaceRunner, start: Start, started_ms: float) -> None:
        # The race has its attempts: as a circle, all of the request would wait for the garbage collector.
        self._runner = weakref.ref(runner)
        self.number = start.attempt
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
    def runner(self) -> RaceRunner | None:
        """The race; None when it is over."""
        return self._runner()

    @property
    def value(self) -> Attempt | None:
        """The host's value of the attempt; None until it has reached a deployment."""
        if self.call is None:
            return None
        try:
            return self.call.attempt
        except UpstreamError:
            return None

    @property
    def deployment(self) -> Deployment | None:
        """The deployment that it has reached, or None."""
        value = self.value
        return None if value is None else value.deployment


class RaceRunner:
    """One race.

    Args:
        plan: What is raced.
        clock: Time.
        stream: Whether the request is a stream.
        call: Starts the call of an attempt.
        delay_ms: Returns the hedging delay after an attempt, from its number, its entry and, once it runs, the attempt.
        allow: Takes an extra attempt from the budget.
        delay_factor: Returns the factor that stretches the delays now.
        wanted: Returns whether the client still waits for the answer.
        judge: Returns the score of an attempt that has answered; an answer on which it fails scores 0.
        finished: Called once, when all attempts are closed or the wait for that is over.

    Attributes:
        race: The decisions.
        attempts: All attempts, in the order of their starts.
        winner: Set when there is one.
        cancelling_ms: How long each loser took to be closed.
    """

    def __init__(
        self,
        plan: Plan,
        clock: Clock,
        *,
        stream: bool,
        call: Callable[[RaceAttempt], UpstreamCall],
        delay_ms: Callable[[int, Entry, RaceAttempt | None], float],
        allow: Callable[[], bool],
        delay_factor: Callable[[], float],
        wanted: Callable[[], bool],
        judge: Callable[[RaceAttempt], float],
        finished: Callable[[RaceRunner], None],
    ) -> None:
        attempts: list[RaceAttempt] = []
        self.attempts = attempts
        self.race = Race(
            plan,
            lambda number, entry: delay_ms(number, entry, attempts[number] if number < len(attempts) else None),
            allow,
            delay_factor,
            wanted,
        )
        self.winner: RaceAttempt | None = None
        self.cancelling_ms: list[float] = []
        self._clock = clock
        self._stream = stream
        self._call = call
        self._judge = judge
        self._finished: Callable[[RaceRunner], None] | None = finished
        self._begun_s = clock.monotonic()
        self._events: deque[Callable[[], list[Start]]] = deque()
        self._changed: asyncio.Future[None] | None = None
        self._alarm: Timer | None = None
        self._alarm_ms: float | None = None
        self._rang_ms = 0.0
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def now_ms(self) -> float:
        """Milliseconds since the race began."""
        return (self._clock.monotonic() - self._begun_s) * 1000

    async def run(self) -> RaceAttempt:
        """Run the race and return its winner; the losers are being cancelled.

        Raises:
            UpstreamError: no attempt has won.
        """
        race = self.race
        try:
            self._launch(race.begin(0.0))
            while race.result is None:
                self._set_alarm(race.due_ms())
                self._changed = asyncio.get_running_loop().create_future()
                if not self._events:
                    await self._changed
                while self._events:
                    self._launch(self._events.popleft()())
                if race.result is None:
                    # A timer that is slightly early must not make the race wait for a moment that has passed.
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
        self.winner = winner = self.attempts[race.result.attempt]
        for attempt in self.attempts:
            if attempt is not winner:
                self._drop(attempt)
        return winner

    async def abandon(self) -> None:
        """Cancel every attempt and wait until all are closed, or do not end although they were cancelled."""
        for attempt in self.attempts:
            if not attempt.dropped:
                self._drop(attempt)
        await self.close(END_WITHIN_S + CLOSE_LOSERS_WITHIN_S)

    async def close(self, within_s: float = CLOSE_LOSERS_WITHIN_S) -> None:
        """Wait until the losers are closed, at most ``within_s`` real seconds, and report the end once."""
        try:
            waiting = {task for task in self._closing if not task.done()}
            if waiting:
                await asyncio.wait(waiting, timeout=within_s)
        finally:
            # The waiting task may be cancelled; the race is over all the same.
            finished, self._finished = self._finished, None
            if finished is not None:
                finished(self)

    # -- attempts -----------------------------------------------------------------------------------------------------

    def _launch(self, starts: list[Start]) -> None:
        for start in starts:
            attempt = RaceAttempt(self, start, self.now_ms)
            self.attempts.append(attempt)
            context = copy_context()
            context.run(current_attempt.set, weakref.ref(attempt))
            attempt.task = asyncio.get_running_loop().create_task(
                self._run_attempt(attempt), name=f"race attempt {attempt.number}", context=context
            )

    async def _run_attempt(self, attempt: RaceAttempt) -> None:
        try:
            attempt.timeout_s = self._time_left_s()
            attempt.call = call = self._call(attempt)
            if self._stream:
                attempt.chunks = call.chunks()
                async for chunk in attempt.chunks:
                    attempt.buffer.append(chunk)
                    if chunk.has_content:
                        break
                else:
                    attempt.ended = True
                    _check_ending(attempt)
            else:
                attempt.response = await call.response()
        except UpstreamError as err:
            self._report_failed(attempt, err)
        except asyncio.CancelledError:
            if attempt.dropped:
                raise
            # The gateway has cancelled the call underneath, not the race: it continues with the next attempt.
            self._report_failed(attempt, _broken("was cancelled by the gateway"))
        except Exception as err:
            log.exception("race attempt %d on %r failed unexpectedly", attempt.number, attempt.entry.target)
            broken = _broken(f"failed: {type(err).__name__}")
            broken.__cause__ = err
            self._report_failed(attempt, broken)
        else:
            now_ms = self.now_ms
            if (value := attempt.value) is not None and value.empty:
                self._report(lambda: self.race.empty(attempt.number, now_ms))
                return
            attempt.decided_ms = now_ms
            score = self._score(attempt)
            self._report(lambda: self.race.answered(attempt.number, now_ms, score))

    def _score(self, attempt: RaceAttempt) -> float:
        try:
            return self._judge(attempt)
        except Exception:
            log.exception("cannot score the answer of race attempt %d on %r", attempt.number, attempt.entry.target)
            return 0.0

    def _time_left_s(self) -> float | None:
        limit_ms = self.race.plan.timeout_ms
        if limit_ms is None:
            return None
        left_ms = limit_ms - self.now_ms
        return left_ms / 1000 if left_ms >= limit_ms * TIMEOUT_FROM_SHARE else None

    def _report_failed(self, attempt: RaceAttempt, err: UpstreamError) -> None:
        if not attempt.dropped:
            now_ms, fault = self.now_ms, Fault.of(err, reached=attempt.value is not None)
            self._report(lambda: self.race.failed(attempt.number, fault, now_ms))

    def _report(self, event: Callable[[], list[Start]]) -> None:
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def _drop(self, attempt: RaceAttempt) -> None:
        attempt.dropped = True
        closing = asyncio.create_task(self._close_attempt(attempt), name=f"race attempt {attempt.number} closing")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close_attempt(self, attempt: RaceAttempt) -> None:
        if attempt.task is not None and attempt.timeout_s is not None and self.race.overdue(self.now_ms):
            # Its own timeout ends it in this moment, as an error that every observer of its deployment sees.
            await asyncio.wait({attempt.task}, timeout=END_WITHIN_S)
        begun_s = self._clock.monotonic()
        running = attempt.response is None and not attempt.ended
        if attempt.call is not None and running:
            with contextlib.suppress(Exception):
                await attempt.call.cancel()
        if attempt.task is not None and not attempt.task.done():
            attempt.task.cancel()
            await asyncio.wait({attempt.task})
        await _close_chunks(attempt)
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
            self._alarm = self._clock.call_later(max(0.0, (due_ms - self.now_ms) / 1000), partial(self._ring, due_ms))

    def _ring(self, due_ms: float) -> None:
        self._alarm = self._alarm_ms = None
        self._rang_ms = max(self._rang_ms, due_ms)
        self._wake()


class WinnerStream:
    """The winner's stream from its first byte: the buffered chunks, then the rest.

    Not a generator, because a generator that is never iterated does not run its ``finally`` either.

    Args:
        runner: The race.
        winner: The attempt.
    """

    def __init__(self, runner: RaceRunner, winner: RaceAttempt) -> None:
        self._runner = runner
        self._winner = winner
        self._closed = False

    def __aiter__(self) -> WinnerStream:
        return self

    async def __anext__(self) -> Chunk:
        winner = self._winner
        if winner.buffer:
            return winner.buffer.popleft()
        if self._closed or winner.ended or winner.chunks is None:
            await self.aclose()
            raise StopAsyncIteration
        try:
            return await anext(winner.chunks)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close the stream, and wait a moment for the losers."""
        if self._closed:
            return
        self._closed = True
        self._winner.buffer.clear()
        try:
            await _close_chunks(self._winner)
        finally:
            await self._runner.close()


async def _close_chunks(attempt: RaceAttempt) -> None:
    close = getattr(attempt.chunks, "aclose", None)
    if close is not None:
        with contextlib.suppress(Exception):
            await close()


def _check_ending(attempt: RaceAttempt) -> None:
    """Check how a stream without content has ended: one that reports its own failure ends without an exception.

    Raises:
        UpstreamError: it has failed.
    """
    value = attempt.value
    if value is not None and value.outcome is Outcome.ERROR and (error := value.error) is not None:
        raise UpstreamError(
            error.message,
            status=error.status or _BAD_GATEWAY,
            error_class=str(error.kind),
            retry_after_s=error.retry_after_s,
        )


def _broken(what: str) -> UpstreamError:
    return UpstreamError(f"the attempt {what}", status=_BAD_GATEWAY, error_class=str(ErrorClass.CONNECTION))
