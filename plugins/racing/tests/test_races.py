"""Races through a whole worker: which candidates are called, which one wins, what client and settlement get."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.trace import StatusCode

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.testing import breaks, deployment, error, never, no_leaks, ok
from pointsman.types import AttemptKind, Endpoint, ErrorClass, Outcome, UpstreamRequest, Usage
from pointsman_racing import coordinator

#: Priorities, so that what a test has learned does not change which candidate starts first.
SMART = {"name": "smart", "candidates": ["chat", {"target": "backup", "priority": 1}]}
SINGLE = {"name": "smart", "candidates": ["tiny", {"target": "backup", "priority": 1}]}
#: Real seconds after which a request that should have ended at once hangs.
PATIENCE_S = 10
PRIMARY, HEDGE, FALLBACK = AttemptKind.PRIMARY, AttemptKind.HEDGE, AttemptKind.FALLBACK


def attempts_of(result):
    return [(a.deployment.group, a.kind, a.outcome) for a in result.attempts]


# -- hedge ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_quick_answer_costs_one_attempt(track, stream):
    async with track(models=[SMART]) as h:
        result = await h.request(model="smart", stream=stream, script=ok(latency_s=0.09))
    assert attempts_of(result) == [("chat", PRIMARY, Outcome.OK)]
    assert result.headers["x-pointsman-attempts"] == "1"
    assert result.headers["x-pointsman-raced"] == (
        "chat; deployment=chat-a; attempt=1/1; strategy=hedge; first_content_ms=90"
    )
    assert result.settlement.labels == {"race": "smart"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_slow_one_is_overtaken_by_the_next_candidate(track, stream):
    async with no_leaks(), track(models=[SMART]) as h:
        result = await h.request(
            model="smart", stream=stream, script={"chat": ok("slow one", latency_s=3), "backup": ok("quick one")}
        )
    assert attempts_of(result) == [("chat", PRIMARY, Outcome.CANCELLED), ("backup", HEDGE, Outcome.OK)]
    assert (result.status, result.text, result.outcome) == (200, "quick one", Outcome.OK)
    assert [a.labels["race_reason"] for a in result.attempts] == ["first", "hedge"]
    assert [a.labels["race_leg"] for a in result.attempts] == ["1", "2"]
    assert "backup; deployment=backup-a; attempt=2/2; strategy=hedge" in result.headers["x-pointsman-raced"]


async def test_the_loser_is_paid_for_and_its_tokens_are_marked_as_estimated(track):
    """The request is settled once, with the winner's tokens and the cost of both."""
    async with track(models=[SMART]) as h:
        result = await h.request(
            model="smart", stream=True, script={"chat": ok(latency_s=3), "backup": ok(usage=Usage(prompt_tokens=50))}
        )
        await h.settled()
        shown = (await h.admin.get("/racing/smart")).json()["counts"]
        assert len(h.settlements) == 1
    loser, winner = result.attempts
    assert (loser.usage.estimated, loser.usage.prompt_tokens, winner.usage.estimated) == (True, 10, False)
    assert result.settlement.usage == winner.usage
    assert result.settlement.cost_usd_micros == loser.cost_usd_micros + winner.cost_usd_micros == 10 + 50
    assert (shown["losers"], shown["losers_usd_micros"], shown["losers_tokens"]) == (1, 10, 10)
    assert (shown["losers_estimated"], shown["overtaken"], shown["extra"]) == (1, 1, 1)


async def test_the_delay_is_the_candidates_own_quantile(track):
    """After some answers of 20 ms the next candidate is started after 20 ms instead of the fixed 100."""
    config = {"defaults": {"delay": {"fixed_ms": 100, "floor_ms": 1, "min_samples": 5}, "budget_ratio": 4}}
    async with track(models=[SINGLE], config=config) as h:
        for _ in range(6):
            await h.request(model="smart", stream=True, script=ok("a", latency_s=0.02))
            await h.clock.advance(1.1)
        begun = h.clock.now()
        result = await h.request(
            model="smart", stream=True, script={"tiny": ok("a", latency_s=5), "backup": ok("b", latency_s=0.01)}
        )
    assert result.attempts[1].started_at - begun == pytest.approx(0.02, rel=0.05)


async def test_the_delay_depends_on_all_candidates_of_the_race_and_on_each_once(track):
    """A few samples of which one was slow, and a steady candidate; ``chat-a`` is a member of ``chat`` as well."""
    delay = {"fixed_ms": 500, "floor_ms": 1, "min_samples": 5}
    config = {"defaults": {"delay": delay, "budget_ratio": 4}}
    twice = {"name": "twice", "candidates": [{"target": "chat", "priority": 1}, "chat-a"]}
    async with track(models=[SINGLE, twice], config=config) as h:
        for seen_s in (0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.4):
            await h.request(
                model="smart", stream=True, script={"tiny": ok("a", latency_s=seen_s), "backup": error(500)}
            )
            await h.request(model="smart", stream=True, script={"tiny": error(500), "backup": ok("b", latency_s=0.1)})
            await h.request(model="chat-a", stream=True, script=ok("a", latency_s=10 * seen_s))
            await h.request(model="chat-b", stream=True, script=ok("b", latency_s=1.0))
            await h.clock.advance(1.1)
        for model, first in (("smart", "tiny"), ("twice", "chat-a")):
            begun = h.clock.now()
            script = {first: ok("a", latency_s=50), "*": ok("b", latency_s=0.01)}
            result = await h.request(model=model, stream=True, script=script)
            unit_s = 0.1 if model == "smart" else 1.0
            assert result.attempts[1].started_at - begun == pytest.approx(unit_s, rel=0.1)


@pytest.mark.parametrize("quick", ["chat-a", "chat-b"])
async def test_the_delay_is_that_of_the_deployment_that_was_reached(track, quick):
    config = {"defaults": {"delay": {"fixed_ms": 500, "floor_ms": 1, "min_samples": 5}, "budget_ratio": 4}}
    usual_s = {"chat-a": 0.3, "chat-b": 0.3, quick: 0.05}
    async with track(models=[SMART], config=config) as h:
        for _ in range(8):
            for name, latency_s in usual_s.items():
                await h.request(model=name, stream=True, script=ok("a", latency_s=latency_s))
            await h.clock.advance(1.1)
        begun = h.clock.now()
        result = await h.request(model="smart", stream=True, script={"chat": ok("a", latency_s=5), "backup": ok("b")})
    first, second = result.attempts
    assert second.started_at - begun == pytest.approx(usual_s[first.deployment.id], rel=0.05)


async def test_a_hedge_that_is_slow_too_is_not_waited_for_as_long(track):
    """With 100 ms as the usual time of both: the first hedge after 100 ms, the second 70 ms later."""
    config = {
        "defaults": {"delay": {"fixed_ms": 500, "floor_ms": 1, "min_samples": 5}, "budget_ratio": 4},
        "budget": {"ratio": 4},
    }
    async with track(models=[SINGLE], config=config) as h:
        for _ in range(6):
            await h.request(model="smart", stream=True, script=ok("a", latency_s=0.1))
            await h.request(model="smart", stream=True, script={"tiny": error(500), "backup": ok("b", latency_s=0.1)})
            await h.clock.advance(1.1)
        begun = h.clock.now()
        script = {"tiny": [ok("a", latency_s=5), ok("c")], "backup": ok("b", latency_s=5)}
        result = await h.request(model="smart", stream=True, script=script)
    starts = [attempt.started_at - begun for attempt in result.attempts]
    assert starts == pytest.approx([0, 0.1, 0.17], rel=0.05)


async def test_a_hedge_may_go_to_the_same_candidate_when_there_is_no_other(track):
    async with track(models=[{"name": "smart", "candidates": ["tiny"]}]) as h:
        result = await h.request(model="smart", script={"tiny": [ok("slow", latency_s=3), ok("quick")]})
    assert attempts_of(result) == [("tiny", PRIMARY, Outcome.CANCELLED), ("tiny", HEDGE, Outcome.OK)]


@pytest.mark.parametrize(("allowed", "attempts"), [(True, 3), (False, 2)])
async def test_a_running_deployment_is_called_again_when_no_other_is_left(track, allowed, attempts):
    """A request is slow more often than a deployment; the span says that it is the same one."""
    groups = {"chat": {"max_attempts": 3, "same_candidate": allowed}}
    async with track(config={"groups": groups}, tracing=True) as h:
        script = [ok("slow", latency_s=3), ok("slow", latency_s=3), ok("quick")]
        result = await h.request(script=script)
        reached = [attempt.deployment.id for attempt in result.attempts]
        again = [
            dict(span.attributes).get("pointsman.racing.same_deployment")
            for span in sorted(h.spans, key=lambda span: span.start_time)
            if "pointsman.attempt.id" in span.attributes
        ]
    assert (len(reached), set(reached[:2])) == (attempts, {"chat-a", "chat-b"})
    assert again == [None, None, True][:attempts]


async def test_an_error_starts_the_next_at_once(track):
    async with track(models=[SMART]) as h:
        begun = h.clock.now()
        result = await h.request(model="smart", script={"chat": error(500, latency_s=0.03), "backup": ok()})
    assert attempts_of(result)[0] == ("chat", PRIMARY, Outcome.ERROR)
    assert attempts_of(result)[1] == ("backup", FALLBACK, Outcome.OK)
    assert result.attempts[1].started_at - begun == pytest.approx(0.03)


async def test_within_a_group_the_replacement_is_another_deployment(track):
    async with track(config={"groups": {"chat": {}}}) as h:
        result = await h.request(script=[error(500), ok("good")])
    assert [a.deployment.id for a in result.attempts] == ["chat-a", "chat-b"]
    assert (result.text, result.headers["x-pointsman-raced"][:29]) == ("good", "chat; deployment=chat-b; atte")


@pytest.mark.parametrize("status", [400, 422])
async def test_the_clients_error_ends_the_race(track, status):
    async with track(models=[SMART]) as h:
        result = await h.request(model="smart", script=error(status, retry_after_s=None))
    assert (len(result.attempts), result.status) == (1, status)


async def test_all_have_failed(track):
    """The client gets the last provider's own error, with its retry-after."""
    async with track(models=[SINGLE]) as h:
        result = await h.request(
            model="smart",
            script={"tiny": error(500), "backup": error(429, retry_after_s=60.0, message="come back")},
            retries=0,
        )
        counts = (await h.admin.get("/racing/smart")).json()["counts"]
    assert (result.status, result.error.message, result.headers["retry-after"]) == (429, "come back", "60")
    assert (counts["requests"], counts["failed"], counts["answered"]) == (1, 1, 0)


async def test_retry_after_is_obeyed_by_the_extra_attempts_of_other_requests(track):
    """A candidate with a retry-after of thirty seconds comes after the others, and gets no hedge, for thirty seconds."""
    async with track(models=[SINGLE]) as h:
        await h.request(model="smart", script={"tiny": error(429, retry_after_s=30.0), "backup": ok()})
        await h.request(model="smart", script={"tiny": error(429, retry_after_s=30.0), "backup": ok()})
        await h.request(model="smart", script={"tiny": error(429, retry_after_s=30.0), "backup": ok()})
        result = await h.request(model="smart", script={"backup": ok("slow", latency_s=1.0), "tiny": ok("never")})
        assert {a.deployment.group for a in result.attempts} == {"backup"}
        await h.clock.advance(31)
        result = await h.request(model="smart", script={"backup": ok("slow", latency_s=1.0), "tiny": ok("again")})
        assert result.text == "again"


class Watcher:
    """Sees failures as a breaker does."""

    def __init__(self):
        self.failures = []

    @hookimpl
    def on_error(self, attempt):
        if attempt.outcome is Outcome.ERROR:
            self.failures.append((attempt.deployment.id, attempt.error.kind))


@pytest.fixture
def watcher():
    return PluginInfo(name="watcher", config=PluginConfig, factory=lambda _: Watcher())


@pytest.mark.parametrize("stream", [False, True])
async def test_no_content_in_time(track, watcher, stream):
    """An attempt that hangs has failed for every observer of its deployment, and is not replaced."""
    model = {**SMART, "timeout_ms": 500, "plain_timeout_ms": 500, "max_attempts": 3}
    async with no_leaks(), track(watcher, models=[model]) as h:
        begun = h.clock.now()
        script = {"chat": never(), "backup": ok(latency_s=60)}
        result = await h.request(model="smart", stream=stream, script=script, retries=0)
        assert (result.status, result.error.kind) == (504, ErrorClass.TIMEOUT)
        assert "of the race had content within 500 ms" in result.error.message
        assert h.clock.now() - begun == pytest.approx(0.5)
        assert [a.outcome for a in result.attempts] == [Outcome.ERROR] * 3
        assert {kind for _, kind in h.plugin("watcher").failures} == {ErrorClass.TIMEOUT}
        assert sorted(name for name, _ in h.plugin("watcher").failures) == ["backup-a", "chat-a", "chat-b"]
        assert h.gateway.upstream.running == []


async def test_an_attempt_that_started_late_is_not_closed_as_a_timeout(track, watcher):
    model = {**SMART, "timeout_ms": 500, "max_attempts": 2}
    async with no_leaks(), track(watcher, models=[model]) as h:
        script = {"chat": error(429, latency_s=0.4), "backup": ok(latency_s=0.2)}
        body = {"messages": [], "store": True}
        result = await h.request(model="smart", stream=True, script=script, body=body, retries=0)
        assert [a.outcome for a in result.attempts] == [Outcome.ERROR, Outcome.CANCELLED]
        assert result.error.kind is ErrorClass.TIMEOUT
        assert [kind for _, kind in h.plugin("watcher").failures] == [ErrorClass.RATE_LIMIT]


async def test_an_attempt_that_hangs_to_the_end_of_the_race_has_failed_though_another_one_won(track, watcher):
    model = together("weighted", "tiny", "backup", timeout_ms=500, grace_ms=60_000)
    async with no_leaks(), track(watcher, models=[model]) as h:
        result = await h.request(model="smart", stream=True, script={"tiny": ok("fine"), "backup": never()})
        await h.settled()
        assert result.text == "fine"
        assert h.plugin("watcher").failures == [("backup-a", ErrorClass.TIMEOUT)]


async def test_a_loser_that_had_time_left_has_not_failed(track, watcher):
    async with no_leaks(), track(watcher, models=[{**SMART, "timeout_ms": 500}]) as h:
        await h.request(model="smart", stream=True, script={"chat": never(), "backup": ok(latency_s=0.3)})
        await h.settled()
        assert h.plugin("watcher").failures == []


async def test_a_stream_is_never_cut_by_the_timeout(track):
    async with track(models=[{**SMART, "timeout_ms": 500}]) as h:
        result = await h.request(model="smart", stream=True, script=ok("a b c d e", latency_s=0.05, piece_s=1.0))
    assert (result.text, result.outcome) == ("a b c d e", Outcome.OK)


# -- streams ----------------------------------------------------------------------------------------------------------


async def test_a_winner_that_breaks_before_content_is_replaced(track):
    async with track(models=[SMART]) as h:
        result = await h.request(model="smart", stream=True, script={"chat": breaks(0), "backup": ok("a whole answer")})
    assert (result.text, result.outcome) == ("a whole answer", Outcome.OK)


async def test_a_winner_that_breaks_after_content_is_the_clients_error(track):
    """What the client has seen cannot be taken back: it gets the provider's error, and no other candidate is called."""
    async with no_leaks(), track(models=[SMART]) as h:
        result = await h.request(
            model="smart", stream=True, script={"chat": breaks(2, message="gone"), "backup": ok("another answer")}
        )
    assert (result.text, result.outcome, len(result.attempts)) == ("This is", Outcome.ERROR, 1)
    assert result.error.message == "gone"


async def test_a_client_that_leaves_ends_the_race(track):
    async with no_leaks(), track(models=[SMART]) as h:
        result = await h.request(model="smart", stream=True, script=ok("a b c", piece_s=1.0), leave_after_pieces=1)
        assert [a.outcome for a in result.attempts] == [Outcome.DISCONNECTED]
        assert h.plugin("racing")._coordinator.running == 0


async def test_a_request_that_is_cancelled_cancels_all_its_attempts(track):
    async with no_leaks(), track(models=[SMART]) as h:
        work = asyncio.create_task(h.request(model="smart", script=never(), moves_clock=False))
        await h.clock.advance(0.25)
        assert len(h.gateway.upstream.running) == 3
        work.cancel()
        await asyncio.wait({work})
        await h.settled()
        assert h.gateway.upstream.running == []
        assert [a.outcome for a in h.settlements[0].attempts] == [Outcome.CANCELLED] * 3
        assert (await h.admin.get("/racing/smart")).json()["counts"]["abandoned"] == 1


async def test_an_attempt_that_the_gateway_cancels_is_replaced(track):
    async with track(models=[SMART]) as h:
        script = {"chat": never(), "backup": ok("saved")}
        work = asyncio.create_task(h.request(model="smart", script=script, moves_clock=False))
        await h.clock.quiet()
        await h.gateway.upstream.running[0].cancel()
        result = await work
    assert result.text == "saved"
    assert [a.outcome for a in result.attempts] == [Outcome.CANCELLED, Outcome.OK]


# -- all at once ------------------------------------------------------------------------------------------------------


def together(strategy, *candidates, **more):
    names = candidates or ("chat", "backup", "tiny")
    return {"name": "smart", "candidates": list(names), "strategy": strategy, "budget_ratio": 4, **more}


@pytest.mark.parametrize("stream", [False, True])
async def test_first_wins_starts_all_and_takes_the_first(track, stream):
    script = {"chat": ok("c", latency_s=0.5), "backup": ok("b", latency_s=0.2), "tiny": ok("t", latency_s=0.9)}
    async with no_leaks(), track(models=[together("first_wins")]) as h:
        result = await h.request(model="smart", stream=stream, script=script)
    assert result.text == "b"
    assert len({a.started_at for a in result.attempts}) == 1
    assert [a.outcome for a in result.attempts] == [Outcome.CANCELLED, Outcome.OK, Outcome.CANCELLED]


@pytest.mark.parametrize("stream", [False, True])
async def test_weighted_takes_the_heaviest_within_the_grace_period(track, stream):
    heavy = {"target": "tiny", "weight": 5}
    script = {"chat": ok("c"), "backup": ok("b", latency_s=0.05), "tiny": ok("t", latency_s=0.09)}
    async with track(models=[together("weighted", "chat", "backup", heavy, grace_ms=100)]) as h:
        result = await h.request(model="smart", stream=stream, script=script)
        assert result.text == "t"
        late = {**script, "tiny": ok("t", latency_s=0.2)}
        result = await h.request(model="smart", stream=stream, script=late)
        assert result.text in {"c", "b"}
    if not stream:
        # All that had answered are paid for; the client's usage is the winner's.
        assert [a.outcome for a in result.attempts].count(Outcome.OK) == 2


async def test_quality_takes_the_better_answer_and_its_tokens_are_settled(track):
    script = {
        "chat": ok("no json", usage=Usage(prompt_tokens=1)),
        "backup": ok('{"a": 1}', usage=Usage(prompt_tokens=2), latency_s=0.05),
        "tiny": ok("", usage=Usage(prompt_tokens=3)),
    }
    async with track(models=[together("quality")]) as h:
        result = await h.request(
            model="smart", script=script, body={"messages": [], "response_format": {"type": "json_object"}}
        )
    assert (result.text, result.settlement.usage.prompt_tokens) == ('{"a": 1}', 2)


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("[" * 200_000, {"response_format": {"type": "json_object"}}),
        ('{"a": 1}', {"response_format": {"type": "json_schema", "json_schema": {"schema": {"required": [["a"]]}}}}),
        ("x", {"tool_choice": {"type": {}}}),
    ],
)
async def test_odd_answers_and_odd_requests_are_judged(track, text, body):
    async with track(models=[together("quality")]) as h:
        work = asyncio.create_task(h.request(model="smart", body={"messages": [], **body}, script=ok(text)))
        await asyncio.wait({work}, timeout=PATIENCE_S)
        assert work.done()
        assert (await work).text == text


async def test_an_answer_that_cannot_be_judged_is_still_an_answer(track, monkeypatch):
    def fails(*_):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(coordinator, "quality", fails)
    async with no_leaks(), track(models=[together("quality")]) as h:
        work = asyncio.create_task(h.request(model="smart", script=ok("fine")))
        await asyncio.wait({work}, timeout=PATIENCE_S)
        assert work.done()
        assert (await work).text == "fine"


async def test_a_group_races_its_deployments_and_each_attempt_has_its_own(track):
    config = {"groups": {"chat": {"strategy": "first_wins", "budget_ratio": 1}}}
    async with track(config=config) as h:
        for _ in range(5):
            result = await h.request(script={"chat-a": ok("a", latency_s=0.2), "chat-b": ok("b", latency_s=0.1)})
            assert {a.deployment.id for a in result.attempts} == {"chat-a", "chat-b"}
            assert result.text == "b"


# -- budget -----------------------------------------------------------------------------------------------------------


async def test_a_slow_fleet_is_not_amplified(track):
    """Every request is slow: one in twenty is hedged, after the burst."""
    model = {**SMART, "budget_ratio": 0.05, "budget_burst": 2}
    async with track(models=[model]) as h:
        attempts = [len((await h.request(model="smart", script=ok(latency_s=1.0))).attempts) for _ in range(200)]
        shown = (await h.admin.get("/racing")).json()
    (race,) = shown["races"]
    assert sum(attempts) - 200 == race["counts"]["extra"] <= 0.05 * 200 + 2
    assert race["counts"]["extra"] >= 10
    assert race["counts"]["denied"] > 100
    assert race["extra_ratio"] == race["counts"]["extra"] / 200


async def test_the_bucket_over_all_races_counts_too(track):
    models = [{"name": name, "candidates": ["chat", "backup"]} for name in ("one", "two", "three")]
    async with track(models=models, config={"budget": {"ratio": 0.0, "burst": 5}}) as h:
        results = [await h.request(model=name, script=ok(latency_s=1)) for name in ("one", "two", "three")]
        assert [len(result.attempts) for result in results] == [1, 1, 1]


async def test_what_is_left_of_the_budget_is_for_those_that_have_waited_longest(track):
    model = {**SINGLE, "budget_ratio": 0.0001, "budget_burst": 2}
    async with track(models=[model]) as h:
        waited = []
        for _ in range(2):
            result = await h.request(model="smart", script={"tiny": ok(latency_s=9), "backup": ok("b")})
            first, second = result.attempts
            waited.append(second.started_at - first.started_at)
        assert waited == pytest.approx([0.1, 0.11], rel=0.01)


async def test_errors_are_replaced_without_the_budget(track):
    async with track(models=[{**SMART, "budget_ratio": 0.0}]) as h:
        result = await h.request(model="smart", script={"chat": error(500), "backup": ok("saved", latency_s=5)})
    assert (result.text, len(result.attempts)) == ("saved", 2)


# -- what must not be made twice --------------------------------------------------------------------------------------

NOT_TWICE = {
    "store": {"store": True},
    "background": {"background": True},
    "previous response": {"previous_response_id": "resp_1"},
    "function of the operator's": {"tools": [{"type": "function", "function": {"name": "send_mail"}}]},
    "the same in responses": {"tools": [{"type": "function", "name": "send_mail"}]},
    "the same in messages": {"tools": [{"name": "send_mail", "input_schema": {}}]},
    "hosted tool": {"tools": [{"type": "mcp", "server_url": "https://x.test"}]},
    "the same in messages, at the top": {"mcp_servers": [{"type": "url", "url": "https://x.test", "name": "pay"}]},
    "the same in messages, as a tool": {"tools": [{"type": "mcp_toolset", "mcp_server_name": "pay"}]},
    "code that the provider runs": {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]},
    "its container": {"container": "container_1"},
}
TWICE = {
    "plain": {},
    "nothing of it": {"mcp_servers": [], "container": None, "tools": []},
    "hosted tool that only reads": {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    "not stored": {"store": False, "background": False, "previous_response_id": None},
    "harmless function": {"tools": [{"type": "function", "function": {"name": "get_weather"}}]},
    "odd tools": {"tools": "none"},
    "odder tools": {"tools": [None, 5, {"function": 3, "type": []}]},
}
OPERATOR = {"side_effect_tools": ["send_*", "mcp", "code_interpreter"]}


@pytest.mark.parametrize("body", NOT_TWICE.values(), ids=NOT_TWICE.keys())
async def test_what_has_side_effects_is_asked_once(track, body):
    async with track(models=[SMART, {**SMART, "name": "bold", "allow_non_repeatable": True}], config=OPERATOR) as h:
        careful = await h.request(model="smart", body=body, script=ok(latency_s=1))
        broken = await h.request(model="smart", body=body, script=error(500), retries=0)
        turned_away = await h.request(model="smart", body=body, script={"chat": error(429), "backup": ok()})
        bold = await h.request(model="bold", body=body, script=ok(latency_s=1))
        assert h.status("racing").details["races"]["smart"]["not_repeatable"] == 3
    assert [len(result.attempts) for result in (careful, broken, turned_away)] == [1, 1, 2]
    assert (broken.status, turned_away.status) == (500, 200)
    assert len(bold.attempts) > 1


@pytest.mark.parametrize("body", TWICE.values(), ids=TWICE.keys())
async def test_everything_else_is_raced(track, body):
    async with track(models=[SMART], config=OPERATOR) as h:
        assert len((await h.request(model="smart", body=body, script=ok(latency_s=1))).attempts) > 1


async def test_a_client_may_say_that_its_request_must_not_be_made_twice(track):
    async with track(models=[SMART]) as h:
        headers = {"X-Pointsman-Repeatable": "False"}
        result = await h.request(model="smart", headers=headers, script=ok(latency_s=1))
    assert len(result.attempts) == 1


# -- names ------------------------------------------------------------------------------------------------------------


async def test_a_model_without_candidates_is_denied_clearly(track):
    async with track(models=[{"name": "smart", "candidates": ["gone"]}]) as h:
        result = await h.request(model="smart")
        assert (result.status, result.denial.code, result.denial.param) == (404, "model_not_found", "model")
        assert "'smart'" in result.denial.message
        status = h.status("racing")
        assert (status.ok, status.details["problems"][0]) == (False, "'smart' has no healthy candidate")
        assert "smart" not in h.gateway.catalog.listed


async def test_candidates_that_are_not_there_are_left_out(track):
    async with track(models=[{"name": "smart", "candidates": ["gone", "backup"]}]) as h:
        assert (await h.request(model="smart", script=ok("b"))).text == "b"
        assert h.gateway.catalog.listed["smart"] == "backup"


async def test_the_default_model_serves_requests_that_name_none(track):
    async with track(models=[SMART], config={"default_model": "smart"}) as h:
        assert (await h.request(model="", script=ok("b"))).settlement.labels == {"race": "smart"}


async def test_other_names_are_left_alone(track):
    async with track(models=[SMART]) as h:
        result = await h.request(model="backup")
    assert (result.route.executor, result.settlement.labels) == (None, {})
    assert "x-pointsman-raced" not in result.headers


@pytest.mark.parametrize(("endpoint", "raced"), [(Endpoint.EMBEDDINGS, True), (Endpoint.OTHER, False)])
async def test_endpoints_that_cannot_be_raced_are_sent_to_the_first_candidate(track, endpoint, raced):
    async with track(models=[SMART], config={"groups": {"tiny": {}}}) as h:
        result = await h.request(model="smart", endpoint=endpoint)
        assert (result.route.target, result.route.executor == "racing") == ("chat", raced)
        assert ((await h.request(model="tiny", endpoint=endpoint)).route.executor == "racing") is raced


async def test_only_the_deployments_of_the_model_that_is_named(track):
    deployments = [deployment("x1", "x", model="m-1"), deployment("x2", "x", model="m-2"), deployment("y", "y")]
    model = {"name": "smart", "candidates": [{"target": "x", "model": "m-2"}, "y"]}
    async with track(models=[model], deployments=deployments) as h:
        result = await h.request(model="smart", script={"x": ok(latency_s=3), "y": ok("y")})
    assert [a.deployment.id for a in result.attempts] == ["x2", "y"]


async def test_priority_before_score(track):
    model = {"name": "smart", "candidates": [{"target": "chat", "priority": 2}, {"target": "backup", "priority": 1}]}
    async with track(models=[model]) as h:
        for _ in range(5):
            await h.request(model="backup", script=ok(latency_s=2))
            await h.request(model="chat", script=ok(latency_s=0.01))
        assert (await h.request(model="smart")).attempts[0].deployment.group == "backup"


async def test_the_better_score_is_started_first(track):
    async with track(models=[{**SMART, "candidates": ["tiny", "backup"]}]) as h:
        for _ in range(5):
            await h.request(model="tiny", script=ok(latency_s=2))
            await h.request(model="backup", script=ok(latency_s=0.01))
        assert (await h.request(model="smart")).attempts[0].deployment.group == "backup"


class Mirror:
    """Sends every attempt to the same model group once more."""

    def __init__(self):
        self.calls = []

    @hookimpl
    async def startup(self, services):
        self.upstream = services.upstream

    @hookimpl
    async def before_attempt(self, ctx, attempt):
        if attempt.kind is not AttemptKind.MIRROR:
            request = UpstreamRequest(target="chat", kind=AttemptKind.MIRROR, body=ctx.body, parent=ctx)
            self.calls.append(self.upstream.start(request))


@pytest.mark.parametrize("strategy", ["hedge", "first_wins"])
async def test_calls_that_others_start_within_an_attempt_are_not_attempts(track, strategy):
    """A mirror of the second attempt may go where the first attempt is."""
    mirror = PluginInfo(name="mirror", config=PluginConfig, factory=lambda _: Mirror())
    group = {"strategy": strategy, "budget_ratio": 4, "max_attempts": 2}
    async with track(mirror, config={"groups": {"chat": group}}) as h:
        result = await h.request(script=ok(latency_s=1))
        await h.settled()
        assert sorted(a.deployment.id for a in result.attempts) == ["chat-a", "chat-b"]
        assert [call.attempt.deployment.id for call in h.plugin("mirror").calls] == ["chat-a"] * 2


class Mover:
    """Sends everything somewhere else, after the race has been chosen."""

    @hookimpl
    async def pre_route(self, route):
        return route.to("tiny")


async def test_a_later_plugin_may_change_the_target(track):
    """Then that target races itself, without other candidates."""
    mover = PluginInfo(name="mover", config=PluginConfig, factory=lambda _: Mover())
    async with track(models=[SMART], later=[mover]) as h:
        result = await h.request(model="smart", script={"tiny": [ok(latency_s=3), ok("quick")]})
    assert {a.deployment.group for a in result.attempts} == {"tiny"}
    assert result.text == "quick"


# -- spans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_spans_tell_the_race(track, stream):
    """One span an attempt; the loser is shown as cancelled, with who won and why each was started."""
    async with track(models=[SMART], tracing=True) as h:
        await h.request(model="smart", stream=stream, script={"chat": ok(latency_s=3), "backup": ok("b")})
        await h.settled()
        attempts = [dict(s.attributes) for s in h.spans if "pointsman.attempt.id" in s.attributes]
        failed = {s.name for s in h.spans if s.status.status_code is StatusCode.ERROR}
    assert len(attempts) == 2
    spans = {attributes["pointsman.deployment"]: attributes for attributes in attempts}
    loser, winner = spans["chat-a"], spans["backup-a"]
    assert not failed, "a cancelled attempt has not failed"
    assert (loser["pointsman.racing.won"], winner["pointsman.racing.won"]) == (False, True)
    assert (loser["pointsman.racing.reason"], winner["pointsman.racing.reason"]) == ("first", "hedge")
    assert loser["pointsman.outcome"] == "cancelled"
    assert winner["pointsman.racing.started_ms"] == pytest.approx(100)
    assert winner["pointsman.racing.first_content_ms"] >= 100
    assert winner["pointsman.racing.legs"] == 2


# -- what is drained, and empty answers -------------------------------------------------------------------------------

DRAINED = [
    deployment("left-a", "half"),
    deployment("gone-a", "half", weight=0.0),
    deployment("inactive-a", "half", active=False),
    deployment("other-a", "other"),
    deployment("gone-b", "gone", weight=0.0),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_drained_candidate_is_not_started_while_there_is_another(track, stream):
    """Neither as a hedge nor in place of a failed one; and neither are drained deployments of a group."""
    model = {"name": "smart", "candidates": [{"target": "other", "weight": 0}, "half"]}
    async with track(models=[model], deployments=DRAINED) as h:
        slow = await h.request(model="smart", stream=stream, script=ok(latency_s=0.5))
        failed = await h.request(model="smart", stream=stream, script=error(500))
    assert {a.deployment.id for a in (*slow.attempts, *failed.attempts)} == {"left-a"}
    assert slow.status == 200


@pytest.mark.parametrize("drained", [{"target": "other", "weight": 0}, "gone"])
async def test_a_drained_candidate_serves_when_there_is_no_other(track, drained):
    async with track(models=[{"name": "smart", "candidates": [drained]}], deployments=DRAINED) as h:
        result = await h.request(model="smart")
    assert result.status == 200


async def test_a_raced_group_hedges_against_no_drained_deployment(track):
    async with track(config={"groups": {"half": {}}}, deployments=DRAINED) as h:
        result = await h.request(model="half", script=ok(latency_s=0.5))
    assert len(result.attempts) > 1
    assert {a.deployment.id for a in result.attempts} == {"left-a"}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_empty_answer_does_not_win(track, stream):
    async with track(models=[SMART]) as h:
        result = await h.request(model="smart", stream=stream, script={"chat": ok(""), "backup": ok("something")})
        races = (await h.admin.get("/racing/smart")).json()
    assert result.text == "something"
    assert [a.empty for a in result.attempts] == [True, False]
    assert [a.outcome for a in result.attempts] == [Outcome.OK, Outcome.OK]
    known = {row["deployment_id"]: row for one in races["candidates"] for row in one["deployments"]}
    assert known[result.attempts[0].deployment.id]["attempts"] == 0
    assert known["backup-a"]["wins"] == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_an_empty_answer_is_better_than_none(track, stream):
    async with track(models=[SMART]) as h:
        result = await h.request(model="smart", stream=stream, script={"chat": ok(""), "backup": error(500)})
    assert (result.status, result.text, result.outcome) == (200, "", Outcome.OK)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_empty_answer_is_not_better_than_a_fallback(track, stream):
    async with track(models=[SMART]) as h:
        script = {"chat": ok(""), "backup": error(500), "tiny": ok("something")}
        result = await h.request(model="smart", stream=stream, script=script, retries=0, fallbacks=["tiny"])
    assert (result.status, result.text) == (200, "something")


# -- where the gateway offers less than the group has -------------------------------------------------------------------


class OnlyA:
    """Leaves ``chat-b`` out, as a filter of LiteLLM does."""

    def __init__(self, config):
        pass

    @hookimpl
    def select(self, candidates):
        return [c if c.deployment.id == "chat-a" else c.drop("filtered") for c in candidates]


ONLY_A = (PluginInfo(name="only-a", config=PluginConfig, factory=OnlyA), {})
TOGETHER = {"strategy": "first_wins", "budget_ratio": 4, "budget_burst": 1000}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("settings", "script", "expected"),
    [
        ({}, error(500), (500, 1)),
        ({}, [error(429, retry_after_s=0.5), ok()], (200, 2)),
        ({}, ok("", usage=None), (200, 1)),
        ({"same_candidate": False}, ok(latency_s=3), (200, 1)),
        (TOGETHER, ok(), (200, 1)),
        (TOGETHER, error(500), (500, 1)),
    ],
    ids=["failed", "told when to come back", "empty", "slow", "together", "together, failed"],
)
async def test_one_deployment_of_a_group_is_called_again_only_for_a_reason(track, settings, script, expected, stream):
    """Calling again what has just failed is a retry, which is the gateway's; the error is the provider's."""
    async with track(ONLY_A, config={"groups": {"chat": settings}}) as h:
        result = await h.request(model="chat", stream=stream, retries=0, script=script)
    status, calls = expected
    assert (result.status, [a.deployment.id for a in result.attempts]) == (status, ["chat-a"] * calls)
