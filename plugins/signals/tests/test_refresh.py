"""Refreshing what is known: one check at a time, within the deadline, across workers and processes."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from pointsman.store import open_store
from pointsman.testing import FakeClock, Harness, deployment, error, ok
from pointsman.types import SignalStatus
from pointsman_signals.plugin import plugin

from .server import local, server

__all__ = ["server"]


async def test_a_refresh_checks_at_once_and_shows_the_outcome(server, harness):
    async with harness(
        [(plugin, {"check_local": False, "checks": {"local": {"kind": "models"}}})], deployments=[local(server.base)]
    ) as h:
        answer = (await h.admin.post("/signals/local/refresh")).json()
        assert (answer["status"], answer["checked"], answer["check"]["ok"]) == ("available", True, True)
        server.status = 500
        answer = (await h.admin.post("/signals/local/refresh")).json()
        assert answer["status"] == "degraded"
        assert answer["reason"].startswith("check failed: http://127.0.0.1")
        assert h.host.signals.get("local").status is SignalStatus.DEGRADED


async def test_refreshes_at_the_same_time_are_one_check(server, harness):
    server.delay_s = 0.2
    async with harness([(plugin, {"check_interval_s": 3600})], deployments=[local(server.base)]) as h:
        answers = await asyncio.gather(*(h.admin.post("/signals/local/refresh") for _ in range(20)))
        assert {answer.json()["status"] for answer in answers} == {"available"}
        assert len(server.requests) == 1


async def test_refreshes_of_two_workers_at_the_same_time_are_one_check(server):
    server.delay_s = 0.3
    clock = FakeClock()
    store = await open_store("memory", clock=clock.now)
    section = {"check_interval_s": 3600}
    one, two = (
        Harness([(plugin, section)], deployments=[local(server.base)], store=store, clock=clock, name=name)
        for name in ("one", "two")
    )
    async with one, two:
        answers = asyncio.gather(*(h.admin.post("/signals/local/refresh") for h in (one, two) for _ in range(5)))
        while not answers.done():
            await asyncio.sleep(0.02)
            await clock.advance(0.1)
        assert {answer.json()["status"] for answer in await answers} == {"available"}
        assert len(server.requests) == 1
        for h in (one, two):
            assert h.host.signals.get("local").status is SignalStatus.AVAILABLE
            assert h.faults == {}
        assert not any(key.startswith("signals/lease/") for key, _ in await store.scan(""))
    await store.close()


async def test_refreshes_of_two_processes_at_the_same_time_are_one_check(server, tmp_path):
    server.delay_s = 2.0
    script = Path(__file__).with_name("refreshing_worker.py")
    pipe = asyncio.subprocess.PIPE
    workers = [
        await asyncio.create_subprocess_exec(
            sys.executable, str(script), str(tmp_path), server.base, name, stdin=pipe, stdout=pipe
        )
        for name in ("one", "two")
    ]
    for worker in workers:
        assert await worker.stdout.readline() == b"ready\n"
    outputs = await asyncio.gather(*(worker.communicate(b"go\n") for worker in workers))
    assert [json.loads(output) for output, _ in outputs] == [["available"] * 5] * 2
    assert len(server.requests) == 1


async def test_the_lease_of_a_worker_that_died_runs_out(server):
    clock = FakeClock()
    store = await open_store("memory", clock=clock.now)
    section = {"check_interval_s": 3600, "check_deadline_s": 2.0}
    server.delay_s = 30.0
    one, two = (
        Harness([(plugin, section)], deployments=[local(server.base)], store=store, clock=clock, name=name)
        for name in ("one", "two")
    )
    async with one, two:
        dying = asyncio.create_task(one.admin.post("/signals/local/refresh"))
        await server.asked.wait()
        dying.cancel()
        await one.crash()
        server.delay_s = 0.0
        waiting = asyncio.create_task(clock.run(two.admin.post("/signals/local/refresh")))
        assert (await waiting).json()["status"] == "unknown"
        await clock.advance(1.5)
        assert (await two.admin.post("/signals/local/refresh")).json()["status"] == "available"
        await one.start()
    await store.close()


async def test_a_refresh_works_without_the_store(server, harness):
    async with harness([(plugin, {"check_interval_s": 3600})], deployments=[local(server.base)]) as h:
        h.store.down = True
        assert (await h.admin.post("/signals/local/refresh")).json()["status"] == "available"


async def test_a_server_that_hangs_costs_the_deadline_and_no_more(server, harness):
    server.delay_s = 60.0
    section = {"check_deadline_s": 0.3, "check_interval_s": 3600}
    async with harness([(plugin, section)], deployments=[local(server.base)]) as h:
        answer = (await h.admin.post("/signals/local/refresh")).json()
        assert answer["check"]["message"] == "no answer within 0.3 s"


async def passes(h, seconds):
    """Let the time pass, with pauses for the checks that it starts."""
    for _ in range(seconds):
        await h.clock.advance(1.0)
        await asyncio.sleep(0.03)


async def test_local_servers_are_checked_by_themselves_each_at_its_own_time(server, harness):
    deployments = [local(f"{server.base}/{number}", id_=f"local-{number}") for number in range(5)]
    async with harness([(plugin, {"check_interval_s": 10.0})], deployments=deployments) as h:
        await passes(h, 40)
        assert {s.status for s in h.host.signals.all().values()} == {SignalStatus.AVAILABLE}
        assert 5 * 3 <= len(server.requests) <= 5 * 6
        due = h.plugin("signals")._refresher._due_at.values()
        assert len(set(due)) == 5


async def test_deployments_of_one_server_are_checked_together(server, harness):
    """Five models behind one address are one server: one request, whose outcome holds for all of them."""
    deployments = [local(server.base + path, id_=f"local-{path}") for path in ("", "/", "/v1", "/v1/", "?x=1")]
    async with harness([(plugin, {"check_interval_s": 10.0})], deployments=deployments) as h:
        await passes(h, 40)
        assert 3 <= len(server.requests) <= 6
        assert {s.status for s in h.host.signals.all().values()} == {SignalStatus.AVAILABLE}
        server.status = 500
        await h.admin.post("/signals/local-/refresh")
        await passes(h, 3)
        assert {s.status for s in h.host.signals.all().values()} == {SignalStatus.DEGRADED}


async def test_a_configured_check_belongs_to_its_deployment_alone(server, harness):
    deployments = [local(server.base, id_=id_) for id_ in ("own", "other")]
    async with harness(
        [(plugin, {"check_local": False, "checks": {"own": {"kind": "models"}}})], deployments=deployments
    ) as h:
        await h.admin.post("/signals/own/refresh")
        assert h.host.signals.get("own").status is SignalStatus.AVAILABLE
        assert h.host.signals.get("other").status is SignalStatus.UNKNOWN


async def test_a_server_that_answers_traffic_is_not_checked(server, harness):
    """Not at the start either; once the traffic ends, the checks begin."""
    busy, idle = (local(server.base, id_=id_, group=id_) for id_ in ("busy", "idle"))
    section = {"check_interval_s": 10.0, "ttl_s": 30}
    async with harness([(plugin, section)], deployments=[busy, idle]) as h:
        for _ in range(20):
            assert (await h.request(model="busy")).status == 200
            await passes(h, 2)
        assert server.requests == []
        # The answer shows as much about the deployment that had no traffic.
        assert h.host.signals.get("idle").status is SignalStatus.AVAILABLE
        await passes(h, 15)
        assert len(server.requests) == 1


async def test_traffic_of_the_same_host_spares_other_paths_without_a_word_about_them(server, harness):
    deployments = [
        local(server.base, id_="root", group="root"),
        local(f"{server.base}/other", id_="other", group="other"),
    ]
    async with harness([(plugin, {"check_interval_s": 10.0})], deployments=deployments) as h:
        for _ in range(20):
            assert (await h.request(model="root")).status == 200
            await passes(h, 2)
        assert server.requests == []
        assert h.host.signals.get("other").status is SignalStatus.UNKNOWN


async def test_a_deployment_whose_attempts_fail_is_checked_whatever_its_neighbours_answer(server, harness):
    deployments = [
        local(server.base, id_="good", group="good"),
        local(f"{server.base}/bad", id_="bad", group="bad"),
    ]
    async with harness([(plugin, {"check_interval_s": 10.0})], deployments=deployments) as h:
        for _ in range(15):
            assert (await h.request(model="good")).status == 200
            assert (await h.request(model="bad", script=error(500), retries=0)).status == 500
            await passes(h, 2)
        assert server.requests
        assert {request.split()[1] for request in server.requests} == {"/bad/v1/models"}


async def test_a_failed_check_is_repeated_until_an_answer_comes_after_it(server, harness):
    server.status = 500
    async with harness([(plugin, {"check_interval_s": 10.0})], deployments=[local(server.base)]) as h:
        assert (await h.request(model="local")).status == 200
        await h.admin.post("/signals/local/refresh")
        await passes(h, 14)
        assert len(server.requests) == 2
        assert (await h.request(model="local")).status == 200
        await passes(h, 9)
        assert len(server.requests) == 2


async def test_a_completion_through_the_gateway_is_a_check(harness):
    section = {"checks": {"chat-a": {"kind": "completion"}}, "check_interval_s": 3600}
    async with harness([(plugin, section)]) as h:
        h.gateway.upstream.answer(ok(headers={"x-ratelimit-limit-tokens": "100", "x-ratelimit-remaining-tokens": "60"}))
        answer = (await h.admin.post("/signals/chat-a/refresh")).json()
        assert (answer["status"], answer["limits"][0]["remaining"]) == ("available", 60)
        h.gateway.upstream.answer(error(401))
        await h.clock.advance(1.0)
        answer = (await h.admin.post("/signals/chat-a/refresh")).json()
        assert (answer["status"], answer["check"]["ok"]) == ("degraded", False)
        assert {call.request.kind for call in h.gateway.upstream.calls} == {"probe"}


async def test_a_document_exhausts_and_frees_a_deployment(tmp_path, harness):
    file = tmp_path / "quota.json"
    section = {
        "checks": {"chat-a": {"kind": "file", "path": str(file), "document": {"status": "/s"}}},
        "check_interval_s": 3600,
    }
    async with harness([(plugin, section)]) as h:
        file.write_text('{"s": "exhausted"}')
        answer = (await h.admin.post("/signals/chat-a/refresh")).json()
        assert (answer["status"], answer["until"]) == ("exhausted", pytest.approx(h.clock.now() + 300))
        assert (await h.request()).attempts[0].deployment.id == "chat-b"
        file.write_text('{"s": "fine"}')
        await h.clock.advance(1.0)
        assert (await h.admin.post("/signals/chat-a/refresh")).json()["status"] == "available"


@pytest.mark.parametrize(
    ("document", "length_s"),
    [
        ({"five_hour": {"used": 99, "in": 90}}, 90),
        ({"five_hour": {"used": 97, "in": 4 * 3600}, "seven_day": {"used": 40, "in": 600}}, 4 * 3600),
        ({"five_hour": {"used": 97}, "seven_day": {"used": 40, "in": 600}}, 300),
        ({"five_hour": {"used": 97, "in": 0}}, 300),
        ({"five_hour": {"used": 97, "in": 60}, "seven_day": {"used": 97, "in": 600}}, 600),
        ({"five_hour": {"in": 60}}, 300),
    ],
)
async def test_what_a_document_calls_exhausted_ends_with_the_reset_of_its_scarcest_axis(
    tmp_path, harness, document, length_s
):
    file = tmp_path / "quota.json"
    file.write_text(json.dumps({"s": "exhausted", **document}))
    limits = [
        {"axis": axis, "used_percent": f"/{axis}/used", "resets_in_s": f"/{axis}/in"}
        for axis in ("five_hour", "seven_day")
    ]
    check = {"kind": "file", "path": str(file), "document": {"status": "/s", "limits": limits}}
    async with harness([(plugin, {"checks": {"chat-a": check}, "check_interval_s": 86_400})]) as h:
        answer = (await h.admin.post("/signals/chat-a/refresh")).json()
        assert (answer["status"], answer["until"]) == ("exhausted", pytest.approx(h.clock.now() + length_s))
        await h.clock.skip(length_s + 1)
        assert h.host.signals.get("chat-a").status is not SignalStatus.EXHAUSTED


async def test_a_check_leaves_nothing_behind_when_the_worker_stops_in_the_middle(server, harness):
    server.delay_s = 60.0
    async with harness([plugin], deployments=[local(server.base), deployment("other")]) as h:
        while not server.requests:
            await h.clock.advance(1.0)
            await asyncio.sleep(0.01)
        running = {task for task in asyncio.all_tasks() if task.get_name() == "signals:check local"}
        assert len(running) == 1
        client = h.plugin("signals")._client
    assert all(task.done() for task in running)
    assert client.is_closed
