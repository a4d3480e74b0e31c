from __future__ import annotations

import asyncio
import random

import pytest

from pointsman.testing import error, ok
from pointsman_canary.repository import LEASE, LEASE_S, Repository
from pointsman_canary.rollout import Phase

FINE = {"old": ok("old"), "new": ok("new")}
BAD = {"old": ok("old"), "new": error(500)}


def stepping(*workers) -> list[bool]:
    return [worker.host.statuses()["canary"].details["stepping"] for worker in workers]


def problems(worker) -> list[str]:
    return worker.host.statuses()["canary"].details["problems"]


async def test_experiment_is_begun_once_however_many_workers_start(fleet, kit):
    for name in ("one", "two", "three"):
        await fleet.worker(kit.rollout(), name=name)
    assert [entry["what"] for entry in await fleet.entries()] == ["create", "step"]


async def test_a_tick_in_which_nothing_has_happened_reads_the_store_once(fleet, kit, monkeypatch):
    """Whatever the number of experiments: the worker that steps and those that follow."""
    for name in ("one", "two"):
        await fleet.worker(kit.rollout(name="a"), kit.rollout(name="b", filter={"tenant": "x"}), name=name)
    await fleet.ticks(3)
    calls, carry_out = [], fleet.store._carry_out

    async def counted(step):
        calls.append(step.reads)
        return await carry_out(step)

    monkeypatch.setattr(fleet.store, "_carry_out", counted)
    await fleet.ticks(1)
    reads = [keys for keys in calls if any("{canary}" in key for key in keys)]
    assert sorted(len(keys) for keys in reads) == [1, 5]


@pytest.fixture
async def idle(fleet, kit, monkeypatch):
    """Two workers that have had nothing to do for a while, and for each look at the store how many experiments it steps."""
    workers = [await fleet.worker(kit.rollout(), name=name) for name in ("one", "two")]
    await fleet.ticks(3)
    await kit.send(workers[0], 1, FINE, model="chat")
    await fleet.clock.advance(10.0)
    looks, look = [], Repository.look

    async def counted(self, names):
        looks.append(len(names))
        return await look(self, names)

    monkeypatch.setattr(Repository, "look", counted)
    return workers, looks


async def test_workers_with_nothing_to_do_read_the_store_once_a_second(fleet, kit, idle):
    workers, looks = idle
    await kit.send(workers[1], 3, model="old")  # no experiment's
    looks.clear()
    await fleet.clock.advance(5.0)
    assert looks.count(1) in {5, 6}
    assert looks.count(0) <= 8  # in addition, each worker reads all experiments every 5 s


@pytest.mark.parametrize("number", [0, 1])
async def test_a_request_of_an_experiment_wakes_a_worker_with_nothing_to_do(fleet, kit, idle, number):
    """It reads at each tick again: the worker that steps, and the other one, whose observations wake the first."""
    workers, looks = idle
    await fleet.clock.advance(0.5)
    await kit.send(workers[number], 1, FINE, model="chat")
    looks.clear()
    await fleet.clock.advance(2.0)
    assert (looks.count(0) >= 9) == (number == 1)
    assert looks.count(1) >= (9, 5)[number]
    assert sum((await fleet.counted()).values()) + sum((await fleet.counted("stable")).values()) == 2


async def test_a_change_reaches_workers_with_nothing_to_do_within_a_second(fleet, kit, idle):
    """Whichever of them is asked for it."""
    workers, _ = idle
    for number, action in ((0, "pause"), (1, "rollback")):
        await workers[number].admin.post(f"/canary/chat-v2/{action}", json={"who": "anna", "reason": "I say so"})
        await fleet.clock.advance(1.0)
        phases = {worker.host.statuses()["canary"].details["experiments"][0]["phase"] for worker in workers}
        assert len(phases) == 1
        await fleet.clock.advance(10.0)
    assert set(kit.arms([each for worker in workers for each in await kit.send(worker, 20, FINE)])) == {"stable"}


async def test_rollback_reaches_every_worker_within_a_second(fleet, kit):
    """And no client sees an error, because stable answers what the canary cannot."""
    workers = [await fleet.worker(kit.rollout(fallback_to_stable=True), name=name) for name in ("one", "two")]
    await fleet.ticks(2)
    for _ in range(40):
        for worker in workers:
            assert {result.status for result in await kit.send(worker, 5, BAD, retries=0)} == {200}
        await fleet.ticks()
        if (await fleet.state()).phase is Phase.ROLLED_BACK:
            break
    assert (await fleet.state()).phase is Phase.ROLLED_BACK
    await fleet.clock.advance(1.0)
    for worker in workers:
        assert set(kit.arms(await kit.send(worker, 100, BAD))) == {"stable"}
    events = [event for worker in workers for event in worker.events if event.what == "rollback"]
    assert len(events) == 1
    assert events[0].source == "canary"
    assert events[0].weights_percent == {"canary": 0}
    assert events[0].analysis["canary"][0]["verdict"] == "fail"


async def test_observations_of_all_workers_are_counted_exactly_once(fleet, kit):
    made = kit.rollout(interval_s=86_400, alpha=1e-9)
    workers = [await fleet.worker(made, name=name) for name in ("one", "two", "three")]
    sent = []
    for _ in range(10):
        for worker in workers:
            sent += kit.arms(await kit.send(worker, 3, FINE))
        await fleet.ticks(2)
    for arm in ("canary", "stable"):
        assert await fleet.counted(arm) == {"ok": sent.count(arm), "failed": 0}


async def test_one_worker_steps_and_another_takes_over_when_it_dies(fleet, kit):
    first = await fleet.worker(kit.rollout(), name="one")
    await fleet.ticks()
    second = await fleet.worker(kit.rollout(), name="two")
    await fleet.ticks(5)
    assert stepping(first, second) == [True, False]
    await first.crash()
    await fleet.clock.advance(LEASE_S + 1.5)
    assert stepping(second) == [True]
    await first.start()
    await fleet.ticks(10)
    assert stepping(first, second) == [False, True]


async def test_worker_that_stops_in_order_hands_the_lease_over_at_once(fleet, kit):
    first = await fleet.worker(kit.rollout(), name="one")
    second = await fleet.worker(kit.rollout(), name="two")
    await fleet.ticks(5)
    await kit.send(first, 4, FINE)
    await first.stop()
    await fleet.clock.advance(1.5)
    assert stepping(second) == [True]
    assert (await fleet.counted())["ok"] + (await fleet.counted("stable"))["ok"] == 4


@pytest.mark.parametrize("seed", range(6))
async def test_no_step_is_lost_or_doubled_when_workers_die_at_any_moment(fleet, kit, seed):
    """Workers crash and come back while a rollout climbs; the trail shows every step once, in order."""
    chance = random.Random(seed)
    made = kit.rollout(steps=[10, 20, 40, 80, 100], interval_s=4, margin=None, pass_on="samples", min_samples=3)
    workers = [await fleet.worker(made, name=name) for name in ("one", "two", "three")]
    alive = set(workers)
    for _ in range(400):
        if (await fleet.state()).phase is Phase.PROMOTED:
            break
        for worker in alive:
            await kit.send(worker, 2, FINE)
        ticking = asyncio.create_task(fleet.clock.advance(chance.uniform(0, 1.0)))
        for _ in range(chance.randrange(30)):
            await asyncio.sleep(0)
        if chance.random() < 0.15 and len(alive) > 1:
            victim = chance.choice(sorted(alive, key=workers.index))
            alive.discard(victim)
            await victim.crash()
        await ticking
        if chance.random() < 0.2 and len(alive) < len(workers):
            back = next(worker for worker in workers if worker not in alive)
            await back.start()
            alive.add(back)
    trail = [(entry["what"], entry["weights_bp"]) for entry in await fleet.entries()]
    assert trail == [
        ("create", [0]),
        ("step", [1000]),
        ("step", [2000]),
        ("step", [4000]),
        ("step", [8000]),
        ("promote", [10_000]),
    ]
    for worker in workers:
        if worker not in alive:
            await worker.start()
    await fleet.ticks(6)
    for worker in workers:
        assert set(kit.arms(await kit.send(worker, 20, FINE))) == {"canary"}


@pytest.mark.parametrize("action", ["rollback", "pause", "promote"])
async def test_what_a_person_decided_survives_a_restart_of_everything(fleet, kit, action):
    worker = await fleet.worker(kit.rollout(interval_s=1, min_samples=1, pass_on="samples"))
    await worker.admin.post(f"/canary/chat-v2/{action}", json={"who": "anna", "reason": "I say so"})
    before = (await fleet.state()).weights_bp
    await worker.restart()
    for _ in range(20):
        await kit.send(worker, 5, FINE)
        await fleet.ticks(2)
    state = await fleet.state()
    assert state.weights_bp == before
    assert [(entry["what"], entry["who"], entry["reason"]) for entry in await fleet.entries()][-1] == (
        action,
        "anna",
        "I say so",
    )


async def test_rollout_goes_on_after_a_restart_where_it_was(fleet, kit):
    worker = await fleet.worker(kit.rollout(steps=[10, 50, 100], interval_s=6, pass_on="samples", min_samples=1))
    for _ in range(60):
        await kit.send(worker, 5, FINE)
        await fleet.ticks(2)
        if (await fleet.state()).step == 1:
            break
    before = await fleet.state()
    await worker.restart()
    await fleet.ticks(3)
    after = await fleet.state()
    assert (after.run, after.stage, after.step) == (before.run, before.stage, before.step) == (1, before.stage, 1)
    assert after.elapsed_s >= before.elapsed_s


async def test_store_that_is_lost_keeps_observations_and_at_last_holds_everything_at_stable(fleet, kit):
    worker = await fleet.worker(kit.rollout(interval_s=86_400, alpha=1e-9), blind_limit_s=10)
    await fleet.ticks(3)
    worker.store.down = True
    arms = kit.arms(await kit.send(worker, 20, FINE))
    assert "canary" in arms
    await fleet.clock.advance(9)
    assert "canary" in kit.arms(await kit.send(worker, 20, FINE))
    await fleet.clock.advance(2)
    assert set(kit.arms(await kit.send(worker, 20, FINE))) == {"stable"}
    assert any("store does not answer" in problem for problem in problems(worker))
    worker.store.down = False
    await fleet.ticks(3)
    assert problems(worker) == []
    assert "canary" in kit.arms(await kit.send(worker, 20, FINE))
    counted = [await fleet.counted(arm) for arm in ("canary", "stable")]
    assert sum(count["ok"] for count in counted) >= 60


async def test_an_idle_worker_holds_nothing_at_stable_for_a_single_answer_that_failed(fleet, kit):
    worker = await fleet.worker(kit.rollout(interval_s=86_400), blind_limit_s=1, tick_s=0.35)
    await fleet.ticks(3)
    await fleet.clock.advance(10.0)
    seen = []
    for _ in range(6):
        worker.store.down = True
        await fleet.clock.advance(0.35)
        seen += problems(worker)
        worker.store.down = False
        await fleet.clock.advance(0.35)
    assert seen == []


async def test_definition_changed_in_the_configuration_is_reported_and_applied_by_a_restart(fleet, kit):
    """Nothing is lost, and a rollback does not come undone by editing a file."""
    worker = await fleet.worker(kit.rollout())
    await worker.admin.post("/canary/chat-v2/rollback")
    await worker.stop()
    changed = await fleet.worker(kit.rollout(steps=[30, 100]), name="two")
    assert any("differs from the running definition" in problem for problem in problems(changed))
    await fleet.ticks(5)
    assert (await fleet.state()).phase is Phase.ROLLED_BACK
    answer = await changed.admin.post("/canary/chat-v2/restart", json={"who": "anna"})
    assert (answer.status_code, answer.json()["weights_percent"]) == (200, {"canary": 30})
    assert problems(changed) == []


async def test_experiment_that_left_the_configuration_is_over(fleet, kit):
    worker = await fleet.worker(kit.rollout(model="old", stable=None))
    await worker.stop()
    without = await fleet.worker(name="two")
    (result,) = await kit.send(without, 1, FINE, model="old")
    assert "x-pointsman-arm" not in result.headers
    assert [entry["what"] for entry in await fleet.entries()] == ["create", "step"]


async def test_late_answer_of_an_earlier_step_does_not_count(fleet, kit):
    """Only requests that were routed in a step tell about it: otherwise quick errors would come before slow answers."""
    worker = await fleet.worker(kit.rollout(interval_s=86_400))
    slow = [
        asyncio.create_task(
            worker.request(
                script={"old": ok(latency_s=5), "new": error(500, latency_s=5)}, retries=0, moves_clock=False
            )
        )
        for _ in range(30)
    ]
    await asyncio.sleep(0)
    await worker.admin.post("/canary/chat-v2/weight", json={"percent": 60})
    await fleet.clock.advance(6)
    await asyncio.gather(*slow)
    assert await fleet.counted() == {"ok": 0, "failed": 0}
    assert await fleet.counted("stable") == {"ok": 0, "failed": 0}
    assert [entry["what"] for entry in await fleet.entries()] == ["create", "step", "weight"]


async def test_two_workers_that_both_believe_to_have_the_lease_do_nothing_twice(fleet, kit):
    """The lease is a convenience: it is lost in the store all the time here, so that both step at once."""
    made = kit.rollout(steps=[10, 20, 40, 100], interval_s=4, pass_on="samples", min_samples=3)
    workers = [await fleet.worker(made, name="one")]
    # So that they look after the lease at different times.
    await fleet.ticks(3)
    workers.append(await fleet.worker(made, name="two"))
    both = 0
    for _ in range(200):
        for worker in workers:
            await kit.send(worker, 3, FINE)
        await fleet.store.delete(f"canary/{LEASE}")
        await fleet.ticks(2)
        both += all(stepping(*workers))
        if (await fleet.state()).phase is Phase.PROMOTED:
            break
    assert both > 10
    assert [(entry["what"], entry["weights_bp"]) for entry in await fleet.entries()] == [
        ("create", [0]),
        ("step", [1000]),
        ("step", [2000]),
        ("step", [4000]),
        ("promote", [10_000]),
    ]


async def test_every_change_has_a_span_with_the_analysis(fleet, kit):
    worker = await fleet.worker(kit.rollout(), tracing=True)
    for _ in range(20):
        await kit.send(worker, 10, BAD, retries=0)
        await fleet.ticks(3)
        if (await fleet.state()).phase is Phase.ROLLED_BACK:
            break
    (span,) = [span for span in worker.spans if span.name == "canary rollback"]
    assert span.attributes["pointsman.canary.experiment"] == "chat-v2"
    assert span.attributes["pointsman.canary.canary.error_rate:mean.verdict"] == "fail"
    assert span.attributes["pointsman.canary.canary.error_rate:mean.p_harm"] <= 0.01
