"""What plugins change on its way, and what they answer by themselves: in order, by policy, and only for the client."""

# ruff: noqa: ARG005  # the functions of one table take the same arguments
from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pointsman import PluginConfig, hookimpl
from pointsman.testing import breaks, error, ok
from pointsman.types import AttemptKind, Endpoint, Outcome, Refusal, Reply, UpstreamRequest, Usage

pytestmark = pytest.mark.usefixtures("leak_check")
TEXT_ENDPOINTS = (Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES, Endpoint.COMPLETIONS)


class Denying(PluginConfig):
    on_failure: str = "deny"


def mapped(value, change):
    """Return JSON with every text changed."""
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


class Redacting:
    """Replaces a name on its way to the provider, and back on its way to the client."""

    @hookimpl
    async def transform_request(self, body):
        return mapped(body, lambda text: text.replace("Ada", "NAME"))

    @hookimpl
    async def transform_response(self, answer):
        return mapped(answer, lambda text: text.replace("NAME", "Ada"))

    @hookimpl
    async def transform_stream(self, pieces):
        async for piece in pieces:
            yield mapped(piece, lambda text: text.replace("NAME", "Ada"))


BODY = {"messages": [{"role": "user", "content": "Hi, I am Ada"}]}


FILE = {"filename": "a", "data": b"Ada"}


@pytest.mark.parametrize(
    ("endpoint", "generates", "body"),
    [
        (Endpoint.TRANSCRIPTIONS, True, {"file": FILE}),
        (Endpoint.IMAGES, True, {"prompt": "Ada", "image": [FILE]}),
        (Endpoint.FILES, False, {"purpose": "assistants", "file": FILE}),
        (Endpoint.BATCHES, True, {"input_file_id": "file-1"}),
        (Endpoint.COUNT_TOKENS, False, BODY),
        (Endpoint.ASSISTANTS, False, BODY),
    ],
)
async def test_what_no_plugin_can_change_is_refused_where_one_must(harness, plugin, endpoint, generates, body):
    """A file, a count of tokens, what is stored at a provider: all of it reaches one. What only reads carries nothing."""
    for config, status in ((Denying, 400), (PluginConfig, 200)):
        async with harness([plugin(Redacting, config=config)]) as h:
            result = await h.request(endpoint=endpoint, generates=generates, body=body)
            assert result.status == status
            assert h.host.unmetered("/v1/threads") == ("deny" if config is Denying else "allow")
            if status == 400:
                assert (result.denial.code, result.attempts) == ("not_transformable", ())
            elif "prompt" in body:
                assert result.sent == ({"prompt": "NAME"},)
            if endpoint in {Endpoint.FILES, Endpoint.ASSISTANTS}:
                assert (await h.request(endpoint=endpoint, generates=False, body={})).status == 200
            assert h.faults == {}


class Answers:
    @hookimpl
    async def transform_response(self, answer):
        return answer


class Streams:
    @hookimpl
    def transform_stream(self, pieces):
        return pieces


@pytest.mark.parametrize("changes", [Answers, Streams])
@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        ((Endpoint.BATCHES, True), False),
        ((Endpoint.SPEECH, True), False),
        ((Endpoint.VIDEOS, True), False),
        ((Endpoint.ASSISTANTS, True), False),
        ((Endpoint.BATCHES, False), True),
        ((Endpoint.FILES, False), True),
        ((Endpoint.COUNT_TOKENS, False), True),
        ((Endpoint.CHAT, True), True),
    ],
)
async def test_an_answer_that_no_plugin_can_change_is_refused_where_one_must(harness, plugin, changes, asked, seen):
    """Before a provider is called; also where the plugin leaves the request itself as it is."""
    for config in (Denying, PluginConfig):
        async with harness([plugin(changes, config=config)]) as h:
            result = await h.request(endpoint=asked[0], generates=asked[1], body=BODY)
            if seen or config is PluginConfig:
                assert result.status == 200
            else:
                assert (result.status, result.denial.code, result.attempts) == (400, "not_transformable", ())
            assert h.host.unmetered("/v1/threads") == ("deny" if config is Denying else "allow")
            assert h.faults == {}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", TEXT_ENDPOINTS)
async def test_in_and_out(harness, plugin, endpoint, stream):
    """The provider gets the changed request, the client the changed answer; observers see what was really said and used."""
    seen = []

    class Watching:
        @hookimpl
        def post_response(self, ctx, answer):
            seen.append((answer().text, ctx.body["messages"][0]["content"]))

        @hookimpl
        async def settle(self, settlement):
            seen.append(settlement.usage)

    async with harness([plugin(Redacting), plugin(Watching)]) as h:
        result = await h.request(endpoint=endpoint, stream=stream, body=BODY, script=ok("Hello NAME , bye NAME"))
        await h.settled()
        assert h.faults == {}
    assert result.sent[0]["messages"][0]["content"] == "Hi, I am NAME"
    assert result.text == "Hello Ada , bye Ada"
    assert seen == [("Hello NAME , bye NAME", "Hi, I am Ada"), Usage(prompt_tokens=10, completion_tokens=5)]


async def test_transform_request_starts_from_the_clients_body(harness, plugin):
    """A retry is changed again, from the client's own body."""

    class Adds:
        @hookimpl
        async def transform_request(self, body):
            return {**body, "messages": [*body["messages"], {"role": "user", "content": "and"}]}

    async with harness([plugin(Adds), plugin(Redacting)]) as h:
        result = await h.request(body=BODY, script=[error(503), ok("text")])
    assert [len(sent["messages"]) for sent in result.sent] == [2, 2]
    assert [sent["messages"][0]["content"] for sent in result.sent] == ["Hi, I am NAME"] * 2


async def test_the_order_is_that_of_the_configuration(harness, plugin):
    """Requests, answers and streams pass the plugins in the order of the list."""

    def adds(letter):
        class Adds:
            @hookimpl
            async def transform_request(self, body):
                return {**body, "user": body.get("user", "") + letter}

            @hookimpl
            async def transform_response(self, answer):
                return {**answer, "id": answer.get("id", "") + letter}

            @hookimpl
            async def transform_stream(self, pieces):
                async for piece in pieces:
                    yield {**piece, "id": piece.get("id", "") + letter}

        return plugin(Adds, name=letter)

    async with harness([adds("a"), adds("b")]) as h:
        plain = await h.request(script=ok("text"))
        streamed = await h.request(script=ok("text"), stream=True)
    assert (plain.sent[0]["user"], plain.body["id"], streamed.stream[0]["id"]) == ("ab", "ab", "ab")


async def test_own_calls_are_changed_too(harness, plugin):
    """What a mirror or a judge sends to a provider passes ``transform_request`` as well; it knows its parent and its payer."""
    seen = []

    class Mirrors:
        @hookimpl
        async def startup(self, services):
            self.services = services

        @hookimpl
        async def pre_route(self, ctx):
            call = self.services.upstream.start(
                UpstreamRequest(target="backup", kind=AttemptKind.MIRROR, body=ctx.body, parent=ctx, tenant="payer")
            )
            await call.response()

        @hookimpl
        async def before_attempt(self, ctx, attempt):
            seen.append((attempt.kind, ctx.parent_id, ctx.payer, ctx.identity.user_id))

    async with harness([plugin(Mirrors), plugin(Redacting)]) as h:
        result = await h.request(body=BODY)
        assert h.gateway.upstream.calls[0].sent["messages"][0]["content"] == "Hi, I am NAME"
        assert h.faults == {}
    assert seen == [
        (AttemptKind.MIRROR, result.request_id, "payer", "user-1"),
        (AttemptKind.PRIMARY, None, None, "user-1"),
    ]


WRONG_BODIES = {
    "raises": lambda body: 1 / 0,
    "a text": lambda body: "body",
    "another model": lambda body: {**body, "model": "secret"},
    "an address": lambda body: {**body, "api_base": "https://elsewhere.example"},
    "a key": lambda body: {**body, "api_key": "sk"},
    "headers": lambda body: {**body, "extra_headers": {"a": "b"}},
    "another type": lambda body: {**body, "messages": "text"},
    "an object": lambda body: {**body, "messages": [object()]},
    "not finite": lambda body: {**body, "temperature": float("nan")},
    "a key that is a number": lambda body: {**body, "logit_bias": {1: 2}},
    "a surrogate": lambda body: {**body, "user": "\ud800"},
    "changed in place": lambda body: body["messages"].append({}),
}


@pytest.mark.parametrize("name", WRONG_BODIES)
async def test_a_wrong_request_is_the_plugins_fault(harness, plugin, name):
    """With ``allow`` the body is sent without the plugin's change, with ``deny`` the attempt is refused; later ones see it."""

    class Wrong:
        @hookimpl
        async def transform_request(self, body):
            return WRONG_BODIES[name](body)

    for config, status in ((PluginConfig, 200), (Denying, 503)):
        async with harness([plugin(Wrong, config=config), plugin(Redacting)]) as h:
            result = await h.request(body=BODY, script=ok("text"), retries=0)
            assert (result.status, h.faults) == (status, {"wrong.transform_request": 1})
            if status == 200:
                assert result.sent[0]["messages"][0]["content"] == "Hi, I am NAME"


@pytest.mark.parametrize("wrong", ["raises", "text", "object", "hangs"])
async def test_transform_response_that_is_wrong_is_the_plugins_fault(harness, plugin, wrong):
    """With ``allow`` the client gets the answer without the change, with ``deny`` 503; usage is settled all the same."""

    class Wrong:
        @hookimpl
        async def transform_response(self, answer):
            if wrong == "hangs":
                await asyncio.Event().wait()
            if wrong == "raises":
                raise RuntimeError("broken")
            return "text" if wrong == "text" else {**answer, "id": object()}

    for config, status in ((PluginConfig, 200), (Denying, 503)):
        async with harness([(plugin(Wrong, config=config), {"deadline_ms": 20})]) as h:
            result = await h.request(script=ok("text"))
            assert (result.status, result.text) == (status, "text" if status == 200 else "")
            assert h.faults == {"wrong.transform_response": 1}
            assert result.settlement.usage == Usage(prompt_tokens=10, completion_tokens=5)
            assert result.settlement.status_code == status


@pytest.mark.parametrize("wrong", ["raises", "text", "none", "hangs", "returns a list", "raises at once"])
async def test_a_wrong_stream_is_the_plugins_fault(harness, plugin, wrong):
    """With ``allow`` the rest comes as the provider sends it, with ``deny`` the stream ends with an error."""

    class Wrong:
        @hookimpl
        def transform_stream(self, pieces):
            if wrong == "raises at once":
                raise RuntimeError("broken")
            return [] if wrong == "returns a list" else self.changed(pieces)

        async def changed(self, pieces):
            number = 0
            async for piece in pieces:
                number += 1
                if number == 2:
                    if wrong == "raises":
                        raise RuntimeError("broken")
                    if wrong == "hangs":
                        await asyncio.Event().wait()
                    yield None if wrong == "none" else "text"
                yield piece

    for config in (PluginConfig, Denying):
        async with harness([(plugin(Wrong, config=config), {"deadline_ms": 20})]) as h:
            result = await h.request(script=ok("one two three"), stream=True)
            assert h.faults == {"wrong.transform_stream": 1}
            if config is PluginConfig:
                assert (result.text, result.error) == ("one two three", None)
            else:
                assert result.text in {"one", ""}
                assert result.error.status == 503


async def test_transform_stream_may_hold_back_add_and_leave_out_pieces(harness, plugin):
    """A plugin that joins all pieces to one and adds its own; the next one sees what it yields."""

    class Joins:
        @hookimpl
        async def transform_stream(self, pieces):
            text = ""
            async for piece in pieces:
                text += piece["choices"][0]["delta"]["content"]
            yield {"choices": [{"index": 0, "delta": {"content": text.upper()}}]}
            yield {"choices": [{"index": 0, "delta": {"content": "!"}}]}

    async with harness([plugin(Joins), plugin(Redacting)]) as h:
        result = await h.request(script=ok("my name"), stream=True)
        assert (result.text, h.faults) == ("MY Ada!", {})


async def test_a_stream_that_breaks_is_not_the_plugins_fault(harness, plugin):
    """The provider's failure reaches the client as it is, through every stage."""
    async with harness([plugin(Redacting, name="one"), plugin(Redacting, name="two")]) as h:
        result = await h.request(script=breaks(2, text="one two three"), stream=True)
        assert (result.text, result.outcome, h.faults) == ("one two", Outcome.ERROR, {})


async def test_waiting_for_the_provider_is_not_the_plugins_time(harness, plugin):
    """A slow provider does not use up the deadline of a plugin that changes the stream."""
    async with harness([(plugin(Redacting), {"deadline_ms": 50})]) as h:
        result = await h.request(script=ok("a NAME", latency_s=60.0, piece_s=60.0), stream=True)
        assert (result.text, h.faults) == ("a Ada", {})


async def test_a_client_that_leaves_ends_every_stage(harness, plugin):
    """Stages are closed, and nothing is left running."""
    closed = []

    class Watches:
        @hookimpl
        async def transform_stream(self, pieces):
            try:
                async for piece in pieces:
                    yield piece
            finally:
                closed.append(True)

    async with harness([plugin(Watches)]) as h:
        result = await h.request(script=ok("one two three"), stream=True, leave_after_pieces=1)
        assert (result.outcome, h.faults) == (Outcome.DISCONNECTED, {})
        await asyncio.sleep(0)
    assert closed == [True]


# -- answers of plugins -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_plugin_answers_by_itself(harness, plugin, stream):
    """No attempt is made; the settlement has none, is ok, and has the reply's usage and cost; earlier reservations reach it."""
    seen = []

    class Before:
        @hookimpl
        async def pre_route(self, route):
            return route.with_labels(first="1")

        @hookimpl
        async def settle(self, settlement):
            seen.append(settlement)

    class Answers:
        @hookimpl
        async def pre_route(self, ctx):
            body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "cached"}}]}
            pieces = tuple({"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("cac", "hed"))
            return Reply(body=body, pieces=pieces, cost_usd_micros=7, headers={"x-cache": "hit"})

    class After:
        @hookimpl
        async def pre_route(self):
            seen.append("not asked")

        @hookimpl
        async def transform_response(self):
            seen.append("not asked")

    async with harness([plugin(Before), plugin(Answers), plugin(After)]) as h:
        result = await h.request(stream=stream)
        await h.settled()
        assert h.faults == {}
    assert (result.status, result.text, result.headers["x-cache"]) == (200, "cached", "hit")
    (settlement,) = seen
    assert (settlement.outcome, settlement.attempts, settlement.replied_by) == (Outcome.OK, (), "answers")
    assert (settlement.usage, settlement.cost_usd_micros, settlement.labels) == (Usage(), 7, {"first": "1"})


@pytest.mark.parametrize(
    "reply",
    [
        Reply(),
        Reply(body="text"),
        Reply(body={"a": object()}),
        Reply(body={"a": 1}, usage=5),
        Reply(body={"a": 1}, cost_usd_micros=-1),
        Reply(body={"a": 1}, cost_usd_micros=1.5),
        Reply(body={"a": 1}, headers={"x": "\r\n"}),
        Reply(body={"a": 1}, pieces=[{}]),
    ],
)
async def test_a_wrong_reply_is_the_plugins_fault(harness, plugin, reply):
    """With ``allow`` the request goes on to a provider, with ``deny`` it is refused."""

    class Wrong:
        @hookimpl
        async def pre_route(self):
            return reply

    for config, status in ((PluginConfig, 200), (Denying, 503)):
        async with harness([plugin(Wrong, config=config)]) as h:
            assert ((await h.request(script=ok("text"))).status, h.faults) == (status, {"wrong.pre_route": 1})


# -- limits and refusals ------------------------------------------------------------------------------------------------


async def test_a_route_carries_retries_and_timeout(harness, plugin):
    """A plugin's retries and timeout take the place of the gateway's."""

    class Limits:
        @hookimpl
        async def pre_route(self, ctx, route):
            return replace(route, retries=0) if ctx.stream else replace(route, retries=1, timeout_s=2.0)

    async with harness([plugin(Limits)]) as h:
        assert len((await h.request(script=error(503), stream=True)).attempts) == 1
        result = await h.request(script=ok("text", latency_s=5.0))
        assert [attempt.duration_ms for attempt in result.attempts] == [2000.0, 2000.0]
        assert result.attempts[0].error.kind == "timeout"


async def test_headers_for_providers_are_those_of_the_configuration(harness, plugin):
    """A header that the configuration does not list is the plugin's fault."""

    class Adds:
        @hookimpl
        async def pre_route(self, route):
            return replace(route, upstream_headers={"x-trace": "1"})

    async with harness([plugin(Adds)], host={"upstream_headers": ["X-Trace"]}) as h:
        assert (await h.request()).route.upstream_headers == {"x-trace": "1"}
        assert h.faults == {}
    async with harness([plugin(Adds)]) as h:
        assert (await h.request()).route.upstream_headers == {}
        assert h.faults == {"adds.pre_route": 1}


@pytest.mark.parametrize("retryable", [True, False])
async def test_a_refusal_says_what_the_client_gets(harness, plugin, retryable):
    """Status, code and retry-after reach the client when nothing else answers; one that is final ends the request."""

    class Refuses:
        @hookimpl
        async def before_attempt(self):
            return Refusal(
                reason="not in this region", status=451, code="region", retry_after_s=9.0, retryable=retryable
            )

    async with harness([plugin(Refuses)]) as h:
        result = await h.request(retries=1, fallbacks=["backup"])
        assert (result.status, result.error.message, result.headers["retry-after"]) == (451, "not in this region", "9")
        assert len(result.attempts) == (4 if retryable else 1)


async def test_an_empty_selection_says_why(harness, plugin):
    """The client is told the reasons of the plugins that left nothing."""

    class Drops:
        @hookimpl
        def select(self, candidates):
            return [candidate.drop("outside of the EU") for candidate in candidates]

    async with harness([plugin(Drops)]) as h:
        result = await h.request()
        assert result.status == 429
        assert result.error.message == (
            "No deployment of 'chat' can serve this request now: outside of the EU (drops)."
        )
