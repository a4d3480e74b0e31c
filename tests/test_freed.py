"""What a request leaves in memory: nothing of ours waits for the garbage collector, so prompts are freed with their request."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from own_calls import REQUESTS
from rig import deployment

from pointsman.testing.provider import UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(600)]

_MESSAGES: Final = [{"role": "user", "content": "Say something."}]
#: A race beside what the others ask for: its attempts are tasks of their own.
ASKED: Final = {
    **REQUESTS,
    "race": ("/v1/chat/completions", {"model": "raced", "messages": _MESSAGES}),
    "race, streamed": ("/v1/chat/completions", {"model": "raced", "messages": _MESSAGES, "stream": True}),
}
#: Runs in the proxy: from one signal to the other nothing is collected; then it notes what only the collector would free.
_COLLECTOR: Final = """
import collections, gc, json, os, signal
found = os.environ["LEFT_BEHIND"]
def begin(*_):
    gc.collect()
    gc.freeze()
    gc.disable()
    open(found + ".begun", "w").close()
def end(*_):
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    kinds = collections.Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage)
    gc.garbage.clear()
    gc.enable()
    with open(found + ".new", "w") as file:
        json.dump(kinds, file)
    os.rename(found + ".new", found)
signal.signal(signal.SIGUSR1, begin)
signal.signal(signal.SIGUSR2, end)
"""
_REQUESTS: Final = 10
#: Settlements, deliveries and what LiteLLM does after an answer, in seconds.
_AFTER_S: Final = 1.5
_WAIT_S: Final = 60.0


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyServer]:
    directory = tmp_path_factory.mktemp("freed")
    library = directory / "collector"
    library.mkdir()
    (library / "sitecustomize.py").write_text(_COLLECTOR, encoding="utf-8")
    with UpstreamServer() as upstream:
        config = {
            "model_list": [
                deployment(upstream.url, "good", "gpt-4o-mini", id_="good-1"),
                deployment(upstream.url, "raced", "gpt-4o-mini", id_="raced-1"),
                deployment(upstream.url, "raced", "gpt-4o-mini", id_="raced-2"),
                deployment(upstream.url, "small", "text-embedding-3-small", id_="small-1"),
            ],
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
            "pointsman": {
                "store": {"backend": "disk", "path": str(directory / "store")},
                "plugins": [
                    {"quota": {"tenants": [{"id": "everyone"}], "default_tenant": "everyone"}},
                    {"signals": {}},
                    {"racing": {"groups": {"raced": {}}}},
                    {"balance": {"tactic": "adaptive"}},
                    {"billing": {"sinks": [{"ndjson": {"path": str(directory / "bills.ndjson")}}]}},
                ],
            },
        }
        env = {"LEFT_BEHIND": str(directory / "left.json"), "OTEL_EXPORTER_OTLP_ENDPOINT": None}
        with ProxyServer(config, directory / "proxy", env=env, python_path=(library,)) as running:
            yield running


@pytest.mark.parametrize("name", ASKED)
def test_a_request_leaves_nothing_of_ours_for_the_garbage_collector(proxy: ProxyServer, name: str) -> None:
    path, body = ASKED[name]
    found = proxy.directory.parent / "left.json"
    found.unlink(missing_ok=True)
    begun = found.with_name("left.json.begun")
    begun.unlink(missing_ok=True)
    with proxy.client() as client:

        def ask() -> None:
            client.post(path, json=dict(body)).raise_for_status()

        ask()
        time.sleep(_AFTER_S)
        os.kill(proxy.pid, signal.SIGUSR1)
        _await(begun)
        for _ in range(_REQUESTS):
            ask()
        time.sleep(_AFTER_S)
        os.kill(proxy.pid, signal.SIGUSR2)
    _await(found)
    left = json.loads(found.read_text(encoding="utf-8"))
    # Some may have another reason, such as a task that waits for its turn; what each request leaves is counted at least once for each.
    ours = {kind: count for kind, count in left.items() if kind.startswith("pointsman") and count >= _REQUESTS // 2}
    assert ours == {}


def _await(file: Path) -> None:
    until = time.monotonic() + _WAIT_S
    while not file.exists():
        assert time.monotonic() < until, "the proxy does not answer the signal"
        time.sleep(0.05)
