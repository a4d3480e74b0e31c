"""What the gateway logs about an answer after it is out reaches the settlement, within a bound."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

import pytest
from ledger_plugin import ONE, rows

from pointsman.host import journal, late_counting
from pointsman.host.attempt import Logged
from pointsman.host.journal_rows import parse
from pointsman.testing import error
from pointsman.types import AttemptKind, Outcome, OwnCallEnded, Usage

pytestmark = pytest.mark.usefixtures("leak_check")

COST = Decimal("0.085")


async def answered(h, *, awaits=True, name="late"):
    """Open a request of one attempt that has succeeded, and return both."""
    before = await h.request(script=error(400))
    await h.settled()
    h.plugin("one").seen.clear()
    exchange = h.host.open(replace(before.ctx, request_id=name))
    await exchange.admit()
    _, opened = await exchange.begin(before.settlement.attempts[0].deployment, gateway=True)
    opened.awaits_cost = awaits
    return exchange, opened


def settled_attempt(h):
    ((_, _, settlement),) = h.plugin("one").seen
    (attempt,) = settlement.attempts
    return settlement, attempt


@pytest.mark.parametrize("when", ["before its end", "before the request ends", "after the request has ended"])
async def test_a_logged_cost_is_settled(harness, when):
    """Whenever the gateway logs it; the first report counts."""
    async with harness([ONE]) as h:
        exchange, opened = await answered(h)
        if when == "before its end":
            opened.log_cost(COST)
        opened.end(Outcome.OK, usage=Usage(images=1))
        if when == "before the request ends":
            opened.log_cost(COST)
        exchange.close(200)
        if when == "after the request has ended":
            await asyncio.sleep(0.05)
            assert h.plugin("one").seen == [], "it waits for the cost"
            (row,) = (value for value in (await rows(h)).values() if parse(value)[0][0].pending)
            assert parse(row)[0][0].settlement.request_id == "late", "it is safe meanwhile"
            opened.log_cost(COST)
        opened.log_cost(Decimal(7))
        await h.settled()
        settlement, attempt = settled_attempt(h)
        assert (attempt.gateway_cost_usd, attempt.cost_usd_micros, attempt.usage) == (COST, 85_000, Usage(images=1))
        assert settlement.cost_usd_micros == 85_000


async def test_a_cost_that_is_never_logged_is_unknown(harness, monkeypatch):
    """Settlement waits for a bounded time."""
    monkeypatch.setattr(journal, "COST_WAIT_S", 0.05)
    async with harness([ONE]) as h:
        exchange, opened = await answered(h)
        opened.end(Outcome.OK)
        exchange.close(200)
        await h.settled()
        _, attempt = settled_attempt(h)
        assert (attempt.gateway_cost_usd, attempt.cost_usd_micros) == (None, None)
        opened.log_cost(COST)
        assert settled_attempt(h)[1].cost_usd_micros is None


async def test_a_request_whose_cost_is_never_logged_is_counted(harness, monkeypatch):
    """Metrics and recent requests have each, some time after its end; it had waited as long as its settlement."""
    monkeypatch.setattr(late_counting, "COST_WAIT_S", 0.05)
    monkeypatch.setattr(journal, "COST_WAIT_S", 0.05)
    async with harness([ONE]) as h:
        for name in ("first", "second"):
            exchange, opened = await answered(h, name=name)
            opened.end(Outcome.OK)
            exchange.close(200)
        for _ in range(500):
            listed = {row["request_id"] for row in (await h.admin.get("/requests")).json()["requests"]}
            if {"first", "second"} <= listed:
                break
            await asyncio.sleep(0.01)
        await h.settled()
    assert {"first", "second"} <= listed


async def test_what_the_answer_itself_said_is_kept(harness):
    """A logged usage replaces an estimate, and stays marked as one; it does not replace what the provider counted."""
    async with harness([ONE]) as h:
        exchange, opened = await answered(h)
        opened.end(Outcome.OK, usage=Usage(prompt_tokens=3), cost_usd_micros=5)
        opened.log_cost(COST, lambda: Logged(Usage(prompt_tokens=9), 7))
        assert (opened.attempt.usage, opened.attempt.cost_usd_micros) == (Usage(prompt_tokens=3), 5)
        _, second = await exchange.begin(opened.attempt.deployment, gateway=True)
        second.awaits_cost = True
        second.end(Outcome.OK, usage=Usage(prompt_tokens=3, estimated=True), cost_usd_micros=5)
        second.log_cost(None, lambda: Logged(Usage(prompt_tokens=9), 7))
        assert (second.attempt.usage, second.attempt.cost_usd_micros) == (Usage(prompt_tokens=9, estimated=True), 7)
        exchange.close(200)
        await h.settled()


async def test_an_attempt_that_does_not_await_a_cost_is_left_alone(harness):
    async with harness([ONE]) as h:
        exchange, opened = await answered(h, awaits=False)
        opened.end(Outcome.OK, cached=True, cost_usd_micros=0)
        exchange.close(200)
        opened.log_cost(COST)
        await h.settled()
        assert settled_attempt(h)[1].cost_usd_micros == 0


async def test_what_the_gateway_has_counted_is_not_read_where_nobody_compares_it(harness):
    """It takes as long as to read the answer's own counts, which are known."""
    async with harness([]) as h:
        opened = await closed_attempt(h, usage=Usage(prompt_tokens=3), cost_usd_micros=2)
        opened.log_cost(COST, lambda: pytest.fail("nobody needs it"))
        assert opened.attempt.gateway_cost_usd == COST
        opened = await closed_attempt(h, usage=Usage(prompt_tokens=3))
        opened.log_cost(None, lambda: Logged(Usage(prompt_tokens=3), 7))
        assert opened.attempt.cost_usd_micros == 7


async def closed_attempt(h, **facts):
    """Return a closed attempt that waits for what the gateway logs."""
    before = await h.request(script=error(400))
    exchange = h.host.open(replace(before.ctx, request_id="other"))
    await exchange.admit()
    _, opened = await exchange.begin(before.settlement.attempts[0].deployment, gateway=True)
    opened.awaits_cost = True
    opened.end(Outcome.OK, **facts)
    return opened


async def test_what_the_gateway_has_counted_is_kept_where_it_is_something_else(harness):
    """Its counts explain its cost: those of a whole answer are not needed twice."""
    async with harness([ONE]) as h:
        exchange, opened = await answered(h)
        opened.end(Outcome.OK, usage=Usage(prompt_tokens=3, completion_tokens=1, raw="{}"))
        opened.log_cost(COST, lambda: Logged(Usage(prompt_tokens=3, completion_tokens=1, raw="other")))
        assert opened.attempt.gateway_usage is None
        _, second = await exchange.begin(opened.attempt.deployment, gateway=True)
        second.awaits_cost = True
        second.end(Outcome.OK, usage=Usage(prompt_tokens=3, completion_tokens=1))
        second.log_cost(COST, lambda: Logged(Usage(prompt_tokens=3, raw="other")))
        assert second.attempt.gateway_usage == Usage(prompt_tokens=3)
        exchange.close(200)
        await h.settled()
        _, _, settlement = h.plugin("one").seen[0]
        assert [one.gateway_usage for one in settlement.attempts] == [None, Usage(prompt_tokens=3)]


@pytest.mark.parametrize("first", ["logged", "ended"])
async def test_an_answer_that_only_the_gateways_log_calls_cached_costs_nothing(harness, first):
    """Some translations hide it until the gateway logs it."""
    async with harness([ONE]) as h:
        exchange, opened = await answered(h)
        opened.awaits_cost = True
        if first == "logged":
            opened.log_cost(Decimal(0), cached=True)
        opened.end(Outcome.OK, usage=Usage(prompt_tokens=3, completion_tokens=1), cost_usd_micros=7)
        opened.log_cost(Decimal(0), cached=True)
        exchange.close(200)
        await h.settled()
        _, attempt = settled_attempt(h)
        assert (attempt.cached, attempt.cost_usd_micros, attempt.gateway_cost_usd) == (True, 0, 0)


@pytest.mark.parametrize("awaits", [False, True])
async def test_what_is_logged_about_a_call_of_our_own_is_announced(harness, awaits):
    """It is never settled; ``post_response`` is too early for what the gateway logs."""
    async with harness([ONE]) as h:
        before = await h.request(script=error(400))
        exchange = h.host.detached(replace(before.ctx, request_id="own"), AttemptKind.MIRROR)
        await exchange.admit()
        _, opened = await exchange.begin(before.settlement.attempts[0].deployment, gateway=True)
        opened.awaits_cost = awaits
        opened.end(Outcome.OK, usage=Usage(images=1))
        exchange.close(200)
        await h.settled()
        if awaits:
            await h.host.events.drain(10.0)
            assert h.plugin("one").heard == []
            opened.log_cost(COST)
        await asyncio.sleep(0.05)
        await h.host.events.drain(10.0)
        (event,) = h.plugin("one").heard
        assert (type(event), event.request_id, event.source) == (OwnCallEnded, "own", "pointsman")
        assert [one.gateway_cost_usd for one in event.attempts] == [COST if awaits else None]
