"""The plugin in a worker: requests wait for their model, hold it, and give it back."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from pointsman.testing import Harness, deployment, disconnect, error, ok
from pointsman.types import (
    AttemptKind,
    Endpoint,
    Identity,
    Outcome,
    RequestContext,
    Route,
    SignalStatus,
    UpstreamRequest,
)
from pointsman_residency.plugin import plugin
from pointsman_residency.slots import State

from .fakes import URL

SIZES = {"a": 60, "b": 60, "c": 30}


def section(models=None, **changes):
    models = {name: {"footprint": size} for name, size in SIZES.items()} if models is None else models
    pool = {"budget": 100, "server": {"kind": "fake", "url": URL}, "models": models, "min_residence_s": 0}
    return {"pools": {"gpu": {**pool, **changes}}}


def worker(config=None, deployments=None, **options):
    deployments = deployments or [deployment(name) for name in SIZES]
    return Harness([(plugin, config or section())], deployments=deployments, **options)


def scheduler(h):
    return h.plugin("residency")._schedulers["gpu"]


def slot(h, name):
    return scheduler(h).pool.slots[name]


def held(h):
    return sum(len(one.holds) for one in scheduler(h).pool.slots.values())


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_for_a_cold_model_loads_it_and_is_answered(machine, stream):
    server = machine(SIZES)
    async with worker() as h:
        result = await h.request(model="a", stream=stream)
        assert result.status == 200
        assert server.loads == {"a": 1}
        await h.request(model="a", stream=stream)
        assert server.loads == {"a": 1}
        assert held(h) == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hundred_requests_load_a_model_once(machine, stream):
    server = machine(SIZES, load_s=5.0)
    async with worker() as h:
        results = await asyncio.gather(*(h.request(model="a", stream=stream) for _ in range(100)))
        assert Counter(result.status for result in results) == {200: 100}
        assert server.loads == {"a": 1}
        assert held(h) == 0


async def test_a_load_is_not_its_clients(machine):
    """All of them give up, and it finishes."""
    server = machine(SIZES, load_s=30.0)
    async with worker(section(deadline_s=5, max_wait_s=1)) as h:
        results = await asyncio.gather(*(h.request(model="a") for _ in range(10)))
        assert {result.status for result in results} == {503}
        assert {result.denial.code for result in results} == {"model_not_ready"}
        assert all(result.denial.retry_after_s >= 1 for result in results)
        await h.clock.advance(30)
        assert slot(h, "a").state is State.RESIDENT
        assert server.loads == {"a": 1}
        assert held(h) == 0


async def test_a_model_that_serves_is_not_evicted_for_another(machine):
    server = machine(SIZES)
    async with worker() as h:
        long = asyncio.create_task(h.request(model="a", script=ok(latency_s=20.0)))
        await h.clock.quiet()
        other = await h.request(model="b")
        assert other.status == 200
        assert (await long).status == 200
        assert [what for what in server.log if what[0] == "unload"] == [("unload", "a")]
        # The second was loaded after the first had been answered.
        assert h.settlements[0].model == "a"


async def test_what_is_larger_than_the_budget_is_refused_without_a_call(machine):
    server = machine({"a": 200})
    async with worker(section({"a": {}})) as h:
        server.sizes["a"] = 90
        assert (await h.request(model="a")).status == 200
        slot(h, "a").learnt = {"memory": 200}
        await h.clock.run(h.admin.post("/residency/a/evict"))
        calls = list(server.log)
        refused = await h.request(model="a")
        assert (refused.status, refused.denial.code) == (503, "model_too_large")
        assert server.log == calls


async def test_a_broken_model_is_refused_with_the_servers_message_and_spares_the_server(machine):
    server = machine(SIZES)
    server.broken["a"] = "unknown tensor type 99"
    async with worker() as h:
        for _ in range(5):
            result = await h.request(model="a")
            assert (result.status, result.denial.code) == (503, "model_not_loaded")
            assert "unknown tensor type 99" in result.denial.message
        assert server.loads == {"a": 1}
        signal = h.host.signals.get("a")
        assert (signal.status, signal.until) == (SignalStatus.DEGRADED, slot(h, "a").retry_at)
        assert not h.status("residency").ok


@pytest.mark.parametrize("stream", [False, True])
async def test_where_the_request_has_a_fallback_that_answers_instead(machine, stream):
    """One wait, whether the model is broken or late: the attempt is refused at once."""
    server = machine(SIZES, load_s=500.0)
    server.broken["a"] = "unknown tensor type 99"
    async with worker(section(deadline_s=5, max_wait_s=1), [deployment(name) for name in (*SIZES, "cloud")]) as h:
        h.gateway.catalog.fallbacks = {"a": ["cloud"], "b": ["cloud"]}
        for model in ("a", "b"):
            started = h.clock.now()
            result = await h.request(model=model, stream=stream, retries=1, fallbacks=["cloud"])
            assert (result.status, result.attempts[-1].deployment.id) == (200, "cloud")
            assert h.clock.now() - started < 2 * 5
        assert held(h) == 0
        assert h.plugin("residency")._admission._given_up == {}


async def test_a_server_that_is_away_for_a_moment_fails_no_request(machine):
    server = machine(SIZES)
    async with worker() as h:
        server.down = True
        waiting = asyncio.create_task(h.request(model="a", moves_clock=False))
        await h.clock.advance(4)
        assert slot(h, "a").failures > 1
        server.down = False
        await h.clock.advance(10)
        assert (await waiting).status == 200


@pytest.mark.parametrize(
    ("script", "retries"),
    [(error(500), 0), (error(500), 2), (disconnect(1), 0), ([error(429, retry_after_s=1), ok()], 2)],
    ids=["error", "retried", "disconnect", "then ok"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_is_given_back_however_the_request_ends(machine, script, retries, stream):
    machine(SIZES)
    async with worker() as h:
        await h.request(model="a", script=script, retries=retries, stream=stream)
        await h.settled()
        assert held(h) == 0
        assert h.plugin("residency")._admission.held == 0


async def test_a_request_that_only_reads_loads_nothing(machine):
    server = machine(SIZES)
    async with worker() as h:
        await h.plugin("residency").pre_route(h_context(h, generates=False), Route(target="a"))
        assert not server.loads


async def test_a_request_for_something_else_is_left_alone(machine):
    server = machine(SIZES)
    async with worker(deployments=[deployment("a"), deployment("remote")]) as h:
        assert (await h.request(model="remote")).status == 200
        assert not server.loads


async def test_where_another_deployment_can_answer_nothing_is_waited_for(machine):
    """The resident or remote one answers; the cold one is not loaded."""
    server = machine(SIZES)
    config = section({"a": {"footprint": 60, "deployments": ["chat-local"]}})
    deployments = [deployment("chat-local", "chat"), deployment("chat-remote", "chat")]
    async with worker(config, deployments) as h:
        for _ in range(20):
            result = await h.request(model="chat")
            assert [attempt.deployment.id for attempt in result.attempts] == ["chat-remote"]
        assert not server.loads


async def test_the_warm_one_of_two_is_preferred_until_its_wait_is_longer_than_a_load(machine):
    server = machine({"m": 60}, load_s=3.0)
    second = "http://second.test"
    machine({"m": 60}, url=second, load_s=3.0)
    config = {
        "pools": {
            "one": section({"left": {"footprint": 60, "server_model": "m", "deployments": ["l"]}})["pools"]["gpu"],
            "two": {
                **section({"right": {"footprint": 60, "server_model": "m", "deployments": ["r"]}})["pools"]["gpu"],
                "server": {"kind": "fake", "url": second},
            },
        }
    }
    async with worker(config, [deployment("l", "chat"), deployment("r", "chat")]) as h:
        served = Counter()
        for _ in range(100):
            result = await h.request(model="chat", script=ok(latency_s=0.5))
            served[result.attempts[-1].deployment.id] += 1
        assert max(served.values()) == 100
        # The other one is loaded once, so that it is known how long that takes.
        await h.request(model="r")
        (await h.clock.run(h.admin.post("/residency/right/evict"))).raise_for_status()
        # Seven at once take longer on the warm one than a load of the other.
        results = await asyncio.gather(*(h.request(model="chat", script=ok(latency_s=0.5)) for _ in range(20)))
        both = Counter(result.attempts[-1].deployment.id for result in results)
        assert set(both) == {"l", "r"}
        assert both["l"] >= 6
        assert server.loads["m"] == 1


@pytest.mark.parametrize("kind", [AttemptKind.MIRROR, AttemptKind.PROBE, AttemptKind.JUDGE, AttemptKind.HEDGE])
async def test_calls_that_no_client_waits_for_load_nothing(machine, kind):
    server = machine(SIZES)
    async with worker() as h:
        call = h.host.services("residency").upstream.start(
            UpstreamRequest(target="a", kind=kind, body={"messages": [{"role": "user", "content": "x"}]})
        )
        with pytest.raises(Exception, match="does not load it"):
            await h.clock.run(call.response())
        assert not server.loads
        await h.request(model="a")
        again = h.host.services("residency").upstream.start(
            UpstreamRequest(target="a", kind=kind, body={"messages": [{"role": "user", "content": "x"}]})
        )
        assert (await h.clock.run(again.response())).attempt.outcome is Outcome.OK


async def test_a_hedge_loads_a_model_where_that_is_configured(machine):
    server = machine(SIZES)
    async with worker({**section(), "hedges_load": True}) as h:
        call = h.host.services("residency").upstream.start(
            UpstreamRequest(target="a", kind=AttemptKind.HEDGE, body={"messages": [{"role": "user", "content": "x"}]})
        )
        await h.clock.run(call.response())
        assert server.loads == {"a": 1}


async def test_an_eviction_is_announced_and_the_listener_may_come_back(machine):
    server = machine(SIZES)
    async with worker() as h:
        await h.request(model="a")
        await h.request(model="b")
        await h.settled()
        assert [(event.what, event.model) for event in h.events] == [("loaded", "a"), ("evicted", "a"), ("loaded", "b")]
        assert h.events[1].reason == "room for b"
        assert server.log == [("load", "a"), ("unload", "a"), ("load", "b")]


async def test_what_something_else_unloaded_is_seen_and_loaded_again(machine):
    server = machine(SIZES)
    async with worker() as h:
        await h.request(model="a")
        server.loaded.clear()
        await h.clock.advance(5)
        assert slot(h, "a").state is State.COLD
        assert scheduler(h).drifts == ["a is no longer in the server's memory"]
        assert (await h.request(model="a")).status == 200
        assert server.loads == {"a": 2}


async def test_pools_that_share_a_server_are_no_strangers_to_each_other(machine):
    """What is no pool's counts against the budget; another pool's models do not."""
    server = machine({"a": 60, "b": 60, "stranger": 25})
    config = {
        "pools": {
            "left": section({"a": {"footprint": 60}})["pools"]["gpu"],
            "right": section({"b": {"footprint": 60}})["pools"]["gpu"],
        }
    }
    async with worker(config) as h:
        await h.request(model="a")
        await h.request(model="b")
        server.loaded["stranger"] = "ready"
        await h.clock.advance(5)
        for one in h.plugin("residency")._schedulers.values():
            assert one.pool.foreign == {"memory": 25}
            assert one.pool.used() == {"memory": 85}


async def test_two_settings_for_one_server_are_no_strangers_to_each_other(machine):
    """A model that is loaded with options of its own is on the server of the others all the same."""
    machine({"a": 40, "b": 40})
    other = {"kind": "fake", "url": URL, "headers": {"x-other": "1"}}
    async with worker(section({"a": {"footprint": 40}, "b": {"footprint": 40, "server": other}})) as h:
        await h.request(model="a")
        await h.request(model="b")
        await h.clock.advance(5)
        pool = scheduler(h).pool
        assert (pool.foreign, pool.used()) == ({}, {"memory": 80})


async def test_two_names_of_one_model_are_loaded_counted_and_evicted_once(machine, caplog):
    """Both groups are the same model on the server; room for it twice is not needed."""
    server = machine({"one": 60, "b": 60})
    deployments = [deployment("short", model="one"), deployment("long", model="one"), deployment("b")]
    models = {"short": {"footprint": 60}, "long": {"footprint": 60, "preload": True}, "b": {"footprint": 60}}
    async with worker(section(models), deployments) as h:
        await h.clock.advance(2)
        for name in ("short", "long", "short", "long"):
            assert (await h.request(model=name)).status == 200
            await h.clock.advance(3)
        assert (server.loads, server.unloads) == ({"one": 1}, {})
        assert scheduler(h).pool.used() == {"memory": 60}
        assert scheduler(h).drifts == []
        await h.request(model="b")
        assert server.loaded == {"b": "ready"}
        shown = (await h.admin.get("/residency/")).json()["pools"][0]["models"]
        assert {row["model"]: row["aliases"] for row in shown} == {"short": ["long"], "b": []}
        assert (await h.admin.post("/residency/long/load")).json()["model"] == "short"
    assert "'long' is the same model on the same server as 'short'" in caplog.text


async def test_one_model_with_two_settings_is_swapped_as_two_models_are(machine):
    """The server has it with one of them at a time: requests for both, in turns, load it once for each."""
    server = machine({"one": 30})
    other = {"kind": "fake", "url": URL, "headers": {"x-context": "long"}}
    deployments = [deployment("short", model="one"), deployment("long", model="one")]
    models = {"short": {"footprint": 30}, "long": {"footprint": 30, "server": other}}
    async with worker(section(models, min_residence_s=0.5), deployments) as h:
        await h.request(model="short")
        requests = [asyncio.create_task(h.request(model=name)) for name in ["short", "long"] * 10]
        await h.clock.advance(30)
        assert {(await request).status for request in requests} == {200}
        assert (server.loads, scheduler(h).pool.used()) == ({"one": 2}, {"memory": 30})
        assert [slot(h, name).state for name in ("short", "long")] == [State.COLD, State.RESIDENT]
        assert scheduler(h).drifts == []


async def test_looking_changes_nothing_and_asks_no_server(machine):
    server = machine(SIZES)
    async with worker(section(refresh_s=10)) as h:
        await h.request(model="a")
        before = server.lists, list(server.log)
        for _ in range(200):
            (await h.admin.get("/residency/")).raise_for_status()
            h.status("residency")
        assert (server.lists, server.log) == before
        await h.clock.advance(100)
        assert server.lists - before[0] <= 11


async def test_a_footprint_is_learnt_from_the_server(machine):
    machine({"a": 37, "b": 60})
    async with worker(section({"a": {}, "b": {"footprint": 60}})) as h:
        await h.request(model="a")
        assert scheduler(h).pool.used() == {"memory": 37}
        await h.request(model="b")
        assert {one.name for one in scheduler(h).pool.resident()} == {"a", "b"}


@pytest.mark.parametrize(("weights", "counted"), [(80, 80), (40, 60)])
async def test_a_footprint_smaller_than_the_weights_is_replaced_by_them(machine, weights, counted):
    server = machine({**SIZES, "a": weights})
    server.weights_only = True
    async with worker() as h:
        await h.request(model="a")
        assert sum(slot(h, "a").bytes.values()) == counted
        await h.clock.advance(5)
        assert sum(slot(h, "a").bytes.values()) == counted


async def test_memory_that_is_not_confirmed_as_free_is_reported(machine):
    server = machine(SIZES)
    server.keeps.add("a")
    async with worker(section(deadline_s=8, max_wait_s=5)) as h:
        await h.request(model="a")
        result = await h.request(model="b")
        assert result.status == 503
        assert "did not free its memory" in result.denial.message
        assert any("still takes memory" in problem for problem in h.status("residency").details["problems"])
        assert server.loads["b"] == 0


async def test_preloaded_models_are_there_before_the_first_request(machine):
    server = machine(SIZES)
    models = {"a": {"footprint": 60, "preload": True}, "b": {"footprint": 60}}
    async with worker(section(models)) as h:
        await h.clock.advance(2)
        assert slot(h, "a").state is State.RESIDENT
        await h.request(model="a")
        assert server.loads == {"a": 1}


async def test_after_a_restart_the_servers_own_list_counts(machine):
    server = machine(SIZES)
    async with worker() as h:
        await h.request(model="a")
        await h.restart()
        assert slot(h, "a").state is State.RESIDENT
        await h.request(model="a")
        assert server.loads == {"a": 1}


async def test_the_span_says_what_was_waited_for(machine):
    """A load is a trace of its own: it goes on when its request ends."""
    machine(SIZES)
    async with worker(tracing=True) as h:
        await h.request(model="a")
        assert [span.parent for span in h.spans if span.name == "residency load a"] == [None]
        spans = {span.name: dict(span.attributes) for span in h.spans}
        assert spans["pre_route"]["pointsman.residency.model"] == "a"
        assert spans["pre_route"]["pointsman.residency.state"] == "cold"
        assert spans["pre_route"]["pointsman.residency.waited_ms"] >= 1000
        assert spans["pre_route"]["pointsman.residency.waited_for"] == "model 'a', which was cold"
        assert spans["residency load a"]["pointsman.residency.bytes"] == 60
        assert spans["residency load a"]["pointsman.residency.reason"] == "1 waiting"


def h_context(h, **changes):
    fields = {
        "request_id": "r",
        "endpoint": Endpoint.CHAT,
        "model": "a",
        "stream": False,
        "identity": Identity(),
        "received_at": h.clock.now(),
    }
    return RequestContext(**fields, **changes)
