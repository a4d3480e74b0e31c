"""Money that a billing plugin announces."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.events import BudgetSpent
from pointsman.testing import FakeClock, error, ok
from pointsman.types import Price
from pointsman_quota.cost_events import CostEvents

from .kit import call, caller, details, tenant, usage, worker


class Biller:
    """Announces twice what the gateway says, and says it so many times."""

    def __init__(self, config: BillerConfig) -> None:
        self.config = config

    @hookimpl
    async def startup(self, services):
        self.services = services

    @hookimpl
    async def settle(self, settlement):
        await asyncio.sleep(self.config.delay_s)
        for _ in range(self.config.times):
            cost = 2 * settlement.cost_usd_micros
            event = BudgetSpent(
                tenant="acme", cost_usd_micros=cost, at=0, request_id=settlement.request_id, settled=True
            )
            self.services.publish(event)


class BillerConfig(PluginConfig):
    times: int = 1
    delay_s: float = 0.0


BILLER = PluginInfo(name="biller", config=BillerConfig, factory=Biller)
LIMITS = {"usd_per_day": 1, "tokens_per_day": 10_000}


@pytest.mark.parametrize("biller", [{"times": 1}, {"times": 3}, {"delay_s": 0.05}, {"delay_s": 0.05, "times": 2}])
async def test_a_request_is_charged_what_was_announced_for_it_once(biller: dict[str, Any]) -> None:
    """However often, sooner or later than the quota asks; the model's and the key's limits count it too."""
    acme = tenant(limits=LIMITS, model_limits={"chat*": LIMITS})
    async with worker(acme, money_from="events", others=[(BILLER, biller)]) as h:
        for _ in range(2):
            await call(h, script=ok(cost_usd_micros=100))
        await h.settled()
        shown = await usage(h)
        assert [row["day_usd_micros"] for row in shown.values()] == [400, 400]
        assert [row["reserved_usd_micros"] for row in shown.values()] == [0, 0]
        assert details(h)["unannounced"] == 0


async def test_without_a_billing_plugin_the_gateways_cost_counts_and_only_one_settlement_waits() -> None:
    async with worker(tenant(limits=LIMITS), money_from="events", money_wait_ms=100) as h:
        for _ in range(20):
            await call(h, script=ok(cost_usd_micros=10))
        await h.settled(timeout_s=1.5)
        assert (await usage(h))["tenant"]["day_usd_micros"] == 200
        assert details(h)["unannounced"] == 20


async def test_what_cost_nothing_is_not_waited_for() -> None:
    async with worker(tenant(limits=LIMITS), money_from="events", money_wait_ms=8000) as h:
        await call(h, script=error(400))
        await call(h, script=ok(cost_usd_micros=0, cached=True))
        await h.settled(timeout_s=1.0)
        assert details(h)["unannounced"] == 0


async def test_announcements_are_ignored_when_money_comes_from_the_gateway() -> None:
    async with worker(tenant(limits=LIMITS), others=[(BILLER, {})]) as h:
        await call(h, script=ok(cost_usd_micros=100))
        await h.settled()
        assert (await usage(h))["tenant"]["day_usd_micros"] == 100


async def test_a_call_of_our_own_is_charged_once() -> None:
    async with worker(tenant(limits=LIMITS), money_from="events") as h:
        for request_id in ("mirror-1", "mirror-1", "mirror-2"):
            h.publish(BudgetSpent(tenant="acme", cost_usd_micros=70, at=0, request_id=request_id))
        await h.settled()
        assert (await usage(h))["tenant"]["day_usd_micros"] == 140


async def test_what_the_store_does_not_take_is_spent_when_it_is_back() -> None:
    async with worker(tenant(limits=LIMITS), money_from="events") as h:
        h.store.down = True
        h.publish(BudgetSpent(tenant="acme", cost_usd_micros=70, at=0, request_id="mirror-1"))
        await h.settled()
        assert details(h)["unspent"] == 1
        h.store.down = False
        await h.clock.advance(60.0)
        assert (await usage(h))["tenant"]["day_usd_micros"] == 70
        assert details(h)["unspent"] == 0


async def test_the_word_that_comes_ends_the_silence() -> None:
    clock = FakeClock()
    announced = CostEvents(20, clock)
    assert await announced.of("a") is None
    announced.hear("b", 5)
    assert await announced.of("b") == 5
    waiting = asyncio.create_task(announced.of("c"))
    await asyncio.sleep(0)
    announced.hear("c", 7)
    assert await waiting == 7
    assert announced.missed == 1


async def test_amounts_below_a_micro_dollar_add_up_exactly() -> None:
    """A hundred times 0.4 millionths of a dollar are 40."""

    class Pricer:
        def __init__(self, _config):
            pass

        @hookimpl
        async def startup(self, services):
            self.publish = services.publish

        @hookimpl
        async def settle(self, settlement):
            amount = Decimal("0.0000004") * len(settlement.attempts)
            of = {
                "tenant": settlement.route.labels.get("tenant", ""),
                "request_id": settlement.request_id,
                "settled": True,
            }
            self.publish(BudgetSpent(cost_usd_micros=0, amount_usd=amount, at=0, **of))

    pricer = (PluginInfo(name="pricer", config=PluginConfig, factory=Pricer), {})
    prices = Price(input_usd=Decimal("0.00000002"), output_usd=Decimal(0))
    tenants = (tenant(), tenant("poor", limits={"usd_per_month": "0.00001"}))
    async with worker(*tenants, others=[pricer], money_from="events", prices=prices) as h:
        for _ in range(100):
            assert (await call(h)).status == 200
            await h.settled()
        used = (await usage(h))["tenant"]
        assert (used["month_usd_micros"], used["month_usd"]) == (40, "0.00004")
        answers = []
        for _ in range(40):
            answers.append((await call(h, caller("poor"))).status)
            await h.settled()
        assert answers == [200] * 25 + [429] * 15, "25 times 0.4 millionths of a dollar are the whole budget"
        assert (await usage(h, "poor"))["tenant"]["month_usd"] == "0.00001"
