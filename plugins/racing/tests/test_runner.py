"""One race on calls of its own: how it ends when it is disturbed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from pointsman.errors import UpstreamError
from pointsman.testing import FakeClock, no_leaks
from pointsman.types import Chunk
from pointsman_racing import runner as module
from pointsman_racing.hedging import Entry, Plan
from pointsman_racing.runner import RaceRunner, WinnerStream


class Call:
    """Answers at once or never, whatever its timeout; its cancellation ends when the test sets ``closed``."""

    def __init__(self, *, quick, closed):
        self.quick = quick
        self.closed = closed
        self.closing = asyncio.Event()
        self.answer = None

    @property
    def attempt(self):
        raise UpstreamError("the attempt has not reached a deployment yet")

    async def response(self):
        if not self.quick:
            await asyncio.Event().wait()
        return object()

    async def chunks(self):
        if not self.quick:
            await asyncio.Event().wait()
        yield Chunk(has_content=True, text="a", raw=1)

    async def cancel(self):
        self.closing.set()
        await self.closed.wait()


def make_runner(calls, finished, *, stream, clock=None, **plan):
    return RaceRunner(
        Plan(entries=(Entry(candidate=0, target="a"), Entry(candidate=1, target="b")), strategy="first_wins", **plan),
        clock or FakeClock(),
        stream=stream,
        call=lambda attempt: calls[attempt.number],
        delay_ms=lambda *_: 1e9,
        allow=lambda: True,
        delay_factor=lambda: 1.0,
        wanted=lambda: True,
        judge=lambda _: 0.0,
        finished=finished.append,
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_race_is_reported_even_if_the_wait_for_its_losers_is_cancelled(stream):
    """Otherwise it would be counted as running for ever."""
    closed, finished = asyncio.Event(), []
    calls = [Call(quick=number == 0, closed=closed) for number in range(2)]
    runner = make_runner(calls, finished, stream=stream)
    winner = await runner.run()
    rest = asyncio.create_task(WinnerStream(runner, winner).aclose() if stream else runner.close())
    await calls[1].closing.wait()
    assert not finished
    rest.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await rest
    assert finished == [runner]
    closed.set()
    await runner.close()
    assert finished == [runner], "once"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_gateway_that_ignores_timeouts_is_not_waited_for(monkeypatch, stream):
    """Attempts that do not end by their own timeout are cancelled."""
    monkeypatch.setattr(module, "END_WITHIN_S", 0.05)
    clock, closed, finished = FakeClock(), asyncio.Event(), []
    closed.set()
    calls = [Call(quick=False, closed=closed) for _ in range(2)]
    async with no_leaks():
        runner = make_runner(calls, finished, stream=stream, clock=clock, timeout_ms=500.0)
        running = asyncio.create_task(runner.run())
        await clock.advance(0.5)
        with pytest.raises(UpstreamError, match="within 500 ms") as caught:
            await running
    assert (caught.value.status, [call.closing.is_set() for call in calls]) == (504, [True, True])
    assert finished == [runner]
    assert len(runner.cancelling_ms) == 2
