"""Reservations at the prices of a billing plugin, with its margins, where budgets follow what it announces."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from pointsman.events import TariffAnnounced, TariffRule
from pointsman.testing import Harness
from pointsman.types import Price

from .kit import call, details, tenant, worker
from .test_money import CHEAP, DEAR, POOR, priced, reserved

RICH = tenant(limits={"usd_per_month": "100"})


async def announced(h: Harness, prices: Any = (), margins: Any = ()) -> Harness:
    """Announce a tariff, as a billing plugin does when it starts."""
    h.publish(TariffAnnounced(prices=tuple(prices), margins=tuple(margins)))
    await h.host.events.drain(10.0)
    return h


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("rules", "times"),
    [
        ([TariffRule(price=DEAR)], 10),
        ([TariffRule(tenants=("ac*",), models=("chat",), price=DEAR), TariffRule(price=CHEAP)], 10),
        ([TariffRule(tenants=("other",), price=DEAR)], 1),
        ([TariffRule(kinds=("mirror",), price=DEAR)], 1),
        ([TariffRule(models=("x", "other-*"), price=DEAR)], 1),
    ],
)
async def test_the_first_rule_that_applies_replaces_the_gateways_prices(
    rules: list[TariffRule], times: int, *, stream: bool
) -> None:
    async with worker(RICH, money_from="events", prices=priced(CHEAP)) as h:
        usual = reserved(await call(h, stream=stream))
        await announced(h, rules)
        assert reserved(await call(h, stream=stream)) == times * usual


async def test_a_margin_is_reserved_as_well() -> None:
    rules = [TariffRule(models=("backup",), margin_ratio=Decimal(9)), TariffRule(margin_ratio=Decimal("0.5"))]
    async with worker(RICH, money_from="events", prices=priced(CHEAP)) as h:
        usual = reserved(await call(h))
        await announced(h, margins=rules)
        assert reserved(await call(h)) == usual * 3 // 2


async def test_a_model_that_only_a_rule_has_a_price_for_can_be_limited() -> None:
    """Before the rule is known, and for tenants without one, its price is unknown."""
    async with worker(POOR, money_from="events", prices={}) as h:
        assert (await call(h)).status == 403
        assert details(h)["problems"]
        await announced(h, [TariffRule(tenants=("other",), price=CHEAP)])
        assert (await call(h)).status == 403
        assert details(h)["problems"]
        await announced(h, [TariffRule(tenants=("acme",), price=CHEAP)])
        assert (await call(h)).status == 200
        assert details(h)["problems"] == []
        await announced(h, [TariffRule(models=("chat", "backup"), price=CHEAP)])
        assert (await call(h)).status == 200
        assert details(h)["problems"] == []
        await announced(h, [TariffRule(price=replaced(CHEAP))])
        assert (await call(h)).status == 413


def replaced(price: Price) -> Price:
    return Price(input_usd=price.input_usd, output_usd=Decimal(1))


async def test_budgets_that_follow_the_gateway_are_reserved_at_its_prices() -> None:
    async with worker(RICH, prices=priced(CHEAP)) as h:
        usual = reserved(await call(h))
        await announced(h, [TariffRule(price=DEAR)])
        assert reserved(await call(h)) == usual
