"""A server of models on a port: management calls as recorded from Ollama, and the bundled provider for the models.

It checks what a real one would suffer from: a request for a model that is not resident, a model that is unloaded while it
answers, and more memory than there is.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter

import uvicorn

from pointsman.testing.provider.app import Upstream
from pointsman.testing.provider.routes import build_app
from pointsman.testing.provider.server import listen, url_of

from . import recorded


class RealClock:
    """Time as it is."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(asyncio.sleep)


class _Ollama(recorded.Ollama):
    """Ollama with models of a test's sizes, which notes loads and unloads by model."""

    def __init__(self, sizes, capacity, load_s, serving):
        super().__init__(RealClock())
        self.sizes = dict(sizes)
        self.capacity = capacity
        self.load_s = load_s
        self.serving = serving
        self.log = []
        self.faults = []

    async def answer(self, method, path, body, query):
        if path == "/api/generate" and body["keep_alive"] == 0:
            model = body["model"].removesuffix(":latest")
            self.log.append(("unload", model))
            if self.serving[model]:
                self.faults.append(f"{model} was unloaded with {self.serving[model]} requests in flight")
        return await super().answer(method, path, body, query)

    async def bring(self, model):
        self.log.append(("load", model))
        if self.full(model):
            self.faults.append(f"{model} was loaded beyond the memory")
        self.loaded[model] = "loading"
        await asyncio.sleep(self.load_s)
        if self.loaded.get(model) == "loading":
            self.loaded[model] = "ready"
            self.loads += 1


class ModelServer:
    """Runs it in a thread, on a free port.

    Args:
        sizes: Model to its bytes.
        capacity: Bytes of the memory.
        load_s: Seconds of a load.
        behaviours: How models answer; see the bundled provider.

    Attributes:
        faults: What must not have happened.
    """

    def __init__(self, sizes, *, capacity, load_s=0.5, behaviours=None):
        self.serving = Counter()
        self.ollama = _Ollama(sizes, capacity, load_s, self.serving)
        self.faults = self.ollama.faults
        self._provider = build_app(Upstream(behaviours))
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=120,
            backlog=4096,
        )
        self._server = uvicorn.Server(config)
        self._listening = listen("127.0.0.1", 0)
        self.url = url_of(self._listening)
        self._thread = threading.Thread(target=self._server.run, args=([self._listening],), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(10)

    def count(self, what, model=None):
        return sum(entry[0] == what and model in {None, entry[1]} for entry in self.ollama.log)

    async def _app(self, scope, receive, send):
        if scope["path"].startswith("/api/"):
            await self.ollama.app(scope, receive, send)
            return
        messages, body = [], b""
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            body += messages[-1].get("body", b"")
        model = json.loads(body)["model"] if body else None
        if model is not None and self.ollama.loaded.get(model) != "ready":
            self.faults.append(f"{model} was asked while it was not resident")
        again = iter(messages)

        async def replay():
            return next(again, None) or await receive()

        self.serving[model] += 1
        try:
            await self._provider(scope, replay, send)
        finally:
            self.serving[model] -= 1
