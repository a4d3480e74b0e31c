"""The plugin in a host: hooks, sharing between workers, restart, routes, spans."""

from __future__ import annotations

import asyncio

import pytest

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.config import validate
from pointsman.errors import ConfigError
from pointsman.events import Notice
from pointsman.plugin import Extensions
from pointsman.store import open_store
from pointsman.testing import DEFAULT_DEPLOYMENTS, FakeClock, Harness, deployment, disconnect, error, ok
from pointsman.types import Outcome, SignalStatus, Status
from pointsman_signals import repository
from pointsman_signals.dialects import DIALECTS, Dialect
from pointsman_signals.plugin import plugin
from pointsman_signals.repository import key_of

GROQ_LIKE = {
    "x-ratelimit-limit-tokens": "1000",
    "x-ratelimit-remaining-tokens": "0",
    "x-ratelimit-reset-tokens": "10m0s",
    "x-ratelimit-limit-requests": "100",
    "x-ratelimit-remaining-requests": "50",
    "x-ratelimit-reset-requests": "6s",
}


def signal(h, deployment_id="chat-a"):
    return h.host.signals.get(deployment_id)


async def test_a_request_leaves_a_signal_behind_and_nothing_running(harness):
    async with harness([plugin]) as h:
        await h.request(script=ok(latency_s=0.25))
        await h.clock.advance(1.0)
        seen = signal(h)
        assert (seen.status, seen.in_flight, seen.extra["requests"]) == (SignalStatus.AVAILABLE, 0, 1)
        assert seen.latency_ms.p50 == pytest.approx(250, rel=0.03)
        assert h.faults == {}


async def test_what_no_model_works_for_shows_no_speed_and_hides_no_failures(harness):
    """A read, or a websocket that was opened."""
    async with harness([plugin], deployments=DEFAULT_DEPLOYMENTS[:1]) as h:
        for _ in range(12):
            await h.request(script=error(500), retries=0)
            await h.request(generates=False, script=ok(latency_s=0.001))
        await h.clock.advance(1.0)
        seen = signal(h)
        assert (seen.status, seen.error_ratio, seen.consecutive_errors) == (SignalStatus.DEGRADED, 1.0, 12)
        assert (seen.latency_ms, seen.last_success_at, seen.in_flight) == (None, None, 0)


async def test_an_attempt_is_in_flight_while_it_runs(harness):
    async with harness([plugin], script=ok(latency_s=5.0)) as h:
        request = asyncio.create_task(h.request(moves_clock=False))
        await h.clock.quiet()
        assert signal(h).in_flight == 1
        await h.clock.advance(6.0)
        await request
        assert signal(h).in_flight == 0


async def test_every_deployment_of_the_configuration_has_a_signal_from_the_start(harness):
    async with harness([plugin]) as h:
        await h.clock.advance(0.1)
        assert {one: s.status for one, s in h.host.signals.all().items()} == dict.fromkeys(
            ("chat-a", "chat-b", "backup-a"), SignalStatus.UNKNOWN
        )


async def test_an_exhausted_deployment_is_avoided_until_its_quota_is_back(harness):
    async with harness([plugin]) as h:
        await h.request(script={"chat-a": ok(headers=GROQ_LIKE)})
        assert signal(h).status is SignalStatus.EXHAUSTED
        for _ in range(5):
            assert (await h.request()).attempts[0].deployment.id == "chat-b"
        await h.clock.advance(599)
        assert (await h.request()).attempts[0].deployment.id == "chat-b"
        await h.clock.advance(2)
        assert signal(h).status is not SignalStatus.EXHAUSTED
        assert (await h.request()).attempts[0].deployment.id == "chat-a"


async def test_operators_hear_of_an_exhaustion_and_of_its_end_once(harness):
    async with harness([plugin]) as h:
        for _ in range(3):
            await h.request(script={"*": ok(headers=GROQ_LIKE)})
        await h.clock.advance(700)
        await h.settled()
        told = [event for event in h.events if isinstance(event, Notice) and event.subject == "chat-a"]
    begins, ends = told
    assert (begins.kind, begins.level, ends.level) == ("exhausted", "warning", "info")
    assert begins.text.startswith("deployment chat-a is exhausted until ")
    assert "exhausted" not in ends.text


async def test_a_429_moves_the_retry_to_another_deployment_for_as_long_as_the_provider_says(harness):
    async with harness([plugin]) as h:
        result = await h.request(script={"chat-a": error(429, retry_after_s=20.0)})
        assert [a.deployment.id for a in result.attempts] == ["chat-a", "chat-b"]
        assert signal(h).until == pytest.approx(h.clock.now() + 20.0)
        await h.clock.advance(21)
        assert (await h.request()).attempts[0].deployment.id == "chat-a"


async def test_a_degraded_deployment_gets_its_share_and_no_more(harness):
    low = GROQ_LIKE | {"x-ratelimit-remaining-tokens": "10"}
    async with harness([(plugin, {"degraded_share_ratio": 0.25})]) as h:
        await h.request(script={"chat-a": ok(headers=low)})
        assert signal(h).status is SignalStatus.DEGRADED
        results = [await h.request() for _ in range(400)]
        kept = sum(len(result.selections[0]) == 2 for result in results)
        assert 60 <= kept <= 140
        assert all(result.selections[0][-1].deployment.id == "chat-b" for result in results)


async def test_steering_can_be_left_to_another_plugin(harness):
    async with harness([(plugin, {"steer": False})]) as h:
        await h.request(script={"chat-a": ok(headers=GROQ_LIKE)})
        assert (await h.request()).attempts[0].deployment.id == "chat-a"


class Picky:
    """Chooses by the signals itself, and says so in its status."""

    def __init__(self, config):
        """Need nothing."""

    @hookimpl
    def status(self):
        return Status(ok=True, summary="choosing", details={"chooses": True})


picky = PluginInfo(name="picky", config=PluginConfig, factory=Picky)


@pytest.mark.parametrize(("steer", "first"), [("auto", "chat-a"), (True, "chat-b")])
async def test_steering_is_left_to_a_plugin_that_chooses(harness, steer, first):
    """Also when that plugin comes later in the list; the signal tells of the exhaustion all the same."""
    async with harness([(plugin, {"steer": steer}), picky]) as h:
        await h.request(script={"chat-a": ok(headers=GROQ_LIKE)})
        assert signal(h).status is SignalStatus.EXHAUSTED
        assert (await h.request()).attempts[0].deployment.id == first


async def test_signals_are_bounded_with_thousands_of_deployments_seen(harness, attempt):
    """Also those that are on show for the other plugins."""
    async with harness([(plugin, {"max_deployments": 300})]) as h:
        hooks, ctx = h.plugin("signals"), (await h.request()).ctx
        for number in range(2_000):
            hooks.post_response(ctx, attempt(deployment(f"d{number}", "chat"), at=h.clock.now()))
        assert len(h.host.signals.all()) <= 300
        assert h.host.signals.get("d1999") is not None
        assert h.status("signals").details["forgotten"] >= 1700


async def test_a_client_that_leaves_is_no_error(harness):
    async with harness([plugin]) as h:
        result = await h.request(stream=True, script=disconnect())
        assert result.outcome is Outcome.DISCONNECTED
        await h.clock.advance(1.0)
        assert (signal(h).error_ratio, signal(h).in_flight, signal(h).extra["cancelled"]) == (None, 0, 1)


async def test_a_stream_tells_first_token_and_speed(harness):
    async with harness([plugin]) as h:
        await h.request(stream=True, script=ok("one two three four five", latency_s=0.5, piece_s=0.1))
        await h.clock.advance(1.0)
        assert signal(h).first_token_ms.p50 == pytest.approx(500, rel=0.03)
        assert signal(h).tokens_per_s.p50 == pytest.approx(10, rel=0.05)


# -- store ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory", "disk"])
async def test_a_restarted_worker_knows_what_it_knew(harness, store):
    async with harness([plugin], store=store) as h:
        await h.request(script={"chat-a": ok(headers=GROQ_LIKE, latency_s=0.3)})
        await h.request(script=error(401, message="no such key sk-abcdefghijklmnop"), retries=0)
        await h.clock.advance(1.0)
        before = dict(h.host.signals.all())
        await h.restart()
        after = h.host.signals.all()
        for one in ("chat-a", "chat-b"):
            assert after[one].status is before[one].status
            assert after[one].latency_ms == before[one].latency_ms
            assert after[one].extra == before[one].extra
            assert after[one].last_error == before[one].last_error
        assert after["chat-a"].limits == before["chat-a"].limits
        assert after["chat-b"].last_error == "no such key ***"
        assert (await h.request()).attempts[0].deployment.id == "chat-b"


async def test_restarting_again_and_again_counts_nothing_twice(harness):
    async with harness([plugin]) as h:
        for _ in range(4):
            await h.request()
            await h.restart()
        assert signal(h).extra["requests"] == 4


async def test_what_a_worker_has_written_itself_is_not_read_again(harness, monkeypatch):
    read = []
    real = repository.record_from_json
    monkeypatch.setattr(repository, "record_from_json", lambda *given: read.append(given) or real(*given))
    async with harness([plugin]) as h:
        for _ in range(4):
            await h.request(script=ok(latency_s=0.1))
            # Some are counted in slices of their own.
            await h.clock.advance(40.0)
        assert not read
        before = {name: one.latency_ms for name, one in h.host.signals.all().items()}
        await h.restart()
        assert read
        after = h.host.signals.all()
        assert {name: one.latency_ms for name, one in after.items()} == before
        assert sum(one.extra["requests"] for one in after.values()) == 4


async def test_a_worker_that_died_loses_the_last_moments_only(harness):
    async with harness([(plugin, {"share_interval_s": 2.0})]) as h:
        await h.request()
        await h.clock.advance(3.0)
        await h.request()
        await h.crash()
        await h.start()
        assert signal(h).extra["requests"] == 1


async def test_what_is_older_than_five_minutes_is_not_believed_after_a_restart(harness):
    async with harness([plugin]) as h:
        await h.request()
        await h.stop()
        await h.clock.advance(301)
        await h.start()
        assert signal(h) is None or signal(h).status is SignalStatus.UNKNOWN


async def test_an_exhaustion_of_hours_is_still_known_after_a_restart_an_hour_later(harness):
    async with harness([plugin]) as h:
        await h.request(script={"chat-a": error(429, retry_after_s=7200.0)})
        await h.stop()
        await h.clock.skip(3600)
        await h.start()
        assert signal(h).status is SignalStatus.EXHAUSTED
        assert signal(h).until == pytest.approx(h.clock.now() + 3600)


@pytest.fixture
async def two_workers():
    clock = FakeClock()
    store = await open_store("memory", clock=clock.now)
    section = {"share_interval_s": 1.0}
    one = Harness([(plugin, section)], store=store, clock=clock, name="one")
    two = Harness([(plugin, section)], store=store, clock=clock, name="two")
    async with one, two:
        yield one, two
    await store.close()


async def test_what_one_worker_sees_the_other_knows(two_workers):
    one, two = two_workers
    await one.request(script={"chat-a": ok(headers=GROQ_LIKE)})
    await one.clock.advance(3.0)
    assert signal(two).status is SignalStatus.EXHAUSTED
    assert (await two.request()).attempts[0].deployment.id == "chat-b"


async def test_both_workers_have_the_same_statistics_and_count_everything_once(two_workers):
    one, two = two_workers
    for number in range(6):
        await (one, two)[number % 2].request(script=ok(latency_s=0.1))
        await one.clock.advance(0.7)
    await one.clock.advance(4.0)
    assert signal(one).extra["requests"] == signal(two).extra["requests"] == 6
    assert signal(one).latency_ms == signal(two).latency_ms


async def test_a_store_that_is_away_costs_no_request_and_no_knowledge(harness):
    async with harness([(plugin, {"share_interval_s": 1.0})]) as h:
        h.store.down = True
        assert (await h.request()).status == 200
        await h.clock.advance(5.0)
        assert not h.status("signals").ok
        assert signal(h).extra["requests"] == 1
        h.store.down = False
        await h.clock.advance(2.0)
        assert h.status("signals").ok
        await h.crash()
        await h.start()
        assert signal(h).extra["requests"] == 1


async def test_the_request_path_never_waits_for_the_store(harness):
    async with harness([(plugin, {"share_interval_s": 60.0})], host={"journal_window_ms": 0}) as h:
        await h.clock.advance(0.5)
        plugin_keys = {key for key in await h.stored("signals") if key.startswith("deployment/")}
        calls = h.store.calls["compare_and_set"]
        await h.request()
        assert h.store.calls["compare_and_set"] == calls
        assert {key for key in await h.stored("signals") if key.startswith("deployment/")} == plugin_keys


NASTY = ["../../etc/passwd", "a/b\\c", "x" * 5000, "\u202eabc", "c:con", "name with {braces}", "."]


@pytest.mark.parametrize("store", ["memory", "disk"])
async def test_names_from_outside_become_neither_keys_nor_paths(harness, store, tmp_path):
    deployments = [deployment(name, "chat", provider=name, model=name) for name in NASTY]
    async with harness([plugin], deployments=deployments, store=store) as h:
        for name in NASTY:
            await h.request(script=ok(), model=name)
        await h.restart()
        keys = {key for key in await h.stored("signals") if key.startswith("deployment/")}
        assert keys == {key_of(name) for name in NASTY}
        assert {one for one, s in h.host.signals.all().items() if s.last_success_at} == set(NASTY)
    files = [file.relative_to(tmp_path) for file in tmp_path.rglob("*")]
    assert all(file.parts[0] == "store" for file in files)


@pytest.mark.parametrize("value", [7, "text", {"version": 1}, {"version": 1, "id": 3, "quota": {"axes": "x"}}, ["a"]])
async def test_a_record_that_is_not_ours_is_overwritten_and_harms_nothing(harness, value):
    async with harness([plugin]) as h:
        await h.stop()
        await h.start()
        await h.store.put(f"signals/{key_of('chat-a')}", value)
        await h.request()
        await h.restart()
        assert signal(h).extra["requests"] == 1
        assert h.faults == {}


# -- surfaces ---------------------------------------------------------------------------------------------------------


async def test_the_overview_has_every_deployment_and_account(harness):
    section = {"accounts": {"main": ["chat"]}}
    async with harness([(plugin, section)]) as h:
        await h.request(script={"chat-a": ok(headers=GROQ_LIKE)})
        await h.clock.advance(1.0)
        answer = (await h.admin.get("/signals")).json()
        rows = {row["deployment_id"]: row for row in answer["signals"]}
        assert set(rows) == {"chat-a", "chat-b", "backup-a"}
        assert rows["chat-a"]["status"] == "exhausted"
        assert rows["chat-a"]["limits"][0]["axis"] == "tokens"
        assert rows["chat-a"]["extra"]["requests"] == 1
        accounts = {row["account"]: row for row in answer["accounts"]}
        assert (accounts["main"]["deployments"], accounts["main"]["shared"]) == (["chat-a", "chat-b"], True)
        assert accounts["main"]["extra"]["requests"] == 1
        assert "anthropic@upstream.test" in accounts


async def test_the_overview_can_be_filtered_and_rejects_unknown_filters(harness):
    async with harness([plugin]) as h:
        answer = (await h.admin.get("/signals", params={"group": "backup", "status": "unknown"})).json()
        assert [row["deployment_id"] for row in answer["signals"]] == ["backup-a"]
        refused = await h.admin.get("/signals", params={"grup": "x"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "grup")
        assert "did you mean 'group'" in refused.json()["error"]["message"]
        refused = await h.admin.get("/signals", params={"status": "exhaustd"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "status")
        assert refused.json()["error"]["message"] == (
            "there is no status 'exhaustd' (did you mean 'exhausted'?); "
            "allowed: available, degraded, exhausted, unknown"
        )


async def test_one_deployment_can_be_shown_whatever_its_name(harness):
    deployments = [*DEFAULT_DEPLOYMENTS, deployment("a/b c", "odd")]
    async with harness([plugin], deployments=deployments) as h:
        assert (await h.admin.get("/signals/a%2Fb%20c")).json()["group"] == "odd"
        missing = await h.admin.get("/signals/none")
        assert missing.status_code == 404
        assert "none" in missing.json()["error"]["message"]


async def test_a_refresh_without_a_check_tells_what_is_known(harness):
    async with harness([plugin]) as h:
        await h.request()
        answer = (await h.admin.post("/signals/chat-a/refresh")).json()
        assert (answer["status"], answer["checked"], answer["check"]) == ("available", False, None)
        assert (await h.admin.post("/signals/nobody/refresh")).status_code == 404


async def test_the_attempts_span_counts_the_attempt_itself(harness):
    """Also the first one, before the statistics are refreshed in the background."""
    async with harness([plugin], deployments=DEFAULT_DEPLOYMENTS[:1], tracing=True) as h:
        for script in (error(500), ok(), ok(), error(500)):
            await h.request(script=script, retries=0)
        ratios = [
            s.attributes.get("pointsman.signals.error_ratio") for s in h.spans if "pointsman.attempt" in s.attributes
        ]
    assert ratios == [1.0, 1 / 2, 1 / 3, 1 / 2]


async def test_the_attempts_span_says_how_its_deployment_stands(harness):
    async with harness([plugin], tracing=True) as h:
        await h.request(script={"chat-a": error(429, retry_after_s=9.0, headers=GROQ_LIKE), "chat-b": ok()})
        spans = {
            span.attributes["pointsman.deployment"]: span.attributes
            for span in h.spans
            if "pointsman.attempt.id" in span.attributes
        }
    assert spans["chat-a"]["pointsman.signals.status"] == "exhausted"
    assert spans["chat-a"]["pointsman.signals.reason"] == "no tokens left"
    assert spans["chat-a"]["pointsman.signals.headroom_axis"] == "tokens"
    assert spans["chat-a"]["pointsman.signals.headroom_ratio"] == 0.0
    assert spans["chat-b"]["pointsman.signals.status"] == "available"
    assert "chat-a: exhausted" in str(spans["chat-b"].get("pointsman.dropped"))


async def test_status_counts_how_deployments_stand(harness):
    async with harness([plugin]) as h:
        await h.request()
        status = h.status("signals")
        assert status.ok
        assert status.summary == "1 available, 2 unknown"
        assert status.details["statuses"]["available"] == 1


def test_an_unknown_dialect_stops_the_start_and_is_named_with_file_and_key():
    section = {"dialects": {"chat-a": "grog", "chat": "groq", "backup": "x"}}
    where, names = "litellm.yaml: pointsman.plugins[2].signals", ", ".join(sorted(d.name for d in DIALECTS))
    with pytest.raises(ConfigError) as refused:
        validate(plugin.config, section, where)
    assert str(refused.value).splitlines() == [
        f"{where}.dialects.chat-a: 'grog' is not allowed: it must be one of {names} (did you mean 'groq'?)",
        f"{where}.dialects.backup: 'x' is not allowed: it must be one of {names}",
    ]


async def test_names_that_the_gateway_does_not_have_are_problems_and_warnings(harness, caplog):
    section = {
        "checks": {"chat-c": {"kind": "off"}, "chat-b": {"kind": "off"}},
        "dialects": {"bakup": "groq", "anthropic": "groq"},
        "accounts": {"x": ["chat", "zzzzz"]},
    }
    missing = "the gateway's configuration has no deployment id, model group or provider"
    problems = [
        f"signals.checks.chat-c: {missing} 'chat-c' (did you mean 'chat-b'?)",
        f"signals.dialects.bakup: {missing} 'bakup' (did you mean 'backup'?)",
        f"signals.accounts.x[1]: {missing} 'zzzzz'",
    ]
    async with harness([(plugin, section)]) as h:
        assert [
            record.getMessage()
            for record in caplog.records
            if (record.name, record.levelname) == ("pointsman.signals", "WARNING")
        ] == problems
        status = h.status("signals")
        assert (status.ok, status.details["problems"]) == (False, problems)
        assert problems[0] in status.summary
        more = [deployment("chat-c", "bakup"), deployment("d", "zzzzz")]
        h.gateway.catalog.replace([*DEFAULT_DEPLOYMENTS, *more])
        assert h.status("signals").ok, "the gateway may be configured anew"


async def test_a_gateway_without_deployments_is_not_held_against_the_names(harness):
    async with harness([(plugin, {"checks": {"chat-a": {"kind": "off"}}})], deployments=[]) as h:
        assert h.status("signals").ok


async def test_a_reload_with_other_settings_goes_on_with_what_was_observed(harness):
    """Also with what had not been written yet."""
    async with harness([(plugin, {"share_interval_s": 60})], deployments=DEFAULT_DEPLOYMENTS[:1]) as h:
        for _ in range(3):
            await h.request(script=ok(latency_s=0.25))
        result = await h.reload([(plugin, {"share_interval_s": 60, "min_attempts": 3})])
        assert (result.error, result.started) == (None, ("signals",))
        await h.clock.advance(1.0)
        seen = signal(h)
        assert seen.extra["requests"] == 3
        assert seen.latency_ms.p50 == pytest.approx(250, rel=0.03)
        await h.request(script=ok(latency_s=0.25))
        await h.clock.advance(1.0)
        assert signal(h).extra["requests"] == 4
        assert h.faults == {}


class Panic(BaseException):
    """As the panics of extensions that are written in Rust."""


def gives(what):
    def reset(*_):
        if isinstance(what, BaseException):
            raise what
        return what

    return reset


@pytest.mark.parametrize(
    "what", [RuntimeError("a"), Panic("a"), SystemExit(1), asyncio.CancelledError(), "soon", float("nan"), True, [1.0]]
)
async def test_a_dialect_that_fails_is_counted_by_its_name_and_costs_the_reset_only(harness, monkeypatch, what):
    """What else the answer says is learnt, and a failure is seen."""
    broken = Dialect(name="acme", providers=("fake",), headers=DIALECTS[0].headers, reset=gives(what))
    rows = {**{row.name: (row,) for row in DIALECTS}, "acme": (broken,)}
    monkeypatch.setattr("pointsman_signals.plugin.installed_dialects", lambda: Extensions(rows, {}))
    fleet = [deployment("chat-a", "chat", provider="fake")]
    async with harness([plugin], deployments=fleet) as h:
        for _ in range(12):
            await h.request(script=error(500, headers=GROQ_LIKE), retries=0)
        await h.clock.advance(1.0)
        seen = signal(h)
        assert (seen.consecutive_errors, seen.in_flight) == (12, 0)
        assert {limit.axis: limit.remaining for limit in seen.limits} == {"tokens": 0.0, "requests": 50.0}
        assert set(h.faults) == {"signals.dialect acme"}
