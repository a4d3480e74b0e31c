"""What is mirrored, how, and that the caller never notices."""

from __future__ import annotations

import asyncio
import contextvars
from dataclasses import replace

import pytest

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.store.memory import MemoryStore
from pointsman.testing import FakeClock, breaks, deployment, disconnect, error, never, ok
from pointsman.testing.calls import current_exchange
from pointsman.testing.fakes import DEFAULT_PRICE
from pointsman.types import (
    Answer,
    Attempt,
    AttemptKind,
    Denial,
    Endpoint,
    Execution,
    Identity,
    Outcome,
    Route,
    Settlement,
    UpstreamRequest,
    Usage,
)
from pointsman_shadow.budget import Amount, DailyBudget, Reservation, day_of
from pointsman_shadow.comparison import MOST_ANSWERS, Pair, Side
from pointsman_shadow.config import MirrorConfig
from pointsman_shadow.dispatcher import _champion
from pointsman_shadow.throttle import PROBE_S

ENDPOINTS = [Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_the_challenger_gets_the_same_request_on_the_same_api(shadows, kit, endpoint, stream):
    worker = await shadows.worker(kit.mirror())
    asked = "input" if endpoint is Endpoint.RESPONSES else "messages"
    body = {"model": "chat", asked: [{"role": "user", "content": "hello"}], "temperature": 0.5}
    result = await worker.request(endpoint=endpoint, stream=stream, body=body, script=ok("the primary's words"))
    assert (result.status, result.text) == (200, "the primary's words")
    shown = await shadows.shown(worker)
    (call,) = kit.mirrors_of(worker)
    request = call.request
    assert (request.target, request.endpoint, request.stream) == ("new", endpoint, stream)
    assert request.body[asked] == body[asked]
    assert request.body["temperature"] == 0.5
    assert request.tenant == "shadow:next"
    assert request.labels == {"mirror": "next", "primary": result.request_id}
    assert [shown[name] for name in ("total", "sampled", "mirrored", "pairs", "dropped")] == [1, 1, 1, 1, 0]


async def test_the_settlement_knows_nothing_of_the_mirror(shadows, kit):
    """One attempt, one price: the mirror is billed to its own tenant only."""
    worker = await shadows.worker(kit.mirror(tenant="research"))
    result = await worker.request()
    plain = await worker.request(model="new")
    await shadows.rest(worker)
    assert [attempt.kind for attempt in result.attempts] == [AttemptKind.PRIMARY]
    assert result.settlement.cost_usd_micros == plain.settlement.cost_usd_micros
    assert "x-pointsman-attempts" in result.headers
    assert result.headers["x-pointsman-attempts"] == "1"
    assert len(worker.settlements) == 2
    assert kit.mirrors_of(worker)[0].request.tenant == "research"


@pytest.mark.parametrize(
    "script",
    [error(500), error(429, retry_after_s=60.0), never(), breaks(2), ok(latency_s=500.0), ok(piece_s=50.0)],
    ids=["fails", "pushes back", "hangs", "breaks off", "slow", "slow stream"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_whatever_the_challenger_does_the_caller_gets_the_champions_answer(shadows, kit, script, stream):
    """At the champion's time, to the millisecond of the clock, and unchanged."""
    worker = await shadows.worker(kit.mirror(time_limit_s=10))
    worker.gateway.upstream.answer({"new": script})
    before = shadows.clock.monotonic()
    result = await worker.request(stream=stream, script=ok("fine", latency_s=0.25))
    assert (result.status, result.text, result.outcome) == (200, "fine", Outcome.OK)
    assert shadows.clock.monotonic() - before == pytest.approx(0.25)
    await shadows.rest(worker, 30.0)
    shown = await shadows.shown(worker)
    (call,) = kit.mirrors_of(worker)
    assert call.ended
    assert shown["pairs"] == 1
    assert shown["worker"] == {"queued": 0, "running": 0, "alive": 0, "lost": 0}
    # A plain answer has no pieces between which it could be slow.
    plain_and_quick = not stream and script.piece_s == 50.0
    assert shown["challenger_errors"] == (0 if plain_and_quick else 1)


@pytest.mark.parametrize(
    ("script", "why"),
    [(error(500), "server"), (error(429), "rate_limit"), (never(), "timeout"), (ok(latency_s=99.0), "timeout")],
)
async def test_errors_of_the_challenger_are_counted_by_class(shadows, kit, script, why):
    worker = await shadows.worker(kit.mirror(time_limit_s=5))
    worker.gateway.upstream.answer({"new": script})
    await worker.request()
    await shadows.rest(worker, 10.0)
    shown = await shadows.shown(worker)
    assert shown["reasons"]["challenger_errors"] == {why: 1}
    assert kit.figure(shown, "challenger_error")["mean"] == 1.0
    (row,) = await shadows.results(worker)
    assert row["challenger"]["outcome"] == "error"
    assert row["challenger"]["error"] == why


async def test_a_stream_that_never_ends_is_cut_at_the_time_limit(shadows, kit):
    """The first token came in time; the limit is for the whole."""
    worker = await shadows.worker(kit.mirror(time_limit_s=5))
    worker.gateway.upstream.answer({"new": ok("a b c d e f g h", piece_s=2.0)})
    await worker.request(stream=True)
    await shadows.rest(worker, 10.0)
    (row,) = await shadows.results(worker)
    assert row["challenger"]["error"] == "timeout"
    assert row["challenger"]["latency_ms"] == pytest.approx(5000)
    assert kit.mirrors_of(worker)[0].cancelled


async def test_the_mirror_starts_together_with_the_primary(shadows, kit):
    """A few milliseconds behind it: both meet the same conditions, and a slow primary does not put the mirror off."""
    worker = await shadows.worker(kit.mirror())
    task = asyncio.create_task(worker.request(script=ok(latency_s=10.0), moves_clock=False))
    await shadows.clock.advance(0.0)
    assert not kit.mirrors_of(worker)
    await shadows.clock.advance(PROBE_S)
    assert len(kit.mirrors_of(worker)) == 1
    await shadows.clock.advance(10.0)
    await task


async def test_mirrors_do_not_recurse(shadows, kit):
    """Neither a mirror of everything nor one whose challenger is the model itself mirrors a mirror."""
    worker = await shadows.worker(kit.mirror(model="*"), kit.mirror(name="self", challenger="chat"))
    await worker.request()
    await shadows.rest(worker)
    assert sorted(call.request.labels["mirror"] for call in kit.mirrors_of(worker)) == ["next", "self"]


class _Racing:
    """An executor of two legs."""

    def __init__(self, config):
        pass

    @hookimpl
    async def pre_route(self, route):
        return route.__class__(target=route.target, executor="racing")

    @hookimpl
    async def execute(self, ctx, route, upstream):
        legs = [
            upstream.start(UpstreamRequest(target=route.target, kind=kind, body=ctx.body))
            for kind in (AttemptKind.PRIMARY, AttemptKind.HEDGE)
        ]
        response = await legs[0].response()
        await legs[1].cancel()
        return Execution(response=response)


RACING = PluginInfo(name="racing", config=PluginConfig, factory=_Racing)


async def test_a_raced_request_is_mirrored_once_and_the_mirror_is_not_raced(shadows, kit):
    worker = await shadows.worker(kit.mirror(), first=[RACING])
    worker.gateway.upstream.answer({"*": ok("mirrored")})
    result = await worker.request(script=ok("raced"))
    assert result.text == "raced"
    await shadows.rest(worker)
    assert len(kit.mirrors_of(worker)) == 1
    assert (await shadows.shown(worker))["pairs"] == 1
    (row,) = await shadows.results(worker)
    assert row["champion"]["text_chars"] == len("raced")


class _Slowest:
    """An executor of two legs that answers with the first, and not before the second has answered too."""

    def __init__(self, config):
        pass

    @hookimpl
    async def pre_route(self, route):
        return route.__class__(target=route.target, executor="slowest")

    @hookimpl
    async def execute(self, ctx, route, upstream):
        legs = [
            upstream.start(UpstreamRequest(target=target, kind=kind, body=ctx.body))
            for target, kind in ((route.target, AttemptKind.PRIMARY), ("judge", AttemptKind.HEDGE))
        ]
        responses = [await leg.response() for leg in legs]
        return Execution(response=responses[0])


async def test_the_champion_of_a_race_is_the_answer_that_the_client_got(shadows, kit):
    """Not the last of those that have answered."""
    slowest = PluginInfo(name="slowest", config=PluginConfig, factory=_Slowest)
    script = {"chat": ok("the winner", latency_s=0.1), "judge": ok("the loser's", latency_s=0.2), "*": ok("the winner")}
    worker = await shadows.worker(kit.mirror(keep_texts=True), first=[slowest], script=script)
    result = await worker.request(script=script)
    assert result.text == "the winner"
    (row,) = await shadows.results(worker)
    assert (row["champion"]["text"], row["champion"]["deployment"]) == ("the winner", "old-1")
    assert row["champion"]["latency_ms"] == pytest.approx(100)
    assert row["comparison"]["exact"] == 1.0


def _settled(answered_by, *attempts):
    return Settlement(
        request_id="r",
        endpoint=Endpoint.CHAT,
        model="chat",
        stream=False,
        identity=Identity(),
        route=Route(target="chat"),
        outcome=Outcome.OK,
        status_code=200,
        started_at=0.0,
        finished_at=1.0,
        attempts=attempts,
        answered_by=answered_by,
    )


@pytest.mark.parametrize(("answered_by", "champion"), [("1", "words of 1"), (None, "words of 2"), ("9", "words of 2")])
async def test_without_a_known_winner_the_last_answer_counts(shadows, kit, answered_by, champion):
    worker = await shadows.worker(kit.mirror())
    attempts = [replace((await worker.request()).attempts[0], id=str(number)) for number in (1, 2)]
    pair = Pair(None, {}, contextvars.copy_context(), 0.0)
    for attempt in attempts:
        pair.answered(attempt.id, Side.of(attempt, Answer(text=f"words of {attempt.id}")))
    assert _champion(_settled(answered_by, *attempts), pair).answer.text == champion


def test_of_many_answers_the_newest_are_kept():
    pair = Pair(None, {}, contextvars.copy_context(), 0.0)
    for number in range(2 * MOST_ANSWERS):
        pair.answered(str(number), Side(outcome=Outcome.OK))
    assert list(pair.answers) == [str(number) for number in range(MOST_ANSWERS, 2 * MOST_ANSWERS)]


class _Denying:
    def __init__(self, config):
        pass

    @hookimpl
    async def pre_route(self):
        return Denial(status=403, code="no", message="no")


async def test_a_request_that_is_denied_is_not_mirrored(shadows, kit):
    """Also when the denying plugin comes later in the list."""
    denying = PluginInfo(name="denying", config=PluginConfig, factory=_Denying)
    worker = await shadows.worker(kit.mirror(), more=[denying])
    assert (await worker.request()).status == 403
    shown = await shadows.shown(worker)
    assert (shown["total"], kit.mirrors_of(worker)) == (0, [])


@pytest.mark.parametrize(
    ("fields", "request_fields", "taken"),
    [
        ({"endpoints": ["messages"]}, {}, False),
        ({"endpoints": ["messages"]}, {"endpoint": Endpoint.MESSAGES}, True),
        ({}, {"endpoint": Endpoint.EMBEDDINGS}, False),
        ({"streams": "plain"}, {"stream": True}, False),
        ({"streams": "streamed"}, {"stream": True}, True),
        ({"streams": "streamed"}, {}, False),
        ({"model": "*"}, {"model": "judge"}, True),
        ({}, {"model": "judge"}, False),
        ({"filter": {"teams": ["a"]}}, {}, False),
        ({"filter": {"teams": ["a"]}}, {"identity": Identity(team_id="a")}, True),
        ({"filter": {"key_aliases": ["ci"]}}, {"identity": Identity(key_alias="ci")}, True),
        ({"filter": {"key_aliases": ["ci"]}}, {"identity": Identity()}, False),
        ({"filter": {"tenants": ["t"]}}, {"identity": Identity(tenant="t")}, True),
        ({"filter": {"tenants": ["t"]}}, {"identity": Identity(tenant="u")}, False),
        ({"filter": {"labels": {"arm": "stable"}}}, {}, False),
        ({"filter": {"tools": True}}, {}, False),
        ({"filter": {"tools": False}}, {}, True),
        ({"filter": {"tools": True}}, {"body": {"tools": [{"type": "function"}]}}, True),
    ],
)
async def test_which_requests_take_part(shadows, kit, fields, request_fields, taken):
    worker = await shadows.worker(kit.mirror(**fields))
    await worker.request(**request_fields)
    shown = await shadows.shown(worker)
    assert (shown["total"], len(kit.mirrors_of(worker))) == ((1, 1) if taken else (0, 0))


@pytest.mark.parametrize(
    ("fields", "body", "why"),
    [
        ({}, {"input": "x", "previous_response_id": "r"}, "state"),
        ({}, {"input": "x", "background": True}, "background"),
        ({}, {"input": "x", "tools": [{"type": "mcp"}]}, "server_tools"),
        ({"filter": {"max_prompt_chars": 3}}, {"input": "long"}, "long_prompt"),
    ],
)
async def test_what_must_not_be_repeated_is_skipped_and_counted(shadows, kit, fields, body, why):
    worker = await shadows.worker(kit.mirror(**fields))
    await worker.request(endpoint=Endpoint.RESPONSES, body=body)
    shown = await shadows.shown(worker)
    assert (shown["sampled"], shown["skipped"], shown["reasons"]["skipped"]) == (1, 1, {why: 1})
    assert not kit.mirrors_of(worker)


async def test_only_the_sampled_share_is_mirrored(shadows, kit):
    """And every worker chooses the same requests: the choice is by id."""
    worker = await shadows.worker(kit.mirror(sample_rate=0.25))
    for _ in range(200):
        await worker.request()
    shown = await shadows.shown(worker)
    assert shown["total"] == 200
    assert 25 <= shown["sampled"] <= 75
    assert len(kit.mirrors_of(worker)) == shown["sampled"] == shown["pairs"]


async def test_beyond_the_queue_requests_are_dropped_and_counted(shadows, kit):
    """Two calls at a time and three that wait; the seventh and the eighth request are not mirrored."""
    worker = await shadows.worker(kit.mirror(max_concurrent=2, queue_size=3, time_limit_s=50, max_wait_s=500))
    worker.gateway.upstream.answer({"new": ok(latency_s=40.0)})
    for _ in range(8):
        await worker.request(moves_clock=False)
        await shadows.clock.advance(2 * PROBE_S)
    assert len(kit.mirrors_of(worker)) == 2
    await shadows.rest(worker, 400.0)
    shown = await shadows.shown(worker)
    assert shown["reasons"]["dropped"] == {"queue_full": 3}
    assert (shown["sampled"], shown["pairs"]) == (8, 5)


async def test_one_that_waits_too_long_is_dropped(shadows, kit):
    """A mirror that comes minutes later meets another world."""
    worker = await shadows.worker(kit.mirror(max_concurrent=1, time_limit_s=50, max_wait_s=5))
    worker.gateway.upstream.answer({"new": ok(latency_s=20.0)})
    for _ in range(3):
        await worker.request(moves_clock=False)
    await shadows.rest(worker, 100.0)
    shown = await shadows.shown(worker)
    assert shown["reasons"]["dropped"] == {"waited_too_long": 2}
    assert shown["pairs"] == 1


@pytest.mark.parametrize("where", ["waiting", "running"])
async def test_a_pair_whose_client_has_gone_is_not_compared(shadows, kit, where):
    """One that waits is never sent: what cannot be compared costs nothing."""
    worker = await shadows.worker(kit.mirror(max_concurrent=1))
    worker.gateway.upstream.answer({"new": ok(latency_s=1.0)})
    if where == "waiting":
        await worker.request(moves_clock=False)
        await shadows.clock.advance(PROBE_S)
    await worker.request(stream=True, script=disconnect(1, latency_s=0.1))
    await shadows.rest(worker, 5.0)
    shown = await shadows.shown(worker)
    assert shown["reasons"]["unpaired"] == {"client_gone": 1}
    assert len(kit.mirrors_of(worker)) == 1
    assert shown["pairs"] == (1 if where == "waiting" else 0)
    assert shown["worker"]["alive"] == 0


class _Leaving:
    """The client goes away while its first attempt is sent; the attempt goes on."""

    def __init__(self, config):
        pass

    @hookimpl
    async def before_attempt(self):
        current_exchange.get().disconnected = True


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_nothing_is_mirrored_for_a_client_that_has_left(shadows, kit, endpoint):
    """However long the attempt goes on for which the client does not wait any more."""
    leaving = PluginInfo(name="leaving", config=PluginConfig, factory=_Leaving)
    worker = await shadows.worker(kit.mirror(), more=[leaving])
    await worker.request(endpoint=endpoint, script=ok(latency_s=5.0))
    shown = await shadows.shown(worker)
    assert shown["reasons"]["dropped"] == {"client_gone": 1}
    assert kit.mirrors_of(worker) == []
    assert shown["worker"]["alive"] == 0


async def test_an_error_of_the_champion_is_compared_too(shadows, kit):
    worker = await shadows.worker(kit.mirror())
    result = await worker.request(script=error(500), retries=0)
    assert result.status == 500
    shown = await shadows.shown(worker)
    assert shown["reasons"]["champion_errors"] == {"server": 1}
    assert kit.figure(shown, "challenger_error")["mean"] == 0.0


async def test_a_primary_that_succeeds_at_last_is_compared_by_its_answer(shadows, kit):
    """The attempts before it are not; and there is one mirror, not one for each attempt."""
    worker = await shadows.worker(kit.mirror())
    await worker.request(script=[error(500), error(500), ok("at last", latency_s=0.5)])
    (row,) = await shadows.results(worker)
    assert row["champion"]["outcome"] == "ok"
    assert row["champion"]["latency_ms"] == pytest.approx(500)
    assert len(kit.mirrors_of(worker)) == 1


async def test_what_a_day_may_cost(shadows, kit):
    """Estimates are set aside, real amounts replace them; over the budget nothing is sent until the day is over."""
    worker = await shadows.worker(kit.mirror(budget={"tokens_per_day": 100}))
    body = {"messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 20}
    for _ in range(12):
        await worker.request(body=body)
        await worker.settled()
    shown = await shadows.shown(worker)
    # Each takes 15 tokens of the fake upstream, 31 are set aside for one: the sixth no longer fits.
    assert shown["pairs"] == 5
    assert shown["today"]["tokens"] == 75
    assert shown["spent"]["tokens"] == 75
    assert shown["reasons"]["dropped"] == {"token_budget": 7}
    await shadows.clock.skip(86_400)
    await worker.request(body=body)
    shown = await shadows.shown(worker)
    assert (shown["pairs"], shown["today"]["tokens"]) == (6, 15)


async def test_what_a_day_may_cost_in_money(shadows, kit):
    """One and two millionths of a dollar a token: 20 micro-dollars a call."""
    worker = await shadows.worker(kit.mirror(budget={"usd_per_day": "0.000100"}))
    body = {"messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 20}
    for _ in range(8):
        await worker.request(body=body)
        await worker.settled()
    shown = await shadows.shown(worker)
    assert shown["reasons"]["dropped"] == {"money_budget": 8 - shown["pairs"]}
    assert 1 <= shown["pairs"] < 8
    assert shown["today"]["usd_micros"] == 20 * shown["pairs"] <= 100


async def test_a_budget_in_money_needs_a_price(shadows, kit):
    """A challenger whose price is unknown is not taken for one that costs nothing, and the status says what to do."""
    worker = await shadows.worker(kit.mirror(budget={"usd_per_day": "0.000100"}), prices={"old-1": DEFAULT_PRICE})
    await worker.request()
    await worker.settled()
    shown = await shadows.shown(worker)
    assert (shown["pairs"], shown["reasons"]["dropped"]) == (0, {"unpriced": 1})
    problems = worker.status("shadow").details["problems"]
    assert any("the price of" in problem and "'budget.usd_per_day'" in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("given", "amount"),
    [
        ({"usage": None}, Amount(None, None)),
        ({"usage": None, "outcome": Outcome.ERROR}, Amount(0, 0)),
        ({"usage": Usage(prompt_tokens=3)}, Amount(3, None)),
        ({"usage": Usage(prompt_tokens=3), "cost_usd_micros": 7}, Amount(3, 7)),
        ({"usage": Usage()}, Amount(0, 0)),
    ],
)
async def test_what_is_unknown_about_a_call_counts_as_reserved(given, amount):
    fields = {"id": "a", "request_id": "r", "number": 1, "kind": AttemptKind.MIRROR, "started_at": 0.0}
    attempt = Attempt(deployment=deployment("new-1", "new"), **{"outcome": Outcome.OK, **fields, **given})
    assert Amount.of(attempt) == amount
    store, limits = MemoryStore(), {"tokens_per_day": 100, "usd_per_day": "0.0001"}
    budget = DailyBudget(MirrorConfig(name="next", model="chat", challenger="new", budget=limits), store, FakeClock())
    reserved = await budget.reserve(Amount(60, 60))
    await budget.settle(reserved, amount)
    rest = (100 - (60 if used is None else used) for used in (amount.tokens, amount.usd_micros))
    assert isinstance(await budget.reserve(Amount(*rest)), Reservation)
    assert await budget.reserve(Amount(0, 1)) == "money_budget"
    await store.close()


async def test_without_the_store_a_budget_lets_nothing_through(shadows, kit):
    """The spending is unknown; the caller does not notice."""
    worker = await shadows.worker(kit.mirror(budget={"tokens_per_day": 10_000}))
    worker.store.down = True
    result = await worker.request()
    assert result.status == 200
    await shadows.clock.advance(0.1)
    assert not kit.mirrors_of(worker)
    worker.store.down = False
    shown = await shadows.shown(worker)
    assert shown["reasons"]["dropped"] == {"store": 1}


@pytest.mark.parametrize("most_tokens", [30_000, 10**20, 10**400])
@pytest.mark.parametrize("limit", [{"tokens_per_day": 20_000}, {"usd_per_day": "0.02"}])
async def test_a_request_that_allows_too_many_tokens_is_dropped_alone(shadows, kit, limit, most_tokens):
    """However large the number; other requests are mirrored."""
    worker = await shadows.worker(kit.mirror(budget=limit))
    for max_tokens in (most_tokens, 10, most_tokens, 10):
        await worker.request(body={"messages": [{"role": "user", "content": "hi"}], "max_tokens": max_tokens})
        await worker.settled()
        await shadows.clock.advance(0.1)
    shown = await shadows.shown(worker)
    why = "token_budget" if "tokens_per_day" in limit else "money_budget"
    assert (shown["pairs"], shown["reasons"]["dropped"]) == (2, {why: 2})
    assert worker.faults == {}


async def test_a_full_counter_is_not_asked_again_at_once():
    """One that only has too little left is: the next estimate may fit."""
    clock = FakeClock()
    store = MemoryStore(clock=clock.now)
    budget = DailyBudget(
        MirrorConfig(name="next", model="chat", challenger="new", budget={"tokens_per_day": 100}), store, clock
    )
    assert isinstance(await budget.reserve(Amount(tokens=90)), Reservation)
    assert await budget.reserve(Amount(tokens=20)) == "token_budget"
    assert budget.exhausted() is None
    assert isinstance(await budget.reserve(Amount(tokens=10)), Reservation)
    assert await budget.reserve(Amount(tokens=1)) == "token_budget"
    assert budget.exhausted() == "token_budget"
    await clock.advance(5.0)
    assert budget.exhausted() is None
    await store.close()


async def test_a_mirror_that_cannot_be_sent_for_a_fault_is_counted(shadows, kit, monkeypatch):
    def broken(mirror, pair):
        raise RuntimeError("a fault")

    monkeypatch.setattr("pointsman_shadow.mirror.Mirror.request", broken)
    worker = await shadows.worker(kit.mirror())
    assert (await worker.request()).status == 200
    shown = await shadows.shown(worker)
    assert shown["reasons"]["dropped"] == {"fault": 1}
    assert shown["worker"] == {"queued": 0, "running": 0, "alive": 0, "lost": 0}


async def test_the_day_is_utc():
    assert [day_of(at) for at in (0, 86_399.9, 86_400)] == ["1970-01-01", "1970-01-01", "1970-01-02"]


async def test_the_mirrors_span_is_linked_and_not_nested(shadows, kit):
    worker = await shadows.worker(kit.mirror(), tracing=True)
    result = await worker.request()
    await shadows.rest(worker)
    kinds = [(span.attributes.get("pointsman.kind"), span) for span in worker.spans]
    (primary,) = [span for kind, span in kinds if kind == "request"]
    (mirrored,) = [span for kind, span in kinds if kind == "mirror"]
    assert primary.attributes["pointsman.request_id"] == result.request_id
    assert mirrored.parent is None
    assert mirrored.context.trace_id != primary.context.trace_id
    assert [link.context.span_id for link in mirrored.links] == [primary.context.span_id]
    assert mirrored.attributes["pointsman.label.mirror"] == "next"
    assert mirrored.attributes["pointsman.label.primary"] == result.request_id
    (hook,) = [s for s in worker.spans if s.name == "before_attempt" and s.context.trace_id == primary.context.trace_id]
    assert hook.attributes["pointsman.shadow.next"] == "mirrored"
    assert "Hello" not in repr([span.to_json() for span in worker.spans])


async def test_a_mirror_that_waits_and_its_primary_are_linked_both_ways(shadows, kit):
    """Each request has ended long before its mirror begins, or is given up; those that are not even queued say why."""
    worker = await shadows.worker(
        kit.mirror(max_concurrent=1, queue_size=2, time_limit_s=50, max_wait_s=30), tracing=True
    )
    worker.gateway.upstream.answer({"new": ok(latency_s=20.0)})
    for _ in range(4):
        await worker.request(moves_clock=False)
        await shadows.clock.advance(2 * PROBE_S)
    await shadows.rest(worker, 200.0)
    requests = [span for span in worker.spans if span.attributes.get("pointsman.kind") == "request"]
    mirrors = [span for span in worker.spans if span.attributes.get("pointsman.kind") == "mirror"]
    settlements = {s.context.span_id for s in worker.spans if s.attributes.get("pointsman.kind") == "settlement"}
    linked = {
        (request.context.span_id, link.context.span_id)
        for request in requests
        for link in request.links
        if link.context.span_id not in settlements
    }
    assert linked == {(mirror.links[0].context.span_id, mirror.context.span_id) for mirror in mirrors}
    assert len({request for request, _ in linked}) == 3
    hooks = [
        span.attributes["pointsman.shadow.next"] for span in worker.spans if "pointsman.shadow.next" in span.attributes
    ]
    assert hooks == ["mirrored", "mirrored", "mirrored", "queue_full"]
    outcomes = [(m.attributes["pointsman.outcome"], m.attributes.get("pointsman.ended_because")) for m in mirrors]
    assert sorted(outcomes, key=str) == [("cancelled", "waited_too_long"), ("ok", None), ("ok", None)]
    waits = [event.attributes["pointsman.wait_ms"] for m in mirrors for event in m.events if event.name == "waited"]
    assert max(waits) > 15_000


async def test_a_worker_that_stops_says_which_mirrors_were_not_sent(shadows, kit):
    worker = await shadows.worker(kit.mirror(max_concurrent=1), tracing=True)
    worker.gateway.upstream.answer({"new": never()})
    for _ in range(2):
        await worker.request(moves_clock=False)
        await shadows.clock.advance(2 * PROBE_S)
    await worker.stop()
    mirrors = [span for span in worker.spans if span.attributes.get("pointsman.kind") == "mirror"]
    assert "shutdown" in {mirror.attributes.get("pointsman.ended_because") for mirror in mirrors}


async def test_a_worker_that_stops_leaves_no_call_behind(shadows, kit):
    worker = await shadows.worker(kit.mirror())
    worker.gateway.upstream.answer({"new": never()})
    await worker.request()
    await worker.stop()
    assert not worker.gateway.upstream.running
