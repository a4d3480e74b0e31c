"""How attempts are closed where LiteLLM reports nothing, or reports what must not be charged."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.host.attempt import OpenAttempt
from pointsman.testing import FakeClock, Harness, deployment, error
from pointsman.types import Endpoint, Outcome, RequestContext, Usage

STORED = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "output": [],
    "usage": {"input_tokens": 1000, "output_tokens": 2000, "total_tokens": 3000},
}


@pytest.fixture
def closer() -> Any:
    """Return a closer with LiteLLM's bundled prices: it must not fetch them from the network."""
    module = pytest.importorskip("pointsman.litellm.closing")
    prices = pytest.importorskip("pointsman.litellm.prices")
    tokenizer = pytest.importorskip("pointsman.litellm.tokenizer")
    return module.Closer(prices.CostMap(), tokenizer.PromptTokenizer(), FakeClock())


async def opened_for(h: Harness, **fields) -> tuple[OpenAttempt, RequestContext]:
    """Open an attempt of a request like this."""
    ctx = replace((await h.request(script=error(400))).ctx, request_id="mine", **fields)
    exchange = h.host.open(ctx)
    await exchange.admit()
    _, opened = await exchange.begin(deployment("d", model="gpt-4o-mini"), gateway=True)
    return opened, ctx


@pytest.mark.parametrize("generates", [True, False])
async def test_reading_a_stored_answer_is_not_charged(harness, closer, generates):
    """The usage in a stored answer was charged when it was generated."""
    async with harness([]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.RESPONSES, generates=generates)
        closer.succeed(opened, STORED, ctx)
        assert opened.attempt.outcome is Outcome.OK
        assert (opened.attempt.usage is not None) == generates
        assert opened.awaits_cost == generates


@pytest.mark.parametrize(("status", "outcome"), [(500, Outcome.ERROR), (429, Outcome.ERROR), (0, Outcome.DISCONNECTED)])
async def test_a_pass_through_that_fails_or_is_left_is_closed(harness, closer, status, outcome):
    async with harness([]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.PASS_THROUGH)
        closer.finish_pass_through(opened, ctx, status)
        assert opened.attempt.outcome is outcome
        assert opened.attempt.status_code == (status or None)


@pytest.mark.parametrize(
    ("logged", "response", "usage"),
    [
        ({"response_cost": 0.0}, None, None),
        ({"response_cost": 0.0}, {"response": '{"usage": {"prompt_tokens": 3, "completion_tokens": 4}}'}, 7),
        ({"response_cost": 0.5, "metadata": {"usage_object": {"prompt_tokens": 1, "completion_tokens": 1}}}, None, 2),
    ],
)
async def test_a_pass_through_costs_what_is_read_from_its_answer(harness, closer, logged, response, usage):
    """LiteLLM logs 0 for an answer that it has not read: that is unknown, not free."""
    async with harness([]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.PASS_THROUGH)
        closer.finish(opened, ctx)
        closer.log(opened, {"call_type": "pass_through_endpoint", **logged}, response)
        attempt = opened.attempt
        assert (None if attempt.usage is None else attempt.usage.total_tokens) == usage
        assert (attempt.cost_usd_micros is None) == (usage is None)
        assert attempt.gateway_cost_usd == (Decimal("0.5") if logged["response_cost"] else None)


async def test_an_answer_that_litellm_reports_to_nobody_is_a_success(harness, closer):
    async with harness([]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.SPEECH, body={"input": "Hello."})
        closer.keep(opened, object(), {"x-request-id": "1"}, ctx)
        closer.finish(opened, ctx)
        assert (opened.attempt.outcome, opened.attempt.usage) == (Outcome.OK, Usage(characters=6))
        assert opened.attempt.headers == {"x-request-id": "1"}


FINAL = {"type": "response.completed", "response": STORED}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("said", "estimated"),
    [
        ({"object": "chat.completion", "model": "m", "choices": []}, True),
        ({"model": "m", "usage": {"input_tokens": 1000, "output_tokens": 2000}}, False),
        (None, False),
    ],
)
async def test_counts_that_the_provider_has_not_made_are_estimates(harness, closer, said, estimated, stream):
    """Where the provider was heard and has said no counts, those in LiteLLM's answer are LiteLLM's own."""
    from pointsman.litellm.raw_answers import Listener  # noqa: PLC0415
    from pointsman.litellm.stream import StreamReader  # noqa: PLC0415  # needs LiteLLM

    async with harness([]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.RESPONSES)
        if said is not None:
            listener = Listener("application/json")
            listener.hear(json.dumps(said).encode())
            opened.listeners.append(listener)
        if stream:
            reader = StreamReader()
            reader.read(FINAL)
            closer.end_stream(opened, reader, {}, None, ctx)
        else:
            closer.succeed(opened, STORED, ctx)
        usage = opened.attempt.usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == (1000, 2000, estimated)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([{"id": "msg_1", "type": "message", "usage": {"input_tokens": 1}}], "msg_1"),
        ([{"type": "message_start", "message": {"id": "msg_2", "usage": {"input_tokens": 1}}}], "msg_2"),
        ([{"type": "response.created", "response": {"id": "resp_3"}}], "resp_3"),
        ([{"responseId": "g4", "candidates": []}], "g4"),
        ([{"id": "its-own"}, {"id": "of-something-else"}], "its-own"),
        ([{"model": "m"}], "its-own"),
        ([], "its-own"),
    ],
)
async def test_an_answer_has_the_providers_id_in_the_trace(harness, closer, said, expected, stream):
    """LiteLLM makes another one where it translates an answer; that stays where the provider says none."""
    from pointsman.litellm.raw_answers import Listener  # noqa: PLC0415
    from pointsman.litellm.stream import StreamReader  # noqa: PLC0415  # needs LiteLLM

    async with harness([], tracing=True) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.CHAT)
        for message in said:
            listener = Listener("text/event-stream" if stream else "application/json")
            listener.hear(b"data: %b\n\n" % json.dumps(message).encode() if stream else json.dumps(message).encode())
            opened.listeners.append(listener)
        if stream:
            reader = StreamReader()
            reader.id = "its-own"
            closer.end_stream(opened, reader, {}, None, ctx)
        else:
            closer.succeed(opened, {"id": "its-own", "choices": [{"message": {"content": "hi"}}]}, ctx)
        assert opened.span.attributes["gen_ai.response.id"] == expected


@pytest.mark.parametrize(
    "tiers",
    [
        ("priority", None, "priority"),
        ("fast", None, "fast"),
        ("flex", None, None),
        ("Flex", None, None),
        ("balanced", None, None),
        ("flex", "flex", "flex"),
        ("priority", "default", "default"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_a_cheaper_tier_counts_where_the_provider_says_that_it_served(harness, closer, tiers, stream):
    """LiteLLM does not send every request's tier, and not every provider knows it: what is asked for, said, charged."""
    asked, said, served = tiers
    wire = pytest.importorskip("pointsman.litellm.raw_answers")
    from pointsman.litellm.stream import StreamReader  # noqa: PLC0415  # needs LiteLLM

    usage = {"promptTokenCount": 1000, "candidatesTokenCount": 50, "totalTokenCount": 1050}
    answer = {"candidates": [{"content": {"parts": [{"text": "hi"}]}}], "usageMetadata": usage}
    async with harness([]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.GENERATE_CONTENT, body={"service_tier": asked})
        listener = wire.Listener("application/json")
        listener.account.service_tier = said
        listener.hear(json.dumps(answer).encode())
        opened.listeners.append(listener)
        if stream:
            closer.end_stream(opened, StreamReader(), {}, None, ctx)
        else:
            closer.succeed(opened, answer, ctx)
        assert (opened.attempt.usage.prompt_tokens, opened.attempt.usage.service_tier) == (1000, served)


@pytest.mark.parametrize("cached", [False, True])
async def test_a_cost_in_litellms_own_account_of_a_stream_is_not_the_providers(harness, closer, cached):
    """Nothing has heard the provider, as with Bedrock's events; LiteLLM has written its own figure there."""
    from pointsman.litellm.stream import StreamReader  # noqa: PLC0415  # needs LiteLLM

    counts = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050, "cost": 0.00096}
    async with harness([]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.CHAT, body={"service_tier": "priority"})
        reader = StreamReader()
        reader.read(SimpleNamespace(model="m", choices=[], usage=counts))
        closer.end_stream(opened, reader, {}, None, ctx, cached=cached)
        usage = opened.attempt.usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.provider_cost_usd) == (1000, 50, None)
        assert usage.service_tier == (None if cached else "priority"), "what was asked for"


@pytest.mark.parametrize(
    ("cost", "kept"), [(0.0021, Decimal("0.0021")), (0.0, Decimal(0)), (None, None)], ids=["cost", "nothing", "unknown"]
)
@pytest.mark.parametrize("first", ["logged", "ended"])
async def test_what_litellm_logs_of_a_broken_stream_is_its_own_figure(harness, closer, cost, kept, first):
    """LiteLLM logs a failure, with the cost of what came before the stream broke where it has looked at that."""
    from pointsman.litellm.stream import StreamReader  # noqa: PLC0415  # needs LiteLLM

    async with harness([]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.CHAT)
        counted = {"prompt_tokens": 8, "completion_tokens": 13, "total_tokens": 21} if cost else None
        logged = {"response_cost": cost, "metadata": {"usage_object": counted}}
        reader = StreamReader()
        reader.text.append("what there was of it")
        if first == "logged":
            closer.log_failure(opened, logged)
        closer.end_stream(opened, reader, {}, RuntimeError("broken"), ctx)
        ours = opened.attempt.cost_usd_micros
        closer.log_failure(opened, logged)
        attempt = opened.attempt
        assert (attempt.outcome, attempt.gateway_cost_usd) == (Outcome.ERROR, kept)
        assert not opened.awaits_cost
        # Without a listener LiteLLM's own count is the better one; a cost of nothing says nothing.
        assert attempt.cost_usd_micros == (2100 if cost else ours)
        assert attempt.usage.estimated


async def test_a_failure_that_litellm_has_tried_again_is_not_the_last_word(harness, closer):
    async with harness([]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.RESPONSES)
        closer.log_failure(opened, {"response_cost": 0.0})
        closer.succeed(opened, STORED, ctx)
        closer.log(opened, {"response_cost": 0.0042, "metadata": {}}, STORED)
        closer.log(opened, {"response_cost": 7.0, "metadata": {}}, STORED)
        closer.log_failure(opened, {"response_cost": 0.0})
        assert opened.attempt.gateway_cost_usd == Decimal("0.0042")


class Ledger:
    """Compares what LiteLLM has counted, as billing does."""

    def __init__(self, config: PluginConfig) -> None: ...

    @hookimpl
    async def settle(self, ctx, settlement): ...


async def test_the_gateways_counts_are_kept_as_it_has_made_them(harness, closer):
    """LiteLLM charges for what it has read, also where the total says something else."""
    async with harness([PluginInfo(name="ledger", config=PluginConfig, factory=Ledger)]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.RESPONSES)
        closer.succeed(opened, STORED, ctx)
        counted = {"prompt_tokens": 0, "completion_tokens": 2000, "total_tokens": 3000}
        logged = {"response_cost": 0.0012, "metadata": {"usage_object": counted}, **counted}
        closer.log(opened, logged, STORED)
        assert opened.attempt.usage.prompt_tokens == 1000
        assert (opened.attempt.gateway_usage.prompt_tokens, opened.attempt.gateway_usage.completion_tokens) == (0, 2000)


async def test_a_failure_that_litellm_reports_nowhere_else_has_the_cost_that_it_has_logged(harness, closer):
    """A response that fails before its first content: the provider has counted, and LiteLLM has charged."""
    from pointsman.litellm.raw_answers import Listener  # noqa: PLC0415  # needs LiteLLM

    async with harness([]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.RESPONSES, stream=True)
        listener = Listener("text/event-stream")
        failed = {"type": "response.failed", "response": {**STORED, "status": "failed"}}
        listener.hear(b"data: " + json.dumps(failed).encode() + b"\n\n")
        opened.listeners.append(listener)
        closer.log_failure(opened, {"response_cost": 0.00116})
        responded = {"x-ratelimit-remaining-requests": "7", "set-cookie": "secret"}
        closer.fail_unreported(opened, RuntimeError("failed"), ctx, responded)
        attempt = opened.attempt
        assert dict(attempt.headers) == {"x-ratelimit-remaining-requests": "7"}
        assert (attempt.outcome, attempt.gateway_cost_usd) == (Outcome.ERROR, Decimal("0.00116"))
        assert (attempt.usage.prompt_tokens, attempt.usage.completion_tokens) == (1000, 2000)
        assert not opened.awaits_cost


@pytest.mark.parametrize("generates", [True, False])
@pytest.mark.parametrize("said", [STORED["usage"], None, {}])
async def test_an_answer_that_litellm_cannot_read_has_used_what_its_provider_has_counted(
    harness, closer, said, generates
):
    """The provider has answered with 200, and charges; only where it has counted nothing, nothing is known."""
    from pointsman.litellm.raw_answers import Listener  # noqa: PLC0415  # needs LiteLLM

    async with harness([]) as h:
        opened, _ = await opened_for(h, endpoint=Endpoint.CHAT, generates=generates)
        listener = Listener("application/json")
        listener.hear(json.dumps({"object": "chat.completion", "choices": None, "usage": said}).encode())
        opened.listeners.append(listener)
        closer.fail(opened, TypeError("no choices"))
        closer.log_failure(opened, {"response_cost": 0.0})
        attempt = opened.attempt
        assert attempt.outcome is Outcome.ERROR
        assert not opened.awaits_cost
        if said and generates:
            assert (attempt.usage.prompt_tokens, attempt.usage.completion_tokens) == (1000, 2000)
            assert attempt.usage.raw
            assert attempt.cost_usd_micros == 1350
        else:
            assert (attempt.usage, attempt.cost_usd_micros) == (None, None)


SPENT = {"error": {"message": "broken"}, "usage": {"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100}}


@pytest.mark.parametrize("how", ["plain", "stream", "left", "failed", "unreported"])
@pytest.mark.parametrize(
    ("tries", "parts"),
    [([SPENT, SPENT], 3), ([SPENT, {"error": {}}], 2), ([{"error": {}}], 0), ([None], 2)],
)
async def test_tries_of_a_providers_sdk_before_the_last_are_charged_with_it(harness, closer, tries, parts, how):
    """Some errors say what was used; one that was not waited for (None) costs its prompt."""
    from pointsman.litellm.raw_answers import Listener  # noqa: PLC0415
    from pointsman.litellm.stream import StreamReader  # noqa: PLC0415  # needs LiteLLM

    def heard(said: object) -> Listener:
        listener = Listener("application/json")
        listener.hear(json.dumps(said).encode())
        return listener

    async with harness([]) as h:
        stream = how in {"stream", "left", "unreported"}
        opened, ctx = await opened_for(h, endpoint=Endpoint.RESPONSES, body={"input": "x"}, stream=stream)
        opened.refusals += [heard(said) for said in tries if said is not None]
        opened.abandoned = tries.count(None)
        opened.listeners.append(heard({"usage": STORED["usage"]}))
        if how == "plain":
            closer.succeed(opened, STORED, ctx)
        elif how == "stream":
            closer.end_stream(opened, StreamReader(), {}, None, ctx)
        elif how == "left":
            closer.end_abandoned(opened, StreamReader(), ctx, Outcome.DISCONNECTED)
        elif how == "failed":
            closer.fail(opened, TypeError("no choices"))
        else:
            closer.fail_unreported(opened, TypeError("no choices"), ctx)
        usage, spent, estimated = opened.attempt.usage, 100 * tries.count(SPENT), None in tries
        assert (usage.estimated, len(usage.parts), usage.completion_tokens) == (estimated, parts, 2000)
        assert usage.prompt_tokens > 1000 if estimated else usage.prompt_tokens == 1000 + spent
        if not estimated:
            assert opened.attempt.cost_usd_micros == 1350 + spent * 0.15


async def test_a_moderation_without_counts_costs_what_the_tries_before_it_have_used(harness, closer):
    from pointsman.litellm.raw_answers import Listener  # noqa: PLC0415  # needs LiteLLM

    async with harness([]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.MODERATIONS, body={"input": "How is the weather?"})
        listener = Listener("application/json")
        listener.hear(json.dumps(SPENT).encode())
        opened.refusals.append(listener)
        closer.succeed(opened, {"id": "m", "results": []}, ctx)
        usage = opened.attempt.usage
        assert usage.estimated
        assert [part.prompt_tokens == 100 for part in usage.parts] == [True, False]
        assert usage.prompt_tokens == 100 + usage.parts[1].prompt_tokens > 100


async def test_a_spoken_stream_is_charged_by_its_tokens_where_the_provider_counts_them(harness, closer):
    from pointsman.litellm.raw_answers import Listener  # noqa: PLC0415  # needs LiteLLM

    async with harness([]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.SPEECH, body={"input": "How is it?"})
        listener = Listener("text/event-stream")
        counts = {"input_tokens": 20, "output_tokens": 100, "total_tokens": 120}
        listener.hear(b"data: " + json.dumps({"type": "speech.audio.done", "usage": counts}).encode() + b"\n\n")
        opened.listeners.append(listener)
        closer.succeed(opened, None, ctx)
        usage = opened.attempt.usage
        assert (usage.prompt_tokens, usage.audio_completion_tokens, usage.characters) == (20, 100, 10)


LOST = {"object": "chat.completion", "choices": None}
REFUSED = {"error": {"message": "overloaded", "code": 529}}


@pytest.mark.parametrize("how", ["plain", "stream", "stream-unreported", "stream-failed"])
@pytest.mark.parametrize(
    ("answer", "unread"),
    [
        ((200, LOST), True),
        ((200, REFUSED), False),
        ((200, [REFUSED]), False),
        ((200, None), True),
        ((500, None), False),
        ((None, None), False),
    ],
)
async def test_what_a_provider_has_answered_is_not_known_to_be_free_because_litellm_has_failed(
    harness, closer, how, answer, unread
):
    """The status of the provider decides, not that of LiteLLM's error, unless the provider itself says that it failed."""
    from pointsman.litellm.raw_answers import Listener  # noqa: PLC0415
    from pointsman.litellm.stream import StreamReader  # noqa: PLC0415  # needs LiteLLM

    class UnreadableError(Exception):
        status_code = 503

    stream, (status, said) = how != "plain", answer
    async with harness([]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.MESSAGES, stream=stream)
        opened.provider_status = status
        if said is not None:
            listener = Listener("text/event-stream" if stream else "application/json")
            listener.hear(b"event: x\ndata: " * stream + json.dumps(said).encode() + b"\n\n" * stream)
            opened.listeners.append(listener)
        reader = StreamReader()
        if how == "plain":
            closer.fail(opened, UnreadableError())
        elif how == "stream":
            closer.end_stream(opened, reader, {}, UnreadableError(), ctx)
        elif how == "stream-unreported":
            closer.fail_unreported(opened, UnreadableError(), ctx)
        else:
            reader.read(b'event: error\ndata: {"type": "error", "error": {}}\n\n')
            closer.end_stream(opened, reader, {}, None, ctx)
        attempt = opened.attempt
        assert attempt.outcome is Outcome.ERROR
        assert attempt.unread == unread
        if said not in (None, LOST):
            assert (attempt.usage, attempt.cost_usd_micros, opened.awaits_cost) == (None, None, False)
        elif said is LOST and stream:
            assert attempt.usage.estimated


async def test_what_an_attempt_was_answered_is_what_came_last(harness):
    """A token that was fetched before is not an answer to the request that the provider then does not answer."""
    call = pytest.importorskip("pointsman.litellm.call").ClientCall("mine", {"type": "http", "path": "/"})
    async with harness([]) as h:
        call.exchange = h.host.open((await h.request(script=error(400))).ctx)
        await call.exchange.admit()
        _, opened = await call.exchange.begin(deployment("d"), gateway=True)
        call.responded(200, {})
        assert opened.provider_status == 200
        call.asks()
        assert opened.provider_status is None


@pytest.mark.parametrize(
    ("configured", "called", "server"),
    [
        (None, ["https://api.openai.com"], ("api.openai.com", 443)),
        (None, ["https://files.test:8443", "wss://api.openai.com/v1/realtime"], ("api.openai.com", 443)),
        (None, ["http://[::1]:8000"], ("::1", 8000)),
        (None, [], None),
        ("https://upstream.test/v1", ["https://files.test"], ("upstream.test", 443)),
    ],
)
async def test_a_trace_names_the_server_that_was_called(configured, called, server):
    """The configuration's where it has one: an attempt may fetch something elsewhere."""
    call = pytest.importorskip("pointsman.litellm.call").ClientCall("mine", {"type": "http", "path": "/"})
    async with Harness([], tracing=True) as h:
        call.exchange = h.host.open((await h.request(script=error(400))).ctx)
        await call.exchange.admit()
        _, opened = await call.exchange.begin(replace(deployment("d"), api_base=configured), gateway=True)
        for origin in called:
            call.asks(origin)
        opened.end(Outcome.OK)
        call.exchange.close(200)
        attributes = next(span.attributes for span in reversed(h.spans) if "pointsman.attempt" in span.attributes)
    assert (attributes.get("server.address"), attributes.get("server.port")) == (server or (None, None))


@pytest.mark.parametrize("how", ["plain", "stream", "abandoned"])
@pytest.mark.parametrize(("named", "model"), [("asked", None), ("d", None), ("gpt-4o-mini", "gpt-4o-mini"), ("x", "x")])
async def test_the_name_that_the_client_asked_for_is_not_the_model_that_answered(harness, closer, how, named, model):
    """LiteLLM puts it into answers from its cache."""
    from pointsman.litellm.stream import StreamReader  # noqa: PLC0415  # needs LiteLLM

    answer = {**STORED, "model": named}
    reader = StreamReader()
    reader.read({"type": "response.completed", "response": answer})
    async with harness([]) as h:
        opened, ctx = await opened_for(h, endpoint=Endpoint.RESPONSES, model="asked")
        match how:
            case "plain":
                closer.succeed(opened, answer, ctx, cached=True)
            case "stream":
                closer.end_stream(opened, reader, {}, None, ctx, cached=True)
            case _:
                closer.end_abandoned(opened, reader, ctx, Outcome.DISCONNECTED)
        assert opened.attempt.model == model


@pytest.mark.parametrize("generates", [True, False])
@pytest.mark.parametrize("given_up", [True, False])
async def test_an_answer_that_is_no_longer_waited_for_costs_its_prompt(harness, closer, given_up, generates):
    """As that of a client that has left: the provider has the request, and what it makes of it is not known."""
    body = {"messages": [{"role": "user", "content": "How is the weather in Turin?"}]}
    async with harness([]) as h:
        opened, _ = await opened_for(h, endpoint=Endpoint.CHAT, body=body, generates=generates)
        opened.given_up = given_up
        closer.fail(opened, TimeoutError())
        attempt = opened.attempt
        assert (attempt.outcome, attempt.cut) == (Outcome.ERROR, given_up and generates)
        if attempt.cut:
            assert (attempt.usage.estimated, attempt.usage.completion_tokens) == (True, 0)
            assert attempt.usage.prompt_tokens > 5
        else:
            assert (attempt.usage, attempt.cost_usd_micros) == (None, None)
