"""Beside the plugin signals, which it meets only through signals. It is not needed for anything else here."""

from __future__ import annotations

import pytest

from pointsman.testing import deployment, error, ok
from pointsman_balance.plugin import plugin

signals = pytest.importorskip("pointsman_signals.plugin").plugin

FLEET = [deployment(one, "chat") for one in ("a", "b", "c")]
LIMITS = {
    "x-ratelimit-limit-tokens": "1000",
    "x-ratelimit-remaining-tokens": "900",
    "x-ratelimit-reset-tokens": "10m0s",
}
EMPTY = LIMITS | {"x-ratelimit-remaining-tokens": "0"}
LOW = LIMITS | {"x-ratelimit-remaining-tokens": "20"}


def served(result):
    return [attempt.deployment.id for attempt in result.attempts]


async def warmed(h, headers):
    """Ask until ``a`` has answered with these headers."""
    for _ in range(100):
        if "a" in served(await h.request(script={"a": ok(headers=headers)})):
            return
    pytest.fail("no request reaches a")


async def test_both_with_their_defaults_leave_the_choice_to_balance(harness):
    """An exhausted deployment is dropped by balance, with the signal's reason; signals drops none."""
    async with harness([signals, plugin], deployments=FLEET, tracing=True) as h:
        await warmed(h, EMPTY)
        for _ in range(20):
            assert served(await h.request()) != ["a"]
        span = [span for span in h.spans if "pointsman.attempt.id" in span.attributes][-1]
        assert "a: exhausted: no tokens left (balance)" in span.attributes["pointsman.dropped"]
        assert span.attributes["pointsman.signals.status"] == "available"
        await h.clock.advance(601)
        assert "a" in {served(await h.request())[0] for _ in range(40)}
        assert h.faults == {}


async def test_a_nearly_empty_quota_thins_the_traffic(harness):
    config = {"tactic": "random", "degraded_share_ratio": 0.1}
    async with harness([signals, (plugin, config)], deployments=FLEET) as h:
        await warmed(h, LOW)
        seen = [served(await h.request(script={"a": ok(headers=LOW)}))[0] for _ in range(200)]
        assert 0 < seen.count("a") < 25


async def test_a_429_without_retry_after_opens_until_the_reset_in_its_headers(harness):
    async with harness([signals, plugin], deployments=FLEET) as h:
        headers = EMPTY | {"x-ratelimit-reset-tokens": "45s"}
        for _ in range(100):
            if "a" in served(await h.request(script={"a": error(429, headers=headers)})):
                break
        breaker = h.plugin("balance")._members.find("chat", "a").breaker
        assert breaker.until == pytest.approx(h.clock.now() + 45, abs=1)
