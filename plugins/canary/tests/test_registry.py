"""Together with the registry plugin, through values alone."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from pointsman.testing import error, ok
from pointsman_canary.rollout import Phase

registry = pytest.importorskip("pointsman_registry.plugin", reason="pointsman-registry is not installed").plugin

VERSIONS = [
    {"id": "chat-1", "name": "chat", "version": "1", "path": "old", "active": True},
    {"id": "chat-2", "name": "chat", "version": "2", "path": "new"},
]
FINE = {"old": ok("old"), "new": ok("new")}


async def start(fleet, kit, *, canary_first=True, fallback=None, **fields):
    # The kit's gateway does not resolve the registry's names, so a fallback needs a group.
    made = kit.rollout(stable=fallback, canary={"version": "chat-2"}, **fields)
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


@pytest.mark.parametrize("stream", [False, True])
async def test_header_names_the_version_that_answered_after_a_fallback(fleet, kit, stream):
    worker = await start(fleet, kit, fallback_to_stable=True, on_fail="pause", fallback="old")
    results = await kit.send(worker, 20, {"old": ok("old"), "new": error(500)}, retries=0, stream=stream)
    assert {result.text for result in results} == {"old"}
    of_canary = [result for result in results if result.headers["x-pointsman-arm"] == "canary"]
    assert {result.headers.get("x-pointsman-version") for result in of_canary} == {"1"}


async def test_header_is_missing_when_no_version_answered(fleet, kit):
    worker = await start(fleet, kit)
    script = {"old": error(500), "new": error(500), "newer": ok("other")}
    results = await kit.send(worker, 10, script, retries=0, fallbacks=["newer"])
    assert {(result.text, result.headers.get("x-pointsman-version")) for result in results} == {("other", None)}
    refused = await kit.send(worker, 4, error(500), retries=0)
    assert {(result.status, result.headers.get("x-pointsman-version")) for result in refused} == {(500, None)}


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


async def test_requests_that_run_while_the_version_becomes_active_are_in_the_totals(fleet, kit):
    worker = await start(fleet, kit)
    slow = {name: ok(name, latency_s=60) for name in ("old", "new")}
    running = [asyncio.create_task(worker.request(script=slow, moves_clock=False)) for _ in range(8)]
    await fleet.ticks(2)
    await worker.admin.post("/canary/chat-v2/promote")
    await fleet.ticks(10)
    await worker.settled()
    await fleet.ticks(10)
    assert await active(worker) == "chat-2"
    await fleet.clock.advance(60)
    arms = kit.arms([await request for request in running])
    await worker.settled()
    await fleet.ticks(10)
    totals = (await fleet.state()).totals
    assert {arm: total.requests for arm, total in totals.items()} == Counter(arms)


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


async def test_activation_is_requested_again_until_the_registry_answers(fleet, kit):
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
    assert "does not serve the version of the arm 'canary'" in status.summary


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"model": "chats", "canary": {"version": "chat-2"}},
            "the registry has no model 'chats' (it has: 'chat', 'other')",
        ),
        ({"canary": {"version": "chat-9"}}, "canary: the registry has no version 'chat-9' of the model 'chat'"),
        ({"canary": {"version": "other-1"}}, "canary: the registry has no version 'other-1' of the model 'chat'"),
        ({"model": "chats"}, "nothing serves the model 'chats', so that stable cannot answer"),
    ],
    ids=["model", "version", "version-of-another-model", "stable"],
)
async def test_an_experiment_that_cannot_be_served_is_reported_at_the_start(fleet, kit, caplog, fields, expected):
    other = {"id": "other-1", "name": "other", "version": "1", "path": "newer"}
    section = {"versions": [*VERSIONS, other]}
    worker = await fleet.worker(kit.rollout(stable=None, **fields), more=[(registry, section)])
    (warning,) = [text for record in caplog.records if expected in (text := record.getMessage())]
    assert warning.startswith("canary.experiments: chat-v2: ")
    assert any(expected in problem for problem in worker.host.statuses()["canary"].details["problems"])


async def test_an_experiment_that_is_served_is_not_reported(fleet, kit, caplog):
    worker = await start(fleet, kit)
    unnamed = await fleet.worker(kit.rollout(name="plain", model="old", stable=None), name="unnamed")
    for each in (worker, unnamed):
        assert each.host.statuses()["canary"].details["problems"] == []
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def order_warnings(caplog) -> list[str]:
    return [text for record in caplog.records if "list 'canary' before" in (text := record.getMessage())]


async def test_right_order_is_not_warned_of(fleet, kit, caplog):
    await start(fleet, kit)
    assert order_warnings(caplog) == []


async def test_registry_first_is_fine_as_long_as_no_arm_is_a_version(fleet, kit, caplog):
    worker = await fleet.worker(kit.rollout(), first=[(registry, {"versions": VERSIONS})])
    assert set(kit.arms(await kit.send(worker, 30, FINE))) == {"stable", "canary"}
    assert order_warnings(caplog) == []


async def test_registry_before_the_canary_is_reported_and_harmless(fleet, kit, caplog):
    worker = await start(fleet, kit, canary_first=False)
    (warning,) = order_warnings(caplog)
    assert warning.startswith("canary.experiments[0]: an arm of 'chat-v2' is a version in the registry")
    assert not worker.faults
    assert {result.text for result in await kit.send(worker, 20, FINE)} == {"old"}
    status = worker.host.statuses()["canary"]
    assert not status.ok
    assert "list 'canary' before 'registry'" in status.summary


async def activate(worker, version, *, expected=200):
    answer = await worker.admin.post(f"/registry/versions/{version}/activate", json={"who": "anna"})
    assert answer.status_code == expected, answer.text
    await worker.settled()


async def test_activation_of_the_canarys_version_ends_the_rollout(fleet, kit):
    worker = await start(fleet, kit)
    await activate(worker, "chat-2")
    await fleet.ticks(3)
    state = await fleet.state()
    assert state.phase is Phase.PROMOTED
    assert "not compared with itself" in state.reason
    answer = await worker.admin.post("/canary/chat-v2/rollback")
    assert answer.json()["phase"] == "rolled_back"
    await fleet.clock.advance(10)
    await worker.settled()
    assert await active(worker) == "chat-1"


async def test_rollout_with_the_active_version_as_its_canary_ends_also_without_an_event(fleet, kit):
    worker = await fleet.worker(
        kit.rollout(stable=None, canary={"version": "chat-1"}), more=[(registry, {"versions": VERSIONS})]
    )
    await fleet.clock.advance(5)
    await fleet.ticks(3)
    assert (await fleet.state()).phase is Phase.PROMOTED
    assert worker.host.statuses()["canary"].ok


async def test_restart_after_the_promotion_is_refused_while_the_version_is_active(fleet, kit):
    worker = await start(fleet, kit)
    await worker.admin.post("/canary/chat-v2/promote")
    await fleet.clock.advance(10)
    await worker.settled()
    answer = await worker.admin.post("/canary/chat-v2/restart")
    assert answer.status_code == 409
    assert "'chat-2', the target of the arm 'canary', is what stable serves" in answer.text
    await worker.admin.post("/canary/chat-v2/rollback")
    await fleet.clock.advance(10)
    await worker.settled()
    assert (await worker.admin.post("/canary/chat-v2/restart")).json()["run"] == 2
    await fleet.clock.advance(10)
    assert (await fleet.state()).phase is Phase.RUNNING


async def test_rollback_that_leaves_the_canary_serving_says_so_and_offers_the_version_before(fleet, kit):
    worker = await start(fleet, kit)
    await worker.admin.post("/canary/chat-v2/rollback")
    await activate(worker, "chat-2")
    await fleet.clock.advance(3)
    status = worker.host.statuses()["canary"]
    assert not status.ok
    assert "version 'chat-2' is active in the registry and answers every request of 'chat'" in status.summary
    shown = (await worker.admin.get("/canary/chat-v2")).json()
    assert "pointsman registry activate chat-1" in shown["warning"]
    await activate(worker, "chat-1")
    await fleet.clock.advance(3)
    assert worker.host.statuses()["canary"].ok
    assert (await worker.admin.get("/canary/chat-v2")).json()["warning"] is None
