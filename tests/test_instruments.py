"""Every plugin's own metrics, read from one worker that runs all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pointsman.host.counters import Family, value_of
from pointsman.testing import Harness, deployment, error, ok
from pointsman_balance.plugin import plugin as balance
from pointsman_billing.plugin import plugin as billing
from pointsman_canary.plugin import plugin as canary
from pointsman_quota.plugin import plugin as quota
from pointsman_racing.plugin import plugin as racing
from pointsman_registry.plugin import plugin as registry
from pointsman_shadow.plugin import plugin as shadow
from pointsman_signals.plugin import plugin as signals

SECTIONS: list[tuple[Any, dict[str, Any]]] = [
    (
        quota,
        {
            "tenants": [{"id": "acme", "limits": {"requests_per_minute": 60, "tokens_per_day": 100_000}}],
            "default_tenant": "acme",
        },
    ),
    (
        canary,
        {"experiments": [{"name": "new", "model": "assistant", "canary": {"version": "assistant-2"}, "steps": [50]}]},
    ),
    (
        registry,
        {
            "versions": [
                {"id": "assistant-1", "name": "assistant", "version": "1", "path": "chat", "active": True},
                {"id": "assistant-2", "name": "assistant", "version": "2", "path": "spare"},
            ]
        },
    ),
    (signals, {}),
    (racing, {"groups": {"chat": {}}}),
    (balance, {}),
    (shadow, {"mirrors": [{"name": "copy", "model": "chat", "challenger": "spare"}]}),
    (billing, {"sinks": [{"ndjson": {"path": "bills.ndjson"}}]}),
]
DEPLOYMENTS = [
    deployment("chat-a", group="chat"),
    deployment("chat-b", group="chat"),
    deployment("spare-a", group="spare"),
]


@pytest.fixture
async def worker(tmp_path: Path) -> Any:
    async with Harness(SECTIONS, deployments=DEPLOYMENTS, path=tmp_path) as running:
        yield running


async def families(worker: Harness) -> list[Family]:
    await worker.settled()
    return await worker.host.observed.read_metrics()


async def test_every_plugin_adds_its_own_metrics_and_none_fails(
    worker: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(4):
        await worker.request(model="assistant")
    await worker.request(model="chat", stream=True)
    await worker.clock.advance(20.0)
    found = await families(worker)
    names = {family.name for family in found if family.points}
    for name in (
        "pointsman.balance.breaker.state",
        "pointsman.signals.status",
        "pointsman.canary.weight",
        "pointsman.canary.phase",
        "pointsman.racing.requests",
        "pointsman.shadow.alive",
        "pointsman.registry.active",
        "pointsman.billing.bills",
        "pointsman.billing.pending",
        "pointsman.quota.used",
        "pointsman.quota.admitted",
    ):
        assert name in names
    assert value_of(found, "pointsman.quota.admitted") == 5
    assert value_of(found, "pointsman.registry.active", {"pointsman.registry.version": "1"}) == 1
    assert value_of(found, "pointsman.canary.phase", {"pointsman.phase": "running"}) == 1
    assert value_of(found, "pointsman.quota.used", {"pointsman.limit": "tokens_per_day"}) > 0
    assert "callback" not in caplog.text.lower()
    assert not [name for name in worker.faults if "read levels" in name]


async def test_a_breaker_that_opens_and_a_limit_that_is_reached_are_seen_and_told(worker: Harness) -> None:
    for _ in range(60):
        await worker.request(model="spare", script=error(500), retries=0, moves_clock=True)
    for _ in range(3):
        await worker.request(model="chat", script=ok())
    found = await families(worker)
    assert value_of(found, "pointsman.balance.breaker.state", {"pointsman.deployment": "spare-a"}) > 0
    kinds = {
        dict(point.labels)["pointsman.notice.kind"]
        for family in found
        if family.name == "pointsman.notices"
        for point in family.points
    }
    assert {"breaker", "limit"} <= kinds
    assert value_of(found, "pointsman.quota.refused") > 0
