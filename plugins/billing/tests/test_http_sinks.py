"""What an HTTP sink says when its receiver does not take the events: never that they were taken, or are at fault."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pointsman.testing.provider import Behaviour, UpstreamServer
from pointsman_billing.sinks.base import SinkUnavailable
from pointsman_billing.sinks.http import HttpPoster, HttpSinkConfig

CONFIG = {"timeout_s": 0.2}
BODY = "[]"


async def said_by(base: str) -> str:
    """Post to a path that may be secret; return the error."""
    poster = HttpPoster(
        f"{base}/v1/chat/completions?hidden",
        {"authorization": "Bearer x"},
        HttpSinkConfig.model_validate({"url": base, **CONFIG}),
    )
    try:
        with pytest.raises(SinkUnavailable) as failed:
            await poster.post('{"model": "m", "messages": [{"role": "user", "content": "x"}]}', "application/json")
    finally:
        await poster.close()
    return str(failed.value)


async def test_an_error_says_where_and_why_but_no_path() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        base = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert await said_by(base) == f"{base}: no answer within 0.2 s"
    assert await said_by(base) == f"{base}: the connection failed: ConnectError"
    with UpstreamServer() as upstream:
        upstream.behave("m", Behaviour(error_ratios={500: 1.0}))
        assert await said_by(upstream.url) == f"{upstream.url}: HTTP 500"


@contextmanager
def receiver(answer: bytes) -> Iterator[str]:
    """Run a receiver that reads a request, gives one answer and hangs up; yield its place."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                received = more = connection.recv(65_536)
                # What is left unread when it hangs up would reset the connection.
                while more and received.startswith(b"POST ") and not received.endswith(BODY.encode()):
                    more = connection.recv(65_536)
                    received += more
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("scheme", "answer", "why", "retry_after_s"),
    [
        ("http", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", "RemoteProtocolError", None),
        ("http", b"HTTP/1.1 200 OK\r\ncontent-le", "RemoteProtocolError", None),
        ("http", b"HTTP/1.1 103 Early Hints\r\n\r\n", "RemoteProtocolError", None),
        ("http", b"not HTTP\r\n\r\n", "RemoteProtocolError", None),
        ("http", b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc", "DecodingError", None),
        ("https", b"HTTP/1.1 200 OK\r\n\r\n", "ConnectError", None),
        ("http", b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", "HTTP 302", None),
        ("http", b"HTTP/1.1 429 Slow\r\nretry-after: 120\r\ncontent-length: 0\r\n\r\n", "HTTP 429", 120.0),
        (
            "http",
            b"HTTP/1.1 503 Wait\r\ndate: Tue, 01 Dec 2026 10:00:00 GMT\r\nretry-after: Tue, 01 Dec 2026 10:00:30 GMT\r\n\r\n",
            "HTTP 503",
            30.0,
        ),
    ],
)
async def test_events_are_sent_again_after_any_answer_that_does_not_take_or_refuse_them(
    scheme: str, answer: bytes, why: str, retry_after_s: float | None
) -> None:
    with receiver(answer) as place:
        poster = HttpPoster(f"{scheme}://{place}/x", {}, HttpSinkConfig.model_validate({"url": f"{scheme}://{place}"}))
        with pytest.raises(SinkUnavailable, match=f"{place}.*{why}") as failed:
            await poster.post(BODY, "application/json")
        await poster.close()
    assert failed.value.retry_after_s == retry_after_s


async def test_a_receiver_whose_name_is_not_known_is_tried_again() -> None:
    config = HttpSinkConfig.model_validate({"url": "http://receiver.invalid"})
    poster = HttpPoster("http://receiver.invalid/x", {}, config)
    with pytest.raises(SinkUnavailable, match="ConnectError"):
        await poster.post(BODY, "application/json")
    await poster.close()
