"""The plugin in a host: in flight, retries, workers that share, restart, events, spans; with and without signals."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from pointsman import PluginInfo, hookimpl
from pointsman.errors import StoreUnavailable
from pointsman.events import BreakerChanged
from pointsman.plugin import PluginConfig
from pointsman.store import open_store
from pointsman.testing import FakeClock, Harness, deployment, disconnect, error, ok
from pointsman.types import AttemptKind, ErrorClass, Outcome, Refusal, UpstreamRequest
from pointsman_balance.plugin import plugin
from pointsman_balance.tactic import Choice, Tactic
from pointsman_balance.tactics import registry

FLEET = [deployment(one, "chat") for one in ("a", "b", "c")]
#: At random, so that a deployment that has failed is not avoided for that reason too.
SWIFT = {"tactic": "random", "breaker": {"consecutive_errors": 1, "open_s": 2.0}}


def member(h, id_, group="chat"):
    return h.plugin("balance")._members.find(group, id_)


def served(result):
    return [attempt.deployment.id for attempt in result.attempts]


async def break_a(h, step):
    """Ask until the breaker of ``a`` is open."""
    for _ in range(100):
        await h.request(script={"a": step})
        if member(h, "a") is not None and not member(h, "a").breaker.healthy:
            return
    pytest.fail("the breaker of a does not open")


async def shown(h, id_):
    answer = (await h.admin.get("/balance")).json()
    return next(row for group in answer["groups"] for row in group["deployments"] if row["deployment_id"] == id_)


async def test_every_attempt_is_chosen_and_nothing_runs_afterwards(harness):
    async with harness([plugin], deployments=FLEET) as h:
        seen = Counter([served(await h.request(script=ok(latency_s=0.1)))[0] for _ in range(30)])
        assert set(seen) == {"a", "b", "c"}
        assert all(member(h, one).load.in_flight == 0 for one in "abc")
        assert h.faults == {}


async def test_concurrent_requests_see_one_another_from_the_moment_they_are_chosen(harness):
    async with harness([plugin], deployments=FLEET, script=ok(latency_s=5.0)) as h:
        requests = [asyncio.create_task(h.request(moves_clock=False)) for _ in range(9)]
        await h.clock.quiet()
        assert [member(h, one).load.in_flight for one in "abc"] == [3, 3, 3]
        await h.clock.advance(6.0)
        assert Counter([served(await one)[0] for one in requests]) == {"a": 3, "b": 3, "c": 3}


async def test_what_no_model_works_for_shows_no_speed_and_hides_no_failures(harness):
    """A read, or a websocket that was opened, between failures: they are still in a row."""
    section = {"breaker": {"consecutive_errors": 3, "error_ratio": None}}
    async with harness([(plugin, section)], deployments=FLEET[:1]) as h:
        for _ in range(3):
            assert member(h, "a") is None or member(h, "a").breaker.healthy
            await h.request(generates=False, script=ok(latency_s=0.001))
            await h.request(script=error(500), retries=0)
        assert not member(h, "a").breaker.healthy
        row = await shown(h, "a")
        assert (row["latency_ms"], row["in_flight"]) == (None, 0)


async def test_a_stream_is_learnt_from_at_its_first_token(harness):
    async with harness([plugin], deployments=FLEET[:1]) as h:
        request = asyncio.create_task(
            h.request(stream=True, script=ok("one two three", latency_s=0.3, piece_s=10), moves_clock=False)
        )
        await h.clock.advance(0.5)
        row = await shown(h, "a")
        assert (row["first_token_ms"], row["in_flight"]) == (pytest.approx(300), 1)
        await h.clock.advance(60)
        await request
        assert (await shown(h, "a"))["tokens_per_s"] == pytest.approx(4 / 20)


async def test_a_retry_goes_elsewhere_and_the_breaker_opens_for_others(harness):
    async with harness([(plugin, SWIFT)], deployments=FLEET) as h:
        script = {"a": error(500), "b": error(500)}
        results = [await h.request(script=script) for _ in range(6)]
        assert all(result.outcome is Outcome.OK for result in results)
        assert all(len(set(served(result))) == len(served(result)) for result in results)
        assert [len(served(result)) for result in results[3:]] == [1, 1, 1]
        changes = [(e.deployment_id, e.state) for e in h.events if isinstance(e, BreakerChanged)]
        assert sorted(changes) == [("a", "open"), ("b", "open")]


async def test_an_opening_ends_with_one_probe(harness):
    async with harness([(plugin, SWIFT)], deployments=FLEET) as h:
        await break_a(h, error(503))
        await h.clock.advance(2.5)
        row = await shown(h, "a")
        assert (row["breaker"]["state"], row["breaker"]["share_ratio"]) == ("half_open", 0.0)
        assert served(await h.request()) == ["a"]
        row = await shown(h, "a")
        assert (row["breaker"]["state"], row["breaker"]["share_ratio"]) == ("closed", pytest.approx(0.1))
        states = [e.state for e in h.events if isinstance(e, BreakerChanged)]
        assert states == ["open", "half_open", "closed"]


async def test_a_client_that_leaves_a_probe_leaves_no_verdict(harness):
    async with harness([(plugin, SWIFT)], deployments=FLEET[:2]) as h:
        await break_a(h, error(503))
        await h.clock.advance(2.5)
        assert served(await h.request(stream=True, script=disconnect(0))) == ["a"]
        assert str(member(h, "a").breaker.state) == "half_open"
        assert served(await h.request()) == ["a"], "the next one is the probe"


async def test_a_probe_by_call_brings_it_back_without_a_client(harness):
    async with harness([(plugin, {"tactic": "random", "breaker": "classic"})], deployments=FLEET) as h:
        await break_a(h, error(503))
        assert member(h, "a").breaker.until == pytest.approx(h.clock.now() + 300, abs=1)
        h.gateway.upstream.answer({"a": [error(503), ok()]})
        await h.clock.advance(301)
        assert not member(h, "a").breaker.healthy, "the first probe failed"
        await h.clock.advance(301)
        assert member(h, "a").breaker.healthy
        assert h.status("balance").details["probes"]["calls"] == 2


async def test_a_probe_by_call_that_is_rejected_has_found_it_alive(harness):
    async with harness([(plugin, {"tactic": "random", "breaker": "classic"})], deployments=FLEET) as h:
        await break_a(h, error(503))
        h.gateway.upstream.answer({"a": error(400)})
        await h.clock.advance(301)
        assert member(h, "a").breaker.healthy
        assert h.status("balance").details["probes"]["calls"] == 1


class NoProbes:
    """Refuses probes, as a budget that is used up would."""

    def __init__(self, config):
        pass

    @hookimpl
    async def before_attempt(self, ctx, attempt):
        return Refusal(reason="no probes") if attempt.kind is AttemptKind.PROBE else None


async def test_probes_by_call_without_a_verdict_are_not_sent_again_and_again(harness):
    refusing = PluginInfo(name="no-probes", config=PluginConfig, factory=NoProbes)
    async with harness([refusing, (plugin, {"tactic": "random", "breaker": "classic"})], deployments=FLEET) as h:
        await break_a(h, error(503))
        await h.clock.advance(3600)
        assert 2 <= h.status("balance").details["probes"]["calls"] <= 12


async def test_calls_of_our_own_are_chosen_and_counted_too(harness):
    """A mirror or a race leg that names a model group: never the deployment that the same request runs on already."""
    async with harness([plugin], deployments=FLEET) as h:
        request = UpstreamRequest(target="chat", kind=AttemptKind.MIRROR, body={"messages": []})
        for _ in range(5):
            await h.clock.run(h.gateway.upstream.start(request).response())
        assert sum(member(h, one).load.tried for one in "abc" if member(h, one)) == 5
        assert h.faults == {}


@pytest.fixture
async def workers(tmp_path):
    """Two workers on one store and one clock."""
    clock = FakeClock()
    store = await open_store("memory", clock=clock.now)

    def make(name, **config):
        return Harness([(plugin, SWIFT | config)], deployments=FLEET, store=store, clock=clock, name=name)

    async with make("one") as one, make("two") as two:
        yield one, two
    await store.close()


async def test_what_one_worker_has_met_the_other_one_avoids_within_a_second(workers):
    one, two = workers
    await break_a(one, error(429, retry_after_s=30.0))
    await one.clock.advance(1.0)
    assert {served(await two.request())[0] for _ in range(20)} == {"b", "c"}
    assert member(two, "a").breaker.until == member(one, "a").breaker.until
    assert [e.state for e in two.events if isinstance(e, BreakerChanged)] == ["open"]


async def test_an_opening_that_has_ended_is_not_announced_as_open(workers):
    """A worker that learns of it afterwards, as at its start, names no time in the past."""
    one, two = workers
    await break_a(one, error(429, retry_after_s=30.0))
    await one.clock.advance(31.0)
    await two.restart()
    before = len(two.events)
    await two.request()
    changes = [(e.state, e.until) for e in two.events[before:] if isinstance(e, BreakerChanged)]
    assert changes[0] == ("half_open", None)
    assert "open" not in {state for state, _ in changes}
    row = (await two.admin.get("/balance/groups/chat")).json()["deployments"][0]["breaker"]
    assert row["until"] is None


async def test_who_probes_first_closes_it_for_all(workers):
    one, two = workers
    await break_a(one, error(503))
    await one.clock.advance(1.0)
    await two.request()
    await one.clock.advance(1.5)
    assert served(await one.request()) == ["a"]
    await one.clock.advance(0.6)
    assert member(two, "a").breaker.healthy
    assert member(two, "a").breaker.admits(two.clock.now()) < 0.3, "with the same ramp"


async def test_a_clock_that_is_ahead_does_not_keep_the_others_from_being_heard(workers):
    one, two = workers
    await break_a(one, error(503))
    await one.clock.advance(1.0)
    ((name, value),) = [(key, value) for key, value in await one.store.scan("") if "breaker/" in key]
    ahead = value["at"] + 3600
    await one.store.put(name, value | {"at": ahead, "until": ahead + 2})
    await one.clock.advance(3.0)
    assert member(one, "a").breaker.until < one.clock.now() + 2
    answer = await two.admin.post("/balance/a/reset")
    assert answer.status_code == 200
    await one.clock.advance(1.0)
    assert member(one, "a").breaker.healthy
    assert member(two, "a").breaker.healthy


async def test_a_reset_reaches_every_worker(workers):
    one, two = workers
    await break_a(one, error(401))
    await one.clock.advance(1.0)
    await two.request()
    assert not member(two, "a").breaker.healthy
    answer = await two.admin.post("/balance/a/reset")
    assert answer.json()["reset"][0]["breaker"]["state"] == "closed"
    await one.clock.advance(0.6)
    assert member(one, "a").breaker.healthy
    assert member(one, "a").breaker.admits(one.clock.now()) == 1.0


async def test_settings_change_in_every_worker_and_survive_a_restart(workers):
    one, two = workers
    await one.request()
    body = {"tactic": {"name": "token_based", "block_tokens": 7}, "breaker": {"consecutive_errors": 5}}
    answer = await one.admin.put("/balance/groups/chat", json=body)
    assert answer.status_code == 200, answer.text
    await one.clock.advance(0.6)
    for worker in (one, two):
        group = (await worker.admin.get("/balance/groups/chat")).json()
        assert group["tactic"] == {"name": "token_based", "block_tokens": 7}
        assert (group["breaker"]["consecutive_errors"], group["breaker"]["open_s"]) == (5, 2.0)
        assert group["changed"] is True
    assert member(one, "a").breaker.rules.consecutive_errors == 5, "breakers that exist have the new settings"
    await two.restart()
    assert (await two.admin.get("/balance/groups/chat")).json()["tactic"]["name"] == "token_based"
    assert (await two.admin.delete("/balance/groups/chat")).status_code == 200
    await one.clock.advance(0.6)
    group = (await one.admin.get("/balance/groups/chat")).json()
    assert (group["tactic"]["name"], group["breaker"]["consecutive_errors"], group["changed"]) == ("random", 1, False)
    assert (await one.admin.delete("/balance/groups/chat")).status_code == 404


async def test_a_restarted_worker_knows_what_is_open_and_how_often_it_was(harness):
    async with harness([(plugin, SWIFT)], deployments=FLEET, store="disk") as h:
        await break_a(h, error(429, retry_after_s=60.0))
        until = member(h, "a").breaker.until
        await h.restart()
        assert {served(await h.request())[0] for _ in range(20)} == {"b", "c"}
        assert member(h, "a").breaker.until == until


async def test_a_store_that_fails_costs_the_sharing_only(harness, monkeypatch):
    async with harness([(plugin, SWIFT)], deployments=FLEET) as h:
        with monkeypatch.context() as patch:
            patch.setattr(h.store, "_reach", broken)
            await break_a(h, error(503))
            for _ in range(10):
                assert (await h.request(script={"a": error(503)})).outcome is Outcome.OK
            await h.clock.advance(1.0)
            assert "not shared" in h.status("balance").summary
        await h.clock.advance(1.0)
        assert h.status("balance").ok
        kept = [value for key, value in (await h.stored("balance")).items() if "breaker" in key]
        assert [(value["deployment"], value["state"]) for value in kept] == [("a", "open")]
        assert "balance.task keep up" not in h.faults


async def broken(method):
    raise StoreUnavailable(f"{method}: on purpose")


async def test_the_span_of_an_attempt_tells_the_whole_choice(harness):
    config = SWIFT | {"tactic": "adaptive"}
    async with harness([(plugin, config)], deployments=FLEET, tracing=True) as h:
        for _ in range(12):
            await h.request(script={"a": error(503)})
        span = [span for span in h.spans if "pointsman.attempt.id" in span.attributes][-1]
        chosen = span.attributes["pointsman.deployment"]
        assert span.attributes["pointsman.candidates"] == (chosen,)
        assert span.attributes["pointsman.scores"] == (1.0,)
        (note,) = span.attributes["pointsman.notes"]
        other = {"b": "c", "c": "b"}[chosen]
        assert note.startswith(f"{chosen}: adaptive, waits ")
        assert f"against {other} " in note
        dropped = dict(text.split(": ", 1) for text in span.attributes["pointsman.dropped"])
        assert dropped["a"].startswith("breaker open for")
        assert dropped[other] == "not chosen (balance)"
        assert span.attributes["pointsman.balance.breaker"] == "closed"
        assert span.attributes["pointsman.balance.in_flight"] == 0
        failed = next(span for span in h.spans if span.attributes.get("pointsman.deployment") == "a")
        assert failed.attributes["pointsman.balance.breaker"] == "open"
        assert "errors in a row" in failed.attributes["pointsman.balance.breaker_reason"]


async def test_the_span_of_a_plain_call_tells_its_own_wait_not_the_faded_one_of_streams(harness):
    async with harness([plugin], deployments=FLEET[:1], tracing=True) as h:
        await h.request(stream=True, script=ok(latency_s=0.15))
        await h.clock.advance(100)
        await h.request(script=ok(latency_s=0.4))
        span = [span for span in h.spans if "pointsman.attempt.id" in span.attributes][-1]
        assert span.attributes["pointsman.balance.wait_ms"] == pytest.approx(400)


async def test_a_refused_attempt_is_no_illness(harness):
    async with harness([(plugin, SWIFT)], deployments=FLEET) as h:
        balance = h.plugin("balance")
        result = await h.request(script=error(400))
        assert result.attempts[0].error.kind is ErrorClass.CLIENT
        assert all(m.breaker.healthy for m in balance._members)


async def test_a_group_that_the_gateway_does_not_have_is_a_problem_and_a_warning(harness, caplog):
    section = {"groups": {"chatt": {"tactic": "p2c"}, "chat": {"tactic": "p2c"}}}
    problem = "balance.groups.chatt: the gateway's configuration has no model group 'chatt' (did you mean 'chat'?)"
    async with harness([(plugin, section)], deployments=FLEET) as h:
        assert [
            record.getMessage()
            for record in caplog.records
            if (record.name, record.levelname) == ("pointsman.balance", "WARNING")
        ] == [problem]
        status = h.status("balance")
        assert (status.ok, status.details["problems"]) == (False, [problem])
        assert problem in status.summary
        assert (await h.admin.get("/balance")).json()["problems"] == [problem]
        h.gateway.catalog.replace([*FLEET, deployment("d", "chatt")])
        assert h.status("balance").ok, "the gateway may be configured anew"


async def test_a_gateway_without_deployments_is_not_held_against_the_groups(harness):
    async with harness([(plugin, {"groups": {"chat": {"tactic": "p2c"}}})], deployments=[]) as h:
        assert h.status("balance").ok


async def test_a_reload_with_other_settings_goes_on_with_loads_and_breakers(harness):
    """By the new settings; an attempt that runs meanwhile is seen by both, and ends for both."""
    long = {"consecutive_errors": 1, "open_s": 600.0}
    async with harness([(plugin, {**SWIFT, "breaker": long})], deployments=FLEET) as h:
        await break_a(h, error(500))
        for _ in range(20):
            await h.request(script=ok(latency_s=0.3))
        known = member(h, "b")
        waited = known.load.latency_ms.value
        assert waited > 0
        running = asyncio.create_task(h.request(script=ok(latency_s=5.0), moves_clock=False))
        await h.clock.quiet()
        section = {**SWIFT, "tau_s": 7.0, "breaker": {**long, "consecutive_errors": 4}}
        result = await h.reload([(plugin, section)])
        assert (result.error, result.started) == (None, ("balance",))
        assert member(h, "b") is known
        assert (known.load.latency_ms.value, known.load.latency_ms.tau_s) == (waited, 7.0)
        assert not member(h, "a").breaker.healthy
        assert member(h, "a").breaker.rules.consecutive_errors == 4
        assert sum(member(h, one).load.in_flight for one in "abc") == 1
        await h.clock.advance(6.0)
        assert (await running).outcome is Outcome.OK
        assert [member(h, one).load.in_flight for one in "abc"] == [0, 0, 0]
        assert h.faults == {}


def failing(what):
    """Return a tactic that fails in a way of its own."""

    class Fails(Tactic):
        def choose(self, ask):
            return what(ask)

    return Fails


def raising(err):
    def choose(ask):
        ask.options.clear()
        raise err

    return choose


@pytest.mark.parametrize(
    "what",
    [
        raising(RuntimeError("a")),
        raising(SystemExit(1)),
        raising(asyncio.CancelledError()),
        raising(BaseExceptionGroup("a", [SystemExit(1)])),
        lambda _: None,
        lambda ask: Choice(99, [0.0] * len(ask.options)),
        lambda _: Choice(0, [0.0]),
        lambda ask: Choice(0, ["much"] * len(ask.options)),
    ],
)
async def test_a_tactic_that_fails_is_counted_by_its_name_and_costs_the_choice_only(harness, monkeypatch, what):
    """Requests go on at random, and breakers and signals are respected as before."""
    monkeypatch.setattr(registry, "BUILT_IN", {**registry.BUILT_IN, "broken": failing(what)})
    section = {**SWIFT, "tactic": "broken"}
    async with harness([(plugin, section)], deployments=FLEET) as h:
        await break_a(h, error(500))
        results = [await h.request(retries=0) for _ in range(20)]
        assert {one.outcome for one in results} == {Outcome.OK}
        assert {name for one in results for name in served(one)} == {"b", "c"}
        assert set(h.faults) == {"balance.tactic broken"}
        assert any(row["hook"] == "tactic broken" for row in h.host.describe()["faults"])


async def test_a_tactic_that_fails_denies_where_the_policy_says_so(harness, monkeypatch):
    monkeypatch.setattr(registry, "BUILT_IN", {**registry.BUILT_IN, "broken": failing(raising(RuntimeError("a")))})
    async with harness([(plugin, {"tactic": "broken", "on_failure": "deny"})], deployments=FLEET) as h:
        result = await h.request(retries=0)
        assert (result.attempts, result.status) == ((), 429)
        assert set(h.faults) == {"balance.select"}
