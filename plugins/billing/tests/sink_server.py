"""A billing service over real HTTP that can be as unpleasant as the network: late, failing, hanging up, forgetful.

It takes CloudEvents batches and Lago batches, and counts what it has *accepted*: an answer that the client never saw counts
too, as it does in the real world.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Behaviour = Callable[[int], str]


def _ok(_: int) -> str:
    return "ok"


def always(how: str) -> Behaviour:
    """Return a behaviour that never changes."""
    return lambda _: how


def sequence(*hows: str) -> Behaviour:
    """Return a behaviour of one answer after another; the last one stays."""
    return lambda number: hows[min(number, len(hows) - 1)]


def hostile(seed: int, share: float) -> Behaviour:
    """Return a behaviour that answers as it should in this share of the requests only."""
    rng = random.Random(seed)
    bad = ("500", "503", "429", "drop", "drop-after", "500-after", "late", "half")

    def choose(_: int) -> str:
        return "ok" if rng.random() < share else rng.choice(bad)

    return choose


class SinkServer:
    """Runs during the ``with`` block.

    ``ok`` takes the events; ``500``, ``503``, ``429``, ``400``, ... answer so and take nothing; ``drop`` hangs up without
    an answer; ``late`` does not answer in time. With ``-after`` the events are taken all the same: ``500-after``,
    ``drop-after``. ``half`` hangs up in the middle of its answer, having taken the events.

    Args:
        behaviour: Number of the request to what is done.
        poison: Says which events are refused with 400, with all others of their batch.
        late_s: How long ``late`` takes.
        remember: Keep requests and events; without, only the ids are counted.
        lago: Speak Lago: refuse events that are known already, as a whole, naming their positions.
        knows: Answer 409 to a batch with an event that is known already, and take none of it.

    Attributes:
        accepted: How often each event id was taken.
        events: The events taken, in order, without those that came again.
        requests: The headers and bodies of all requests.
    """

    def __init__(
        self,
        behaviour: Behaviour = _ok,
        *,
        poison: Callable[[dict[str, Any]], bool] = lambda _: False,
        late_s: float = 3.0,
        lago: bool = False,
        knows: bool = False,
        remember: bool = True,
    ) -> None:
        self.behaviour = behaviour
        self.accepted: Counter[str] = Counter()
        self.events: list[dict[str, Any]] = []
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.hows: Counter[str] = Counter()
        self._poison = poison
        self._late_s = late_s
        self._lago = lago
        self._knows = knows
        self._remember = remember
        self._count = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer._serve(self)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                """The client may be killed at any time."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["content-length"]))
        batch = json.loads(body)
        events = batch["events"] if self._lago else batch
        with self._lock:
            how = self.behaviour(self._count)
            self._count += 1
            self.hows[how] += 1
            if self._remember:
                self.requests.append((request.path, {k.lower(): v for k, v in request.headers.items()}, batch))
        if how == "late":
            time.sleep(self._late_s)
            how = "drop"
        answer = b"{}"
        status = 204 if how == "ok" else 500
        if self._knows and how == "ok" and any(event["id"] in self.accepted for event in events):
            status = 409
        elif how == "ok" or how.endswith("-after") or how == "half":
            wrong = self._take(events)
            if wrong:
                status, answer = 422 if self._lago else 400, json.dumps({"error_details": wrong}).encode()
            elif self._lago and how == "ok":
                status = 200
        elif how.isdigit():
            status = int(how)
        if how in {"drop", "drop-after"}:
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        if how == "half":
            request.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
            request.wfile.flush()
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        request.send_response(status)
        if status == 429:
            request.send_header("retry-after", "1")
        if status != 204:
            request.send_header("content-length", str(len(answer)))
        request.end_headers()
        if status != 204:
            request.wfile.write(answer)

    def _take(self, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Take all events or none; return what is wrong, by position."""
        name = "transaction_id" if self._lago else "id"
        with self._lock:
            wrong: dict[str, Any] = {
                str(i): {"properties": ["invalid"]} for i, event in enumerate(events) if self._poison(event)
            }
            if self._lago:
                known = {i: e for i, e in enumerate(events) if e[name] in self.accepted}
                wrong |= {str(i): {"transaction_id": ["value_already_exist"]} for i in known if str(i) not in wrong}
            if not wrong:
                for event in events:
                    self.accepted[event[name]] += 1
                    if self.accepted[event[name]] == 1 and self._remember:
                        self.events.append(event)
        return wrong
