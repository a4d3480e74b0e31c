"""The contract that every plugin passes, and what this one does."""

from __future__ import annotations

from datetime import time
from typing import Any

import pytest
from acme_curfew.hours import Curfew
from acme_curfew.plugin import plugin

from pointsman.testing import ContractSuite, Harness

DAY_S = 86_400
CONFIG: dict[str, Any] = {"models": {"chat": {"from": "22:00", "to": "06:00", "instead": "backup"}}}


class TestContract(ContractSuite):
    """It is a plugin like any other."""

    info = plugin
    config = CONFIG
    bad_configs = (
        ({"models": {}}, "models"),
        ({"models": {"chat": {"from": "25:00", "to": "06:00"}}}, "from"),
        ({"models": {"chat": {"from": "06:00", "to": "06:00"}}}, "the same"),
    )


async def at(h: Harness, hour: int) -> None:
    """Let the clock be at this hour."""
    await h.clock.advance((hour * 3600 - h.clock.now()) % DAY_S)


async def test_another_model_answers_at_night() -> None:
    """From ten to six, over midnight."""
    async with Harness([(plugin, CONFIG)]) as h:
        for hour, target in ((21, "chat"), (22, "backup"), (23, "backup"), (5, "backup"), (6, "chat")):
            await at(h, hour)
            result = await h.request()
            assert (result.status, result.attempts[0].deployment.group) == (200, target)
        assert h.faults == {}


async def test_without_another_model_the_client_is_told_when() -> None:
    """In whole seconds."""
    async with Harness([(plugin, {"models": {"chat": {"from": "12:00", "to": "13:00"}}})]) as h:
        await at(h, 12)
        result = await h.request()
        assert (result.status, result.headers["retry-after"], result.attempts) == (503, "3600", ())


@pytest.mark.parametrize(("start", "end"), [(time(22), time(6)), (time(1), time(2)), (time(0), time(23, 59))])
def test_every_second_is_in_or_out(start: time, end: time) -> None:
    """What is left shrinks second by second and ends at the end."""
    curfew = Curfew.between(start, end)
    inside = [second for second in range(0, DAY_S, 60) if curfew.left_s(float(second)) is not None]
    assert len(inside) * 60 == (curfew.end_s - curfew.start_s) % DAY_S
    assert all((second + (curfew.left_s(float(second)) or 0)) % DAY_S == curfew.end_s for second in inside)
