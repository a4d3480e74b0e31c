"""How many Python functions of the spine a proxy calls for a request: the same on every machine, unlike its time."""

from __future__ import annotations

import itertools
import json
import os
import signal
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pointsman
from pointsman.testing.proxy import ProxyServer

MESSAGES: Final = [{"role": "user", "content": "Say something."}]
#: One request for each kind of answer: its path and its body.
REQUESTS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "chat": ("/v1/chat/completions", {"model": "good", "messages": MESSAGES}),
    "chat, streamed": ("/v1/chat/completions", {"model": "good", "messages": MESSAGES, "stream": True}),
    "messages": ("/v1/messages", {"model": "good", "messages": MESSAGES, "max_tokens": 50}),
    "responses": ("/v1/responses", {"model": "good", "input": "Say something."}),
    "embeddings": ("/v1/embeddings", {"model": "small", "input": "Say something."}),
}
#: Runs in the proxy: from one signal to the other it counts, and notes the count when a request arrives.
_COUNTER: Final = """
import json, os, signal, sys
package, found = os.environ["OWN_PACKAGE"], os.environ["OWN_CALLS"]
count, marks = 0, []
def note(frame, event, _):
    global count
    if event == "call" and frame.f_code.co_filename.startswith(package):
        if frame.f_code.co_qualname == "ClientCall.__init__":
            marks.append(count)
        count += 1
def begin(*_):
    marks.clear()
    sys.setprofile(note)
def end(*_):
    sys.setprofile(None)
    with open(found + ".new", "w") as file:
        json.dump(marks, file)
    os.rename(found + ".new", found)
signal.signal(signal.SIGUSR1, begin)
signal.signal(signal.SIGUSR2, end)
"""
#: Requests that are counted, and those before them.
_COUNTED: Final = 30
_WARM: Final = 10
_WAIT_S: Final = 30.0


def counting(config: Mapping[str, Any], directory: Path) -> ProxyServer:
    """Return a proxy, not started, that counts when it is told to."""
    library = directory / "counter"
    library.mkdir(parents=True)
    (library / "sitecustomize.py").write_text(_COUNTER, encoding="utf-8")
    env = {
        "OWN_PACKAGE": str(Path(pointsman.__file__).parent) + os.sep,
        "OWN_CALLS": str(directory / "calls.json"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": None,
    }
    return ProxyServer(config, directory, env=env, python_path=(library,))


def per_request(proxy: ProxyServer, path: str, body: Mapping[str, Any]) -> int:
    """Return the calls from one request to the next, what follows its answer included; the median.

    What is done again every second, such as reading prices, is in few of them.

    Args:
        proxy: One that counts, started.
        path: The path.
        body: The request.
    """
    found = proxy.directory / "calls.json"
    found.unlink(missing_ok=True)
    with proxy.client() as client:

        def ask() -> None:
            client.post(path, json=dict(body)).raise_for_status()

        for _ in range(_WARM):
            ask()
        os.kill(proxy.pid, signal.SIGUSR1)
        for _ in range(_COUNTED):
            ask()
        os.kill(proxy.pid, signal.SIGUSR2)
    until = time.monotonic() + _WAIT_S
    while not found.exists() and time.monotonic() < until:
        time.sleep(0.05)
    marks = json.loads(found.read_text(encoding="utf-8"))
    return round(statistics.median(after - before for before, after in itertools.pairwise(marks)))
