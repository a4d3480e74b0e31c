"""A provider that answers every path and every websocket, and counts who came."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from pointsman.testing.ports import free_port

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
USAGE = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30, "input_tokens": 10, "output_tokens": 20}
#: A prompt that asks for a status. The error quotes it.
_ASKED: Final = re.compile(rb"fail with (\d{3})[^\"\\&]*")
#: Enough of every format that LiteLLM can read an answer from it.
ANSWER = {
    "id": "any-1",
    "object": "chat.completion",
    "created": 1,
    "created_at": 1,
    "model": "any",
    "status": "completed",
    "deleted": True,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop", "text": "hi"}],
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "candidates": [{"content": {"role": "model", "parts": [{"text": "hi"}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 20, "totalTokenCount": 30},
    "output": [],
    "data": [],
    "results": [],
    "usage": USAGE,
}
#: LiteLLM asks each deployment for its models by itself, some time after the start; it is not counted.
DISCOVERY = ("GET", "/v1/models")
FILE: dict[str, object] = {"id": "file-1", "object": "file", "created_at": 1, "bytes": 2, "filename": "a.txt"}
FILE |= {"purpose": "assistants", "status": "processed"}


@dataclass
class Anything:
    """What has reached the provider.

    Attributes:
        port: Where it listens.
        calls: Method and path of each request; ``WEBSOCKET`` for a websocket.
        requests: The same with the bodies.
        kept: How often each background response or batch has been read.
        listed: What a list of files or batches holds.
        makes: More fields of its answers.
        results: By the id of a batch's input file, the lines of its results; where there are none, a batch says its usage.
    """

    port: int = field(default_factory=free_port)
    calls: list[tuple[str, str]] = field(default_factory=list)
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    listed: list[dict[str, object]] = field(default_factory=list)
    makes: dict[str, object] = field(default_factory=dict)
    results: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Base URL without ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, request: Request) -> Response:
        """Answer a request of any kind; the header ``x-fail``, or a prompt that asks for it, chooses another status."""
        if (request.method, request.url.path) == DISCOVERY:
            return JSONResponse(ANSWER)
        self.calls.append((request.method, request.url.path))
        self.requests.append((request.method, request.url.path, await request.body()))
        if (lines := self._results(request.url.path)) is not None:
            return Response("\n".join(map(json.dumps, lines)), media_type="application/jsonl")
        if self.listed and request.method == "GET" and request.url.path in {"/v1/files", "/v1/batches"}:
            return JSONResponse({"object": "list", "data": self.listed, "has_more": False})
        if (kept := self._kept(request, await request.body())) is not None:
            return JSONResponse(kept)
        if request.url.path.startswith("/v1/videos"):
            id_ = "video_2" if request.url.path.endswith("/remix") else "video_1"
            return JSONResponse({**ANSWER, "object": "video", "id": id_, "seconds": "4", "usage": None})
        asked = _ASKED.search(await request.body())
        status = int(asked[1] if asked else request.headers.get("x-fail", "200"))
        quoted = f"It's too much: you've said '{asked[0].decode()}', which isn't allowed" if asked else "no"
        return JSONResponse(
            ANSWER | self.makes if status == 200 else {"error": {"message": quoted, "type": "fake"}}, status
        )  # HTTP

    def _results(self, path: str) -> list[dict[str, object]] | None:
        """Return the results of a batch by the path of their file."""
        file = path.removeprefix("/v1/files/results-of-").removesuffix("/content")
        return self.results.get(file) if path == f"/v1/files/results-of-{file}/content" else None

    def _kept(self, request: Request, body: bytes) -> dict[str, object] | None:
        """Return a file, a background response or a batch: its first read finds it at work, all later ones find it complete."""
        what, _, id_ = request.url.path.removeprefix("/v1/").partition("/")
        if (request.method, what, id_) == ("POST", "files", ""):
            return FILE
        if what not in {"responses", "batches"}:
            return None
        if request.method == "POST" and not id_ and (what == "batches" or b'"background":true' in body):
            self.kept.append(0)
            id_, status = f"{what}_{len(self.kept) - 1}", "queued"
            self.inputs[id_] = str(json.loads(body).get("input_file_id"))
        elif id_.endswith("/cancel") and what == "batches":
            id_, status = id_.removesuffix("/cancel"), "cancelling"
        elif id_.rpartition("_")[2].isdecimal():
            number = int(id_.rpartition("_")[2])
            self.kept[number] += 1
            status = "in_progress" if self.kept[number] == 1 else "completed"
        else:
            return None
        done = status == "completed"
        if what == "responses":
            return {**ANSWER, "id": id_, "object": "response", "status": status, "usage": USAGE if done else None}
        file = self.inputs.get(id_, "file-1")
        batch = {"endpoint": "/v1/chat/completions", "input_file_id": file, "completion_window": "24h"}
        status = "validating" if status == "queued" else status
        return {"id": id_, "object": "batch", "created_at": 1, "status": status, **batch} | (
            {} if not done else {"output_file_id": f"results-of-{file}"} if file in self.results else {"usage": USAGE}
        )

    async def talk(self, socket: WebSocket) -> None:
        """Answer each message that asks for a response."""
        await socket.accept()
        self.calls.append(("WEBSOCKET", socket.url.path))
        self.requests.append(("WEBSOCKET", socket.url.path, str(socket.url.query).encode()))
        await socket.send_json({"type": "session.created", "event_id": "e0", "session": {"id": "s1", "model": "any"}})
        try:
            while True:
                message = json.loads(await socket.receive_text())
                if message.get("type") == "response.create":
                    kind = "response.done" if "realtime" in socket.url.path else "response.completed"
                    await socket.send_json({"type": kind, "event_id": "e1", "response": {**ANSWER, "usage": USAGE}})
        except WebSocketDisconnect:
            return


@contextmanager
def anything() -> Iterator[Anything]:
    """Run it during the ``with`` block."""
    provider = Anything()
    every = "/{path:path}"
    app = Starlette(routes=[WebSocketRoute(every, provider.talk), Route(every, provider.answer, methods=METHODS)])
    server = uvicorn.Server(uvicorn.Config(app, port=provider.port, lifespan="off", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, name="anything", daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield provider
    finally:
        server.should_exit = True
        thread.join(10)
