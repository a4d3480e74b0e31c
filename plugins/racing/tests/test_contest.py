"""One race on calls of its own: how it ends when it is disturbed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from pointsman.errors import UpstreamError
from pointsman.testing import FakeClock
from pointsman.types import Chunk
from pointsman_racing.contest import Contest, Winner
from pointsman_racing.race import Entry, Plan


class Call:
    """Answers at once or never; to cancel it takes until the test says so."""

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


@pytest.mark.parametrize("stream", [False, True])
async def test_a_race_is_reported_also_when_nobody_waits_for_its_losers(stream):
    """Else it would be counted as running for ever."""
    closed, finished = asyncio.Event(), []
    calls = [Call(quick=number == 0, closed=closed) for number in range(2)]
    contest = Contest(
        Plan(entries=(Entry(candidate=0, target="a"), Entry(candidate=1, target="b")), strategy="first_wins"),
        FakeClock(),
        stream=stream,
        call=lambda leg: calls[leg.number],
        delay_ms=lambda *_: 1e9,
        allow=lambda: True,
        patience=lambda: 1.0,
        judge=lambda _: 0.0,
        finished=finished.append,
    )
    winner = await contest.run()
    rest = asyncio.create_task(Winner(winner).aclose() if stream else contest.close())
    await calls[1].closing.wait()
    assert not finished
    rest.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await rest
    assert finished == [contest]
    closed.set()
    await contest.close()
    assert finished == [contest], "once"
