"""A start does not stop the event loop: workers start while others serve, and the loop's pauses are reported."""

from __future__ import annotations

import asyncio
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from pointsman.testing import Harness
from pointsman_billing.plugin import plugin as billing
from pointsman_canary.plugin import plugin as canary
from pointsman_signals.plugin import plugin as signals

PLUGINS: list[tuple[Any, dict[str, Any]]] = [
    (signals, {}),
    (canary, {"webhooks": {"ci": {"url": "https://ci.example.com"}}}),
    (billing, {"sinks": [{"cloudevents": {"url": "https://bills.example.com"}}]}),
]


@pytest.mark.parametrize(
    ("plugins", "host"),
    [
        *(pytest.param([plugin], {}, id=plugin[0].name) for plugin in PLUGINS),
        pytest.param([], {"notify": [{"url": "https://ops.example.com"}]}, id="notices"),
    ],
)
async def test_certificates_are_read_in_a_thread(
    plugins: list[tuple[Any, dict[str, Any]]], host: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An HTTP client reads the certificates of all authorities when it is made: 50 to 150 ms."""
    made_in: list[int] = []
    make = ssl.create_default_context
    loop, made = asyncio.get_running_loop(), asyncio.Event()

    def noting(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        made_in.append(threading.get_ident())
        loop.call_soon_threadsafe(made.set)
        return make(*args, **kwargs)

    monkeypatch.setattr(ssl, "create_default_context", noting)
    async with Harness(plugins, path=tmp_path, host=host) as worker:
        await worker.request()
        await worker.settled()
        async with asyncio.timeout(30):
            await made.wait()
        assert threading.get_ident() not in made_in
