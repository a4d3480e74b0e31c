"""What is spent decides which model answers; each request is counted once, and what is not known is not free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pointsman.testing import ContractSuite, Harness, deployment, error, ok
from pointsman.testing.harness import IDENTITY
from pointsman.types import Endpoint
from pointsman_cost_guard.budget import cheaper, window
from pointsman_cost_guard.plugin import HEADER, CostGuardConfig, plugin

FLEET = tuple(deployment(f"{name}-1", name) for name in ("big", "small", "tiny"))
CHEAPER = {"big": "small", "small": "tiny"}
ENDPOINTS = (Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS)


class TestContract(ContractSuite):
    """It is a plugin like any other."""

    info = plugin
    config = {"budget_usd": 1000.0, "cheaper": {"chat": "backup"}}  # noqa: RUF012  # the suite's attribute
    bad_configs = (
        ({"budget_usd": 0, "cheaper": CHEAPER}, "budget_usd"),
        ({"budget_usd": 1}, "cheaper"),
        ({"budget_usd": 1, "cheaper": {"a": "b", "b": "a"}}, "leads back"),
    )


def worker(**config: Any) -> Harness:
    section = {"budget_usd": 1.0, "cheaper": CHEAPER, **config}
    return Harness([(plugin, section)], deployments=FLEET, script=ok(cost_usd_micros=100_000))


async def targets(h: Harness, count: int, **request: Any) -> list[tuple[str, int]]:
    """Return what answers each of some requests, and its status."""
    found = []
    for _ in range(count):
        result = await h.request(**{"model": "big", **request})
        await h.settled()
        found.append((result.route.target, result.status))
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_little_money_buys_a_cheaper_model(endpoint: Endpoint, stream: bool) -> None:
    """Eight dimes, then two from the smaller one, then a denial until tomorrow."""
    async with worker() as h:
        seen = await targets(h, 11, endpoint=endpoint, stream=stream and endpoint is not Endpoint.EMBEDDINGS)
        assert seen == [("big", 200)] * 8 + [("small", 200)] * 2 + [("big", 429)]
        denied = await h.request(model="big")
        assert denied.denial is not None
        assert (denied.denial.code, denied.attempts) == ("budget_spent", ())
        await h.clock.advance(float(denied.headers["retry-after"]) + 1.0)
        assert await targets(h, 1) == [("big", 200)]
        assert h.faults == {}


async def test_the_downgrade_is_visible() -> None:
    """In a header of the answer, in a label and in the status."""
    async with worker(low_ratio=0.99) as h:
        await targets(h, 1)
        result = await h.request(model="big")
        assert result.headers[HEADER] == "low; model=small"
        assert result.attempts[0].labels["cost_guard"] == "low"
        assert h.status("cost-guard").details["downgraded"] == 1


async def test_the_cheapest_may_answer_when_nothing_is_left() -> None:
    """Down the whole ladder; a model that is not on it stays."""
    async with worker(when_spent="cheapest", budget_usd=0.1) as h:
        assert await targets(h, 2) == [("big", 200), ("tiny", 200)]
        assert await targets(h, 1, model="tiny") == [("tiny", 200)]


async def test_each_caller_has_a_budget() -> None:
    """By tenant, else by key; callers without either share one."""
    async with worker(budget_usd=0.1) as h:
        for who in (
            IDENTITY,
            replace(IDENTITY, tenant="t"),
            replace(IDENTITY, key_hash="1"),
            replace(IDENTITY, key_hash=None),
        ):
            assert await targets(h, 2, identity=who) == [("big", 200), ("big", 429)]


async def test_every_attempt_counts_and_the_unknown_is_not_free() -> None:
    """Failed ones as far as they cost; one whose cost is unknown by the setting."""
    async with Harness(
        [(plugin, {"budget_usd": 0.1, "cheaper": CHEAPER, "unknown_cost_usd": 0.05})], deployments=FLEET, prices={}
    ) as h:
        seen = await targets(h, 3, script=[error(503), ok(usage=None)])
        assert seen == [("big", 200), ("big", 200), ("big", 429)]


async def test_reading_costs_nothing_and_is_never_stopped() -> None:
    """A request that does not generate passes, whatever is left."""
    async with worker(budget_usd=0.1) as h:
        await targets(h, 1)
        assert await targets(h, 1, generates=False) == [("big", 200)]


async def test_without_its_store_nothing_is_spent() -> None:
    """What cannot be counted is not admitted, unless the operator says otherwise."""
    for policy, status in (("deny", 503), ("allow", 200)):
        async with worker(on_failure=policy) as h:
            h.store.down = True
            assert (await h.request(model="big")).status == status
            h.store.down = False


@pytest.mark.parametrize(("period", "name"), [("day", "2024-02-29"), ("month", "2024-02")])
def test_periods_are_calendars(period: Any, name: str) -> None:
    """In UTC."""
    noon = 1_709_208_000.0
    assert window(period, noon).name == name


@given(st.sampled_from(["day", "month"]), st.floats(0, 4e9))
def test_a_period_ends_where_the_next_begins(period: Any, now: float) -> None:
    """There is neither a gap nor an overlap, whatever the month or the year."""
    this = window(period, now)
    assert this.ends_at > now
    assert window(period, this.ends_at).name > this.name
    assert window(period, this.ends_at - 1.0).name == this.name


@given(st.dictionaries(st.sampled_from("abcde"), st.sampled_from("abcde"), max_size=5), st.sampled_from("abcde"))
def test_a_ladder_ends(ladder: dict[str, str], model: str) -> None:
    """A cycle is refused by the configuration and harms no request."""
    last = cheaper(model, ladder, 5)
    try:
        CostGuardConfig(budget_usd=1.0, cheaper=ladder)
    except ValidationError:
        return
    assert last not in ladder
