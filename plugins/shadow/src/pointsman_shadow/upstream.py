"""Calls of the mirror's own to the gateway: each ends within its time limit and returns its usage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pointsman.errors import UpstreamError
from pointsman.types import ErrorClass, Outcome, UpstreamRequest

from .budget import Amount
from .comparison import Side

if TYPE_CHECKING:
    from contextvars import Context

    from pointsman.plugin import Clock, UpstreamCall


T = TypeVar("T")

LABEL_MIRROR: Final = "mirror"
LABEL_PRIMARY: Final = "primary"
LABEL_VERSION: Final = "version_id"


class OutOfTimeError(Exception):
    """A call has taken longer than its time limit."""


async def within(clock: Clock, seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` for at most this long on the plugin's clock.

    Raises:
        OutOfTimeError: it takes longer; it has been cancelled.
    """
    task = asyncio.ensure_future(work)
    timer = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise OutOfTimeError
    finally:
        timer.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # asyncio warns of exceptions that are never read


@dataclass(frozen=True, slots=True)
class CallResult:
    """A call that has ended.

    Attributes:
        side: The outcome, as one side of a pair.
        spent: Its usage, as far as it is known.
        request_id: Its own request id; empty when it was never sent.
    """

    side: Side
    spent: Amount
    request_id: str = ""


async def call(
    clock: Clock,
    start: Callable[[UpstreamRequest], UpstreamCall],
    request: UpstreamRequest,
    time_limit_s: float,
    context: Context,
) -> CallResult:
    """Make a call and read it to its end.

    Args:
        clock: The plugin's.
        start: Starts it.
        request: What to call.
        time_limit_s: Longest time from here to its end, in seconds.
        context: What was current when the primary was sent.

    Returns:
        The result; an error of the provider's is part of it.
    """
    started = clock.monotonic()
    running: UpstreamCall | None = None
    error: str | None = None
    status: int | None = None
    try:
        running = context.run(start, request)
        await within(clock, time_limit_s, _read(running, stream=request.stream))
    except OutOfTimeError:
        error = str(ErrorClass.TIMEOUT)
    except UpstreamError as err:
        error, status = err.error_class, err.status
    finally:
        # Also when this task is cancelled: nothing of it may go on.
        if running is not None:
            await running.cancel()
    try:
        attempt = None if running is None else running.attempt
    except UpstreamError:
        attempt = None
    if attempt is None or attempt.outcome is None or running is None:
        elapsed_ms = (clock.monotonic() - started) * 1000
        return CallResult(Side(outcome=Outcome.ERROR, error=error, status=status, latency_ms=elapsed_ms), Amount())
    side = Side.of(attempt, running.answer)
    if error is not None:
        # A call that exceeds its time limit is cancelled here: for the comparison that is an error like any other.
        side = Side(
            outcome=Outcome.ERROR,
            error=error,
            deployment=side.deployment,
            status=status,
            latency_ms=side.latency_ms,
            first_token_ms=side.first_token_ms,
            prompt_tokens=side.prompt_tokens,
            completion_tokens=side.completion_tokens,
            cost_usd_micros=side.cost_usd_micros,
        )
    return CallResult(side, Amount.of(attempt), attempt.request_id)


async def _read(running: UpstreamCall, *, stream: bool) -> None:
    if not stream:
        await running.response()
        return
    chunks = running.chunks()
    try:
        async for _ in chunks:
            pass
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
