"""Streams that the application opens with comments, before there is an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.litellm import early_streams
from pointsman.litellm.call import ClientCall, EndedError, client_call
from pointsman.litellm.middleware import RequestMiddleware
from pointsman.types import Denial, Endpoint, Reply

SCOPE = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
PING = {"type": "http.response.body", "body": b": ping\n\n", "more_body": True}
FAILURE = b'data: {"error": {"message": "gateway", "type": "api_error", "param": null, "code": "502"}}\n\n'
DENIAL = Denial(status=503, code="not_ready", message="It is cold.")

App = Callable[[Any, Any, Any], Awaitable[None]]


def start(kind: bytes = b"text/event-stream; charset=utf-8") -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}


def body(content: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


class Exchange:
    """What the middleware uses of an exchange."""

    def __init__(self, endpoint: Endpoint = Endpoint.CHAT) -> None:
        self.ctx = SimpleNamespace(endpoint=endpoint, stream=True)
        self.current = None
        self.disconnected: bool | None = None
        self.closed_with: list[int] = []
        self.changes_answers = False
        self.awaits_content = False
        self.unanswered: Denial | None = None

    def answer_headers(self) -> dict[str, str]:
        return {}

    def answered(self) -> None:
        """Do nothing."""

    def close(self, status_code: int) -> None:
        self.closed_with.append(status_code)


async def run(app: App, sent: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Run one request and return what the server is given, which is also in ``sent`` at once."""
    sent = [] if sent is None else sent

    async def ready() -> None:
        """Be ready at once."""

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await RequestMiddleware(app, ready, lambda _: None)(dict(SCOPE), receive, send)
    return sent


def opened(exchange: Exchange) -> ClientCall:
    call = client_call()
    assert call is not None
    call.open(exchange, {})  # type: ignore[arg-type]  # the part of it that is used
    return call


def text(sent: list[dict[str, Any]]) -> str:
    return b"".join(message.get("body", b"") for message in sent).decode()


async def test_comments_are_sent_at_once_though_the_headers_depend_on_what_answers() -> None:
    exchange, seen = Exchange(), list[int]()
    exchange.awaits_content = True
    sent: list[dict[str, Any]] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        opened(exchange)
        for message in (start(), PING, dict(PING), body(b"data: {}\n\n"), body(b"", more=False)):
            await send(message)
            seen.append(len(sent))

    await run(app, sent)
    assert seen == [0, 2, 3, 4, 5]
    assert exchange.closed_with == [200]


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES])
async def test_a_denial_takes_the_place_of_the_gateways_error(endpoint: Endpoint) -> None:
    exchange = Exchange(endpoint)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        call = opened(exchange)
        await send(start())
        await send(dict(PING))
        call.refuse(DENIAL)
        await send(body(FAILURE))
        await send(body(b"data: [DONE]\n\n", more=False))

    sent = await run(app)
    comment, _, event = text(sent).partition("\n\n")
    assert comment == ": ping"
    assert event.startswith("event: error\n") is (endpoint is not Endpoint.CHAT)
    document = json.loads(event.rpartition("data: ")[2])
    assert document["error"]["message"] == "It is cold."
    assert document.get("type") == (None if endpoint is Endpoint.CHAT else "error")
    assert [message.get("more_body") for message in sent] == [None, True, False]
    assert exchange.closed_with == [503]


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.MESSAGES])
@pytest.mark.parametrize("refused", [True, False])
async def test_an_error_has_the_plugins_reason_and_the_words_of_the_api(endpoint: Endpoint, refused: bool) -> None:
    exchange = Exchange(endpoint)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        opened(exchange)
        await send(start())
        await send(dict(PING))
        exchange.unanswered = DENIAL if refused else None
        await send(body(FAILURE))
        await send(body(b"data: [DONE]\n\n", more=False))

    sent = text(await run(app))
    assert ("It is cold." in sent, "gateway" in sent) == (refused, not refused)
    assert ("event: error" in sent) is (endpoint is Endpoint.MESSAGES)
    assert exchange.closed_with == [503 if refused else 502]


@pytest.mark.parametrize("refused", [True, False])
@pytest.mark.parametrize(
    ("endpoint", "document", "status"),
    [
        (Endpoint.MESSAGES, {"type": "error", "error": {"type": "overloaded_error", "message": "gateway"}}, 529),
        (Endpoint.MESSAGES, {"type": "error", "error": {"type": "api_error", "message": "gateway"}}, 500),
        (Endpoint.RESPONSES, {"type": "error", "code": "x", "error": {"message": "gateway", "code": "429"}}, 429),
    ],
)
async def test_an_error_that_the_gateway_writes_in_the_words_of_the_api_is_left_as_it_is(
    endpoint: Endpoint, document: dict[str, Any], status: int, refused: bool
) -> None:
    exchange = Exchange(endpoint)
    failure = f"event: error\ndata: {json.dumps(document)}\n\n"

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        opened(exchange)
        await send(start())
        await send(dict(PING))
        exchange.unanswered = DENIAL if refused else None
        await send(body(failure.encode()))
        await send(body(b"", more=False))

    sent = text(await run(app))
    assert ("It is cold." in sent) is refused
    assert sent.endswith(failure) is not refused
    assert exchange.closed_with == [503 if refused else status]


async def test_an_error_in_the_middle_of_an_answer_is_the_gateways_own() -> None:
    exchange = Exchange(Endpoint.MESSAGES)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        opened(exchange)
        for message in (start(), dict(PING), body(b"event: x\ndata: {}\n\n"), body(FAILURE, more=False)):
            await send(message)

    assert text(await run(app)).endswith(FAILURE.decode())
    assert exchange.closed_with == [200]


@pytest.mark.parametrize("denied", [True, False])
async def test_a_request_that_is_ended_after_comments_has_its_last_events(denied: bool) -> None:
    exchange = Exchange()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        call = opened(exchange)
        await send(start())
        await send(dict(PING))
        if denied:
            call.refuse(DENIAL)
        else:
            call.answer(Reply(pieces=({"choices": []},)))
        raise EndedError

    sent = await run(app)
    assert text(sent).endswith("data: [DONE]\n\n") is not denied
    assert ("not_ready" in text(sent), '{"choices":[]}' in text(sent)) == (denied, not denied)
    assert sent[-1]["more_body"] is False
    assert exchange.closed_with == [503 if denied else 200]


async def test_what_only_looks_like_a_comment_is_the_answer() -> None:
    exchange = Exchange()
    exchange.awaits_content = True

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        opened(exchange)
        await send(start(b"text/plain"))
        await send(dict(PING))
        exchange.awaits_content = False
        await send(body(b"", more=False))

    assert [message["type"] for message in await run(app)] == ["http.response.start"] + ["http.response.body"] * 2
    assert not early_streams.is_comment(body(b": a\n\ndata: {}\n\n"))
    assert not early_streams.is_comment(body(b": a"))
    assert not early_streams.is_comment(body(b""))


@pytest.mark.parametrize(
    ("error", "status"),
    [({"code": "429"}, 429), ({"code": 404}, 404), ({"code": "200"}, 500), ({"code": "x"}, 500), ({}, 500)],
)
def test_the_status_of_an_error(error: dict[str, Any], status: int) -> None:
    assert early_streams.status_of(error) == status


@pytest.mark.parametrize(
    "content",
    [b'data: {"error":', b'data: {"error": 1}\n\n', b"data: {}\n\n", b"", FAILURE[5:], b"event: error\ndata: []\n\n"],
)
def test_what_is_no_error(content: bytes) -> None:
    assert early_streams.error_of(body(content)) is None
