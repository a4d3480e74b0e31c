"""Websockets without a network: which request each event belongs to, and what the client is told when one is denied."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import pytest

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.testing import Harness, deployment, error
from pointsman.types import Attempt, Denial, Endpoint, ErrorClass, Outcome, Refusal, RequestContext, Route, Settlement

# LiteLLM's own warnings are not ours.
call = pytest.importorskip("pointsman.litellm.call")
closing = pytest.importorskip("pointsman.litellm.closing")
prices = pytest.importorskip("pointsman.litellm.prices")
socket_watch = pytest.importorskip("pointsman.litellm.socket_watch")
silent_sockets = pytest.importorskip("pointsman.litellm.silent_sockets")
sockets = pytest.importorskip("pointsman.litellm.sockets")
tokenizer = pytest.importorskip("pointsman.litellm.tokenizer")

TALK: Final = deployment("talk-1", group="talk", model="gpt-realtime")
OTHER: Final = deployment("talk-2", group="talk", model="gpt-realtime")
USAGE: Final = {"input_tokens": 132, "output_tokens": 121, "total_tokens": 253}
#: Ten tokens of a realtime model: half a second of samples of 16 bits.
SOUND: Final = "A" * 32_000
CALLED: Final = {"type": "response.create"}


class Gate:
    """Denies a response, or refuses its attempt, as its instructions say; denies every one after the third."""

    def __init__(self) -> None:
        self.contexts: list[RequestContext] = []

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | Denial | None:
        if ctx.within is None:
            return route.with_labels(kept="yes")
        self.contexts.append(ctx)
        if ctx.body.get("instructions") == "deny" or len(self.contexts) > 3:
            return Denial(status=429, code="no_more", message="No more.", retry_after_s=2.0)
        return None

    @hookimpl
    async def before_attempt(self, ctx: RequestContext, attempt: Attempt) -> Refusal | None:
        assert attempt.labels.get("kept") == "yes"
        refused = ctx.body.get("instructions") == "refuse"
        return Refusal(reason="not here", status=503, code="not_here") if refused else None


class Connection:
    """A websocket whose request has been admitted, with a deployment chosen.

    Attributes:
        h: The worker.
        call: The client's call.
        metered: Its meter.
        gate: The plugin.
    """

    def __init__(self, h: Harness, ctx: RequestContext) -> None:
        self.h = h
        self.gate: Gate = h.plugin("gate")
        closer = closing.Closer(prices.CostMap(), tokenizer.PromptTokenizer(), h.clock)
        self.metered = sockets.MeteredSocket(h.host, closer)
        self.session = h.host.open(ctx)
        self.call = call.ClientCall(
            ctx.request_id, {"type": "websocket", "path": "/v1/realtime", "extensions": {"websocket.http.response": {}}}
        )
        self.call.socket = self.metered

    async def open(self, data: dict[str, Any] | None = None) -> Denial | None:
        """Admit the connection, and choose its deployment."""
        assert await self.session.admit() is None
        self.call.open(self.session, {})
        denial = await self.metered.open(self.session, {} if data is None else data)
        await self.session.begin(TALK, gateway=True)
        return denial or await self.metered.chosen()

    async def ask(self, **fields: Any) -> Denial | None:
        return await self.metered.received({**CALLED, **fields})

    async def says(self, type_: str, **fields: Any) -> Denial | None:
        return await self.metered.sent({"type": type_, **fields})

    async def answer(self, name: str, text: str = "Good morning.") -> None:
        """Let the provider answer once."""
        assert await self.says("response.created", response={"id": name}) is None
        assert await self.says("response.output_text.delta", response_id=name, delta=text) is None
        assert await self.says("response.done", response={"id": name, "status": "completed", "usage": USAGE}) is None

    async def ended(self) -> list[Settlement]:
        """End it; return the settlements of its responses, in the order of their end."""
        self.metered.close()
        self.session.close(101)
        await self.h.settled()
        return [s for s in self.h.settlements if s.within == self.session.ctx.request_id]


Opens = Callable[..., Any]


@pytest.fixture
async def connect(harness: Any) -> AsyncIterator[Opens]:
    gate = PluginInfo(name="gate", config=PluginConfig, factory=lambda _: Gate())
    async with harness([gate]) as h:
        base = (await h.request(script=error(400))).ctx
        await h.settled()
        h.settlements.clear()
        facts = {"request_id": "session", "model": "talk", "generates": False, "body": {}}
        yield lambda endpoint=Endpoint.REALTIME, **more: Connection(
            h, replace(base, endpoint=endpoint, **facts, **more)
        )


def used(settlement: Settlement) -> tuple[int, int] | None:
    (attempt,) = settlement.attempts
    return None if attempt.usage is None else (attempt.usage.prompt_tokens, attempt.usage.completion_tokens)


# -- whose is it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", [Endpoint.REALTIME, Endpoint.RESPONSES])
async def test_a_response_is_a_request_with_the_route_of_its_connection(connect: Opens, endpoint: Endpoint) -> None:
    c = connect(endpoint)
    assert await c.open() is None
    for name in ("one", "two"):
        assert await c.ask(instructions="Be kind.") is None
        await c.answer(name)
    first, second = await c.ended()
    assert [used(one) for one in (first, second)] == [(132, 121)] * 2
    assert {(one.outcome, one.status_code, one.generates) for one in (first, second)} == {(Outcome.OK, 200, True)}
    assert {one.route.labels["kept"] for one in (first, second)} == {"yes"}
    assert [one.attempts[0].deployment.id for one in (first, second)] == ["talk-1"] * 2
    assert first.first_token_ms is not None
    # The connection itself has used nothing.
    (session,) = [s for s in c.h.settlements if s.within is None]
    assert (session.outcome, session.status_code, session.cost_usd_micros) == (Outcome.OK, 101, 0)


async def test_responses_at_the_same_time_are_told_apart_by_their_ids(connect: Opens) -> None:
    c = connect()
    await c.open()
    for _ in range(2):
        await c.ask(conversation="none")
    for name in ("one", "two"):
        await c.says("response.created", response={"id": name})
    await c.says("response.done", response={"id": "two", "status": "completed", "usage": USAGE})
    await c.says("response.done", response={"id": "one", "status": "failed", "usage": {"input_tokens": 5}})
    ok, failed = await c.ended()
    assert (ok.outcome, used(ok)) == (Outcome.OK, (132, 121))
    assert (failed.attempts[0].outcome, used(failed)) == (Outcome.ERROR, (5, 0))


async def test_two_responses_of_one_id_are_two_requests(connect: Opens) -> None:
    """The first has ended, though its provider does not say so; what it generated is counted."""
    c = connect()
    await c.open()
    for text in ("one two three", ""):
        await c.ask()
        await c.says("response.created", response={"id": "same"})
        if text:
            await c.says("response.output_text.delta", response_id="same", delta=text)
    await c.says("response.done", response={"id": "same", "usage": USAGE})
    first, second = await c.ended()
    assert used(second) == (132, 121)
    assert first.attempts[0].usage.estimated
    assert first.attempts[0].usage.completion_tokens == 3


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "only ended"])
async def test_a_response_that_no_client_asked_for_is_admitted_when_it_is_seen(
    connect: Opens, *, announced: bool
) -> None:
    c = connect()
    await c.open()
    if announced:
        await c.says("response.created", response={"id": "own"})
    await c.says("response.done", response={"id": "own", "usage": USAGE})
    (own,) = await c.ended()
    assert used(own) == (132, 121)


async def test_the_first_sound_admits_the_answer_to_it(connect: Opens) -> None:
    c = connect()
    await c.open()
    for _ in range(3):
        assert await c.metered.received({"type": "input_audio_buffer.append", "audio": SOUND}) is None
    assert len(c.gate.contexts) == 1
    # The provider answers by itself, or the client asks: either way it is the same response.
    await c.ask()
    assert len(c.gate.contexts) == 1
    await c.answer("heard")
    assert len(await c.ended()) == 1


@pytest.mark.parametrize("heard", [True, False], ids=["after sound", "unasked"])
async def test_an_utterance_that_is_transcribed_is_paid_for_with_the_transcribers_name(
    connect: Opens, *, heard: bool
) -> None:
    c = connect()
    await c.open()
    await c.says("session.updated", session={"input_audio_transcription": {"model": "whisper-1"}})
    if heard:
        await c.metered.received({"type": "input_audio_buffer.append", "audio": SOUND})
    name = "conversation.item.input_audio_transcription.completed"
    await c.says(name, transcript="Hi.")  # it does not say what it used
    await c.says(name, usage={"type": "duration", "seconds": 7})
    attempts = [one.attempts[0] for one in await c.ended()]
    # Half a second of sound was heard before the first.
    expected = [(500, True), (7_000, False)] if heard else [(7_000, False)]
    assert [(attempt.usage.audio_ms, attempt.usage.estimated) for attempt in attempts] == expected
    assert {(attempt.usage.model, attempt.outcome) for attempt in attempts} == {("whisper-1", Outcome.OK)}


TRANSCRIBED: Final = {
    "as at first": ("session.update", {"session": {"input_audio_transcription": {"model": "other"}}}),
    "as it is now": ("session.update", {"session": {"audio": {"input": {"transcription": {"model": "other"}}}}}),
    "only transcribed": (
        "session.update",
        {"session": {"type": "transcription", "audio": {"input": {"transcription": {"model": "other"}}}}},
    ),
    "a session of its own": (
        "transcription_session.update",
        {"session": {"input_audio_transcription": {"model": "other"}}},
    ),
    "at the top": ("session.update", {"input_audio_transcription": {"model": "other"}}),
}


@pytest.mark.parametrize("how", TRANSCRIBED)
@pytest.mark.parametrize("before", ["before", "after sound", "after a question"])
async def test_what_transcribes_is_admitted_before_it_hears(connect: Opens, how: str, before: str) -> None:
    """With the response that follows; what was admitted for sound is admitted again, since it may be said already."""
    c = connect()
    await c.open()
    sound = {"type": "input_audio_buffer.append", "audio": SOUND}
    if before == "after sound":
        await c.metered.received(sound)
    elif before == "after a question":
        await c.ask()
    type_, fields = TRANSCRIBED[how]
    assert await c.metered.received({"type": type_, **fields}) is None
    if before == "before":
        assert not c.gate.contexts
        await c.metered.received(sound)
    assert c.gate.contexts[-1].body["input_audio_transcription"] == [{"model": "other"}]
    admitted = len(c.gate.contexts)
    # Named again, it is the same.
    assert await c.metered.received({"type": type_, **fields}) is None
    assert len(c.gate.contexts) == admitted == (1 if before == "before" else 2)


async def test_a_question_is_admitted_with_what_it_asks_whatever_transcribes(connect: Opens) -> None:
    c = connect()
    await c.open()
    await c.ask()
    await c.metered.received({"type": "session.update", "input_audio_transcription": {"model": "other"}})
    await c.ask(response={"instructions": "Be kind."})
    assert c.gate.contexts[-1].body["instructions"] == "Be kind."


async def test_what_a_response_carries_is_what_earlier_ones_used(connect: Opens) -> None:
    c = connect()
    await c.open()
    await c.ask()
    await c.answer("one")
    await c.ask()
    assert [ctx.carried_tokens for ctx in c.gate.contexts] == [0, 253]


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("about", ["mine", "", "unknown"])
async def test_an_error_ends_the_response_that_it_is_about(connect: Opens, about: str) -> None:
    """One without a name ends what was asked for and has not begun; one about something else ends nothing."""
    c = connect()
    await c.open()
    await c.ask(event_id="mine")
    wrong = {"type": "invalid_request_error", "code": "bad", "message": "SECRET", "event_id": about}
    assert await c.says("error", error=wrong) is None
    (one,) = await c.ended()
    (attempt,) = one.attempts
    if about == "unknown":
        assert attempt.outcome is Outcome.DISCONNECTED
        return
    assert (attempt.outcome, attempt.error.kind, one.status_code) == (Outcome.ERROR, ErrorClass.CLIENT, 400)
    assert "SECRET" not in attempt.error.message


async def test_an_error_while_a_response_runs_is_not_about_the_next_one(connect: Opens) -> None:
    c = connect()
    await c.open()
    await c.ask()
    await c.says("response.created", response={"id": "one"})
    await c.ask()
    await c.says("error", error={"type": "server_error"})
    await c.says("response.done", response={"id": "one", "usage": USAGE})
    await c.answer("two")
    assert [one.outcome for one in await c.ended()] == [Outcome.OK] * 2


@pytest.mark.parametrize("begun", [True, False])
async def test_what_runs_when_the_connection_ends_is_closed_and_counted(connect: Opens, *, begun: bool) -> None:
    c = connect()
    await c.open()
    await c.ask()
    if begun:
        await c.says("response.created", response={"id": "one"})
        await c.says("response.audio.delta", response_id="one", delta=SOUND)
    (one,) = await c.ended()
    (attempt,) = one.attempts
    assert (one.outcome, attempt.outcome) == (Outcome.DISCONNECTED, Outcome.DISCONNECTED)
    assert attempt.usage.estimated
    assert attempt.usage.audio_completion_tokens == (10 if begun else 0)


@pytest.mark.parametrize(
    ("left", "outcome", "kind"),
    [(True, Outcome.DISCONNECTED, None), (False, Outcome.ERROR, ErrorClass.CONNECTION)],
    ids=["client left", "not reached"],
)
async def test_a_connection_that_the_provider_never_answered(
    connect: Opens, *, left: bool, outcome: Outcome, kind: ErrorClass | None
) -> None:
    c = connect()
    await c.open()
    if left:
        c.metered.left()
    assert await c.ended() == []
    (session,) = c.h.settlements
    (attempt,) = session.attempts
    assert attempt.outcome is outcome
    assert (None if attempt.error is None else attempt.error.kind) is kind


async def test_before_admission_only_what_is_asked_is_kept(connect: Opens) -> None:
    c = connect(Endpoint.RESPONSES)
    assert await c.metered.received({"type": "session.update"}) is None
    assert await c.ask(model="other-name", input="hi") is None
    assert await c.says("response.created", response={"id": "x"}) is None
    assert c.metered.kept_to_model({**CALLED, "model": "x"}) is None
    c.metered.close()
    assert c.gate.contexts == []
    data = {"first_message": "as it came"}
    denial = await c.open(data)
    # LiteLLM has found the connection's model in it; another one is refused when the deployment is known.
    assert denial is not None
    assert denial.code == "model_not_allowed"
    assert json.loads(data["first_message"]) == {**CALLED, "input": "hi"}
    (one,) = await c.ended()
    assert (one.outcome, one.attempts) == (Outcome.DENIED, ())


async def test_a_deployment_that_litellm_changes_before_the_provider_answers_is_the_responses(connect: Opens) -> None:
    c = connect(Endpoint.RESPONSES)
    await c.ask(model="talk")
    assert await c.open({}) is None
    await c.session.begin(OTHER, gateway=True)
    assert await c.metered.chosen() is None
    await c.answer("one")
    (one,) = await c.ended()
    assert one.attempts[-1].deployment.id == "talk-2"


@pytest.mark.parametrize("place", ["session", "response", "flat"])
async def test_an_event_that_names_another_model_ends_the_connection(connect: Opens, place: str) -> None:
    c = connect()
    await c.open()
    event = {
        "session": {"type": "session.update", "session": {"model": "dear"}},
        "response": {**CALLED, "response": {"model": "dear"}},
        "flat": {**CALLED, "model": "dear"},
    }[place]
    denial = await c.metered.received(event)
    assert denial is not None
    assert (denial.status, denial.param) == (403, "model")
    assert "'talk'" in denial.message
    for own in ("talk", "gpt-realtime", "openai/gpt-realtime"):
        assert await c.metered.received({"type": "session.update", "session": {"model": own}}) is None


# -- what the client is told ------------------------------------------------------------------------------------------


class Ends:
    """Both ends of a websocket: what the client sends next, and what it has been sent."""

    def __init__(self, *messages: Mapping[str, Any]) -> None:
        self.messages = [dict(message) for message in messages]
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> Any:
        return self.messages.pop(0) if self.messages else {"type": "websocket.disconnect", "code": 1000}

    async def send(self, message: Any) -> None:
        self.sent.append(dict(message))

    @property
    def kinds(self) -> list[str]:
        return [message["type"].removeprefix("websocket.") for message in self.sent]


def text(event: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": json.dumps(event)}


async def accepted(c: Connection, *messages: Mapping[str, Any]) -> tuple[Ends, Any]:
    """Return both ends of a connection that the application has accepted."""
    ends = Ends(*messages)
    watch = socket_watch.SocketWatch(c.call, ends.receive, ends.send, silent_sockets.SilentSockets())
    await watch.send({"type": "websocket.accept"})
    return ends, watch


@pytest.mark.parametrize(("how", "code", "close"), [("deny", "no_more", 1008), ("refuse", "not_here", 1013)])
async def test_a_denied_response_ends_the_connection_with_an_event_that_says_why(
    connect: Opens, how: str, code: str, close: int
) -> None:
    c = connect()
    await c.open()
    ends, watch = await accepted(c, text({**CALLED, "instructions": how}), text(CALLED))
    # The application hears that the client is gone; what the client sent is not passed on.
    assert (await watch.receive())["type"] == "websocket.disconnect"
    assert ends.kinds == ["accept", "send", "close"]
    event = json.loads(ends.sent[1]["text"])
    assert (event["type"], event["error"]["code"]) == ("error", code)
    assert (ends.sent[2]["code"], ends.sent[2]["reason"]) == (close, code)
    await watch.send({"type": "websocket.send", "text": "{}"})
    assert len(ends.sent) == 3
    (one,) = await c.ended()
    assert one.denial is not None or one.attempts[-1].error.kind is ErrorClass.REFUSED


async def test_a_response_of_the_providers_own_that_is_denied_is_not_passed_on(connect: Opens) -> None:
    c = connect()
    await c.open()
    ends, watch = await accepted(c)
    for name in "abcd":
        for type_ in ("response.created", "response.done"):
            response = {"id": name, "usage": USAGE}
            await watch.send({"type": "websocket.send", "text": json.dumps({"type": type_, "response": response})})
    events = [json.loads(message["text"])["type"] for message in ends.sent if "text" in message]
    assert events == ["response.created", "response.done"] * 3 + ["error"]
    assert ends.kinds[-1] == "close"


async def test_what_cannot_be_read_is_not_passed_on_and_the_client_hears_of_it(connect: Opens) -> None:
    c = connect()
    await c.open()
    odd = [{"type": "websocket.receive", "bytes": b"x"}, {"type": "websocket.receive", "text": "[["}]
    ends, watch = await accepted(c, *odd, {"type": "websocket.receive", "text": "[1]"}, text({"type": "unheard.of"}))
    # JSON that is no event, and events that nothing is known of, are the provider's to judge.
    assert (await watch.receive())["text"] == "[1]"
    assert json.loads((await watch.receive())["text"]) == {"type": "unheard.of"}
    assert [json.loads(message["text"])["error"]["code"] for message in ends.sent[1:]] == ["invalid_json"] * 2


async def test_a_provider_that_sends_no_events_is_passed_on(connect: Opens) -> None:
    c = connect()
    await c.open()
    ends, watch = await accepted(c)
    for message in ({"bytes": b"\x00"}, {"text": "no JSON"}, {"text": "[1]"}):
        await watch.send({"type": "websocket.send", **message})
    assert [{k: v for k, v in m.items() if k != "type"} for m in ends.sent[1:]] == [
        {"bytes": b"\x00"},
        {"text": "no JSON"},
        {"text": "[1]"},
    ]
    assert await c.ended() == []


async def test_the_handshake_is_answered_late_so_that_a_denial_has_a_status(connect: Opens) -> None:
    c = connect()
    await c.open()
    ends, watch = await accepted(c)
    assert ends.sent == []
    c.call.refuse(Denial(status=429, code="no_more", message="No more.", retry_after_s=2.0))
    await watch.send({"type": "websocket.send", "text": "{}"})
    assert ends.kinds == ["http.response.start", "http.response.body"]
    headers = dict(ends.sent[0]["headers"])
    assert (ends.sent[0]["status"], headers[b"retry-after"]) == (429, b"2")
    assert json.loads(ends.sent[1]["body"])["error"]["code"] == "no_more"
    assert watch.refused
    await watch.refuse()
    assert len(ends.sent) == 2


async def test_a_server_that_cannot_answer_a_handshake_closes_with_the_reason(connect: Opens) -> None:
    c = connect()
    await c.open()
    c.call.scope = {"type": "websocket"}
    ends, watch = await accepted(c)
    c.call.refuse(Denial(status=503, code="busy", message="Busy."))
    await watch.refuse()
    assert [(m["type"], m.get("code")) for m in ends.sent] == [("websocket.close", 1013)]


@pytest.mark.parametrize("extension", [True, False])
async def test_a_handshake_that_the_gateway_refuses_says_where_its_trace_is(connect: Opens, *, extension: bool) -> None:
    c = connect()
    c.call.trace_id = "0af7651916cd43dd8448eb211c80319c"
    if not extension:
        c.call.scope = {"type": "websocket"}
    ends = Ends()
    watch = socket_watch.SocketWatch(c.call, ends.receive, ends.send, silent_sockets.SilentSockets())
    await watch.send({"type": "websocket.close", "code": 1008})
    if not extension:
        assert ends.kinds == ["close"]
        return
    assert ends.kinds == ["http.response.start", "http.response.body"]
    assert ends.sent[0]["status"] == c.call.status == 403
    assert (b"x-pointsman-trace-id", c.call.trace_id.encode()) in ends.sent[0]["headers"]


async def test_an_answer_of_the_gateways_to_the_handshake_has_our_headers(connect: Opens) -> None:
    c = connect()
    ends = Ends()
    watch = socket_watch.SocketWatch(c.call, ends.receive, ends.send, silent_sockets.SilentSockets())
    await watch.send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"a", b"b")]})
    await watch.send({"type": "websocket.http.response.body", "body": b"no"})
    assert c.call.status == 401
    assert [name for name, _ in ends.sent[0]["headers"]] == [b"a", b"x-pointsman-request-id"]
    assert ends.sent[1]["body"] == b"no"


async def test_a_socket_that_is_not_metered_passes_everything_on(connect: Opens) -> None:
    c = connect()
    c.call.socket = None
    odd = {"type": "websocket.receive", "bytes": b"x"}
    ends, watch = await accepted(c, odd)
    assert ends.kinds == ["accept"]
    assert await watch.receive() == odd
    await watch.send({"type": "websocket.send", "text": "[["})
    watch.close()
    assert ends.sent[-1]["text"] == "[["


class Silence(Ends):
    """A client that says nothing."""

    async def receive(self) -> Any:
        await asyncio.Event().wait()


async def test_a_connection_that_has_asked_for_nothing_ends_after_a_while(connect: Opens) -> None:
    c = connect()
    ends = Silence()
    watch = socket_watch.SocketWatch(c.call, ends.receive, ends.send, silent_sockets.SilentSockets(patience_s=0.01))
    await watch.send({"type": "websocket.accept"})
    assert (await watch.receive())["type"] == "websocket.disconnect"
    assert ends.kinds == ["accept", "send", "close"]
    assert json.loads(ends.sent[1]["text"])["error"]["code"] == "silent_connection"


@pytest.mark.parametrize(("caller", "admin", "refused"), [("t", False, True), ("u", False, False), ("t", True, False)])
async def test_few_connections_of_one_caller_may_ask_for_nothing(
    connect: Opens, caller: str, *, admin: bool, refused: bool
) -> None:
    silent = silent_sockets.SilentSockets(most=1, patience_s=0.01)
    c = connect()
    c.call.caller, c.call.admin = caller, admin
    ends = Silence()
    watch = socket_watch.SocketWatch(c.call, ends.receive, ends.send, silent)
    await watch.send({"type": "websocket.accept"})
    with silent.one_of("t"):
        await watch.receive()
    assert (ends.kinds == ["http.response.start", "http.response.body"]) is refused
    assert (c.call.status == 429) is refused
    with silent.one_of(caller) as one_of_few:
        assert one_of_few


async def test_a_connection_that_is_admitted_may_be_silent(connect: Opens) -> None:
    silent = silent_sockets.SilentSockets(most=0, patience_s=0.0)
    c = connect()
    await c.open()
    ends = Ends(text({"type": "unheard.of"}))
    watch = socket_watch.SocketWatch(c.call, ends.receive, ends.send, silent)
    await watch.send({"type": "websocket.accept"})
    assert json.loads((await watch.receive())["text"]) == {"type": "unheard.of"}


@pytest.mark.parametrize("answered", [True, False])
async def test_a_client_that_hangs_up_leaves_its_request_where_the_provider_has_not_answered(
    connect: Opens, *, answered: bool
) -> None:
    c = connect()
    await c.open()
    if answered:
        await c.says("session.created", session={})
    _, watch = await accepted(c)
    assert (await watch.receive())["type"] == "websocket.disconnect"
    assert c.call.gone is not answered
    watch.close()
    (attempt,) = [o.attempt for o in c.session.attempts]
    assert attempt.outcome is (Outcome.OK if answered else Outcome.DISCONNECTED)
