"""What an HTTP sink says when nobody takes its events."""

from __future__ import annotations

import socket

import pytest

from pointsman.testing.provider import Behaviour, UpstreamServer
from pointsman_billing.sinks.base import SinkUnavailable
from pointsman_billing.sinks.http import HttpPoster, HttpSinkConfig

CONFIG = {"timeout_s": 0.2}


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
