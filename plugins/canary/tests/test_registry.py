"""Together with the registry plugin, through values alone."""

from __future__ import annotations

import pytest

from pointsman.testing import error, ok
from pointsman_canary.rollout import Phase

registry = pytest.importorskip("pointsman_registry.plugin", reason="pointsman-registry is not installed").plugin

VERSIONS = [
    {"id": "chat-1", "name": "chat", "version": "1", "path": "old", "active": True},
    {"id": "chat-2", "name": "chat", "version": "2", "path": "new"},
]
FINE = {"old": ok("old"), "new": ok("new")}


async def start(fleet, kit, *, canary_first=True, **fields):
    made = kit.rollout(stable=None, canary={"version": "chat-2"}, **fields)
    section = {"versions": VERSIONS}
    where = {"more": [(registry, section)]} if canary_first else {"first": [(registry, section)]}
    return await fleet.worker(made, **where)


async def active(worker) -> str:
    versions = (await worker.admin.get("/registry/versions?name=chat")).json()["versions"]
    return next(version["id"] for version in versions if version["active"])


async def test_version_is_served_as_the_canary_while_another_is_active(fleet, kit):
    worker = await start(fleet, kit)
    results = await kit.send(worker, 40, FINE)
    assert set(kit.arms(results)) == {"stable", "canary"}
    for result, arm in zip(results, kit.arms(results), strict=True):
        assert result.text == {"stable": "old", "canary": "new"}[arm]
        assert result.headers["x-pointsman-version"] == {"stable": "1", "canary": "2"}[arm]
    counted = [(await fleet.counted(arm))["ok"] for arm in ("stable", "canary")]
    assert counted == [kit.arms(results).count(arm) for arm in ("stable", "canary")]


async def test_promotion_activates_the_version_and_then_steps_aside(fleet, kit):
    worker = await start(fleet, kit)
    await worker.admin.post("/canary/chat-v2/promote", json={"who": "anna"})
    await fleet.ticks(10)
    await worker.settled()
    await fleet.ticks(10)
    assert await active(worker) == "chat-2"
    assert (await fleet.state()).activation.done
    history = (await worker.admin.get("/registry/history?name=chat")).json()["history"]
    assert history[0]["who"] == "canary chat-v2"
    (result,) = await kit.send(worker, 1, FINE)
    assert result.text == "new"
    assert "x-pointsman-arm" not in result.headers


async def test_rollback_after_the_promotion_activates_the_version_before(fleet, kit):
    worker = await start(fleet, kit)
    await worker.admin.post("/canary/chat-v2/promote")
    await fleet.ticks(10)
    await worker.settled()
    await worker.admin.post("/canary/chat-v2/rollback")
    await fleet.clock.advance(10)
    await worker.settled()
    await fleet.ticks(10)
    assert await active(worker) == "chat-1"
    assert {result.text for result in await kit.send(worker, 10, FINE)} == {"old"}


async def test_activation_is_asked_for_again_until_somebody_hears(fleet, kit):
    """The worker dies between the promotion and the event; the next one asks again."""
    worker = await fleet.worker(kit.rollout(stable=None, canary={"version": "chat-2"}), name="alone")
    await worker.admin.post("/canary/chat-v2/promote")
    await fleet.ticks(10)
    problems = worker.host.statuses()["canary"].details["problems"]
    assert problems == ["chat-v2: the registry has not activated version 'chat-2' yet"]
    await worker.crash()
    other = await start(fleet, kit)
    await fleet.clock.advance(20)
    await other.settled()
    await fleet.ticks(10)
    assert await active(other) == "chat-2"
    assert other.host.statuses()["canary"].details["problems"] == []


async def test_failing_version_is_rolled_back(fleet, kit):
    worker = await start(fleet, kit)
    for _ in range(40):
        await kit.send(worker, 10, {"old": ok("old"), "new": error(500)}, retries=0)
        await fleet.ticks(3)
        if (await fleet.state()).phase is Phase.ROLLED_BACK:
            break
    assert (await fleet.state()).phase is Phase.ROLLED_BACK
    assert await active(worker) == "chat-1"


async def test_version_that_the_registry_does_not_know_is_not_judged_by_what_is_served_instead(fleet, kit):
    worker = await fleet.worker(
        kit.rollout(stable=None, canary={"version": "chat-9"}), more=[(registry, {"versions": VERSIONS})]
    )
    results = await kit.send(worker, 20, FINE)
    assert {result.text for result in results} == {"old"}
    assert await fleet.counted() == {"ok": 0, "failed": 0}
    assert [entry["what"] for entry in await fleet.entries()] == ["create", "step"]
    status = worker.host.statuses()["canary"]
    assert not status.ok
    assert "does not serve the version of canary" in status.summary


def order_warnings(caplog) -> list[str]:
    return [text for record in caplog.records if "list 'canary' before" in (text := record.getMessage())]


async def test_right_order_is_not_warned_of(fleet, kit, caplog):
    await start(fleet, kit)
    assert order_warnings(caplog) == []


async def test_registry_first_is_fine_as_long_as_no_arm_is_a_version(fleet, kit, caplog):
    worker = await fleet.worker(kit.rollout(), first=[(registry, {"versions": VERSIONS})])
    assert set(kit.arms(await kit.send(worker, 30, FINE))) == {"stable", "canary"}
    assert order_warnings(caplog) == []


async def test_registry_before_the_canary_is_reported_and_harms_nobody(fleet, kit, caplog):
    worker = await start(fleet, kit, canary_first=False)
    (warning,) = order_warnings(caplog)
    assert warning.startswith("canary.experiments[0]: an arm of 'chat-v2' is a version in the registry")
    assert not worker.faults
    assert {result.text for result in await kit.send(worker, 20, FINE)} == {"old"}
    status = worker.host.statuses()["canary"]
    assert not status.ok
    assert "list 'canary' before 'registry'" in status.summary
