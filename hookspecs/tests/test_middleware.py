"""The outermost ASGI layer: readiness, whether the client is there, which headers are sent, and the end of a request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from pointsman.litellm import departures
from pointsman.litellm.call import ClientCall, UnmeteredError, client_call, current_call
from pointsman.litellm.middleware import RequestMiddleware
from pointsman.types import Denial, Outcome

SCOPE = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
BODY = {"type": "http.response.body", "body": b"x", "more_body": True}
END = {"type": "http.response.body", "body": b"", "more_body": False}
DISCONNECT = {"type": "http.disconnect"}

App = Callable[[Any, Any, Any], Awaitable[None]]


class Exchange:
    """What the middleware uses of an exchange."""

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        self.headers = dict(headers or {})
        self.current = None
        self.disconnected: bool | None = None
        self.closed_with: list[int] = []
        self.changes_answers = False
        self.awaits_content = False
        self.unanswered: Denial | None = None

    def answer_headers(self) -> dict[str, str]:
        return self.headers

    def answered(self) -> None:
        """Do nothing."""

    def close(self, status_code: int) -> None:
        self.closed_with.append(status_code)


def admitted(exchange: Exchange) -> ClientCall:
    """Open the running call, as LiteLLM's callbacks do."""
    call = client_call()
    assert call is not None
    call.open(exchange, {})  # type: ignore[arg-type]  # the part of it that is used
    return call


async def no_message() -> Any:
    await asyncio.Event().wait()


async def unsent(message: Any) -> None:
    pytest.fail(f"an answer was sent: {message}")


async def ready() -> None:
    """Be ready at once."""


def nothing_open(call: ClientCall) -> None:
    """Find no attempt open."""
    assert call.running is None


async def run(app: App, receive: Callable[[], Awaitable[Any]] = no_message) -> list[dict[str, Any]]:
    """Run one request and return what the server is given."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await RequestMiddleware(app, ready, nothing_open)(dict(SCOPE), receive, send)
    return sent


def answering(exchange: Exchange, *messages: Mapping[str, Any]) -> App:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        admitted(exchange)
        for message in messages:
            await send(dict(message))

    return app


# -- readiness --------------------------------------------------------------------------------------------------------


async def test_the_first_request_waits_until_the_host_is_ready_and_later_ones_do_not_ask() -> None:
    calls: list[str] = []
    started = asyncio.Event()

    async def starting() -> None:
        calls.append("ready")
        await started.wait()

    async def app(*_: Any) -> None:
        calls.append("app")

    middleware = RequestMiddleware(app, starting, nothing_open)
    first = asyncio.create_task(middleware(dict(SCOPE), no_message, unsent))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert calls == ["ready"]
    started.set()
    await first
    await middleware(dict(SCOPE), no_message, unsent)
    assert calls == ["ready", "app", "app"]


async def test_a_host_that_cannot_start_serves_no_request() -> None:
    """And is asked again by the next one."""
    asked = 0

    async def failing() -> None:
        nonlocal asked
        asked += 1
        raise RuntimeError("no store")

    async def app(*_: Any) -> None:
        pytest.fail("the application was called")

    middleware = RequestMiddleware(app, failing, nothing_open)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no store"):
            await middleware(dict(SCOPE), no_message, unsent)
    assert asked == 2


async def test_the_lifespan_passes_untouched() -> None:
    """The host starts within the lifespan: waiting for it there would be waiting for itself."""
    seen: list[Any] = []

    async def app(*args: Any) -> None:
        seen.extend([*args, current_call.get()])

    async def never() -> None:
        pytest.fail("readiness was asked for")

    scope = {"type": "lifespan"}
    await RequestMiddleware(app, never, nothing_open)(scope, no_message, unsent)
    assert seen == [scope, no_message, unsent, None]


# -- the end of a request ---------------------------------------------------------------------------------------------


async def test_a_request_is_closed_once_with_its_status() -> None:
    exchange = Exchange()
    await run(answering(exchange, {**START, "status": 418}, BODY, END))
    assert (exchange.closed_with, exchange.disconnected) == ([418], False)
    assert current_call.get() is None


async def test_a_request_that_breaks_is_closed_all_the_same() -> None:
    exchange = Exchange()

    async def app(*_: Any) -> None:
        admitted(exchange)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await run(app)
    assert (exchange.closed_with, exchange.disconnected) == ([0], False)
    assert current_call.get() is None


async def test_a_request_that_nothing_admitted_has_an_id_and_nothing_to_close() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({**START, "status": 401})
        await send(dict(END))

    sent = await run(app)
    assert [name for name, _ in sent[0]["headers"]] == [b"content-type", b"x-pointsman-request-id"]


# -- whether the client is there --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "disconnected"),
    [([], [START, BODY, END], True), ([START], [BODY, END], True), ([START, BODY, END], [], False)],
    ids=["before the answer", "within the answer", "after the answer"],
)
async def test_a_disconnect_that_the_application_receives(
    before: list[dict[str, Any]], after: list[dict[str, Any]], disconnected: bool
) -> None:
    """After the whole answer it is how every request ends."""
    exchange = Exchange()
    gone = False

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        nonlocal gone
        call = admitted(exchange)
        for message in before:
            await send(dict(message))
        gone = True
        assert await receive() == DISCONNECT
        assert call.gone is disconnected
        for message in after:
            await send(dict(message))

    async def receive() -> Any:
        if not gone:
            await asyncio.Event().wait()
        return dict(DISCONNECT)

    await run(app, receive)
    assert (exchange.closed_with, exchange.disconnected) == ([200], disconnected)


async def test_other_messages_from_the_client_are_not_a_disconnect() -> None:
    exchange = Exchange()
    body = {"type": "http.request", "body": b"{}", "more_body": False}

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        admitted(exchange)
        assert await receive() == body
        await send(dict(START))
        await send(dict(END))

    async def receive() -> Any:
        return dict(body)

    await run(app, receive)
    assert exchange.disconnected is False


async def test_the_server_is_asked_for_a_disconnect_that_the_application_does_not_receive() -> None:
    """LiteLLM finishes a plain request for a client that has gone, without asking."""
    exchange = Exchange()

    async def receive() -> Any:
        return dict(DISCONNECT)

    await run(answering(exchange, START, END), receive)
    assert exchange.disconnected is True


@pytest.mark.parametrize("gone", [False, True])
async def test_a_server_that_says_itself_whether_its_client_is_there_is_not_made_to_wait_for_a_message(
    gone: bool,
) -> None:
    class Cycle:
        disconnected = gone

        async def receive(self) -> Any:
            raise AssertionError("asked for a message")

    exchange = Exchange()
    await run(answering(exchange, START, END), Cycle().receive)
    assert exchange.disconnected is gone


async def test_a_server_that_cannot_be_asked_has_not_reported_a_disconnect() -> None:
    async def failing() -> Any:
        raise RuntimeError("closed")

    for receive in (failing, lambda: asyncio.get_running_loop().create_future()):
        exchange = Exchange()
        await run(answering(exchange, START, END), receive)
        assert exchange.disconnected is False


# -- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["transfer-encoding", "Content-Length", "content-type", "Connection", "content-encoding"]
)
async def test_a_plugin_cannot_change_how_an_answer_is_framed(name: str) -> None:
    exchange = Exchange({name: "chunked", "x-ours": "1"})
    sent = await run(answering(exchange, START, END))
    assert sent[0]["headers"] == [(b"content-type", b"text/plain"), (b"x-ours", b"1")]


async def test_a_plugins_header_cannot_contain_another_one() -> None:
    exchange = Exchange({"x-ours": "1\r\nset-cookie: a", "x bad": "2", "X-Caf\N{LATIN SMALL LETTER E WITH ACUTE}": "3"})
    sent = await run(answering(exchange, START, END))
    assert sent[0]["headers"][1:] == [(b"x-ours", b"1  set-cookie: a")]


async def test_a_plugins_header_replaces_the_applications_and_its_limits_all_of_the_providers() -> None:
    theirs = [(b"X-Ours", b"0"), (b"X-RateLimit-Remaining-Tokens", b"5"), (b"x-other", b"1")]
    start = {**START, "headers": theirs}
    sent = await run(answering(Exchange({"x-ours": "1"}), start, END))
    assert sent[0]["headers"] == [*theirs[1:], (b"x-ours", b"1")]
    sent = await run(answering(Exchange({"x-ratelimit-limit-requests": "60"}), start, END))
    assert sent[0]["headers"] == [theirs[0], theirs[2], (b"x-ratelimit-limit-requests", b"60")]


# -- a plugin that executes the route ---------------------------------------------------------------------------------


async def test_headers_wait_until_the_executor_has_answered() -> None:
    """Some endpoints send headers and a first event before: the executor's headers are not known then."""
    exchange = Exchange({"x-raced": "no"})
    sent: list[Any] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        call = admitted(exchange)
        call.await_executor("id")
        await send(dict(START))
        await send(dict(BODY))
        assert sent == []
        exchange.headers = {"x-raced": "yes"}
        call.executor_answered()
        await send(dict(BODY))
        assert [message["type"] for message in sent] == [START["type"], BODY["type"], BODY["type"]]
        await send(dict(END))

    async def send(message: Any) -> None:
        sent.append(message)

    await RequestMiddleware(app, ready, nothing_open)(dict(SCOPE), no_message, send)
    assert sent[0]["headers"][-1] == (b"x-raced", b"yes")
    assert len(sent) == 4


async def test_headers_that_depend_on_what_answers_wait_for_content() -> None:
    """LiteLLM falls back within a stream that has had no content; then another group answers."""
    exchange = Exchange({"x-version": "1"})
    exchange.awaits_content = True
    sent: list[Any] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        admitted(exchange)
        await send(dict(START))
        await send(dict(BODY))
        assert sent == []
        exchange.headers, exchange.awaits_content = {"x-version": "2"}, False
        await send(dict(BODY))
        exchange.awaits_content = True
        await send(dict(BODY))
        assert len(sent) == 4
        await send(dict(END))

    async def send(message: Any) -> None:
        sent.append(message)

    await RequestMiddleware(app, ready, nothing_open)(dict(SCOPE), no_message, send)
    assert sent[0]["headers"][-1] == (b"x-version", b"2")
    assert len(sent) == 5


async def test_a_stream_of_nothing_is_not_held_for_ever() -> None:
    exchange = Exchange()
    exchange.awaits_content = True

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        admitted(exchange)
        await send(dict(START))
        for _ in range(30):
            await send(dict(BODY))
        assert len(sent) == 31

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await RequestMiddleware(app, ready, nothing_open)(dict(SCOPE), no_message, send)


async def test_what_waits_for_an_executor_is_sent_with_the_end_of_the_answer() -> None:
    """An error is answered without one."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        admitted(Exchange({"x-ours": "1"})).await_executor("id")
        await send({**START, "status": 500})
        await send(dict(END))

    sent = await run(app)
    assert [message["type"] for message in sent] == [START["type"], END["type"]]
    assert sent[0]["headers"][-1] == (b"x-ours", b"1")


async def test_only_the_call_that_the_plugin_stands_in_for_is_the_executors() -> None:
    """A guardrail may ask a model on behalf of the same request."""
    call = ClientCall("request", {"path": "/"})
    assert not call.is_for_executor(None)
    call.await_executor("id")
    assert call.is_for_executor("id")
    assert not call.is_for_executor("guardrail's")
    assert not call.executed
    call.executor_answered()
    assert (call.executed, call.awaits_executor) == (True, False)


async def test_an_executor_makes_the_next_attempt_after_one_that_failed_or_was_the_gateways() -> None:
    """A retry and a fallback have the same id."""
    call = ClientCall("request", {"path": "/"})
    call.await_executor("id")
    call.ask("group", None, disable_fallbacks=None)
    assert (call.is_route("group"), call.is_route("other")) == (True, False)
    call.gateway_attempts()
    assert (call.executed, call.awaits_executor) == (False, False)
    assert call.is_for_executor("id")
    call.executor_starts()
    assert call.awaits_executor


@pytest.mark.parametrize(("status", "expected"), [(429, True), (200, False)])
async def test_headers_of_an_error_are_on_errors_only(status: int, expected: bool) -> None:
    """A failed execution may be followed by an attempt of the gateway that succeeds."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        call = admitted(Exchange({"x-ours": "1"}))
        call.error_headers = {"retry-after": "7"}
        await send({**START, "status": status})
        await send(dict(END))

    sent = await run(app)
    assert ((b"retry-after", b"7") in sent[0]["headers"]) is expected


def test_an_attempt_goes_on_until_another_deployment_is_called_or_candidates_are_asked_for() -> None:
    """LiteLLM calls itself again within an attempt, with or without naming the deployment."""
    attempt = SimpleNamespace(attempt=SimpleNamespace(deployment=SimpleNamespace(id="a-1"), outcome=None))
    call = ClientCall("request", {"path": "/"})
    assert not call.continues("a-1")
    call.open(SimpleNamespace(current=attempt), {})  # type: ignore[arg-type]  # the part of it that is used
    assert call.continues("a-1")
    assert call.continues("")
    assert not call.continues("a-2")
    call.select()
    assert not call.continues("a-1")
    attempt.attempt.outcome = Outcome.OK
    assert call.running is None


# -- refusals ---------------------------------------------------------------------------------------------------------

DENIAL = Denial(status=429, code="too_much", message="Come back.", retry_after_s=2.5, headers={"x-why": "much"})
SOCKET = {"type": "websocket", "path": "/v1/realtime", "headers": []}


def refused() -> None:
    call = client_call()
    assert call is not None
    call.refuse(DENIAL)


def is_the_denial(sent: list[dict[str, Any]], kind: str = "http.response") -> None:
    start, body = sent
    headers = dict(start["headers"])
    assert (start["type"], start["status"], body["type"]) == (f"{kind}.start", 429, f"{kind}.body")
    assert headers[b"retry-after"] == b"3"
    assert headers[b"x-why"] == b"much"
    assert headers[b"content-length"] == str(len(body["body"])).encode()
    assert headers[b"x-pointsman-request-id"]
    error = {"message": "Come back.", "type": "invalid_request_error", "param": None, "code": "too_much"}
    assert json.loads(body["body"]) == {"error": error}


async def test_a_request_that_is_ended_for_its_denial_is_answered_with_it() -> None:
    async def app(*_: Any) -> None:
        refused()
        raise UnmeteredError

    is_the_denial(await run(app))


async def test_an_answer_of_another_status_is_replaced_by_the_denial() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        refused()
        for message in ({**START, "status": 500}, BODY, END):
            await send(dict(message))

    is_the_denial(await run(app))


@pytest.mark.parametrize(("status", "replaced"), [(500, True), (429, True), (200, False)])
async def test_an_error_without_an_answer_of_a_provider_is_replaced_by_the_plugins_reason(
    status: int, replaced: bool
) -> None:
    """The time of the gateway's own error is kept where the plugin names none; an answer of a fallback stays."""
    exchange = Exchange({"x-pointsman-request-id": "request"})
    exchange.unanswered = replace(DENIAL, retry_after_s=None)
    start = {**START, "status": status, "headers": [(b"retry-after", b"3")]}
    sent = await run(answering(exchange, start, BODY, END))
    assert exchange.closed_with == [429 if replaced else 200]
    if replaced:
        is_the_denial(sent)
    else:
        assert [message.get("body") for message in sent] == [None, b"x", b""]


async def test_an_answer_of_the_denial_s_status_keeps_its_headers() -> None:
    """The text is the denial's: the gateway's own may lack the code."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        refused()
        theirs = [(b"Content-Length", b"1"), (b"content-encoding", b"gzip"), (b"x-call", b"7"), (b"retry-after", b"9")]
        for message in ({**START, "status": 429, "headers": theirs}, BODY, END):
            await send(dict(message))

    sent = await run(app)
    is_the_denial(sent)
    headers = [name.lower() for name, _ in sent[0]["headers"]]
    assert len(headers) == len(set(headers))
    assert b"x-call" in headers
    assert b"content-encoding" not in headers


@pytest.mark.parametrize(
    ("path", "anthropic"),
    [
        ("/v1/messages", True),
        ("/v1/messages/count_tokens", True),
        ("/anthropic/v1/messages", True),
        ("/v1/chat/completions", False),
        ("/v1/threads/messages/messages", False),
    ],
)
@pytest.mark.parametrize("answers", [True, False])
async def test_a_denial_has_the_shape_of_the_routes_errors(path: str, anthropic: bool, answers: bool) -> None:
    """Whether the gateway answers by itself or the request is ended."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        refused()
        if not answers:
            raise UnmeteredError
        for message in ({**START, "status": 429}, BODY, END):
            await send(dict(message))

    document = json.loads((await talk(app, {"type": "http", "path": path, "headers": []}))[1]["body"])
    assert document.get("type") == ("error" if anthropic else None)
    assert document["error"]["type"] == ("rate_limit_error" if anthropic else "invalid_request_error")
    assert (document["error"]["code"], document["error"]["message"]) == ("too_much", "Come back.")


async def test_an_answer_that_has_started_stays() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(dict(START))
        refused()
        raise UnmeteredError

    assert [message["status"] for message in await run(app)] == [200]


async def talk(app: App, scope: Mapping[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await RequestMiddleware(app, ready, nothing_open)(dict(scope), no_message, send)
    return sent


async def test_a_handshake_is_answered_with_the_denial() -> None:
    """Whether it is ended, or the application closes it; once."""

    async def ended(*_: Any) -> None:
        refused()
        raise UnmeteredError

    async def closed(_scope: Any, _receive: Any, send: Any) -> None:
        refused()
        await send({"type": "websocket.close", "code": 1000})
        await send({"type": "websocket.close", "code": 1000})

    answerable = {**SOCKET, "extensions": {"websocket.http.response": {}}}
    for app in (ended, closed):
        is_the_denial(await talk(app, answerable), "websocket.http.response")
        assert await talk(app, SOCKET) == [{"type": "websocket.close", "code": 1008, "reason": "too_much"}]


@pytest.mark.parametrize("meter", [False, True])
@pytest.mark.parametrize("status", [None, 401])
async def test_a_handshake_that_the_gateway_refuses_leads_to_its_trace(meter: bool, status: int | None) -> None:
    """Closed before it is accepted, or answered with a status; where the server takes no headers, it is closed."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        call = client_call()
        assert call is not None
        call.trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
        if status is None:
            await send({"type": "websocket.close", "code": 1008, "reason": "no"})
        else:
            headers = [(b"a", b"b")]
            await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": b"no"})

    statuses = []

    async def talked(scope: Any) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        meters: Any = (lambda _: SimpleNamespace(close=lambda: None)) if meter else None
        ended: Any = lambda call: statuses.append(call.status)  # noqa: E731
        await RequestMiddleware(app, ready, nothing_open, meter=meters, not_admitted=ended)(scope, no_message, send)
        return sent

    start, body = await talked({**SOCKET, "extensions": {"websocket.http.response": {}}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", status or 403)
    headers = dict(start["headers"])
    assert headers[b"x-pointsman-trace-id"] == b"4bf92f3577b34da6a3ce929d0e0e4736"
    assert headers[b"x-pointsman-request-id"]
    assert body["type"] == "websocket.http.response.body"
    assert statuses == [status or 403]
    if status is None:
        assert await talked(SOCKET) == [{"type": "websocket.close", "code": 1008, "reason": "no"}]


async def test_a_websocket_that_is_open_is_closed_for_its_denial() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        refused()
        raise UnmeteredError

    sent = await talk(app, {**SOCKET, "extensions": {"websocket.http.response": {}}})
    assert sent[1:] == [{"type": "websocket.close", "code": 1008, "reason": "too_much"}]


class NotMetered:
    """A socket on which nothing is asked."""

    connected = False

    async def received(self, _: Any) -> None:
        """Let it pass."""

    async def sent(self, _: Any) -> None:
        """Let it pass."""

    def left(self) -> None:
        """Note nothing."""

    def close(self) -> None:
        """End nothing."""


async def metered(app: App, scope: Mapping[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = RequestMiddleware(app, ready, nothing_open, meter=lambda _: cast("Any", NotMetered()))
    await middleware(dict(scope), no_message, send)
    return sent


async def test_a_metered_handshake_is_answered_when_it_is_decided() -> None:
    """The application accepts before it asks for admission: a denial still has its status, an error event none of LiteLLM's."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        refused()
        await send({"type": "websocket.send", "text": "{}"})
        await send({"type": "websocket.close", "code": 1011})

    is_the_denial(
        await metered(app, {**SOCKET, "extensions": {"websocket.http.response": {}}}), "websocket.http.response"
    )


async def test_a_metered_websocket_says_why_it_is_closed() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept", "headers": [(b"a", b"b")]})
        await send({"type": "websocket.send", "text": "{}"})
        refused()
        for _ in range(2):
            await send({"type": "websocket.close", "code": 1011})

    accept, text, error, close = await metered(app, SOCKET)
    assert dict(accept["headers"])[b"a"] == b"b"
    assert dict(accept["headers"])[b"x-pointsman-request-id"]
    assert text["text"] == "{}"
    said = json.loads(error["text"])
    assert (said["type"], said["status"], said["error"]["code"]) == ("error", 429, "too_much")
    assert said["headers"]["retry-after"] == "3"
    assert close == {"type": "websocket.close", "code": 1008, "reason": "too_much"}


# -- clients that leave before the answer -------------------------------------------------------------------------------

REQUEST = {"type": "http.request", "body": b"{}", "more_body": False}


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departures, "LOOK_S", 0.01)


class Server:
    """What uvicorn's ``receive`` does: the body once, then nothing until the client has gone."""

    def __init__(self, *, leaves: bool) -> None:
        self._body = True
        self._gone = asyncio.Event()
        if leaves:
            self._gone.set()

    async def receive(self) -> Any:
        if self._body:
            self._body = False
            return REQUEST
        await self._gone.wait()
        return DISCONNECT


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("patience_s", [0.0, 0.1])
async def test_a_request_that_is_never_answered_ends_when_its_client_has_left(patience_s: float) -> None:
    exchange = Exchange()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        admitted(exchange)
        await asyncio.Event().wait()

    middleware = RequestMiddleware(app, ready, nothing_open, patience_s=patience_s)
    async with asyncio.timeout(10.0):
        await middleware(dict(SCOPE), Server(leaves=True).receive, unsent)
    assert (exchange.disconnected, exchange.closed_with) == (True, [0])
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]  # a test runs in a task


@pytest.mark.parametrize("size", [10, 200_000])
async def test_uvicorn_says_that_a_client_has_gone_also_after_a_large_body(size: int) -> None:
    looks: list[bool] = []
    read, done = asyncio.Event(), asyncio.Event()

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        try:
            while (await receive()).get("more_body"):
                pass
            read.set()
            for _ in range(200):
                looks.append(departures.has_gone(receive))
                if looks[-1]:
                    break
                await asyncio.sleep(0.01)
        finally:
            done.set()

    loop = asyncio.get_running_loop()
    config = uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_level="critical")
    config.load()
    protocol = partial(config.http_protocol_class, config=config, server_state=ServerState(), app_state={})
    server = await loop.create_server(protocol, "127.0.0.1", 0)
    async with asyncio.timeout(20.0):
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
        await asyncio.sleep(0.05)
        writer.write(b"x" * size)
        await read.wait()
        await asyncio.sleep(0.05)
        writer.close()
        await done.wait()
    server.close()
    assert (looks[0], looks[-1]) == (False, True)


@pytest.mark.usefixtures("often")
async def test_an_answer_that_comes_in_time_is_a_whole_answer() -> None:
    exchange = Exchange()
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        admitted(exchange)
        await asyncio.sleep(0.1)
        await send(START)
        await send(END)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    middleware = RequestMiddleware(app, ready, nothing_open, patience_s=5.0)
    await middleware(dict(SCOPE), Server(leaves=True).receive, send)
    assert (sent, exchange.closed_with) == ([START["type"], END["type"]], [200])


@pytest.mark.usefixtures("often")
async def test_a_client_that_stays_is_waited_for() -> None:
    exchange = Exchange()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        admitted(exchange)
        await asyncio.Event().wait()

    middleware = RequestMiddleware(app, ready, nothing_open, patience_s=0.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await middleware(dict(SCOPE), Server(leaves=False).receive, unsent)
    assert (exchange.disconnected, len(exchange.closed_with)) == (False, 1)
